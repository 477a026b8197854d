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
//  - Warps that share rows share products, each of which one of them makes whole: scores by keys, weighted
//    values by columns. The softmax between them is of all scores, the same in each of these warps.
#include "cuda/attention_mma.cuh"

DR_CUDA_SHARED(unsigned char, dr_shared);

// The running softmax of two rows, and this thread's part of C columns of their sums: rows i and i + 8 of the
// warp's strip.
template <int C> struct row_pair {
    float sum[C / 8][4];
    float top[2], total[2]; // of the raw scores; a lane's own columns, until finish adds them up
};

template <int C> static __device__ __forceinline__ void clear(row_pair<C> &rows) {
#pragma unroll
    for (int n = 0; n < C / 8; n++)
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
template <int C>
static __device__ __forceinline__ void merge(row_pair<C> &all, const row_pair<C> &split, float scale) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        if (split.top[i] == -INFINITY) continue;
        const merge_factors f = factors_of(all.top[i], split.top[i], scale);
        all.top[i] = f.top;
        all.total[i] = merged(f, all.total[i], split.total[i]);
#pragma unroll
        for (int n = 0; n < C / 8; n++)
#pragma unroll
            for (int x = 2 * i; x < 2 * i + 2; x++) all.sum[n][x] = merged(f, all.sum[n][x], split.sum[n][x]);
    }
}

// Scores of keys that a row does not see. limit: keys that each of the two rows sees; `first` is the first
// score's key.
template <int N>
static __device__ __forceinline__ void mask_scores(int32_t first, const int32_t (&limit)[2],
                                                   float (&score)[N][4]) {
    const int lane = threadIdx.x % 32;
    if (first + 8 * N <= min(limit[0], limit[1])) return;
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int x = 0; x < 4; x++)
            if (first + 8 * n + dr_mma_column(lane, x) >= limit[x / 2]) score[n][x] = -INFINITY;
}

// A tile's scores become weights, and its values, columns from 8 piece on, are added.
template <int D, int C>
static __device__ __forceinline__ void add_scores(float (&score)[KEYS / 8][4], const __nv_bfloat16 *values,
                                                  int piece, float scale, row_pair<C> &rows) {
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
        for (int n = 0; n < C / 8; n++)
#pragma unroll
            for (int x = 2 * i; x < 2 * i + 2; x++) rows.sum[n][x] = __fmul_rn(rows.sum[n][x], shrink);
    }
    weigh_rows<D, KEYS / 16>(score, values, 0, piece, rows.sum);
}

