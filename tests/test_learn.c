// Advantages, weights of tokens, rates and AdamW, worked by hand.
// labels: cpu
#include "tests/check.h"

#include <math.h>
#include <string.h>

#include "core/base/alloc.h"
#include "core/base/rng.h"
#include "core/learn/advantage.h"
#include "core/model/lm.h"
#include "core/model/optimizer.h"

enum { VOCAB = 97 };
static dr_backend *backend;

static int setup(void **state) {
    (void)state;
    return dr_backend_cpu_create(DR_FP32, 1, &backend) == DR_OK ? 0 : -1;
}

static int teardown(void **state) {
    (void)state;
    dr_backend_cpu_destroy(backend);
    return 0;
}

// ---- advantages, by hand ----

static void check_advantages(const char *name, dr_advantage_kind kind, const dr_credit *credits, int32_t n,
                             const float *want) {
    dr_credit c[16];
    float got[16];
    memcpy(c, credits, (size_t)n * sizeof *c);
    for (int32_t i = 0; i < n; i++) c[i].advantage = NAN;
    dr_advantages(kind, c, n);
    for (int32_t i = 0; i < n; i++) {
        got[i] = c[i].advantage;
        assert_true(c[i].reward == credits[i].reward && c[i].n_sampled == credits[i].n_sampled);
    }
    check_close(name, got, want, n, 2e-6, 2e-6);
}

// Two prompts. Rewards 1 3 8 have mean 4 and deviations -3 -1 4; rewards 5 7 have mean 6 and deviations -1 1.
static const dr_credit two_groups[5] = {
    {.prompt = 4, .sample = 0, .reward = 1, .n_sampled = 10, .trains = true},
    {.prompt = 4, .sample = 1, .reward = 3, .n_sampled = 20, .trains = true},
    {.prompt = 4, .sample = 2, .reward = 8, .n_sampled = 5, .trains = true},
    {.prompt = 9, .sample = 0, .reward = 5, .n_sampled = 40, .trains = true},
    {.prompt = 9, .sample = 1, .reward = 7, .n_sampled = 25, .trains = true}};

static void test_grpo(void **state) {
    (void)state;
    // variance (9 + 1 + 16) / 3 = 26 / 3, deviation 2.943920; of the second group (1 + 1) / 2 = 1
    const float want[5] = {-3 / 2.943920f, -1 / 2.943920f, 4 / 2.943920f, -1, 1};
    check_advantages("GRPO", DR_ADVANTAGE_GRPO, two_groups, 5, want);
}

static void test_rloo(void **state) {
    (void)state;
    // 1 - (3 + 8) / 2 = -4.5; 3 - (1 + 8) / 2 = -1.5; 8 - (1 + 3) / 2 = 6; 5 - 7 = -2; 7 - 5 = 2
    const float want[5] = {-4.5f, -1.5f, 6, -2, 2};
    check_advantages("RLOO", DR_ADVANTAGE_RLOO, two_groups, 5, want);
}

static void test_reinforce_pp(void **state) {
    (void)state;
    // Sum over tokens of the deviations: 10·-3 + 20·-1 + 5·4 + 40·-1 + 25·1 = -45, of 100 tokens: mean -0.45.
    // Squares: 10·9 + 20·1 + 5·16 + 40·1 + 25·1 = 255: variance 2.55 - 0.2025 = 2.3475, deviation 1.532155.
    const float s = 1.532155f, want[5] = {-2.55f / s, -0.55f / s, 4.45f / s, -0.55f / s, 1.45f / s};
    check_advantages("REINFORCE++", DR_ADVANTAGE_REINFORCE_PP, two_groups, 5, want);
}

