// Attention probabilities from q and k alone, without a matrix of all queries and keys.
//
// attention_rows: few queries. Memory-bound: keys are read once; the logits are normalised where they were written.
//
// attention_received: how much each key gets from all queries. Two passes of one kernel over tiles of 64 × 64 logits.
// The first holds queries still and lets keys stream by: of each query its largest logit and softmax denominator. The
// second holds keys still and lets queries stream by: of each key the sum of its column. The tile in transit is loaded
// while the one before is computed, on tensor cores for 16-bit numbers.

#include "primitives.cuh"

namespace vtc {

constexpr float LOG2_E = 1.4426950408889634f;

// What both kernels know of the call.
struct Attention {
    const void *query, *key;
    int64_t query_strides[3], key_strides[3];  // batch, head, row; in numbers
    int heads, groups, queries, keys, dim;     // `groups`: heads of the keys
    float scaling, softcap;                    // 0: no cap
    const int *begin, *end;                    // [B, Q] or null
    const void* mask;
    int64_t mask_strides[4];
    int mask_type;
};

__device__ __forceinline__ float capped(const Attention& a, float product) {
    float logit = product * a.scaling;
    return a.softcap > 0.0f ? a.softcap * tanhf(logit / a.softcap) : logit;
}

// The logit of a query and a key under the mask; -infinite where the query may not see the key.
__device__ __forceinline__ float masked(const Attention& a, float logit, int batch, int head, int query, int key) {
    if (a.mask == nullptr) return logit;
    int64_t at = batch * a.mask_strides[0] + head * a.mask_strides[1] + query * a.mask_strides[2] + key * a.mask_strides[3];
    if (a.mask_type == BOOL) return static_cast<const bool*>(a.mask)[at] ? logit : -INFINITE;
    return logit + load_float(a.mask, a.mask_type, at);
}

// Of a difference of logits: multiplied after the subtraction, so that large masks cancel.
__device__ __forceinline__ float exponential(float difference) { return fast_exp2(difference * LOG2_E); }

// ---------------------------------------------------------------- rows

constexpr int ROW_KEYS = 32, ROW_QUERIES = 8, ROW_THREADS = ROW_KEYS * ROW_QUERIES;

// A block has ROW_KEYS keys of one head of the keys, and all queries that look at them, ROW_QUERIES at a time.
template <typename T, int N>
__global__ void __launch_bounds__(ROW_THREADS, 4) logits_kernel(const Attention a, float* out) {
    VTC_SHARED(memory);
    const int pitch = a.dim + 4;  // eight rows fall in other banks
    float* keys = reinterpret_cast<float*>(memory);
    float* asking = keys + ROW_KEYS * pitch;
    const int batch = blockIdx.z, group = blockIdx.y, per_group = a.heads / a.groups;
    const int first = blockIdx.x * ROW_KEYS, asked = per_group * a.queries;
    const T* key = static_cast<const T*>(a.key) + batch * a.key_strides[0] + group * a.key_strides[1];
    const T* query = static_cast<const T*>(a.query) + batch * a.query_strides[0];
    const int vectors = a.dim / N;
    for (int i = threadIdx.x; i < ROW_KEYS * vectors; i += ROW_THREADS) {
        int row = i / vectors, column = i % vectors * N;
        if (first + row < a.keys) {
            auto part = *reinterpret_cast<const Vector<T, N>*>(key + (first + row) * a.key_strides[2] + column);
#pragma unroll
            for (int n = 0; n < N; ++n) keys[row * pitch + column + n] = to_float(part.at[n]);
        }
    }
    const int mine = threadIdx.x % ROW_KEYS, place = first + mine;
    for (int start = 0; start < asked; start += ROW_QUERIES) {
        __syncthreads();
        for (int i = threadIdx.x; i < ROW_QUERIES * a.dim; i += ROW_THREADS) {
            int row = start + i / a.dim, column = i % a.dim;
            if (row < asked) {
                int head = group * per_group + row / a.queries, at = row % a.queries;
                asking[i] = to_float(query[head * a.query_strides[1] + at * a.query_strides[2] + column]);
            }
        }
        __syncthreads();
        const int row = start + threadIdx.x / ROW_KEYS;
        if (row >= asked || place >= a.keys) continue;
        const float *left = asking + threadIdx.x / ROW_KEYS * a.dim, *right = keys + mine * pitch;
        float product = 0.0f;
        int d = 0;
        if (a.dim % 4 == 0) {
#pragma unroll 4
            for (; d < a.dim; d += 4) {
                auto x = *reinterpret_cast<const Vector<float, 4>*>(left + d);
                auto y = *reinterpret_cast<const Vector<float, 4>*>(right + d);
#pragma unroll
                for (int i = 0; i < 4; ++i) product += x.at[i] * y.at[i];
            }
        }
        for (; d < a.dim; ++d) product += left[d] * right[d];
        const int head = group * per_group + row / a.queries, at = row % a.queries;
        const int64_t bound = static_cast<int64_t>(batch) * a.queries + at;
        bool seen = (a.begin == nullptr || place >= a.begin[bound]) && (a.end == nullptr || place < a.end[bound]);
        float logit = seen ? masked(a, capped(a, product), batch, head, at, place) : -INFINITE;
        out[((static_cast<int64_t>(batch) * a.heads + head) * a.queries + at) * a.keys + place] = logit;
    }
}

// The largest (or the sum) of what the threads of a block hold, for each of them.
template <bool LARGEST>
__device__ __forceinline__ float of_block(float value, float* scratch) {
    const int lane = threadIdx.x % 32, warps = blockDim.x / 32;
#pragma unroll
    for (int apart = 16; apart > 0; apart /= 2) {
        float other = __shfl_xor_sync(ALL_LANES, value, apart);
        value = LARGEST ? fmaxf(value, other) : value + other;
    }
    if (lane == 0) scratch[threadIdx.x / 32] = value;
    __syncthreads();
    value = scratch[0];
    for (int i = 1; i < warps; ++i) value = LARGEST ? fmaxf(value, scratch[i]) : value + scratch[i];
    return value;
}

// Logits to probabilities, in place: a block for each row. A row that sees nothing, or has a NaN, becomes zero.
__global__ void __launch_bounds__(256) softmax_kernel(float* rows, int keys) {
    __shared__ float scratch[2][8];
    float* row = rows + static_cast<int64_t>(blockIdx.x) * keys;
    float most = -INFINITE;
    for (int i = threadIdx.x; i < keys; i += 256) most = fmaxf(most, row[i]);
    most = of_block<true>(most, scratch[0]);
    float sum = 0.0f;
    for (int i = threadIdx.x; i < keys; i += 256) sum += exp2f((row[i] - most) * LOG2_E);
    sum = of_block<false>(sum, scratch[1]);
    const float share = sum > 0.0f && sum < INFINITE ? 1.0f / sum : 0.0f;
    for (int i = threadIdx.x; i < keys; i += 256) {
        row[i] = share == 0.0f ? 0.0f : exp2f((row[i] - most) * LOG2_E) * share;
    }
}

template <typename T>
int launch_rows(const Attention& a, float* out, int batch, cudaStream_t stream) {
    constexpr int N = 16 / sizeof(T);
    bool whole = reinterpret_cast<uint64_t>(a.key) % 16 == 0 && a.dim % N == 0;
    for (int64_t stride : a.key_strides) whole = whole && stride % N == 0;
    auto kernel = whole ? logits_kernel<T, N> : logits_kernel<T, 1>;
    size_t bytes = (ROW_KEYS * (a.dim + 4) + ROW_QUERIES * a.dim) * sizeof(float);
    if (cudaError_t failed = allow_shared(kernel, bytes)) return failed;
    dim3 grid((a.keys + ROW_KEYS - 1) / ROW_KEYS, a.groups, batch);
    VTC_LAUNCH(kernel, grid, ROW_THREADS, bytes, stream, a, out);
    if (cudaError_t failed = cudaGetLastError()) return failed;
    VTC_LAUNCH(softmax_kernel, batch * a.heads * a.queries, 256, 0, stream, out, a.keys);
    return cudaGetLastError();
}

// ---------------------------------------------------------------- received

constexpr int TILE = 64, WARP_ROWS = 16, RECEIVED_THREADS = TILE / WARP_ROWS * 32, COLUMNS = TILE / 8;
constexpr int NOTHING = 0x7fffffff;

struct Received {
    Attention a;
    const float* weights;   // [B, Q] or null: `weight` of each
    float weight;
    float2* denominator;    // [B, H, Q]: largest logit, and 1 / sum of exponentials above it; 0 where a query sees nothing
    int4* bounds;           // [B, tiles of queries]: first and last key that some, then that all, may see
    float* partial;         // [B, H, S]
};

// Rows of 64 queries or keys in shared memory; `PITCH` numbers from row to row, so that eight rows fall in other banks.
template <typename T, int D>
struct Tile {
    static constexpr int VECTOR = 16 / sizeof(T), PITCH = D + VECTOR, NUMBERS = TILE * PITCH;

