// Causal attention on the tensor cores, packed and cached (tiles and on-line softmax after FlashAttention-2,
// Dao, arXiv 2307.08691; splits of keys after Flash-Decoding). One kernel for both, so that a row has the
// same bits in both:
//  - A row's scores are products over the head in steps of 16, its weighted values sums over keys in steps of
//    16, in tiles of 64 and splits of 256 that begin at position 0 of what the row sees. Which rows, and
//    which blocks, these keys are loaded for changes no step.
//  - An element of a product on the tensor cores depends on its row and column alone, not on their places.
//  - Keys that a row does not see weigh 0 in it, and a tile without any that it sees leaves its maximum, its
//    sums (times 2^0, plus 0) as they were: it is the same to the row whether such a tile is gone through or
//    not. Values must be finite for that. Adding 0 at the end makes a zero's sign the same as well.
//  - Each split begins with an empty softmax and is merged with those before it by one formula, here in
//    registers or in merge_kernel from memory; both hold fp32.
#include "cuda/attention_mma.cuh"

DR_CUDA_SHARED(unsigned char, dr_shared);

// The running softmax of two rows, this thread's columns: rows i and i + 8 of the warp's strip.
template <int D> struct row_pair {
    float sum[D / 8][4];
    float top[2], total[2]; // of the raw scores; a lane's own columns, until finish adds them up
};

template <int D> static __device__ __forceinline__ void clear(row_pair<D> &rows) {
#pragma unroll
    for (int n = 0; n < D / 8; n++)
#pragma unroll
        for (int x = 0; x < 4; x++) rows.sum[n][x] = 0.0f;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        rows.top[i] = -INFINITY;
        rows.total[i] = 0.0f;
    }
}

// What the sums of two softmaxes with these maxima are multiplied by when they become one.
struct merge_factors {
    float top, of_first, of_second;
};

static __device__ __forceinline__ merge_factors factors_of(float first, float second, float scale) {
    merge_factors f;
    f.top = fmaxf(first, second);
    f.of_first = dr_exp2(__fmul_rn(__fsub_rn(first, f.top), scale));
    f.of_second = dr_exp2(__fmul_rn(__fsub_rn(second, f.top), scale));
    return f;
}

static __device__ __forceinline__ float merged(const merge_factors &f, float first, float second) {
    return fmaf(first, f.of_first, __fmul_rn(second, f.of_second));
}

// The next split of the rows; one of no key that a row sees is left out.
template <int D>
static __device__ __forceinline__ void merge(row_pair<D> &all, const row_pair<D> &split, float scale) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        if (split.top[i] == -INFINITY) continue;
        const merge_factors f = factors_of(all.top[i], split.top[i], scale);
        all.top[i] = f.top;
        all.total[i] = merged(f, all.total[i], split.total[i]);
#pragma unroll
        for (int n = 0; n < D / 8; n++)
#pragma unroll
            for (int x = 2 * i; x < 2 * i + 2; x++) all.sum[n][x] = merged(f, all.sum[n][x], split.sum[n][x]);
    }
}

// One tile of keys: scores, softmax, weighted values. limit: keys that each of the two rows sees; `first` is
// the tile's first.
template <int D>
static __device__ __forceinline__ void add_keys(const __nv_bfloat16 *queries, const __nv_bfloat16 *keys,
                                                const __nv_bfloat16 *values, int32_t first,
                                                const int32_t (&limit)[2], float scale, row_pair<D> &rows) {
    const int lane = threadIdx.x % 32;
    float score[KEYS / 8][4] = {};
    dot_rows<D>(queries, threadIdx.x / 32 * STRIP, keys, 0, score);
    if (first + KEYS > min(limit[0], limit[1]))
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
            for (int x = 0; x < 4; x++)
                if (first + 8 * n + lane % 4 * 2 + x % 2 >= limit[x / 2]) score[n][x] = -INFINITY;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float top = rows.top[i];
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) top = fmaxf(top, fmaxf(score[n][2 * i], score[n][2 * i + 1]));
        top = dr_row_max(top);
        const float base = top == -INFINITY ? 0.0f : top; // a row that has not seen any
        const float shrink = dr_exp2(__fmul_rn(__fsub_rn(rows.top[i], base), scale)),
                    shift = -__fmul_rn(base, scale);
        float total = 0.0f;
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
            for (int x = 2 * i; x < 2 * i + 2; x++) {
                score[n][x] = dr_exp2(fmaf(score[n][x], scale, shift));
                total = __fadd_rn(total, score[n][x]);
            }
        rows.top[i] = top;
        rows.total[i] = fmaf(rows.total[i], shrink, total);
#pragma unroll
        for (int n = 0; n < D / 8; n++)
#pragma unroll
            for (int x = 2 * i; x < 2 * i + 2; x++) rows.sum[n][x] = __fmul_rn(rows.sum[n][x], shrink);
    }
    weigh_rows<D, KEYS / 16>(score, values, 0, rows.sum);
}

