// Gradient of causal attention over packed sequences for compute capability 9.0: one kernel over query tiles
// for dq, one over key tiles for dk and dv, each output with one block that sums it up in one order. Scores
// and their gradients are computed in both: two products of seven are done twice, and in exchange nothing is
// added by two blocks. The two warpgroups that multiply go on without regard to each other, so that one's
// exponentials run behind the other's products.
#include "cuda/launch.cuh"

#ifdef DR_CUDA_WGMMA_BUILT
#include "cuda/attention_wgmma.cuh"

struct backward_arguments {
    dr_cuda_attention in;
    const float *lse, *delta; // [T, H]
    float *dq, *dk, *dv;
};

// A weight from its raw score, and the gradient of the scaled score.
static __device__ __forceinline__ float weight_of(float score, float scale, float lse) {
    return dr_exp2(fmaf(score, scale, -__fmul_rn(lse, DR_LOG2_E)));
}

static __device__ __forceinline__ float gradient_of(float weight, float dot, float delta, float scale) {
    return __fmul_rn(__fmul_rn(weight, __fsub_rn(dot, delta)), scale);
}

// Row r of a gradient, from its fragments: n is 0 or 1, the thread's first or second row.
template <int D>
static __device__ __forceinline__ void write_row(float *to, const float (&sum)[D / 2], int n) {
#pragma unroll
    for (int i = 2 * n; i < D / 2; i += 4)
#pragma unroll
        for (int x = i; x < i + 2; x++) to[dr_fragment_column(own_thread(), x)] = sum[x];
}

// ---- dq ----

template <int D> using dq_shared = key_stages<D, 2>; // queries and dout

// What one step gives to dq of a warpgroup's rows.
template <int D>
static __device__ __forceinline__ void
add_keys(const dq_shared<D> &shared, int32_t step, const int32_t (&limit)[2], const float (&lse)[2],
         const float (&delta)[2], float raw_scale, float (&sum)[D / 2]) {
    const int stage = dr_stage_of(step), first = own_group() * DR_WGMMA_ROWS;
    const float scale = __fmul_rn(raw_scale, DR_LOG2_E);
    float score[KEYS / 2], dot[KEYS / 2];
    uint32_t pairs[KEYS / 4];
    dr_barrier_wait_warp(shared.barrier(KEYS_FULL, stage), dr_stage_parity(step));
    start_dots<D, KEYS>(shared.queries(0), ROWS, first, shared.keys(stage), score);
    dr_barrier_wait_warp(shared.barrier(VALUES_FULL, stage), dr_stage_parity(step));
    start_dots<D, KEYS>(shared.queries(1), ROWS, first, shared.values(stage), dot);
    dr_wgmma_wait<1>();
    dr_wgmma_keep(score);
#pragma unroll
    for (int i = 0; i < KEYS / 2; i++) score[i] = weight_of(score[i], scale, lse[i / 2 % 2]);
    dr_wgmma_wait<0>();
    dr_wgmma_keep(dot);
    release(shared.barrier(VALUES_EMPTY, stage));
#pragma unroll
    for (int i = 0; i < KEYS / 2; i++) {
        const int r = i / 2 % 2;
        const float weight = dr_fragment_column(own_thread(), i) < limit[r] ? score[i] : 0.0f;
        score[i] = gradient_of(weight, dot[i], delta[r], raw_scale);
    }
    round_pairs(score, pairs);
    start_weighing<D, KEYS>(pairs, shared.keys(stage), sum);
    dr_wgmma_wait<0>();
    dr_wgmma_keep(sum);
    dr_wgmma_keep(pairs);
    release(shared.barrier(KEYS_EMPTY, stage));
}