    // Starts loading rows `first` … of `count`; zeros behind the last row, and behind `dim` up to D.
    static __device__ __forceinline__ void load(T* tile, const T* from, int64_t stride, int first, int count, int dim) {
        for (int i = threadIdx.x; i < TILE * (D / VECTOR); i += RECEIVED_THREADS) {
            int row = i / (D / VECTOR), column = i % (D / VECTOR) * VECTOR;
            bool inside = first + row < count && column < dim;
            copy16(tile + row * PITCH + column, inside ? from + (first + row) * stride + column : from, inside);
        }
    }
};

// Sixteen rows that a warp holds still; `product` multiplies them with all rows of a tile.
template <typename T, int D>
struct Still {
    uint32_t rows[D / 16][4];

    __device__ __forceinline__ explicit Still(const T* tile) {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        const T* row = tile + (warp * WARP_ROWS + lane % 16) * Tile<T, D>::PITCH + lane / 16 * 8;
#pragma unroll
        for (int d = 0; d < D / 16; ++d) load_matrices(rows[d], row + d * 16);
    }

    __device__ __forceinline__ void product(float (&out)[COLUMNS][4], const T* tile) const {
        const int lane = threadIdx.x % 32;
        const T* row = tile + (lane / 16 * 8 + lane % 8) * Tile<T, D>::PITCH + lane / 8 % 2 * 8;
#pragma unroll
        for (int n = 0; n < COLUMNS; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) out[n][i] = 0.0f;
        }
#pragma unroll
        for (int d = 0; d < D / 16; ++d) {
#pragma unroll
            for (int n = 0; n < COLUMNS; n += 2) {
                uint32_t b[4];
                load_matrices(b, row + n * 8 * Tile<T, D>::PITCH + d * 16);
                multiply_add<T>(out[n], rows[d], b[0], b[1]);
                multiply_add<T>(out[n + 1], rows[d], b[2], b[3]);
            }
        }
    }
};

