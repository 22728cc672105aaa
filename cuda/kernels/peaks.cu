// Density peaks: how dense each token lies, how far it is from anything denser, and which centre it joins.
//
// Distances come first, all pairs of a group, from the differences of tokens and not from products: each pair adds up in
// the same order, so that a token's distance to itself is 0 and equal tokens have equal distances. Then one block per
// token walks through its row of them, which lies in shared memory for the search of the nearest: halving the range of
// the bits of a float takes 31 counts however many neighbours there are. The order of the scores is torch's to find.

#include "primitives.cuh"

namespace vtc {

constexpr int PEAK_THREADS = 256, PEAK_WARPS = PEAK_THREADS / 32, SIDE = 64, DEPTH = 16;

struct Peaks {
    const void* x;                      // [G, M, D] in one piece
    const bool* valid;                  // [G, M] or null
    const int64_t *count, *neighbours;  // [G] each
    const int64_t* centres;             // [G, most], for the last kernel
    float *apart, *density, *score;     // [G, M, M], [G, M], [G, M]
    unsigned long long* largest;        // [G]: bits of the largest distance; 0 in front
    int64_t* member_of;                 // [G, M]
    int tokens, dim, most, ranked;      // ranked: of equally dense tokens the first is the denser
};

__device__ __forceinline__ bool there(const Peaks& p, int64_t token) { return p.valid == nullptr || p.valid[token]; }

// SIDE × SIDE distances of a group, of which each thread has 4 × 4.
template <typename T>
__global__ void __launch_bounds__(PEAK_THREADS) apart_kernel(const Peaks p) {
    __shared__ float left[DEPTH][SIDE + 1], right[DEPTH][SIDE + 1];
    const int64_t first = static_cast<int64_t>(blockIdx.z) * p.tokens;
    const T* x = static_cast<const T*>(p.x) + first * p.dim;
    const int rows = blockIdx.y * SIDE, columns = blockIdx.x * SIDE, row = threadIdx.x / 16, column = threadIdx.x % 16;
    float sum[4][4] = {};
    for (int start = 0; start < p.dim; start += DEPTH) {
        for (int i = threadIdx.x; i < DEPTH * SIDE; i += PEAK_THREADS) {
            int d = i % DEPTH, token = i / DEPTH;
            auto at = [&](int from) {
                if (from + token >= p.tokens || start + d >= p.dim) return 0.0f;
                float value = to_float(x[static_cast<int64_t>(from + token) * p.dim + start + d]);
                return fabsf(value) < INFINITE ? value : 0.0f;  // NaN and infinite count as 0
            };
            left[d][token] = at(rows);
            right[d][token] = at(columns);
        }
        __syncthreads();
        for (int d = 0; d < DEPTH; ++d) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    float off = left[d][row + 16 * i] - right[d][column + 16 * j];
                    sum[i][j] += off * off;
                }
            }
        }
        __syncthreads();
    }
    const float width = sqrtf(static_cast<float>(p.dim));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            int token = rows + row + 16 * i, other = columns + column + 16 * j;
            if (token >= p.tokens || other >= p.tokens) continue;
            bool pair = there(p, first + token) && there(p, first + other);
            p.apart[(first + token) * p.tokens + other] = pair ? sqrtf(sum[i][j]) / width : INFINITE;
        }
    }
}

// The sum of a block's numbers, for every thread; `scratch` has room for 32, and is not used by the call after this one.
template <typename Number>
__device__ __forceinline__ Number sum_of_block(Number mine, Number* scratch) {
#pragma unroll
    for (int apart = 16; apart > 0; apart /= 2) mine += __shfl_xor_sync(ALL_LANES, mine, apart);
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = mine;
    __syncthreads();
    Number all = 0;
#pragma unroll
    for (int warp = 0; warp < PEAK_WARPS; ++warp) all += scratch[warp];
    return all;
}

__global__ void __launch_bounds__(PEAK_THREADS) density_kernel(const Peaks p) {
    VTC_SHARED(memory);
    __shared__ int counts[2][32];
    __shared__ float sums[32];
    __shared__ Smallest scratch[32];
    float* row = reinterpret_cast<float*>(memory);
    const int64_t token = static_cast<int64_t>(blockIdx.y) * p.tokens + blockIdx.x;
    float far = 0.0f;
    for (int other = threadIdx.x; other < p.tokens; other += PEAK_THREADS) {
        row[other] = p.apart[token * p.tokens + other];  // what a thread writes, it alone reads
        if (row[other] < INFINITE) far = fmaxf(far, row[other]);
    }
    const float own = p.neighbours[blockIdx.y];
    const int wanted = static_cast<int>(min(p.neighbours[blockIdx.y], static_cast<int64_t>(p.most)));
    // The least bits that at least `wanted` numbers do not exceed.
    unsigned low = 0, high = 0x7f800000u;
    for (int turn = 0; low < high; ++turn) {
        unsigned middle = low + (high - low) / 2;
        int found = 0;
        for (int other = threadIdx.x; other < p.tokens; other += PEAK_THREADS) found += __float_as_uint(row[other]) <= middle;
        if (sum_of_block(found, counts[turn % 2]) >= wanted) high = middle;
        else low = middle + 1;
    }
    const float last = __uint_as_float(high);
    int below = 0;
    float sum = 0.0f;
    for (int other = threadIdx.x; other < p.tokens; other += PEAK_THREADS) {
        if (row[other] < last) {
            ++below;
            sum += row[other] * row[other];
        }
    }
    __syncthreads();  // the search may have ended with either of the two
    below = sum_of_block(below, counts[0]);
    sum = sum_of_block(sum, sums);
    if (wanted > below) sum += static_cast<float>(wanted - below) * (last * last);
    unsigned key = smallest_of_block({ordered(-far), 0}, scratch).key;
    if (threadIdx.x == 0) {
        p.density[token] = expf(-sum / fmaxf(own, 1.0f));
        far = -__uint_as_float(key ^ (key >> 31 ? 0x80000000u : 0xffffffffu));
        atomicMax(&p.largest[blockIdx.y], static_cast<unsigned long long>(__float_as_uint(far + 0.0f)));
    }
}