template <int D>
static __device__ __forceinline__ void sum_dq(const backward_arguments &c, const dq_shared<D> &shared,
                                              const dr_query_tile &tile, const dr_span &span, int32_t g,
                                              int32_t n_steps) {
    const int first = own_group() * DR_WGMMA_ROWS;
    row_place at[2];
    float lse[2] = {0.0f, 0.0f}, delta[2] = {0.0f, 0.0f}, sum[D / 2];
#pragma unroll
    for (int n = 0; n < 2; n++) {
        at[n] = place_of(c.in, tile, g, first + dr_fragment_row(own_thread(), 2 * n));
        if (at[n].seen == 0) continue;
        lse[n] = c.lse[at[n].row];
        delta[n] = c.delta[at[n].row];
    }
#pragma unroll
    for (int i = 0; i < D / 2; i++) sum[i] = 0.0f;
    dr_barrier_wait_warp(shared.queries_full(), 0);
#pragma unroll 1
    for (int32_t j = 0; j < n_steps; j++) {
        const int32_t limit[2] = {dr_step_limit(&span, j, KEYS, at[0].seen),
                                  dr_step_limit(&span, j, KEYS, at[1].seen)};
        add_keys<D>(shared, j, limit, lse, delta, c.in.scale, sum);
    }
#pragma unroll
    for (int n = 0; n < 2; n++) {
        const int64_t row = at[n].row / c.in.H, head = at[n].row % c.in.H;
        if (at[n].seen > 0) write_row<D>(c.dq + row * c.in.q_stride + head * D, sum, n);
    }
}

// Block: a tile of queries and a key head. Rows of the tile's box that are no row of its are computed and not
// written: no row of a left operand has a part in another.
template <int D>
static __global__ void __launch_bounds__(THREADS, 1)
    dq_kernel(const backward_arguments c, const __grid_constant__ CUtensorMap queries,
              const __grid_constant__ CUtensorMap douts, const __grid_constant__ CUtensorMap keys,
              const __grid_constant__ CUtensorMap values) {
    const dq_shared<D> shared;
    const dr_cuda_attention &a = c.in;
    const int32_t g = blockIdx.x % a.G, group = a.H / a.G;
    const dr_query_tile tile = a.wide_query_tiles[blockIdx.x / a.G];
    const dr_span span = a.spans[tile.span];
    const int32_t n_steps = dr_key_steps(&span, tile.n_keys, KEYS);
    init_barriers(shared);
    if (threadIdx.x < DR_WGMMA_THREADS) {
        dr_registers_fewer<FEWER>();
        if (threadIdx.x == 0) {
            const int32_t row = a.queries[tile.query].row;
            dr_barrier_expect(shared.queries_full(), 2 * dr_wgmma_queries(group) * group * D * 2);
            copy_panels<D>(&queries, shared.queries(0), ROWS, shared.queries_full(), g * group, row);
            copy_panels<D>(&douts, shared.queries(1), ROWS, shared.queries_full(), g * group, row);
            copy_keys(shared, &keys, &values, span, g, n_steps);
        }
    } else {
        dr_registers_more<MORE>();
        sum_dq<D>(c, shared, tile, span, g, n_steps);
    }
}

// ---- dk and dv ----

enum { STAGE_ROWS = DR_WGMMA_ROWS }; // queries times heads of a stage

// Shared memory: a tile of keys and one of values, stages of queries and dout, of their log-sum-exps and
// deltas, barriers.
template <int D> struct query_stages {
    enum {
        KEY_BYTES = KEYS * D * 2,
        ROW_BYTES = STAGE_ROWS * D * 2,
        STATS_AT = 2 * KEY_BYTES + DR_WGMMA_STAGES * 2 * ROW_BYTES,
        STATS_BYTES = 2 * STAGE_ROWS * 4,
        BARRIERS_AT = STATS_AT + DR_WGMMA_STAGES * STATS_BYTES,
        BYTES = BARRIERS_AT + (2 * DR_WGMMA_STAGES + 1) * BARRIER_BYTES + DR_WGMMA_PATTERN
    };
    uint32_t base;

    __device__ __forceinline__ query_stages() : base(shared_base()) {}
    __device__ __forceinline__ uint32_t keys() const {
        return base;
    }
    __device__ __forceinline__ uint32_t values() const {
        return base + KEY_BYTES;
    }
    __device__ __forceinline__ uint32_t queries(int stage) const {
        return base + 2 * KEY_BYTES + stage * 2 * ROW_BYTES;
    }
    __device__ __forceinline__ uint32_t douts(int stage) const {
        return queries(stage) + ROW_BYTES;
    }
    __device__ __forceinline__ float *lse(int stage) const {
        return (float *)shared_at(base + STATS_AT + stage * STATS_BYTES);
    }
    __device__ __forceinline__ float *delta(int stage) const {
        return lse(stage) + STAGE_ROWS;
    }
    __device__ __forceinline__ uint32_t full(int stage) const {
        return base + BARRIERS_AT + stage * BARRIER_BYTES;
    }
    __device__ __forceinline__ uint32_t empty(int stage) const {
        return full(DR_WGMMA_STAGES + stage);
    }
    __device__ __forceinline__ uint32_t keys_full() const {
        return full(2 * DR_WGMMA_STAGES);
    }
};