// The same for 32-bit numbers, in plain arithmetic; the rows stay in shared memory.
template <int D>
struct Still<float, D> {
    const float* rows;

    __device__ __forceinline__ explicit Still(const float* tile)
        : rows(tile + (threadIdx.x / 32 * WARP_ROWS + threadIdx.x % 32 / 4) * Tile<float, D>::PITCH) {}

    __device__ __forceinline__ void product(float (&out)[COLUMNS][4], const float* tile) const {
        constexpr int PITCH = Tile<float, D>::PITCH;
        const float* columns = tile + threadIdx.x % 4 * 2 * PITCH;
#pragma unroll
        for (int n = 0; n < COLUMNS; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float *left = rows + i / 2 * 8 * PITCH, *right = columns + (n * 8 + i % 2) * PITCH;
                float sum = 0.0f;
#pragma unroll 4
                for (int d = 0; d < D; ++d) sum += left[d] * right[d];
                out[n][i] = sum;
            }
        }
    }
};

template <typename T, int D>
__host__ __device__ constexpr size_t received_bytes() {
    constexpr int tiles = sizeof(T) == 2 ? 2 : 3;  // 16-bit rows that are held still move on into registers
    return tiles * Tile<T, D>::NUMBERS * sizeof(T);
}

// The largest logit of each query, and its softmax's denominator: online, each lane over the columns that it has.
template <typename T, int D>
__global__ void __launch_bounds__(RECEIVED_THREADS, 3) denominator_kernel(const Received r) {
    VTC_SHARED(memory);
    __shared__ int bound[4][RECEIVED_THREADS / 32];
    T* tiles = reinterpret_cast<T*>(memory);
    const Attention& a = r.a;
    const int head = blockIdx.y, batch = blockIdx.z, first = blockIdx.x * TILE;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int64_t row_of_batch = static_cast<int64_t>(batch) * a.queries;

    // What the queries of this tile may see: from the first key of any to the last of any, and what all of them see.
    int4 bounds{NOTHING, 0, 0, NOTHING};
    {
        const int query = first + static_cast<int>(threadIdx.x);
        bool counts = threadIdx.x < TILE && query < a.queries;
        if (counts && r.weights != nullptr) counts = r.weights[row_of_batch + query] != 0.0f;
        if (counts) {
            int begin = a.begin == nullptr ? 0 : max(a.begin[row_of_batch + query], 0);
            int end = a.end == nullptr ? a.keys : min(a.end[row_of_batch + query], a.keys);
            bounds = {begin < end ? begin : NOTHING, begin < end ? end : 0, begin, end};
        }
        int found[4] = {bounds.x, -bounds.y, -bounds.z, bounds.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            for (int apart = 16; apart > 0; apart /= 2) {
                found[i] = min(found[i], __shfl_xor_sync(ALL_LANES, found[i], apart));
            }
            if (lane == 0) bound[i][warp] = found[i];
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            for (int other = 0; other < RECEIVED_THREADS / 32; ++other) found[i] = min(found[i], bound[i][other]);
        }
        bounds = {found[0], -found[1], -found[2], found[3]};
        if (head == 0 && threadIdx.x == 0) {
            r.bounds[batch * static_cast<int64_t>(gridDim.x) + blockIdx.x] = bounds;
        }
    }

    const T* query = static_cast<const T*>(a.query) + batch * a.query_strides[0] + head * a.query_strides[1];
    const T* key = static_cast<const T*>(a.key) + batch * a.key_strides[0] + head / (a.heads / a.groups) * a.key_strides[1];
    T* still_tile = sizeof(T) == 2 ? tiles + Tile<T, D>::NUMBERS : tiles + 2 * Tile<T, D>::NUMBERS;
    Tile<T, D>::load(still_tile, query, a.query_strides[2], first, a.queries, a.dim);
    wait_for_copies();
    __syncthreads();
    const Still<T, D> still(still_tile);

    float most[2] = {-INFINITE, -INFINITE}, sum[2] = {0.0f, 0.0f};
    int begin[2], end[2], asking[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        asking[half] = min(first + warp * WARP_ROWS + lane / 4 + half * 8, a.queries - 1);
        begin[half] = a.begin == nullptr ? 0 : a.begin[row_of_batch + asking[half]];
        end[half] = a.end == nullptr ? a.keys : min(a.end[row_of_batch + asking[half]], a.keys);
    }
    const int stop = bounds.y;
    int tile = bounds.x / TILE * TILE, buffer = 0;
    if (tile < stop) Tile<T, D>::load(tiles, key, a.key_strides[2], tile, a.keys, a.dim);
    for (; tile < stop; tile += TILE, buffer ^= 1) {
        wait_for_copies();
        __syncthreads();
        if (tile + TILE < stop) {
            Tile<T, D>::load(tiles + (buffer ^ 1) * Tile<T, D>::NUMBERS, key, a.key_strides[2], tile + TILE, a.keys, a.dim);
        }
        float logits[COLUMNS][4];
        still.product(logits, tiles + buffer * Tile<T, D>::NUMBERS);
        const bool plain = a.mask == nullptr && bounds.z <= tile && tile + TILE <= bounds.w;
        float larger[2] = {most[0], most[1]};
#pragma unroll
        for (int n = 0; n < COLUMNS; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                float logit = capped(a, logits[n][i]);
                if (!plain) {
                    int place = tile + n * 8 + lane % 4 * 2 + i % 2, half = i / 2;
                    bool seen = begin[half] <= place && place < end[half];
                    logit = seen ? masked(a, logit, batch, head, asking[half], place) : -INFINITE;
                }
                logits[n][i] = logit;
                larger[i / 2] = logit == logit ? fmaxf(larger[i / 2], logit) : INFINITE;  // a NaN spoils the row
            }
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            if (larger[half] == -INFINITE) continue;
            sum[half] *= exponential(most[half] - larger[half]);
            most[half] = larger[half];
#pragma unroll
            for (int n = 0; n < COLUMNS; ++n) {
                sum[half] += exponential(logits[n][2 * half] - larger[half]);
                sum[half] += exponential(logits[n][2 * half + 1] - larger[half]);
            }
        }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int apart = 1; apart < 4; apart *= 2) {
            float other_most = __shfl_xor_sync(ALL_LANES, most[half], apart);
            float other_sum = __shfl_xor_sync(ALL_LANES, sum[half], apart);
            float larger = fmaxf(most[half], other_most);
            float mine = most[half] == -INFINITE ? 0.0f : sum[half] * exponential(most[half] - larger);
            float other = other_most == -INFINITE ? 0.0f : other_sum * exponential(other_most - larger);
            most[half] = larger, sum[half] = mine + other;
        }
        const int row = first + warp * WARP_ROWS + lane / 4 + half * 8;
        if (lane % 4 == 0 && row < a.queries) {
            bool sees = sum[half] > 0.0f && sum[half] < INFINITE;  // not so with a NaN
            r.denominator[(static_cast<int64_t>(batch) * a.heads + head) * a.queries + row] =
                sees ? float2{most[half], 1.0f / sum[half]} : float2{0.0f, 0.0f};
        }
    }
}

