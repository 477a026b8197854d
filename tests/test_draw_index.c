// The arithmetic of draws on a device, run on the host: every id is looked at once, and the search by levels
// finds the kept set that a sorted row has.
// labels: cpu
#include "tests/check.h"

#include <stdlib.h>
#include <string.h>

#include "core/base/alloc.h"
#include "core/base/rng.h"
#include "cuda/draw_index.h"
#include "tests/cached_plan.h"

static uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static void test_ids(void **state) {
    (void)state;
    static const int64_t sizes[] = {1, 31, 512, 513, 8191, 8192, 8193, 151936, 151937};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        const int64_t V = sizes[i];
        int32_t *of_pieces = counters(V), *of_chains = counters(V);
        for (int32_t piece = 0; piece < dr_draw_pieces(V); piece++) {
            assert_true(dr_draw_id(piece, 0, 0) < V); // no empty one
            for (int32_t thread = 0; thread < DR_DRAW_THREADS; thread++)
                for (int32_t k = 0; k < DR_DRAW_OWN; k++) {
                    const int64_t j = dr_draw_id(piece, thread, k);
                    if (j < V) of_pieces[j]++;
                    if (thread % 32 > 0) assert_int_equal(j, dr_draw_id(piece, thread - 1, k) + 1);
                    if (k > 0) assert_int_equal(j, dr_draw_id(piece, thread, k - 1) + 32);
                }
            for (int32_t thread = 32; thread < DR_DRAW_THREADS; thread += 32) // a warp's are those before
                assert_int_equal(dr_draw_id(piece, thread, 0),
                                 dr_draw_id(piece, thread - 1, DR_DRAW_OWN - 1) + 1);
        }
        for (int64_t round = 0; round < dr_ceil_div(V, DR_DRAW_CHAINS); round++)
            for (int32_t chain = 0; chain < DR_DRAW_CHAINS; chain++) {
                const int64_t j = dr_chain_id(round, chain / 32, chain % 32);
                assert_int_equal(j % DR_DRAW_CHAINS, chain);
                if (j < V) of_chains[j]++;
            }
        check_each_once("pieces", of_pieces, V);
        check_each_once("chains", of_chains, V);
    }
    assert_int_equal(DR_DRAW_ROUNDS % (DR_DRAW_SUM_THREADS / 32), 0);
    assert_int_equal(DR_DRAW_BINS % DR_DRAW_THREADS, 0);
}

static void test_words(void **state) {
    (void)state;
    for (int level = 0; level < DR_DRAW_LEVELS; level++) {
        const int64_t n = (int64_t)dr_draw_copies(level) * dr_draw_level_bins(level);
        int32_t *counts = counters(n);
        assert_true(n <= DR_DRAW_WORDS);
        for (int32_t warp = 0; warp < dr_draw_copies(level); warp++)
            for (int32_t bin = 0; bin < dr_draw_level_bins(level); bin++)
                counts[dr_draw_word(level, warp, bin)]++;
        check_each_once("a histogram", counts, n);
    }
}

// In the units of a double whose last bit is 2^-32, and two words that carry.
static void test_masses(void **state) {
    (void)state;
    dr_rng rng = dr_rng_make(3, 1);
    uint32_t low = 0, high = 0;
    uint64_t sum = 0;
    for (int i = 0; i < 100000; i++) {
        const float p = float_of((uint32_t)dr_rng_below(&rng, DR_DRAW_ONE - 0x2F000000u + 1) + 0x2F000000u);
        volatile double shifted = (double)p + 0x1.8p20;
        assert_true(dr_draw_real(dr_draw_mass(p)) == shifted - 0x1.8p20);
        const uint64_t mass = dr_draw_mass(p) * (1 + dr_rng_below(&rng, 40));
        const uint32_t before = low;
        low += (uint32_t)mass;
        high += dr_draw_carried(mass, before);
        sum += mass;
        assert_true(((uint64_t)high << 32 | low) == sum);
    }
    assert_true(dr_draw_mass(1) == (uint64_t)1 << 32 && dr_draw_mass(0) == 0);
    assert_true(dr_draw_mass(0x1p-33f) == 0 && dr_draw_mass(0x1.8p-32f) == 2); // ties to even
}

