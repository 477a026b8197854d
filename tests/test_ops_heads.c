// RMSNorm over each head of rows: values and gradients, and the bits of rmsnorm on dense heads.
// labels: cpu
#include "tests/op_check.h"

typedef struct head_case {
    int64_t T, heads, d, stride;
    double eps;
    float *x, *w, *dy, *kept, *inv; // x, dy: rows of `stride`; kept: dense
    double *rx, *rw, *ry;           // the reference's
} head_case;

static int64_t head_at(const head_case *c, int64_t row) {
    return row / c->heads * c->stride + row % c->heads * c->d;
}

// ry, in rows of `stride`; what lies between them stays.
static void ref_heads(const head_case *c) {
    for (int64_t r = 0; r < c->T * c->heads; r++) {
        const double *x = c->rx + head_at(c, r);
        double square = 0;
        for (int64_t i = 0; i < c->d; i++) square += x[i] * x[i] / (double)c->d;
        for (int64_t i = 0; i < c->d; i++) c->ry[head_at(c, r) + i] = x[i] / sqrt(square + c->eps) * c->rw[i];
    }
}

static double ref_heads_loss(void *context) {
    const head_case *c = context;
    double sum = 0;
    ref_heads(c);
    for (int64_t r = 0; r < c->T * c->heads; r++)
        for (int64_t i = 0; i < c->d; i++) sum += c->ry[head_at(c, r) + i] * c->dy[head_at(c, r) + i];
    return sum;
}

static void check_beside_heads(const head_case *c, const float *got, const float *want) {
    int64_t width = c->heads * c->d;
    for (int64_t t = 0; t < c->T; t++)
        check_same_bits("beside heads", got + t * c->stride + width, want + t * c->stride + width,
                        c->stride - width);
}

static void check_heads_gradient(head_case *c, dr_backend *b) {
    int64_t n = c->T * c->stride, d = c->d;
    float *dx = op_copy(c->dy, n), *dw = op_normal(d, 0, 1);
    double *want_dx = op_differentiate(ref_heads_loss, c, c->rx, n);
    double *want_dw = op_differentiate(ref_heads_loss, c, c->rw, d);
    for (int64_t i = 0; i < d; i++) want_dw[i] += dw[i];
    b->ops->head_norm_backward(b, dx, c->kept, c->w, c->inv, c->T, c->heads, d, c->stride, dw);
    check_beside_heads(c, dx, c->dy);
    for (int64_t t = 0; t < c->T; t++)
        op_close("dx of a norm by head", dx + t * c->stride, want_dx + t * c->stride, c->heads * d, 1e-10);
    op_close("dw of a norm by head", dw, want_dw, d, 1e-11);
}

static void check_heads(int64_t T, int64_t heads, int64_t d, int64_t gap, dr_backend *b) {
    head_case c = {.T = T, .heads = heads, .d = d, .stride = heads * d + gap, .eps = (double)0.05f};
    int64_t n = T * c.stride, rows = T * heads;
    c.x = op_normal(n, 0, 1);
    c.w = op_normal(d, 1, 0.3);
    c.dy = op_normal(n, 0, 1);
    c.kept = op_poison(rows * d);
    c.inv = op_poison(rows);
    c.rx = op_double(c.x, n);
    c.rw = op_double(c.w, d);
    float *y = op_copy(c.x, n), *alone = op_copy(c.x, n);
    c.ry = op_double(c.x, n);
    ref_heads(&c);
    b->ops->head_norm_forward(b, y, c.w, T, heads, d, c.stride, 0.05f, c.kept, c.inv);
    b->ops->head_norm_forward(b, alone, c.w, T, heads, d, c.stride, 0.05f, NULL, NULL);
    op_close("norm by head", y, c.ry, n, 1e-11);
    check_beside_heads(&c, y, c.x);
    check_same_bits("norm by head that keeps nothing", alone, y, n);
    for (int64_t r = 0; r < rows; r++) check_same_bits("kept heads", c.kept + r * d, c.x + head_at(&c, r), d);
    check_heads_gradient(&c, b);
    op_free_arrays();
}

static void test_values(void **state) {
    (void)state;
    dr_backend *const backends[] = {op_one, op_two};
    for (int i = 0; i < 2; i++) {
        check_heads(1, 1, 2, 0, backends[i]);
        check_heads(5, 3, 20, 7, backends[i]);
        check_heads(3, 2, 64, 64, backends[i]);
        check_heads(70, 2, 5, 3, backends[i]); // rows enough for both threads
    }
}

// Both directions have the bits of the ops on dense rows, whatever the stride and the number of threads.
static void check_dense(int64_t T, int64_t heads, int64_t d, int64_t gap, dr_backend *b) {
    int64_t stride = heads * d + gap, rows = T * heads;
    float *x = op_normal(T * stride, 0, 1), *dx = op_normal(T * stride, 0, 1), *w = op_normal(d, 1, 0.3);
    float *dense = op_poison(rows * d), *dy = op_poison(rows * d), *want = op_poison(rows * d);
    float *kept = op_poison(rows * d), *inv = op_poison(rows), *want_inv = op_poison(rows);
    float *want_dx = op_array(rows * d, sizeof(float)), *dw = op_normal(d, 0, 1), *want_dw = op_copy(dw, d);
    for (int64_t t = 0; t < T; t++) {
        memcpy(dense + t * heads * d, x + t * stride, (size_t)(heads * d) * sizeof(float));
        memcpy(dy + t * heads * d, dx + t * stride, (size_t)(heads * d) * sizeof(float));
    }
    op_one->ops->rmsnorm_forward(op_one, dense, w, rows, d, 1e-6f, want, want_inv);
    op_one->ops->rmsnorm_backward(op_one, dy, dense, w, want_inv, rows, d, want_dx, want_dw);
    b->ops->head_norm_forward(b, x, w, T, heads, d, stride, 1e-6f, kept, inv);
    b->ops->head_norm_backward(b, dx, kept, w, inv, T, heads, d, stride, dw);
    check_same_bits("factors of heads", inv, want_inv, rows);
    check_same_bits("dw of heads", dw, want_dw, d);
    for (int64_t t = 0; t < T; t++) {
        check_same_bits("heads", x + t * stride, want + t * heads * d, heads * d);
        check_same_bits("dx of heads", dx + t * stride, want_dx + t * heads * d, heads * d);
    }
    op_free_arrays();
}

static void test_dense_bits(void **state) {
    (void)state;
    check_dense(1, 1, 2, 3, op_one);
    check_dense(90, 3, 20, 16, op_one);
    check_dense(90, 3, 20, 16, op_two);
    check_dense(33, 4, 128, 0, op_two);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        op_test(test_values),
        op_test(test_dense_bits),
    };
    return cmocka_run_group_tests(tests, op_group_setup, op_group_teardown);
}