__global__ void __launch_bounds__(PEAK_THREADS) score_kernel(const Peaks p) {
    __shared__ Smallest scratch[32];
    const int64_t first = static_cast<int64_t>(blockIdx.y) * p.tokens, token = first + blockIdx.x;
    const float own = p.density[token];
    float near = INFINITE;
    for (int other = threadIdx.x; other < p.tokens; other += PEAK_THREADS) {
        const float density = p.density[first + other];
        const bool denser = density > own || (p.ranked && density == own && first + other < token);
        if (denser) near = fminf(near, p.apart[token * p.tokens + other]);
    }
    unsigned key = smallest_of_block({ordered(near), 0}, scratch).key;
    if (threadIdx.x == 0) {
        near = __uint_as_float(key ^ (key >> 31 ? 0x80000000u : 0xffffffffu));
        if (near == INFINITE) near = __uint_as_float(static_cast<unsigned>(p.largest[blockIdx.y]));  // nothing is denser
        p.score[token] = there(p, token) ? own * near : -INFINITE;
    }
}

__global__ void __launch_bounds__(PEAK_THREADS) member_kernel(const Peaks p) {
    const int token = blockIdx.x * PEAK_THREADS + threadIdx.x;
    if (token >= p.tokens) return;
    const int64_t at = static_cast<int64_t>(blockIdx.y) * p.tokens + token;
    const int64_t* centres = p.centres + static_cast<int64_t>(blockIdx.y) * p.most;
    const int used = static_cast<int>(min(p.count[blockIdx.y], static_cast<int64_t>(p.most)));
    int member = 0;
    float near = INFINITE;
    bool is_centre = false;
    for (int centre = 0; centre < used; ++centre) {
        float away = p.apart[at * p.tokens + centres[centre]];
        if (centres[centre] == token) {
            member = centre;
            is_centre = true;
        }
        if (!is_centre && away < near) {
            near = away;
            member = centre;
        }
    }
    p.member_of[at] = is_centre || there(p, at) ? member : p.most;
}

}  // namespace vtc

// Distances, density and score; `apart`, `density` and `largest` are room for work, the last filled with 0.
VTC_API int vtc_peaks(const void* x, int type, const void* valid, const int64_t* neighbours, float* apart, float* density,
                      unsigned long long* largest, float* score, int groups, int tokens, int dim, int most,
                      int ranked, cudaStream_t stream) {
    using namespace vtc;
    Peaks p{x, static_cast<const bool*>(valid), nullptr, neighbours, nullptr, apart, density, score, largest, nullptr,
            tokens, dim, most, ranked};
    const unsigned sides = (tokens + SIDE - 1) / SIDE;
    auto kernel = type == FLOAT32 ? apart_kernel<float> : type == FLOAT16 ? apart_kernel<__half> : apart_kernel<__nv_bfloat16>;
    VTC_LAUNCH(kernel, dim3(sides, sides, groups), PEAK_THREADS, 0, stream, p);
    if (cudaError_t failed = cudaGetLastError()) return failed;
    size_t bytes = tokens * sizeof(float);
    if (cudaError_t failed = allow_shared(density_kernel, bytes)) return failed;
    VTC_LAUNCH(density_kernel, dim3(tokens, groups), PEAK_THREADS, bytes, stream, p);
    if (cudaError_t failed = cudaGetLastError()) return failed;
    VTC_LAUNCH(score_kernel, dim3(tokens, groups), PEAK_THREADS, 0, stream, p);
    return cudaGetLastError();
}

// Which centre each token joins, by the distances that are there.
VTC_API int vtc_members(const float* apart, const void* valid, const int64_t* count, const int64_t* centres,
                        int64_t* member_of, int groups, int tokens, int most, cudaStream_t stream) {
    using namespace vtc;
    Peaks p{nullptr, static_cast<const bool*>(valid), count, nullptr, centres, const_cast<float*>(apart), nullptr, nullptr,
            nullptr, member_of, tokens, 0, most, 0};
    VTC_LAUNCH(member_kernel, dim3((tokens + PEAK_THREADS - 1) / PEAK_THREADS, groups), PEAK_THREADS, 0, stream, p);
    return cudaGetLastError();
}