// The first tile of queries from `tile` on of which some see some of the keys from `first` on.
__device__ __forceinline__ int next_seeing(const int4* bounds, int tile, int tiles, int first) {
    for (; tile < tiles; ++tile) {
        int4 seen = bounds[tile];
        if (seen.x < first + TILE && first < seen.y) break;
    }
    return tile;
}

// Weighted sums of the columns: what each key receives in one head.
template <typename T, int D>
__global__ void __launch_bounds__(RECEIVED_THREADS, 3) column_kernel(const Received r, int tiles_of_queries) {
    VTC_SHARED(memory);
    __shared__ float2 denominators[2][TILE];
    __shared__ float weights[2][TILE];
    __shared__ int begins[2][TILE], ends[2][TILE];
    T* tiles = reinterpret_cast<T*>(memory);
    const Attention& a = r.a;
    const int head = blockIdx.y, batch = blockIdx.z, first = blockIdx.x * TILE;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int64_t row_of_batch = static_cast<int64_t>(batch) * a.queries;
    const int4* bounds = r.bounds + batch * static_cast<int64_t>(tiles_of_queries);
    const float2* denominator = r.denominator + (static_cast<int64_t>(batch) * a.heads + head) * a.queries;
    const T* query = static_cast<const T*>(a.query) + batch * a.query_strides[0] + head * a.query_strides[1];
    const T* key = static_cast<const T*>(a.key) + batch * a.key_strides[0] + head / (a.heads / a.groups) * a.key_strides[1];

    auto load = [&](int tile, int buffer) {
        Tile<T, D>::load(tiles + buffer * Tile<T, D>::NUMBERS, query, a.query_strides[2], tile * TILE, a.queries, a.dim);
        const int column = threadIdx.x, asking = tile * TILE + column;
        if (column >= TILE) return;
        bool inside = asking < a.queries;
        denominators[buffer][column] = inside ? denominator[asking] : float2{0.0f, 0.0f};
        weights[buffer][column] = !inside ? 0.0f : r.weights == nullptr ? r.weight : r.weights[row_of_batch + asking];
        begins[buffer][column] = inside && a.begin != nullptr ? a.begin[row_of_batch + asking] : 0;
        ends[buffer][column] = inside && a.end != nullptr ? a.end[row_of_batch + asking] : a.keys;
    };

    T* still_tile = sizeof(T) == 2 ? tiles + Tile<T, D>::NUMBERS : tiles + 2 * Tile<T, D>::NUMBERS;
    Tile<T, D>::load(still_tile, key, a.key_strides[2], first, a.keys, a.dim);
    wait_for_copies();
    __syncthreads();
    const Still<T, D> still(still_tile);

    float received[2] = {0.0f, 0.0f};
    int tile = next_seeing(bounds, 0, tiles_of_queries, first), buffer = 0;
    if (tile < tiles_of_queries) load(tile, 0);
    while (tile < tiles_of_queries) {
        const int after = next_seeing(bounds, tile + 1, tiles_of_queries, first);
        wait_for_copies();
        __syncthreads();
        if (after < tiles_of_queries) load(after, buffer ^ 1);
        float logits[COLUMNS][4];
        still.product(logits, tiles + buffer * Tile<T, D>::NUMBERS);
        const bool plain = a.mask == nullptr && bounds[tile].z <= first && first + TILE <= bounds[tile].w;
#pragma unroll
        for (int n = 0; n < COLUMNS; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int column = n * 8 + lane % 4 * 2 + i % 2;
                float logit = capped(a, logits[n][i]);
                if (!plain) {
                    const int place = min(first + warp * WARP_ROWS + lane / 4 + i / 2 * 8, a.keys - 1);
                    const int asking = min(tile * TILE + column, a.queries - 1);
                    bool seen = begins[buffer][column] <= place && place < ends[buffer][column];
                    logit = seen ? masked(a, logit, batch, head, asking, place) : -INFINITE;
                }
                const float2 whole = denominators[buffer][column];
                float share = whole.y == 0.0f ? 0.0f : exponential(logit - whole.x) * whole.y;
                received[i / 2] += share * weights[buffer][column];
            }
        }
        tile = after, buffer ^= 1;
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int apart = 1; apart < 4; apart *= 2) received[half] += __shfl_xor_sync(ALL_LANES, received[half], apart);
        const int place = first + warp * WARP_ROWS + lane / 4 + half * 8;
        if (lane % 4 == 0 && place < a.keys) {
            r.partial[(static_cast<int64_t>(batch) * a.heads + head) * a.keys + place] = received[half];
        }
    }
}

