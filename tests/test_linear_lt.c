// What the CUDA body decides on the host about products through cuBLASLt: layouts, keys, which weights.
// labels: cpu
#include "tests/check.h"

#include <string.h>

#include "cuda/linear_lt.h"

enum { MAX_SIZE = 40, N_OPS = 5 };
static const dr_lt_op ops[N_OPS] = {DR_LT_FORWARD, DR_LT_FORWARD_BIAS, DR_LT_FORWARD_ROUNDED,
                                    DR_LT_BACKWARD_INPUT, DR_LT_BACKWARD_WEIGHT};

// ---- layouts ----

typedef int32_t matrix[MAX_SIZE * MAX_SIZE]; // whole numbers: sums are exact

// d = a · b by the words of dr_lt_matrix.
static void product(const dr_lt_shape *s, const int32_t *a, const int32_t *b, int32_t *d) {
    int64_t inner = s->a.is_transposed ? s->a.rows : s->a.columns;
    assert_int_equal(s->b.is_transposed ? s->b.columns : s->b.rows, inner);
    assert_int_equal(s->a.is_transposed ? s->a.columns : s->a.rows, s->d.rows);
    assert_int_equal(s->b.is_transposed ? s->b.rows : s->b.columns, s->d.columns);
    for (int64_t i = 0; i < s->d.rows; i++)
        for (int64_t j = 0; j < s->d.columns; j++) {
            int32_t sum = 0;
            for (int64_t k = 0; k < inner; k++)
                sum += a[s->a.is_transposed ? k + i * s->a.stride : i + k * s->a.stride] *
                       b[s->b.is_transposed ? j + k * s->b.stride : k + j * s->b.stride];
            d[i + j * s->d.stride] = sum;
        }
}

static void fill(int32_t *values, int32_t seed) {
    for (int32_t i = 0; i < MAX_SIZE * MAX_SIZE; i++) values[i] = (i * 37 + seed) % 19 - 9;
}

static void same(const char *name, const int32_t *got, const int32_t *want, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        if (got[i] != want[i])
            fail_msg("%s: element %lld is %d, expected %d", name, (long long)i, got[i], want[i]);
}

static void check_shapes(int64_t O, int64_t I, int64_t T) {
    static matrix w, x, dy, y, dx, dw, want_y, want_dx, want_dw;
    fill(w, 1), fill(x, 5), fill(dy, 11);
    memset(want_y, 0, sizeof want_y), memset(want_dx, 0, sizeof want_dx);
    memset(want_dw, 0, sizeof want_dw);
    for (int64_t t = 0; t < T; t++)
        for (int64_t o = 0; o < O; o++)
            for (int64_t i = 0; i < I; i++) {
                want_y[t * O + o] += x[t * I + i] * w[o * I + i];
                want_dx[t * I + i] += dy[t * O + o] * w[o * I + i];
                want_dw[o * I + i] += dy[t * O + o] * x[t * I + i];
            }
    for (int forward = 0; forward < 3; forward++) {
        dr_lt_shape s = dr_lt_shape_of(ops[forward], O, I, T);
        assert_int_equal(s.d.rows, O); // a bias runs along the rows
        product(&s, w, x, y);
        same("y", y, want_y, T * O);
    }
    dr_lt_shape input = dr_lt_shape_of(DR_LT_BACKWARD_INPUT, O, I, T),
                weight = dr_lt_shape_of(DR_LT_BACKWARD_WEIGHT, O, I, T);
    product(&input, w, dy, dx);
    same("dx", dx, want_dx, T * I);
    product(&weight, x, dy, dw);
    same("dw", dw, want_dw, O * I);
}

static void test_shapes(void **state) {
    (void)state;
    check_shapes(1, 1, 1);
    check_shapes(7, 5, 1);
    check_shapes(8, 16, 3);
    check_shapes(40, 24, 33);
    check_shapes(17, 40, 2);
}

// Only column counts depend on T, so that one algorithm can serve all of them.
static void test_shapes_of_rows(void **state) {
    (void)state;
    for (int i = 0; i < N_OPS; i++) {
        dr_lt_shape one = dr_lt_shape_of(ops[i], 24, 16, 1), many = dr_lt_shape_of(ops[i], 24, 16, 999);
        const dr_lt_matrix *a = &one.a, *b = &many.a;
        for (int m = 0; m < 3; m++, a++, b++) {
            assert_int_equal(a->rows, b->rows);
            assert_int_equal(a->stride, b->stride);
            assert_int_equal(a->stride, a->rows); // dense
            assert_int_equal(a->is_transposed, b->is_transposed);
            assert_true(a->columns == b->columns || (a->columns == 1 && b->columns == 999));
        }
    }
}

// ---- keys ----

