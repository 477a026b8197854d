// The attention kernels for compute capability 9.0, as far as a host can run them: index arithmetic over all
// its ranges, and their tile programs on emulated tensor cores against the CPU's attention.
// labels: cpu
#include "tests/cuda_memory.h"
#include "tests/wgmma_emulation.h"

#include "cuda/attention_plan.h"

enum { MAX_SPANS = 9, MAX_ROWS = 400, TILE = DR_WGMMA_CONSUMERS * DR_WGMMA_ROWS, KEYS = 128 };

typedef struct packing {
    int32_t n, lengths[MAX_SPANS], prefix[MAX_SPANS];
} packing;

static const packing packings[] = {
    {1, {1}, {-1}},
    {3, {1, 5, 17}, {-1, -1, -1}},
    {2, {128, 129}, {-1, -1}},
    {9, {19, 18, 0, 61, 0, 5, 50, 3, 33}, {-1, 0, 0, 0, -1, 4, -1, 6, 6}},
    {4, {150, 5, 140, 70}, {-1, 0, 0, -1}},
};
enum { N_PACKINGS = sizeof packings / sizeof *packings };

typedef struct batch {
    const packing *from;
    dr_sequences sequences;
    int32_t cu[MAX_SPANS + 1];
    int64_t starts[MAX_SPANS + 1], T;
    dr_span spans[MAX_SPANS];
    dr_query queries[MAX_ROWS];
} batch;

static void open_batch(batch *b, const packing *from, int32_t group) {
    *b = (batch){.from = from, .sequences = {from->n, b->cu, from->prefix}};
    for (int32_t s = 0; s < from->n; s++) b->starts[s + 1] = b->cu[s + 1] = b->cu[s] + from->lengths[s];
    for (int32_t s = 0; s < from->n; s++) b->spans[s] = dr_span_of_sequence(&b->sequences, s);
    b->T = b->cu[from->n];
    assert_true(b->T <= MAX_ROWS);
    assert_int_equal(dr_plan_queries(b->spans, from->n, group, false, b->queries), 0);
}

// ---- shared memory and registers ----

// Every element has a place of its own, the one where a tensor copy puts it.
static void test_panels(void **state) {
    (void)state;
    for (int rows = 64; rows <= 128; rows += 64)
        for (int columns = 64; columns <= 128; columns += 64) {
            static uint16_t values[128 * 128];
            const tensor_map map = {values, rows, 1, columns, 1, rows};
            for (int i = 0; i < rows * columns; i++) values[i] = (uint16_t)i;
            shared_clear();
            for (int p = 0; p < columns / DR_WGMMA_PANEL; p++)
                emulate_tensor_copy(2048 + (uint32_t)(p * rows * DR_WGMMA_PITCH), &map, p * DR_WGMMA_PANEL, 0,
                                    0);
            for (int row = 0; row < rows; row++)
                for (int column = 0; column < columns; column++) {
                    int32_t at = dr_panel_offset(row, column, rows);
                    assert_true(at >= 0 && at < rows * columns * 2);
                    assert_int_equal(shared_bf16(2048 + (uint32_t)at), row * columns + column);
                }
        }
}

// Descriptors name the elements that they should, wherever in shared memory the tile stands.
static void test_descriptors(void **state) {
    (void)state;
    for (int rows = 64; rows <= 128; rows += 64)
        for (uint32_t tile = 0; tile + (uint32_t)rows * 256 <= SHARED_BYTES; tile += 1024) {
            for (int step = 0; step < 128 / DR_WGMMA_DEPTH; step++)
                for (int first = 0; first < rows; first += 8) {
                    uint64_t descriptor = dr_wgmma_along_columns(tile, rows, first, step);
                    for (int mn = 0; mn < rows - first; mn += 5)
                        for (int k = 0; k < DR_WGMMA_DEPTH; k++)
                            assert_int_equal(operand_address(descriptor, mn, k, false),
                                             tile +
                                                 (uint32_t)dr_panel_offset(first + mn, step * 16 + k, rows));
                }
            for (int step = 0; step < rows / DR_WGMMA_DEPTH; step++) {
                uint64_t descriptor = dr_wgmma_along_rows(tile, rows, step);
                for (int mn = 0; mn < 128; mn++)
                    for (int k = 0; k < DR_WGMMA_DEPTH; k++)
                        assert_int_equal(operand_address(descriptor, mn, k, true),
                                         tile + (uint32_t)dr_panel_offset(step * 16 + k, mn, rows));
            }
        }
}