// All threads. Rows of a stage that no box reaches, where there are any, are zeros for good: their weights
// are 0, and 0 times what stood there might be no number. A stage is full when its 32 copying threads' copies
// and its boxes are there.
template <int D>
static __device__ __forceinline__ void init_stages(const query_stages<D> &shared, int32_t group) {
    enum { PIECES = DR_WGMMA_STAGES * 2 * query_stages<D>::ROW_BYTES / 16 };
    uint4 *pieces = (uint4 *)shared_at(shared.queries(0));
    if (STAGE_ROWS % group != 0)
        for (int i = threadIdx.x; i < PIECES; i += THREADS) pieces[i] = make_uint4(0, 0, 0, 0);
    dr_publish_shared();
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < DR_WGMMA_STAGES; stage++) {
            dr_barrier_init(shared.full(stage), 32 + 1);
            dr_barrier_init(shared.empty(stage), CONSUMER_WARPS);
        }
        dr_barrier_init(shared.keys_full(), 1);
        dr_barrier_publish();
    }
    __syncthreads();
}

// What goes through a block: views of the rows that see its keys, in order.
struct view_range {
    int32_t last, most; // viewer; queries of a view
};

static __device__ __forceinline__ dr_view first_view(const dr_cuda_attention &a, const dr_key_tile &tile,
                                                     const view_range &range) {
    return dr_view_from(a.spans, tile.span, tile.first, range.last, range.most);
}

static __device__ __forceinline__ dr_view next_view(const dr_cuda_attention &a, const dr_view &at,
                                                    const view_range &range) {
    return dr_view_from(a.spans, at.viewer, at.first + at.n, range.last, range.most);
}

// Brings the stages of all views. One warp.
template <int D>
static __device__ __forceinline__ void copy_views(const backward_arguments &c, const query_stages<D> &shared,
                                                  const dr_key_tile &tile, const view_range &range, int32_t g,
                                                  const CUtensorMap *queries, const CUtensorMap *douts) {
    const int32_t group = c.in.H / c.in.G;
    dr_view at = first_view(c.in, tile, range);
    for (int32_t j = 0; at.n > 0; j++) {
        const int stage = dr_stage_of(j);
        const int64_t row = c.in.spans[at.viewer].row + at.first;
        dr_barrier_wait(shared.empty(stage), dr_stage_parity(j) ^ 1);
        if (threadIdx.x == 0) {
            dr_barrier_expect(shared.full(stage), 2 * range.most * group * D * 2);
            copy_panels<D>(queries, shared.queries(stage), STAGE_ROWS, shared.full(stage), g * group,
                           (int32_t)row);
            copy_panels<D>(douts, shared.douts(stage), STAGE_ROWS, shared.full(stage), g * group,
                           (int32_t)row);
        }
#pragma unroll
        for (int r = threadIdx.x; r < STAGE_ROWS; r += 32) {
            const bool is_there = dr_tile_query(r, group) < at.n;
            const int64_t item = is_there ? dr_tile_place(row, r, c.in.H, group, g) : 0;
            dr_copy_async_4(shared.lse(stage) + r, c.lse + item, is_there);
            dr_copy_async_4(shared.delta(stage) + r, c.delta + item, is_there);
        }
        dr_barrier_arrive_copied(shared.full(stage));
        __syncwarp();
        at = next_view(c.in, at, range);
    }
}

