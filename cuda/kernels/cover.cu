// Greedy cover (facility location): each step picks the token that adds most to what those picked before cover.
//
// A launch for each step: a step may read all values, which takes the bandwidth of the whole device. It is lazy: a gain
// only falls, so that what it was bounds what it is (rounded sums too, being of the same terms in the same order), and a
// warp leaves a token alone whose bound does not reach the best that any warp has found in this step. Which ones are left
// alone depends on who is first; the best does not.
//
// What decides is one number: the first of worth, gain and weight that is above 0, its bits, and the index, the lowest
// first. The largest of a step is its pick, for the next launch to see.

#include "primitives.cuh"

namespace vtc {

struct Cover {
    const void* values;          // [G, N, stride], of each token with each demand; 0 behind the demands
    const float* weight;         // [G, N]
    float *covered, *bound;      // [2, G, stride] and [G, N]: all 0, and infinite, in front of the first step
    unsigned long long* best;    // [G, k]: all 0 in front of the first step
    int images, tokens, stride, k, step;
    float tolerance;
    bool sum;
};

constexpr int COVER_THREADS = 256, COVER_WARPS = COVER_THREADS / 32;

// What is below 0, NaN or infinite counts as 0.
__device__ __forceinline__ float above(float value, float covered) {
    return value > covered && value < INFINITE ? value - covered : 0.0f;
}

__device__ __forceinline__ unsigned long long cover_key(float gain, float weight, int token, const Cover& c) {
    if (gain <= c.tolerance) gain = 0.0f;
    float worth = c.sum ? gain + weight : gain * weight;
    return worth > 0.0f ? ranked(3, worth, token) : gain > 0.0f ? ranked(2, gain, token) : ranked(1, weight, token);
}

template <typename T>
__global__ void __launch_bounds__(COVER_THREADS) cover_kernel(const Cover c) {
    constexpr int N = 16 / sizeof(T);
    VTC_SHARED(memory);
    float* covered = reinterpret_cast<float*>(memory);
    const int image = blockIdx.y, lane = threadIdx.x % 32;
    const int64_t first = static_cast<int64_t>(image) * c.tokens, demands = static_cast<int64_t>(c.images) * c.stride;
    const T* values = static_cast<const T*>(c.values) + first * c.stride;
    const float* before = c.covered + c.step % 2 * demands + static_cast<int64_t>(image) * c.stride;
    float* after = c.covered + (c.step + 1) % 2 * demands + static_cast<int64_t>(image) * c.stride;
    unsigned long long* best = c.best + static_cast<int64_t>(image) * c.k + c.step;
    const int pick = c.step == 0 ? -1 : token_of(best[-1]);
    for (int at = threadIdx.x; at < c.stride; at += COVER_THREADS) {
        float now = before[at];
        float more = pick < 0 ? 0.0f : to_float(values[static_cast<int64_t>(pick) * c.stride + at]);
        if (above(more, now) > 0.0f) now = more;
        covered[at] = now;
        if (blockIdx.x == 0) after[at] = now;
    }
    __syncthreads();
    for (int token = blockIdx.x * COVER_WARPS + threadIdx.x / 32; token < c.tokens; token += gridDim.x * COVER_WARPS) {
        float gain = token == pick ? -1.0f : c.bound[first + token];
        const float weight = c.weight[first + token];
        // One lane asks, so that all of the warp agree.
        int open = lane == 0 && gain >= 0.0f &&
                   cover_key(gain, weight, token, c) > *const_cast<volatile unsigned long long*>(best);
        if (__ballot_sync(ALL_LANES, open)) {
            const T* row = values + static_cast<int64_t>(token) * c.stride;
            gain = 0.0f;
            for (int at = lane * N; at < c.stride; at += 32 * N) {
                auto part = *reinterpret_cast<const Vector<T, N>*>(row + at);
#pragma unroll
                for (int n = 0; n < N; ++n) gain += above(to_float(part.at[n]), covered[at + n]);
            }
#pragma unroll
            for (int apart = 16; apart > 0; apart /= 2) gain += __shfl_xor_sync(ALL_LANES, gain, apart);
            if (lane == 0) atomicMax(best, cover_key(gain, weight, token, c));
        }
        __syncwarp();  // all lanes have read what one writes
        if (lane == 0) c.bound[first + token] = gain;
    }
}

template <typename T>
int launch_cover(Cover c, int blocks, cudaStream_t stream) {
    size_t bytes = c.stride * sizeof(float);
    cudaError_t failed = allow_shared(cover_kernel<T>, bytes);
    for (c.step = 0; c.step < c.k && failed == cudaSuccess; ++c.step) {
        VTC_LAUNCH(cover_kernel<T>, dim3(blocks, c.images), COVER_THREADS, bytes, stream, c);
        failed = cudaGetLastError();
    }
    return failed;
}

}  // namespace vtc

// values [images, tokens, stride] with rows of whole 16 bytes; the pick of a step is 2^31 - 1 less the last 31 bits of best.
VTC_API int vtc_cover(const void* values, int type, const float* weight, float* covered, float* bound,
                      unsigned long long* best, int images, int tokens, int stride, int k, float tolerance, int sum,
                      int blocks, cudaStream_t stream) {
    using namespace vtc;
    Cover c{values, weight, covered, bound, best, images, tokens, stride, k, 0, tolerance, sum != 0};
    if (type == FLOAT32) return launch_cover<float>(c, blocks, stream);
    if (type == FLOAT16) return launch_cover<__half>(c, blocks, stream);
    return launch_cover<__nv_bfloat16>(c, blocks, stream);
}
