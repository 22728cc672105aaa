// Greedy diversity order (farthest point first): each step picks the token that is least like those picked before.
//
// Two forms. Where all pairwise products fit, one block per image walks through them: a step is one row of the matrix
// and one reduction, so that its time is latency (an L2 load, two warp reductions, one barrier). Beyond that, each step
// is a launch of its own that computes its row from the features, so that its time is memory bandwidth.
//
// A product becomes a cosine by the inverse lengths of its two tokens; an inverse length of 0 marks a token without a
// direction, which is like nothing (0) and comes last. `near` is how close a token is to the picks; picked: infinite.
//
// Weighted, the token that is worth most comes next: weight times distance plus bonus. `near` is kept as it is, and what
// the tokens are compared by is made of it in each step. A token without a direction is one like others then.

#include "primitives.cuh"

namespace vtc {

constexpr float LOST = 1e30f;  // larger than any closeness, smaller than what is picked or padding

struct Greedy {
    const float *products, *inverse, *nearest;  // [G, N, N], [G, N], and [G, N] or null
    const int64_t *seed, *counts;               // [G] each, or null; one of seed and nearest is given
    const float *weight, *bonus;                // [G, N] each, or both null
    int64_t* picks;                             // [G, k]
    int tokens, k;
    bool sum;
};

__device__ __forceinline__ float cosine(float product, float inverse, float other) {
    return inverse == 0.0f || other == 0.0f ? 0.0f : product * inverse * other;  // products of the lost may be NaN
}

__device__ __forceinline__ float joined(float near, float cosine, bool sum) {
    return sum ? near + cosine : fmaxf(near, cosine);
}

// What the smallest of comes next; picked tokens and padding stay infinite.
__device__ __forceinline__ float cost(float near, float weight, float bonus) {
    return near == INFINITE ? INFINITE : weight * (near - 1.0f) - bonus;
}

// Each thread holds GROUPS groups of four neighbouring tokens.
template <int GROUPS, bool WEIGHTED>
__global__ void __launch_bounds__(1024) greedy_kernel(const Greedy g) {
    __shared__ Smallest scratch[2][32];
    constexpr int HELD = GROUPS * 4;
    const int image = blockIdx.x;
    const int64_t first = static_cast<int64_t>(image) * g.tokens;
    const int count = g.counts == nullptr ? g.tokens : static_cast<int>(g.counts[image]);
    float near[HELD], inverse[HELD], weight[WEIGHTED ? HELD : 1], bonus[WEIGHTED ? HELD : 1];
    Smallest best{0xffffffffu, 0xffffffffu};
#pragma unroll
    for (int i = 0; i < HELD; ++i) {
        int token = (i / 4 * blockDim.x + threadIdx.x) * 4 + i % 4;
        inverse[i] = token < g.tokens ? g.inverse[first + token] : 0.0f;
        bool lost = !WEIGHTED && inverse[i] == 0.0f;
        if (WEIGHTED) {
            weight[i] = token < g.tokens ? g.weight[first + token] : 0.0f;
            bonus[i] = token < g.tokens ? g.bonus[first + token] : 0.0f;
        }
        near[i] = token >= count ? INFINITE : lost ? LOST : g.sum ? 0.0f : -INFINITE;
        if (g.nearest != nullptr && token < g.tokens) {
            unsigned key = ordered(token >= count ? INFINITE : lost ? LOST : g.nearest[first + token]);
            if (key < best.key) best = {key, static_cast<unsigned>(token)};
        }
    }
    int pick;
    if (g.nearest == nullptr) {
        pick = static_cast<int>(g.seed[image]);
        assert(0 <= pick && pick < g.tokens && "max_min: a seed is not in 0 ... N-1");
    } else {
        pick = static_cast<int>(smallest_of_block(best, scratch[1]).index);
    }
    for (int step = 0;; ++step) {
        if (threadIdx.x == 0) g.picks[static_cast<int64_t>(image) * g.k + step] = step < count ? pick : -1;
        if (step + 1 == g.k) return;
        const float* row = g.products + (first + pick) * g.tokens;
        const float of_pick = g.inverse[first + pick];
        best = {0xffffffffu, 0xffffffffu};
#pragma unroll
        for (int group = 0; group < GROUPS; ++group) {
            int token = (group * blockDim.x + threadIdx.x) * 4;
            float product[4] = {};
            if (g.tokens % 4 == 0) {
                if (token < g.tokens) {
                    auto whole = *reinterpret_cast<const Vector<float, 4>*>(row + token);
#pragma unroll
                    for (int i = 0; i < 4; ++i) product[i] = whole.at[i];
                }
            } else {
#pragma unroll
                for (int i = 0; i < 4; ++i) product[i] = token + i < g.tokens ? row[token + i] : 0.0f;
            }
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                float& held = near[group * 4 + i];
                held = token + i == pick ? INFINITE
                                         : joined(held, cosine(product[i], of_pick, inverse[group * 4 + i]), g.sum);
                unsigned key =
                    ordered(WEIGHTED ? cost(held, weight[group * 4 + i], bonus[group * 4 + i]) : held);
                if (key < best.key) best = {key, static_cast<unsigned>(token + i)};
            }
        }
        pick = static_cast<int>(smallest_of_block(best, scratch[step % 2]).index);
    }
}

