// The index arithmetic of the attention kernels, run on the host: spans, tiles, the cache, plans.
// labels: cpu
#include "tests/cached_plan.h"

// ---- spans ----

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
    enum { G = 2 };
    int32_t *counts = counters((int64_t)T * G * p->group);
    for (int64_t block = 0; block < p->query_tiles[n]; block++) {
        int32_t s = dr_find_part(p->query_tiles, n, block);
        const dr_span *span = &p->spans[s];
        int64_t first = (block - p->query_tiles[s]) * DR_CUDA_QUERIES;
        int32_t n_flat = dr_flat_count(span, first, p->group);
        assert_in_range(n_flat, 1, DR_CUDA_QUERIES);
        for (int64_t flat = first; flat < first + n_flat; flat++) {
            int32_t t = (int32_t)(span->row + flat / p->group), seen = rows_seen(p, t, rows);
            assert_int_equal(dr_flat_row(span, flat, p->group), t);
            for (int32_t g = 0; g < G; g++) {
                int32_t head = dr_flat_head(flat, p->group, g);
                assert_true(head >= g * p->group && head < (g + 1) * p->group);
                counts[dr_head_place(t, G * p->group, head)]++;
            }
            assert_int_equal(dr_span_keys_seen(span, flat, p->group), seen);
            assert_int_equal(dr_span_keys(span, flat, p->group, false), seen);
            assert_int_equal(dr_span_keys(span, flat, p->group, true), span->n_before + span->n_rows);
            for (int32_t position = 0; position < seen; position++)
                assert_int_equal(dr_span_key_row(span, position), rows[position]);
        }
    }
    check_each_once("heads of query rows", counts, (int64_t)T * G * p->group);
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

// Heads of rows that stand apart, and elements of dense rows among them: each place once, and nothing
// between.
static void test_strided_rows(void **state) {
    (void)state;
    static const int32_t shapes[][3] = {{1, 1, 1}, {5, 3, 7}, {4, 2, 64}, {3, 9, 5}}; // T, heads, d
    for (int i = 0; i < 4; i++)
        for (int gap = 0; gap < 4; gap++) {
            const int32_t T = shapes[i][0], H = shapes[i][1], d = shapes[i][2], width = H * d;
            const int64_t stride = width + gap;
            int32_t *heads = counters(T * stride), *dense = counters(T * stride);
            for (int64_t row = 0; row < T; row++)
                for (int32_t e = 0; e < width; e++) {
                    heads[dr_head_offset(row, stride, e / d, d) + e % d]++;
                    dense[dr_strided_at(row * width + e, width, stride)]++;
                }
            for (int64_t row = 0; row < T; row++)
                for (int32_t e = width; e < stride; e++) {
                    heads[row * stride + e]++;
                    dense[row * stride + e]++;
                }
            check_each_once("heads and gaps", heads, T * stride);
            check_each_once("dense rows and gaps", dense, T * stride);
        }
}

// A chunk's own rows on their way to the cache: each read once, each at the place where its position is
// found.
static void check_stored(const dr_attention_chunk *chunks, int32_t n, int32_t T, int32_t n_pages) {
    enum { G = 3, D = 5, GAP = 2, STRIDE = G * D + GAP };
    int32_t list[64], n_listed = 0;
    int32_t *read = counters((int64_t)T * STRIDE),
            *written = counters((int64_t)n_pages * DR_CUDA_PAGE * G * D);
    for (int32_t c = 0; c < n; c++) {
        const dr_span span = dr_span_of_chunk(&chunks[c], n_listed);
        const int32_t count = (int32_t)dr_chunk_pages(&chunks[c]);
        assert_true(n_listed + count <= 64);
        if (count > 0) memcpy(list + n_listed, chunks[c].pages, (size_t)count * sizeof *list);
        n_listed += count;
        for (int64_t i = 0; i < span.n_rows; i++) {
            const dr_store_place at = dr_store_place_of(&span, list, i, STRIDE, G, D);
            const int64_t position = chunks[c].n_past + i;
            assert_int_equal(at.from, (chunks[c].row + i) * STRIDE);
            for (int32_t e = 0; e < G * D; e++) {
                const int64_t page = chunks[c].pages[position / DR_CUDA_PAGE];
                assert_int_equal(at.to + e, (page * DR_CUDA_PAGE + position % DR_CUDA_PAGE) * G * D + e);
                read[at.from + e]++;
                written[at.to + e]++;
            }
        }
    }
    for (int64_t row = 0; row < T; row++)
        for (int32_t e = G * D; e < STRIDE; e++) read[row * STRIDE + e]++;
    check_each_once("new rows and gaps", read, (int64_t)T * STRIDE);
    int64_t n_written = 0;
    for (int64_t i = 0; i < (int64_t)n_pages * DR_CUDA_PAGE * G * D; i++) {
        assert_in_range(written[i], 0, 1);
        n_written += written[i];
    }
    assert_int_equal(n_written, (int64_t)T * G * D);
    dr_free(written);
}

