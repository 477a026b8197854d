// What rollouts of tests are made of, but for the policy: a catalogue, a tokenizer, a retrieval model on one
// thread, a template.
#ifndef DR_TESTS_TINY_ROLLOUT_H
#define DR_TESTS_TINY_ROLLOUT_H

#include "core/episode/rollout.h"
#include "tests/tiny_catalogue.h"
#include "tests/tiny_policy.h"
#include "tests/tiny_trm.h"

static dr_dataset data;
static dr_backend *backend; // of the retrieval model
static dr_tokenizer *tokenizer;
static dr_trm *trm;
static dr_template *compact;

static inline int tiny_rollout_open(void) {
    data = tiny_catalogue();
    if (dr_backend_cpu_create(DR_FP32, 1, &backend) != DR_OK) return -1;
    if (tiny_tokenizer(&tokenizer) != DR_OK || tiny_trm(backend, &data, &trm) != DR_OK) return -1;
    return dr_template_load("compact", &compact) == DR_OK ? 0 : -1;
}

static inline void tiny_rollout_close(void) {
    dr_template_destroy(compact);
    dr_trm_destroy(trm);
    dr_tokenizer_destroy(tokenizer);
    dr_backend_cpu_destroy(backend);
    tiny_catalogue_reset(&data);
}

// The same for groups of tests that want no more.
static inline int tiny_rollout_setup(void **state) {
    (void)state;
    return tiny_rollout_open();
}

static inline int tiny_rollout_teardown(void **state) {
    (void)state;
    tiny_rollout_close();
    return 0;
}

static inline dr_rollout_parts tiny_rollout_parts(dr_lm *lm) {
    return (dr_rollout_parts){.lm = lm,
                              .tokenizer = tokenizer,
                              .trm = trm,
                              .dataset = &data,
                              .prompt_template = compact,
                              .protocol = tiny_protocol,
                              .max_live = 8,
                              .prefill_tokens = 64};
}

// Samples first … first + n - 1 of a user's prompt.
static inline dr_rollout_request tiny_rollout_request(int user, int first, int n) {
    dr_example example;
    assert_true(dr_dataset_example(&data, user, DR_SPLIT_TEST, &example));
    return (dr_rollout_request){.seed = 99,
                                .step = 7,
                                .prompt = (uint32_t)user,
                                .first_sample = first,
                                .n_samples = n,
                                .user = user,
                                .target = example.target,
                                .history = example.history,
                                .n_history = example.n_history,
                                .sampling = {1.0f, 1.0f}};
}

#endif