template <typename T, int D>
int launch_received(const Received& r, int batch, cudaStream_t stream) {
    constexpr size_t bytes = received_bytes<T, D>();
    auto denominators = denominator_kernel<T, D>;
    auto columns = column_kernel<T, D>;
    if (cudaError_t failed = allow_shared(denominators, bytes)) return failed;
    if (cudaError_t failed = allow_shared(columns, bytes)) return failed;
    const int of_queries = (r.a.queries + TILE - 1) / TILE, of_keys = (r.a.keys + TILE - 1) / TILE;
    VTC_LAUNCH(denominators, dim3(of_queries, r.a.heads, batch), RECEIVED_THREADS, bytes, stream, r);
    if (cudaError_t failed = cudaGetLastError()) return failed;
    VTC_LAUNCH(columns, dim3(of_keys, r.a.heads, batch), RECEIVED_THREADS, bytes, stream, r, of_queries);
    return cudaGetLastError();
}

template <typename T>
int launch_received(const Received& r, int batch, cudaStream_t stream) {
    if (r.a.dim <= 64) return launch_received<T, 64>(r, batch, stream);
    if (r.a.dim <= 80) return launch_received<T, 80>(r, batch, stream);
    if (r.a.dim <= 128) return launch_received<T, 128>(r, batch, stream);
    if constexpr (sizeof(T) == 2) {
        if (r.a.dim <= 256) return launch_received<T, 256>(r, batch, stream);
    }
    return cudaErrorInvalidValue;
}

}  // namespace vtc

// out [B, H, R, S].
VTC_API int vtc_attention_rows(const vtc::Attention* attention, int type, float* out, int batch, cudaStream_t stream) {
    using namespace vtc;
    if (type == FLOAT32) return launch_rows<float>(*attention, out, batch, stream);
    if (type == FLOAT16) return launch_rows<__half>(*attention, out, batch, stream);
    return launch_rows<__nv_bfloat16>(*attention, out, batch, stream);
}

// Rows of q and k begin at multiples of 16 bytes. weights [B, Q] or null: `weight`. Room for denominator [B, H, Q, 2],
// bounds [B, tiles of 64 queries, 4]; partial [B, H, S] is the result of each head.
VTC_API int vtc_attention_received(const vtc::Attention* attention, int type, const float* weights, float weight,
                                      void* denominator, void* bounds, float* partial, int batch, cudaStream_t stream) {
    using namespace vtc;
    Received r{*attention, weights, weight, static_cast<float2*>(denominator), static_cast<int4*>(bounds), partial};
    if (type == FLOAT32) return launch_received<float>(r, batch, stream);
    if (type == FLOAT16) return launch_received<__half>(r, batch, stream);
    return launch_received<__nv_bfloat16>(r, batch, stream);
}
