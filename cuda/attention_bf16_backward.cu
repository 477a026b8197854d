// Gradient of causal attention over packed sequences on the tensor cores (after FlashAttention-2, Dao, arXiv
// 2307.08691): one kernel over query tiles for dq, one over key tiles for dk and dv. Each output has one
// block that sums it up in one order; nothing is added by two blocks. The keys of a shared prefix first take
// what its own rows give, then its sharers one after another.
#include "cuda/attention_mma.cuh"

DR_CUDA_SHARED(unsigned char, dr_shared);

struct backward_arguments {
    dr_cuda_attention in;
    const __nv_bfloat16 *q, *dout; // [T, H, d]
    const float *lse, *delta;      // [T, H]
    float *dq, *dk, *dv;
};

// The heads of key head g of rows first … first + n - 1, as rows of a tile; 0 behind them. The copies are on
// their way when this returns.
template <int D>
static __device__ __forceinline__ void load_rows(const dr_cuda_attention &a, const __nv_bfloat16 *from,
                                                 int64_t first, int32_t n, int32_t g, __nv_bfloat16 *to) {
    const int column = dr_copy_column(threadIdx.x, D / 8), group = a.H / a.G;
#pragma unroll
    for (int i = 0; i < dr_copies_of(ROWS, D / 8); i++) {
        const int r = dr_copy_row(threadIdx.x, i, D / 8);
        const bool is_there = dr_tile_query(r, group) < n && column * 8 < a.d;
        const int64_t item = dr_tile_place(first, r, a.H, group, g);
        dr_copy_async_16(at_tile<D>(to, r, column), from + (is_there ? item * a.d + column * 8 : 0),
                         is_there);
    }
}

// A weight from its raw score, and the gradient of the scaled score.
static __device__ __forceinline__ float weight_of(float score, float scale, float lse) {
    return dr_exp2(fmaf(score, scale, -__fmul_rn(lse, DR_LOG2_E)));
}

static __device__ __forceinline__ float gradient_of(float weight, float dot, float delta, float scale) {
    return __fmul_rn(__fmul_rn(weight, __fsub_rn(dot, delta)), scale);
}

// What dq's kernel knows of one of a thread's rows.
struct query_row {
    int64_t row;
    int32_t head, limit; // keys that it sees, 0: there is no such row
    float lse, delta;
};

static __device__ __forceinline__ query_row query_row_of(const backward_arguments &c,
                                                         const dr_query_tile &tile, int32_t g, int r) {
    const int32_t group = c.in.H / c.in.G;
    query_row of = {0, 0, 0, 0.0f, 0.0f};
    if (dr_tile_query(r, group) < tile.n_queries) {
        const dr_query query = c.in.queries[tile.query + dr_tile_query(r, group)];
        of.row = query.row;
        of.head = dr_tile_head(r, group, g);
        of.limit = query.seen;
        of.lse = c.lse[dr_head_place(of.row, c.in.H, of.head)];
        of.delta = c.delta[dr_head_place(of.row, c.in.H, of.head)];
    }
    return of;
}

// What one tile of keys gives to dq of a warp's rows.
template <int D>
static __device__ __forceinline__ void add_keys(const backward_arguments &c, const __nv_bfloat16 *queries,
                                                const __nv_bfloat16 *douts, const __nv_bfloat16 *keys,
                                                const __nv_bfloat16 *values, int32_t first,
                                                const query_row (&of)[2], float (&sum)[D / 8][4]) {
    const int strip = dr_strip_of(threadIdx.x, 1), lane = threadIdx.x % 32;
    const float scale = __fmul_rn(c.in.scale, DR_LOG2_E);
    float score[KEYS / 8][4] = {}, dot[KEYS / 8][4] = {};
    dot_rows<D>(queries, strip, keys, 0, score);
    dot_rows<D>(douts, strip, values, 0, dot);
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
        for (int x = 0; x < 4; x++) {
            const query_row &row = of[x / 2];
            const bool is_seen = first + 8 * n + dr_mma_column(lane, x) < row.limit;
            const float weight = is_seen ? weight_of(score[n][x], scale, row.lse) : 0.0f;
            score[n][x] = gradient_of(weight, dot[n][x], row.delta, c.in.scale);
        }
    weigh_rows<D, KEYS / 16>(score, keys, 0, 0, sum);
}

