// Causal attention over packed sequences for compute capability 9.0 (after FlashAttention-3, Shah et al., arXiv
// 2407.08608). A block is three warpgroups: the first has tensor copies bring tiles of keys and values, the
// other two own 64 rows of queries each and take turns with the tensor cores: while one multiplies, the other
// is at its softmax. Within a warpgroup the scores of the next tile and the weighted values of this one are
// multiplied behind the softmax between them. Weights never leave their registers.
//   A row's sums are in another order than attention_bf16.cu's and so are its bits: only precisions that ask
// for no equal bits may use it. Equal arguments give equal bits.
#include "cuda/launch.cuh"

#ifdef DR_CUDA_WGMMA_BUILT
#include "cuda/attention_wgmma.cuh"

enum {
    TURN = 1,                          // named barriers: a consumer's turn, one each
    LOADED = TURN + DR_WGMMA_CONSUMERS // a consumer's queries are there, one each
};
template <int D> using forward_shared = key_stages<D, 1>;

// The warpgroup's rows of q, rounded; 0 where there is no row. Many loads are on their way at a time.
template <int D>
static __device__ __forceinline__ void load_queries(const dr_cuda_attention &a, const dr_query_tile &tile,
                                                    int32_t g, int first, unsigned char *to) {
    enum { AHEAD = 16 }; // divides a thread's pairs
    const int32_t group = a.H / a.G;
    const int64_t row = a.queries[tile.query].row; // the others' follow
#pragma unroll 1
    for (int begin = 0; begin < dr_wgmma_pairs(D); begin += AHEAD) {
        float pair[AHEAD][2];
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            const int r = first + dr_wgmma_pair_row(own_thread(), begin + i, D),
                      column = dr_wgmma_pair_column(own_thread(), begin + i, D);
            pair[i][0] = pair[i][1] = 0.0f;
            if (dr_tile_query(r, group) < tile.n_queries) {
                const float *from = a.q + dr_head_offset(row + dr_tile_query(r, group), a.q_stride,
                                                         dr_tile_head(r, group, g), D);
                pair[i][0] = from[column];
                pair[i][1] = from[column + 1];
            }
        }
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            const int r = first + dr_wgmma_pair_row(own_thread(), begin + i, D),
                      column = dr_wgmma_pair_column(own_thread(), begin + i, D);
            *(uint32_t *)(to + dr_panel_offset(r, column, ROWS)) = dr_pack_bf16(pair[i][0], pair[i][1]);
        }
    }
}

// The running softmax of a thread's two rows.
struct softmax_pair {
    float top[2], total[2]; // of the raw scores; the thread's own columns
};

// Scores become weights; *shrink: what the sums so far are multiplied by. limit: keys of the tile that each
// of the two rows sees.
static __device__ __forceinline__ void soften(float (&score)[KEYS / 2], const int32_t (&limit)[2],
                                              float scale, softmax_pair &of, float (&shrink)[2]) {
    const int thread = own_thread();
    if (min(limit[0], limit[1]) < KEYS)
#pragma unroll
        for (int i = 0; i < KEYS / 2; i++)
            if (dr_fragment_column(thread, i) >= limit[i / 2 % 2]) score[i] = -INFINITY;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float top = of.top[r], total = 0.0f;
#pragma unroll
        for (int i = 2 * r; i < KEYS / 2; i += 4) top = fmaxf(top, fmaxf(score[i], score[i + 1]));
        top = dr_row_max(top);
        const float base = top == -INFINITY ? 0.0f : top; // there is no such row
        const float shift = -__fmul_rn(base, scale);
        shrink[r] = dr_exp2(__fmul_rn(__fsub_rn(of.top[r], base), scale));
#pragma unroll
        for (int i = 2 * r; i < KEYS / 2; i += 4)
#pragma unroll
            for (int x = i; x < i + 2; x++) {
                score[x] = dr_exp2(fmaf(score[x], scale, shift));
                total = __fadd_rn(total, score[x]);
            }
        of.top[r] = top;
        of.total[r] = fmaf(of.total[r], shrink[r], total);
    }
}

// The values of the step before are in the sums; these become what the next ones are added to.
template <int D>
static __device__ __forceinline__ void take_weights(float (&score)[KEYS / 2], const float (&shrink)[2],
                                                    uint32_t (&weights)[KEYS / 4], float (&sum)[D / 2]) {
    dr_wgmma_wait<0>();
    dr_wgmma_keep(sum);
    dr_wgmma_keep(weights);
#pragma unroll
    for (int i = 0; i < D / 2; i++) sum[i] = __fmul_rn(sum[i], shrink[i / 2 % 2]);
    round_pairs(score, weights);
}

