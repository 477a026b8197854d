// Tile programs of the attention kernels with wgmma against the CPU's attention, on emulated tensor cores.
// labels: cpu
#include "tests/cuda_memory.h"
#include "tests/wgmma_batch.h"
#include "tests/wgmma_emulation.h"

// ---- calls, tiles, products ----

// Operands of a call and what the CPU's attention makes of them.
typedef struct call {
    batch b;
    int32_t H, G, d;
    float scale, *q, *k, *v, *dout; // q, dout [T, H, d], k, v [T, G, d]: what bf16 holds
    uint16_t *q_rows, *k_rows, *v_rows, *dout_rows;
    float *out, *lse, *delta, *dq, *dk, *dv; // of the CPU
} call;

static uint16_t *bf16_rows(const float *values, int64_t n) {
    uint16_t *rows = op_array(n, sizeof *rows);
    for (int64_t i = 0; i < n; i++) rows[i] = bf16_bits(values[i]);
    return rows;
}

static void open_call(call *c, const packing *from, int32_t H, int32_t G, int32_t d) {
    open_batch(&c->b, from, H / G);
    int64_t Q = c->b.T * H * d, K = c->b.T * G * d;
    c->H = H;
    c->G = G;
    c->d = d;
    c->scale = 1.0f / sqrtf((float)d);
    c->q = rounded(op_normal(Q, 0, 1), Q);
    c->k = rounded(op_normal(K, 0, 1), K);
    c->v = rounded(op_normal(K, 0, 1), K);
    c->dout = rounded(op_normal(Q, 0, 1), Q);
    c->q_rows = bf16_rows(c->q, Q);
    c->k_rows = bf16_rows(c->k, K);
    c->v_rows = bf16_rows(c->v, K);
    c->dout_rows = bf16_rows(c->dout, Q);
    c->out = op_poison(Q);
    c->lse = op_poison(c->b.T * H);
    c->dq = op_poison(Q);
    c->dk = op_poison(K);
    c->dv = op_poison(K);
    check_ok(op_one->ops->attention_forward(op_one, c->q, c->k, c->v, (int64_t)H * d, (int64_t)G * d,
                                            &c->b.sequences, H, G, d, c->out, c->lse));
    check_ok(op_one->ops->attention_backward(op_one, c->dout, c->q, c->k, c->v, c->out, c->lse,
                                             (int64_t)H * d, (int64_t)G * d, &c->b.sequences, H, G, d, c->dq,
                                             c->dk, c->dv));
    c->delta = op_poison(c->b.T * H);
    for (int64_t i = 0; i < c->b.T * H; i++) c->delta[i] = (float)op_dot(c->dout + i * d, c->out + i * d, d);
}

// The panels of a tile of `rows` rows; a box may have fewer.
static void copy_tile(uint32_t to, int rows, const tensor_map *map, int32_t head, int64_t row) {
    for (int p = 0; p < map->d / DR_WGMMA_PANEL; p++)
        emulate_tensor_copy(to + (uint32_t)(p * rows * DR_WGMMA_PITCH), map, p * DR_WGMMA_PANEL, head, row);
}

// out [64, n] = rows first … of a tile of left_rows times all n rows of another, along d columns.
static void dots(float (*out)[KEYS / 2], int32_t d, uint32_t left, int left_rows, int first, uint32_t right,
                 int n) {
    for (int k = 0; k < d / DR_WGMMA_DEPTH; k++) {
        const left_operand a = {dr_wgmma_along_columns(left, left_rows, first, k), NULL};
        emulate_wgmma(out[0], KEYS / 2, n, &a, dr_wgmma_along_columns(right, n, 0, k), false, k > 0);
    }
}

// Registers of the threads of a warpgroup, sums of a product in their fragments.
typedef struct fragments {
    float score[GROUP_THREADS][KEYS / 2], sum[GROUP_THREADS][64];
    float top[RESULT_ROWS], total[RESULT_ROWS];
} fragments;