template <int D> static __global__ void __launch_bounds__(THREADS, BLOCKS) dq_kernel(backward_arguments c) {
    const dr_cuda_attention &a = c.in;
    const int32_t g = blockIdx.x % a.G, lane = threadIdx.x % 32, strip = dr_strip_of(threadIdx.x, 1);
    const dr_query_tile tile = a.mma_query_tiles[blockIdx.x / a.G];
    const dr_span span = a.spans[tile.span];
    const int64_t row = a.queries[tile.query].row;
    __nv_bfloat16 *queries = (__nv_bfloat16 *)dr_shared, *douts = queries + ROWS * D,
                  *pairs = douts + ROWS * D;
    const query_row of[2] = {query_row_of(c, tile, g, strip + dr_mma_row(lane, 0)),
                             query_row_of(c, tile, g, strip + dr_mma_row(lane, 2))};
    const int32_t most = __reduce_max_sync(0xffffffffu, max(of[0].limit, of[1].limit)); // of the warp
    float sum[D / 8][4] = {};
    load_rows<D>(a, c.q, row, tile.n_queries, g, queries);
    load_rows<D>(a, c.dout, row, tile.n_queries, g, douts);
    load_keys<D>(a, span, g, 0, tile.n_keys, pairs, pairs + KEYS * D);
    dr_copy_async_commit();
    for (int32_t first = 0, stage = 0; first < tile.n_keys; first += KEYS, stage ^= 1) {
        __nv_bfloat16 *keys = pairs + stage * 2 * KEYS * D, *next = pairs + (stage ^ 1) * 2 * KEYS * D;
        if (first + KEYS < tile.n_keys)
            load_keys<D>(a, span, g, first + KEYS, tile.n_keys - first - KEYS, next, next + KEYS * D);
        dr_copy_async_commit();
        dr_copy_async_wait<1>();
        __syncthreads();
        if (first < most) add_keys<D>(c, queries, douts, keys, keys + KEYS * D, first, of, sum);
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        if (of[i].limit == 0) continue;
        float *to = c.dq + dr_head_offset(of[i].row, a.q_stride, of[i].head, a.d) + dr_mma_column(lane, 0);
#pragma unroll
        for (int n = 0; n < D / 8; n++)
            if (8 * n < a.d) {
                to[8 * n] = sum[n][2 * i];
                to[8 * n + 1] = sum[n][2 * i + 1];
            }
    }
}

// One stage of dk and dv's kernel: rows of q and dout, and what belongs to them.
template <int D> struct query_stage {
    __nv_bfloat16 *queries, *douts;
    float *lse, *delta;

    __device__ query_stage(int i) {
        queries = (__nv_bfloat16 *)dr_shared + (2 * KEYS + 2 * i * ROWS) * D;
        douts = queries + ROWS * D;
        lse = (float *)((__nv_bfloat16 *)dr_shared + (2 * KEYS + 4 * ROWS) * D) + 2 * i * ROWS;
        delta = lse + ROWS;
    }
};

template <int D>
static __device__ __forceinline__ void load_view(const backward_arguments &c, const dr_view &at, int32_t g,
                                                 const query_stage<D> &to) {
    const int32_t group = c.in.H / c.in.G, r = threadIdx.x % ROWS;
    const int64_t row = c.in.spans[at.viewer].row + at.first;
    const bool is_there = dr_tile_query(r, group) < at.n;
    const int64_t item = is_there ? dr_tile_place(row, r, c.in.H, group, g) : 0;
    load_rows<D>(c.in, c.q, row, at.n, g, to.queries);
    load_rows<D>(c.in, c.dout, row, at.n, g, to.douts);
    if (threadIdx.x < ROWS)
        dr_copy_async_4(to.lse + r, c.lse + item, is_there);
    else
        dr_copy_async_4(to.delta + r, c.delta + item, is_there);
}

// What HALF rows of a stage, from `begin` on, give to dk and dv of a warp's keys. Rows low[i] … high[i] - 1
// see the thread's key i.
enum { HALF = ROWS / 2 };
template <int D>
static __device__ __forceinline__ void
add_queries(const backward_arguments &c, const query_stage<D> &from, int begin, const int32_t (&low)[2],
            const int32_t (&high)[2], float (&dk)[D / 8][4], float (&dv)[D / 8][4]) {
    const __nv_bfloat16 *keys = (const __nv_bfloat16 *)dr_shared, *values = keys + KEYS * D;
    const int strip = dr_strip_of(threadIdx.x, 1), lane = threadIdx.x % 32;
    const float scale = __fmul_rn(c.in.scale, DR_LOG2_E);
    float score[HALF / 8][4] = {}, dot[HALF / 8][4] = {};
    dot_rows<D>(keys, strip, from.queries, begin, score);
    dot_rows<D>(values, strip, from.douts, begin, dot);
#pragma unroll
    for (int n = 0; n < HALF / 8; n++)
#pragma unroll
        for (int x = 0; x < 4; x++) {
            const int r = begin + 8 * n + dr_mma_column(lane, x);
            const bool is_seen = low[x / 2] <= r && r < high[x / 2];
            score[n][x] = is_seen ? weight_of(score[n][x], scale, from.lse[r]) : 0.0f;
            dot[n][x] = gradient_of(score[n][x], dot[n][x], from.delta[r], c.in.scale);
        }
    weigh_rows<D, HALF / 16>(score, from.douts, begin, 0, dv);
    weigh_rows<D, HALF / 16>(dot, from.queries, begin, 0, dk);
}

