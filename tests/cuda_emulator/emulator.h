// Runs the kernels of vtc on a CPU, one block after another, so that tests can see what they compute without a GPU.
//
// Every thread of a block is a fibre, which runs until it has to wait for others (a barrier, an exchange within its
// warp). A warp drawn at random runs as far ahead of the others as it can, its lanes in random order, so that a missing
// barrier shows as a wrong result. What threads of several blocks do at once is not emulated.
// Shared memory is filled with NaN in front of each block. Asynchronous copies happen only when they are waited for.
// A block that can't go on (a barrier that some never reach, an exchange without all lanes) ends the process.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)

using std::max;
using std::min;

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(16) int4 {
    int x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(8) uint2 {
    unsigned x, y;
};

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum { cudaFuncAttributeMaxDynamicSharedMemorySize };
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t error) { return error ? "invalid value" : "no error"; }
struct cudaFuncAttributes {};
template <typename Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, Kernel) { return cudaSuccess; }
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, int, int) { return cudaSuccess; }

inline dim3 gridDim, blockDim, blockIdx, threadIdx;

namespace emulator {

constexpr int WARP = 32;
constexpr size_t STACK = 64 * 1024, SHARED = 160 * 1024;

struct Copy {
    void* to;
    const void* from;
    size_t bytes;
    bool inside;
};

struct Fibre {
    ucontext_t context;
    jmp_buf place;
    std::unique_ptr<char[]> stack;
    bool started, ended;
    const unsigned* gate;  // waits until this counts beyond `passed`
    unsigned passed;
    std::vector<Copy> copies;
};

// What the lanes of a warp, or the threads of a block, put together before any of them goes on.
struct Meeting {
    unsigned here = 0, met = 0;
    uint64_t given[2][1024];
};

inline std::vector<Fibre> fibres(1024);
inline std::vector<Meeting> warps(32);
inline Meeting block;
inline int current;
inline jmp_buf scheduler;
inline std::function<void()> body;
inline std::mt19937 random_order(0);
inline std::unique_ptr<unsigned char[]> shared_memory(new unsigned char[SHARED + 16]);

[[noreturn]] inline void fail(const char* why) {
    std::fprintf(stderr, "CUDA emulator: block (%u, %u, %u), thread %d: %s\n", blockIdx.x, blockIdx.y, blockIdx.z, current, why);
    std::abort();
}

inline unsigned char* shared() {
    auto address = reinterpret_cast<uintptr_t>(shared_memory.get());
    return shared_memory.get() + (16 - address % 16) % 16;
}

inline void pause() {
    if (_setjmp(fibres[current].place) == 0) _longjmp(scheduler, 1);
    threadIdx = dim3(current);
}

// Gives `value` and returns what all have given; `size` threads meet, of which this is number `rank`.
inline const uint64_t* meet(Meeting& meeting, unsigned size, unsigned rank, uint64_t value) {
    const unsigned round = meeting.met;
    uint64_t* given = meeting.given[round % 2];
    given[rank] = value;
    if (++meeting.here == size) {
        meeting.here = 0;
        ++meeting.met;
    }
    Fibre& me = fibres[current];
    me.gate = &meeting.met, me.passed = round;
    pause();
    me.gate = nullptr;
    return given;
}

inline const uint64_t* with_warp(unsigned mask, uint64_t value) {
    if (mask != 0xffffffffu) fail("an exchange within a warp that leaves lanes out");
    return meet(warps[current / WARP], WARP, current % WARP, value);
}

inline const uint64_t* with_block(uint64_t value) { return meet(block, blockDim.x, current, value); }

inline void start() {
    body();
    if (!fibres[current].copies.empty()) fail("ended before its copies were waited for");
    fibres[current].ended = true;
    _longjmp(scheduler, 1);
}

// Runs one fibre until it waits or ends.
inline void resume(int thread) {
    Fibre& fibre = fibres[thread];
    current = thread;
    threadIdx = dim3(thread);
    if (_setjmp(scheduler)) return;
    if (fibre.started) _longjmp(fibre.place, 1);
    fibre.started = true;
    getcontext(&fibre.context);
    fibre.context.uc_stack.ss_sp = fibre.stack.get();
    fibre.context.uc_stack.ss_size = STACK;
    fibre.context.uc_link = nullptr;
    makecontext(&fibre.context, start, 0);
    setcontext(&fibre.context);
}

// Lets each lane of a warp that need not wait go on once, in random order; how many these were.
inline int run_lanes(int warp, std::vector<int>& lanes, int& left) {
    int ran = 0;
    std::shuffle(lanes.begin(), lanes.end(), random_order);
    for (int lane : lanes) {
        Fibre& fibre = fibres[warp * WARP + lane];
        if (fibre.ended || (fibre.gate != nullptr && *fibre.gate == fibre.passed)) continue;
        resume(warp * WARP + lane);
        left -= fibre.ended;
        ++ran;
    }
    return ran;
}

inline void run_block() {
    const int threads = static_cast<int>(blockDim.x);
    std::memset(shared(), 0xff, SHARED);
    block.here = block.met = 0;
    for (Meeting& warp : warps) warp.here = warp.met = 0;
    for (int i = 0; i < threads; ++i) {
        Fibre& fibre = fibres[i];
        if (!fibre.stack) fibre.stack.reset(new char[STACK]);
        fibre.started = fibre.ended = false;
        fibre.gate = nullptr;
    }
    std::vector<int> ahead(threads / WARP), lanes(WARP);
    std::iota(ahead.begin(), ahead.end(), 0);
    std::iota(lanes.begin(), lanes.end(), 0);
    int left = threads;
    while (left) {
        bool moved = false;
        std::shuffle(ahead.begin(), ahead.end(), random_order);
        for (int warp : ahead) {
            while (run_lanes(warp, lanes, left)) moved = true;
        }
        if (!moved) fail("nothing can go on: some threads wait for others that have ended or wait elsewhere");
    }
}

template <typename Kernel, typename... Arguments>
int launch(Kernel kernel, dim3 grid, dim3 threads, size_t bytes, Arguments... arguments) {
    gridDim = grid, blockDim = threads;
    if (threads.y != 1 || threads.z != 1 || threads.x > 1024 || threads.x % WARP) fail("such blocks are not emulated");
    if (bytes > SHARED || !grid.x || !grid.y || !grid.z || grid.y > 65535 || grid.z > 65535) fail("a launch that a GPU refuses");
    body = [=] { kernel(arguments...); };
    std::vector<unsigned> blocks(grid.x * static_cast<size_t>(grid.y) * grid.z);
    for (size_t i = 0; i < blocks.size(); ++i) blocks[i] = static_cast<unsigned>(i);
    std::shuffle(blocks.begin(), blocks.end(), random_order);
    for (unsigned number : blocks) {
        blockIdx = dim3(number % grid.x, number / grid.x % grid.y, number / grid.x / grid.y);
        run_block();
    }
    return 0;
}

inline float as_float(uint64_t bits) {
    auto low = static_cast<uint32_t>(bits);
    float value;
    std::memcpy(&value, &low, 4);
    return value;
}

inline uint32_t as_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

}  // namespace emulator

