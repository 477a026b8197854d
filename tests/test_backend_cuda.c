// The CUDA body against the CPU body, op by op: values, rows alone, the same bits twice. No device: skipped.
// labels: gpu
// Attention has a file of its own (test_attention_cuda.c).
#include "tests/cuda_check.h"

#include "core/model/lm.h"

// sizes: T, n_out, n_in
static void run_linear(dr_backend *b, const int64_t *sizes, results *r) {
    int64_t T = sizes[0], O = sizes[1], I = sizes[2];
    dr_weight *w = pack(b, O, I, op_normal(O * I, 0, 1));
    float *x = put(b, op_normal(T * I, 0, 1), T * I), *dy = put(b, op_normal(T * O, 0, 1), T * O);
    float *bias = put(b, op_normal(O, 0, 1), O), *y = put_poison(b, T * O), *plain = put_poison(b, T * O);
    float *dx = put_poison(b, T * I), *more = put(b, op_normal(T * I, 0, 1), T * I);
    float *dw = put(b, op_normal(O * I, 0, 1), O * I), *dbias = put(b, op_normal(O, 0, 1), O);
    float *rows = put_poison(b, T * I);
    void *gate_up = put_gated(b, op_normal(2 * T * I, 0, 2), 2 * T * I);
    void *dgate_up = put_gated(b, op_poison(2 * T * I), 2 * T * I);
    void *wide = put_gated(b, op_poison(T * O), T * O), *dwide = put_gated(b, op_normal(T * O, 0, 1), T * O);
    check_ok(b->ops->weight_rows(b, w, put_ids(b, op_ids(T, (int32_t)O), T), T, rows));
    give(r, "rows of a weight", b, rows, T * I, 0);
    check_ok(b->ops->linear_forward(b, w, x, T, bias, y));
    check_ok(b->ops->linear_forward(b, w, x, T, NULL, plain));
    check_ok(b->ops->linear_backward(b, w, x, dy, T, dx, false, dw, dbias));
    check_ok(b->ops->linear_backward(b, w, x, dy, T, more, true, dw, NULL));
    check_ok(b->ops->linear_backward(b, w, x, dy, T, NULL, false, dw, NULL));
    give(r, "linear with bias", b, y, T * O, forward);
    give(r, "linear", b, plain, T * O, forward);
    give(r, "dx", b, dx, T * I, gradient);
    give(r, "dx added", b, more, T * I, gradient);
    give(r, "dw", b, dw, O * I, gradient);
    give(r, "dbias", b, dbias, O, gradient);
    check_ok(b->ops->swiglu_linear_forward(b, w, gate_up, T, y));
    check_ok(b->ops->swiglu_linear_backward(b, w, gate_up, dy, T, dgate_up, dw));
    give(r, "linear of swiglu", b, y, T * O, forward);
    give_gated(r, "d of gate and up", b, dgate_up, 2 * T * I, gradient);
    give(r, "dw of swiglu", b, dw, O * I, gradient);
    check_ok(b->ops->gate_up_forward(b, w, x, T, wide));
    check_ok(b->ops->gate_up_backward(b, w, x, dwide, T, dx, dw));
    give_gated(r, "gate and up", b, wide, T * O, forward);
    give(r, "dx of gate and up", b, dx, T * I, gradient);
    give(r, "dw of gate and up", b, dw, O * I, gradient);
    b->ops->weight_destroy(b, w);
}

// sizes: m, n, k
static void run_gemm(dr_backend *b, const int64_t *sizes, results *r) {
    static const char *const names[] = {"a b", "aᵀ b", "a bᵀ", "aᵀ bᵀ"};
    int64_t m = sizes[0], n = sizes[1], k = sizes[2];
    float *left = put(b, op_normal(m * k, 0, 1), m * k), *right = put(b, op_normal(k * n, 0, 1), k * n);
    for (int variant = 0; variant < 4; variant++)
        for (int beta = 0; beta < 2; beta++) {
            float *c = beta ? put(b, op_normal(m * n, 0, 1), m * n) : put_poison(b, m * n);
            check_ok(b->ops->gemm(b, variant & 1, variant & 2, m, n, k, beta ? 0.3f : 1.0f, left, right,
                                  beta ? 0.7f : 0.0f, c));
            give(r, names[variant], b, c, m * n, forward);
        }
}