// What one stage gives to dk and dv of a warpgroup's keys. Rows low[n] … high[n] - 1 see the thread's key n.
template <int D>
static __device__ __forceinline__ void add_queries(const query_stages<D> &shared, int stage,
                                                   const int32_t (&low)[2], const int32_t (&high)[2],
                                                   float raw_scale, float (&dk)[D / 2], float (&dv)[D / 2]) {
    const int first = own_group() * DR_WGMMA_ROWS;
    const float scale = __fmul_rn(raw_scale, DR_LOG2_E);
    const float *lse = shared.lse(stage), *delta = shared.delta(stage);
    float score[STAGE_ROWS / 2], dot[STAGE_ROWS / 2];
    uint32_t weights[STAGE_ROWS / 4], gradients[STAGE_ROWS / 4];
    start_dots<D, STAGE_ROWS>(shared.keys(), KEYS, first, shared.queries(stage), score);
    start_dots<D, STAGE_ROWS>(shared.values(), KEYS, first, shared.douts(stage), dot);
    dr_wgmma_wait<1>();
    dr_wgmma_keep(score);
#pragma unroll
    for (int i = 0; i < STAGE_ROWS / 2; i++) {
        const int r = dr_fragment_column(own_thread(), i), n = i / 2 % 2;
        const bool is_seen = low[n] <= r && r < high[n];
        score[i] = is_seen ? weight_of(score[i], scale, lse[r]) : 0.0f;
    }
    round_pairs(score, weights);
    start_weighing<D, STAGE_ROWS>(weights, shared.douts(stage), dv);
    dr_wgmma_wait<1>();
    dr_wgmma_keep(dot);
#pragma unroll
    for (int i = 0; i < STAGE_ROWS / 2; i++)
        dot[i] = gradient_of(score[i], dot[i], delta[dr_fragment_column(own_thread(), i)], raw_scale);
    round_pairs(dot, gradients);
    start_weighing<D, STAGE_ROWS>(gradients, shared.queries(stage), dk);
    dr_wgmma_wait<0>();
    dr_wgmma_keep(dv);
    dr_wgmma_keep(dk);
    dr_wgmma_keep(weights);
    dr_wgmma_keep(gradients);
    release(shared.empty(stage));
}

template <int D>
static __device__ __forceinline__ void sum_dkv(const backward_arguments &c, const query_stages<D> &shared,
                                               const dr_key_tile &tile, const view_range &range, int32_t g,
                                               int32_t n_keys) {
    const int32_t group = c.in.H / c.in.G;
    const int key = own_group() * DR_WGMMA_ROWS + dr_fragment_row(own_thread(), 0); // the first of two
    float dk[D / 2], dv[D / 2];
#pragma unroll
    for (int i = 0; i < D / 2; i++) dk[i] = dv[i] = 0.0f;
    dr_barrier_wait_warp(shared.keys_full(), 0);
    dr_view at = first_view(c.in, tile, range);
#pragma unroll 1
    for (int32_t j = 0; at.n > 0; j++) {
        int32_t low[2], high[2];
#pragma unroll
        for (int n = 0; n < 2; n++) {
            low[n] = dr_view_low(&at, &tile, key + 8 * n, group);
            high[n] = key + 8 * n < n_keys ? at.n * group : 0;
        }
        dr_barrier_wait_warp(shared.full(dr_stage_of(j)), dr_stage_parity(j));
        add_queries<D>(shared, dr_stage_of(j), low, high, c.in.scale, dk, dv);
        at = next_view(c.in, at, range);
    }
#pragma unroll
    for (int n = 0; n < 2; n++) {
        const int64_t row = c.in.spans[tile.span].row + tile.first + key + 8 * n;
        if (key + 8 * n >= n_keys) continue;
        write_row<D>(c.dk + row * c.in.kv_stride + (int64_t)g * D, dk, n);
        write_row<D>(c.dv + row * c.in.kv_stride + (int64_t)g * D, dv, n);
    }
}

