// The learner's gradient on any backend: what test_learner (the processor) and test_learner_cuda share. One
// policy, trajectories of random ids, and cases that want the same gradient however these are packed, padded,
// cut into micro-batches, dealt out to learners or packed with a prompt that they share.
#ifndef DR_TESTS_LEARNER_CASES_H
#define DR_TESTS_LEARNER_CASES_H

#include "tests/check.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/base/rng.h"
#include "core/learn/learner.h"
#include "tests/small_cases.h"

enum { VOCAB = 97, LONGEST = 400, MOST = sized(12, 5), SLOTS = 64 };
static const float temperature = 0.8f;
static dr_backend *backend;
static dr_lm *lm, *reference; // different weights
static dr_trajectory trajectories[SLOTS];
static dr_learn_item items[SLOTS];
static float *gradient, *other, *direction, *kept; // [n_params], on the host
static int64_t n_params;
static int32_t head_size = 0; // of the policy; 0: the preset's
static double limit = 1e-6;   // of gradients that differ in the order of their sums

static inline dr_lm *tiny(uint64_t seed, bool tied) {
    dr_lm_config config;
    dr_lm *made = NULL;
    float *p = NULL;
    check_ok(dr_lm_preset("tiny", VOCAB, &config));
    config.tied_head = tied;
    if (head_size > 0) config.head_size = head_size;
    check_ok(dr_lm_create(backend, &config, seed, &made));
    dr_rng rng = dr_rng_make(seed, 1);
    int64_t n = dr_lm_n_params(made);
    check_ok(dr_host_open(backend, dr_lm_params(made), n, DR_HOST_CHANGES, &p));
    for (int64_t i = 0; i < n; i++) p[i] += 0.05f * (float)dr_rng_normal(&rng);
    dr_host_close(backend, dr_lm_params(made), n, DR_HOST_CHANGES, p);
    check_ok(dr_lm_weights_changed(made));
    return made;
}

static inline void learner_setup(void) {
    lm = tiny(3, true);
    reference = tiny(4, true);
    n_params = dr_lm_n_params(lm);
    float **arrays[] = {&gradient, &other, &direction, &kept};
    for (int i = 0; i < 4; i++) check_ok(dr_alloc(arrays[i], "test array", n_params, sizeof(float)));
}

static inline void learner_teardown(void) {
    float *arrays[] = {gradient, other, direction, kept};
    for (int i = 0; i < 4; i++) dr_free(arrays[i]);
    dr_lm_destroy(lm);
    dr_lm_destroy(reference);
}

static inline int case_teardown(void **state) {
    (void)state;
    for (int i = 0; i < SLOTS; i++) dr_trajectory_reset(&trajectories[i]);
    return 0;
}

// ---- trajectories ----

// Of the policy's tokens every second one was drawn from a kept set, about two thirds of the vocabulary.
static inline void append_random(dr_trajectory *t, dr_rng *rng, int32_t n, dr_provenance from) {
    for (int32_t i = 0; i < n; i++) {
        int32_t kept[VOCAB], n_kept = 0, id = (int32_t)dr_rng_below(rng, VOCAB);
        if (from != DR_FROM_POLICY) {
            check_ok(dr_trajectory_append(t, &id, 1, from, 0, NULL, NULL));
            continue;
        }
        for (int32_t k = 0; i % 2 && k < VOCAB; k++)
            if (k == id || dr_rng_below(rng, 3) > 0) kept[n_kept++] = k;
        dr_sampled token = {.id = id, .logprob = -4.5f, .logprob_kept = -4.25f, .kept = {kept, n_kept}};
        check_ok(dr_trajectory_append_sampled(t, &token, 0));
    }
}