static void test_products(void **state) {
    (void)state;
    if (!cuda) skip();
    static const int64_t shapes[][3] = {{1, 1, 1},    {1, 7, 5},     {3, 33, 17},    {64, 64, 16},
                                        {65, 97, 70}, {5, 129, 600}, {130, 3, 1025}, {401, 45, 37}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        compare(run_linear, shapes[i], 100 * i);
        compare(run_gemm, shapes[i], 5000 + 100 * i);
    }
}

// sizes: T, D
static void run_norms(dr_backend *b, const int64_t *sizes, results *r) {
    int64_t T = sizes[0], D = sizes[1], n = T * D;
    float *x = put(b, op_normal(n, 0.5, 1), n), *dy = put(b, op_normal(n, 0, 1), n);
    float *w = put(b, op_normal(D, 1, 0.2), D), *bias = put(b, op_normal(D, 0, 1), D);
    float *y = put_poison(b, n), *mean = put_poison(b, T), *inv = put_poison(b, T);
    float *dx = put(b, op_normal(n, 0, 1), n), *dw = put(b, op_normal(D, 0, 1), D),
          *dbias = put(b, op_normal(D, 0, 1), D);
    b->ops->rmsnorm_forward(b, x, w, T, D, 1e-6f, y, inv);
    give(r, "rmsnorm", b, y, n, forward);
    give(r, "inv_rms", b, inv, T, forward);
    b->ops->rmsnorm_backward(b, dy, x, w, inv, T, D, dx, dw);
    b->ops->rmsnorm_backward(b, dy, x, w, inv, T, D, dx, NULL);
    give(r, "dx of rmsnorm", b, dx, n, gradient);
    give(r, "dw of rmsnorm", b, dw, D, gradient);
    b->ops->layernorm_forward(b, x, w, bias, T, D, 1e-5f, y, mean, inv);
    give(r, "layernorm", b, y, n, forward);
    give(r, "mean", b, mean, T, forward);
    give(r, "inv_std", b, inv, T, forward);
    b->ops->layernorm_backward(b, dy, x, w, mean, inv, T, D, dx, dw, dbias);
    b->ops->layernorm_backward(b, dy, x, w, mean, inv, T, D, dx, NULL, NULL);
    give(r, "dx of layernorm", b, dx, n, gradient);
    give(r, "dw of layernorm", b, dw, D, gradient);
    give(r, "dbias of layernorm", b, dbias, D, gradient);
    float *stream = put(b, op_normal(n, 0, 1), n), *sum = put(b, get(b, stream, n), n);
    float *turn = put_poison(b, n), *turn_inv = put_poison(b, T);
    b->ops->rmsnorm_residual_forward(b, x, w, T, D, 1e-6f, stream, y, inv);
    b->ops->add(b, x, n, sum);
    b->ops->rmsnorm_forward(b, sum, w, T, D, 1e-6f, turn, turn_inv);
    check_same_bits("rmsnorm of a sum and the two ops in turn", get(b, y, n), get(b, turn, n), n);
    check_same_bits("factor of a sum", get(b, inv, T), get(b, turn_inv, T), T);
    give(r, "sum under the norm", b, stream, n, 0);
    give(r, "rmsnorm of a sum", b, y, n, forward);
    b->ops->rmsnorm_forward(b, x, w, T, D, 1e-6f, x, NULL); // in place
    give(r, "rmsnorm in place", b, x, n, forward);
    b->ops->layernorm_forward(b, dy, w, bias, T, D, 1e-5f, y, NULL, NULL);
    give(r, "layernorm alone", b, y, n, forward);
}

static void test_norms(void **state) {
    (void)state;
    if (!cuda) skip();
    static const int64_t shapes[][2] = {{1, 2},   {3, 7}, {65, 257}, {20, 1030}, {sized(16500, 700), 3},
                                        {5, 4200}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) compare(run_norms, shapes[i], 100 * i);
}

