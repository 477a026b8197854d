// Passes of the decode loop whose rows the CPU's threads share out: one thread's bits, and fair shares.
// labels: cpu
#include <omp.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "core/base/alloc.h"
#include "core/base/rng.h"
#include "core/compute/cpu_internal.h"
#include "core/model/lm.h"
#include "tests/check.h"

enum { SEQUENCES = 45, STEPS = 18, VOCAB = 131, LONGEST = 400, PAGES = 400 };

// ---- the same bits ----

// Sequences of 1 to 30 positions and one of LONGEST decode STEPS tokens each; the logits of all steps.
static void decode(dr_precision precision, int threads, bool qk_norm, float *out) {
    dr_backend *b = NULL;
    dr_lm *lm = NULL;
    dr_kv_cache *kv = NULL;
    dr_lm_config config;
    dr_lm_chunk chunks[SEQUENCES];
    int32_t ids[LONGEST + STEPS * SEQUENCES];
    float *logits = NULL;
    dr_rng rng = dr_rng_make(3, 1);
    for (size_t i = 0; i < sizeof ids / sizeof *ids; i++) ids[i] = (int32_t)dr_rng_below(&rng, VOCAB);
    check_ok(dr_backend_cpu_create(precision, threads, &b));
    check_ok(dr_lm_preset("tiny", VOCAB, &config));
    config.qk_norm = qk_norm;
    config.qkv_bias = config.tied_head = !qk_norm;
    check_ok(dr_lm_create(b, &config, 7, &lm));
    check_ok(dr_kv_create(lm, PAGES, SEQUENCES, &kv));
    check_ok(dr_memory_create(b, &logits, "logits", SEQUENCES * VOCAB, sizeof(float)));
    for (int s = 0; s < SEQUENCES; s++) {
        chunks[s] = (dr_lm_chunk){.n = s == 3 ? LONGEST : 1 + s * 7 % 30, .ids = ids + s};
        if (s == 3) chunks[s].ids = ids;
        check_ok(dr_kv_open(kv, &chunks[s].seq));
    }
    check_ok(dr_lm_decode(lm, kv, chunks, SEQUENCES, NULL));
    for (int step = 0; step < STEPS; step++) {
        for (int s = 0; s < SEQUENCES; s++)
            chunks[s] = (dr_lm_chunk){chunks[s].seq, 1, ids + LONGEST + step * SEQUENCES + s, true};
        check_ok(dr_lm_decode(lm, kv, chunks, SEQUENCES, logits));
        b->ops->copy_out(b, out + step * SEQUENCES * VOCAB, logits, SEQUENCES * VOCAB * sizeof(float));
    }
    if (threads > 1) assert_non_null(dr_cpu_state_of(b)->singles); // the way that is meant was taken
    b->ops->memory_destroy(b, logits);
    dr_kv_destroy(kv);
    dr_lm_destroy(lm);
    dr_backend_destroy(b);
}

static void check_threads(dr_precision precision, bool qk_norm) {
    enum { N = STEPS * SEQUENCES * VOCAB };
    float *want = NULL, *got = NULL;
    check_ok(dr_alloc(&want, "logits", N, sizeof(float)));
    check_ok(dr_alloc(&got, "logits", N, sizeof(float)));
    decode(precision, 1, qk_norm, want);
    for (int threads = 2; threads <= 5; threads++) { // 45 rows: at least 8 each
        char name[64];
        snprintf(name, sizeof name, "logits of %d threads", threads);
        memset(got, 0xFF, N * sizeof(float));
        decode(precision, threads, qk_norm, got);
        check_same_bits(name, got, want, N);
    }
    dr_free(want);
    dr_free(got);
}

static void test_fp32(void **state) {
    (void)state;
    check_threads(DR_FP32, false);
    check_threads(DR_FP32, true);
}

static void test_bf16(void **state) {
    (void)state;
    dr_cpu_bf16_body(DR_BF16_LIBRARY);
    check_threads(DR_BF16, false);
    check_threads(DR_BF16, true);
    dr_cpu_bf16_body(DR_BF16_LANES);
    check_threads(DR_BF16, true);
    dr_cpu_bf16_body(DR_BF16_CHOSEN);
}

// ---- shares ----