// All steps of a warpgroup. Its products of a step wait for its turn and then give the turn to the other one.
// The softmax stands at a loop's end so that no compiler moves it behind the wait for the values, which are
// multiplied meanwhile.
template <int D>
static __device__ __forceinline__ void attend(const forward_shared<D> &shared, const dr_span &span,
                                              const int32_t (&seen)[2], int32_t n_steps, float scale,
                                              softmax_pair &of, float (&sum)[D / 2]) {
    enum { BOTH = DR_WGMMA_CONSUMERS * DR_WGMMA_THREADS };
    const int own = own_group(), first = own * DR_WGMMA_ROWS, other = 1 - own;
    const int last = dr_stage_of(n_steps - 1);
    float score[KEYS / 2], shrink[2];
    uint32_t weights[KEYS / 4] = {};
    int32_t limit[2] = {dr_step_limit(&span, 0, KEYS, seen[0]), dr_step_limit(&span, 0, KEYS, seen[1])};
    if (own == 1 && n_steps > 1) dr_named_arrive(TURN + other, BOTH); // the first turn
    dr_barrier_wait_warp(shared.barrier(KEYS_FULL, 0), 0);
    start_dots<D, KEYS>(shared.queries(0), ROWS, first, shared.keys(0), score);
    dr_wgmma_wait<0>();
    dr_wgmma_keep(score);
    release(shared.barrier(KEYS_EMPTY, 0));
    soften(score, limit, scale, of, shrink);
#pragma unroll 1
    for (int32_t j = 1; j < n_steps; j++) {
        const int stage = dr_stage_of(j), before = dr_stage_of(j - 1);
        take_weights<D>(score, shrink, weights, sum);
        if (j > 1) release(shared.barrier(VALUES_EMPTY, dr_stage_of(j - 2)));
        dr_barrier_wait_warp(shared.barrier(KEYS_FULL, stage), dr_stage_parity(j));
        dr_named_wait(TURN + own, BOTH);
        start_dots<D, KEYS>(shared.queries(0), ROWS, first, shared.keys(stage), score);
        dr_barrier_wait_warp(shared.barrier(VALUES_FULL, before), dr_stage_parity(j - 1));
        start_weighing<D, KEYS>(weights, shared.values(before), sum);
        if (own == 0 || j + 1 < n_steps) dr_named_arrive(TURN + other, BOTH);
        dr_wgmma_wait<1>();
        dr_wgmma_keep(score);
        release(shared.barrier(KEYS_EMPTY, stage));
#pragma unroll
        for (int r = 0; r < 2; r++) limit[r] = dr_step_limit(&span, j, KEYS, seen[r]);
        soften(score, limit, scale, of, shrink);
    }
    take_weights<D>(score, shrink, weights, sum);
    dr_barrier_wait_warp(shared.barrier(VALUES_FULL, last), dr_stage_parity(n_steps - 1));
    start_weighing<D, KEYS>(weights, shared.values(last), sum);
    dr_wgmma_wait<0>();
    dr_wgmma_keep(sum);
    dr_wgmma_keep(weights);
}

template <int D>
static __device__ __forceinline__ void write_rows(const dr_cuda_attention &a, const row_place (&at)[2],
                                                  const softmax_pair &of, const float (&sum)[D / 2],
                                                  float *out, float *lse) {
    const int thread = own_thread();
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const float total = dr_row_sum(of.total[r]), inv = 1.0f / total;
        if (at[r].seen == 0) continue;
        float *to = out + at[r].row * D;
#pragma unroll
        for (int i = 2 * r; i < D / 2; i += 4)
#pragma unroll
            for (int x = i; x < i + 2; x++) to[dr_fragment_column(thread, x)] = __fmul_rn(sum[x], inv);
        if (lse && thread % 4 == 0) lse[at[r].row] = fmaf(of.top[r], a.scale, logf(total));
    }
}

