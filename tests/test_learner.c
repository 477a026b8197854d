// The learner's gradient: by differences of the objective, whatever the packing, and for sampled tokens only.
// labels: cpu
#include "tests/check.h"

#include <math.h>
#include <string.h>

#include "core/base/log.h"
#include "core/base/rng.h"
#include "core/episode/rollout.h"
#include "core/learn/learner.h"
#include "tests/tiny_catalogue.h"
#include "tests/tiny_policy.h"
#include "tests/tiny_trm.h"

#if defined(__SANITIZE_ADDRESS__)
enum { SAMPLED = 4 }; // slow there
#else
enum { SAMPLED = 64 };
#endif
enum { VOCAB = 97, LONGEST = 400, MOST = 12, SLOTS = SAMPLED > MOST ? SAMPLED : MOST };
static const float temperature = 0.8f;
static dr_backend *backend;
static dr_lm *lm, *reference; // different weights
static dr_trajectory trajectories[SLOTS];
static dr_learn_item items[SLOTS];
static float *gradient, *other, *direction, *kept; // [n_params]
static int64_t n_params;

static dr_lm *tiny(uint64_t seed, bool tied) {
    dr_lm_config config;
    dr_lm *made = NULL;
    check_ok(dr_lm_preset("tiny", VOCAB, &config));
    config.tied_head = tied;
    check_ok(dr_lm_create(backend, &config, seed, &made));
    float *p = dr_lm_params(made);
    dr_rng rng = dr_rng_make(seed, 1);
    for (int64_t i = 0; i < dr_lm_n_params(made); i++) p[i] += 0.05f * (float)dr_rng_normal(&rng);
    check_ok(dr_lm_weights_changed(made));
    return made;
}

static int group_setup(void **state) {
    (void)state;
    if (dr_backend_cpu_create(DR_FP32, 1, &backend) != DR_OK) return -1;
    lm = tiny(3, true);
    reference = tiny(4, true);
    n_params = dr_lm_n_params(lm);
    float **arrays[] = {&gradient, &other, &direction, &kept};
    for (int i = 0; i < 4; i++) check_ok(dr_alloc(arrays[i], "test array", n_params, sizeof(float)));
    return 0;
}

static int group_teardown(void **state) {
    (void)state;
    float *arrays[] = {gradient, other, direction, kept};
    for (int i = 0; i < 4; i++) dr_free(arrays[i]);
    dr_lm_destroy(lm);
    dr_lm_destroy(reference);
    dr_backend_cpu_destroy(backend);
    return 0;
}

static int case_teardown(void **state) {
    (void)state;
    for (int i = 0; i < SLOTS; i++) dr_trajectory_reset(&trajectories[i]);
    return 0;
}

// ---- trajectories ----