// Whatever the rows are: in order, none empty, none left out, and no part above its share by more than a row.
static void test_shares(void **state) {
    (void)state;
    enum { MOST_ROWS = 300, MOST_PARTS = 40 };
    dr_attention_chunk chunks[MOST_ROWS];
    int32_t begins[MOST_PARTS + 1];
    dr_rng rng = dr_rng_make(11, 2);
    for (int round = 0; round < 2000; round++) {
        int32_t n_parts = 1 + (int32_t)dr_rng_below(&rng, MOST_PARTS),
                n = n_parts + (int32_t)dr_rng_below(&rng, (uint32_t)(MOST_ROWS - n_parts + 1));
        int64_t all = 0, heaviest = 0;
        dr_cached_pass pass = {.chunks = chunks,
                               .n_chunks = n,
                               .row_macs = 1 + dr_rng_below(&rng, 1000),
                               .position_macs = dr_rng_below(&rng, 100)};
        for (int32_t r = 0; r < n; r++) {
            chunks[r] = (dr_attention_chunk){.row = r, .n_new = 1};
            chunks[r].n_past = (int32_t)dr_rng_below(&rng, dr_rng_below(&rng, 8) == 0 ? 20000 : 50);
            int64_t work = dr_cpu_row_work(&pass, r);
            all += work;
            heaviest = work > heaviest ? work : heaviest;
        }
        dr_cpu_share_out(&pass, n_parts, begins);
        assert_int_equal(begins[0], 0);
        assert_int_equal(begins[n_parts], n);
        for (int32_t part = 0; part < n_parts; part++) {
            int64_t work = 0;
            assert_true(begins[part] < begins[part + 1]);
            for (int32_t r = begins[part]; r < begins[part + 1]; r++) work += dr_cpu_row_work(&pass, r);
            // the last may have to take what others were too small for
            if (work > all / n_parts + heaviest + n_parts)
                fail_msg("round %d: part %d of %d has %lld of %lld, the heaviest row %lld", round, part,
                         n_parts, (long long)work, (long long)all, (long long)heaviest);
        }
    }
}

// ---- weights that do not stay in the cache ----

static dr_status note_parts(void *context, dr_backend *b, int32_t first, int32_t n) {
    int32_t *parts = context;
    (void)b, (void)first, (void)n;
    __atomic_add_fetch(parts, 1, __ATOMIC_RELAXED);
    return DR_OK;
}

static void test_far_weights(void **state) {
    (void)state;
    enum { ROWS = 32 };
    dr_attention_chunk chunks[ROWS] = {{0}};
    dr_precision precisions[] = {DR_FP32, DR_BF16};
    for (int i = 0; i < 2; i++) {
        dr_backend *b = NULL;
        check_ok(dr_backend_cpu_create(precisions[i], 2, &b));
        int64_t half = dr_cpu_state_of(b)->cache / 2, most = half / (i ? 2 : 4);
        assert_true(half > 0);
        for (int64_t macs = most - 1; macs <= most + 1; macs++) {
            const dr_cached_pass pass = {.chunks = chunks, .n_chunks = ROWS, .row_macs = macs};
            int32_t parts = 0;
            check_ok(b->ops->cached_pass(b, &pass, note_parts, &parts));
            assert_int_equal(b->ops->pass_rows(b, ROWS), ROWS); // the processor runs no idle rows
            assert_int_equal(parts, macs <= most ? 2 : 1);
        }
        dr_backend_destroy(b);
    }
}

// Bodies of one thread are counted where passes are shared out, and nowhere else.
static void test_memory(void **state) {
    (void)state;
    enum { ROWS = 32, PREFILL = 512 };
    dr_backend *b = NULL;
    dr_lm *lm = NULL;
    dr_lm_config c;
    check_ok(dr_backend_cpu_create(DR_FP32, 2, &b));
    for (int tied = 0; tied < 2; tied++) {
        check_ok(dr_lm_preset("tiny", VOCAB, &c));
        c.tied_head = tied;
        check_ok(dr_lm_outline(b, &c, &lm));
        dr_pass_shape shape = dr_lm_pass_shape(lm, 64);
        int64_t q = (int64_t)c.n_heads * c.head_size, kv = (int64_t)c.n_kv_heads * c.head_size;
        assert_int_equal(shape.row_macs,
                         c.n_layers * (c.hidden * (2 * q + 2 * kv) + 3 * (int64_t)c.hidden * c.intermediate) +
                             VOCAB * c.hidden);
        shape.n_draws = ROWS;
        shape.n_cached = ROWS + PREFILL;
        shape.longest = LONGEST;
        assert_true(dr_cpu_singles_memory(b, &shape) > 0);
        shape.n_draws = 8 * b->n_threads - 1;
        assert_int_equal(dr_cpu_singles_memory(b, &shape), 0);
        shape.n_draws = ROWS;
        shape.row_macs = dr_cpu_state_of(b)->cache / 8 + 1;
        assert_int_equal(dr_cpu_singles_memory(b, &shape), 0);
        dr_lm_destroy(lm);
    }
    dr_backend_destroy(b);
}

// ---- the library's threads ----