// Rows of q, rounded; 0 where there is no row, and behind the head's last element.
template <int D>
static __device__ __forceinline__ void load_queries(const dr_cuda_attention &a, const dr_query_tile &tile,
                                                    int32_t g, __nv_bfloat16 *to) {
    const int32_t group = a.H / a.G;
    for (int item = threadIdx.x; item < ROWS * D / 2; item += THREADS) {
        const int r = item / (D / 2), e = item % (D / 2) * 2;
        uint32_t pair = 0;
        if (r / group < tile.n_queries && e < a.d) {
            const float *row = a.q + a.queries[tile.query + r / group].row * a.q_stride +
                               (int64_t)(g * group + r % group) * a.d;
            pair = dr_pack_bf16(row[e], row[e + 1]);
        }
        *(uint32_t *)(at_tile<D>(to, r, e / 8) + e % 8) = pair;
    }
}

// Where one of the thread's rows goes.
struct row_place {
    int32_t limit, part; // keys that it sees, 0: there is no such row; place of its first split or -1
    int64_t row;         // row · H + head
    int32_t head;
};

static __device__ __forceinline__ row_place place_of(const dr_cuda_attention &a, const dr_query_tile &tile,
                                                     int32_t g, int r) {
    const int32_t group = a.H / a.G;
    row_place at = {0, -1, 0, 0};
    if (r / group < tile.n_queries) {
        const dr_query query = a.queries[tile.query + r / group];
        at.limit = query.seen;
        at.part = query.part;
        at.head = g * group + r % group;
        at.row = (int64_t)query.row * a.H + at.head;
    }
    return at;
}

// Row i of the pair as it is, for merge_kernel.
template <int D>
static __device__ __forceinline__ void write_part(const dr_cuda_attention &a, const row_place &at,
                                                  int32_t split, const row_pair<D> &rows, int i) {
    const int column = threadIdx.x % 4 * 2;
    const int64_t part = ((int64_t)at.part + split) * a.H + at.head;
    if (split * DR_CUDA_SPLIT >= at.limit) return;
#pragma unroll
    for (int n = 0; n < D / 8; n++)
        if (8 * n < a.d)
            *(float2 *)(a.part_sums + part * a.d + 8 * n + column) =
                make_float2(rows.sum[n][2 * i], rows.sum[n][2 * i + 1]);
    if (threadIdx.x % 4 == 0) *(float2 *)(a.part_stats + 2 * part) = make_float2(rows.top[i], rows.total[i]);
}

static __device__ __forceinline__ float finished(float sum, float inv) {
    return __fadd_rn(__fmul_rn(sum, inv), 0.0f);
}

template <int D>
static __device__ __forceinline__ void write_row(const dr_cuda_attention &a, const row_place &at,
                                                 const row_pair<D> &rows, int i, float *out, float *lse) {
    const float inv = 1.0f / rows.total[i];
    const int column = threadIdx.x % 4 * 2;
    if (at.limit == 0) return;
#pragma unroll
    for (int n = 0; n < D / 8; n++)
        if (8 * n < a.d) {
            out[at.row * a.d + 8 * n + column] = finished(rows.sum[n][2 * i], inv);
            out[at.row * a.d + 8 * n + column + 1] = finished(rows.sum[n][2 * i + 1], inv);
        }
    if (lse && threadIdx.x % 4 == 0) lse[at.row] = fmaf(rows.top[i], a.scale, logf(rows.total[i]));
}

// Block: a tile of queries and a key head. Two pairs of tiles of keys and values: while one is worked on the
// next one is on its way.
template <int D>
static __global__ void __launch_bounds__(THREADS, BLOCKS)
    forward_kernel(dr_cuda_attention a, float *out, float *lse) {
    const int32_t g = blockIdx.x % a.G, strip = threadIdx.x / 32 * STRIP, lane = threadIdx.x % 32;
    const dr_query_tile tile = a.mma_query_tiles[blockIdx.x / a.G];
    if (tile.n_keys == 0) return; // there for the round number
    const dr_span span = a.spans[tile.span];
    __nv_bfloat16 *queries = (__nv_bfloat16 *)dr_shared, *pairs = queries + ROWS * D;
    const row_place at[2] = {place_of(a, tile, g, strip + lane / 4),
                             place_of(a, tile, g, strip + lane / 4 + 8)};
    const int32_t limit[2] = {at[0].limit, at[1].limit}, end = tile.first_key + tile.n_keys;
    const float scale = __fmul_rn(a.scale, DR_LOG2_E);
    const int32_t most = __reduce_max_sync(0xffffffffu, max(limit[0], limit[1])); // of the warp
    row_pair<D> all, split;
    clear(all);
    clear(split);
    load_keys<D>(a, span, g, tile.first_key, tile.n_keys, pairs, pairs + KEYS * D);
    dr_copy_async_commit();
    load_queries<D>(a, tile, g, queries);
    for (int32_t first = tile.first_key, stage = 0; first < end; first += KEYS, stage ^= 1) {
        __nv_bfloat16 *keys = pairs + stage * 2 * KEYS * D, *next = pairs + (stage ^ 1) * 2 * KEYS * D;
        if (first + KEYS < end)
            load_keys<D>(a, span, g, first + KEYS, end - first - KEYS, next, next + KEYS * D);
        dr_copy_async_commit();
        dr_copy_async_wait<1>();
        __syncthreads();
        if (first < most) add_keys<D>(queries, keys, keys + KEYS * D, first, limit, scale, split);
        if ((first + KEYS) % DR_CUDA_SPLIT == 0 || first + KEYS >= end) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                split.total[i] = dr_row_sum(split.total[i]);
                if (at[i].part >= 0) write_part(a, at[i], first / DR_CUDA_SPLIT, split, i);
            }
            merge(all, split, scale);
            clear(split);
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 2; i++)
        if (at[i].part < 0) write_row(a, at[i], all, i, out, lse);
}