// A prompt, a turn, a list, a forced token, an answer, and something behind it that was not sampled.
static inline dr_trajectory *make_trajectory(int i) {
    dr_trajectory *t = &trajectories[i];
    dr_rng rng = dr_rng_make(51, (uint64_t)i);
    dr_trajectory_reset(t);
    t->step = 7;
    t->prompt = (uint32_t)i / 3 + 5;
    t->sample = (uint32_t)i % 3;
    append_random(t, &rng, 3 + 2 * (i % 4), DR_FROM_PROMPT);
    append_random(t, &rng, 4 + i, DR_FROM_POLICY);
    append_random(t, &rng, 5 + 3 * (i % 3), DR_FROM_TOOL);
    append_random(t, &rng, 1, DR_FROM_FORCED);
    append_random(t, &rng, 6, DR_FROM_POLICY);
    append_random(t, &rng, i % 2 ? 2 : 0, DR_FROM_TOOL);
    items[i] = (dr_learn_item){.trajectory = t,
                               .advantage = (i % 2 ? -1.0f : 1.5f) * (1 + 0.25f * (float)i),
                               .token_weight = 1.0f / (float)(MOST * dr_trajectory_sampled_count(t))};
    return t;
}

static inline void make_trajectories(int n) {
    for (int i = 0; i < n; i++) make_trajectory(i);
}

// Log-probabilities of all tokens but the first under a model, by its own pass over this sequence alone.
static inline void logprobs(dr_lm *model, const dr_trajectory *t, float *out) {
    dr_lm_workspace *w = NULL;
    int32_t rows[LONGEST], cu[2] = {0, t->n_tokens - 1};
    float entropy[LONGEST];
    dr_kept kept[LONGEST];
    for (int32_t i = 0; i < t->n_tokens - 1; i++) {
        rows[i] = i;
        kept[i] = dr_trajectory_kept(t, i + 1);
    }
    dr_pack pack = {t->n_tokens - 1, t->ids, cu, 1, t->n_tokens - 1, rows, t->ids + 1, NULL, kept};
    check_ok(dr_lm_workspace_create(model, t->n_tokens, DR_KEEP_ACTIVATIONS, &w));
    check_ok(dr_lm_forward(model, w, &pack, temperature, out + 1, entropy));
    dr_lm_workspace_destroy(w);
}

// The log-probability that counts: over the kept set where there is one.
static inline float *stored_at(const dr_trajectory *t, int32_t i) {
    return dr_trajectory_kept(t, i).n > 0 ? &t->logprob_kept[i] : &t->logprob[i];
}

// Stores log-probabilities for which the ratios of the policy's tokens are ratios[0], ratios[1], … in turn.
static inline void store_ratios(dr_trajectory *t, const double *ratios, int n) {
    float now[LONGEST];
    logprobs(lm, t, now);
    for (int32_t i = 1, k = 0; i < t->n_tokens; i++)
        if (t->provenance[i] == DR_FROM_POLICY) *stored_at(t, i) = (float)(now[i] - log(ratios[k++ % n]));
}

static inline dr_loss_settings policy_loss(dr_kl_kind kl) {
    return (dr_loss_settings){.kind = DR_LOSS_POLICY,
                              .temperature = temperature,
                              .clip_low = 0.2f,
                              .clip_high = 0.28f,
                              .kl = kl,
                              .kl_weight = kl == DR_KL_OFF ? 0 : 0.4f};
}

// into [n_params], on the host: the gradient is added.
static inline dr_learn_stats accumulate(const dr_learn_item *list, int n, const dr_loss_settings *s,
                                        int64_t pack_tokens, float *into) {
    dr_learner *learner = NULL;
    dr_learn_stats stats = {0};
    float *memory = NULL;
    const size_t bytes = (size_t)n_params * sizeof *into;
    check_ok(dr_memory_create(backend, &memory, "gradient", n_params, sizeof *memory));
    backend->ops->copy_in(backend, memory, into, bytes);
    check_ok(dr_learner_create(lm, s->kl == DR_KL_OFF ? NULL : reference, pack_tokens, LONGEST,
                               DR_KEEP_ACTIVATIONS, &learner));
    check_ok(dr_learner_accumulate(learner, list, n, s, memory, NULL, &stats));
    backend->ops->copy_out(backend, into, memory, bytes);
    dr_learner_destroy(learner);
    backend->ops->memory_destroy(backend, memory);
    return stats;
}