static void test_bins(void **state) {
    (void)state;
    static const float none[] = {0, 0x1.fffffep-33f, NAN, INFINITY, 1.0000001f, -1};
    for (size_t i = 0; i < sizeof none / sizeof *none; i++)
        assert_int_equal(dr_draw_bin(0, 0, bits_of(none[i])), -1);
    assert_int_equal(dr_draw_bin(0, 0, DR_DRAW_LEAST), 0);
    assert_int_equal(dr_draw_bin(0, 0, DR_DRAW_ONE), dr_draw_level_bins(0) - 1);
    dr_rng rng = dr_rng_make(3, 2);
    for (int i = 0; i < 10000; i++) { // the bins of all levels are all bits
        const uint32_t bits = DR_DRAW_LEAST + (uint32_t)dr_rng_below(&rng, DR_DRAW_ONE - DR_DRAW_LEAST + 1);
        dr_draw_search search = {0};
        for (int level = 0; level < DR_DRAW_LEVELS; level++) {
            const int32_t bin = dr_draw_bin(level, search.border, bits);
            assert_in_range(bin, 0, dr_draw_level_bins(level) - 1);
            dr_draw_narrow(&search, level, bin, 0);
            if (level < DR_DRAW_LEVELS - 1)
                assert_int_equal(dr_draw_bin(level + 1, search.border + 1, bits), -1);
        }
        assert_int_equal(search.border, bits);
    }
}

// ---- the search ----

static int by_size(const void *a, const void *b) {
    const float x = *(const float *)a, y = *(const float *)b;
    return (x < y) - (x > y);
}

static dr_draw_search search_of(const float *p, int64_t n, float top_p, uint64_t all) {
    dr_draw_search search = dr_draw_search_begin(top_p, all);
    for (int level = 0; level < DR_DRAW_LEVELS; level++) {
        uint64_t bins[DR_DRAW_BINS] = {0}, sum = 0, before = 0;
        int32_t n_reached = 0, reached = -1;
        for (int64_t j = 0; j < n; j++) {
            const int32_t bin = dr_draw_bin(level, search.border, bits_of(p[j]));
            if (bin < 0) continue;
            bins[bin] += dr_draw_mass(p[j]);
            sum += dr_draw_mass(p[j]);
        }
        const uint64_t target = dr_draw_target(&search, sum);
        uint64_t in_front = 0;
        for (int32_t bin = dr_draw_level_bins(level) - 1; bin >= 0; bin--) {
            if (dr_draw_reaches(before, bins[bin], target)) {
                reached = bin;
                in_front = before;
                n_reached++;
            }
            before += bins[bin];
        }
        assert_int_equal(n_reached, 1);
        dr_draw_narrow(&search, level, reached, in_front);
        if (level == DR_DRAW_LEVELS - 1)
            dr_draw_settle(&search, dr_draw_mass(float_of(search.border)), bins[reached]);
    }
    return search;
}

static void check_search(float *p, int64_t n, float top_p) {
    uint64_t all = 0;
    for (int64_t j = 0; j < n; j++) all += dr_draw_mass(p[j]);
    const dr_draw_search got = search_of(p, n, top_p, all);
    qsort(p, (size_t)n, sizeof *p, by_size);
    const double wanted = (double)top_p * dr_draw_real(all);
    double mass = 0, above = 0;
    int64_t k = 0, n_equal = 0;
    while (k < n && p[k] >= 0x1p-32f && mass < wanted) mass += dr_draw_real(dr_draw_mass(p[k++]));
    for (int64_t i = 0; i < k; i++) {
        if (p[i] == p[k - 1]) n_equal++;
        if (p[i] > p[k - 1]) above += dr_draw_real(dr_draw_mass(p[i]));
    }
    assert_int_equal(got.border, bits_of(p[k - 1]));
    assert_int_equal(got.n_equal, n_equal);
    assert_true(dr_draw_real(got.mass) == mass && dr_draw_real(got.above) == above);
}

