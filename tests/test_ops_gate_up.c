// Gate and up of the feed-forward block as they are kept in memory: values, gradients, and the bits of a
// plain linear layer before they are rounded.
// labels: cpu
#include "tests/op_check.h"

#include <stdio.h>

#include "core/compute/cpu_internal.h"

typedef struct gate_up_case {
    dr_backend *b;
    dr_weight *w;
    int64_t T, n_out, n_in;
    float *x, *values, *dy, *start; // dy: what b has of it; start: of dw
    void *gated, *dgated;
} gate_up_case;

static gate_up_case case_make(dr_backend *b, const int64_t *shape) {
    gate_up_case c = {.b = b, .T = shape[0], .n_out = shape[1], .n_in = shape[2]};
    int64_t n = c.T * c.n_out;
    c.x = op_normal(c.T * c.n_in, 0, 1);
    c.values = op_normal(c.n_out * c.n_in, 0, 1);
    c.start = op_normal(c.n_out * c.n_in, 0, 1);
    c.gated = op_gated(b, op_poison(n), n);
    c.dgated = op_gated(b, op_normal(n, 0, 1), n);
    c.dy = op_gated_values(b, c.dgated, n);
    check_ok(b->ops->weight_create(b, c.n_out, c.n_in, &c.w));
    check_ok(b->ops->weight_pack(b, c.w, c.values));
    return c;
}

static void case_end(const gate_up_case *c) {
    c->b->ops->weight_destroy(c->b, c->w);
    op_free_arrays();
}

static const float *forward(const gate_up_case *c) {
    check_ok(c->b->ops->gate_up_forward(c->b, c->w, c->x, c->T, c->gated));
    return op_gated_values(c->b, c->gated, c->T * c->n_out);
}

// rows behind the borders of pieces (128), of oneDNN's (512) and of what is rounded at a time (1024)
static const int64_t shapes[][3] = {{1, 2, 1},     {1, 66, 70},   {4, 14, 5},    {16, 64, 128},
                                    {40, 62, 600}, {257, 66, 48}, {530, 40, 24}, {1030, 20, 45}};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

// ---- gradients in fp32 ----

static double loss(void *context) {
    gate_up_case *c = context;
    check_ok(c->b->ops->weight_pack(c->b, c->w, c->values));
    return op_dot(forward(c), c->dy, c->T * c->n_out);
}

static void test_slopes(void **state) {
    (void)state;
    for (int s = 0; s < N_SHAPES; s++)
        for (int threads = 1; threads <= 2; threads++) {
            gate_up_case c = case_make(threads == 1 ? op_one : op_two, shapes[s]);
            int64_t n = c.T * c.n_in, n_weights = c.n_out * c.n_in;
            float *dx = op_poison(n), *dw = op_array(n_weights, sizeof(float));
            check_ok(c.b->ops->gate_up_backward(c.b, c.w, c.x, c.dgated, c.T, dx, dw));
            op_check_slope("gate and up by x", loss, &c, c.x, dx, n, 0.1f, 1e-4);
            op_check_slope("gate and up by w", loss, &c, c.values, dw, n_weights, 0.1f, 1e-4);
            case_end(&c);
        }
}

// ---- values of bf16 ----

static float *rounded(const dr_backend *b, const float *values, int64_t n) {
    return op_gated_values(b, op_gated(b, op_copy(values, n), n), n);
}

// Half a step of bf16 is 2^-8 of a value, at most a whole one where a sum in fp32 is on the other side of the
// middle. Operands are of size 1: sums of k products are off by 2e-6 √k.
static void check_values(gate_up_case *c) {
    const float *x = rounded(c->b, c->x, c->T * c->n_in), *w = rounded(c->b, c->values, c->n_out * c->n_in),
                *got = forward(c);
    for (int64_t i = 0; i < c->T * c->n_out; i++) {
        double want = 0, slack = 2e-6 * sqrt((double)c->n_in);
        for (int64_t k = 0; k < c->n_in; k++)
            want += (double)x[i / c->n_out * c->n_in + k] * w[i % c->n_out * c->n_in + k];
        if (!(fabs(got[i] - want) <= 0x1p-8 * fabs(want) + slack))
            fail_msg("value %d of %d rows, %d x %d is %.9g, expected %.9g", (int)i, (int)c->T, (int)c->n_out,
                     (int)c->n_in, (double)got[i], want);
    }
}

// ---- bits ----

