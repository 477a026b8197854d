// Fresh weights, equal for any number of threads; and the copying start, with which a fresh model continues a
// sequence it has seen in its context, without any training.
// labels: cpu
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/base/rng.h"
#include "core/model/lm.h"
#include "tests/check.h"

enum { VOCAB = 512, RUN = 60, TOKENS = 2 * RUN };

// Share of the second run's positions at which the token that followed in the first run has the highest
// logit, the present token itself left out (a tied head favours it).
static double continued(const char *preset, bool copying) {
    dr_backend *backend = NULL;
    dr_lm *lm = NULL;
    dr_lm_workspace *workspace = NULL;
    dr_lm_config config;
    static float logits[RUN * VOCAB];
    int32_t ids[TOKENS], rows[RUN], targets[RUN] = {0}, bounds[2] = {0, TOKENS}, order[VOCAB], found = 0;
    check_ok(dr_backend_cpu_create(DR_FP32, 1, &backend));
    check_ok(dr_lm_preset(preset, VOCAB, &config));
    check_ok(dr_lm_create(backend, &config, 3, &lm));
    if (copying) check_ok(dr_lm_start_copying(lm, 3));
    check_ok(dr_lm_workspace_create(lm, TOKENS, DR_KEEP_ACTIVATIONS, &workspace));
    dr_rng rng = dr_rng_make(11, 0);
    for (int32_t i = 0; i < VOCAB; i++) order[i] = i;
    dr_rng_shuffle(&rng, order, VOCAB);
    for (int32_t i = 0; i < TOKENS; i++) ids[i] = order[i % RUN];
    for (int32_t i = 0; i < RUN; i++) rows[i] = RUN + i;
    dr_pack pack = {TOKENS, ids, bounds, 1, RUN, rows, targets, NULL, NULL};
    check_ok(dr_lm_logits(lm, workspace, &pack, logits));
    for (int32_t i = 0; i < RUN; i++) {
        const float *row = logits + i * VOCAB;
        int32_t best = -1;
        for (int32_t j = 0; j < VOCAB; j++)
            if (j != ids[RUN + i] && (best < 0 || row[j] > row[best])) best = j;
        found += best == ids[(RUN + i + 1) % RUN];
    }
    dr_lm_workspace_destroy(workspace);
    dr_lm_destroy(lm);
    dr_backend_cpu_destroy(backend);
    return (double)found / RUN;
}

static void test_continues(void **state) {
    (void)state;
    double plain = continued("small", false), small = continued("small", true),
           base = continued("base", true);
    print_message("continued from the context: plain %.2f, copying start %.2f (small), %.2f (base)\n", plain,
                  small, base);
    assert_true(plain < 0.1);
    assert_true(small > 0.3);
    assert_true(base > 0.3);
}

static void test_refused(void **state) {
    (void)state;
    dr_backend *backend = NULL;
    dr_lm *lm = NULL;
    dr_lm_config config;
    check_ok(dr_backend_cpu_create(DR_FP32, 1, &backend));
    check_ok(dr_lm_preset("tiny", VOCAB, &config));
    config.qkv_bias = false;
    snprintf(config.architecture, sizeof config.architecture, "LlamaForCausalLM");
    check_ok(dr_lm_create(backend, &config, 3, &lm));
    assert_int_equal(dr_lm_start_copying(lm, 3), DR_ERR_UNSUPPORTED);
    dr_lm_destroy(lm);
    dr_backend_cpu_destroy(backend);
}

// Embeddings of a million values, which threads share out in slices, against one sequential stream.
static void test_threads_change_nothing(void **state) {
    (void)state;
    dr_backend *backends[2] = {NULL};
    dr_lm *lms[2] = {NULL};
    dr_lm_config config;
    const dr_lm_tensor *tensors = NULL;
    check_ok(dr_lm_preset("small", 4096, &config));
    for (int i = 0; i < 2; i++) {
        check_ok(dr_backend_cpu_create(DR_FP32, i == 0 ? 1 : 3, &backends[i]));
        check_ok(dr_lm_create(backends[i], &config, 3, &lms[i]));
    }
    check_same_bits("fresh weights", dr_lm_params(lms[1]), dr_lm_params(lms[0]), dr_lm_n_params(lms[0]));
    int32_t n = dr_lm_tensors(lms[1], &tensors), t = 0;
    while (t < n && strcmp(tensors[t].name, "model.embed_tokens.weight") != 0) t++;
    assert_true(t < n && tensors[t].rows * tensors[t].cols > 1000000);
    const float *values = dr_lm_params(lms[1]) + tensors[t].offset;
    dr_rng rng = dr_rng_make(3, 1000 + (uint64_t)t);
    float std = 0.02f * sqrtf(1024.0f / (float)config.hidden);
    for (int64_t i = 0; i < tensors[t].rows * tensors[t].cols; i++) {
        float want = std * (float)dr_rng_normal(&rng);
        if (values[i] != want)
            fail_msg("value %lld is %g, not %g", (long long)i, (double)values[i], (double)want);
    }
    for (int i = 0; i < 2; i++) {
        dr_lm_destroy(lms[i]);
        dr_backend_cpu_destroy(backends[i]);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_threads_change_nothing),
                                       cmocka_unit_test(test_continues), cmocka_unit_test(test_refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