// Its reward counts in its group's mean; its tokens do not count in the batch's.
static void test_one_does_not_train(void **state) {
    (void)state;
    dr_credit c[5];
    memcpy(c, two_groups, sizeof c);
    c[3].trains = false;
    // Without its 40 tokens: sum -30 - 20 + 20 + 25 = -5 of 60, mean -1/12. Squares 90 + 20 + 80 + 25 = 215:
    // variance 215/60 - 1/144 = 3.576389, deviation 1.891134.
    const float s = 1.891134f, m = -1.0f / 12;
    const float want[5] = {(-3 - m) / s, (-1 - m) / s, (4 - m) / s, (-1 - m) / s, (1 - m) / s};
    check_advantages("REINFORCE++ without one", DR_ADVANTAGE_REINFORCE_PP, c, 5, want);
    const float grpo[5] = {-3 / 2.943920f, -1 / 2.943920f, 4 / 2.943920f, -1, 1}; // as before
    check_advantages("GRPO without one", DR_ADVANTAGE_GRPO, c, 5, grpo);
    for (int i = 0; i < 5; i++) c[i].trains = false; // nothing to normalise over: the deviations
    const float none[5] = {-3, -1, 4, -1, 1};
    check_advantages("REINFORCE++ of nothing", DR_ADVANTAGE_REINFORCE_PP, c, 5, none);
    dr_advantages(DR_ADVANTAGE_REINFORCE_PP, c, 0);
}

static void test_groups_of_one_and_equal_rewards(void **state) {
    (void)state;
    const dr_credit one[1] = {{.prompt = 1, .reward = 0.7f, .n_sampled = 9, .trains = true}};
    const dr_credit mixed[3] = {{.prompt = 1, .reward = 5, .n_sampled = 2, .trains = true},
                                {.prompt = 2, .reward = 1, .n_sampled = 4, .trains = true},
                                {.prompt = 2, .sample = 1, .reward = 2, .n_sampled = 4, .trains = true}};
    dr_credit equal[6];
    for (int i = 0; i < 6; i++) // 0.1 and 0.7 have no exact mean: what is left must not be blown up
        equal[i] = (dr_credit){.prompt = (uint32_t)i / 3,
                               .sample = (uint32_t)i % 3,
                               .reward = i < 3 ? 0.1f : 0.7f,
                               .n_sampled = 7,
                               .trains = true};
    const dr_advantage_kind kinds[] = {DR_ADVANTAGE_REINFORCE_PP, DR_ADVANTAGE_GRPO, DR_ADVANTAGE_RLOO};
    const float zeros[6] = {0};
    // the single sample has no baseline but itself; deviations 0 -0.5 0.5
    // REINFORCE++: mean 0, variance (4·0.25 + 4·0.25) / 10 = 0.2, deviation 0.4472136: ± 1.118034
    const float want[3][3] = {{0, -1.118034f, 1.118034f}, {0, -1, 1}, {0, -1, 1}};
    for (int k = 0; k < 3; k++) {
        check_advantages("a batch of one", kinds[k], one, 1, zeros);
        check_advantages("a group of one", kinds[k], mixed, 3, want[k]);
        check_advantages("equal rewards", kinds[k], equal, 6, zeros);
    }
}

static void check_weights(const char *name, dr_loss_mean mean, dr_credit *c, int32_t n, const float *want) {
    float got[8];
    for (int32_t i = 0; i < n; i++) c[i].token_weight = NAN;
    dr_token_weights(mean, c, n);
    for (int32_t i = 0; i < n; i++) got[i] = c[i].token_weight;
    check_close(name, got, want, n, 1e-9, 1e-6);
}