// sizes: T, heads, d
static void run_heads(dr_backend *b, const int64_t *sizes, results *r) {
    int64_t T = sizes[0], heads = sizes[1], d = sizes[2], stride = heads * d + 9, n = T * stride;
    float *given = op_normal(n, 0.5, 1), *x = put(b, given, n), *alone = put(b, given, n);
    float *w = put(b, op_normal(d, 1, 0.2), d), *dx = put(b, op_normal(n, 0, 1), n);
    float *kept = put_poison(b, T * heads * d), *inv = put_poison(b, T * heads);
    float *dw = put(b, op_normal(d, 0, 1), d);
    b->ops->head_norm_forward(b, x, w, T, heads, d, stride, 1e-6f, kept, inv);
    b->ops->head_norm_forward(b, alone, w, T, heads, d, stride, 1e-6f, NULL, NULL);
    check_same_bits("norm by head that keeps nothing", get(b, alone, n), get(b, x, n), n);
    b->ops->head_norm_backward(b, dx, kept, w, inv, T, heads, d, stride, dw);
    give(r, "norm by head", b, x, n, forward);
    give(r, "heads before it", b, kept, T * heads * d, 0);
    give(r, "factor of heads", b, inv, T * heads, forward);
    give(r, "dx of a norm by head", b, dx, n, gradient);
    give(r, "dw of a norm by head", b, dw, d, gradient);
}

static void test_head_norms(void **state) {
    (void)state;
    if (!cuda) skip();
    static const int64_t shapes[][3] = {{1, 1, 2},    {3, 2, 7},    {65, 5, 64},
                                        {37, 8, 128}, {20, 3, 256}, {sized(2100, 80), 9, 33}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) compare(run_heads, shapes[i], 100 * i);
}

// sizes: T, D (even)
static void run_elements(dr_backend *b, const int64_t *sizes, results *r) {
    int64_t T = sizes[0], D = sizes[1], n = T * D, stride = 3 * D + 5;
    float *x = put(b, op_normal(n, 0, 2), n), *dy = put(b, op_normal(n, 0, 1), n);
    float *y = put_poison(b, n);
    float *heads = put(b, op_normal(T * stride, 0, 1), T * stride), *inv_freq = op_array(D, sizeof(float));
    int32_t *positions = put_ids(b, op_ids(T, 3000), T);
    for (int64_t i = 0; i < D / 2; i++) inv_freq[i] = (float)pow(10000, -2.0 * (double)i / (double)D);
    float *frequencies = put(b, inv_freq, D);
    b->ops->rope(b, heads, positions, frequencies, T, 3, D, stride, 1);
    give(r, "rope", b, heads, T * stride, forward);
    b->ops->rope(b, heads, positions, frequencies, T, 2, D, stride, -1);
    give(r, "rope back", b, heads, T * stride, forward);
    b->ops->gelu_forward(b, x, n, y);
    give(r, "gelu", b, y, n, forward);
    b->ops->add(b, dy, n, y);
    give(r, "add", b, y, n, forward);
    b->ops->gelu_backward(b, dy, x, n, dy); // in place
    give(r, "gelu's gradient", b, dy, n, gradient);
}

// sizes: T, D
static void run_tables(dr_backend *b, const int64_t *sizes, results *r) {
    enum { IDS = 23 };
    int64_t T = sizes[0], D = sizes[1];
    float *table = put(b, op_normal(IDS * D, 0, 1), IDS * D), *rows = put_poison(b, T * D);
    int32_t *ids = put_ids(b, op_ids(T, IDS), T);
    b->ops->embedding_forward(b, table, ids, T, D, rows);
    give(r, "embedding", b, rows, T * D, forward);
    b->ops->embedding_backward(b, rows, ids, T, D, table);
    give(r, "embedding's gradient", b, table, IDS * D, gradient);
}

