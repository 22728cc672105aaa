// y = W x for a sparse W given by its entries: every new token gathers what belongs to it.
//
// A block makes one slice of one new token. It looks through the entries in the order in which they are given, so that
// sums are the same in every run; scattering with atomic additions would not be.

#include "primitives.cuh"

namespace vtc {

constexpr int THREADS = 256, WARPS = THREADS / 32;

struct Merge {
    const void *x, *source, *target, *weight;
    void* y;
    int64_t batch_stride, row_stride;  // of x, in numbers
    int tokens, dim, entries, k, slices, weight_type;
    bool wide;
};

template <typename T, int N>
__global__ void __launch_bounds__(THREADS) merge_kernel(const Merge m) {
    __shared__ int of_warp[WARPS];
    __shared__ int sources[THREADS];
    __shared__ float weights[THREADS];
    int image = blockIdx.y, token = blockIdx.x / m.slices, column = (blockIdx.x % m.slices * THREADS + threadIdx.x) * N;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int64_t first = static_cast<int64_t>(image) * m.entries;
    const T* x = static_cast<const T*>(m.x) + image * m.batch_stride + column;
    float sum[N] = {};
    for (int start = 0; start < m.entries; start += THREADS) {
        int entry = start + threadIdx.x;
        // What this round writes, slower warps of the last one no longer read: all have passed its second barrier, and
        // the list is written behind the first of this one.
        bool mine = entry < m.entries && load_index(m.target, m.wide, first + entry) == token;
        unsigned found = __ballot_sync(ALL_LANES, mine);
        if (lane == 0) of_warp[warp] = __popc(found);
        if (!__syncthreads_or(mine)) continue;
        int before = 0, all = 0;
        for (int i = 0; i < WARPS; ++i) {
            if (i < warp) before += of_warp[i];
            all += of_warp[i];
        }
        if (mine) {
            int place = before + __popc(found & ((1u << lane) - 1));
            int64_t source = load_index(m.source, m.wide, first + entry);
            assert(0 <= source && source < m.tokens && "merge: a source is not in 0 ... N-1");
            sources[place] = static_cast<int>(source);
            weights[place] = load_float(m.weight, m.weight_type, first + entry);
        }
        __syncthreads();
        if (column < m.dim) {
            for (int i = 0; i < all; ++i) {
                auto old = *reinterpret_cast<const Vector<T, N>*>(x + sources[i] * m.row_stride);
#pragma unroll
                for (int n = 0; n < N; ++n) sum[n] += weights[i] * to_float(old.at[n]);
            }
        }
    }
    if (column < m.dim) {
        Vector<T, N> made;
#pragma unroll
        for (int n = 0; n < N; ++n) made.at[n] = from_float<T>(sum[n]);
        T* y = static_cast<T*>(m.y) + (static_cast<int64_t>(image) * m.k + token) * m.dim + column;
        *reinterpret_cast<Vector<T, N>*>(y) = made;
    }
}

template <typename T>
int launch_merge(Merge m, int images, cudaStream_t stream) {
    constexpr int N = 16 / sizeof(T);
    auto aligned = reinterpret_cast<uint64_t>(m.x) | reinterpret_cast<uint64_t>(m.y);
    bool whole = aligned % 16 == 0 && m.dim % N == 0 && m.batch_stride % N == 0 && m.row_stride % N == 0;
    int width = THREADS * (whole ? N : 1);
    m.slices = (m.dim + width - 1) / width;
    dim3 grid(static_cast<unsigned>(m.k) * m.slices, images);
    auto kernel = whole ? merge_kernel<T, N> : merge_kernel<T, 1>;
    VTC_LAUNCH(kernel, grid, THREADS, 0, stream, m);
    return cudaGetLastError();
}

}  // namespace vtc

// x [images, tokens, dim] by strides; source, target, weight [images, entries]; y [images, k, dim].
VTC_API int vtc_merge(const void* x, int type, int64_t batch_stride, int64_t row_stride, const void* source,
                         const void* target, int wide, const void* weight, int weight_type, void* y, int images,
                         int tokens, int dim, int entries, int k, cudaStream_t stream) {
    using namespace vtc;
    Merge m{x, source, target, weight, y, batch_stride, row_stride, tokens, dim, entries, k, 0, weight_type, wide != 0};
    if (type == FLOAT32) return launch_merge<float>(m, images, stream);
    if (type == FLOAT16) return launch_merge<__half>(m, images, stream);
    return launch_merge<__nv_bfloat16>(m, images, stream);
}