static void same(const gate_up_case *c, const char *what, const float *got, const float *want, int64_t n) {
    char name[96];
    snprintf(name, sizeof name, "%s of %d rows, %d x %d, precision %d, %d threads", what, (int)c->T,
             (int)c->n_out, (int)c->n_in, c->b->precision, c->b->n_threads);
    check_same_bits(name, got, want, n);
}

// A library's sums for another type of result may have another order.
static void check_forward(gate_up_case *c) {
    int64_t n = c->T * c->n_out;
    float *y = op_poison(n);
    if (dr_cpu_state_of(c->b)->bf16) return;
    check_ok(c->b->ops->linear_forward(c->b, c->w, c->x, c->T, NULL, y));
    same(c, "gate and up", forward(c), op_gated_values(c->b, op_gated(c->b, y, n), n), n);
}

// The gradient's values in fp32 memory, which are not changed by another rounding.
static void check_backward(const gate_up_case *c) {
    int64_t n = c->T * c->n_in, n_weights = c->n_out * c->n_in;
    float *dx[] = {op_poison(n), op_poison(n)},
          *dw[] = {op_copy(c->start, n_weights), op_copy(c->start, n_weights)};
    check_ok(c->b->ops->linear_backward(c->b, c->w, c->x, c->dy, c->T, dx[0], false, dw[0], NULL));
    check_ok(c->b->ops->gate_up_backward(c->b, c->w, c->x, c->dgated, c->T, dx[1], dw[1]));
    same(c, "dx", dx[1], dx[0], n);
    same(c, "dw", dw[1], dw[0], n_weights);
}

static void check_precision(dr_precision precision) {
    for (int threads = 1; threads <= 3; threads++) {
        dr_backend *b = NULL;
        check_ok(dr_backend_cpu_create(precision, threads, &b));
        for (int s = 0; s < N_SHAPES; s++) {
            gate_up_case c = case_make(b, shapes[s]);
            if (dr_rounds_to_bf16(precision)) check_values(&c);
            check_forward(&c);
            check_backward(&c);
            case_end(&c);
        }
        dr_backend_cpu_destroy(b);
    }
}

static void test_fp32(void **state) {
    (void)state;
    check_precision(DR_FP32);
    check_precision(DR_FP32_LOOSE);
    dr_cpu_narrow_only(true);
    check_precision(DR_FP32);
    dr_cpu_narrow_only(false);
}

static void test_bf16(void **state) {
    (void)state;
    dr_cpu_bf16_body(DR_BF16_LIBRARY);
    check_precision(DR_BF16);
    dr_cpu_bf16_body(DR_BF16_LANES);
    check_precision(DR_BF16);
    dr_cpu_narrow_only(true);
    check_precision(DR_BF16);
    dr_cpu_narrow_only(false);
    dr_cpu_bf16_body(DR_BF16_CHOSEN);
}

// Two bytes a value where products round: nothing behind them is written. No rows: nothing at all, and
// gradients stay.
static void test_memory(void **state) {
    (void)state;
    static const int64_t shape[3] = {3, 10, 7};
    static const dr_precision precisions[] = {DR_FP32, DR_BF16, DR_FP32_LOOSE, DR_BF16_LOOSE};
    for (int i = 0; i < 4; i++) {
        dr_backend *b = NULL;
        check_ok(dr_backend_cpu_create(precisions[i], 2, &b));
        gate_up_case c = case_make(b, shape);
        size_t bytes = 30 * dr_gated_bytes(b);
        unsigned char *memory = op_array(64 * 4, 1), *before = op_array(64 * 4, 1);
        float dx = 7, *dw = op_copy(c.start, 70);
        assert_int_equal(dr_gated_bytes(b), i % 2 ? 2 : 4);
        memset(memory, 0xA5, 64 * 4);
        memset(before, 0xA5, 64 * 4);
        check_ok(b->ops->gate_up_forward(b, c.w, c.x, 0, memory));
        assert_memory_equal(memory, before, 64 * 4);
        check_ok(b->ops->gate_up_forward(b, c.w, c.x, 3, memory));
        forward(&c);
        assert_memory_equal(memory, c.gated, bytes);
        assert_memory_equal(memory + bytes, before, 64 * 4 - bytes);
        check_ok(b->ops->gate_up_backward(b, c.w, c.x, c.dgated, 0, &dx, dw));
        assert_true(dx == 7);
        check_same_bits("dw of no rows", dw, c.start, 70);
        case_end(&c);
        dr_backend_cpu_destroy(b);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {op_test(test_slopes), op_test(test_fp32), op_test(test_bf16),
                                       op_test(test_memory)};
    return cmocka_run_group_tests(tests, op_group_setup, op_group_teardown);
}