// A warp a row of a query that was split.
static __global__ void __launch_bounds__(THREADS) merge_kernel(dr_cuda_attention a, float *out) {
    const int64_t item = dr_cuda_item() / 32;
    if (item >= a.n_queries * a.H) return;
    const dr_query query = a.queries[item / a.H];
    if (query.part < 0) return;
    const int32_t head = (int32_t)(item % a.H), lane = threadIdx.x % 32;
    const float scale = __fmul_rn(a.scale, DR_LOG2_E);
    float top = -INFINITY, total = 0.0f, sum[DR_CUDA_MMA_HEAD / 32] = {};
    for (int32_t c = 0; c * DR_CUDA_SPLIT < query.seen; c++) {
        const int64_t part = ((int64_t)query.part + c) * a.H + head;
        const merge_factors f = factors_of(top, a.part_stats[2 * part], scale);
        top = f.top;
        total = merged(f, total, a.part_stats[2 * part + 1]);
#pragma unroll
        for (int x = 0; x < DR_CUDA_MMA_HEAD / 32; x++)
            if (lane + 32 * x < a.d) sum[x] = merged(f, sum[x], a.part_sums[part * a.d + lane + 32 * x]);
    }
    const float inv = 1.0f / total;
#pragma unroll
    for (int x = 0; x < DR_CUDA_MMA_HEAD / 32; x++)
        if (lane + 32 * x < a.d)
            out[((int64_t)query.row * a.H + head) * a.d + lane + 32 * x] = finished(sum[x], inv);
}

template <int D>
static dr_status launch_forward(const char *op, const dr_cuda_attention &a, float *out, float *lse,
                                dr_cuda_stream stream) {
    const size_t bytes = (size_t)(ROWS + 4 * KEYS) * D * sizeof(__nv_bfloat16);
    unsigned int blocks = 0, warps = 0;
    DR_TRY(dr_cuda_grid(op, a.n_mma_query_tiles * a.G, 1, &blocks));
    DR_TRY(dr_cuda_allow_shared(op, forward_kernel<D>, bytes, a.d));
    DR_CUDA_LAUNCH(forward_kernel<D>, blocks, THREADS, bytes, stream)(a, out, lse);
    DR_CUDA_LAUNCHED("%s, bf16, of %d sequences, %d/%d heads of %d, %lld tiles", op, a.n_spans, a.H, a.G, a.d,
                     (long long)a.n_mma_query_tiles);
    if (a.n_parts == 0) return DR_OK;
    DR_TRY(dr_cuda_grid(op, a.n_queries * a.H, THREADS / 32, &warps));
    DR_CUDA_LAUNCH(merge_kernel, warps, THREADS, 0, stream)(a, out);
    DR_CUDA_LAUNCHED("%s, bf16, merging %lld splits of %d heads of %d", op, (long long)a.n_parts, a.H, a.d);
    return DR_OK;
}

extern "C" dr_status dr_cuda_attention_bf16_forward(const char *op, const dr_cuda_attention *attention,
                                                    float *out, float *lse, dr_cuda_stream stream) {
    if (attention->n_mma_query_tiles == 0) return DR_OK;
    return attention->d <= 64 ? launch_forward<64>(op, *attention, out, lse, stream)
                              : launch_forward<128>(op, *attention, out, lse, stream);
}

static __global__ void __launch_bounds__(THREADS)
    round_rows_kernel(const float *values, int64_t stride, int64_t n, int64_t width, uint16_t *rounded) {
    const int64_t i = dr_cuda_item();
    if (i < n) rounded[i] = __bfloat16_as_ushort(__float2bfloat16_rn(values[i / width * stride + i % width]));
}

extern "C" dr_status dr_cuda_round_rows(const float *values, int64_t stride, int64_t T, int64_t width,
                                        uint16_t *rounded, dr_cuda_stream stream) {
    unsigned int blocks = 0;
    if (T == 0) return DR_OK;
    DR_TRY(dr_cuda_grid("attention", T * width, THREADS, &blocks));
    DR_CUDA_LAUNCH(round_rows_kernel, blocks, THREADS, 0, stream)(values, stride, T * width, width, rounded);
    DR_CUDA_LAUNCHED("attention, rounding %lld rows of %lld", (long long)T, (long long)width);
    return DR_OK;
}