// Block: a tile of a span's own keys and a key head.
template <int D> static __global__ void __launch_bounds__(THREADS, BLOCKS) dkv_kernel(backward_arguments c) {
    const dr_cuda_attention &a = c.in;
    const int32_t g = blockIdx.x % a.G, group = a.H / a.G, lane = threadIdx.x % 32;
    const dr_key_tile tile = a.mma_key_tiles[blockIdx.x / a.G];
    const dr_span span = a.spans[tile.span];
    const int32_t last = tile.span + span.n_sharers, n = min((int32_t)KEYS, span.n_rows - tile.first);
    const int32_t key = dr_strip_of(threadIdx.x, 1) + dr_mma_row(lane, 0); // the first of two
    __nv_bfloat16 *keys = (__nv_bfloat16 *)dr_shared;
    float dk[D / 8][4] = {}, dv[D / 8][4] = {};
    dr_view at = dr_view_from(a.spans, tile.span, tile.first, last, ROWS / group);
    load_keys<D>(a, span, g, span.n_before + tile.first, n, keys, keys + KEYS * D);
    load_view(c, at, g, query_stage<D>(0));
    dr_copy_async_commit();
    for (int stage = 0; at.n > 0; stage ^= 1) {
        const dr_view next = dr_view_from(a.spans, at.viewer, at.first + at.n, last, ROWS / group);
        int32_t low[2], high[2];
        if (next.n > 0) load_view(c, next, g, query_stage<D>(stage ^ 1));
        dr_copy_async_commit();
        dr_copy_async_wait<1>();
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 2; i++) {
            low[i] = dr_view_low(&at, &tile, key + 8 * i, group);
            high[i] = key + 8 * i < n ? at.n * group : 0;
        }
#pragma unroll 1
        for (int begin = 0; begin < ROWS; begin += HALF)
            add_queries<D>(c, query_stage<D>(stage), begin, low, high, dk, dv);
        __syncthreads();
        at = next;
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        if (key + 8 * i >= n) continue;
        const int64_t to =
            dr_head_offset(span.row + tile.first + key + 8 * i, a.kv_stride, g, a.d) + dr_mma_column(lane, 0);
#pragma unroll
        for (int m = 0; m < D / 8; m++)
            if (8 * m < a.d) {
                c.dk[to + 8 * m] = dk[m][2 * i];
                c.dk[to + 8 * m + 1] = dk[m][2 * i + 1];
                c.dv[to + 8 * m] = dv[m][2 * i];
                c.dv[to + 8 * m + 1] = dv[m][2 * i + 1];
            }
    }
}

template <int D>
static dr_status launch_backward(const backward_arguments &c, unsigned int query_blocks,
                                 unsigned int key_blocks, dr_cuda_stream stream) {
    const size_t query_bytes = (size_t)(2 * ROWS + 4 * KEYS) * D * sizeof(__nv_bfloat16),
                 key_bytes =
                     (size_t)(2 * KEYS + 4 * ROWS) * D * sizeof(__nv_bfloat16) + 4 * ROWS * sizeof(float);
    DR_TRY(dr_cuda_allow_shared("attention_backward", dq_kernel<D>, query_bytes, c.in.d));
    DR_TRY(dr_cuda_allow_shared("attention_backward", dkv_kernel<D>, key_bytes, c.in.d));
    DR_CUDA_LAUNCH(dq_kernel<D>, query_blocks, THREADS, query_bytes, stream)(c);
    DR_CUDA_LAUNCHED("attention_backward, bf16, dq of %d sequences, %d/%d heads of %d", c.in.n_spans, c.in.H,
                     c.in.G, c.in.d);
    DR_CUDA_LAUNCH(dkv_kernel<D>, key_blocks, THREADS, key_bytes, stream)(c);
    DR_CUDA_LAUNCHED("attention_backward, bf16, dk and dv of %d sequences, %d/%d heads of %d", c.in.n_spans,
                     c.in.H, c.in.G, c.in.d);
    return DR_OK;
}

extern "C" dr_status dr_cuda_attention_bf16_backward(const dr_cuda_attention *attention, const uint16_t *q,
                                                     const uint16_t *dout, const float *lse,
                                                     const float *delta, float *dq, float *dk, float *dv,
                                                     dr_cuda_stream stream) {
    const dr_cuda_attention &a = *attention;
    unsigned int query_blocks = 0, key_blocks = 0;
    if (a.n_mma_query_tiles == 0) return DR_OK;
    DR_TRY(dr_cuda_grid("attention_backward", a.n_mma_query_tiles * a.G, 1, &query_blocks));
    DR_TRY(dr_cuda_grid("attention_backward", a.n_mma_key_tiles * a.G, 1, &key_blocks));
    backward_arguments c;
    c.in = a;
    c.q = (const __nv_bfloat16 *)q;
    c.dout = (const __nv_bfloat16 *)dout;
    c.lse = lse;
    c.delta = delta;
    c.dq = dq;
    c.dk = dk;
    c.dv = dv;
    return a.d <= 64 ? launch_backward<64>(c, query_blocks, key_blocks, stream)
                     : launch_backward<128>(c, query_blocks, key_blocks, stream);
}