// Rows of q, rounded, of the first n of the tile; 0 where there is no row, and behind the head's last
// element.
template <int D>
static __device__ __forceinline__ void load_queries(const dr_cuda_attention &a, const dr_query_tile &tile,
                                                    int32_t g, int n, __nv_bfloat16 *to) {
    const int32_t group = a.H / a.G;
    const int e = dr_copy_column(threadIdx.x, D / 2) * 2;
#pragma unroll 4
    for (int i = 0; i < dr_copies_of(n, D / 2); i++) {
        const int r = dr_copy_row(threadIdx.x, i, D / 2), query = dr_tile_query(r, group);
        uint32_t pair = 0;
        if (query < tile.n_queries && e < a.d) {
            const float *row = a.q + dr_head_offset(a.queries[tile.query + query].row, a.q_stride,
                                                    dr_tile_head(r, group, g), a.d);
            pair = dr_pack_bf16(row[e], row[e + 1]);
        }
        *(uint32_t *)(to + dr_swizzled_element(r, e, D / 8)) = pair;
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
    if (dr_tile_query(r, group) < tile.n_queries) {
        const dr_query query = a.queries[tile.query + dr_tile_query(r, group)];
        at.limit = query.seen;
        at.part = query.part;
        at.head = dr_tile_head(r, group, g);
        at.row = dr_head_place(query.row, a.H, at.head);
    }
    return at;
}

// Row i of the pair as it is, columns from 8 piece on, for merge_kernel.
template <int C>
static __device__ __forceinline__ void write_part(const dr_cuda_attention &a, const row_place &at,
                                                  int32_t split, const row_pair<C> &rows, int i, int piece) {
    const int lane = threadIdx.x % 32;
    const int64_t part = dr_part_place(at.part, split, a.H, at.head);
    if (split * DR_CUDA_SPLIT >= at.limit) return;
#pragma unroll
    for (int n = 0; n < C / 8; n++)
        if (8 * (piece + n) < a.d)
            *(float2 *)(a.part_sums + part * a.d + 8 * (piece + n) + dr_mma_column(lane, 0)) =
                make_float2(rows.sum[n][2 * i], rows.sum[n][2 * i + 1]);
    if (piece == 0 && lane % 4 == 0)
        *(float2 *)(a.part_stats + 2 * part) = make_float2(rows.top[i], rows.total[i]);
}

static __device__ __forceinline__ float finished(float sum, float inv) {
    return __fadd_rn(__fmul_rn(sum, inv), 0.0f);
}

template <int C>
static __device__ __forceinline__ void write_row(const dr_cuda_attention &a, const row_place &at,
                                                 const row_pair<C> &rows, int i, int piece, float *out,
                                                 float *lse) {
    const float inv = 1.0f / rows.total[i];
    const int lane = threadIdx.x % 32;
    if (at.limit == 0) return;
#pragma unroll
    for (int n = 0; n < C / 8; n++)
        if (8 * (piece + n) < a.d) {
            float *to = out + at.row * a.d + 8 * (piece + n) + dr_mma_column(lane, 0);
            to[0] = finished(rows.sum[n][2 * i], inv);
            to[1] = finished(rows.sum[n][2 * i + 1], inv);
        }
    if (lse && piece == 0 && lane % 4 == 0) lse[at.row] = fmaf(rows.top[i], a.scale, logf(rows.total[i]));
}

// A warp's rows on their way through the keys: C columns from 8 piece on of the rows of a strip.
template <int C> struct warp_rows {
    row_place at[2];
    int32_t limit[2], most, piece; // keys that each row sees, and any of the warp's
    float scale;
    row_pair<C> all, split;

    __device__ __forceinline__ warp_rows(const dr_cuda_attention &a, const dr_query_tile &tile, int32_t g,
                                         int strip, int first_piece)
        : piece(first_piece) {
        const int lane = threadIdx.x % 32;
        scale = __fmul_rn(a.scale, DR_LOG2_E);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            at[i] = place_of(a, tile, g, strip + dr_mma_row(lane, 2 * i));
            limit[i] = at[i].limit;
        }
        most = __reduce_max_sync(0xffffffffu, max(limit[0], limit[1]));
        clear(all);
        clear(split);
    }

    // Behind the tile of keys that begins at `first`, where it is its split's last.
    __device__ __forceinline__ void end_tile(const dr_cuda_attention &a, int32_t first, int32_t end) {
        if (!dr_ends_split(first, end)) return;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            split.total[i] = dr_row_sum(split.total[i]);
            if (at[i].part >= 0) write_part(a, at[i], first / DR_CUDA_SPLIT, split, i, piece);
        }
        merge(all, split, scale);
        clear(split);
    }

    __device__ __forceinline__ void write(const dr_cuda_attention &a, float *out, float *lse) const {
#pragma unroll
        for (int i = 0; i < 2; i++)
            if (at[i].part < 0) write_row(a, at[i], all, i, piece, out, lse);
    }
};

// What a block works on.
struct block_work {
    dr_query_tile tile;
    dr_span span;
    int32_t g, end; // behind the tile's last key
    __nv_bfloat16 *queries, *pairs;
};

// A warp a strip. Two pairs of tiles of keys and values: while one is worked on the next one is on its way.
template <int D>
static __device__ __forceinline__ void attend_apart(const dr_cuda_attention &a, const block_work &of,
                                                    float *out, float *lse) {
    const int strip = dr_strip_of(threadIdx.x, 1);
    warp_rows<D> rows(a, of.tile, of.g, strip, 0);
    load_keys<D>(a, of.span, of.g, of.tile.first_key, of.tile.n_keys, of.pairs, of.pairs + KEYS * D);
    dr_copy_async_commit();
    load_queries<D>(a, of.tile, of.g, ROWS, of.queries);
    for (int32_t first = of.tile.first_key, stage = 0; first < of.end; first += KEYS, stage ^= 1) {
        __nv_bfloat16 *keys = of.pairs + stage * 2 * KEYS * D, *next = of.pairs + (stage ^ 1) * 2 * KEYS * D;
        if (first + KEYS < of.end)
            load_keys<D>(a, of.span, of.g, first + KEYS, of.end - first - KEYS, next, next + KEYS * D);
        dr_copy_async_commit();
        dr_copy_async_wait<1>();
        __syncthreads();
        if (first < rows.most) {
            float score[KEYS / 8][4] = {};
            dot_rows<D>(of.queries, strip, keys, 0, score);
            mask_scores(first, rows.limit, score);
            add_scores<D>(score, keys + KEYS * D, 0, rows.scale, rows.split);
        }
        rows.end_tile(a, first, of.end);
        __syncthreads();
    }
    rows.write(a, out, lse);
}