// Each element of a result has one owner; eight sums in a row are a left operand's registers.
static void test_fragments(void **state) {
    (void)state;
    int owners[RESULT_ROWS][MOST_COLUMNS] = {{0}};
    for (int thread = 0; thread < GROUP_THREADS; thread++)
        for (int i = 0; i < MOST_COLUMNS / 2; i++) {
            int row = dr_fragment_row(thread, i), column = dr_fragment_column(thread, i);
            assert_int_equal(row, result_row(thread, i));
            assert_int_equal(column, result_column(thread, i));
            owners[row][column]++;
        }
    for (int i = 0; i < RESULT_ROWS * MOST_COLUMNS; i++)
        assert_int_equal(owners[i / MOST_COLUMNS][i % MOST_COLUMNS], 1);
    for (int step = 0; step < MOST_COLUMNS / DR_WGMMA_DEPTH; step++) {
        static uint32_t registers[GROUP_THREADS][4];
        for (int thread = 0; thread < GROUP_THREADS; thread++)
            for (int r = 0; r < 4; r++)
                for (int half = 0; half < 2; half++) {
                    int i = 8 * step + 2 * r + half;
                    uint32_t value =
                        (uint32_t)(dr_fragment_row(thread, i) * 128 + dr_fragment_column(thread, i));
                    registers[thread][r] = half ? registers[thread][r] | value << 16 : value;
                }
        const left_operand left = {0, registers};
        for (int row = 0; row < RESULT_ROWS; row++)
            for (int k = 0; k < DR_WGMMA_DEPTH; k++)
                assert_int_equal(left_element(&left, row, k), row * 128 + step * 16 + k);
    }
}

// ---- steps and tiles ----

// The rows of k that row t sees, by the words of backend.h; returns their number.
static int32_t rows_seen(const batch *b, int32_t t, int32_t *rows) {
    int32_t s = 0, n = 0;
    while (b->cu[s + 1] <= t) s++;
    int32_t before = dr_prefix_of(&b->sequences, s);
    for (int32_t j = before < 0 ? 0 : b->cu[before]; before >= 0 && j < b->cu[before + 1]; j++) rows[n++] = j;
    for (int32_t j = b->cu[s]; j <= t; j++) rows[n++] = j;
    return n;
}

// A query meets each key that it sees once, in their order; a query that is not there meets none.
static void check_query(const batch *b, const dr_span *span, const dr_query *query, int32_t n_steps,
                        int32_t keys) {
    int32_t rows[MAX_ROWS], met = 0, n = rows_seen(b, query->row, rows);
    for (int32_t j = 0; j < n_steps; j++) {
        int32_t limit = dr_step_limit(span, j, keys, query->seen);
        int64_t first = dr_step_row(span, j, keys);
        assert_true(first >= 0 && first < b->T);
        for (int32_t i = 0; i < keys && i < limit; i++) {
            assert_true(met < n);
            assert_int_equal(first + i, rows[met++]);
        }
        assert_true(dr_step_limit(span, j, keys, 0) <= 0);
    }
    assert_int_equal(met, n);
}