// Scores become weights, sums are brought to the new maxima: by rows what the kernel does by lanes.
static void soften(fragments *f, const int32_t *limit, float scale, int32_t d) {
    float top[RESULT_ROWS];
    memcpy(top, f->top, sizeof top);
    for (int thread = 0; thread < GROUP_THREADS; thread++)
        for (int i = 0; i < KEYS / 2; i++) {
            int row = dr_fragment_row(thread, i);
            if (dr_fragment_column(thread, i) >= limit[row]) f->score[thread][i] = -INFINITY;
            top[row] = fmaxf(top[row], f->score[thread][i]);
        }
    for (int row = 0; row < RESULT_ROWS; row++)
        f->total[row] *= top[row] == -INFINITY ? 1.0f : exp2f((f->top[row] - top[row]) * scale);
    for (int thread = 0; thread < GROUP_THREADS; thread++) {
        for (int i = 0; i < KEYS / 2; i++) {
            int row = dr_fragment_row(thread, i);
            float base = top[row] == -INFINITY ? 0.0f : top[row];
            f->score[thread][i] = exp2f((f->score[thread][i] - base) * scale);
            f->total[row] += f->score[thread][i];
        }
        for (int i = 0; i < d / 2; i++) {
            int row = dr_fragment_row(thread, i);
            f->sum[thread][i] *= top[row] == -INFINITY ? 1.0f : exp2f((f->top[row] - top[row]) * scale);
        }
    }
    memcpy(f->top, top, sizeof top);
}

// sum += the fragments in score, rounded, times the rows of a tile.
static void weigh(float *sum, int32_t d, const float (*score)[KEYS / 2], int keys, uint32_t tile) {
    static uint32_t registers[GROUP_THREADS][4];
    const left_operand left = {0, registers};
    for (int k = 0; k < keys / DR_WGMMA_DEPTH; k++) {
        for (int thread = 0; thread < GROUP_THREADS; thread++)
            for (int r = 0; r < 4; r++) {
                const float *pair = &score[thread][8 * k + 2 * r];
                registers[thread][r] = bf16_pair(pair[0], pair[1]);
            }
        emulate_wgmma(sum, 64, d, &left, dr_wgmma_along_rows(tile, keys, k), true, true);
    }
}

static const dr_query *query_at(const call *c, const dr_query_tile *tile, int r) {
    int32_t query = r / (c->H / c->G);
    return query < tile->n_queries ? &c->b.queries[tile->query + query] : NULL;
}

// One warpgroup's part of a block of the forward kernel: what attention_wgmma.cu does, in its order.
static void run_forward(const call *c, const dr_query_tile *tile, int32_t g, int own, float *out,
                        float *lse) {
    static fragments f;
    const int32_t group = c->H / c->G, d = c->d;
    const int first = own * DR_WGMMA_ROWS;
    const uint32_t queries = 0, keys = (uint32_t)(TILE * d * 2), values = keys + (uint32_t)(KEYS * d * 2);
    const dr_span *span = &c->b.spans[tile->span];
    const tensor_map key_map = {c->k_rows, c->b.T, c->G, d, 1, KEYS},
                     value_map = {c->v_rows, c->b.T, c->G, d, 1, KEYS};
    const float scale = c->scale * 1.44269504f;
    int32_t limit[RESULT_ROWS];
    const dr_query *query[RESULT_ROWS];
    shared_clear();
    for (int r = 0; r < RESULT_ROWS; r++) {
        query[r] =
            (first + r) / group < tile->n_queries ? &c->b.queries[tile->query + (first + r) / group] : NULL;
        f.top[r] = -INFINITY;
        f.total[r] = 0.0f;
        for (int e = 0; e < d; e++) {
            int64_t at =
                query[r] ? ((int64_t)query[r]->row * c->H + g * group + (first + r) % group) * d + e : 0;
            uint16_t bits = query[r] ? bf16_bits(c->q[at]) : 0;
            memcpy(shared_memory + queries + dr_panel_offset(first + r, e, TILE), &bits, sizeof bits);
        }
    }
    memset(f.sum, 0, sizeof f.sum);
    for (int32_t j = 0; j < dr_key_steps(span, tile->n_keys, KEYS); j++) {
        copy_tile(keys, KEYS, &key_map, g, dr_step_row(span, j, KEYS));
        copy_tile(values, KEYS, &value_map, g, dr_step_row(span, j, KEYS));
        dots(f.score, d, queries, TILE, first, keys, KEYS);
        for (int r = 0; r < RESULT_ROWS; r++)
            limit[r] = dr_step_limit(span, j, KEYS, query[r] ? query[r]->seen : 0);
        soften(&f, limit, scale, d);
        weigh(f.sum[0], d, f.score, KEYS, values);
    }
    for (int thread = 0; thread < GROUP_THREADS; thread++)
        for (int i = 0; i < d / 2; i++) {
            int r = dr_fragment_row(thread, i);
            if (!query[r]) continue;
            int64_t row = (int64_t)query[r]->row * c->H + g * group + (first + r) % group;
            out[row * d + dr_fragment_column(thread, i)] = f.sum[thread][i] / f.total[r];
            lse[row] = f.top[r] * c->scale + logf(f.total[r]);
        }
}