template <int D>
static __device__ __forceinline__ void consume(const dr_cuda_attention &a, const forward_shared<D> &shared,
                                               const dr_query_tile &tile, const dr_span &span, int32_t g,
                                               int32_t n_steps, float *out, float *lse) {
    const int own = own_group(), thread = own_thread(), first = own * DR_WGMMA_ROWS;
    const row_place at[2] = {place_of(a, tile, g, first + dr_fragment_row(thread, 0)),
                             place_of(a, tile, g, first + dr_fragment_row(thread, 2))};
    const int32_t seen[2] = {at[0].seen, at[1].seen};
    softmax_pair of = {{-INFINITY, -INFINITY}, {0.0f, 0.0f}};
    float sum[D / 2];
    load_queries<D>(a, tile, g, first, shared_at(shared.queries(0)));
    dr_publish_shared();
    dr_named_wait(LOADED + own, DR_WGMMA_THREADS);
#pragma unroll
    for (int i = 0; i < D / 2; i++) sum[i] = 0.0f;
    attend<D>(shared, span, seen, n_steps, __fmul_rn(a.scale, DR_LOG2_E), of, sum);
    write_rows<D>(a, at, of, sum, out, lse);
}

// Block: a tile of queries and a key head.
template <int D>
static __global__ void __launch_bounds__(THREADS, 1)
    forward_kernel(const dr_cuda_attention a, const __grid_constant__ CUtensorMap keys,
                   const __grid_constant__ CUtensorMap values, float *out, float *lse) {
    const forward_shared<D> shared;
    const int32_t g = blockIdx.x % a.G;
    const dr_query_tile tile = a.wide_query_tiles[blockIdx.x / a.G];
    const dr_span span = a.spans[tile.span];
    const int32_t n_steps = dr_key_steps(&span, tile.n_keys, KEYS);
    init_barriers(shared);
    if (threadIdx.x < DR_WGMMA_THREADS) {
        dr_registers_fewer<FEWER>();
        if (threadIdx.x == 0) copy_keys(shared, &keys, &values, span, g, n_steps);
    } else {
        dr_registers_more<MORE>();
        consume<D>(a, shared, tile, span, g, n_steps, out, lse);
    }
}

template <int D>
static dr_status launch_forward(const dr_cuda_attention &a, float *out, float *lse, dr_cuda_stream stream) {
    const char *op = "attention_forward";
    const size_t bytes = forward_shared<D>::BYTES;
    unsigned int blocks = 0;
    CUtensorMap keys, values;
    DR_TRY(dr_cuda_grid(op, a.n_wide_query_tiles * a.G, 1, &blocks));
    DR_TRY(dr_tensor_map_of(op, a.k, a.n_rows, a.G, D, 1, KEYS, &keys));
    DR_TRY(dr_tensor_map_of(op, a.v, a.n_rows, a.G, D, 1, KEYS, &values));
    DR_TRY(dr_cuda_allow_shared(op, forward_kernel<D>, bytes, D));
    DR_CUDA_LAUNCH(forward_kernel<D>, blocks, THREADS, bytes, stream)(a, keys, values, out, lse);
    DR_CUDA_LAUNCHED("%s, wgmma, of %d sequences, %d/%d heads of %d, %lld tiles", op, a.n_spans, a.H, a.G, D,
                     (long long)a.n_wide_query_tiles);
    return DR_OK;
}

extern "C" dr_status dr_cuda_attention_wgmma_forward(const dr_cuda_attention *attention, float *out,
                                                     float *lse, dr_cuda_stream stream) {
    if (attention->n_wide_query_tiles == 0) return DR_OK;
    return attention->d == 64 ? launch_forward<64>(*attention, out, lse, stream)
                              : launch_forward<128>(*attention, out, lse, stream);
}

extern "C" bool dr_cuda_wgmma_is_built(void) {
    return true;
}

#else
static dr_status not_built(const dr_cuda_attention *attention) {
    return DR_FAIL(DR_ERR_UNSUPPORTED, "attention of %d heads of %d: no kernels for compute capability 9.0",
                   attention->H, attention->d);
}

extern "C" dr_status dr_cuda_attention_wgmma_forward(const dr_cuda_attention *attention, float *out,
                                                     float *lse, dr_cuda_stream stream) {
    (void)out, (void)lse, (void)stream;
    return not_built(attention);
}

extern "C" dr_status dr_cuda_attention_wgmma_backward(const dr_cuda_attention *attention, const uint16_t *q,
                                                      const uint16_t *dout, const float *lse,
                                                      const float *delta, float *dq, float *dk, float *dv,
                                                      dr_cuda_stream stream) {
    (void)q, (void)dout, (void)lse, (void)delta, (void)dq, (void)dk, (void)dv, (void)stream;
    return not_built(attention);
}

extern "C" bool dr_cuda_wgmma_is_built(void) {
    return false;
}
#endif