static void test_token_weights(void **state) {
    (void)state;
    dr_credit c[7] = {{.n_sampled = 10, .trains = true},  {.n_sampled = 30, .trains = true},
                      {.n_sampled = 99, .trains = false}, {.n_sampled = 5, .trains = true},
                      {.n_sampled = 0, .trains = false},  {.n_sampled = 8, .trains = false},
                      {.n_sampled = 4, .trains = true}};
    // four trajectories train: 1 / (4 · own tokens)
    const float by_trajectory[7] = {1 / 40.0f, 1 / 120.0f, 0, 1 / 20.0f, 0, 0, 1 / 16.0f};
    check_weights("mean over trajectories", DR_MEAN_TRAJECTORY, c, 7, by_trajectory);
    // pairs (10, 30) (-, 5) (-, -) (4): three count, with 40, 5 and 4 tokens
    const float by_pair[7] = {1 / 120.0f, 1 / 120.0f, 0, 1 / 15.0f, 0, 0, 1 / 12.0f};
    check_weights("mean over packed pairs", DR_MEAN_PACKED_PAIR, c, 7, by_pair);
    for (int mean = 0; mean < 2; mean++) { // the weights of all sampled tokens add up to one
        double sum = 0;
        dr_token_weights((dr_loss_mean)mean, c, 7);
        for (int i = 0; i < 7; i++) sum += (double)c[i].token_weight * c[i].n_sampled;
        assert_true(fabs(sum - 1) < 1e-6);
    }
    for (int i = 0; i < 7; i++) c[i].trains = false;
    const float zeros[7] = {0};
    check_weights("nothing trains", DR_MEAN_TRAJECTORY, c, 7, zeros);
    check_weights("nothing trains", DR_MEAN_PACKED_PAIR, c, 7, zeros);
}

// ---- rates ----

static void test_rates(void **state) {
    (void)state;
    // warm-up over 4 updates to 3, then 8 updates down to a fifth of it, 0.6
    dr_schedule s = {DR_SCHEDULE_LINEAR, 3.0f, 0.2f, 4, 12};
    const int64_t at[8] = {0, 1, 3, 4, 6, 8, 12, 1000};
    // (t + 1) / 5 of 3; then 3 - 2.4 · (t - 4) / 8
    const float linear[8] = {0.6f, 1.2f, 2.4f, 3.0f, 2.4f, 1.8f, 0.6f, 0.6f};
    // 0.6 + 2.4 · (1 + cos(π (t - 4) / 8)) / 2: at a quarter (1 + √½) / 2 = 0.8535534
    const float cosine[8] = {0.6f, 1.2f, 2.4f, 3.0f, 2.648528f, 1.8f, 0.6f, 0.6f};
    const float constant[8] = {0.6f, 1.2f, 2.4f, 3.0f, 3.0f, 3.0f, 3.0f, 3.0f};
    const struct {
        dr_schedule_kind kind;
        const float *want;
    } kinds[] = {
        {DR_SCHEDULE_LINEAR, linear}, {DR_SCHEDULE_COSINE, cosine}, {DR_SCHEDULE_CONSTANT, constant}};
    float got[8];
    for (int k = 0; k < 3; k++) {
        s.kind = kinds[k].kind;
        for (int i = 0; i < 8; i++) got[i] = dr_schedule_rate(&s, at[i]);
        check_close("rates", got, kinds[k].want, 8, 1e-6, 1e-6);
        for (int64_t t = 4; t < 14; t++) assert_true(dr_schedule_rate(&s, t + 1) <= dr_schedule_rate(&s, t));
    }
    s = (dr_schedule){DR_SCHEDULE_COSINE, 1.0f, 0.0f, 0, 10}; // no warm-up: from the peak to nothing
    assert_true(dr_schedule_rate(&s, 0) == 1.0f && dr_schedule_rate(&s, 10) < 1e-7f);
    s = (dr_schedule){DR_SCHEDULE_LINEAR, 1.0f, 0.0f, 10, 10}; // nothing but warm-up
    assert_true(dr_schedule_rate(&s, 9) < 1.0f && dr_schedule_rate(&s, 10) == 1.0f);
}

// ---- the optimizer ----

static dr_lm *tiny(void) {
    dr_lm_config config;
    dr_lm *lm = NULL;
    check_ok(dr_lm_preset("tiny", VOCAB, &config));
    check_ok(dr_lm_create(backend, &config, 3, &lm));
    float *p = dr_lm_params(lm);
    dr_rng rng = dr_rng_make(3, 1);
    for (int64_t i = 0; i < dr_lm_n_params(lm); i++) p[i] += 0.05f * (float)dr_rng_normal(&rng);
    check_ok(dr_lm_weights_changed(lm));
    return lm;
}