// Weights are rounded to 8 bits of mantissa, scores and sums are not.
static const double weights_rounded = 3e-3, scores_exact = 1e-5;

static void check_forward(const packing *from, int32_t H, int32_t G, int32_t d) {
    static call c;
    static dr_query_tile tiles[MAX_ROWS];
    open_call(&c, from, H, G, d);
    int64_t Q = c.b.T * H * d, n = dr_plan_wide_tiles(c.b.spans, from->n, H / G, c.b.starts, tiles);
    float *out = op_poison(Q), *lse = op_poison(c.b.T * H);
    for (int64_t i = 0; i < n * G; i++)
        for (int own = 0; own < DR_WGMMA_CONSUMERS; own++)
            run_forward(&c, &tiles[i / G], (int32_t)(i % G), own, out, lse);
    op_close("attention", out, op_double(c.out, Q), Q, weights_rounded * weights_rounded);
    op_close("log-sum-exp of scores", lse, op_double(c.lse, c.b.T * H), c.b.T * H,
             scores_exact * scores_exact);
    op_free_arrays();
}

// ---- gradient ----

static const double gradients_rounded = 6e-3;

static float weight_of(const call *c, float score, int64_t row) {
    return exp2f(score * c->scale * 1.44269504f - c->lse[row] * 1.44269504f);
}