// SHARERS warps a strip: each has a share of a tile's keys for the scores, which all then read, and a share
// of the columns for the weighted values. Keys go by two tiles ahead and values one: a tile's place is free
// as soon as its own product is done.
template <int D, int SHARERS>
static __device__ __forceinline__ void attend_shared(const dr_cuda_attention &a, const block_work &of,
                                                     float *out, float *lse) {
    enum { OWN_KEYS = KEYS / SHARERS, OWN_COLUMNS = D / SHARERS };
    const int strip = dr_strip_of(threadIdx.x, SHARERS), sharer = dr_sharer_of(threadIdx.x, SHARERS),
              lane = threadIdx.x % 32;
    float *scores = (float *)((unsigned char *)of.queries + dr_shared_scores_at(SHARERS, D));
    auto load = [&](const void *from, int32_t first, __nv_bfloat16 *to) {
        if (first < of.end) load_positions<D, 1>(a, of.span, of.g, first, of.end - first, {from}, {to});
        dr_copy_async_commit();
    };
    load(a.k, of.tile.first_key, of.pairs);
    load(a.v, of.tile.first_key, of.pairs + KEYS * D);
    load(a.k, of.tile.first_key + KEYS, of.pairs + 2 * KEYS * D);
    load_queries<D>(a, of.tile, of.g, dr_shared_rows(SHARERS), of.queries);
    warp_rows<OWN_COLUMNS> rows(a, of.tile, of.g, strip, sharer * OWN_COLUMNS / 8);
    for (int32_t first = of.tile.first_key, stage = 0; first < of.end; first += KEYS, stage ^= 1) {
        __nv_bfloat16 *keys = of.pairs + stage * 2 * KEYS * D, *next = of.pairs + (stage ^ 1) * 2 * KEYS * D;
        dr_copy_async_wait<2>();
        __syncthreads(); // the keys are there, and all have read the values before, and the scores
        load(a.v, first + KEYS, next + KEYS * D);
        if (first < rows.most) {
            float own[OWN_KEYS / 8][4] = {};
            dot_rows<D>(of.queries, strip, keys, sharer * OWN_KEYS, own);
            mask_scores(first + sharer * OWN_KEYS, rows.limit, own);
#pragma unroll
            for (int n = 0; n < OWN_KEYS / 8; n++)
                *(float4 *)(scores + dr_shared_score(strip, sharer * OWN_KEYS / 8 + n, lane)) =
                    make_float4(own[n][0], own[n][1], own[n][2], own[n][3]);
        }
        dr_copy_async_wait<2>();
        __syncthreads(); // the values and all scores are there, and all have read the keys
        load(a.k, first + 2 * KEYS, keys);
        if (first < rows.most) {
            float score[KEYS / 8][4];
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++) {
                const float4 four = *(const float4 *)(scores + dr_shared_score(strip, n, lane));
                score[n][0] = four.x;
                score[n][1] = four.y;
                score[n][2] = four.z;
                score[n][3] = four.w;
            }
            add_scores<D>(score, keys + KEYS * D, rows.piece, rows.scale, rows.split);
        }
        rows.end_tile(a, first, of.end);
    }
    rows.write(a, out, lse);
}

// Block: a tile of queries and a key head. Tiles of few rows, as a decode step's, are shared by all warps.
template <int D>
static __global__ void __launch_bounds__(THREADS, BLOCKS)
    forward_kernel(dr_cuda_attention a, float *out, float *lse) {
    block_work of;
    of.tile = a.mma_query_tiles[blockIdx.x / a.G];
    if (of.tile.n_keys == 0) return; // there for the round number
    of.span = a.spans[of.tile.span];
    of.g = blockIdx.x % a.G;
    of.end = of.tile.first_key + of.tile.n_keys;
    of.queries = (__nv_bfloat16 *)dr_shared;
    of.pairs = of.queries + dr_query_bytes(D) / 2;
    switch (dr_sharers_of(of.tile.n_queries * (a.H / a.G))) {
    case 4:
        attend_shared<D, 4>(a, of, out, lse);
        break;
    case 2:
        attend_shared<D, 2>(a, of, out, lse);
        break;
    default:
        attend_apart<D>(a, of, out, lse);
    }
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
        const int64_t part = dr_part_place(query.part, c, a.H, head);
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
            out[dr_head_place(query.row, a.H, head) * a.d + lane + 32 * x] = finished(sum[x], inv);
}

template <int D>
static dr_status launch_forward(const char *op, const dr_cuda_attention &a, float *out, float *lse,
                                dr_cuda_stream stream) {
    const size_t bytes = (size_t)dr_query_bytes(D) + (size_t)4 * KEYS * D * sizeof(__nv_bfloat16);
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
    if (i < n)
        rounded[i] = __bfloat16_as_ushort(__float2bfloat16_rn(values[dr_strided_at(i, width, stride)]));
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