static void test_stored_rows(void **state) {
    (void)state;
    static const int32_t first[] = {7, 2, 9, 0, 11}, second[] = {4, 1, 10}, third[] = {3, 5};
    const dr_attention_chunk chunks[] = {
        {0, 33, 40, first}, {33, 1, 32, second}, {34, 0, 0, NULL}, {34, 20, 0, third}};
    for (int32_t n = 1; n <= 4; n++) check_stored(chunks, n, n == 1 ? 33 : n == 4 ? 54 : 34, 12);
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

// ---- attention in bf16 ----

// The kernel's walk over a plan: what a split's end writes has a place of its own for each query and head,
// and the merge behind it reads these places.
static void check_parts_written(const cached_plan *p) {
    enum { G = 2 };
    const int32_t H = G * p->group;
    int32_t *parts = counters(p->n_parts * H);
    for (int64_t i = 0; i < p->n_tiles * G; i++) {
        const dr_query_tile *tile = &p->tiles[i / G];
        const int32_t end = tile->first_key + tile->n_keys;
        for (int32_t key = tile->first_key; key < end; key += DR_CUDA_MMA_KEYS)
            for (int r = 0; r < DR_CUDA_MMA_ROWS && dr_ends_split(key, end); r++) {
                if (dr_tile_query(r, p->group) >= tile->n_queries) continue;
                const dr_query *query = &p->queries[tile->query + dr_tile_query(r, p->group)];
                const int32_t c = key / DR_CUDA_SPLIT;
                if (query->part < 0 || c * DR_CUDA_SPLIT >= query->seen) continue;
                const int64_t at =
                    dr_part_place(query->part, c, H, dr_tile_head(r, p->group, (int32_t)(i % G)));
                assert_true(at >= 0 && at < p->n_parts * H);
                parts[at]++;
            }
    }
    for (int64_t q = 0; q < p->starts[p->n]; q++)
        for (int32_t c = 0; p->queries[q].part >= 0 && c * DR_CUDA_SPLIT < p->queries[q].seen; c++)
            for (int32_t head = 0; head < H; head++)
                assert_int_equal(parts[dr_part_place(p->queries[q].part, c, H, head)], 1);
    for (int64_t i = 0; i < p->n_parts * H; i++) assert_in_range(parts[i], 0, 1);
    dr_free(parts);
}

// A split ends where the next one begins, and at the end of all.
static void test_split_ends(void **state) {
    (void)state;
    for (int32_t end = 1; end <= 3 * DR_CUDA_SPLIT + 1; end++) {
        int32_t n = 0;
        for (int32_t first = 0; first < end; first += DR_CUDA_MMA_KEYS) {
            const int32_t next = first + DR_CUDA_MMA_KEYS;
            const bool is_last = next >= end || next / DR_CUDA_SPLIT != first / DR_CUDA_SPLIT;
            assert_int_equal(dr_ends_split(first, end), is_last);
            n += is_last;
        }
        assert_int_equal(n, dr_splits_of(end));
    }
}

// Sequences 0 to 3 share their first 17 pages, one split, 0 and 1 also the second; 4 has the pages of 3 from
// the second split on; 5 is long enough in new rows not to be split; 7 has few keys.
static void test_cached_plans(void **state) {
    (void)state;
    enum { N = 8, PAGES = 100 };
    int32_t pages[N][PAGES];
    for (int32_t s = 0; s < N; s++)
        for (int32_t i = 0; i < PAGES; i++) {
            bool is_shared = (s < 4 && i < 17) || (s < 2 && i < 40);
            pages[s][i] = is_shared ? i : s == 4 && i >= 16 ? pages[3][i] : s * PAGES + i;
        }
    const dr_attention_chunk chunks[N] = {
        {0, 1, 800, pages[0]}, {1, 1, 700, pages[1]},  {2, 3, 510, pages[2]},  {5, 1, 799, pages[3]},
        {6, 1, 799, pages[4]}, {7, 90, 300, pages[5]}, {97, 0, 512, pages[6]}, {97, 2, 200, pages[7]}};
    for (int32_t group = 1; group <= DR_CUDA_MMA_ROWS; group = group * 2 + (group == 3)) {
        cached_plan p;
        for (int32_t n = 1; n <= N; n++) {
            plan_cached(&p, chunks, n, group);
            assert_int_equal(check_cached_plan(&p), p.n_parts);
            check_parts_written(&p);
        }
    }
    cached_plan p;
    plan_cached(&p, chunks, N, 7);
    int32_t at_first = 0, with_four = 0;
    for (int64_t i = 0; i < p.n_tiles; i++) {
        bool is_split = p.queries[p.tiles[i].query].part >= 0;
        at_first += is_split && p.tiles[i].first_key == 0;
        with_four += p.tiles[i].span == 3 && p.tiles[i].n_queries == 2;
    }
    assert_int_equal(at_first, 2);  // 0 to 3 together, 4 alone
    assert_int_equal(with_four, 2); // 3 and 4: whole splits behind the first
}

// A packed batch's: each row once, all keys that the tile's last row sees; key tiles cover own keys.
static void test_packed_plans(void **state) {
    (void)state;
    static const int32_t lengths[] = {19, 18, 0, 61, 0, 65, 50, 3, 33},
                         prefix[] = {-1, 0, 0, 0, -1, 4, -1, 6, 6};
    for (int32_t group = 1; group <= DR_CUDA_MMA_ROWS; group++) {
        packing p;
        dr_query queries[MAX_ROWS];
        dr_query_tile tiles[MAX_ROWS];
        dr_key_tile keys[MAX_ROWS];
        int64_t starts[MAX_SPANS + 1] = {0}, most = 0;
        pack(&p, lengths, prefix, 9, group);
        for (int32_t s = 0; s < 9; s++) {
            starts[s + 1] = starts[s] + lengths[s];
            most += dr_span_most_tiles(&p.spans[s], group, false);
        }
        int32_t *rows = counters(starts[9]), *owned = counters(starts[9]);
        assert_int_equal(dr_plan_queries(p.spans, 9, group, false, queries), 0);
        int64_t n = dr_plan_query_tiles(p.spans, 9, group, starts, NULL, queries, tiles);
        assert_int_equal(n, most);
        for (int64_t i = 0; i < n; i++) {
            const dr_span *span = &p.spans[tiles[i].span];
            int32_t last = tiles[i].query + tiles[i].n_queries - 1;
            assert_true(tiles[i].n_queries * group <= DR_CUDA_MMA_ROWS && queries[last].part == -1);
            assert_true(queries[tiles[i].query].row >= span->row &&
                        queries[last].row < span->row + span->n_rows);
            assert_int_equal(tiles[i].n_keys, queries[last].seen);
            for (int32_t q = tiles[i].query; q <= last; q++) {
                rows[queries[q].row]++;
                assert_int_equal(queries[q].seen, span->n_before + queries[q].row - span->row + 1);
            }
        }
        check_each_once("rows", rows, starts[9]);
        int64_t n_keys = dr_plan_key_tiles(p.spans, 9, DR_CUDA_MMA_KEYS, keys);
        for (int64_t i = 0; i < n_keys; i++) {
            const dr_span *span = &p.spans[keys[i].span];
            assert_true(i == 0 || keys[i - 1].n_viewers >= keys[i].n_viewers);
            for (int32_t j = keys[i].first; j < keys[i].first + DR_CUDA_MMA_KEYS && j < span->n_rows; j++)
                owned[span->row + j]++;
        }
        check_each_once("keys", owned, starts[9]);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_score_tile),   cmocka_unit_test(test_parts),
        cmocka_unit_test(test_packed_spans), cmocka_unit_test(test_strided_rows),
        cmocka_unit_test(test_stored_rows),  cmocka_unit_test(test_cached_spans),
        cmocka_unit_test(test_split_ends),   cmocka_unit_test(test_cached_plans),
        cmocka_unit_test(test_packed_plans),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