static float *floats(int64_t n) {
    float *values = NULL;
    check_ok(dr_alloc(&values, "test array", n, sizeof(float)));
    return values;
}

typedef struct adam { // the formula, in double
    double *w, *m, *v;
    int64_t n, t;
} adam;

static void adam_step(adam *a, const float *g, double rate, double clip, const dr_optimizer_settings *s) {
    double norm = 0, beta1 = s->beta1, beta2 = s->beta2;
    for (int64_t i = 0; i < a->n; i++) norm += (double)g[i] * g[i];
    norm = sqrt(norm);
    double scale = clip > 0 && norm > clip ? clip / norm : 1;
    a->t++;
    for (int64_t i = 0; i < a->n; i++) {
        double x = g[i] * scale;
        a->m[i] = beta1 * a->m[i] + (1 - beta1) * x;
        a->v[i] = beta2 * a->v[i] + (1 - beta2) * x * x;
        double first = a->m[i] / (1 - pow(beta1, (double)a->t)),
               second = a->v[i] / (1 - pow(beta2, (double)a->t));
        a->w[i] -= rate * (first / (sqrt(second) + s->epsilon) + s->weight_decay * a->w[i]);
    }
}

static void compare_adam(const char *name, const adam *a, const float *start, dr_lm *lm, dr_optimizer *o) {
    double off[3] = {0}, size[3] = {0};
    for (int64_t i = 0; i < a->n; i++) {
        const double got[3] = {(double)dr_lm_params(lm)[i] - start[i], dr_optimizer_first(o)[i],
                               dr_optimizer_second(o)[i]};
        const double want[3] = {a->w[i] - start[i], a->m[i], a->v[i]};
        for (int k = 0; k < 3; k++) {
            off[k] += (got[k] - want[k]) * (got[k] - want[k]);
            size[k] += want[k] * want[k];
        }
    }
    for (int k = 0; k < 3; k++)
        if (!(off[k] <= 1e-10 * size[k]))
            fail_msg("%s: %s are off by %.3g", name,
                     k == 0   ? "weights"
                     : k == 1 ? "first moments"
                              : "second moments",
                     sqrt(off[k] / size[k]));
}

static void random_gradient(float *g, int64_t n, uint64_t stream, float size) {
    dr_rng rng = dr_rng_make(41, stream);
    for (int64_t i = 0; i < n; i++) g[i] = size * (0.1f + (float)dr_rng_normal(&rng));
}

