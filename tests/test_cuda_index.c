// The index arithmetic of the CUDA kernels, run on the host: every element of an output has one owner.
// labels: cpu
#include "tests/check.h"

#include <string.h>

#include "core/base/alloc.h"
#include "core/base/rng.h"
#include "cuda/stage_plan.h"
#include "tests/cached_plan.h"

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

// Every value that is made of gate and up has one thread, which finds both of them.
static void test_pieces(void **state) {
    (void)state;
    static const int64_t shapes[][2] = {{1, 1}, {3, 7}, {5, 8}, {4, 9}, {33, 40}, {7, 1001}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        int64_t T = shapes[s][0], F = shapes[s][1], n = dr_piece_count(T, F);
        int32_t *made = counters(T * F), *read = counters(2 * T * F);
        for (int64_t piece = 0; piece < n; piece++) {
            dr_place at = dr_piece_at(piece, F);
            assert_true(at.row < T && at.column < F && at.column % DR_CUDA_ROUNDED == 0);
            for (int i = 0; i < DR_CUDA_ROUNDED && at.column + i < F; i++) {
                int64_t gate = dr_gate_at(at, F) + i;
                assert_true(gate / (2 * F) == at.row && gate % (2 * F) == at.column + i);
                made[at.row * F + at.column + i]++;
                read[gate]++;
                read[gate + F]++;
            }
        }
        assert_true(dr_piece_at(n, F).row >= T); // threads behind the last piece do nothing
        check_each_once("silu(gate) · up", made, T * F);
        check_each_once("gate and up", read, 2 * T * F);
    }
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

// The heads of all rows are read once each, and nothing between the rows.
static void test_heads(void **state) {
    (void)state;
    static const int64_t sizes[][4] = {{1, 1, 2, 2}, {3, 4, 5, 20}, {7, 2, 16, 41}, {5, 3, 64, 300}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        const int64_t T = sizes[i][0], heads = sizes[i][1], d = sizes[i][2], stride = sizes[i][3];
        for (int64_t t = 0; t < T; t++)
            for (int64_t h = 0; h < heads; h++)
                assert_int_equal(dr_head_at(t * heads + h, heads, d, stride), t * stride + h * d);
    }
}

// ---- the retrieval model's gradients ----

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
            assert_int_equal(dr_span_keys(span, flat, p->group, false), seen);
            assert_int_equal(dr_span_keys(span, flat, p->group, true), span->n_before + span->n_rows);
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

// ---- attention in bf16 ----

// What one instruction reads or writes of a tile at a time is eight places of 16 bytes: all banks once.
static void test_swizzle(void **state) {
    (void)state;
    for (int columns = 8; columns <= 16; columns += 8) {
        int32_t *places = counters(DR_CUDA_MMA_ROWS * columns);
        for (int row = 0; row < DR_CUDA_MMA_ROWS; row++)
            for (int column = 0; column < columns; column++) {
                int down = 0, along = 0;
                places[dr_swizzled(row, column, columns)]++;
                for (int i = 0; i < 8; i++) {
                    down |= 1 << dr_swizzled(row / 8 * 8 + i, column, columns) % 8;
                    along |= 1 << dr_swizzled(row, column / 8 * 8 + i, columns) % 8;
                }
                assert_int_equal(down, 0xFF);
                assert_int_equal(along, 0xFF);
            }
        check_each_once("a swizzled tile", places, DR_CUDA_MMA_ROWS * columns);
    }
    assert_int_equal(DR_CUDA_SPLIT % DR_CUDA_MMA_KEYS, 0);
    assert_int_equal(DR_CUDA_SPLIT % DR_CUDA_PAGE, 0);
    assert_int_equal(DR_CUDA_MMA_THREADS / 32 * 16, DR_CUDA_MMA_ROWS);
    assert_true(dr_mma_takes(7, 128) && dr_mma_takes(64, 64) && dr_mma_takes(1, 8));
    assert_false(dr_mma_takes(7, 136) || dr_mma_takes(65, 64) || dr_mma_takes(1, 20));
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

// ---- kept sets ----

// Rows of recorded passes: no fewer than there are, few sizes, never more than twice as many or 15 more.
static void test_pass_buckets(void **state) {
    (void)state;
    int n_buckets = 0;
    assert_int_equal(dr_pass_bucket(0), 0);
    for (int32_t n = 1, last = 0; n <= 1000; n++) {
        const int32_t rows = dr_pass_bucket(n);
        assert_true(rows >= n && rows >= last && rows <= 2 * n && rows < n + 16);
        assert_int_equal(dr_pass_bucket(rows), rows);
        n_buckets += rows != last && n <= 256;
        last = rows;
    }
    static const int32_t first[] = {1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96};
    for (size_t i = 0; i + 1 < sizeof first / sizeof *first; i++)
        assert_int_equal(dr_pass_bucket(first[i] + 1), first[i + 1]);
    assert_int_equal(n_buckets, 23);
}

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
        cmocka_unit_test(test_tiles),        cmocka_unit_test(test_tile_items),
        cmocka_unit_test(test_pieces),       cmocka_unit_test(test_chunks),
        cmocka_unit_test(test_fusion_parts), cmocka_unit_test(test_asking_rows),
        cmocka_unit_test(test_score_tile),   cmocka_unit_test(test_parts),
        cmocka_unit_test(test_packed_spans), cmocka_unit_test(test_cached_spans),
        cmocka_unit_test(test_swizzle),      cmocka_unit_test(test_cached_plans),
        cmocka_unit_test(test_packed_plans), cmocka_unit_test(test_ids),
        cmocka_unit_test(test_best),         cmocka_unit_test(test_heads),
        cmocka_unit_test(test_pass_buckets),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