// One warpgroup's part of a block of dq's kernel.
static void run_dq(const call *c, const dr_query_tile *tile, int32_t g, int own, float *dq) {
    static float score[GROUP_THREADS][KEYS / 2], dot[GROUP_THREADS][KEYS / 2], sum[GROUP_THREADS][64];
    const int32_t group = c->H / c->G, d = c->d, most = dr_wgmma_queries(group);
    const int first = own * DR_WGMMA_ROWS;
    const uint32_t queries = 0, douts = (uint32_t)(TILE * d * 2), keys = 2 * douts,
                   values = keys + (uint32_t)(KEYS * d * 2);
    const dr_span *span = &c->b.spans[tile->span];
    const int64_t row = c->b.queries[tile->query].row;
    const tensor_map key_map = {c->k_rows, c->b.T, c->G, d, 1, KEYS},
                     value_map = {c->v_rows, c->b.T, c->G, d, 1, KEYS},
                     query_map = {c->q_rows, c->b.T, c->H, d, group, most},
                     dout_map = {c->dout_rows, c->b.T, c->H, d, group, most};
    shared_clear();
    copy_tile(queries, TILE, &query_map, g * group, row);
    copy_tile(douts, TILE, &dout_map, g * group, row);
    memset(sum, 0, sizeof sum);
    for (int32_t j = 0; j < dr_key_steps(span, tile->n_keys, KEYS); j++) {
        copy_tile(keys, KEYS, &key_map, g, dr_step_row(span, j, KEYS));
        copy_tile(values, KEYS, &value_map, g, dr_step_row(span, j, KEYS));
        dots(score, d, queries, TILE, first, keys, KEYS);
        dots(dot, d, douts, TILE, first, values, KEYS);
        for (int thread = 0; thread < GROUP_THREADS; thread++)
            for (int i = 0; i < KEYS / 2; i++) {
                int r = dr_fragment_row(thread, i);
                const dr_query *query = query_at(c, tile, first + r);
                int32_t limit = dr_step_limit(span, j, KEYS, query ? query->seen : 0);
                if (!query) score[thread][i] = 0.0f;
                if (!query) continue;
                int64_t at = (int64_t)query->row * c->H + g * group + (first + r) % group;
                bool is_seen = dr_fragment_column(thread, i) < limit;
                float weight = is_seen ? weight_of(c, score[thread][i], at) : 0.0f;
                score[thread][i] = weight * (dot[thread][i] - c->delta[at]) * c->scale;
            }
        weigh(sum[0], d, score, KEYS, keys);
    }
    for (int thread = 0; thread < GROUP_THREADS; thread++)
        for (int i = 0; i < d / 2; i++) {
            int r = dr_fragment_row(thread, i);
            const dr_query *query = query_at(c, tile, first + r);
            if (!query) continue;
            int64_t at = (int64_t)query->row * c->H + g * group + (first + r) % group;
            dq[at * d + dr_fragment_column(thread, i)] = sum[thread][i];
        }
}

// What one stage of 64 rows of a view gives to dk and dv.
typedef struct key_sums {
    float dk[GROUP_THREADS][64], dv[GROUP_THREADS][64];
} key_sums;

static void add_view(const call *c, const dr_key_tile *tile, const dr_view *at, int32_t g, int first,
                     uint32_t keys, uint32_t values, uint32_t queries, uint32_t douts, key_sums *sums) {
    static float score[GROUP_THREADS][KEYS / 2], dot[GROUP_THREADS][KEYS / 2];
    enum { N = DR_WGMMA_ROWS };
    const int32_t group = c->H / c->G, n_keys = c->b.spans[tile->span].n_rows - tile->first;
    dots(score, c->d, keys, KEYS, first, queries, N);
    dots(dot, c->d, values, KEYS, first, douts, N);
    for (int thread = 0; thread < GROUP_THREADS; thread++)
        for (int i = 0; i < N / 2; i++) {
            int key = first + dr_fragment_row(thread, i), r = dr_fragment_column(thread, i);
            bool is_there = r < at->n * group;
            int64_t row =
                is_there ? (c->b.spans[at->viewer].row + at->first + r / group) * c->H + g * group + r % group
                         : 0;
            bool is_seen = is_there && key < n_keys && dr_view_low(at, tile, key, group) <= r;
            score[thread][i] = is_seen ? weight_of(c, score[thread][i], row) : 0.0f;
            dot[thread][i] =
                score[thread][i] * (dot[thread][i] - (is_there ? c->delta[row] : 0.0f)) * c->scale;
        }
    weigh(sums->dv[0], c->d, score, N, douts);
    weigh(sums->dk[0], c->d, dot, N, queries);
}