static void test_optimizer(void **state) {
    (void)state;
    dr_lm *lm = tiny();
    int64_t n = dr_lm_n_params(lm);
    // the third gradient is small: not clipped
    const float rates[6] = {0.01f, 0.02f, 0.005f, 0.01f, 0.02f, 0.03f},
                sizes[6] = {1, 0.5f, 1e-4f, 2, 1, 1e-3f};
    float *g = floats(n), *start = floats(n);
    adam a = {.n = n};
    check_ok(dr_alloc(&a.w, "weights", n, sizeof(double)));
    check_ok(dr_alloc(&a.m, "first", n, sizeof(double)));
    check_ok(dr_alloc(&a.v, "second", n, sizeof(double)));
    for (int clip = 0; clip < 2; clip++) {
        dr_optimizer_settings s = {0.9f, 0.95f, 1e-8f, 0.1f, clip ? 1.5f : 0.0f};
        dr_optimizer *o = NULL;
        double norm = 0, want_norm;
        check_ok(dr_optimizer_create(lm, &s, NULL, &o));
        memcpy(start, dr_lm_params(lm), (size_t)n * sizeof(float));
        for (int64_t i = 0; i < n; i++) {
            a.w[i] = start[i];
            a.m[i] = a.v[i] = 0;
        }
        a.t = 0;
        for (int step = 0; step < 6; step++) {
            if (step == 3) { // the moments start anew, the weights and the count of updates go on
                dr_optimizer_restart(o);
                memset(a.m, 0, (size_t)n * sizeof *a.m);
                memset(a.v, 0, (size_t)n * sizeof *a.v);
                a.t = 0;
                assert_int_equal(dr_optimizer_age(o), 0);
                assert_int_equal(dr_optimizer_updates(o), 3);
                for (int64_t i = 0; i < n; i++)
                    assert_true(dr_optimizer_first(o)[i] == 0 && dr_optimizer_second(o)[i] == 0);
            }
            uint64_t version = dr_lm_weight_version(lm);
            random_gradient(g, n, (uint64_t)step, sizes[step]);
            want_norm = sqrt(dr_sum_of_squares(backend, g, n));
            check_ok(dr_optimizer_step(o, g, rates[step], &norm));
            assert_true(fabs(norm - want_norm) <= 1e-12 * want_norm); // before clipping
            adam_step(&a, g, (double)rates[step], clip ? 1.5 : 0, &s);
            compare_adam(clip ? "clipped" : "not clipped", &a, start, lm, o);
            assert_int_equal(dr_optimizer_updates(o), step + 1);
            assert_int_equal(dr_optimizer_age(o), step % 3 + 1);
            assert_true(dr_lm_weight_version(lm) > version);
        }
        dr_optimizer_destroy(o);
    }
    dr_free(a.w);
    dr_free(a.m);
    dr_free(a.v);
    dr_free(g);
    dr_free(start);
    dr_lm_destroy(lm);
}

static void test_gradient_refused(void **state) {
    (void)state;
    dr_lm *lm = tiny();
    dr_optimizer_settings s = {0.9f, 0.95f, 1e-8f, 0.1f, 1.0f};
    dr_optimizer *o = NULL;
    int64_t n = dr_lm_n_params(lm);
    double norm = -1;
    float *g = floats(n), *kept = floats(3 * n);
    check_ok(dr_optimizer_create(lm, &s, NULL, &o));
    random_gradient(g, n, 9, 1);
    check_ok(dr_optimizer_step(o, g, 0.01f, &norm));
    const float *now[3] = {dr_lm_params(lm), dr_optimizer_first(o), dr_optimizer_second(o)};
    for (int k = 0; k < 3; k++) memcpy(kept + k * n, now[k], (size_t)n * sizeof(float));
    uint64_t version = dr_lm_weight_version(lm);
    const float bad[3] = {NAN, INFINITY, -INFINITY};
    norm = -1;
    for (int i = 0; i < 3; i++) {
        float good = g[n - 1 - i];
        g[n - 1 - i] = bad[i];
        check_error(dr_optimizer_step(o, g, 0.01f, &norm), DR_ERR_NUMERIC, "no update");
        g[n - 1 - i] = good;
        assert_true(norm == -1);
        assert_int_equal(dr_optimizer_updates(o), 1);
        assert_int_equal(dr_optimizer_age(o), 1);
        assert_int_equal(dr_lm_weight_version(lm), version);
        for (int k = 0; k < 3; k++) check_same_bits("nothing changed", now[k], kept + k * n, n);
    }
    dr_optimizer_set_updates(o, 100, 7);
    check_ok(dr_optimizer_step(o, g, 0.01f, &norm)); // and it goes on
    assert_int_equal(dr_optimizer_updates(o), 101);
    assert_int_equal(dr_optimizer_age(o), 8);
    dr_optimizer_destroy(o);
    dr_optimizer_destroy(NULL);
    dr_free(g);
    dr_free(kept);
    dr_lm_destroy(lm);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_grpo),
        cmocka_unit_test(test_rloo),
        cmocka_unit_test(test_reinforce_pp),
        cmocka_unit_test(test_one_does_not_train),
        cmocka_unit_test(test_groups_of_one_and_equal_rewards),
        cmocka_unit_test(test_token_weights),
        cmocka_unit_test(test_rates),
        cmocka_unit_test(test_optimizer),
        cmocka_unit_test(test_gradient_refused),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
