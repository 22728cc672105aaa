// Gathers the rows of several tensors by one index, in one launch.
//
// Memory-bound: each kept row is read and written once, in the widest vectors that its address and length allow. A
// block copies THREADS · UNROLL vectors of one tensor; all loads of a thread are under way before its first store.

#include "primitives.cuh"

namespace vtc {

constexpr int MAX_TENSORS = 16, THREADS = 256, UNROLL = 4;

// As the binding lays it out. Strides and width in bytes.
struct Rows {
    const char* from;
    char* to;
    int64_t batch_stride, row_stride, row_bytes;
};

struct Job {
    Rows rows[MAX_TENSORS];
    unsigned first_block[MAX_TENSORS + 1];
    int width[MAX_TENSORS];
    int tensors, count, length;
    const void* index;
    const bool* valid;
    bool wide;
};

template <typename Word>
__device__ __forceinline__ void copy_rows(const Job& job, const Rows& rows, unsigned block, unsigned total) {
    unsigned per_row = static_cast<unsigned>(rows.row_bytes / sizeof(Word));
    unsigned start = block * THREADS * UNROLL + threadIdx.x;
    Word held[UNROLL];
#pragma unroll
    for (int i = 0; i < UNROLL; ++i) {
        unsigned word = start + i * THREADS;
        held[i] = Word{};
        if (word < total) {
            unsigned row = word / per_row, column = word % per_row;
            if (job.valid == nullptr || job.valid[row]) {
                int64_t place = load_index(job.index, job.wide, row);
                assert(0 <= place && place < job.length && "compact: an index is not in 0 ... L-1");
                const char* from = rows.from + row / job.count * rows.batch_stride + place * rows.row_stride;
                held[i] = reinterpret_cast<const Word*>(from)[column];
            }
        }
    }
#pragma unroll
    for (int i = 0; i < UNROLL; ++i) {
        unsigned word = start + i * THREADS;
        if (word < total) reinterpret_cast<Word*>(rows.to)[word] = held[i];
    }
}

__global__ void __launch_bounds__(THREADS) compact_kernel(const Job job, unsigned all_rows) {
    int tensor = 0;
    while (blockIdx.x >= job.first_block[tensor + 1]) ++tensor;
    const Rows& rows = job.rows[tensor];
    unsigned block = blockIdx.x - job.first_block[tensor];
    unsigned total = static_cast<unsigned>(all_rows * (rows.row_bytes / job.width[tensor]));
    switch (job.width[tensor]) {
        case 16: copy_rows<uint4>(job, rows, block, total); break;
        case 8: copy_rows<uint2>(job, rows, block, total); break;
        case 4: copy_rows<uint32_t>(job, rows, block, total); break;
        case 2: copy_rows<uint16_t>(job, rows, block, total); break;
        default: copy_rows<uint8_t>(job, rows, block, total);
    }
}

}  // namespace vtc

// `index` and `valid` (or null) are [batch, count]; at most MAX_TENSORS tensors, each of fewer than 2^31 words.
VTC_API int vtc_compact(const vtc::Rows* rows, int tensors, const void* index, int wide, const void* valid, int batch,
                           int count, int length, cudaStream_t stream) {
    using namespace vtc;
    Job job{};
    job.tensors = tensors, job.count = count, job.length = length;
    job.index = index, job.valid = static_cast<const bool*>(valid), job.wide = wide;
    unsigned all_rows = static_cast<unsigned>(batch) * count;
    for (int i = 0; i < tensors; ++i) {
        const Rows& r = job.rows[i] = rows[i];
        uint64_t aligned = reinterpret_cast<uint64_t>(r.from) | reinterpret_cast<uint64_t>(r.to) | r.batch_stride |
                           r.row_stride | r.row_bytes | 16;
        int width = job.width[i] = static_cast<int>(aligned & -aligned);
        uint64_t words = all_rows * static_cast<uint64_t>(r.row_bytes / width);
        if (words >> 31) return cudaErrorInvalidValue;
        job.first_block[i + 1] = job.first_block[i] + static_cast<unsigned>((words + THREADS * UNROLL - 1) / (THREADS * UNROLL));
    }
    if (job.first_block[tensors] == 0) return cudaSuccess;
    VTC_LAUNCH(compact_kernel, job.first_block[tensors], THREADS, 0, stream, job, all_rows);
    return cudaGetLastError();
}