static void test_exact_keys(void **state) {
    (void)state;
    for (int i = 0; i < N_OPS; i++) {
        dr_lt_key first = dr_lt_key_of(ops[i], 24, 16, 1, false);
        for (int64_t T = 1; T < 5000; T += 37) {
            dr_lt_key key = dr_lt_key_of(ops[i], 24, 16, T, false);
            assert_true(dr_lt_key_equal(&first, &key));
            assert_int_equal(dr_lt_chosen_for(&key), dr_lt_chosen_for(&first));
        }
        int64_t rows[DR_LT_MOST_CHECKED];
        int n = 0;
        dr_lt_checked(&first, rows, &n);
        assert_true(n == DR_LT_MOST_CHECKED && rows[0] == 1 && rows[n - 1] > DR_LT_GRADIENT_ROWS);
        for (int k = 1; k < n; k++) assert_true(rows[k] > rows[k - 1]);
    }
}

static void test_loose_keys(void **state) {
    (void)state;
    for (int64_t T = 1; T < 5000; T++) {
        dr_lt_key key = dr_lt_key_of(DR_LT_FORWARD, 24, 16, T, true);
        int64_t rows[DR_LT_MOST_CHECKED];
        int n = 0;
        assert_true(key.most_rows >= T && key.most_rows / 2 < T);
        assert_int_equal(key.most_rows & (key.most_rows - 1), 0);
        dr_lt_checked(&key, rows, &n);
        assert_int_equal(n, 2);
        assert_true(rows[0] <= T && T <= rows[1] && rows[1] == dr_lt_chosen_for(&key));
        dr_lt_key of_first = dr_lt_key_of(DR_LT_FORWARD, 24, 16, rows[0], true);
        assert_true(dr_lt_key_equal(&key, &of_first));
        key.only_rows = T;
        dr_lt_checked(&key, rows, &n);
        assert_true(n == 1 && rows[0] == T && dr_lt_chosen_for(&key) == T);
    }
}

static void test_keys_differ(void **state) {
    (void)state;
    const dr_lt_key key = {DR_LT_FORWARD, 24, 16, 0, 0};
    const dr_lt_key others[] = {{DR_LT_FORWARD_BIAS, 24, 16, 0, 0},   {DR_LT_FORWARD_ROUNDED, 24, 16, 0, 0},
                                {DR_LT_BACKWARD_INPUT, 24, 16, 0, 0}, {DR_LT_FORWARD, 16, 16, 0, 0},
                                {DR_LT_FORWARD, 24, 24, 0, 0},        {DR_LT_FORWARD, 16, 24, 0, 0},
                                {DR_LT_FORWARD, 24, 16, 8, 0},        {DR_LT_FORWARD, 24, 16, 0, 8}};
    assert_true(dr_lt_key_equal(&key, &key));
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        assert_false(dr_lt_key_equal(&key, &others[i]));
}

// ---- what the library gets ----

static void test_weights_served(void **state) {
    (void)state;
    for (int64_t O = 1; O <= 40; O++)
        for (int64_t I = 1; I <= 40; I++) {
            bool is_aligned = true;
            for (int i = 0; i < N_OPS; i++) {
                dr_lt_shape s = dr_lt_shape_of(ops[i], O, I, 7);
                is_aligned &= s.a.stride * 2 % DR_LT_ALIGNMENT == 0 &&
                              s.b.stride * 2 % DR_LT_ALIGNMENT == 0 && s.d.stride * 4 % DR_LT_ALIGNMENT == 0;
            }
            assert_int_equal(dr_lt_serves(true, O, I), is_aligned);
            assert_true(dr_lt_serves(false, O, I));
        }
}

static void test_addresses(void **state) {
    (void)state;
    _Alignas(DR_LT_ALIGNMENT) float values[8];
    for (int i = 0; i < 8; i++) assert_int_equal(dr_lt_is_aligned(values + i), i % 4 == 0);
}

static void test_exact_algorithms(void **state) {
    (void)state;
    assert_true(dr_lt_is_exact(0, 0, 0));
    assert_true(dr_lt_is_exact(1, 0, 0));
    assert_false(dr_lt_is_exact(2, 0, 0));
    assert_false(dr_lt_is_exact(-1, 0, 0)); // as many as the library likes
    assert_false(dr_lt_is_exact(1, 1, 0));  // sums in the result
    assert_false(dr_lt_is_exact(1, 0, 4096));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shapes),      cmocka_unit_test(test_shapes_of_rows),
        cmocka_unit_test(test_exact_keys),  cmocka_unit_test(test_loose_keys),
        cmocka_unit_test(test_keys_differ), cmocka_unit_test(test_weights_served),
        cmocka_unit_test(test_addresses),   cmocka_unit_test(test_exact_algorithms),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