static void run_optimizer(dr_backend *b, const int64_t *sizes, results *r) {
    int64_t n = sizes[0] * sizes[1];
    float *weights = put(b, op_normal(n, 0, 1), n), *g = put(b, op_normal(n, 0, 1), n);
    float *m = put(b, op_normal(n, 0, 0.1), n), *v = put(b, op_normal(n, 1, 0.1), n);
    const dr_adamw_settings settings = {1e-2f, 0.9f, 0.999f, 1e-8f, 0.1f, 3};
    b->ops->adamw(b, weights, g, m, v, n, 0.5f, &settings);
    give(r, "weights", b, weights, n, forward);
    give(r, "m", b, m, n, forward);
    give(r, "v", b, v, n, forward);
    float squares = (float)dr_sum_of_squares(b, g, n);
    give(r, "sum of squares", b, put(b, &squares, 1), 1, forward);
}

static void test_elements(void **state) {
    (void)state;
    if (!cuda) skip();
    static const int64_t shapes[][2] = {{1, 2}, {3, 14}, {65, 258}, {300, 34}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        compare(run_elements, shapes[i], 100 * i);
        compare(run_tables, shapes[i], 2000 + 100 * i);
        compare(run_optimizer, shapes[i], 4000 + 100 * i);
    }
    dr_backend *b = cuda;
    assert_true(dr_sum_of_squares(b, put_poison(b, 1), 0) == 0);
}

// ---- head ----

// sizes: T, V, D
static void run_head(dr_backend *b, const int64_t *sizes, results *r) {
    int64_t T = sizes[0], V = sizes[1], D = sizes[2];
    float *values = op_normal(V * D, 0, 0.3), *h = put(b, op_normal(T * D, 0, 1), T * D);
    float *dlogprob = put(b, op_normal(T, 0, 1), T);
    int32_t *targets = op_ids(T, (uint32_t)V), *on_device = put_ids(b, targets, T);
    dr_kept *sets[] = {NULL, op_kept(targets, T, V)};
    dr_weight *w = pack(b, V, D, values);
    float *logits = put_poison(b, T * V);
    check_ok(b->ops->linear_forward(b, w, h, T, NULL, logits));
    for (int i = 0; i < 2; i++) {
        float *logprob = put_poison(b, T), *entropy = put_poison(b, T), *lse = put_poison(b, T);
        float *stats = put_poison(b, T), *other = put_poison(b, T), *dh = put_poison(b, T * D),
              *dw = put(b, op_normal(V * D, 0, 1), V * D);
        check_ok(b->ops->head_forward(b, w, h, on_device, sets[i], T, 0.7f, logprob, entropy, lse));
        check_ok(b->ops->head_backward(b, w, h, on_device, sets[i], T, 0.7f, lse, dlogprob, dh, dw));
        b->ops->softmax_stats(b, logits, T, V, 0.7f, stats, other);
        if (sets[i]) b->ops->kept_lse(b, logits, T, V, 0.7f, sets[i], stats);
        float *z = get(b, logits, T * V), *l = get(b, stats, T), *got = get(b, logprob, T);
        check_same_bits("log-sum-exp of head and sampler", get(b, lse, T), l, T);
        check_same_bits("entropy of head and sampler", get(b, entropy, T), get(b, other, T), T);
        for (int64_t t = 0; t < T; t++) {
            float want = dr_logprob_of(z[t * V + targets[t]], 0.7f, l[t]);
            check_same_bits("log-probability of head and sampler", &got[t], &want, 1);
        }
        give(r, "log-probability", b, logprob, T, forward);
        give(r, "entropy", b, entropy, T, forward);
        give(r, "log-sum-exp", b, lse, T, forward);
        give(r, "dh", b, dh, T * D, gradient);
        give(r, "dw of the head", b, dw, V * D, gradient);
    }
    b->ops->weight_destroy(b, w);
}

static void test_head(void **state) {
    (void)state;
    if (!cuda) skip();
    static const int64_t shapes[][3] = {{1, 2, 3}, {13, 70, 33}, {129, 601, 40}, {300, 97, 17}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) compare(run_head, shapes[i], 100 * i);
}

// ---- bursts ----