#define VTC_SHARED(name) unsigned char* name = emulator::shared()
#define VTC_LAUNCH(kernel, grid, block, bytes, stream, ...) emulator::launch(kernel, grid, block, bytes, __VA_ARGS__)

// ---------------------------------------------------------------- what CUDA has built in

inline void __syncthreads() { emulator::with_block(0); }
inline int __syncthreads_or(int value) {
    const uint64_t* given = emulator::with_block(value != 0);
    return std::any_of(given, given + blockDim.x, [](uint64_t one) { return one != 0; });
}
inline void __syncwarp() { emulator::with_warp(0xffffffffu, 0); }
inline unsigned __ballot_sync(unsigned mask, int value) {
    const uint64_t* given = emulator::with_warp(mask, value != 0);
    unsigned found = 0;
    for (int lane = 0; lane < emulator::WARP; ++lane) found |= static_cast<unsigned>(given[lane]) << lane;
    return found;
}
inline unsigned __reduce_min_sync(unsigned mask, unsigned value) {
    const uint64_t* given = emulator::with_warp(mask, value);
    return static_cast<unsigned>(*std::min_element(given, given + emulator::WARP));
}
inline float __shfl_xor_sync(unsigned mask, float value, int apart) {
    int lane = emulator::current % emulator::WARP;
    return emulator::as_float(emulator::with_warp(mask, emulator::as_bits(value))[lane ^ apart]);
}
inline int __shfl_xor_sync(unsigned mask, int value, int apart) {
    int lane = emulator::current % emulator::WARP;
    return static_cast<int>(emulator::with_warp(mask, static_cast<unsigned>(value))[lane ^ apart]);
}
inline unsigned atomicAdd(unsigned* at, unsigned value) {
    unsigned old = *at;
    *at += value;
    return old;
}
inline unsigned long long atomicMax(unsigned long long* at, unsigned long long value) {
    unsigned long long old = *at;
    *at = std::max(old, value);
    return old;
}
inline void __threadfence() {}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline unsigned __float_as_uint(float value) { return emulator::as_bits(value); }
inline float __uint_as_float(unsigned bits) { return emulator::as_float(bits); }

