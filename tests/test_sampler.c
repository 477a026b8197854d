// The sampler against a plain sorted reference: kept sets, probabilities, frequencies, ties, replay,
// refusals.
// labels: cpu
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/alloc.h"
#include "core/base/rng.h"
#include "core/model/sampler.h"
#include "tests/check.h"

enum { V = 300 };

typedef struct ranked {
    double p;
    int32_t id;
} ranked;

static int by_rank(const void *a, const void *b) {
    const ranked *x = a, *y = b;
    if (x->p != y->p) return x->p > y->p ? -1 : 1;
    return x->id - y->id;
}

// Probabilities of the full softmax, and of the truncated one (0 outside the kept set), the slow way in
// double. Returns how many are kept.
static int32_t reference(const float *logits, float temperature, double top_p, double full[V],
                         double kept[V]) {
    ranked list[V];
    double top = -INFINITY, total = 0, mass = 0;
    for (int32_t i = 0; i < V; i++) top = fmax(top, (double)logits[i]);
    for (int32_t i = 0; i < V; i++) total += full[i] = exp((logits[i] - top) / temperature);
    for (int32_t i = 0; i < V; i++) {
        list[i] = (ranked){(double)(float)full[i], i};
        full[i] /= total;
        kept[i] = 0;
    }
    qsort(list, V, sizeof *list, by_rank);
    int32_t n = 0;
    while (n < V && mass < top_p * total) mass += list[n++].p;
    for (int32_t i = 0; i < n; i++) kept[list[i].id] = list[i].p / mass;
    return n;
}

static void random_logits(float *logits, float scale, uint64_t stream) {
    dr_rng rng = dr_rng_make(41, stream);
    for (int32_t i = 0; i < V; i++) logits[i] = scale * (float)dr_rng_normal(&rng);
}

static dr_sampler *create(int32_t vocab) {
    dr_sampler *sampler = NULL;
    check_ok(dr_sampler_create(vocab, &sampler));
    return sampler;
}

// A sweep of `bits` over the whole range visits each kept id in proportion to its probability: with N evenly
// spaced marks a count is off by less than one on either side.
static void check_distribution(dr_sampler *sampler, const float *logits, const dr_sampling *settings) {
    enum { N = 1 << 16 };
    double full[V], kept[V];
    int32_t counts[V] = {0};
    reference(logits, settings->temperature, (double)settings->top_p, full, kept);
    int32_t previous = -1;
    for (int32_t i = 0; i < N; i++) {
        dr_sampled got;
        check_ok(dr_sampler_draw(sampler, logits, settings, (uint32_t)i << 16, &got));
        if (kept[got.id] <= 0) fail_msg("id %d was drawn, it is outside the kept set", got.id);
        assert_true(got.id >= previous); // ids in order of the mark
        previous = got.id;
        if (counts[got.id]++) continue;
        float want = (float)log(full[got.id]), want_kept = (float)log(kept[got.id]);
        check_close("logprob", &got.logprob, &want, 1, 2e-5, 0);
        check_close("logprob_kept", &got.logprob_kept, &want_kept, 1, 2e-5, 0);
    }
    for (int32_t i = 0; i < V; i++)
        if (fabs(counts[i] - kept[i] * N) > 1.5)
            fail_msg("id %d: drawn %d times, expected %.3f", i, counts[i], kept[i] * N);
}

static void test_distributions(void **state) {
    (void)state;
    dr_sampler *sampler = create(V);
    float logits[V];
    static const dr_sampling settings[] = {{1, 1}, {1, 0.9f}, {0.7f, 0.5f}, {1.5f, 0.99f}, {1, 0.05f}};
    for (int i = 0; i < 5; i++) {
        random_logits(logits, i % 2 ? 4.0f : 1.0f, (uint64_t)i);
        check_distribution(sampler, logits, &settings[i]);
    }
    dr_sampler_destroy(sampler);
}

// The kept set over many shapes of distribution: its mass seen through the two log-probabilities, and its
// members seen through the last one that a mark just below 1 reaches.
static void test_kept_sets(void **state) {
    (void)state;
    dr_sampler *sampler = create(V);
    float logits[V];
    static const float scales[] = {0, 1e-3f, 0.3f, 2, 10, 60}, shares[] = {1e-6f, 0.1f, 0.5f, 0.95f, 0.9999f};
    for (int round = 0; round < 600; round++) {
        random_logits(logits, scales[round % 6], (uint64_t)(100 + round));
        if (round % 4 == 1) // many ties: quantised logits
            for (int32_t i = 0; i < V; i++) logits[i] = roundf(logits[i] * 2) / 2;
        if (round % 4 == 2)
            for (int32_t i = round % V; i < V; i++) logits[i] = -INFINITY;
        dr_sampling settings = {0.9f, shares[round % 5]};
        double full[V], kept[V], mass = 0;
        reference(logits, settings.temperature, (double)settings.top_p, full, kept);
        int32_t last = -1;
        for (int32_t i = 0; i < V; i++) {
            if (kept[i] <= 0) continue;
            mass += full[i];
            if (kept[i] > 1e-6) last = i;
        }
        dr_sampled got;
        check_ok(dr_sampler_draw(sampler, logits, &settings, UINT32_MAX, &got));
        float got_mass = expf(got.logprob - got.logprob_kept), want_mass = (float)mass;
        check_close("kept mass", &got_mass, &want_mass, 1, 1e-4, 0);
        int32_t listed = 0;
        for (int32_t i = 0; i < V; i++) {
            bool is_listed = listed < got.kept.n && got.kept.ids[listed] == i;
            if (is_listed ? kept[i] <= 0 : kept[i] > 1e-30)
                fail_msg("round %d: id %d in the kept set: %d", round, i, is_listed);
            listed += is_listed;
        }
        assert_int_equal(listed, got.kept.n);
        if (got.id < last || kept[got.id] <= 0)
            fail_msg("round %d: last id %d, expected %d", round, got.id, last);
    }
    dr_sampler_destroy(sampler);
}

