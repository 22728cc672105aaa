// What the kernels use of the hardware beyond plain C++: number types, asynchronous copies, matrix instructions.
// Under VTC_EMULATED the same names run on a CPU (tests/cuda_emulator).
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cassert>
#include <cstdint>

// What the binding calls; everything else stays inside the library.
#define VTC_API extern "C" __attribute__((visibility("default")))

#ifdef VTC_EMULATED
#include "emulator.h"
#else
// Dynamic shared memory under one name, and a launch.
#define VTC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#define VTC_LAUNCH(kernel, grid, block, bytes, stream, ...) kernel<<<grid, block, bytes, stream>>>(__VA_ARGS__)
#endif

namespace vtc {

// ---------------------------------------------------------------- number types, as the binding numbers them

enum Type : int { FLOAT32 = 0, FLOAT16 = 1, BFLOAT16 = 2, BOOL = 3 };

constexpr float INFINITE = __builtin_huge_valf();
constexpr unsigned ALL_LANES = 0xffffffffu;

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(__half value) { return __half2float(value); }
__device__ __forceinline__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

template <typename T>
__device__ __forceinline__ T from_float(float value);
template <>
__device__ __forceinline__ float from_float<float>(float value) { return value; }
template <>
__device__ __forceinline__ __half from_float<__half>(float value) { return __float2half_rn(value); }
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float value) { return __float2bfloat16_rn(value); }

// The entry of an array whose number type is known at run time only.
__device__ __forceinline__ float load_float(const void* array, int type, int64_t at) {
    if (type == FLOAT32) return static_cast<const float*>(array)[at];
    if (type == FLOAT16) return to_float(static_cast<const __half*>(array)[at]);
    return to_float(static_cast<const __nv_bfloat16*>(array)[at]);
}

// An index of 32 or 64 bits.
__device__ __forceinline__ int64_t load_index(const void* array, bool wide, int64_t at) {
    return wide ? static_cast<const int64_t*>(array)[at] : static_cast<const int32_t*>(array)[at];
}

// N numbers that are loaded and stored in one instruction where N · sizeof(T) is 16.
template <typename T, int N>
struct alignas(N * sizeof(T)) Vector {
    T at[N];
};

#ifndef VTC_EMULATED

// ---------------------------------------------------------------- asynchronous copies from global to shared memory

__device__ __forceinline__ unsigned shared_address(const void* pointer) {
    return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

// 16 bytes, or zeros where `inside` is false; both addresses aligned to 16.
__device__ __forceinline__ void copy16(void* shared, const void* global, bool inside) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(inside ? 16 : 0)
                 : "memory");
}

// Waits for all copies that this thread started.
__device__ __forceinline__ void wait_for_copies() {
    asm volatile("cp.async.commit_group;\ncp.async.wait_group 0;" ::: "memory");
}

// ---------------------------------------------------------------- matrix instructions, a warp together

// Four 8 × 8 matrices of 16-bit numbers; lane i says where row i % 8 of matrix i / 8 begins. Of each matrix a lane gets
// row lane / 4, columns 2 (lane % 4) and the next.
__device__ __forceinline__ void load_matrices(uint32_t (&out)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(shared_address(row)));
}

// c [16, 8] += a [16, 16] · bᵀ [16, 8]; lane l holds of c rows l / 4 and l / 4 + 8, columns 2 (l % 4) and the next.
template <typename T>
__device__ __forceinline__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
__device__ __forceinline__ void multiply_add<__half>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ __forceinline__ void multiply_add<__nv_bfloat16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                                           uint32_t b1) {
    asm(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ float fast_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#endif

// ---------------------------------------------------------------- the smallest of a block, lowest index on ties

// Orders floats as unsigned integers do; -0 counts as 0. No NaN.
__device__ __forceinline__ unsigned ordered(float value) {
    unsigned bits = __float_as_uint(value + 0.0f);
    return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}

struct Smallest {
    unsigned key, index;
};

__device__ __forceinline__ Smallest smallest_of_warp(Smallest mine) {
    unsigned key = __reduce_min_sync(ALL_LANES, mine.key);
    unsigned index = __reduce_min_sync(ALL_LANES, mine.key == key ? mine.index : 0xffffffffu);
    return {key, index};
}

// Every thread gets the result. `scratch` has room for 32, and is not used by the call after this one.
__device__ __forceinline__ Smallest smallest_of_block(Smallest mine, Smallest* scratch) {
    int lane = threadIdx.x % 32, warps = blockDim.x / 32;
    mine = smallest_of_warp(mine);
    if (lane == 0) scratch[threadIdx.x / 32] = mine;
    __syncthreads();
    return smallest_of_warp(lane < warps ? scratch[lane] : Smallest{0xffffffffu, 0xffffffffu});
}

// ---------------------------------------------------------------- the largest of several blocks, lowest index on ties

// A rank of 1 to 3 that goes first, a score of at least 0, and a token, as one number to take the largest of.
__device__ __forceinline__ unsigned long long ranked(int rank, float score, int token) {
    return static_cast<unsigned long long>(rank) << 62 |
           static_cast<unsigned long long>(__float_as_uint(fmaxf(score, 0.0f) + 0.0f) & 0x7fffffffu) << 31 |
           (0x7fffffffu - static_cast<unsigned>(token));
}

__device__ __forceinline__ int rank_of(unsigned long long key) { return static_cast<int>(key >> 62); }
__device__ __forceinline__ float score_of(unsigned long long key) {
    return __uint_as_float(static_cast<unsigned>(key >> 31) & 0x7fffffffu);
}
__device__ __forceinline__ int token_of(unsigned long long key) {
    return static_cast<int>(0x7fffffffu - (static_cast<unsigned>(key) & 0x7fffffffu));
}

// Memory beyond 48 KiB has to be asked for, once for each kernel and device.
template <typename Kernel>
inline cudaError_t allow_shared(Kernel kernel, size_t bytes) {
    if (bytes <= 40 * 1024) return cudaSuccess;
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
}

}  // namespace vtc
