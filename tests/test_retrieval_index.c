// The retrieval kernels' index arithmetic, run on the host, and the search for the best of a row.
// labels: cpu
#include <string.h>

#include "core/base/rng.h"
#include "cuda/retrieval_index.h"
#include "tests/owners.h"

// ---- fusion ----

// Positions, spectra and filters of a batch: each thread's column has places of its own, all within.
static void test_fusion_places(void **state) {
    (void)state;
    static const int64_t sizes[][3] = {{1, 1, 1}, {2, 2, 3}, {3, 7, 5}, {2, 10, 16}};
    for (int i = 0; i < 4; i++) {
        const int64_t B = sizes[i][0], L = sizes[i][1], D = sizes[i][2], K = dr_frequencies(L);
        int32_t *positions = counters(B * L * D), *spectra = counters(B * 2 * K * D),
                *filter = counters(dr_fusion_filter_size(L, D));
        assert_int_equal(K, L / 2 + 1);
        for (int64_t q = 0; q < B; q++)
            for (int64_t d = 0; d < D; d++) {
                for (int64_t l = 0; l < L; l++) {
                    positions[dr_position_at(q, l, L, d, D)]++;
                    assert_int_equal(dr_position_at(q, l, L, d, D), dr_position_at(q, 0, L, d, D) + l * D);
                }
                for (int64_t k = 0; k < 2 * K; k++) spectra[dr_spectrum_at(q, k, L, d, D)]++;
                for (int64_t k = 0; q == 0 && k < K; k++)
                    for (int part = 0; part < 2; part++) filter[dr_filter_at(k, d, D) + part]++;
            }
        check_each_once("positions", positions, B * L * D);
        check_each_once("spectra", spectra, B * 2 * K * D);
        check_each_once("a filter", filter, dr_fusion_filter_size(L, D));
    }
}

// ---- padded attention ----

// Blocks of the forward pass: each request, head and asking row once, with rows of the output and of the
// weights that no other block has. Keys and values stand behind the queries.
static void test_padded_places(void **state) {
    (void)state;
    static const int64_t sizes[][4] = {{1, 1, 1, 1}, {2, 3, 5, 4}, {3, 2, 7, 3}}; // B, H, L, d
    for (int at = 0; at < 3 * 2; at++) {
        const int64_t B = sizes[at / 2][0], H = sizes[at / 2][1], L = sizes[at / 2][2], d = sizes[at / 2][3];
        const int64_t n_asking = at % 2 ? 1 : L, D = H * d;
        int32_t *out = counters(B * n_asking * D), *weights = counters(B * H * n_asking * L),
                *qkv = counters(B * L * 3 * D);
        for (int64_t block = 0; block < B * H * n_asking; block++) {
            const dr_padded_block of = dr_padded_block_of(block, n_asking, H);
            assert_true(of.q >= 0 && of.q < B && of.h >= 0 && of.h < H && of.i >= 0 && of.i < n_asking);
            for (int64_t e = 0; e < d; e++) out[dr_padded_out_at(of.q, of.i, n_asking, of.h, H, d) + e]++;
            for (int64_t j = 0; j < L; j++)
                weights[dr_padded_weights_at(of.q, of.h, H, of.i, n_asking, L) + j]++;
            const int64_t head = dr_padded_query_at(of.q, 0, L, of.h, H, d);
            for (int64_t j = 0; j < L; j++) {
                const int64_t query = dr_padded_query_at(of.q, j, L, of.h, H, d);
                assert_int_equal(query, head + j * 3 * D);
                for (int64_t e = 0; of.i == 0 && e < 3 * d; e++) qkv[query + e / d * D + e % d]++;
            }
        }
        check_each_once("rows of the output", out, B * n_asking * D);
        check_each_once("weights", weights, B * H * n_asking * L);
        check_each_once("queries, keys and values", qkv, B * L * 3 * D);
    }
}

// ---- mixture ----

static void test_mixture_places(void **state) {
    (void)state;
    enum { T = 3, E = 5, D = 7 };
    int32_t *parts = counters(T * E * D);
    for (int64_t t = 0; t < T; t++)
        for (int64_t e = 0; e < E; e++)
            for (int64_t d = 0; d < D; d++) {
                parts[dr_mixture_at(t, e, E, d, D)]++;
                assert_int_equal(dr_mixture_at(t, e, E, d, D), dr_mixture_at(t, 0, E, e * D + d, D));
            }
    check_each_once("parts of a mixture", parts, T * E * D);
}

// ---- gradients ----