static void test_ties_go_to_smaller_ids(void **state) {
    (void)state;
    dr_sampler *sampler = create(8);
    float logits[8] = {0, 2, 0, 2, 2, 0, 2, 0};
    dr_sampled got;
    dr_sampling greedy = {0, 0};
    check_ok(dr_sampler_draw(sampler, logits, &greedy, 77, &got));
    assert_int_equal(got.id, 1);
    assert_int_equal(got.kept.n, 0);
    float want = -logf(4 + 4 * expf(-2));
    check_close("greedy logprob", &got.logprob, &want, 1, 1e-6, 0);
    assert_true(got.logprob_kept == 0);
    // 0.4 of the mass is two of the four equal ones: the two smaller ids
    dr_sampling nucleus = {1, 0.4f};
    int32_t counts[8] = {0};
    for (uint32_t i = 0; i < 1000; i++) {
        check_ok(dr_sampler_draw(sampler, logits, &nucleus, i * 4294967u, &got));
        counts[got.id]++;
    }
    assert_int_equal(counts[1] + counts[3], 1000);
    assert_in_range(counts[1], 499, 501);
    // a nucleus smaller than the best token still keeps one
    nucleus.top_p = 1e-6f;
    check_ok(dr_sampler_draw(sampler, logits, &nucleus, UINT32_MAX, &got));
    assert_int_equal(got.id, 1);
    assert_true(got.logprob_kept == 0);
    dr_sampler_destroy(sampler);
}

// Equal bits and logits give the equal token and bits of log-probability, whatever the sampler drew before.
static void test_replay(void **state) {
    (void)state;
    dr_sampler *first = create(V), *second = create(V);
    float logits[V], noise[V], before[V];
    dr_sampling settings = {0.8f, 0.93f};
    random_logits(noise, 9, 1);
    for (uint32_t i = 0; i < 200; i++) {
        random_logits(logits, 3, 1000 + i);
        memcpy(before, logits, sizeof before);
        dr_draw_key key = {5, i, 1, 2, 3, 4};
        dr_sampled a, b, other;
        check_ok(dr_sampler_draw(first, logits, &settings, dr_draw(&key), &a));
        check_ok(dr_sampler_draw(second, noise, &settings, i * 99991u, &other));
        check_ok(dr_sampler_draw(second, logits, &settings, dr_draw(&key), &b));
        assert_int_equal(a.id, b.id);
        check_same_bits("logprob", &a.logprob, &b.logprob, 1);
        check_same_bits("logprob_kept", &a.logprob_kept, &b.logprob_kept, 1);
        assert_memory_equal(before, logits, sizeof before);
    }
    dr_sampler_destroy(first);
    dr_sampler_destroy(second);
}

static void test_extremes(void **state) {
    (void)state;
    dr_sampler *sampler = create(4);
    dr_sampled got;
    dr_sampling settings = {1e-6f, 0.5f}; // the smallest temperature: all mass on the best
    float cold[4] = {3e38f, -3e38f, 3e38f, -INFINITY};
    check_ok(dr_sampler_draw(sampler, cold, &settings, UINT32_MAX, &got));
    assert_int_equal(got.id, 0);
    float want = logf(0.5f);
    check_close("logprob", &got.logprob, &want, 1, 1e-6, 0);
    float single[4] = {-INFINITY, -INFINITY, -7, -INFINITY};
    settings = (dr_sampling){1, 1};
    check_ok(dr_sampler_draw(sampler, single, &settings, UINT32_MAX, &got));
    assert_int_equal(got.id, 2);
    assert_true(got.logprob == 0 && got.logprob_kept == 0);
    dr_sampler_destroy(sampler);
}

static void test_refusals(void **state) {
    (void)state;
    dr_sampler *sampler = create(3);
    dr_sampled got = {.id = -5};
    dr_sampling settings = {1, 0.9f}, greedy = {0, 1};
    float nan_logits[3] = {0, NAN, 1}, empty[3] = {-INFINITY, -INFINITY, -INFINITY},
          infinite[3] = {0, 1, INFINITY}, fine[3] = {0, 1, 2};
    check_error(dr_sampler_draw(sampler, nan_logits, &settings, 1, &got), DR_ERR_NUMERIC, "logit 1 is");
    check_error(dr_sampler_draw(sampler, nan_logits, &greedy, 1, &got), DR_ERR_NUMERIC, "logit 1 is");
    check_error(dr_sampler_draw(sampler, infinite, &settings, 1, &got), DR_ERR_NUMERIC, "logit 2 is inf");
    check_error(dr_sampler_draw(sampler, empty, &settings, 1, &got), DR_ERR_NUMERIC, "every logit is -inf");
    static const dr_sampling bad[] = {{-1, 1}, {NAN, 1},  {INFINITY, 1}, {1e-9f, 1},
                                      {1, 0},  {1, 1.5f}, {1, NAN}};
    for (int i = 0; i < 7; i++)
        check_error(dr_sampler_draw(sampler, fine, &bad[i], 1, &got), DR_ERR_ARGUMENT,
                    i < 4 ? "temperature" : "top-p");
    assert_int_equal(got.id, -5); // nothing was written
    dr_sampler_destroy(sampler);
    dr_sampler_destroy(NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_distributions),
        cmocka_unit_test(test_kept_sets),
        cmocka_unit_test(test_ties_go_to_smaller_ids),
        cmocka_unit_test(test_replay),
        cmocka_unit_test(test_extremes),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
