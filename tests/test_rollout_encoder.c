// Rollouts whose preferences go through a sentence encoder on a backend that is late: nobody is held up, no
// bit changes, and one that never ends is ended by the deadline.
// labels: cpu
#include "tests/check.h"

#include <string.h>

#include "core/base/log.h"
#include "core/rec/trm_train.h"
#include "tests/delayed_backend.h"
#include "tests/tiny_rollout.h"

enum { PROMPTS = 4, SAMPLES = 6 };

static dr_lm *lm;
static dr_backend late;      // of the retrieval model and its encoder
static const char *trm_path; // of a model with the encoder
static int waits;            // calls that a device would make the host wait for

static void counting_copy_out(dr_backend *b, void *to_host, const void *from_backend, size_t bytes) {
    (void)b;
    waits++;
    delayed_inner->ops->copy_out(delayed_inner, to_host, from_backend, bytes);
}

static void counting_copy_in(dr_backend *b, void *to_backend, const void *from_host, size_t bytes) {
    (void)b;
    waits++;
    delayed_inner->ops->copy_in(delayed_inner, to_backend, from_host, bytes);
}

static int setup(void **state) {
    (void)state;
    dr_trm_train_options o = dr_trm_train_defaults();
    dr_trm *fresh = NULL;
    if (tiny_rollout_open() != 0 || tiny_policy(backend, tokenizer, &lm) != DR_OK) return -1;
    o.config.hidden = TINY_HIDDEN;
    o.config.inner = TINY_INNER;
    o.config.n_experts = TINY_EXPERTS;
    o.config.max_text_tokens = 96;
    o.batch = 8;
    o.max_epochs = 2;
    snprintf(o.config.text_encoder, sizeof o.config.text_encoder, "%s", check_golden("sentence_bert"));
    trm_path = check_scratch_dir();
    if (dr_trm_train(backend, &data, &o, &fresh) != DR_OK || dr_trm_save(fresh, trm_path) != DR_OK) return -1;
    dr_trm_destroy(fresh);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    dr_lm_destroy(lm);
    tiny_rollout_close();
    return 0;
}

// Trajectories by prompt and sample, as their wire bytes.
typedef struct outcome {
    dr_buf bytes[PROMPTS][SAMPLES];
    int32_t n;
    int64_t drawn_meanwhile; // tokens, in ticks that begin and end with preferences on their way
    dr_rollout_stats stats;
} outcome;

static void outcome_reset(outcome *o) {
    for (int p = 0; p < PROMPTS; p++)
        for (int s = 0; s < SAMPLES; s++) dr_buf_reset(&o->bytes[p][s]);
    memset(o, 0, sizeof *o);
}

static void drain(dr_rollout *rollout, outcome *o) {
    dr_trajectory t;
    while (dr_rollout_take(rollout, &t)) {
        check_ok(dr_trajectory_encode(&t, &o->bytes[t.prompt][t.sample]));
        dr_trajectory_reset(&t);
        o->n++;
    }
}

static dr_rollout *begun(dr_trm *own, double deadline_s) {
    dr_rollout *rollout = NULL;
    dr_rollout_parts parts = tiny_rollout_parts(lm);
    parts.trm = own;
    parts.retrieval_deadline_s = deadline_s;
    check_ok(dr_rollout_create(&parts, &rollout));
    for (int p = 0; p < PROMPTS; p++) {
        dr_rollout_request q = tiny_rollout_request(p, 0, SAMPLES);
        check_ok(dr_rollout_submit(rollout, &q));
    }
    return rollout;
}

static void run(dr_trm *own, outcome *o) {
    dr_rollout *rollout = begun(own, 0);
    for (int ticks = 0; dr_rollout_pending(rollout) > 0; ticks++) {
        bool is_waited_for = delayed_under_way() > 0;
        int64_t rounds = delayed_rounds, drawn = o->stats.sampled_tokens;
        assert_true(ticks < 100000);
        check_ok(dr_rollout_tick(rollout));
        dr_rollout_stats_get(rollout, &o->stats);
        if (is_waited_for && delayed_rounds == rounds) o->drawn_meanwhile += o->stats.sampled_tokens - drawn;
        drain(rollout, o);
    }
    dr_rollout_destroy(rollout);
    assert_int_equal(o->n, PROMPTS * SAMPLES);
}

