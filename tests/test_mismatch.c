// What is recorded while sampling is what training computes, whatever the batch; and a difference is noticed.
// labels: cpu
#include "tests/check.h"

#include <math.h>

#include "core/learn/mismatch.h"

static dr_mismatch_settings small_settings(const dr_lm *lm) {
    dr_mismatch_settings s = dr_mismatch_defaults(
        dr_lm_config_of(lm)->max_positions < 96 ? dr_lm_config_of(lm)->max_positions : 96);
    s.tokens = 400;
    s.live = 7;
    return s;
}

static void check_equal(const char *name, const dr_mismatch *m, int64_t tokens) {
    if (m->different > 0)
        fail_msg("%s: %lld of %lld differ, by up to %g; the first: sequence %d, position %d", name,
                 (long long)m->different, (long long)m->tokens, (double)m->largest, m->sequence, m->position);
    assert_int_equal(m->tokens, tokens);
    assert_true(m->largest == 0 && m->sequence == -1 && m->position == -1);
}

static void check_all_ways(const char *name, dr_lm *lm, const dr_mismatch_settings *s) {
    dr_mismatch_set set = {0};
    dr_mismatch m;
    check_ok(dr_mismatch_sample(lm, s, &set));
    assert_true(set.n_sampled >= s->tokens && set.n_tokens > set.n_sampled && set.n > s->live);
    check_ok(dr_mismatch_train(lm, s, &set, false, &m));
    check_equal(name, &m, set.n_sampled);
    assert_int_equal(set.n_kept, s->sampling.temperature > 0 && s->sampling.top_p < 1 ? set.n_sampled : 0);
    check_ok(dr_mismatch_train(lm, s, &set, true, &m));
    check_equal(name, &m, set.n_kept);
    check_ok(dr_mismatch_replay(lm, s, &set, 1, 20, &m));
    check_equal(name, &m, set.n_sampled);
    check_ok(dr_mismatch_replay(lm, s, &set, 2, 1, &m));
    check_equal(name, &m, m.tokens);
    assert_true(m.tokens > 0 && m.tokens < set.n_sampled);
    dr_mismatch_set_reset(&set);
}

static void check_families(dr_precision precision) {
    static const char *const families[] = {"lm_qwen2", "lm_qwen3", "lm_llama", "lm_llama31", "lm_mistral"};
    static const float temperatures[] = {1.0f, 0.7f, 0.0f, 1.3f, 1.0f},
                       top_ps[] = {1.0f, 0.9f, 1.0f, 0.5f, 0.95f};
    for (int i = 0; i < 5; i++) {
        dr_backend *backend = NULL;
        dr_lm *lm = NULL;
        check_ok(dr_backend_cpu_create(precision, 1 + i % 2, &backend));
        check_ok(dr_lm_load(backend, check_golden(families[i]), &lm));
        dr_mismatch_settings s = small_settings(lm);
        s.sampling = (dr_sampling){temperatures[i], top_ps[i]};
        check_all_ways(families[i], lm, &s);
        dr_lm_destroy(lm);
        dr_backend_cpu_destroy(backend);
    }
}

static void test_fp32(void **state) {
    (void)state;
    check_families(DR_FP32);
}

static void test_bf16(void **state) {
    (void)state;
    check_families(DR_BF16);
}

static dr_lm *load_qwen2(dr_backend **out_backend) {
    dr_lm *lm = NULL;
    check_ok(dr_backend_cpu_create(DR_FP32, 1, out_backend));
    check_ok(dr_lm_load(*out_backend, check_golden("lm_qwen2"), &lm));
    return lm;
}

