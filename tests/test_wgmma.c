// The index arithmetic of the attention kernels with wgmma over all its ranges: shared memory, descriptors,
// fragments, steps, views, tiles.
// labels: cpu
#include "tests/wgmma_batch.h"
#include "tests/wgmma_emulation.h"

// ---- shared memory and registers ----

// Every element has a place of its own, the one where a tensor copy puts it.
static void test_panels(void **state) {
    (void)state;
    for (int rows = 64; rows <= 128; rows += 64)
        for (int columns = 64; columns <= 128; columns += 64) {
            static uint16_t values[128 * 128];
            const tensor_map map = {values, rows, 1, columns, 1, rows};
            for (int i = 0; i < rows * columns; i++) values[i] = (uint16_t)i;
            shared_clear();
            for (int p = 0; p < columns / DR_WGMMA_PANEL; p++)
                emulate_tensor_copy(2048 + (uint32_t)(p * rows * DR_WGMMA_PITCH), &map, p * DR_WGMMA_PANEL, 0,
                                    0);
            for (int row = 0; row < rows; row++)
                for (int column = 0; column < columns; column++) {
                    int32_t at = dr_panel_offset(row, column, rows);
                    assert_true(at >= 0 && at < rows * columns * 2);
                    assert_int_equal(shared_bf16(2048 + (uint32_t)at), row * columns + column);
                }
        }
}

// Descriptors name the elements that they should, wherever in shared memory the tile stands.
static void test_descriptors(void **state) {
    (void)state;
    for (int rows = 64; rows <= 128; rows += 64)
        for (uint32_t tile = 0; tile + (uint32_t)rows * 256 <= SHARED_BYTES; tile += 1024) {
            for (int step = 0; step < 128 / DR_WGMMA_DEPTH; step++)
                for (int first = 0; first < rows; first += 8) {
                    uint64_t descriptor = dr_wgmma_along_columns(tile, rows, first, step);
                    for (int mn = 0; mn < rows - first; mn += 5)
                        for (int k = 0; k < DR_WGMMA_DEPTH; k++)
                            assert_int_equal(operand_address(descriptor, mn, k, false),
                                             tile +
                                                 (uint32_t)dr_panel_offset(first + mn, step * 16 + k, rows));
                }
            for (int step = 0; step < rows / DR_WGMMA_DEPTH; step++) {
                uint64_t descriptor = dr_wgmma_along_rows(tile, rows, step);
                for (int mn = 0; mn < 128; mn++)
                    for (int k = 0; k < DR_WGMMA_DEPTH; k++)
                        assert_int_equal(operand_address(descriptor, mn, k, true),
                                         tile + (uint32_t)dr_panel_offset(step * 16 + k, mn, rows));
            }
        }
}

// Each element of a result has one owner; eight sums in a row are a left operand's registers.
static void test_fragments(void **state) {
    (void)state;
    int owners[RESULT_ROWS][MOST_COLUMNS] = {{0}};
    for (int thread = 0; thread < GROUP_THREADS; thread++)
        for (int i = 0; i < MOST_COLUMNS / 2; i++) {
            int row = dr_fragment_row(thread, i), column = dr_fragment_column(thread, i);
            assert_int_equal(row, wgmma_result_row(thread, i));
            assert_int_equal(column, wgmma_result_column(thread, i));
            owners[row][column]++;
        }
    for (int i = 0; i < RESULT_ROWS * MOST_COLUMNS; i++)
        assert_int_equal(owners[i / MOST_COLUMNS][i % MOST_COLUMNS], 1);
    for (int step = 0; step < MOST_COLUMNS / DR_WGMMA_DEPTH; step++) {
        static uint32_t registers[GROUP_THREADS][4];
        for (int thread = 0; thread < GROUP_THREADS; thread++)
            for (int r = 0; r < 4; r++)
                for (int half = 0; half < 2; half++) {
                    int i = 8 * step + 2 * r + half;
                    uint32_t value =
                        (uint32_t)(dr_fragment_row(thread, i) * 128 + dr_fragment_column(thread, i));
                    registers[thread][r] = half ? registers[thread][r] | value << 16 : value;
                }
        const left_operand left = {0, registers};
        for (int row = 0; row < RESULT_ROWS; row++)
            for (int k = 0; k < DR_WGMMA_DEPTH; k++)
                assert_int_equal(left_element(&left, row, k), row * 128 + step * 16 + k);
    }
}

// A warpgroup's rows of q: each pair of columns has one thread.
static void test_query_pairs(void **state) {
    (void)state;
    for (int columns = 64; columns <= 128; columns += 64) {
        int owners[RESULT_ROWS][MOST_COLUMNS] = {{0}};
        assert_int_equal(dr_wgmma_pairs(columns) % 16, 0); // the kernel's loads ahead
        for (int thread = 0; thread < GROUP_THREADS; thread++)
            for (int i = 0; i < dr_wgmma_pairs(columns); i++) {
                int row = dr_wgmma_pair_row(thread, i, columns),
                    column = dr_wgmma_pair_column(thread, i, columns);
                assert_true(row >= 0 && row < RESULT_ROWS && column >= 0 && column + 1 < columns);
                assert_int_equal(column % 2, 0);
                owners[row][column]++;
                owners[row][column + 1]++;
            }
        for (int i = 0; i < RESULT_ROWS * columns; i++) assert_int_equal(owners[i / columns][i % columns], 1);
    }
}

// ---- steps and tiles ----

// The rows of k that row t sees, by the words of backend.h; returns their number.
static int32_t rows_seen(const batch *b, int32_t t, int32_t *rows) {
    int32_t s = 0, n = 0;
    while (b->cu[s + 1] <= t) s++;
    int32_t before = dr_prefix_of(&b->sequences, s);
    for (int32_t j = before < 0 ? 0 : b->cu[before]; before >= 0 && j < b->cu[before + 1]; j++) rows[n++] = j;
    for (int32_t j = b->cu[s]; j <= t; j++) rows[n++] = j;
    return n;
}

