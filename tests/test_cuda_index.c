// The index arithmetic of the CUDA kernels, run on the host: every element of an output has one owner.
// labels: cpu
#include "tests/check.h"

#include <string.h>

#include "core/base/alloc.h"
#include "cuda/index.h"

static int32_t *counters(int64_t n) {
    int32_t *counts = NULL;
    check_ok(dr_alloc(&counts, "counters", n, sizeof *counts));
    return counts;
}

static void check_each_once(const char *name, int32_t *counts, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        if (counts[i] != 1) fail_msg("%s: element %lld has %d owners", name, (long long)i, counts[i]);
    dr_free(counts);
}

// ---- products ----

static void test_tiles(void **state) {
    (void)state;
    static const int64_t sizes[] = {1, 3, 63, 64, 65, 127, 128, 200};
    enum { N = sizeof sizes / sizeof *sizes };
    for (int at = 0; at < N * N; at++) {
        int64_t m = sizes[at / N], n = sizes[at % N], across = dr_ceil_div(n, DR_CUDA_TILE);
        int32_t *counts = counters(m * n);
        for (int64_t block = 0; block < dr_ceil_div(m, DR_CUDA_TILE) * across; block++) {
            dr_place corner = dr_tile_corner(block, across);
            for (int thread = 0; thread < DR_CUDA_FP32_THREADS; thread++)
                for (int own = 0; own < DR_CUDA_FP32_OWN * DR_CUDA_FP32_OWN; own++) {
                    int64_t row = corner.row + dr_thread_row(thread, own / DR_CUDA_FP32_OWN),
                            column = corner.column + dr_thread_column(thread, own % DR_CUDA_FP32_OWN);
                    if (row < m && column < n) counts[row * n + column]++;
                }
        }
        check_each_once("a product", counts, m * n);
    }
}

static void check_items(int depth, int threads, bool along_depth) {
    int32_t *counts = counters(DR_CUDA_TILE * depth);
    for (int thread = 0; thread < threads; thread++)
        for (int item = thread; item < DR_CUDA_TILE * depth; item += threads) {
            dr_place at = dr_tile_item(item, depth, along_depth);
            assert_true(at.row >= 0 && at.row < DR_CUDA_TILE && at.column >= 0 && at.column < depth);
            counts[at.row * depth + at.column]++;
        }
    check_each_once("a tile of an operand", counts, DR_CUDA_TILE * depth);
    dr_place first = dr_tile_item(0, depth, along_depth), second = dr_tile_item(1, depth, along_depth);
    assert_int_equal(second.column - first.column, along_depth);
    assert_int_equal(second.row - first.row, !along_depth);
}

static void test_tile_items(void **state) {
    (void)state;
    for (int along = 0; along < 2; along++) {
        check_items(DR_CUDA_FP32_DEPTH, DR_CUDA_FP32_THREADS, along);
        check_items(DR_CUDA_BF16_DEPTH, DR_CUDA_BF16_THREADS, along);
    }
    assert_int_equal(DR_CUDA_BF16_DEPTH % 16, 0); // the tensor cores' step
}

// ---- sums over rows ----

static void check_parts(int64_t T, int64_t rows, int64_t n, int64_t most_parts, int64_t least_rows) {
    int32_t *counts = counters(T);
    assert_true(n <= most_parts && rows >= least_rows);
    for (int64_t part = 0; part < n; part++) {
        assert_true(part * rows < T); // no empty one
        for (int64_t t = part * rows; t < (part + 1) * rows && t < T; t++) counts[t]++;
    }
    check_each_once("rows", counts, T);
}

static void test_chunks(void **state) {
    (void)state;
    static const int64_t sizes[] = {0,    1,    3,    4,     5,     63,    64,     65,
                                    4095, 4096, 4097, 16383, 16384, 16385, 524289, 16384 + 256};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        int64_t T = sizes[i];
        check_parts(T, dr_chunk_rows(T), dr_chunk_count(T), DR_CUDA_CHUNKS, DR_CUDA_CHUNK_ROWS);
        check_parts(T, dr_norm_rows(T), dr_norm_parts(T), DR_CUDA_NORM_PARTS, DR_CUDA_NORM_ROWS);
    }
}

// ---- attention ----

static void test_score_tile(void **state) {
    (void)state;
    int32_t *scores = counters(DR_CUDA_QUERIES * DR_CUDA_KEYS);
    for (int thread = 0; thread < DR_CUDA_ATTENTION_THREADS; thread++)
        for (int own = 0; own < 4; own++)
            scores[dr_score_row(thread, own / 2) * DR_CUDA_KEYS + dr_score_key(thread, own % 2)]++;
    check_each_once("a tile of scores", scores, DR_CUDA_QUERIES * DR_CUDA_KEYS);
    assert_int_equal(DR_CUDA_ATTENTION_THREADS / 32 * DR_CUDA_ATTENTION_OWN, DR_CUDA_QUERIES);
    assert_int_equal(DR_CUDA_KEYS, 32); // one a lane
    for (int32_t d = 1; d <= DR_CUDA_MAX_HEAD; d++) {
        assert_true(dr_head_columns(d) * 32 >= d);
        assert_true(dr_head_pitch(d) >= d && dr_head_pitch(d) % 2 == 1);
    }
}

