// Greedy determinant: each step picks the token that points farthest out of the span of those picked before.
//
// A launch for each step: a step reads all features once, which takes the bandwidth of the whole device, and what all
// picks so far explain of each token. It is a step of a pivoted Cholesky decomposition. Not lazy: what a step leaves out
// of a token, the next has to make up for; only tokens of which nothing is left are left alone.
//
// What decides is one number: whether anything is left, how much (or else the quality), and the index, the lowest first.
// The largest of a step is its pick, for the next launch to see.

#include "primitives.cuh"

namespace vtc {

struct Span {
    const void* features;       // [G, N, D] by strides
    const float *scale, *quality;  // [G, N] each: quality over length, 0 where there is no direction; quality
    const float* least;         // [G]: up to which nothing counts as left
    float *left, *explained;    // [G, N]: squared quality in front of the first step; [G, N, k]
    unsigned long long* best;   // [G, k]: all 0 in front of the first step
    int64_t batch_stride, row_stride;
    int tokens, dim, k, step;
};

constexpr int SPAN_THREADS = 256, SPAN_WARPS = SPAN_THREADS / 32;

template <typename T, int N>
__global__ void __launch_bounds__(SPAN_THREADS, 2) span_kernel(const Span s) {
    VTC_SHARED(memory);
    float *newest = reinterpret_cast<float*>(memory), *before = newest + s.dim;
    const int image = blockIdx.y, lane = threadIdx.x % 32;
    const int64_t first = static_cast<int64_t>(image) * s.tokens;
    const T* features = static_cast<const T*>(s.features) + image * s.batch_stride;
    unsigned long long* best = s.best + static_cast<int64_t>(image) * s.k + s.step;
    const float least = s.least[image];
    const int pick = s.step == 0 ? -1 : token_of(best[-1]), known = s.step - 1;
    const float own = s.step == 0 || rank_of(best[-1]) == 1 ? 0.0f : score_of(best[-1]);  // 0: nothing changes
    if (own > 0.0f) {
        for (int d = threadIdx.x; d < s.dim; d += SPAN_THREADS) newest[d] = to_float(features[pick * s.row_stride + d]);
        for (int i = threadIdx.x; i < known; i += SPAN_THREADS) before[i] = s.explained[(first + pick) * s.k + i];
    }
    __syncthreads();
    const float of_pick = own > 0.0f ? s.scale[first + pick] : 0.0f, root = sqrtf(own);
    unsigned long long found = 0;
    for (int token = blockIdx.x * SPAN_WARPS + threadIdx.x / 32; token < s.tokens; token += gridDim.x * SPAN_WARPS) {
        float left = s.left[first + token];
        if (left >= 0.0f && token != pick) {
            if (own > 0.0f && left > 0.0f) {
                const T* row = features + token * s.row_stride;
                float* mine = s.explained + (first + token) * s.k;
                float product = 0.0f, shared = 0.0f;
                for (int d = lane * N; d < s.dim; d += 32 * N) {
                    auto part = *reinterpret_cast<const Vector<T, N>*>(row + d);
#pragma unroll
                    for (int n = 0; n < N; ++n) product += to_float(part.at[n]) * newest[d + n];
                }
                for (int i = lane; i < known; i += 32) shared += mine[i] * before[i];
                product = product * of_pick * s.scale[first + token] - shared;
#pragma unroll
                for (int apart = 16; apart > 0; apart /= 2) product += __shfl_xor_sync(ALL_LANES, product, apart);
                float part = product / root;
                left = fmaxf(left - part * part, 0.0f);
                if (lane == 0) mine[known] = part;
            }
            if (left <= least) left = 0.0f;
            unsigned long long key = left > 0.0f ? ranked(2, left, token) : ranked(1, s.quality[first + token], token);
            if (key > found) found = key;
        } else {
            left = -1.0f;
        }
        __syncwarp();  // all lanes have read what one writes
        if (lane == 0) s.left[first + token] = left;
    }
    if (lane == 0 && found) atomicMax(best, found);
}

template <typename T>
int launch_span(Span s, int images, int blocks, cudaStream_t stream) {
    constexpr int N = 16 / sizeof(T);
    bool whole = reinterpret_cast<uint64_t>(s.features) % 16 == 0 && s.dim % N == 0 && s.batch_stride % N == 0 &&
                 s.row_stride % N == 0;
    auto kernel = whole ? span_kernel<T, N> : span_kernel<T, 1>;
    size_t bytes = (s.dim + s.k) * sizeof(float);
    cudaError_t failed = allow_shared(kernel, bytes);
    for (s.step = 0; s.step < s.k && failed == cudaSuccess; ++s.step) {
        VTC_LAUNCH(kernel, dim3(blocks, images), SPAN_THREADS, bytes, stream, s);
        failed = cudaGetLastError();
    }
    return failed;
}

}  // namespace vtc

// The pick of a step is 2^31 - 1 less the last 31 bits of best.
VTC_API int vtc_span(const void* features, int type, int64_t batch_stride, int64_t row_stride, const float* scale,
                     const float* quality, const float* least, float* left, float* explained, unsigned long long* best,
                     int images, int tokens, int dim, int k, int blocks, cudaStream_t stream) {
    using namespace vtc;
    Span s{features, scale, quality, least, left, explained, best, batch_stride, row_stride, tokens, dim, k, 0};
    if (type == FLOAT32) return launch_span<float>(s, images, blocks, stream);
    if (type == FLOAT16) return launch_span<__half>(s, images, blocks, stream);
    return launch_span<__nv_bfloat16>(s, images, blocks, stream);
}
