// Who copies, reads and owns what of a tile of bf16 attention, run on the host.
// labels: cpu
#include "cuda/attention_index.h"
#include "tests/owners.h"

enum { ROWS = DR_CUDA_MMA_ROWS, KEYS = DR_CUDA_MMA_KEYS, THREADS = DR_CUDA_MMA_THREADS };

// What one instruction reads or writes of a tile at a time is eight places of 16 bytes: all banks once.
static void test_swizzle(void **state) {
    (void)state;
    for (int columns = 8; columns <= 16; columns += 8) {
        int32_t *places = counters(ROWS * columns), *elements = counters(ROWS * columns * 8);
        for (int row = 0; row < ROWS; row++)
            for (int column = 0; column < columns; column++) {
                int down = 0, along = 0;
                places[dr_swizzled(row, column, columns)]++;
                for (int i = 0; i < 8; i++) {
                    down |= 1 << dr_swizzled(row / 8 * 8 + i, column, columns) % 8;
                    along |= 1 << dr_swizzled(row, column / 8 * 8 + i, columns) % 8;
                    const int at = dr_swizzled_element(row, column * 8 + i, columns);
                    assert_int_equal(at, dr_swizzled(row, column, columns) * 8 + i);
                    elements[at]++;
                }
                assert_int_equal(down, 0xFF);
                assert_int_equal(along, 0xFF);
            }
        check_each_once("a swizzled tile", places, ROWS * columns);
        check_each_once("elements of a swizzled tile", elements, ROWS * columns * 8);
    }
    assert_int_equal(DR_CUDA_SPLIT % KEYS, 0);
    assert_int_equal(DR_CUDA_SPLIT % DR_CUDA_PAGE, 0);
    assert_int_equal(THREADS / 32 * DR_CUDA_MMA_STRIP, ROWS);
    assert_true(dr_mma_takes(7, 128) && dr_mma_takes(64, 64) && dr_mma_takes(1, 8));
    assert_false(dr_mma_takes(7, 136) || dr_mma_takes(65, 64) || dr_mma_takes(1, 20));
}

// Rows of keys, 16 bytes at a time, and rows of queries, two elements at a time: of a whole tile and of the
// rows that are shared.
static void test_copies(void **state) {
    (void)state;
    for (int rows = DR_CUDA_MMA_STRIP; rows <= ROWS; rows *= 2)
        for (int across = 8; across <= 64; across *= 2) {
            int32_t *counts = counters(rows * across);
            for (int thread = 0; thread < THREADS; thread++)
                for (int i = 0; i < dr_copies_of(rows, across); i++) {
                    const int row = dr_copy_row(thread, i, across), column = dr_copy_column(thread, across);
                    assert_true(row >= 0 && row < rows && column >= 0 && column < across);
                    counts[row * across + column]++;
                }
            check_each_once("copies of a tile", counts, rows * across);
        }
}

// Every head of every query has one row of a tile, and one place among all of the batch's.
static void test_tile_rows(void **state) {
    (void)state;
    enum { G = 3, T = 70 };
    for (int32_t group = 1; group <= ROWS; group++) {
        const int32_t most = dr_tile_queries(group), H = G * group;
        int32_t *counts = counters(T * H);
        for (int32_t first = 0; first < T; first += most)
            for (int32_t g = 0; g < G; g++)
                for (int r = 0; r < ROWS; r++) {
                    const int32_t n = T - first < most ? T - first : most, query = dr_tile_query(r, group);
                    const int32_t head = dr_tile_head(r, group, g);
                    assert_true(head >= g * group && head < (g + 1) * group);
                    if (query >= n) continue;
                    const int64_t at = dr_tile_place(first, r, H, group, g);
                    assert_true(at >= 0 && at < T * H);
                    assert_int_equal(at, dr_head_place(first + query, H, head));
                    counts[at]++;
                }
        check_each_once("heads of a batch's rows", counts, T * H);
    }
}

// Registers m of a warp's lanes hold matrix m of what the lanes named: lane 4 i + j its row i, columns 2 j
// and 2 j + 1, or of its transpose. mma wants them where the PTX ISA says.
static void test_fragments(void **state) {
    (void)state;
    int32_t *sums = counters(16 * 8);
    for (int lane = 0; lane < 32; lane++) {
        const int i = lane / 4;
        for (int x = 0; x < 4; x++) sums[dr_mma_row(lane, x) * 8 + dr_mma_column(lane, x)]++;
        for (int m = 0; m < 4; m++) {
            const int named = 8 * m + i, of_row = lane % 4 * 2;      // who named the row that this lane gets
            assert_int_equal(dr_matrix_row(named), i + m % 2 * 8);   // a: rows i and i + 8,
            assert_int_equal(dr_matrix_piece(named), m / 2);         // columns 2 j, then 2 j + 8
            assert_int_equal(dr_matrices_row(named), m / 2 * 8 + i); // b: column i of two operands,
            assert_int_equal(dr_matrices_piece(named), m % 2);       // rows 2 j, then 2 j + 8
            for (int half = 0; half < 2; half++) {
                const int line = 8 * m + of_row + half; // transposed b: rows 2 j and 2 j + 1 of column i
                assert_int_equal(dr_matrix_row(line), of_row + half + m % 2 * 8);
                assert_int_equal(dr_matrix_piece(line), m / 2);
            }
        }
    }
    check_each_once("sums of a product", sums, 16 * 8);
}