static void test_parts(void **state) {
    (void)state;
    static const int64_t lengths[] = {0, 0, 3, 0, 1, 7, 0, 0, 2, 0};
    enum { N = sizeof lengths / sizeof *lengths };
    for (int32_t begin = 0; begin < N; begin++)
        for (int32_t end = begin + 1; end <= N; end++) {
            int64_t starts[N + 1] = {0};
            for (int32_t s = begin; s < end; s++) starts[s - begin + 1] = starts[s - begin] + lengths[s];
            for (int64_t at = 0; at < starts[end - begin]; at++) {
                int32_t s = dr_find_part(starts, end - begin, at);
                assert_true(s >= 0 && s < end - begin && starts[s] <= at && at < starts[s + 1]);
            }
        }
}

enum { MAX_SPANS = 9, MAX_ROWS = 300 };

// A packed batch with the starts of its tiles, as the host part of the backend describes it.
typedef struct packing {
    dr_sequences sequences;
    int32_t cu[MAX_SPANS + 1], group;
    dr_span spans[MAX_SPANS];
    int64_t query_tiles[MAX_SPANS + 1], key_tiles[MAX_SPANS + 1];
} packing;

static void pack(packing *p, const int32_t *lengths, const int32_t *prefix, int32_t n, int32_t group) {
    *p = (packing){.sequences = {n, p->cu, prefix}, .group = group};
    for (int32_t s = 0; s < n; s++) p->cu[s + 1] = p->cu[s] + lengths[s];
    for (int32_t s = 0; s < n; s++) {
        p->spans[s] = dr_span_of_sequence(&p->sequences, s);
        p->query_tiles[s + 1] = p->query_tiles[s] + dr_span_query_tiles(&p->spans[s], group);
        p->key_tiles[s + 1] = p->key_tiles[s] + dr_span_key_tiles(&p->spans[s]);
    }
}

// The rows that row `t` sees, in order, by the words of backend.h; returns their number.
static int32_t rows_seen(const packing *p, int32_t t, int32_t *rows) {
    int32_t s = 0, n = 0;
    while (p->cu[s + 1] <= t) s++;
    int32_t before = dr_prefix_of(&p->sequences, s);
    for (int32_t j = before < 0 ? 0 : p->cu[before]; before >= 0 && j < p->cu[before + 1]; j++) rows[n++] = j;
    for (int32_t j = p->cu[s]; j <= t; j++) rows[n++] = j;
    return n;
}

// Query tiles: each row and head has one place, and sees the keys that it should.
static void check_query_tiles(const packing *p) {
    int32_t n = p->sequences.n, T = p->cu[n], rows[MAX_ROWS];
    int32_t *counts = counters(T * p->group);
    for (int64_t block = 0; block < p->query_tiles[n]; block++) {
        int32_t s = dr_find_part(p->query_tiles, n, block);
        const dr_span *span = &p->spans[s];
        int64_t first = (block - p->query_tiles[s]) * DR_CUDA_QUERIES;
        for (int64_t flat = first; flat < first + DR_CUDA_QUERIES && flat < (int64_t)span->n_rows * p->group;
             flat++) {
            int32_t t = (int32_t)(span->row + flat / p->group), seen = rows_seen(p, t, rows);
            counts[t * p->group + flat % p->group]++;
            assert_int_equal(dr_span_keys_seen(span, flat, p->group), seen);
            for (int32_t position = 0; position < seen; position++)
                assert_int_equal(dr_span_key_row(span, position), rows[position]);
        }
    }
    check_each_once("query rows", counts, (int64_t)T * p->group);
}