static void test_fusion_parts(void **state) {
    (void)state;
    static const int64_t sizes[][3] = {{1, 2, 1}, {3, 10, 16}, {300, 20, 5}, {2, 64, 256}};
    for (int i = 0; i < 4; i++) {
        const int64_t B = sizes[i][0], L = sizes[i][1], D = sizes[i][2], filter = dr_fusion_filter_size(L, D);
        const dr_fusion_parts parts = dr_fusion_parts_of(B, L, D);
        int32_t *counts = counters(parts.total);
        const int64_t begins[] = {parts.filter, parts.gate[0], parts.gate[1], parts.bias[0], parts.bias[1]};
        const int64_t widths[] = {filter, D, D, 1, 1};
        assert_int_equal(filter, (L / 2 + 1) * D * 2);
        for (int part = 0; part < 5; part++)
            for (int64_t at = 0; at < B * widths[part]; at++) counts[begins[part] + at]++;
        for (int64_t at = parts.sums; at < parts.total; at++) counts[at]++;
        check_each_once("scratch of a fusion's gradients", counts, parts.total);
        for (int part = 0; part < 5; part++) // what column sums want, and for the positions'
            assert_true(parts.total - parts.sums >= dr_chunk_count(B) * widths[part]);
        assert_true(parts.total - parts.sums >= dr_chunk_count(B) * L * D);
    }
}

static void test_asking_rows(void **state) {
    (void)state;
    enum { L = 6 };
    for (int32_t length = 1; length <= L; length++)
        for (int last = 0; last < 2; last++) {
            int n = 0;
            for (int64_t position = 0; position < L; position++) {
                const int64_t row = dr_asking_of(last, length, position);
                if (row < 0) continue;
                assert_int_equal(dr_asking_position(last, length, row), position);
                n++;
            }
            assert_int_equal(n, last ? 1 : L);
            assert_int_equal(dr_asking_of(last, length, length - 1), last ? 0 : length - 1);
        }
}

// ---- the best of a row ----

static uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

// The kernel's steps with one thread; *out_steps: passes over the row.
static void search_and_sort(const float *row, int32_t V, int32_t k, dr_hit *out, int *out_steps) {
    uint64_t keys[DR_TOP_MOST] = {0};
    dr_hit_search search = dr_hit_search_begin(k);
    int n = 0, n_sorted = 1;
    bool is_found = false;
    for (*out_steps = 0; !is_found; ++*out_steps) {
        int32_t counts[DR_HIT_BINS] = {0};
        assert_true(*out_steps < 64 / DR_HIT_BITS);
        for (int32_t j = 0; j < V; j++) {
            int bin = dr_hit_bin(&search, dr_hit_key(bits_of(row[j]), j));
            if (bin >= 0) counts[bin]++;
        }
        is_found = dr_hit_narrow(&search, counts);
    }
    for (int32_t j = V - 1; j >= 0; j--) {
        uint64_t key = dr_hit_key(bits_of(row[j]), j);
        if (key < dr_hit_least(&search)) continue;
        assert_true(n < k);
        keys[n++] = key;
    }
    while (n_sorted < k) n_sorted *= 2;
    for (int run = 2; run <= n_sorted; run *= 2)
        for (int stride = run / 2; stride > 0; stride /= 2) {
            int32_t *owners = counters(n_sorted);
            for (int i = 0; i < n_sorted / 2; i++) {
                int low = dr_bitonic_low(i, stride), high = low + stride;
                uint64_t a = keys[low], b = keys[high];
                bool turns = dr_bitonic_falls(low, run) ? a < b : a > b;
                keys[low] = turns ? b : a;
                keys[high] = turns ? a : b;
                owners[low]++;
                owners[high]++;
            }
            check_each_once("a step of a sort", owners, n_sorted);
        }
    for (int32_t i = 0; i < k; i++)
        out[i] =
            keys[i] > 0 ? (dr_hit){dr_hit_item(keys[i]), row[dr_hit_item(keys[i])]} : (dr_hit){-1, -INFINITY};
}

// Rows with ties, both zeros, values that are never among the best, and few or no values at all.
static void test_best(void **state) {
    (void)state;
    enum { V = 900 };
    static const int32_t wanted[] = {1, 2, 7, 64, 100, 777, 900, 1024};
    dr_backend *cpu = NULL;
    float row[V];
    dr_hit want[DR_TOP_MOST], got[DR_TOP_MOST];
    check_ok(dr_backend_cpu_create(DR_FP32, 1, &cpu));
    for (int kind = 0; kind < 6; kind++) {
        dr_rng rng = dr_rng_make(5, (uint64_t)kind);
        for (int32_t j = 0; j < V; j++) {
            float x = (float)dr_rng_normal(&rng);
            if (kind == 1) x = (float)((int)(2 * x)) / 2; // many ties; zeros of both signs
            if (kind == 2) x = j % 3 ? -INFINITY : x;
            if (kind == 3) x = j % 50 ? NAN : x > 0 ? INFINITY : -x;
            if (kind == 4) x = 0.5f;
            if (kind == 5) x = -INFINITY;
            row[j] = x;
        }
        for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
            int steps = 0;
            check_ok(cpu->ops->top_k(cpu, row, 1, V, wanted[i], want));
            search_and_sort(row, V, wanted[i], got, &steps);
            assert_memory_equal(got, want, (size_t)wanted[i] * sizeof *want);
        }
    }
    dr_backend_cpu_destroy(cpu);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fusion_places),  cmocka_unit_test(test_padded_places),
        cmocka_unit_test(test_mixture_places), cmocka_unit_test(test_fusion_parts),
        cmocka_unit_test(test_asking_rows),    cmocka_unit_test(test_best),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
