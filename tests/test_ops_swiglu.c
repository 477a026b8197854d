// Products whose operand is silu(gate) · up: values and gradients, and the bits of the two steps in turn.
// labels: cpu
#include "tests/op_check.h"

#include <stdio.h>

#include "core/compute/cpu_internal.h"

typedef struct swiglu_case {
    dr_backend *b;
    dr_weight *w;
    int64_t T, n_out, n_in;
    float *gate_up, *values, *dy, *y; // gate_up: of what b has of it, in fp32 the same array
    void *gated;
} swiglu_case;

static swiglu_case case_make(dr_backend *b, int64_t T, int64_t n_out, int64_t n_in) {
    swiglu_case c = {.b = b, .T = T, .n_out = n_out, .n_in = n_in};
    c.gated = op_gated(b, op_normal(2 * T * n_in, 0, 2), 2 * T * n_in);
    c.gate_up = op_gated_values(b, c.gated, 2 * T * n_in);
    c.values = op_normal(n_out * n_in, 0, 0.5);
    c.dy = op_normal(T * n_out, 0, 1);
    c.y = op_poison(T * n_out);
    check_ok(b->ops->weight_create(b, n_out, n_in, &c.w));
    check_ok(b->ops->weight_pack(b, c.w, c.values));
    return c;
}

static void case_end(const swiglu_case *c) {
    c->b->ops->weight_destroy(c->b, c->w);
    op_free_arrays();
}

// ---- values and gradients ----

static double *ref_swiglu(const swiglu_case *c) {
    double *act = op_zeros(c->T * c->n_in);
    for (int64_t i = 0; i < c->T * c->n_in; i++) {
        const float *gate = c->gate_up + i / c->n_in * 2 * c->n_in + i % c->n_in;
        act[i] = gate[0] / (1 + exp(-(double)gate[0])) * gate[c->n_in];
    }
    return act;
}

static double loss(void *context) {
    swiglu_case *c = context;
    check_ok(c->b->ops->weight_pack(c->b, c->w, c->values));
    check_ok(c->b->ops->swiglu_linear_forward(c->b, c->w, c->gate_up, c->T, c->y));
    return op_dot(c->y, c->dy, c->T * c->n_out);
}

static void check_values(const swiglu_case *c, const float *start, const float *dw) {
    const double *act = ref_swiglu(c);
    double *want = op_zeros(c->T * c->n_out), *want_w = op_double(start, c->n_out * c->n_in);
    for (int64_t t = 0; t < c->T; t++)
        for (int64_t o = 0; o < c->n_out; o++)
            for (int64_t i = 0; i < c->n_in; i++) {
                want[t * c->n_out + o] += act[t * c->n_in + i] * c->values[o * c->n_in + i];
                want_w[o * c->n_in + i] += act[t * c->n_in + i] * c->dy[t * c->n_out + o];
            }
    op_close("y", c->y, want, c->T * c->n_out, 1e-11);
    op_close("dw", dw, want_w, c->n_out * c->n_in, 1e-11);
}

static void check_slopes(swiglu_case *c) {
    int64_t n = 2 * c->T * c->n_in, n_weights = c->n_out * c->n_in;
    float *d = op_poison(n), *dw = op_array(n_weights, sizeof(float));
    check_ok(c->b->ops->swiglu_linear_backward(c->b, c->w, c->gate_up, c->dy, c->T, d, dw));
    op_check_slope("by gate and up", loss, c, c->gate_up, d, n, 2e-3f, 5e-3);
    op_check_slope("by w", loss, c, c->values, dw, n_weights, 0.1f, 1e-4);
}