// The closeness of each token to the one that is most like it: a block for each row of the products.
__global__ void __launch_bounds__(256) nearest_kernel(const float* products, const float* inverse, const int64_t* counts,
                                                      float* nearest, int tokens) {
    __shared__ Smallest scratch[32];
    const int token = blockIdx.x;
    const int64_t first = static_cast<int64_t>(blockIdx.y) * tokens;
    const int count = counts == nullptr ? tokens : static_cast<int>(counts[blockIdx.y]);
    const float* row = products + (first + token) * tokens;
    float most = -INFINITE;
    for (int other = threadIdx.x; other < count; other += 256) {
        if (other != token) most = fmaxf(most, cosine(row[other], inverse[first + token], inverse[first + other]));
    }
    unsigned key = smallest_of_block({ordered(-most), 0}, scratch).key;
    if (threadIdx.x == 0) {
        nearest[first + token] = -__uint_as_float(key ^ (key >> 31 ? 0x80000000u : 0xffffffffu));
    }
}

// ---------------------------------------------------------------- without the products

struct Step {
    const void* features;  // [G, N, D] by strides
    const float* inverse;
    float* near;                  // [G, N], as it was in front of this step
    unsigned long long* partial;  // [G, blocks]: the smallest of each block
    unsigned* arrived;            // [G]: blocks that are through; 0 before and after
    const int64_t* counts;
    int64_t* picks;  // [G, k]; picks[step - 1] is taken into account, picks[step] made
    int64_t batch_stride, row_stride;
    int tokens, dim, k, step;
    bool sum;
};

constexpr int STEP_THREADS = 256, STEP_WARPS = STEP_THREADS / 32;

template <typename T, int N>
__global__ void __launch_bounds__(STEP_THREADS) step_kernel(const Step s) {
    VTC_SHARED(memory);
    __shared__ Smallest scratch[2][32];
    __shared__ bool last;
    float* newest = reinterpret_cast<float*>(memory);
    const int image = blockIdx.y, lane = threadIdx.x % 32;
    const int64_t first = static_cast<int64_t>(image) * s.tokens;
    const int count = s.counts == nullptr ? s.tokens : static_cast<int>(s.counts[image]);
    const T* features = static_cast<const T*>(s.features) + image * s.batch_stride;
    int64_t* picks = s.picks + static_cast<int64_t>(image) * s.k;
    if (s.step >= count) {  // the same for all blocks of the image
        if (blockIdx.x == 0 && threadIdx.x == 0) picks[s.step] = -1;
        return;
    }
    const int pick = static_cast<int>(picks[s.step - 1]);
    assert(0 <= pick && pick < s.tokens && "max_min: a seed is not in 0 ... N-1");
    const float of_pick = s.inverse[first + pick];
    for (int d = threadIdx.x; d < s.dim; d += STEP_THREADS) newest[d] = to_float(features[pick * s.row_stride + d]);
    __syncthreads();
    Smallest best{0xffffffffu, 0xffffffffu};
    for (int token = blockIdx.x * STEP_WARPS + threadIdx.x / 32; token < count; token += gridDim.x * STEP_WARPS) {
        const T* row = features + token * s.row_stride;
        float product = 0.0f;
        for (int d = lane * N; d < s.dim; d += 32 * N) {
            auto part = *reinterpret_cast<const Vector<T, N>*>(row + d);
#pragma unroll
            for (int n = 0; n < N; ++n) product += to_float(part.at[n]) * newest[d + n];
        }
#pragma unroll
        for (int apart = 16; apart > 0; apart /= 2) product += __shfl_xor_sync(ALL_LANES, product, apart);
        float& held = s.near[first + token];
        float now = token == pick ? INFINITE : joined(held, cosine(product, of_pick, s.inverse[first + token]), s.sum);
        __syncwarp();  // all lanes have read what one writes
        if (lane == 0) held = now;
        unsigned key = ordered(now);
        if (key < best.key) best = {key, static_cast<unsigned>(token)};
    }
    best = smallest_of_block(best, scratch[0]);
    unsigned long long* partial = s.partial + static_cast<int64_t>(image) * gridDim.x;
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = static_cast<unsigned long long>(best.key) << 32 | best.index;
        __threadfence();
        last = atomicAdd(&s.arrived[image], 1u) == gridDim.x - 1;
    }
    __syncthreads();
    if (!last) return;
    __threadfence();
    best = {0xffffffffu, 0xffffffffu};
    for (unsigned block = threadIdx.x; block < gridDim.x; block += STEP_THREADS) {
        unsigned long long found = reinterpret_cast<volatile unsigned long long*>(partial)[block];
        Smallest other{static_cast<unsigned>(found >> 32), static_cast<unsigned>(found)};
        if (other.key < best.key || (other.key == best.key && other.index < best.index)) best = other;
    }
    best = smallest_of_block(best, scratch[1]);
    if (threadIdx.x == 0) {
        picks[s.step] = best.index;
        s.arrived[image] = 0;
    }
}

