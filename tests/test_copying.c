// The copying start: without any training, a fresh model continues a sequence it has seen in its context.
// labels: cpu
#include <stdio.h>

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

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_continues), cmocka_unit_test(test_refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