// It asks OpenMP how many it may have: a body made with one leaves the caller's number as it is.
static void test_threads_of_others(void **state) {
    (void)state;
    struct dr_bf16 *one = NULL;
    int before = omp_get_max_threads();
    omp_set_num_threads(3);
    check_ok(dr_bf16_create(1, &one));
    int after = omp_get_max_threads();
    dr_bf16_destroy(one);
    omp_set_num_threads(before);
    assert_int_equal(after, 3);
}

// Bodies of one thread multiply as the one whose weights they read, which a test may have chosen.
static void test_same_products(void **state) {
    (void)state;
    for (int has_library = 0; has_library < 2; has_library++) {
        dr_backend *b = NULL;
        dr_cpu_bf16_body(has_library ? DR_BF16_LIBRARY : DR_BF16_LANES);
        check_ok(dr_backend_cpu_create(DR_BF16, 2, &b));
        dr_cpu_state *own = dr_cpu_state_of(b);
        if (has_library && !own->bf16) check_ok(dr_bf16_create(2, &own->bf16));
        dr_cpu_bf16_body(has_library ? DR_BF16_LANES : DR_BF16_LIBRARY);
        check_ok(dr_cpu_singles_create(b));
        dr_cpu_bf16_body(DR_BF16_CHOSEN);
        for (int i = 0; i < 2; i++)
            assert_int_equal(dr_cpu_state_of(own->singles[i])->bf16 != NULL, has_library);
        dr_backend_destroy(b);
    }
}

typedef struct product_call {
    dr_backend *b;
    dr_weight *w;
    const float *x;
    float *y;
    dr_status status;
} product_call;

enum { PRODUCT_ROWS = 24 };

static void *multiply(void *context) {
    product_call *c = context;
    c->status = c->b->ops->linear_forward(c->b, c->w, c->x, PRODUCT_ROWS, NULL, c->y);
    return NULL;
}

// OpenMP ends threads and starts others: a body goes on where another thread began it.
static void test_threads_that_end(void **state) {
    (void)state;
    enum { OUT = 200, IN = 300 };
    static float values[OUT * IN], x[PRODUCT_ROWS * IN], y[2][PRODUCT_ROWS * OUT];
    if (!dr_cpu_has_bf16()) skip(); // no library multiplies there
    product_call call = {.x = x};
    dr_rng rng = dr_rng_make(5, 4);
    for (int i = 0; i < OUT * IN; i++) values[i] = (float)dr_rng_normal(&rng);
    for (int i = 0; i < PRODUCT_ROWS * IN; i++) x[i] = (float)dr_rng_normal(&rng);
    dr_cpu_bf16_body(DR_BF16_LIBRARY);
    check_ok(dr_backend_cpu_create(DR_BF16, 1, &call.b));
    dr_cpu_bf16_body(DR_BF16_CHOSEN);
    check_ok(call.b->ops->weight_create(call.b, OUT, IN, &call.w));
    check_ok(call.b->ops->weight_pack(call.b, call.w, values));
    for (int i = 0; i < 2; i++) {
        pthread_t thread;
        call.y = y[i];
        assert_int_equal(pthread_create(&thread, NULL, multiply, &call), 0);
        assert_int_equal(pthread_join(thread, NULL), 0);
        check_ok(call.status);
    }
    check_same_bits("products of two threads", y[1], y[0], PRODUCT_ROWS * OUT);
    call.b->ops->weight_destroy(call.b, call.w);
    dr_backend_destroy(call.b);
}

// ---- failures ----

static dr_status fail_late(void *context, dr_backend *b, int32_t first, int32_t n) {
    int32_t *ran = context;
    assert_int_equal(b->n_threads, 1);
    for (int32_t r = first; r < first + n; r++) ran[r]++;
    DR_CHECK(first == 0, DR_ERR_NUMERIC, "row %d is no number", first);
    return DR_OK;
}

static void test_failure(void **state) {
    (void)state;
    enum { ROWS = 32 };
    dr_backend *b = NULL;
    dr_attention_chunk chunks[ROWS] = {{0}};
    int32_t ran[ROWS] = {0};
    const dr_cached_pass pass = {.chunks = chunks, .n_chunks = ROWS, .row_macs = 1};
    check_ok(dr_backend_cpu_create(DR_FP32, 4, &b));
    check_error(b->ops->cached_pass(b, &pass, fail_late, ran), DR_ERR_NUMERIC,
                "pass, rows 8 to 15: row 8 is no number");
    for (int r = 0; r < ROWS; r++) assert_int_equal(ran[r], 1);
    dr_backend_destroy(b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fp32),          cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_shares),        cmocka_unit_test(test_far_weights),
        cmocka_unit_test(test_memory),        cmocka_unit_test(test_threads_of_others),
        cmocka_unit_test(test_same_products), cmocka_unit_test(test_threads_that_end),
        cmocka_unit_test(test_failure)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