// Each step of a burst, rows that go on, stop and idle, against the CPU's. The kept sets of all steps
// together are smaller than the vocabulary, so that each finds room. Rows that come to a new page take one,
// until the pool is at its end.
enum { BURST_ROWS = 300, BURST_STEPS = 4, BURST_V = 64, BURST_LIST = 8, BURST_POOL = 12 };

typedef struct burst_case {
    float *logits; // (BURST_STEPS, BURST_ROWS, BURST_V), host memory
    dr_sampling how[BURST_ROWS];
    dr_draw_key keys[BURST_ROWS];
    int32_t limits[BURST_ROWS], first[BURST_ROWS], first_byte[BURST_V + 1];
    uint8_t states[BURST_ROWS], next[2][256], bytes[BURST_V];
} burst_case;

typedef struct burst_lists {
    int32_t pages[BURST_ROWS][BURST_LIST], counts[BURST_ROWS];
} burst_lists;

static void burst_case_fill(burst_case *c) {
    memset(c, 0, sizeof *c);
    c->logits = op_normal(BURST_STEPS * BURST_ROWS * BURST_V, 0, 3);
    for (int32_t id = 0; id < BURST_V; id++) c->first_byte[id + 1] = id + 1;
    for (int32_t id = 0; id < BURST_V; id++) c->bytes[id] = (uint8_t)id;
    for (int32_t id = 0; id < 20; id++) c->next[0][id] = 1; // a stop: a token below 20, then one from 50 on
    for (int32_t id = 50; id < BURST_V; id++) c->next[1][id] = DR_STOP_REACHED;
    for (int32_t r = 0; r < BURST_ROWS; r++) {
        c->how[r] = (dr_sampling){r % 5 == 0 ? 0 : 1, r % 3 == 0 ? 1 : 0.3f};
        c->limits[r] = 1 + r % BURST_STEPS;
        c->first[r] = r % BURST_V;
        c->states[r] = (uint8_t)(r / 2 % 2);
        c->keys[r] = (dr_draw_key){.seed = (uint64_t)r << 32 | 5,
                                   .step = 3,
                                   .prompt = (uint32_t)r % 7,
                                   .sample = (uint32_t)r,
                                   .turn = (uint32_t)r % 4,
                                   .position = (uint32_t)r * 3};
    }
}

// ids [BURST_STEPS, BURST_ROWS] and positions: what each next pass would run.
static dr_status run_burst(dr_backend *b, const burst_case *c, dr_sampled *out, int32_t *counts, int32_t *ids,
                           int32_t *positions, burst_lists *lists) {
    int32_t pool[BURST_POOL], *list_of[BURST_ROWS];
    memset(lists, 0, sizeof *lists);
    for (int32_t i = 0; i < BURST_POOL; i++) pool[i] = 700 - i;
    for (int32_t r = 0; r < BURST_ROWS; r++) {
        list_of[r] = lists->pages[r];
        lists->counts[r] = c->first[r] / DR_KV_PAGE + 1;
    }
    const dr_burst_pages pages = {DR_KV_PAGE, BURST_POOL, pool, list_of, lists->counts, NULL, 0};
    const dr_stop_table stops = {{7, -1, -1, -1},
                                 put_bytes(b, c->next, sizeof c->next),
                                 put_bytes(b, c->first_byte, sizeof c->first_byte),
                                 put_bytes(b, c->bytes, sizeof c->bytes)};
    const dr_burst burst = {.n_rows = BURST_ROWS,
                            .V = BURST_V,
                            .n_steps = BURST_STEPS,
                            .settings = c->how,
                            .keys = c->keys,
                            .limits = c->limits,
                            .ids = c->first,
                            .positions = c->first,
                            .states = c->states,
                            .stops = &stops,
                            .pages = &pages};
    const int64_t width = BURST_ROWS * BURST_V;
    const size_t bytes = BURST_ROWS * sizeof(int32_t);
    float *logits = put(b, c->logits, BURST_STEPS * width);
    int32_t *next_ids = put_bytes(b, c->first, bytes), *next_positions = put_bytes(b, c->first, bytes);
    DR_TRY(b->ops->burst_begin(b, &burst));
    for (int step = 0; step < BURST_STEPS; step++) {
        DR_TRY(b->ops->burst_draw(b, logits + step * width, next_ids, next_positions));
        b->ops->copy_out(b, ids + step * BURST_ROWS, next_ids, bytes);
        b->ops->copy_out(b, positions + step * BURST_ROWS, next_positions, bytes);
    }
    dr_burst_room room;
    DR_TRY(b->ops->burst_end(b, out, counts, &room));
    assert_int_equal(room.n_fitted, BURST_STEPS);
    assert_true(room.n_ids >= BURST_ROWS * BURST_V);
    return DR_OK;
}