// The model on the late backend, which answers at once while it is loaded.
static dr_trm *late_trm(void) {
    static dr_backend_ops ops;
    dr_trm *own = NULL;
    late = delayed_backend(backend, 0);
    ops = *late.ops;
    ops.copy_in = counting_copy_in;
    ops.copy_out = counting_copy_out;
    late.ops = &ops;
    check_ok(dr_trm_load(&late, trm_path, &own));
    delayed_looks = delayed_rounds = waits = 0;
    return own;
}

static void test_late_encoder(void **state) {
    (void)state;
    static const int looks[] = {0, 1, 9, 30};
    dr_trm *plain = NULL;
    outcome want = {0}, got = {0};
    check_ok(dr_trm_load(backend, trm_path, &plain));
    run(plain, &want);
    assert_true(want.stats.retrievals > 8);
    dr_trm_destroy(plain);
    for (size_t i = 0; i < sizeof looks / sizeof *looks; i++) {
        dr_trm *own = late_trm();
        delayed_looks_needed = delayed_looks_left = looks[i];
        run(own, &got);
        for (int p = 0; p < PROMPTS; p++)
            for (int s = 0; s < SAMPLES; s++) {
                assert_int_equal(got.bytes[p][s].length, want.bytes[p][s].length);
                assert_memory_equal(got.bytes[p][s].data, want.bytes[p][s].data, want.bytes[p][s].length);
            }
        assert_int_equal(waits, 0); // neither for texts nor for lists
        assert_true(delayed_rounds > 0 && delayed_looks >= looks[i]);
        if (looks[i] > 8) assert_true(got.drawn_meanwhile > 40);
        print_message("%d looks in vain: %d tokens drawn meanwhile\n", looks[i], (int)got.drawn_meanwhile);
        outcome_reset(&got);
        assert_int_equal(delayed_n_copies, 0);
        dr_trm_destroy(own);
    }
    outcome_reset(&want);
}

static void test_never_ending_encoder(void **state) {
    (void)state;
    dr_trm *own = late_trm();
    dr_rollout *rollout = begun(own, 0.05);
    dr_status status = DR_OK;
    int64_t looks = 0;
    delayed_looks_needed = delayed_looks_left = INT32_MAX;
    for (int ticks = 0; status == DR_OK && ticks < 100000; ticks++) {
        looks = delayed_looks;
        status = dr_rollout_tick(rollout);
    }
    check_error(status, DR_ERR_TIMEOUT, "not done after 0.05 s");
    assert_true(delayed_looks - looks < 100); // of the tick that waited
    assert_int_equal(waits, 0);
    assert_int_equal(delayed_most_under_way, 2); // one batch: its embeddings and its lists
    dr_rollout_destroy(rollout);                 // with it under way
    dr_trm_destroy(own);
}

// Preferences that a retrieval refuses, and a transfer that is too small for them.
static void test_refusals(void **state) {
    (void)state;
    static const char *const preferences[] = {"old films"};
    const int32_t history[] = {1, 2};
    const dr_trm_query query = {history, 2, NULL};
    dr_trm *own = late_trm();
    dr_trm_retrieval *retrieval = NULL;
    const dr_text_encoder *encoder = dr_trm_text_encoder(own);
    dr_transfer *small = NULL;
    float *out = NULL;
    check_ok(late.ops->transfer_create(&late, "ids", 96, &small));
    check_ok(dr_memory_create(&late, &out, "embedding", encoder->dim, sizeof *out));
    check_error(dr_text_queue_queries(encoder, preferences, 1, small, 0, out), DR_ERR_ARGUMENT,
                "1 texts want 768 bytes of a transfer of 96 from 0 on");
    late.ops->memory_destroy(&late, out);
    late.ops->transfer_destroy(&late, small);
    check_ok(dr_trm_retrieval_create(own, 1, 2, &retrieval));
    check_ok(dr_trm_retrieval_begin(retrieval, &query, preferences, 1, true));
    check_error(dr_trm_retrieval_begin(retrieval, &query, preferences, 1, true), DR_ERR_ARGUMENT,
                "under way");
    dr_trm_retrieval_destroy(retrieval);
    dr_trm_destroy(own);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_late_encoder),
        cmocka_unit_test(test_never_ending_encoder),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