struct __half {
    uint16_t bits;
};
struct __nv_bfloat16 {
    uint16_t bits;
};
inline float __half2float(__half value) {
    static const std::vector<float> all = [] {
        std::vector<float> made(65536);
        for (int bits = 0; bits < 65536; ++bits) {
            int exponent = bits >> 10 & 31, fraction = bits & 1023;
            float size = exponent == 31  ? (fraction ? NAN : INFINITY)
                         : exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                                         : std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
            made[bits] = bits >> 15 ? -size : size;
        }
        return made;
    }();
    return all[value.bits];
}
inline __half __float2half_rn(float value) {
    uint16_t sign = std::signbit(value) ? 0x8000 : 0;
    float size = std::fabs(value);
    if (std::isnan(value)) return {static_cast<uint16_t>(sign | 0x7e00)};
    if (size >= 65520.0f) return {static_cast<uint16_t>(sign | 0x7c00)};
    int exponent = std::max(size > 0 ? std::ilogb(size) : -14, -14);
    auto fraction = static_cast<int>(std::nearbyint(std::ldexp(size, 10 - exponent)));  // 1024 … 2048, or less below 2^-14
    return {static_cast<uint16_t>(sign + ((exponent + 14) << 10) + fraction)};
}
inline float __bfloat162float(__nv_bfloat16 value) { return emulator::as_float(static_cast<uint32_t>(value.bits) << 16); }
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
    uint32_t bits = emulator::as_bits(value);
    if (std::isnan(value)) return {static_cast<uint16_t>(bits >> 16 | 64)};
    return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

// ---------------------------------------------------------------- what primitives.cuh writes in PTX

namespace vtc {

inline void later(void* to, const void* from, size_t bytes, bool inside) {
    if (reinterpret_cast<uintptr_t>(to) % bytes || (inside && reinterpret_cast<uintptr_t>(from) % bytes)) {
        emulator::fail("an asynchronous copy whose addresses are not aligned");
    }
    emulator::fibres[emulator::current].copies.push_back({to, from, bytes, inside});
}
inline void copy16(void* to, const void* from, bool inside) { later(to, from, 16, inside); }
inline void wait_for_copies() {
    for (const emulator::Copy& copy : emulator::fibres[emulator::current].copies) {
        if (copy.inside) std::memcpy(copy.to, copy.from, copy.bytes);
        else std::memset(copy.to, 0, copy.bytes);
    }
    emulator::fibres[emulator::current].copies.clear();
}

inline void load_matrices(uint32_t (&out)[4], const void* row) {
    if (reinterpret_cast<uintptr_t>(row) % 16) emulator::fail("ldmatrix with a row that is not aligned");
    const uint64_t* rows = emulator::with_warp(0xffffffffu, reinterpret_cast<uint64_t>(row));
    int lane = emulator::current % emulator::WARP;
    for (int matrix = 0; matrix < 4; ++matrix) {
        auto from = reinterpret_cast<const char*>(rows[matrix * 8 + lane / 4]);
        std::memcpy(&out[matrix], from + lane % 4 * 4, 4);
    }
}

template <typename T>
float part(uint64_t word, int half) {
    auto bits = static_cast<uint16_t>(word >> 16 * half);
    T value;
    std::memcpy(&value, &bits, 2);
    if constexpr (std::is_same_v<T, __half>) return __half2float(value);
    else return __bfloat162float(value);
}

// Fragments of m16n8k16: register i of a lane holds, of A, row lane / 4 (+ 8 for odd i), columns 2 (lane % 4) (+ 8 for i
// of 2 and 3); of B, rows 2 (lane % 4) (+ 8 for i of 1), column lane / 4. Its lower half is the lower of two.
template <typename T>
void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    const uint32_t mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
    uint64_t pairs[3][32];
    for (int i = 0; i < 3; ++i) {
        uint64_t pair = mine[2 * i] | static_cast<uint64_t>(mine[2 * i + 1]) << 32;
        std::copy_n(emulator::with_warp(0xffffffffu, pair), 32, pairs[i]);
    }
    auto value = [&](int i, int lane, int half) { return part<T>(pairs[i / 2][lane] >> i % 2 * 32, half); };
    int lane = emulator::current % emulator::WARP;
    for (int i = 0; i < 4; ++i) {
        int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        for (int k = 0; k < 16; ++k) {
            c[i] += value(row / 8 + k / 8 * 2, row % 8 * 4 + k % 8 / 2, k % 2) *
                    value(4 + k / 8, column * 4 + k % 8 / 2, k % 2);
        }
    }
}

inline float fast_exp2(float x) { return std::exp2(x); }

}  // namespace vtc