static void test_burst(void **state) {
    (void)state;
    if (!cuda) skip();
    enum { N = BURST_STEPS * BURST_ROWS };
    burst_case c;
    static dr_sampled want[N], got[N];
    static int32_t counts[2][BURST_ROWS], ids[2][N], positions[2][N];
    static burst_lists lists[2];
    int32_t n_taken = 0;
    burst_case_fill(&c);
    check_ok(run_burst(op_one, &c, want, counts[0], ids[0], positions[0], &lists[0]));
    check_ok(run_burst(cuda, &c, got, counts[1], ids[1], positions[1], &lists[1]));
    assert_memory_equal(&lists[1], &lists[0], sizeof lists[0]);
    for (int32_t r = 0; r < BURST_ROWS; r++) n_taken += lists[0].counts[r] - (c.first[r] / DR_KV_PAGE + 1);
    assert_int_equal(n_taken, BURST_POOL);
    assert_memory_equal(counts[1], counts[0], sizeof counts[0]);
    assert_memory_equal(ids[1], ids[0], sizeof ids[0]);
    assert_memory_equal(positions[1], positions[0], sizeof positions[0]);
    for (int r = 0; r < BURST_ROWS; r++)
        for (int at = r; at < counts[0][r] * BURST_ROWS; at += BURST_ROWS) {
            assert_int_equal(got[at].id, want[at].id);
            assert_int_equal(got[at].kept.n, want[at].kept.n);
            for (int32_t k = 0; k < want[at].kept.n; k++)
                assert_int_equal(got[at].kept.ids[k], want[at].kept.ids[k]);
            check_close("logprob", &got[at].logprob, &want[at].logprob, 1, 1e-5, 1e-5);
        }
    int bad = 5; // a row that is still drawing in the third step
    while (counts[0][bad] < 3) bad++;
    c.logits[(2 * BURST_ROWS + bad) * BURST_V + 11] = NAN;
    char text[64];
    snprintf(text, sizeof text, "row %d, step 2: logit 11 is", bad);
    check_error(run_burst(cuda, &c, got, counts[1], ids[1], positions[1], &lists[1]), DR_ERR_NUMERIC, text);
    free_all();
}

static void test_refused(void **state) {
    (void)state;
    if (!cuda) skip();
    dr_backend *b = cuda;
    float *x = put_poison(b, 64);
    const int32_t ends[] = {0, 1}, page = 0;
    const dr_sequences one = {1, ends, NULL};
    const dr_attention_chunk chunk = {0, 1, 0, &page};
    dr_weight *w = NULL;
    check_error(b->ops->attention_forward(b, x, x, x, 1, 1, &one, 3, 2, 1, x, x), DR_ERR_RANGE, "attention");
    check_error(b->ops->attention_forward(b, x, x, x, 1, 1, &one, 1, 1, 257, x, x), DR_ERR_RANGE, "257");
    check_error(b->ops->attention_cached(b, x, 1, x, x, &chunk, 1, 32, 1, 1, 1, x), DR_ERR_UNSUPPORTED,
                "pages of 32");
    check_error(b->ops->weight_create(b, 0, 3, &w), DR_ERR_RANGE, "weight");
    assert_string_equal(b->ops->name, "cuda");
}

// ---- rows of the other forward ops ----

enum { ROWS = 200 };
typedef struct row_case {
    int64_t D, n_out;
    float *x, *w, *bias, *table, *inv_freq; // device memory
    int32_t *ids;
    float *values; // of the weight, on the host
} row_case;
typedef void (*row_op)(dr_backend *b, const row_case *c, int64_t t0, int64_t T, float *out);