static void check_tiles(const batch *b, int32_t group) {
    dr_query_tile tiles[MAX_ROWS];
    int32_t owned[MAX_ROWS] = {0};
    int64_t most = 0, n = dr_plan_wide_tiles(b->spans, b->from->n, group, b->starts, tiles);
    for (int32_t s = 0; s < b->from->n; s++) most += dr_span_wide_tiles(&b->spans[s], group);
    assert_int_equal(n, most);
    for (int64_t i = 0; i < n; i++) {
        const dr_span *span = &b->spans[tiles[i].span];
        int32_t last = tiles[i].query + tiles[i].n_queries - 1;
        assert_true(tiles[i].n_queries > 0 && tiles[i].n_queries * group <= TILE && tiles[i].first_key == 0);
        assert_true(i == 0 || tiles[i - 1].n_keys >= tiles[i].n_keys);
        assert_int_equal(tiles[i].n_keys, b->queries[last].seen);
        for (int32_t q = tiles[i].query; q <= last; q++) {
            assert_int_equal(b->queries[q].row, b->queries[tiles[i].query].row + q - tiles[i].query);
            assert_true(b->queries[q].row >= span->row && b->queries[q].row < span->row + span->n_rows);
            owned[b->queries[q].row]++;
            for (int32_t keys = 64; keys <= 128; keys += 64)
                check_query(b, span, &b->queries[q], dr_key_steps(span, tiles[i].n_keys, keys), keys);
        }
    }
    for (int64_t t = 0; t < b->T; t++) assert_int_equal(owned[t], 1);
}

static void test_tiles(void **state) {
    (void)state;
    static batch b;
    for (int32_t group = 1; group <= DR_CUDA_MMA_ROWS; group++)
        for (int p = 0; p < N_PACKINGS; p++) {
            open_batch(&b, &packings[p], group);
            check_tiles(&b, group);
        }
    assert_true(dr_wgmma_takes(1, 64) && dr_wgmma_takes(64, 128));
    assert_false(dr_wgmma_takes(65, 64) || dr_wgmma_takes(1, 80) || dr_wgmma_takes(1, 256));
}

// ---- tile programs ----

// Operands of a call and what the CPU's attention makes of them.
typedef struct call {
    batch b;
    int32_t H, G, d;
    float scale, *q, *k, *v, *out, *lse; // q [T, H, d], k and v [T, G, d]: what bf16 holds
    uint16_t *k_rows, *v_rows;
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
    c->out = op_poison(Q);
    c->lse = op_poison(c->b.T * H);
    c->k_rows = bf16_rows(c->k, K);
    c->v_rows = bf16_rows(c->v, K);
    check_ok(op_one->ops->attention_forward(op_one, c->q, c->k, c->v, (int64_t)H * d, (int64_t)G * d,
                                            &c->b.sequences, H, G, d, c->out, c->lse));
}

static void copy_tile(uint32_t to, const tensor_map *map, int32_t head, int64_t row) {
    int rows = map->box_rows * map->box_heads;
    for (int p = 0; p < map->d / DR_WGMMA_PANEL; p++)
        emulate_tensor_copy(to + (uint32_t)(p * rows * DR_WGMMA_PITCH), map, p * DR_WGMMA_PANEL, head, row);
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
        copy_tile(keys, &key_map, g, dr_step_row(span, j, KEYS));
        copy_tile(values, &value_map, g, dr_step_row(span, j, KEYS));
        for (int k = 0; k < d / DR_WGMMA_DEPTH; k++) {
            const left_operand left = {dr_wgmma_along_columns(queries, TILE, first, k), NULL};
            emulate_wgmma(f.score[0], KEYS / 2, KEYS, &left, dr_wgmma_along_columns(keys, KEYS, 0, k), false,
                          k > 0);
        }
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

static void test_forward(void **state) {
    (void)state;
    static const int32_t heads[][3] = {{1, 1, 64}, {2, 2, 128}, {3, 1, 128}, {14, 2, 64}, {64, 1, 64}};
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++)
        for (int p = 0; p < N_PACKINGS; p++)
            check_forward(&packings[p], heads[i][0], heads[i][1], heads[i][2]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        op_test(test_panels), op_test(test_descriptors), op_test(test_fragments),
        op_test(test_tiles),  op_test(test_forward),
    };
    return cmocka_run_group_tests(tests, op_group_setup, op_group_teardown);
}