// Key tiles with the query rows that they meet: each pair of a row and a key that it sees meets once, other
// pairs never.
static void check_key_tiles(const packing *p) {
    int32_t n = p->sequences.n, T = p->cu[n], group = p->group, rows[MAX_ROWS];
    int32_t *counts = counters(T), *pairs = counters((int64_t)T * T * group);
    for (int64_t block = 0; block < p->key_tiles[n]; block++) {
        int32_t s = dr_find_part(p->key_tiles, n, block);
        const dr_span *span = &p->spans[s];
        int32_t first = (int32_t)(block - p->key_tiles[s]) * DR_CUDA_KEYS;
        for (int32_t j = first; j < first + DR_CUDA_KEYS && j < span->n_rows; j++) {
            int64_t key = dr_span_key_row(span, span->n_before + j);
            assert_int_equal(key, span->row + j);
            counts[key]++;
            for (int32_t viewer = s; viewer <= s + span->n_sharers; viewer++) {
                const dr_span *by = &p->spans[viewer];
                for (int64_t flat = viewer == s ? (int64_t)first * group : 0;
                     flat < (int64_t)by->n_rows * group; flat++)
                    if (viewer != s || flat / group >= j)
                        pairs[((by->row + flat / group) * T + key) * group + flat % group]++;
            }
        }
    }
    check_each_once("keys", counts, T);
    for (int32_t t = 0; t < T; t++) {
        int32_t seen = rows_seen(p, t, rows);
        for (int32_t i = 0; i < seen * group; i++)
            pairs[((int64_t)t * T + rows[i / group]) * group + i % group]--;
    }
    for (int64_t i = 0; i < (int64_t)T * T * group; i++)
        if (pairs[i] != 0) fail_msg("row %d and key %d", (int)(i / group / T), (int)(i / group % T));
    dr_free(pairs);
}

static void test_packed_spans(void **state) {
    (void)state;
    static const int32_t one[] = {1}, odd[] = {0, 31, 0, 33, 2, 65, 32}, none[] = {0, 0};
    static const int32_t shared[] = {19, 18, 0, 61, 0, 5, 50, 3, 33},
                         prefix[] = {-1, 0, 0, 0, -1, 4, -1, 6, 6};
    for (int32_t group = 1; group <= 9; group++) {
        packing p;
        pack(&p, one, NULL, 1, group);
        check_query_tiles(&p);
        check_key_tiles(&p);
        pack(&p, odd, NULL, 7, group);
        check_query_tiles(&p);
        check_key_tiles(&p);
        pack(&p, none, NULL, 2, group);
        check_query_tiles(&p);
        check_key_tiles(&p);
        for (int32_t n = 1; n <= 9; n++) {
            pack(&p, shared, prefix, n, group);
            check_query_tiles(&p);
            check_key_tiles(&p);
        }
    }
}

// Chunks of two sequences on shuffled pages: every position has its own place in the cache, the one that its
// page says.
static void test_cached_spans(void **state) {
    (void)state;
    enum { G = 3, D = 5, PAGES = 12 };
    static const int32_t first[] = {7, 2, 9, 0, 11}, second[] = {4, 1, 10};
    const dr_attention_chunk chunks[] = {{0, 33, 40, first}, {33, 1, 32, second}, {34, 0, 0, NULL}};
    int32_t list[PAGES], n_pages = 0;
    int32_t *counts = counters(PAGES * DR_CUDA_PAGE * G * D);
    static const int64_t want_pages[] = {5, 3, 0};
    for (int c = 0; c < 3; c++) {
        dr_span span = dr_span_of_chunk(&chunks[c], n_pages);
        int64_t count = dr_chunk_pages(&chunks[c]);
        assert_int_equal(count, want_pages[c]);
        if (count > 0) memcpy(list + n_pages, chunks[c].pages, (size_t)count * sizeof *list);
        n_pages += (int32_t)count;
        for (int64_t position = 0; position < span.n_before + span.n_rows; position++)
            for (int32_t e = 0; e < G * D; e++) {
                int64_t at = dr_cache_offset(list + span.first_page, position, G, e / D, D) + e % D;
                int32_t page = chunks[c].pages[position / DR_CUDA_PAGE];
                assert_int_equal(at, ((int64_t)page * DR_CUDA_PAGE + position % DR_CUDA_PAGE) * G * D + e);
                counts[at]++;
            }
        for (int64_t flat = 0; flat < span.n_rows * 2; flat++)
            assert_int_equal(dr_span_keys_seen(&span, flat, 2), chunks[c].n_past + flat / 2 + 1);
    }
    for (int64_t i = 0; i < PAGES * DR_CUDA_PAGE * G * D; i++) assert_true(counts[i] <= 1);
    dr_free(counts);
}

// ---- kept sets ----

static void test_ids(void **state) {
    (void)state;
    static const int32_t ids[] = {0, 3, 4, 9, 17, 18, 40};
    for (int32_t n = 0; n <= 7; n++)
        for (int32_t id = 0; id < 50; id++) {
            bool is_there = false;
            for (int32_t i = 0; i < n; i++) is_there |= ids[i] == id;
            assert_int_equal(dr_ids_hold(ids, n, id), is_there);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tiles),        cmocka_unit_test(test_tile_items),
        cmocka_unit_test(test_chunks),       cmocka_unit_test(test_score_tile),
        cmocka_unit_test(test_parts),        cmocka_unit_test(test_packed_spans),
        cmocka_unit_test(test_cached_spans), cmocka_unit_test(test_ids),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
