// The index arithmetic of the CUDA kernels, run on the host: every element of an output has one owner.
// labels: cpu
#include "core/base/rng.h"
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

// ---- passes of a burst ----

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

// ---- the loss head ----

// As many rows as fit, in steps and within limits; cuts do not depend on how many rows there are.
static void test_head_blocks(void **state) {
    (void)state;
    static const int64_t vocabularies[] = {1,      97,     4096,   32000,   65536,
                                           131072, 151936, 262144, 1 << 20, 1 << 22};
    for (size_t i = 0; i < sizeof vocabularies / sizeof *vocabularies; i++) {
        const int64_t V = vocabularies[i], limit = DR_CUDA_HEAD_BYTES, row = V * (int64_t)sizeof(float),
                      rows = dr_head_block(1 << 20, V, 0);
        assert_true(rows >= DR_CUDA_HEAD_STEP && rows <= DR_CUDA_HEAD_MOST && rows % DR_CUDA_HEAD_STEP == 0);
        assert_true(rows == DR_CUDA_HEAD_STEP || rows * row <= limit);
        assert_true(rows == DR_CUDA_HEAD_MOST || (rows + DR_CUDA_HEAD_STEP) * row > limit);
        for (int64_t T = 1; T < 3 * rows; T = 2 * T + 1) {
            int64_t n = 0;
            for (int64_t t0 = 0, block = 0; t0 < T; t0 += block) {
                block = dr_head_block(T, V, t0);
                assert_int_equal(t0 % rows, 0);
                assert_int_equal(block, T - t0 < rows ? T - t0 : rows);
                n += block;
            }
            assert_int_equal(n, T);
        }
    }
    assert_in_range(dr_head_block(8192, 151936, 0) * 151936 * 4, 1 << 29, 1 << 30);
    assert_int_equal(dr_head_rows_within(97, 131072), 256);
    assert_int_equal(dr_head_rows_within(601, 131072), 128);
}

// Tile by tile in place, as a block of `size` threads goes: each id's value comes from what stood there, all
// else becomes 0, every column is written.
static void test_kept_tiles(void **state) {
    (void)state;
    enum { V = 700 };
    static const int64_t sizes[] = {1, 3, 64, 512, 1000};
    static const uint32_t one_in[] = {1, 2, 30, 300};
    dr_rng rng = dr_rng_make(8, 8);
    for (int round = 0; round < 200; round++) {
        const int64_t size = sizes[round % 5];
        int32_t ids[V], row[V], own[V];
        bool is_kept[V] = {false};
        int64_t n = 0, cleared = 0;
        for (int32_t j = 0; j < V; j++) {
            row[j] = 1 + j;
            is_kept[j] = dr_rng_below(&rng, one_in[round % 4]) == 0 || (n == 0 && j == V - 1);
            if (is_kept[j]) ids[n++] = j;
        }
        for (int64_t first = 0; first < n; first += size) {
            const dr_kept_tile tile = dr_kept_tile_at(ids, n, V, first, size);
            assert_true(tile.n_ids > 0 && tile.n_ids <= size && first + tile.n_ids <= n);
            assert_int_equal(tile.begin, cleared);
            for (int64_t i = 0; i < tile.n_ids; i++) own[i] = -row[ids[first + i]];
            for (int64_t j = tile.begin; j < tile.end; j++) row[j] = 0;
            for (int64_t i = 0; i < tile.n_ids; i++) row[ids[first + i]] = own[i];
            cleared = tile.end;
        }
        assert_int_equal(cleared, V);
        for (int32_t j = 0; j < V; j++) assert_int_equal(row[j], is_kept[j] ? -1 - j : 0);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tiles),  cmocka_unit_test(test_tile_items),   cmocka_unit_test(test_pieces),
        cmocka_unit_test(test_chunks), cmocka_unit_test(test_head_blocks),  cmocka_unit_test(test_kept_tiles),
        cmocka_unit_test(test_heads),  cmocka_unit_test(test_pass_buckets),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