// The same tokens and numbers whatever is decoded beside them cannot be asked here, for contexts are drawn as
// sequences go; the same settings give the same set.
static void test_repeats(void **state) {
    (void)state;
    dr_backend *backend = NULL;
    dr_lm *lm = load_qwen2(&backend);
    dr_mismatch_settings s = small_settings(lm);
    dr_mismatch_set a = {0}, b = {0};
    check_ok(dr_mismatch_sample(lm, &s, &a));
    check_ok(dr_mismatch_sample(lm, &s, &b));
    assert_int_equal(a.n, b.n);
    for (int32_t i = 0; i < a.n; i++) {
        const dr_trajectory *x = &a.sequences[i], *y = &b.sequences[i];
        assert_int_equal(x->n_tokens, y->n_tokens);
        assert_memory_equal(x->ids, y->ids, (size_t)x->n_tokens * sizeof(int32_t));
        check_same_bits("repeated", x->logprob, y->logprob, x->n_tokens);
    }
    dr_mismatch_set_reset(&a);
    dr_mismatch_set_reset(&b);
    dr_lm_destroy(lm);
    dr_backend_cpu_destroy(backend);
}

static void test_notices(void **state) {
    (void)state;
    dr_backend *backend = NULL;
    dr_lm *lm = load_qwen2(&backend);
    dr_mismatch_settings s = small_settings(lm);
    dr_mismatch_set set = {0};
    dr_mismatch m;
    check_ok(dr_mismatch_sample(lm, &s, &set));
    // one number of one token
    int32_t at = 0;
    while (set.sequences[2].provenance[at] != DR_FROM_POLICY) at++;
    float right = set.sequences[2].logprob[at];
    set.sequences[2].logprob[at] = nextafterf(right, 0);
    check_ok(dr_mismatch_train(lm, &s, &set, false, &m));
    assert_true(m.different == 1 && m.sequence == 2 && m.position == at && m.largest > 0);
    check_ok(dr_mismatch_train(lm, &s, &set, true, &m)); // over the kept sets it is another number
    assert_true(m.different == 0);
    float right_kept = set.sequences[2].logprob_kept[at];
    set.sequences[2].logprob_kept[at] = right_kept - 1e-6f;
    check_ok(dr_mismatch_train(lm, &s, &set, true, &m));
    assert_true(m.different == 1 && m.sequence == 2 && m.position == at && m.largest > 0);
    set.sequences[2].logprob_kept[at] = right_kept;
    check_ok(dr_mismatch_replay(lm, &s, &set, 1, 5, &m));
    assert_true(m.different == 1 && m.sequence == 2 && m.position == at);
    check_ok(dr_mismatch_replay(lm, &s, &set, 3, 5, &m)); // sequence 2 is not among every third
    assert_true(m.different == 0 && m.tokens > 0 && m.tokens < set.n_sampled);
    set.sequences[2].logprob[at] = NAN;
    check_ok(dr_mismatch_train(lm, &s, &set, false, &m));
    assert_true(m.different == 1 && isnan(m.largest));
    set.sequences[2].logprob[at] = right;
    // other weights
    dr_lm_params(lm)[dr_lm_n_params(lm) / 2] += 0.01f;
    check_ok(dr_lm_weights_changed(lm));
    check_ok(dr_mismatch_train(lm, &s, &set, false, &m));
    assert_true(m.different > set.n_sampled / 2);
    dr_mismatch_set_reset(&set);
    dr_lm_destroy(lm);
    dr_backend_cpu_destroy(backend);
}

static void test_refused(void **state) {
    (void)state;
    dr_backend *backend = NULL;
    dr_lm *lm = load_qwen2(&backend);
    dr_mismatch_set set = {0};
    dr_mismatch_settings s = small_settings(lm);
    s.longest_turn = dr_lm_config_of(lm)->max_positions;
    check_error(dr_mismatch_sample(lm, &s, &set), DR_ERR_ARGUMENT, "positions");
    s = small_settings(lm);
    s.longest_prompt = 1;
    check_error(dr_mismatch_sample(lm, &s, &set), DR_ERR_ARGUMENT, "a prompt at least 2");
    assert_int_equal(set.n, 0);
    dr_lm_destroy(lm);
    dr_backend_cpu_destroy(backend);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fp32),    cmocka_unit_test(test_bf16),    cmocka_unit_test(test_repeats),
        cmocka_unit_test(test_notices), cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