// Of the policy's tokens every second one was drawn from a kept set, about two thirds of the vocabulary.
static void append_random(dr_trajectory *t, dr_rng *rng, int32_t n, dr_provenance from) {
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
static dr_trajectory *make_trajectory(int i) {
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

static void make_trajectories(int n) {
    for (int i = 0; i < n; i++) make_trajectory(i);
}

// Log-probabilities of all tokens but the first under a model, by its own pass over this sequence alone.
static void logprobs(dr_lm *model, const dr_trajectory *t, float *out) {
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
static float *stored_at(const dr_trajectory *t, int32_t i) {
    return dr_trajectory_kept(t, i).n > 0 ? &t->logprob_kept[i] : &t->logprob[i];
}

// Stores log-probabilities for which the ratios of the policy's tokens are ratios[0], ratios[1], … in turn.
static void store_ratios(dr_trajectory *t, const double *ratios, int n) {
    float now[LONGEST];
    logprobs(lm, t, now);
    for (int32_t i = 1, k = 0; i < t->n_tokens; i++)
        if (t->provenance[i] == DR_FROM_POLICY) *stored_at(t, i) = (float)(now[i] - log(ratios[k++ % n]));
}

// ---- the objective as the papers write it, in double ----

static double objective(const dr_learn_item *list, int n, const dr_loss_settings *s) {
    double sum = 0;
    for (int i = 0; i < n; i++) {
        const dr_trajectory *t = list[i].trajectory;
        float now[LONGEST], before[LONGEST];
        logprobs(lm, t, now);
        if (s->kl != DR_KL_OFF) logprobs(reference, t, before);
        for (int32_t k = 1; k < t->n_tokens; k++) {
            if (t->provenance[k] != DR_FROM_POLICY) continue;
            double ratio = exp((double)now[k] - *stored_at(t, k)), a = list[i].advantage, kl = 0;
            double inside = fmin(fmax(ratio, 1 - s->clip_low), 1 + s->clip_high);
            double d = s->kl == DR_KL_OFF ? 0 : (double)before[k] - now[k];
            if (s->kl == DR_KL_K1) kl = -d;
            if (s->kl == DR_KL_K3) kl = exp(d) - d - 1;
            sum += list[i].token_weight * (s->kl_weight * kl - fmin(ratio * a, inside * a));
        }
    }
    return sum;
}

static dr_loss_settings policy_loss(dr_kl_kind kl) {
    return (dr_loss_settings){.kind = DR_LOSS_POLICY,
                              .temperature = temperature,
                              .clip_low = 0.2f,
                              .clip_high = 0.28f,
                              .kl = kl,
                              .kl_weight = kl == DR_KL_OFF ? 0 : 0.4f};
}

static dr_learn_stats accumulate(const dr_learn_item *list, int n, const dr_loss_settings *s,
                                 int64_t pack_tokens, float *into) {
    dr_learner *learner = NULL;
    dr_learn_stats stats = {0};
    check_ok(dr_learner_create(lm, s->kl == DR_KL_OFF ? NULL : reference, pack_tokens, LONGEST,
                               DR_KEEP_ACTIVATIONS, &learner));
    check_ok(dr_learner_accumulate(learner, list, n, s, into, NULL, &stats));
    dr_learner_destroy(learner);
    return stats;
}

static void clear(float *values) {
    memset(values, 0, (size_t)n_params * sizeof(float));
}

static double length_of(const float *values) {
    return sqrt(dr_sum_of_squares(backend, values, n_params));
}

static void check_slopes(const char *name, int n, const dr_loss_settings *s) {
    float *p = dr_lm_params(lm), step = 1e-4f;
    double length = length_of(gradient);
    assert_true(length > 1e-3);
    memcpy(kept, p, (size_t)n_params * sizeof(float));
    for (uint64_t trial = 0; trial < 4; trial++) {
        dr_rng rng = dr_rng_make(52, trial);
        double want = 0, value[2];
        // along a random direction, then along the gradient itself, where the slope is largest
        for (int64_t i = 0; i < n_params; i++) {
            double along = sqrt((double)n_params) / length * gradient[i];
            direction[i] = (float)(trial < 3 ? dr_rng_normal(&rng) : 0.1 * along);
            want += (double)direction[i] * gradient[i];
        }
        for (int side = 0; side < 2; side++) {
            for (int64_t i = 0; i < n_params; i++) p[i] = kept[i] + (side ? -step : step) * direction[i];
            check_ok(dr_lm_weights_changed(lm));
            value[side] = objective(items, n, s);
        }
        memcpy(p, kept, (size_t)n_params * sizeof(float));
        check_ok(dr_lm_weights_changed(lm));
        double got = (value[0] - value[1]) / (2 * (double)step);
        if (!(fabs(got - want) <= 0.01 * fabs(want) + 0.01 * length))
            fail_msg("%s: the gradient says %.6g along a direction, differences say %.6g (length %.4g)", name,
                     want, got, length);
    }
}

static const double ratios[] = {1.0, 0.5, 1.1, 1.6, 0.9, 2.5, 0.7}; // far from 0.8 and 1.28, where it bends

static void check_objective(const char *name, dr_kl_kind kl) {
    enum { N = 4 };
    dr_loss_settings s = policy_loss(kl);
    double clipped = 0, sampled = 0;
    make_trajectories(N);
    for (int i = 0; i < N; i++) store_ratios(&trajectories[i], ratios + i, 4);
    clear(gradient);
    dr_learn_stats stats = accumulate(items, N, &s, 64, gradient);
    double want = objective(items, N, &s);
    if (!(fabs(stats.loss - want) <= 1e-5 * (1 + fabs(want))))
        fail_msg("%s: the loss is %.8g, expected %.8g", name, stats.loss, want);
    for (int i = 0; i < N; i++)
        for (int32_t k = 1, j = 0; k < trajectories[i].n_tokens; k++) {
            if (trajectories[i].provenance[k] != DR_FROM_POLICY) continue;
            double ratio = ratios[i + j++ % 4];
            clipped += items[i].advantage > 0 ? ratio > 1.28 : ratio < 0.8;
            sampled++;
        }
    assert_true(stats.tokens == sampled && stats.clipped == clipped && clipped > 5);
    check_slopes(name, N, &s);
}

static void test_policy_gradient(void **state) {
    (void)state;
    check_objective("clipped policy loss", DR_KL_OFF);
}

static void test_kl_k1(void **state) {
    (void)state;
    check_objective("with KL k1", DR_KL_K1);
}

static void test_kl_k3(void **state) {
    (void)state;
    check_objective("with KL k3", DR_KL_K3);
}

// Against itself: k3 is 0 and pulls nowhere, k1 is 0 and pulls with its whole weight.
static void test_kl_against_itself(void **state) {
    (void)state;
    dr_lm *own = reference;
    const double one = 1;
    make_trajectories(2);
    for (int i = 0; i < 2; i++) {
        store_ratios(&trajectories[i], &one, 1);
        items[i].advantage = 0;
    }
    reference = lm;
    dr_loss_settings s = policy_loss(DR_KL_K3);
    clear(gradient);
    dr_learn_stats stats = accumulate(items, 2, &s, 256, gradient);
    double k3 = length_of(gradient);
    s = policy_loss(DR_KL_K1);
    clear(gradient);
    dr_learn_stats k1_stats = accumulate(items, 2, &s, 256, gradient);
    reference = own;
    assert_true(stats.kl == 0 && k3 == 0 && k1_stats.kl == 0);
    // ∇ 0.4 · Σ weight · logprob: that of an advantage of -0.4
    for (int i = 0; i < 2; i++) items[i].advantage = -0.4f;
    s = policy_loss(DR_KL_OFF);
    clear(other);
    accumulate(items, 2, &s, 256, other);
    assert_true(length_of(other) > 1e-3);
    check_relative_error("k1", gradient, other, n_params, 1e-6);
}

// Both sides of the clip, token by token: where it is active there is no gradient at all.
static void test_clip(void **state) {
    (void)state;
    static const struct {
        float advantage;
        double ratio;
        bool is_clipped;
        double objective; // of one token
    } cases[] = {{2, 1.5, true, 2.56},   {2, 0.5, false, 1.0},   {2, 1.2, false, 2.4}, {-2, 0.5, true, -1.6},
                 {-2, 1.5, false, -3.0}, {-2, 0.9, false, -1.8}, {0, 1.5, false, 0}};
    dr_loss_settings s = policy_loss(DR_KL_OFF);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dr_trajectory *t = make_trajectory(1);
        double n = dr_trajectory_sampled_count(t);
        items[1].advantage = cases[i].advantage;
        items[1].token_weight = (float)(1 / n);
        store_ratios(t, &cases[i].ratio, 1);
        clear(gradient);
        dr_learn_stats stats = accumulate(&items[1], 1, &s, 64, gradient);
        assert_true(stats.clipped == (cases[i].is_clipped ? n : 0));
        assert_true(fabs(stats.loss + cases[i].objective) < 1e-5);
        assert_true(fabs(stats.ratio / n - cases[i].ratio) < 1e-5);
        assert_true(fabs(stats.logprob_gap / n - fabs(log(cases[i].ratio))) < 1e-5);
        assert_true(fabs(stats.largest_gap - fabs(log(cases[i].ratio))) < 1e-5);
        if (cases[i].is_clipped || cases[i].advantage == 0) {
            assert_true(length_of(gradient) == 0);
            continue;
        }
        // else that of ratio · advantage: as an advantage of that size has at ratio 1
        const double one = 1;
        store_ratios(t, &one, 1);
        items[1].advantage = (float)(cases[i].advantage * cases[i].ratio);
        clear(other);
        accumulate(&items[1], 1, &s, 64, other);
        check_relative_error("not clipped", gradient, other, n_params, 1e-5);
    }
}

static void test_packing_changes_nothing(void **state) {
    (void)state;
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
        check_relative_error("gradient of another packing", other, gradient, n_params, 1e-6);
        assert_true(got.tokens == want.tokens && got.run_tokens == run && got.clipped == want.clipped);
        assert_true(got.largest_gap == want.largest_gap); // rows are exact, so is everything summed from them
        assert_true(fabs(got.loss - want.loss) <= 1e-9 && fabs(got.kl - want.kl) <= 1e-9 * want.kl);
        assert_true(fabs(got.entropy - want.entropy) <= 1e-9 * want.entropy);
    }
    // in two parts, as two ranks do
    clear(other);
    dr_learn_stats sum = accumulate(items, 5, &s, 64, other),
                   rest = accumulate(items + 5, MOST - 5, &s, 64, other);
    dr_learn_stats_add(&sum, &rest);
    check_relative_error("gradient in two parts", other, gradient, n_params, 1e-6);
    assert_true(sum.tokens == want.tokens && sum.run_tokens == run && sum.clipped == want.clipped);
    assert_true(fabs(sum.loss - want.loss) <= 1e-9 && fabs(sum.ratio - want.ratio) <= 1e-9 * want.ratio);
    assert_true(fabs(sum.logprob_gap - want.logprob_gap) <= 1e-9 * want.logprob_gap);
    assert_true(sum.largest_gap == want.largest_gap);
}

// The gradient of `n` items as `learners` learners compute it, each in micro-batches of `micro` trajectories,
// summed in rank order as the collective does.
static void distributed(int n, int learners, int micro, const dr_loss_settings *s, float *part, float *sum) {
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
static void test_batching_changes_nothing(void **state) {
    (void)state;
    static const int counts[] = {1, 2, 4}, micros[] = {1, 2, 8};
    dr_loss_settings s = policy_loss(DR_KL_K3);
    float *part = direction, *again = kept; // room of the slope checks
    make_trajectories(MOST);
    for (int i = 0; i < MOST; i++) store_ratios(&trajectories[i], ratios + i % 4, 4);
    clear(gradient);
    accumulate(items, MOST, &s, 1024, gradient);
    for (int padded = 0; padded < 2; padded++) {
        for (int l = 0; l < 3; l++)
            for (int m = 0; m < 3; m++) {
                char name[64];
                snprintf(name, sizeof name, "%d learners, micro-batches of %d, %s", counts[l], micros[m],
                         padded ? "padded" : "packed");
                distributed(MOST, counts[l], micros[m], &s, part, other);
                check_relative_error(name, other, gradient, n_params, 1e-6);
                distributed(MOST, counts[l], micros[m], &s, part, again);
                check_same_bits(name, again, other, n_params);
            }
        for (int i = 0; i < MOST; i++) // tokens behind the end that nothing looks at
            while (trajectories[i].n_tokens < 64)
                check_ok(dr_trajectory_append(&trajectories[i], (const int32_t[]){i}, 1, DR_FROM_TOOL, 0,
                                              NULL, NULL));
    }
}

static void test_skipped_and_refused(void **state) {
    (void)state;
    dr_loss_settings s = policy_loss(DR_KL_OFF);
    dr_learner *learner = NULL;
    dr_learn_stats stats = {0};
    make_trajectories(3);
    for (int i = 0; i < 3; i++) store_ratios(&trajectories[i], ratios, 7);
    clear(gradient);
    accumulate(items, 1, &s, 64, gradient);
    accumulate(items + 2, 1, &s, 64, gradient);
    items[1].token_weight = 0; // takes no part and does not go through the model
    clear(other);
    dr_learn_stats got = accumulate(items, 3, &s, 64, other);
    check_relative_error("without the one of no weight", other, gradient, n_params, 1e-6);
    assert_true(got.run_tokens == trajectories[0].n_tokens + trajectories[2].n_tokens - 2);
    clear(other);
    assert_true(accumulate(items, 0, &s, 64, other).tokens == 0 && length_of(other) == 0);

    check_ok(dr_learner_create(lm, NULL, 8, 10, DR_KEEP_ACTIVATIONS, &learner)); // for shorter ones
    check_error(dr_learner_accumulate(learner, items, 1, &s, other, NULL, &stats), DR_ERR_RANGE,
                "at most 10 were planned");
    dr_learner_destroy(learner);
    s = policy_loss(DR_KL_K3);
    check_ok(dr_learner_create(lm, NULL, 64, LONGEST, DR_KEEP_ACTIVATIONS, &learner));
    check_error(dr_learner_accumulate(learner, items, 1, &s, other, NULL, &stats), DR_ERR_ARGUMENT,
                "needs a reference");
    dr_learner_destroy(learner);
    dr_learner_destroy(NULL);
    assert_true(length_of(other) == 0);
}

// ---- who is trained on ----

static void test_only_sampled_tokens(void **state) {
    (void)state;
    dr_loss_settings s = policy_loss(DR_KL_OFF);
    dr_trajectory *t = make_trajectory(1); // ends in two tokens of a list
    store_ratios(t, ratios, 3);
    clear(gradient);
    dr_learn_stats stats = accumulate(&items[1], 1, &s, 64, gradient);
    assert_true(length_of(gradient) > 1e-3);
    assert_true(stats.tokens == dr_trajectory_sampled_count(t));
    // no other token is a target: neither the last one's id nor stored log-probabilities of others matter
    t->ids[t->n_tokens - 1] = (t->ids[t->n_tokens - 1] + 1) % VOCAB;
    for (int32_t i = 0; i < t->n_tokens; i++)
        if (t->provenance[i] != DR_FROM_POLICY) t->logprob[i] = -77;
    clear(other);
    stats = accumulate(&items[1], 1, &s, 64, other);
    check_same_bits("gradient", other, gradient, n_params);
    assert_true(stats.tokens == dr_trajectory_sampled_count(t));
    // one sampled token: the gradient is that of its row alone
    for (int32_t i = 0; i < t->n_tokens; i++)
        if (t->provenance[i] == DR_FROM_POLICY && i != 7) t->provenance[i] = DR_FROM_FORCED;
    assert_int_equal(t->provenance[7], DR_FROM_POLICY);
    clear(gradient);
    stats = accumulate(&items[1], 1, &s, 64, gradient);
    assert_true(stats.tokens == 1);
    dr_lm_workspace *w = NULL;
    int32_t cu[2] = {0, t->n_tokens - 1}, row = 6;
    float now, entropy;
    dr_pack pack = {t->n_tokens - 1, t->ids, cu, 1, 1, &row, t->ids + 7, NULL, NULL};
    check_ok(dr_lm_workspace_create(lm, t->n_tokens, DR_KEEP_ACTIVATIONS, &w));
    check_ok(dr_lm_forward(lm, w, &pack, temperature, &now, &entropy));
    float slope = -items[1].token_weight * items[1].advantage * expf(now - t->logprob[7]);
    clear(other);
    check_ok(dr_lm_backward(lm, w, &pack, temperature, &slope, other, NULL));
    dr_lm_workspace_destroy(w);
    check_relative_error("gradient of one token", gradient, other, n_params, 1e-6);
    t->provenance[7] = DR_FROM_TOOL; // none: no gradient at all
    clear(gradient);
    stats = accumulate(&items[1], 1, &s, 64, gradient);
    assert_true(stats.tokens == 0 && stats.loss == 0 && length_of(gradient) == 0);
}

// Samples of one prompt, packed with it once: fewer tokens are run, the log-probabilities keep their bits,
// and the gradient is the sum of those of the trajectories alone.
static void test_shared_prompt(void **state) {
    (void)state;
    dr_loss_settings s = policy_loss(DR_KL_K3);
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
        dr_learn_stats part = accumulate(&items[i], 1, &s, 64, other);
        dr_learn_stats_add(&alone, &part);
    }
    assert_int_equal(alone.run_tokens, alone_tokens);
    static const int64_t budgets[] = {4096, 70};
    for (int i = 0; i < 2; i++) {
        clear(gradient);
        dr_learn_stats shared = accumulate(items, 6, &s, budgets[i], gradient);
        assert_int_equal(shared.tokens, alone.tokens);
        if (i == 0) assert_int_equal(shared.run_tokens, alone_tokens - 2 * (n_prompt[0] + n_prompt[1]));
        assert_true(shared.run_tokens < alone_tokens);
        assert_true(shared.largest_gap == alone.largest_gap && shared.clipped == alone.clipped);
        assert_true(fabs(shared.loss - alone.loss) <= 1e-12 * fabs(alone.loss));
        check_relative_error("gradient with shared prompts", gradient, other, n_params, 1e-6);
    }
    check_slopes("shared prompts", 6, &s);
    trajectories[1].ids[0] = (trajectories[1].ids[0] + 1) % VOCAB; // another prompt shares nothing
    dr_learn_stats three = accumulate(items, 3, &s, 4096, gradient);
    int64_t want = 0;
    for (int i = 0; i < 3; i++) want += trajectories[i].n_tokens - 1;
    assert_int_equal(three.run_tokens, want);
}

static void test_supervised(void **state) {
    (void)state;
    const float contexts[] = {0, 0.3f};
    make_trajectories(2);
    for (int c = 0; c < 2; c++) {
        dr_loss_settings s = {
            .kind = DR_LOSS_SUPERVISED, .temperature = temperature, .context_weight = contexts[c]};
        clear(gradient);
        clear(other);
        dr_learn_stats stats = accumulate(items, 2, &s, 256, gradient);
        double loss = 0, sampled = 0;
        for (int i = 0; i < 2; i++) {
            const dr_trajectory *t = &trajectories[i];
            int32_t n = t->n_tokens - 1, cu[2] = {0, n}, rows[LONGEST];
            float now[LONGEST], entropy[LONGEST], slope[LONGEST];
            dr_lm_workspace *w = NULL;
            for (int32_t k = 0; k < n; k++) rows[k] = k;
            dr_pack pack = {n, t->ids, cu, 1, n, rows, t->ids + 1, NULL, NULL};
            check_ok(dr_lm_workspace_create(lm, n, DR_KEEP_ACTIVATIONS, &w));
            check_ok(dr_lm_forward(lm, w, &pack, temperature, now, entropy));
            for (int32_t k = 0; k < n; k++) {
                bool own = t->provenance[k + 1] == DR_FROM_POLICY;
                slope[k] = -items[i].token_weight * (own ? 1.0f : contexts[c]);
                loss -= own ? (double)items[i].token_weight * now[k] : 0;
                sampled += own;
            }
            check_ok(dr_lm_backward(lm, w, &pack, temperature, slope, other, NULL));
            dr_lm_workspace_destroy(w);
        }
        check_relative_error("supervised gradient", gradient, other, n_params, 1e-6);
        assert_true(stats.tokens == sampled && fabs(stats.loss - loss) < 1e-6);
    }
}

// ---- numbers that are none ----

static void test_nan_is_named(void **state) {
    (void)state;
    dr_lm *tied = lm;
    dr_loss_settings s = policy_loss(DR_KL_OFF);
    dr_learner *learner = NULL;
    dr_learn_stats stats = {0};
    const dr_lm_tensor *tensors;
    make_trajectories(6);
    for (int i = 0; i < 6; i++)
        for (int32_t k = 0; k < trajectories[i].n_tokens; k++)
            if (trajectories[i].ids[k] == 50) trajectories[i].ids[k] = 51;
    trajectories[4].ids[1] = 50; // prompt 6, sample 1: reads a row of the embedding that is no number
    lm = tiny(3, false);
    int32_t n = dr_lm_tensors(lm, &tensors), at = 0;
    while (at < n && strcmp(tensors[at].name, "model.embed_tokens.weight") != 0) at++;
    assert_true(at < n);
    dr_lm_params(lm)[tensors[at].offset + 50 * tensors[at].cols + 3] = NAN;
    check_ok(dr_lm_weights_changed(lm));
    float *sum = NULL;
    check_ok(dr_alloc(&sum, "test array", dr_lm_n_params(lm), sizeof(float)));
    for (int64_t pack_tokens = 64; pack_tokens <= 4096; pack_tokens *= 64) {
        check_ok(dr_learner_create(lm, NULL, pack_tokens, LONGEST, DR_KEEP_ACTIVATIONS, &learner));
        check_error(dr_learner_accumulate(learner, items, 6, &s, sum, NULL, &stats), DR_ERR_NUMERIC,
                    "nan at step 7, prompt 6, sample 1: no update is made");
        dr_learner_destroy(learner);
    }
    check_ok(dr_learner_create(lm, NULL, 64, LONGEST, DR_KEEP_ACTIVATIONS, &learner)); // the others are fine
    memset(sum, 0, (size_t)dr_lm_n_params(lm) * sizeof(float));
    check_ok(dr_learner_accumulate(learner, items, 4, &s, sum, NULL, &stats));
    assert_true(isfinite(dr_sum_of_squares(backend, sum, dr_lm_n_params(lm))));
    dr_learner_destroy(learner);
    dr_free(sum);
    dr_lm_destroy(lm);
    lm = tied;
}

// ---- the policy that sampled is the policy that learns ----

// Samples trajectories at the given temperature with the rollout engine.
static void sample(dr_lm *policy, const dr_tokenizer *tokenizer, const dr_dataset *data, dr_trm *trm,
                   const dr_template *template, float at, float top_p) {
    dr_rollout_parts parts = {.lm = policy,
                              .tokenizer = tokenizer,
                              .trm = trm,
                              .dataset = data,
                              .prompt_template = template,
                              .protocol = {.k = 10,
                                           .k_retrieve = 4,
                                           .max_retrievals = 2,
                                           .max_turn_tokens = 30,
                                           .max_total_tokens = LONGEST,
                                           .exclude_history = true},
                              .max_live = 5,
                              .prefill_tokens = 64};
    dr_rollout *rollout = NULL;
    int taken = 0;
    check_ok(dr_rollout_create(&parts, &rollout));
    for (int p = 0; p < 4; p++) {
        dr_example example;
        assert_true(dr_dataset_example(data, p, DR_SPLIT_TEST, &example));
        dr_rollout_request request = {.seed = 99,
                                      .step = 7,
                                      .prompt = (uint32_t)p,
                                      .n_samples = SAMPLED / 4,
                                      .user = p,
                                      .target = example.target,
                                      .history = example.history,
                                      .n_history = example.n_history,
                                      .sampling = {at, top_p}};
        check_ok(dr_rollout_submit(rollout, &request));
    }
    while (dr_rollout_pending(rollout) > 0) {
        check_ok(dr_rollout_tick(rollout));
        while (taken < SAMPLED && dr_rollout_take(rollout, &trajectories[taken])) {
            items[taken] = (dr_learn_item){&trajectories[taken], taken % 2 ? 1.0f : -1.0f, 0.01f};
            taken++;
        }
    }
    assert_int_equal(taken, SAMPLED);
    dr_rollout_destroy(rollout);
}

static void test_first_update_is_on_policy(void **state) {
    (void)state;
    dr_dataset data = tiny_catalogue();
    dr_tokenizer *tokenizer = NULL;
    dr_lm *policy = NULL;
    dr_trm *trm = NULL;
    dr_template *template = NULL;
    dr_learner *learner = NULL;
    check_ok(tiny_tokenizer(&tokenizer));
    check_ok(tiny_policy(backend, tokenizer, &policy));
    check_ok(tiny_trm(backend, &data, &trm));
    check_ok(dr_template_load("compact", &template));
    const float temperatures[] = {1.0f, 0.7f}, top_ps[] = {1.0f, 0.9f};
    for (int i = 0; i < 2; i++) {
        dr_loss_settings s = policy_loss(DR_KL_OFF);
        dr_learn_stats stats = {0};
        float *sum = NULL;
        s.temperature = temperatures[i];
        sample(policy, tokenizer, &data, trm, template, temperatures[i], top_ps[i]);
        check_ok(dr_alloc(&sum, "test array", dr_lm_n_params(policy), sizeof(float)));
        check_ok(dr_learner_create(policy, NULL, 512, LONGEST, DR_KEEP_ACTIVATIONS, &learner));
        check_ok(dr_learner_accumulate(learner, items, SAMPLED, &s, sum, NULL, &stats));
        dr_learner_destroy(learner);
        dr_free(sum);
        case_teardown(state);
        print_message("temperature %g: %g tokens, largest gap %g, mean ratio 1 + %g\n",
                      (double)temperatures[i], stats.tokens, stats.largest_gap,
                      stats.ratio / stats.tokens - 1);
        assert_true(stats.tokens > 2 * SAMPLED && stats.clipped == 0);
        assert_true(stats.largest_gap == 0);
        assert_true(stats.ratio == stats.tokens);
    }
    dr_template_destroy(template);
    dr_trm_destroy(trm);
    dr_lm_destroy(policy);
    dr_tokenizer_destroy(tokenizer);
    tiny_catalogue_reset(&data);
}

#define learner_test(function) cmocka_unit_test_teardown(function, case_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        learner_test(test_policy_gradient),
        learner_test(test_kl_k1),
        learner_test(test_kl_k3),
        learner_test(test_kl_against_itself),
        learner_test(test_clip),
        learner_test(test_packing_changes_nothing),
        learner_test(test_batching_changes_nothing),
        learner_test(test_skipped_and_refused),
        learner_test(test_only_sampled_tokens),
        learner_test(test_shared_prompt),
        learner_test(test_supervised),
        learner_test(test_nan_is_named),
        learner_test(test_first_update_is_on_policy),
    };
    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