// Block: a tile of a span's own keys and a key head.
template <int D>
static __global__ void __launch_bounds__(THREADS, 1)
    dkv_kernel(const backward_arguments c, const __grid_constant__ CUtensorMap queries,
               const __grid_constant__ CUtensorMap douts, const __grid_constant__ CUtensorMap keys,
               const __grid_constant__ CUtensorMap values) {
    const query_stages<D> shared;
    const dr_cuda_attention &a = c.in;
    const int32_t g = blockIdx.x % a.G, group = a.H / a.G;
    const dr_key_tile tile = a.wide_key_tiles[blockIdx.x / a.G];
    const dr_span &span = a.spans[tile.span];
    const view_range range = {tile.span + span.n_sharers, dr_tile_queries(group)};
    init_stages(shared, group);
    if (threadIdx.x < DR_WGMMA_THREADS) {
        dr_registers_fewer<FEWER>();
        if (threadIdx.x == 0) {
            const int32_t row = (int32_t)span.row + tile.first;
            dr_barrier_expect(shared.keys_full(), 2 * KEYS * D * 2);
            copy_panels<D>(&keys, shared.keys(), KEYS, shared.keys_full(), g, row);
            copy_panels<D>(&values, shared.values(), KEYS, shared.keys_full(), g, row);
        }
        if (threadIdx.x < 32) copy_views<D>(c, shared, tile, range, g, &queries, &douts);
    } else {
        dr_registers_more<MORE>();
        sum_dkv<D>(c, shared, tile, range, g, min((int32_t)KEYS, span.n_rows - tile.first));
    }
}

// ---- launches ----

// A kernel over `tiles` tiles a key head, which copies `queries` queries at a time.
template <int D, class KERNEL>
static dr_status launch(KERNEL kernel, const char *what, const backward_arguments &c, int64_t tiles,
                        int32_t queries, size_t bytes, const uint16_t *q, const uint16_t *dout,
                        const CUtensorMap &keys, const CUtensorMap &values, dr_cuda_stream stream) {
    const char *op = "attention_backward";
    const dr_cuda_attention &a = c.in;
    unsigned int blocks = 0;
    CUtensorMap q_map, dout_map;
    DR_TRY(dr_cuda_grid(op, tiles * a.G, 1, &blocks));
    DR_TRY(dr_tensor_map_of(op, q, a.n_rows, a.H, D, a.H / a.G, queries, &q_map));
    DR_TRY(dr_tensor_map_of(op, dout, a.n_rows, a.H, D, a.H / a.G, queries, &dout_map));
    DR_TRY(dr_cuda_allow_shared(op, kernel, bytes, D));
    DR_CUDA_LAUNCH(kernel, blocks, THREADS, bytes, stream)(c, q_map, dout_map, keys, values);
    DR_CUDA_LAUNCHED("%s, wgmma, %s of %d sequences, %d/%d heads of %d", op, what, a.n_spans, a.H, a.G, D);
    return DR_OK;
}

template <int D>
static dr_status launch_backward(const backward_arguments &c, const uint16_t *q, const uint16_t *dout,
                                 dr_cuda_stream stream) {
    const dr_cuda_attention &a = c.in;
    CUtensorMap keys, values;
    DR_TRY(dr_tensor_map_of("attention_backward", a.k, a.n_rows, a.G, D, 1, KEYS, &keys));
    DR_TRY(dr_tensor_map_of("attention_backward", a.v, a.n_rows, a.G, D, 1, KEYS, &values));
    DR_TRY(launch<D>(dq_kernel<D>, "dq", c, a.n_wide_query_tiles, dr_wgmma_queries(a.H / a.G),
                     dq_shared<D>::BYTES, q, dout, keys, values, stream));
    return launch<D>(dkv_kernel<D>, "dk and dv", c, a.n_wide_key_tiles, dr_tile_queries(a.H / a.G),
                     query_stages<D>::BYTES, q, dout, keys, values, stream);
}

extern "C" dr_status dr_cuda_attention_wgmma_backward(const dr_cuda_attention *attention, const uint16_t *q,
                                                      const uint16_t *dout, const float *lse,
                                                      const float *delta, float *dq, float *dk, float *dv,
                                                      dr_cuda_stream stream) {
    const backward_arguments c = {*attention, lse, delta, dq, dk, dv};
    if (attention->n_wide_query_tiles == 0) return DR_OK;
    return attention->d == 64 ? launch_backward<64>(c, q, dout, stream)
                              : launch_backward<128>(c, q, dout, stream);
}
#endif