// A query meets each key that it sees once, in their order; a query that is not there meets none.
static void check_query(const batch *b, const dr_span *span, const dr_query *query, int32_t n_steps,
                        int32_t keys) {
    int32_t rows[MAX_ROWS], met = 0, n = rows_seen(b, query->row, rows);
    for (int32_t j = 0; j < n_steps; j++) {
        int32_t limit = dr_step_limit(span, j, keys, query->seen);
        int64_t first = dr_step_row(span, j, keys);
        assert_true(first >= 0 && first < b->T);
        for (int32_t i = 0; i < keys && i < limit; i++) {
            assert_true(met < n);
            assert_int_equal(first + i, rows[met++]);
        }
        assert_true(dr_step_limit(span, j, keys, 0) <= 0);
    }
    assert_int_equal(met, n);
}

static void check_tiles(const batch *b, int32_t group) {
    dr_query_tile tiles[MAX_ROWS];
    int32_t owned[MAX_ROWS] = {0};
    int64_t most = 0, n = dr_plan_wide_tiles(b->spans, b->from->n, group, b->starts, tiles);
    for (int32_t s = 0; s < b->from->n; s++) most += dr_span_wide_tiles(&b->spans[s], group);
    assert_int_equal(n, most);
    for (int64_t i = 0; i < n; i++) {
        const dr_span *span = &b->spans[tiles[i].span];
        int32_t last = tiles[i].query + tiles[i].n_queries - 1;
        assert_true(tiles[i].n_queries > 0 && tiles[i].n_queries * group <= TILE && tiles[i].first_key == 0);
        assert_true(i == 0 || tiles[i - 1].n_keys >= tiles[i].n_keys);
        assert_int_equal(tiles[i].n_keys, b->queries[last].seen);
        for (int32_t q = tiles[i].query; q <= last; q++) {
            assert_int_equal(b->queries[q].row, b->queries[tiles[i].query].row + q - tiles[i].query);
            assert_true(b->queries[q].row >= span->row && b->queries[q].row < span->row + span->n_rows);
            owned[b->queries[q].row]++;
            for (int32_t keys = 64; keys <= 128; keys += 64)
                check_query(b, span, &b->queries[q], dr_key_steps(span, tiles[i].n_keys, keys), keys);
        }
    }
    for (int64_t t = 0; t < b->T; t++) assert_int_equal(owned[t], 1);
}

static void test_tiles(void **state) {
    (void)state;
    static batch b;
    for (int32_t group = 1; group <= DR_CUDA_MMA_ROWS; group++)
        for (int p = 0; p < N_PACKINGS; p++) {
            open_batch(&b, &packings[p], group);
            check_tiles(&b, group);
        }
    assert_true(dr_wgmma_takes(1, 64) && dr_wgmma_takes(64, 128));
    assert_false(dr_wgmma_takes(65, 64) || dr_wgmma_takes(1, 80) || dr_wgmma_takes(1, 256));
}

// ---- views ----

// A key tile's views: each pair of a row and a key that it sees meets once, other pairs never.
static void check_views(const batch *b, int32_t group, int32_t keys) {
    static int32_t pairs[MAX_ROWS * MAX_ROWS];
    dr_key_tile tiles[MAX_ROWS];
    int32_t rows[MAX_ROWS];
    int64_t n = dr_plan_key_tiles(b->spans, b->from->n, keys, tiles);
    memset(pairs, 0, sizeof pairs);
    for (int64_t i = 0; i < n; i++) {
        const dr_span *span = &b->spans[tiles[i].span];
        int32_t last = tiles[i].span + span->n_sharers, most = dr_tile_queries(group);
        dr_view at = dr_view_from(b->spans, tiles[i].span, tiles[i].first, last, most);
        for (; at.n > 0; at = dr_view_from(b->spans, at.viewer, at.first + at.n, last, most)) {
            assert_true(at.n <= most && at.first + at.n <= b->spans[at.viewer].n_rows);
            for (int32_t key = 0; key < keys && tiles[i].first + key < span->n_rows; key++)
                for (int32_t r = 0; r < at.n * group; r++) {
                    int64_t row = b->spans[at.viewer].row + at.first + r / group;
                    bool is_seen = r >= dr_view_low(&at, &tiles[i], key, group);
                    pairs[row * MAX_ROWS + span->row + tiles[i].first + key] += is_seen;
                }
        }
    }
    for (int32_t t = 0; t < b->T; t++) {
        int32_t seen = rows_seen(b, t, rows);
        for (int32_t j = 0; j < seen; j++) pairs[t * MAX_ROWS + rows[j]] -= group;
    }
    for (int i = 0; i < MAX_ROWS * MAX_ROWS; i++)
        if (pairs[i] != 0) fail_msg("row %d and key %d, group %d", i / MAX_ROWS, i % MAX_ROWS, group);
}

static void test_views(void **state) {
    (void)state;
    static batch b;
    for (int32_t group = 1; group <= DR_CUDA_MMA_ROWS; group = group * 2 + (group == 3))
        for (int p = 0; p < N_PACKINGS; p++)
            for (int32_t keys = DR_CUDA_MMA_KEYS; keys <= DR_WGMMA_KEYS; keys += 64) {
                open_batch(&b, &packings[p], group);
                check_views(&b, group, keys);
            }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_panels),    cmocka_unit_test(test_descriptors),
        cmocka_unit_test(test_fragments), cmocka_unit_test(test_query_pairs),
        cmocka_unit_test(test_tiles),     cmocka_unit_test(test_views),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