static void row_linear(dr_backend *b, const row_case *c, int64_t t0, int64_t T, float *out) {
    dr_weight *w = pack(b, c->n_out, c->D, c->values);
    check_ok(b->ops->linear_forward(b, w, c->x + t0 * c->D, T, c->bias, out));
    b->ops->weight_destroy(b, w);
}

static void row_gemm(dr_backend *b, const row_case *c, int64_t t0, int64_t T, float *out) {
    check_ok(b->ops->gemm(b, false, true, T, c->n_out, c->D, 0.3f, c->x + t0 * c->D, c->table, 0.0f, out));
}

static void row_rmsnorm(dr_backend *b, const row_case *c, int64_t t0, int64_t T, float *out) {
    b->ops->rmsnorm_forward(b, c->x + t0 * c->D, c->w, T, c->D, 1e-6f, out, NULL);
}

// Rows of two heads.
static void row_heads(dr_backend *b, const row_case *c, int64_t t0, int64_t T, float *out) {
    float *rows = get(b, c->x + t0 * c->D, T * c->D);
    b->ops->copy_in(b, out, rows, (size_t)(T * c->D) * sizeof(float));
    b->ops->head_norm_forward(b, out, c->w, T, 2, c->D / 2, c->D, 1e-6f, NULL, NULL);
}

static void row_layernorm(dr_backend *b, const row_case *c, int64_t t0, int64_t T, float *out) {
    b->ops->layernorm_forward(b, c->x + t0 * c->D, c->w, c->bias, T, c->D, 1e-6f, out, NULL, NULL);
}

static void row_rope(dr_backend *b, const row_case *c, int64_t t0, int64_t T, float *out) {
    float *rows = get(b, c->x + t0 * c->D, T * c->D);
    b->ops->copy_in(b, out, rows, (size_t)(T * c->D) * sizeof(float));
    b->ops->rope(b, out, c->ids + t0, c->inv_freq, T, 1, c->D, c->D, 1);
}

static void row_gate_up(dr_backend *b, const row_case *c, int64_t t0, int64_t T, float *out) {
    dr_weight *w = pack(b, c->n_out, c->D, c->values);
    void *gated = put_gated(b, op_poison(T * c->n_out), T * c->n_out);
    check_ok(b->ops->gate_up_forward(b, w, c->x + t0 * c->D, T, gated));
    const float *values = get_gated(b, gated, T * c->n_out);
    b->ops->copy_in(b, out, values, (size_t)(T * c->n_out) * sizeof *values);
    b->ops->weight_destroy(b, w);
}

// x [T, D] is gate and up.
static void row_swiglu_linear(dr_backend *b, const row_case *c, int64_t t0, int64_t T, float *out) {
    dr_weight *w = pack(b, c->n_out, c->D / 2, c->values);
    void *gated = put_gated(b, get(b, c->x + t0 * c->D, T * c->D), T * c->D);
    check_ok(b->ops->swiglu_linear_forward(b, w, gated, T, out));
    b->ops->weight_destroy(b, w);
}

static void row_gelu(dr_backend *b, const row_case *c, int64_t t0, int64_t T, float *out) {
    b->ops->gelu_forward(b, c->x + t0 * c->D, T * c->D, out);
}

static void row_embedding(dr_backend *b, const row_case *c, int64_t t0, int64_t T, float *out) {
    b->ops->embedding_forward(b, c->table, c->ids + t0, T, c->D, out);
}

static void row_stats(dr_backend *b, const row_case *c, int64_t t0, int64_t T, float *out) {
    float *entropy = put_poison(b, T);
    b->ops->softmax_stats(b, c->x + t0 * c->D, T, c->D, 0.7f, out, entropy);
}

static void row_head(dr_backend *b, const row_case *c, int64_t t0, int64_t T, float *out) {
    dr_weight *w = pack(b, c->n_out, c->D, c->values);
    float *entropy = put_poison(b, T), *lse = put_poison(b, T);
    check_ok(b->ops->head_forward(b, w, c->x + t0 * c->D, c->ids + t0, NULL, T, 0.7f, out, entropy, lse));
    b->ops->weight_destroy(b, w);
}

