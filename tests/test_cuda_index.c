// The index arithmetic of the CUDA kernels, run on the host: every element of an output has one owner.
// labels: cpu
#include "cuda/index.h"
#include "tests/owners.h"

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

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tiles),        cmocka_unit_test(test_tile_items), cmocka_unit_test(test_pieces),
        cmocka_unit_test(test_chunks),       cmocka_unit_test(test_ids),        cmocka_unit_test(test_heads),
        cmocka_unit_test(test_pass_buckets),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
