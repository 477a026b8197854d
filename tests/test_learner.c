// The learner's gradient: by differences of the objective, whatever the packing, and for sampled tokens only.
// labels: cpu
#include "tests/learner_cases.h"

#include "core/base/log.h"
#include "core/episode/rollout.h"
#include "tests/tiny_catalogue.h"
#include "tests/tiny_policy.h"
#include "tests/tiny_trm.h"

#if defined(__SANITIZE_ADDRESS__)
enum { SAMPLED = 4 }; // slow there
#else
enum { SAMPLED = SLOTS };
#endif

static int group_setup(void **state) {
    (void)state;
    if (dr_backend_cpu_create(DR_FP32, 1, &backend) != DR_OK) return -1;
    learner_setup();
    return 0;
}

static int group_teardown(void **state) {
    (void)state;
    learner_teardown();
    dr_backend_cpu_destroy(backend);
    return 0;
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
    check_packing();
}

static void test_batching_changes_nothing(void **state) {
    (void)state;
    check_batching();
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

static void test_shared_prompt(void **state) {
    (void)state;
    dr_loss_settings s = policy_loss(DR_KL_K3);
    check_shared_prompt(&s);
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