static inline void clear(float *values) {
    memset(values, 0, (size_t)n_params * sizeof(float));
}

static inline double length_of(const float *values) {
    double sum = 0;
    for (int64_t i = 0; i < n_params; i++) sum += (double)values[i] * values[i];
    return sqrt(sum);
}

static const double ratios[] = {1.0, 0.5, 1.1, 1.6, 0.9, 2.5, 0.7}; // far from 0.8 and 1.28, where it bends

static inline void check_packing(void) {
    enum { PART = MOST / 2 - 1 };
    static const int64_t budgets[] = {64, 256, 1}; // 1: each trajectory alone
    dr_loss_settings s = policy_loss(DR_KL_K3);
    make_trajectories(MOST);
    for (int i = 0; i < MOST; i++) store_ratios(&trajectories[i], ratios + i % 4, 4);
    clear(gradient);
    dr_learn_stats want = accumulate(items, MOST, &s, 4096, gradient);
    double run = 0;
    for (int i = 0; i < MOST; i++) run += trajectories[i].n_tokens - 1;
    assert_true(want.run_tokens == run);
    for (int i = 0; i < 3; i++) {
        clear(other);
        dr_learn_stats got = accumulate(items, MOST, &s, budgets[i], other);
        check_relative_error("gradient of another packing", other, gradient, n_params, limit);
        assert_true(got.tokens == want.tokens && got.run_tokens == run && got.clipped == want.clipped);
        assert_true(got.largest_gap == want.largest_gap); // rows are exact, so is everything summed from them
        assert_true(fabs(got.loss - want.loss) <= 1e-9 && fabs(got.kl - want.kl) <= 1e-9 * want.kl);
        assert_true(fabs(got.entropy - want.entropy) <= 1e-9 * want.entropy);
    }
    // in two parts, as two ranks do
    clear(other);
    dr_learn_stats sum = accumulate(items, PART, &s, 64, other),
                   rest = accumulate(items + PART, MOST - PART, &s, 64, other);
    dr_learn_stats_add(&sum, &rest);
    check_relative_error("gradient in two parts", other, gradient, n_params, limit);
    assert_true(sum.tokens == want.tokens && sum.run_tokens == run && sum.clipped == want.clipped);
    assert_true(fabs(sum.loss - want.loss) <= 1e-9 && fabs(sum.ratio - want.ratio) <= 1e-9 * want.ratio);
    assert_true(fabs(sum.logprob_gap - want.logprob_gap) <= 1e-9 * want.logprob_gap);
    assert_true(sum.largest_gap == want.largest_gap);
}

// The gradient of `n` items as `learners` learners compute it, each in micro-batches of `micro` trajectories,
// summed in rank order as the collective does.
static inline void distributed(int n, int learners, int micro, const dr_loss_settings *s, float *part,
                               float *sum) {
    clear(sum);
    for (int rank = 0; rank < learners; rank++) {
        int begin = n * rank / learners, end = n * (rank + 1) / learners;
        clear(part);
        for (int at = begin; at < end; at += micro)
            accumulate(items + at, at + micro < end ? micro : end - at, s, 1024, part);
        for (int64_t i = 0; i < n_params; i++) sum[i] += part[i];
    }
}

