// The sampler against a plain sorted reference: kept sets, probabilities, frequencies, ties, replay,
// bits of the training pass, refusals.
// labels: cpu
#include <stdbool.h>
#include <stdlib.h>

#include "tests/op_check.h"
#include "tests/ranked.h"

enum { V = 300 };

static dr_status draw(const float *logits, int32_t vocab, const dr_sampling *settings, uint32_t bits,
                      dr_sampled *out) {
    return op_two->ops->sample(op_two, logits, 1, vocab, settings, &bits, out);
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

static void random_logits(float *logits, int32_t n, float scale, uint64_t stream) {
    dr_rng rng = dr_rng_make(41, stream);
    for (int32_t i = 0; i < n; i++) logits[i] = scale * (float)dr_rng_normal(&rng);
}

// A sweep of `bits` over the whole range visits each kept id in proportion to its probability: with N evenly
// spaced marks a count is off by less than one on either side.
static void check_distribution(const float *logits, const dr_sampling *settings) {
    enum { N = 1 << 16 };
    double full[V], kept[V];
    int32_t counts[V] = {0};
    reference(logits, settings->temperature, (double)settings->top_p, full, kept);
    int32_t previous = -1;
    for (int32_t i = 0; i < N; i++) {
        dr_sampled got;
        check_ok(draw(logits, V, settings, (uint32_t)i << 16, &got));
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
    float logits[V];
    static const dr_sampling settings[] = {{1, 1}, {1, 0.9f}, {0.7f, 0.5f}, {1.5f, 0.99f}, {1, 0.05f}};
    for (int i = 0; i < 5; i++) {
        random_logits(logits, V, i % 2 ? 4.0f : 1.0f, (uint64_t)i);
        check_distribution(logits, &settings[i]);
    }
}

// The kept set over many shapes of distribution: its mass seen through the two log-probabilities, and its
// members seen through the last one that a mark just below 1 reaches.
static void test_kept_sets(void **state) {
    (void)state;
    float logits[V];
    static const float scales[] = {0, 1e-3f, 0.3f, 2, 10, 60}, shares[] = {1e-6f, 0.1f, 0.5f, 0.95f, 0.9999f};
    for (int round = 0; round < 600; round++) {
        random_logits(logits, V, scales[round % 6], (uint64_t)(100 + round));
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
        check_ok(draw(logits, V, &settings, UINT32_MAX, &got));
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
}

static void test_ties_go_to_smaller_ids(void **state) {
    (void)state;
    float logits[8] = {0, 2, 0, 2, 2, 0, 2, 0};
    dr_sampled got;
    dr_sampling greedy = {0, 0};
    check_ok(draw(logits, 8, &greedy, 77, &got));
    assert_int_equal(got.id, 1);
    assert_int_equal(got.kept.n, 0);
    float want = -logf(4 + 4 * expf(-2));
    check_close("greedy logprob", &got.logprob, &want, 1, 1e-6, 0);
    assert_true(got.logprob_kept == 0);
    // 0.4 of the mass is two of the four equal ones: the two smaller ids
    dr_sampling nucleus = {1, 0.4f};
    int32_t counts[8] = {0};
    for (uint32_t i = 0; i < 1000; i++) {
        check_ok(draw(logits, 8, &nucleus, i * 4294967u, &got));
        counts[got.id]++;
    }
    assert_int_equal(counts[1] + counts[3], 1000);
    assert_in_range(counts[1], 499, 501);
    // a nucleus smaller than the best token still keeps one
    nucleus.top_p = 1e-6f;
    check_ok(draw(logits, 8, &nucleus, UINT32_MAX, &got));
    assert_int_equal(got.id, 1);
    assert_true(got.logprob_kept == 0);
}

// By its definition, over vocabularies in which the search takes all its steps: no id outside is more
// probable than one inside, the mass reaches top_p, and without the last one it does not.
static void check_nucleus(const float *logits, int32_t vocab, const dr_sampling *settings,
                          const dr_sampled *got) {
    float inv = 1.0f / settings->temperature, top = -INFINITY, lowest = INFINITY, highest = -INFINITY;
    double total = 0, mass = 0;
    int32_t k = 0;
    for (int32_t i = 0; i < vocab; i++) top = fmaxf(top, logits[i]);
    for (int32_t i = 0; i < vocab; i++) {
        double p = exp((double)(logits[i] - top) * inv);
        bool is_kept = k < got->kept.n && got->kept.ids[k] == i;
        total += p;
        if (is_kept) {
            k++;
            mass += p;
            lowest = fminf(lowest, logits[i]);
        } else {
            highest = fmaxf(highest, logits[i]);
        }
    }
    assert_int_equal(k, got->kept.n); // rising, each once
    assert_true(k > 0 && (k == vocab || lowest >= highest - 1e-6f * settings->temperature));
    double last = exp((double)(lowest - top) * inv), wanted = settings->top_p * total;
    if (mass < wanted * (1 - 2e-6) || (k > 1 && mass - last > wanted * (1 + 2e-6)))
        fail_msg("%d of %d ids kept: mass %.9g, wanted %.9g, the last one %.3g", k, vocab, mass, wanted,
                 last);
    assert_true(got->logprob_kept >= got->logprob && got->logprob_kept <= 0);
}

static void test_large_vocabularies(void **state) {
    (void)state;
    enum { MOST = 40007 };
    float *logits = op_array(MOST, sizeof(float));
    static const float scales[] = {0, 0.01f, 0.5f, 2.5f, 8},
                       shares[] = {0.05f, 0.5f, 0.95f, 0.999f, 0.99999f};
    static const int32_t sizes[] = {16, 257, 4096, MOST};
    for (int round = 0; round < 100; round++) {
        int32_t vocab = sizes[round % 4];
        random_logits(logits, vocab, scales[round / 4 % 5], (uint64_t)(2000 + round));
        dr_sampling settings = {round % 3 ? 1.0f : 0.7f, shares[round / 20]};
        dr_sampled got;
        check_ok(draw(logits, vocab, &settings, 0x80000000u, &got));
        check_nucleus(logits, vocab, &settings, &got);
    }
}

// The log-probabilities are the bits that the training pass computes, over all and over the kept set.
static void test_equals_training(void **state) {
    (void)state;
    enum { N = 5000 };
    float *logits = op_array(N, sizeof(float)), lse, lse_kept, entropy;
    static const float scales[] = {0.1f, 1, 3, 10};
    for (int round = 0; round < 80; round++) {
        random_logits(logits, N, scales[round % 4], (uint64_t)(3000 + round));
        dr_sampling settings = {round % 2 ? 1.0f : 1.3f, round % 5 == 4 ? 1.0f : 0.9f};
        dr_sampled got;
        check_ok(draw(logits, N, &settings, (uint32_t)round * 53687091u, &got));
        op_two->ops->softmax_stats(op_two, logits, 1, N, settings.temperature, &lse, &entropy);
        lse_kept = lse;
        op_two->ops->kept_lse(op_two, logits, 1, N, settings.temperature, &got.kept, &lse_kept);
        float whole = dr_logprob_of(logits[got.id], settings.temperature, lse),
              kept = dr_logprob_of(logits[got.id], settings.temperature, lse_kept);
        check_same_bits("logprob", &got.logprob, &whole, 1);
        check_same_bits("logprob_kept", &got.logprob_kept, &kept, 1);
    }
}

// A row's draw is the same alone and among others, at any place, on one thread and on several.
static void test_rows(void **state) {
    (void)state;
    enum { ROWS = 7, N = 700 };
    float *logits = op_array(ROWS * N, sizeof(float)), *before = op_array(ROWS * N, sizeof(float));
    static const dr_sampling of_rows[ROWS] = {{1, 0.9f}, {0, 1},      {0.5f, 1}, {1, 1},
                                              {2, 0.3f}, {1, 0.999f}, {0, 0}};
    for (uint32_t round = 0; round < 50; round++) {
        dr_sampled together[ROWS], apart[ROWS], alone;
        uint32_t bits[ROWS];
        random_logits(logits, ROWS * N, 3, 1000 + round);
        memcpy(before, logits, ROWS * N * sizeof(float));
        for (uint32_t t = 0; t < ROWS; t++) bits[t] = dr_draw(&(dr_draw_key){5, round, 1, t, 3, 4});
        check_ok(op_one->ops->sample(op_one, logits, ROWS, N, of_rows, bits, apart));
        check_ok(op_two->ops->sample(op_two, logits, ROWS, N, of_rows, bits, together));
        for (int t = 0; t < ROWS; t++) {
            const dr_sampled *a = &together[t], *b = &apart[t];
            check_ok(op_one->ops->sample(op_one, logits + t * N, 1, N, &of_rows[t], &bits[t], &alone));
            assert_int_equal(a->id, alone.id);
            check_same_bits("logprob", &a->logprob, &alone.logprob, 1);
            check_same_bits("logprob_kept", &a->logprob_kept, &alone.logprob_kept, 1);
            assert_int_equal(a->kept.n, alone.kept.n);
            if (a->kept.n > 0)
                assert_memory_equal(a->kept.ids, alone.kept.ids, (size_t)a->kept.n * sizeof(int32_t));
            assert_int_equal(a->id, b->id);
        }
        assert_memory_equal(before, logits, ROWS * N * sizeof(float));
    }
}

static void test_extremes(void **state) {
    (void)state;
    dr_sampled got;
    dr_sampling settings = {1e-6f, 0.5f}; // the smallest temperature: all mass on the best
    float cold[4] = {0, -3e38f, 0, -INFINITY};
    check_ok(draw(cold, 4, &settings, UINT32_MAX, &got));
    assert_int_equal(got.id, 0);
    float want = logf(0.5f);
    check_close("logprob", &got.logprob, &want, 1, 1e-6, 0);
    float single[4] = {-INFINITY, -INFINITY, -7, -INFINITY};
    settings = (dr_sampling){1, 1};
    check_ok(draw(single, 4, &settings, UINT32_MAX, &got));
    assert_int_equal(got.id, 2);
    assert_true(got.logprob == 0 && got.logprob_kept == 0);
}

static void test_refusals(void **state) {
    (void)state;
    dr_sampled got = {.id = -5};
    dr_sampling settings = {1, 0.9f}, greedy = {0, 1};
    float nan_logits[3] = {0, NAN, 1}, empty[3] = {-INFINITY, -INFINITY, -INFINITY},
          infinite[3] = {0, 1, INFINITY}, fine[3] = {0, 1, 2};
    check_error(draw(nan_logits, 3, &settings, 1, &got), DR_ERR_NUMERIC, "logit 1 is");
    check_error(draw(nan_logits, 3, &greedy, 1, &got), DR_ERR_NUMERIC, "logit 1 is");
    check_error(draw(infinite, 3, &settings, 1, &got), DR_ERR_NUMERIC, "logit 2 is inf");
    dr_sampling cold = {1e-6f, 1};
    float large[3] = {0, 3e38f, 1};
    check_error(draw(large, 3, &cold, 1, &got), DR_ERR_NUMERIC, "up to 3e+38 at temperature 1e-06");
    check_error(draw(empty, 3, &settings, 1, &got), DR_ERR_NUMERIC, "every logit is -inf");
    static const dr_sampling bad[] = {{-1, 1}, {NAN, 1},  {INFINITY, 1}, {1e-9f, 1},
                                      {1, 0},  {1, 1.5f}, {1, NAN}};
    for (int i = 0; i < 7; i++)
        check_error(draw(fine, 3, &bad[i], 1, &got), DR_ERR_ARGUMENT, i < 4 ? "temperature" : "top-p");
    assert_int_equal(got.id, -5); // nothing was written
}

int main(void) {
    const struct CMUnitTest tests[] = {
        op_test(test_distributions),      op_test(test_kept_sets),       op_test(test_ties_go_to_smaller_ids),
        op_test(test_large_vocabularies), op_test(test_equals_training), op_test(test_rows),
        op_test(test_extremes),           op_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, op_group_setup, op_group_teardown);
}