// A weight's place in the left operand of 16 keys is the one that its score has in two results of 8.
static void test_weights(void **state) {
    (void)state;
    for (int lane = 0; lane < 32; lane++)
        for (int r = 0; r < 4; r++)
            for (int half = 0; half < 2; half++) {
                const int x = r % 2 * 2 + half; // of result r / 2
                assert_int_equal(dr_mma_row(lane, x), lane / 4 + r % 2 * 8);
                assert_int_equal(r / 2 * 8 + dr_mma_column(lane, x), lane % 4 * 2 + r / 2 * 8 + half);
            }
}

// Each score, and each weighted value, of rows that are there is one warp's.
static void check_owners(int32_t rows, int sharers) {
    int32_t *scores = counters(ROWS * KEYS), *sums = counters(ROWS * DR_CUDA_MMA_HEAD);
    const int own_keys = KEYS / sharers, own_columns = DR_CUDA_MMA_HEAD / sharers;
    assert_true(rows <= dr_shared_rows(sharers));
    for (int thread = 0; thread < THREADS; thread++) {
        const int strip = dr_strip_of(thread, sharers), sharer = dr_sharer_of(thread, sharers),
                  lane = thread % 32;
        assert_true(strip >= 0 && strip + DR_CUDA_MMA_STRIP <= dr_shared_rows(sharers));
        for (int x = 0; x < 4; x++) {
            const int row = strip + dr_mma_row(lane, x);
            for (int n = 0; n < own_keys; n += 8)
                scores[row * KEYS + sharer * own_keys + n + dr_mma_column(lane, x)]++;
            for (int n = 0; n < own_columns; n += 8)
                sums[row * DR_CUDA_MMA_HEAD + sharer * own_columns + n + dr_mma_column(lane, x)]++;
        }
    }
    check_each_once("scores", scores, dr_shared_rows(sharers) * KEYS);
    check_each_once("weighted values", sums, dr_shared_rows(sharers) * DR_CUDA_MMA_HEAD);
}

// Shared scores have places of their own, behind the rows of q that are in use and within what both are
// given; eight lanes' fours lie in different banks.
static void check_scores(int sharers, int columns) {
    const int at = dr_shared_scores_at(sharers, columns), n = dr_shared_rows(sharers) * KEYS;
    int32_t *places = counters(n);
    assert_true(at % 16 == 0 && dr_query_bytes(columns) % 128 == 0);
    assert_true(at + n * (int)sizeof(float) <= dr_query_bytes(columns));
    for (int row = 0; row < dr_shared_rows(sharers); row++)
        for (int e = 0; e < columns; e++) assert_true(dr_swizzled_element(row, e, columns / 8) * 2 + 2 <= at);
    for (int strip = 0; strip < dr_shared_rows(sharers); strip += DR_CUDA_MMA_STRIP)
        for (int keys8 = 0; keys8 < KEYS / 8; keys8++)
            for (int lane = 0; lane < 32; lane++) {
                const int first = dr_shared_score(strip, keys8, lane);
                assert_int_equal(first % 4, 0);
                assert_int_equal(first / 4 % 8, lane % 8);
                for (int x = 0; x < 4; x++) {
                    assert_true(first + x >= 0 && first + x < n);
                    places[first + x]++;
                }
            }
    check_each_once("shared scores", places, n);
}

static void test_sharers(void **state) {
    (void)state;
    for (int32_t rows = 1; rows <= ROWS; rows++) {
        const int sharers = dr_sharers_of(rows);
        assert_int_equal(sharers, rows <= 16 ? 4 : rows <= 32 ? 2 : 1);
        check_owners(rows, sharers);
    }
    for (int columns = 64; columns <= DR_CUDA_MMA_HEAD; columns += 64) {
        for (int sharers = 2; sharers <= 4; sharers *= 2) check_scores(sharers, columns);
        assert_true(dr_query_bytes(columns) >= ROWS * columns * 2);
    }
    assert_int_equal(dr_query_bytes(128), ROWS * 128 * 2); // no more than the tile of queries
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_swizzle),   cmocka_unit_test(test_copies),  cmocka_unit_test(test_tile_rows),
        cmocka_unit_test(test_fragments), cmocka_unit_test(test_weights), cmocka_unit_test(test_sharers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