static void test_search(void **state) {
    (void)state;
    enum { N = 3001 };
    static const float shares[] = {1e-7f, 0.1f, 0.5f, 0.95f, 0.9999f, 0.99999994f};
    static const double scales[] = {0, 0.01, 1, 5, 20};
    static float p[N];
    for (int i = 0; i < 60; i++) {
        const int64_t n = i % 3 == 2 ? 1 + i : N;
        dr_rng rng = dr_rng_make(7, (uint64_t)i);
        for (int64_t j = 0; j < n; j++) {
            double z = scales[i / 6 % 5] * dr_rng_normal(&rng);
            if (i % 4 == 1) z = round(z);
            p[j] = j == n / 2 ? 1.0f : expf((float)-fabs(z));
        }
        check_search(p, n, shares[i % 6]);
    }
    // ids below the least have more than is left over: what is there is kept, and falls short
    p[0] = 1;
    p[1] = 0.25f;
    for (int j = 2; j < N; j++) p[j] = 0x1.8p-33f;
    check_search(p, N, 0.99999994f);
}

// Parts that follow each other hold what all of them do, with any number of equal ones kept.
static void test_counts(void **state) {
    (void)state;
    const uint64_t each = 7;
    dr_rng rng = dr_rng_make(3, 3);
    for (int round = 0; round < 100; round++) {
        const int32_t n_equal = (int32_t)dr_rng_below(&rng, 20);
        dr_draw_count sum = {0, 0, 0};
        int32_t n_kept = 0, equal_left = n_equal;
        uint64_t mass = 0;
        for (int id = 0; id < 60; id++) {
            const bool is_above = dr_rng_below(&rng, 3) == 0,
                       is_equal = !is_above && dr_rng_below(&rng, 2) == 0;
            assert_int_equal(dr_draw_kept(sum, n_equal), n_kept);
            assert_true(dr_draw_kept_mass(sum, n_equal, each) == mass);
            sum = dr_draw_sum(sum, (dr_draw_count){is_above ? 11 : 0, is_above, is_equal});
            const bool is_kept = is_above || (is_equal && equal_left-- > 0);
            n_kept += is_kept;
            mass += is_kept ? is_above ? 11 : each : 0;
        }
    }
}

// Marks from the first to the last are all below the mass, goals within it.
static void test_marks(void **state) {
    (void)state;
    static const uint64_t masses[] = {1, 3, (uint64_t)1 << 32, ((uint64_t)151936 << 32) - 1};
    for (size_t i = 0; i < sizeof masses / sizeof *masses; i++) {
        assert_true(dr_draw_mark(0, masses[i]) == 0 && dr_draw_mark(UINT32_MAX, masses[i]) < masses[i]);
        assert_true(dr_draw_goal(1e-20f, masses[i]) == 1);
        assert_true(dr_draw_goal(0.99999994f, masses[i]) <= masses[i]);
    }
    assert_true(dr_draw_goal(0.5f, 10) == 5 && dr_draw_goal(0.5f, 11) == 6);
    assert_true(dr_draw_mark(0x80000000u, 10) == 5 && dr_draw_mark(0x80000000u, 11) == 5);
}

static void test_scratch(void **state) {
    (void)state;
    assert_int_equal(sizeof(dr_draw_state) % sizeof(uint64_t), 0); // pieces stand behind the states
    assert_int_equal(dr_draw_bytes(3, 151936), 3 * (sizeof(dr_draw_state) + 19 * sizeof(dr_draw_piece)));
    assert_int_equal(dr_draw_bytes(0, 151936), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ids),   cmocka_unit_test(test_words),   cmocka_unit_test(test_masses),
        cmocka_unit_test(test_bins),  cmocka_unit_test(test_search),  cmocka_unit_test(test_counts),
        cmocka_unit_test(test_marks), cmocka_unit_test(test_scratch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