// One warpgroup's part of a block of dk and dv's kernel.
static void run_dkv(const call *c, const dr_key_tile *tile, int32_t g, int own, float *dk, float *dv) {
    static key_sums sums;
    const int32_t group = c->H / c->G, d = c->d, most = dr_tile_queries(group);
    const int first = own * DR_WGMMA_ROWS;
    const uint32_t keys = 0, values = (uint32_t)(KEYS * d * 2), queries = 2 * values,
                   douts = queries + (uint32_t)(DR_WGMMA_ROWS * d * 2);
    const dr_span *span = &c->b.spans[tile->span];
    const int32_t last = tile->span + span->n_sharers;
    const tensor_map key_map = {c->k_rows, c->b.T, c->G, d, 1, KEYS},
                     value_map = {c->v_rows, c->b.T, c->G, d, 1, KEYS},
                     query_map = {c->q_rows, c->b.T, c->H, d, group, most},
                     dout_map = {c->dout_rows, c->b.T, c->H, d, group, most};
    shared_clear();
    memset(shared_memory + queries, 0, (size_t)(2 * DR_WGMMA_ROWS * d * 2));
    copy_tile(keys, KEYS, &key_map, g, span->row + tile->first);
    copy_tile(values, KEYS, &value_map, g, span->row + tile->first);
    memset(&sums, 0, sizeof sums);
    dr_view at = dr_view_from(c->b.spans, tile->span, tile->first, last, most);
    for (; at.n > 0; at = dr_view_from(c->b.spans, at.viewer, at.first + at.n, last, most)) {
        const int64_t row = c->b.spans[at.viewer].row + at.first;
        copy_tile(queries, DR_WGMMA_ROWS, &query_map, g * group, row);
        copy_tile(douts, DR_WGMMA_ROWS, &dout_map, g * group, row);
        add_view(c, tile, &at, g, first, keys, values, queries, douts, &sums);
    }
    for (int thread = 0; thread < GROUP_THREADS; thread++)
        for (int i = 0; i < d / 2; i++) {
            int key = first + dr_fragment_row(thread, i);
            if (tile->first + key >= span->n_rows) continue;
            int64_t to = ((span->row + tile->first + key) * c->G + g) * d + dr_fragment_column(thread, i);
            dk[to] = sums.dk[thread][i];
            dv[to] = sums.dv[thread][i];
        }
}

static void check_backward(const packing *from, int32_t H, int32_t G, int32_t d) {
    static call c;
    static dr_query_tile tiles[MAX_ROWS];
    static dr_key_tile key_tiles[MAX_ROWS];
    open_call(&c, from, H, G, d);
    int64_t Q = c.b.T * H * d, K = c.b.T * G * d;
    int64_t n = dr_plan_wide_tiles(c.b.spans, from->n, H / G, c.b.starts, tiles),
            n_keys = dr_plan_key_tiles(c.b.spans, from->n, KEYS, key_tiles);
    float *dq = op_poison(Q), *dk = op_poison(K), *dv = op_poison(K);
    for (int own = 0; own < DR_WGMMA_CONSUMERS; own++) {
        for (int64_t i = 0; i < n * G; i++) run_dq(&c, &tiles[i / G], (int32_t)(i % G), own, dq);
        for (int64_t i = 0; i < n_keys * G; i++)
            run_dkv(&c, &key_tiles[i / G], (int32_t)(i % G), own, dk, dv);
    }
    const double limit = gradients_rounded * gradients_rounded;
    op_close("dq", dq, op_double(c.dq, Q), Q, limit);
    op_close("dk", dk, op_double(c.dk, K), K, limit);
    op_close("dv", dv, op_double(c.dv, K), K, limit);
    op_free_arrays();
}

// With 64 heads to a key head only short packings: a tile has two queries, and the emulation is slow.
static void check_all(void (*check)(const packing *from, int32_t H, int32_t G, int32_t d)) {
    static const int32_t heads[][3] = {{1, 1, 64}, {2, 2, 128}, {3, 1, 128}, {14, 2, 64}, {64, 1, 64}};
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++)
        for (int p = 0; p < (heads[i][0] < 64 ? N_PACKINGS : 2); p++)
            check(&packings[p], heads[i][0], heads[i][1], heads[i][2]);
}

static void test_forward(void **state) {
    (void)state;
    check_all(check_forward);
}

static void test_backward(void **state) {
    (void)state;
    check_all(check_backward);
}

int main(void) {
    const struct CMUnitTest tests[] = {op_test(test_forward), op_test(test_backward)};
    return cmocka_run_group_tests(tests, op_group_setup, op_group_teardown);
}