// Micro-batches of 1, 2 and 8, packed or padded to one length, on 1, 2 and 4 learners: one gradient; and in
// one topology the same bits each time.
static inline void check_batching(void) {
    enum { WAYS = sized(3, 2) };
    static const int counts[] = {1, 2, 4}, micros[] = {sized(1, 2), sized(2, 8), 8};
    dr_loss_settings s = policy_loss(DR_KL_K3);
    float *part = direction, *again = kept; // room of the slope checks
    make_trajectories(MOST);
    for (int i = 0; i < MOST; i++) store_ratios(&trajectories[i], ratios + i % 4, 4);
    clear(gradient);
    accumulate(items, MOST, &s, 1024, gradient);
    for (int padded = 0; padded < 2; padded++) {
        for (int l = 0; l < WAYS; l++)
            for (int m = 0; m < WAYS; m++) {
                char name[64];
                snprintf(name, sizeof name, "%d learners, micro-batches of %d, %s", counts[l], micros[m],
                         padded ? "padded" : "packed");
                distributed(MOST, counts[l], micros[m], &s, part, other);
                check_relative_error(name, other, gradient, n_params, limit);
                distributed(MOST, counts[l], micros[m], &s, part, again);
                check_same_bits(name, again, other, n_params);
            }
        for (int i = 0; i < MOST; i++) // tokens behind the end that nothing looks at
            while (trajectories[i].n_tokens < 64)
                check_ok(dr_trajectory_append(&trajectories[i], (const int32_t[]){i}, 1, DR_FROM_TOOL, 0,
                                              NULL, NULL));
    }
}

// Samples of one prompt, packed with it once: fewer tokens are run, the log-probabilities keep their bits,
// and the gradient is the sum of those of the trajectories alone.
static inline void check_shared_prompt(const dr_loss_settings *s) {
    int64_t alone_tokens = 0, n_prompt[2] = {0};
    make_trajectories(6); // three samples of each of two prompts
    for (int i = 0; i < 6; i++) {
        dr_trajectory *t = &trajectories[i], *first = &trajectories[i / 3 * 3];
        int32_t n = dr_trajectory_prompt_count(first), own = dr_trajectory_prompt_count(t);
        n_prompt[i / 3] = n;
        if (i % 3 > 0) { // the prompt of its first sample, in the place of its own
            dr_trajectory fresh = {.step = t->step, .prompt = t->prompt, .sample = t->sample};
            check_ok(dr_trajectory_append(&fresh, first->ids, n, DR_FROM_PROMPT, 0, NULL, NULL));
            for (int32_t k = own; k < t->n_tokens; k++)
                if (t->provenance[k] == DR_FROM_POLICY)
                    check_ok(dr_trajectory_append_sampled(
                        &fresh, &(dr_sampled){.id = t->ids[k], .kept = dr_trajectory_kept(t, k)}, 0));
                else
                    check_ok(dr_trajectory_append(&fresh, t->ids + k, 1, t->provenance[k], 0, NULL, NULL));
            dr_trajectory_reset(t);
            *t = fresh;
        }
        store_ratios(t, ratios, 5);
        alone_tokens += t->n_tokens - 1;
    }
    dr_learn_stats alone = {0};
    clear(other);
    for (int i = 0; i < 6; i++) {
        dr_learn_stats part = accumulate(&items[i], 1, s, 64, other);
        dr_learn_stats_add(&alone, &part);
    }
    assert_int_equal(alone.run_tokens, alone_tokens);
    static const int64_t budgets[] = {4096, 70};
    for (int i = 0; i < 2; i++) {
        clear(gradient);
        dr_learn_stats shared = accumulate(items, 6, s, budgets[i], gradient);
        assert_int_equal(shared.tokens, alone.tokens);
        if (i == 0) assert_int_equal(shared.run_tokens, alone_tokens - 2 * (n_prompt[0] + n_prompt[1]));
        assert_true(shared.run_tokens < alone_tokens);
        assert_true(shared.largest_gap == alone.largest_gap && shared.clipped == alone.clipped);
        assert_true(fabs(shared.loss - alone.loss) <= 1e-12 * fabs(alone.loss));
        check_relative_error("gradient with shared prompts", gradient, other, n_params, limit);
    }
}

#endif