static void check_rows(const char *name, dr_backend *b, row_op op, const row_case *c, int64_t width) {
    static const int64_t sizes[] = {1, 2, 13, 64, 150};
    float *out = put_poison(b, ROWS * width);
    int kept = n_memory;
    op(b, c, 0, ROWS, out);
    float *want = get(b, out, ROWS * width);
    const int kept_arrays = op_n_arrays;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int64_t t0 = (int64_t)i; t0 + sizes[i] <= ROWS; t0 += 49 + 3 * (int64_t)i) {
            float *part = put_poison(b, sizes[i] * width);
            op(b, c, t0, sizes[i], part);
            char text[64];
            snprintf(text, sizeof text, "%s, %d rows from %d", name, (int)sizes[i], (int)t0);
            check_same_bits(text, get(b, part, sizes[i] * width), want + t0 * width, sizes[i] * width);
            while (n_memory > kept) {
                n_memory--;
                memory[n_memory].b->ops->memory_destroy(memory[n_memory].b, memory[n_memory].at);
            }
            while (op_n_arrays > kept_arrays) dr_free(op_arrays[--op_n_arrays]);
        }
}

static row_case row_make(dr_backend *b, int64_t D, int64_t n_out) {
    row_case c = {.D = D, .n_out = n_out};
    int64_t wide = D > n_out ? D : n_out;
    float *inv_freq = op_array(D, sizeof(float));
    for (int64_t i = 0; i < D; i++) inv_freq[i] = (float)pow(10000, -2.0 * (double)i / (double)D);
    c.values = op_normal(n_out * D, 0, 0.5);
    c.x = put(b, op_normal(ROWS * D, 0, 1), ROWS * D);
    c.w = put(b, op_normal(D, 1, 0.2), D);
    c.bias = put(b, op_normal(wide, 0, 1), wide);
    c.table = put(b, c.values, n_out * D);
    c.inv_freq = put(b, inv_freq, D);
    c.ids = put_ids(b, op_ids(ROWS, (uint32_t)n_out), ROWS);
    return c;
}

static void test_rows(void **state) {
    (void)state;
    if (!cuda) skip();
    static const int64_t sizes[][2] = {{34, 97}, {64, 32}, {1030, 41}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        row_case c = row_make(cuda, sizes[i][0], sizes[i][1]);
        check_rows("linear", cuda, row_linear, &c, c.n_out);
        check_rows("gate and up", cuda, row_gate_up, &c, c.n_out);
        check_rows("gemm", cuda, row_gemm, &c, c.n_out);
        check_rows("rmsnorm", cuda, row_rmsnorm, &c, c.D);
        check_rows("rmsnorm of heads", cuda, row_heads, &c, c.D);
        check_rows("layernorm", cuda, row_layernorm, &c, c.D);
        check_rows("rope", cuda, row_rope, &c, c.D);
        check_rows("linear of swiglu", cuda, row_swiglu_linear, &c, c.n_out);
        check_rows("gelu", cuda, row_gelu, &c, c.D);
        check_rows("embedding", cuda, row_embedding, &c, c.D);
        check_rows("softmax", cuda, row_stats, &c, 1);
        check_rows("head", cuda, row_head, &c, 1);
        free_all();
        c = row_make(cuda_bf16, sizes[i][0], sizes[i][1]);
        check_rows("bf16 linear", cuda_bf16, row_linear, &c, c.n_out);
        check_rows("bf16 gate and up", cuda_bf16, row_gate_up, &c, c.n_out);
        check_rows("bf16 linear of swiglu", cuda_bf16, row_swiglu_linear, &c, c.n_out);
        check_rows("bf16 head", cuda_bf16, row_head, &c, 1);
        free_all();
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cuda_test(test_products), cuda_test(test_norms), cuda_test(test_head_norms), cuda_test(test_elements),
        cuda_test(test_head),     cuda_test(test_burst), cuda_test(test_refused),    cuda_test(test_rows),
    };
    cuda_run(tests);
}