template <typename T>
int launch_steps(Step s, int images, int blocks, cudaStream_t stream) {
    constexpr int N = 16 / sizeof(T);
    bool whole = reinterpret_cast<uint64_t>(s.features) % 16 == 0 && s.dim % N == 0 && s.batch_stride % N == 0 &&
                 s.row_stride % N == 0;
    auto kernel = whole ? step_kernel<T, N> : step_kernel<T, 1>;
    size_t bytes = s.dim * sizeof(float);
    cudaError_t failed = allow_shared(kernel, bytes);
    for (s.step = 1; s.step < s.k && failed == cudaSuccess; ++s.step) {
        VTC_LAUNCH(kernel, dim3(blocks, images), STEP_THREADS, bytes, stream, s);
        failed = cudaGetLastError();
    }
    return failed;
}

}  // namespace vtc

// products [images, tokens, tokens]; nearest [images, tokens] is room for a first pick where there is no seed. weight and
// bonus [images, tokens], or both null, need a seed, and not `sum`.
VTC_API int vtc_greedy(const float* products, const float* inverse, float* nearest, const int64_t* seed,
                          const int64_t* counts, const float* weight, const float* bonus, int64_t* picks, int images,
                          int tokens, int k, int sum, cudaStream_t stream) {
    using namespace vtc;
    if (seed == nullptr) {
        VTC_LAUNCH(nearest_kernel, dim3(tokens, images), 256, 0, stream, products, inverse, counts, nearest, tokens);
        if (cudaError_t failed = cudaGetLastError()) return failed;
    }
    if (weight != nullptr && (seed == nullptr || bonus == nullptr || sum)) return cudaErrorInvalidValue;
    Greedy g{products, inverse, seed == nullptr ? nearest : nullptr, seed, counts, weight, bonus, picks, tokens, k, sum != 0};
    int groups = (tokens + 4095) / 4096;
    int threads = ((tokens + groups * 4 - 1) / (groups * 4) + 31) / 32 * 32;
    if (groups > 2) return cudaErrorInvalidValue;
    auto kernel = weight == nullptr ? (groups == 1 ? greedy_kernel<1, false> : greedy_kernel<2, false>)
                                    : (groups == 1 ? greedy_kernel<1, true> : greedy_kernel<2, true>);
    VTC_LAUNCH(kernel, images, threads, 0, stream, g);
    return cudaGetLastError();
}

// picks[:, 0] is there already; `arrived` [images] is 0, `partial` has room for [images, blocks].
VTC_API int vtc_greedy_steps(const void* features, int type, int64_t batch_stride, int64_t row_stride,
                                const float* inverse, float* near, unsigned long long* partial, unsigned* arrived,
                                const int64_t* counts, int64_t* picks, int images, int tokens, int dim, int k, int sum,
                                int blocks, cudaStream_t stream) {
    using namespace vtc;
    Step s{features, inverse, near, partial, arrived, counts, picks, batch_stride, row_stride, tokens, dim, k, 0, sum != 0};
    if (type == FLOAT32) return launch_steps<float>(s, images, blocks, stream);
    if (type == FLOAT16) return launch_steps<__half>(s, images, blocks, stream);
    return launch_steps<__nv_bfloat16>(s, images, blocks, stream);
}