static void test_values(void **state) {
    (void)state;
    static const int64_t shapes[][3] = {{1, 1, 1}, {3, 7, 5}, {13, 33, 70}, {45, 64, 129}, {1100, 9, 33}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (int threads = 1; threads <= 2; threads++) {
            swiglu_case c =
                case_make(threads == 1 ? op_one : op_two, shapes[s][0], shapes[s][1], shapes[s][2]);
            int64_t n = c.n_out * c.n_in;
            float *start = op_normal(n, 0, 2), *dw = op_copy(start, n), *d = op_poison(2 * c.T * c.n_in);
            check_ok(c.b->ops->swiglu_linear_forward(c.b, c.w, c.gate_up, c.T, c.y));
            check_ok(c.b->ops->swiglu_linear_backward(c.b, c.w, c.gate_up, c.dy, c.T, d, dw));
            check_values(&c, start, dw);
            check_slopes(&c);
            case_end(&c);
        }
}

// No rows: nothing is written, gradients stay.
static void test_no_rows(void **state) {
    (void)state;
    dr_backend *fresh = NULL;
    check_ok(dr_backend_cpu_create(DR_FP32, 2, &fresh));
    swiglu_case c = case_make(fresh, 1, 5, 7);
    float *dw = op_normal(35, 0, 1), *kept = op_copy(dw, 35), untouched = 7;
    check_ok(fresh->ops->swiglu_linear_forward(fresh, c.w, c.gate_up, 0, &untouched));
    check_ok(fresh->ops->swiglu_linear_backward(fresh, c.w, c.gate_up, c.dy, 0, &untouched, dw));
    assert_true(untouched == 7);
    check_same_bits("dw", dw, kept, 35);
    case_end(&c);
    dr_backend_cpu_destroy(fresh);
}

// ---- bits ----

// silu(gate) · up in memory and the plain ops; the gradient of gate and up from that at silu(gate) · up.
static void check_in_turn(dr_backend *b, int64_t T, int64_t n_out, int64_t n_in) {
    swiglu_case c = case_make(b, T, n_out, n_in);
    int64_t n = T * n_in, n_weights = n_out * n_in;
    float *act = op_poison(n), *dact = op_poison(n), *start = op_normal(n_weights, 0, 1);
    float *want[] = {op_poison(T * n_out), op_copy(start, n_weights), op_poison(2 * n)};
    float *got[] = {c.y, op_copy(start, n_weights), NULL};
    void *d = op_gated(b, op_poison(2 * n), 2 * n);
    const int64_t sizes[] = {T * n_out, n_weights, 2 * n};
    static const char *const names[] = {"y", "dw", "d of gate and up"};
    op_swiglu(op_one, c.gate_up, T, n_in, act);
    check_ok(b->ops->linear_forward(b, c.w, act, T, NULL, want[0]));
    check_ok(b->ops->linear_backward(b, c.w, act, c.dy, T, dact, false, want[1], NULL));
    op_swiglu_gradient(op_one, dact, c.gate_up, T, n_in, want[2]);
    want[2] = op_gated_values(b, op_gated(b, want[2], 2 * n), 2 * n);
    check_ok(b->ops->swiglu_linear_forward(b, c.w, c.gated, T, got[0]));
    check_ok(b->ops->swiglu_linear_backward(b, c.w, c.gated, c.dy, T, d, got[1]));
    got[2] = op_gated_values(b, d, 2 * n);
    for (int i = 0; i < 3; i++) {
        char name[96];
        snprintf(name, sizeof name, "%s of %d rows, %d x %d, precision %d, %d threads", names[i], (int)T,
                 (int)n_out, (int)n_in, b->precision, b->n_threads);
        check_same_bits(name, got[i], want[i], sizes[i]);
    }
    case_end(&c);
}

static void check_precision(dr_precision precision) {
    // rows behind the borders of pieces (128) and of what is made at a time (1024 and, of three threads,
    // 1152)
    static const int64_t shapes[][3] = {{1, 33, 70},   {4, 7, 5},      {40, 31, 600},
                                        {257, 65, 48}, {1030, 20, 45}, {2311, 12, 37}};
    for (int threads = 1; threads <= 3; threads++) {
        dr_backend *b = NULL;
        check_ok(dr_backend_cpu_create(precision, threads, &b));
        for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
            check_in_turn(b, shapes[s][0], shapes[s][1], shapes[s][2]);
        dr_backend_cpu_destroy(b);
    }
}

static void test_fp32_bits(void **state) {
    (void)state;
    check_precision(DR_FP32);
    dr_cpu_narrow_only(true);
    check_precision(DR_FP32);
    dr_cpu_narrow_only(false);
}

static void test_bf16_bits(void **state) {
    (void)state;
    dr_cpu_bf16_body(DR_BF16_LIBRARY);
    check_precision(DR_BF16);
    dr_cpu_bf16_body(DR_BF16_LANES);
    check_precision(DR_BF16);
    dr_cpu_bf16_body(DR_BF16_CHOSEN);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        op_test(test_values),
        op_test(test_no_rows),
        op_test(test_fp32_bits),
        op_test(test_bf16_bits),
    };
    return cmocka_run_group_tests(tests, op_group_setup, op_group_teardown);
}
