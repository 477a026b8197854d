// Products of the CUDA body in bf16, through cuBLASLt and with the own kernels: values, rows alone, the same
// bits twice; the loose precisions: values. No device: skipped.
// labels: gpu
#include "tests/weight_take_check.h"

#ifndef DR_IS_EMULATED // the emulated device has the library
#define DR_IS_EMULATED 0
#endif

#include <stdio.h>

#if DR_HAVE_CUDA_KERNELS
#include "cuda/backend_cuda.h"
#include "cuda/cuda_internal.h"
#include "cuda/device_probe.h"
#endif

enum { LIBRARY, OWN, N_BODIES };
static const char *const body_names[N_BODIES] = {"library", "own kernels"};
static dr_backend *bodies[N_BODIES];        // DR_BF16; NULL: no device
static dr_backend *plain;                   // DR_FP32; NULL: no device
static dr_backend *loose_fp32, *loose_bf16; // NULL: no device, or no library there

// ---- values ----

enum { PRODUCTS = 7 };
static const char *const product_names[PRODUCTS] = {"linear with bias",    "linear",  "dx", "dx, added", "dw",
                                                    "dw, added once more", "dw alone"};

typedef struct operands {
    int64_t T, O, I;
    const float *values, *x, *dy, *bias, *start; // host memory; start: of dw
} operands;

static void run_products(dr_backend *b, const operands *o, float *got[PRODUCTS]) {
    int64_t T = o->T, O = o->O, I = o->I;
    dr_weight *w = pack(b, O, I, o->values);
    float *x = put(b, o->x, T * I), *dy = put(b, o->dy, T * O), *bias = put(b, o->bias, O);
    float *y = put_poison(b, T * O), *dx = put_poison(b, T * I), *dw = put(b, o->start, O * I),
          *alone = put(b, o->start, O * I);
    check_ok(b->ops->linear_forward(b, w, x, T, bias, y));
    got[0] = get(b, y, T * O);
    check_ok(b->ops->linear_forward(b, w, x, T, NULL, y));
    got[1] = get(b, y, T * O);
    check_ok(b->ops->linear_backward(b, w, x, dy, T, dx, false, dw, NULL));
    got[2] = get(b, dx, T * I);
    got[4] = get(b, dw, O * I);
    check_ok(b->ops->linear_backward(b, w, x, dy, T, dx, true, dw, NULL));
    got[3] = get(b, dx, T * I);
    got[5] = get(b, dw, O * I);
    check_ok(b->ops->linear_backward(b, w, x, dy, T, NULL, false, alone, NULL));
    got[6] = get(b, alone, O * I);
    b->ops->weight_destroy(b, w);
}

// The fp32 CPU body, on operands that were rounded before where the other rounds, is what must come out.
static void check_values(dr_backend *b, const char *name, bool is_exact, int64_t T, int64_t O, int64_t I) {
    const operands plain = {T,
                            O,
                            I,
                            op_normal(O * I, 0, 1),
                            op_normal(T * I, 0, 1),
                            op_normal(T * O, 0, 1),
                            op_normal(O, 0, 1),
                            op_normal(O * I, 0, 1)};
    operands reference = plain;
    float *want[PRODUCTS], *got[PRODUCTS], *again[PRODUCTS];
    if (dr_rounds_to_bf16(b->precision)) {
        reference.values = rounded(plain.values, O * I);
        reference.x = rounded(plain.x, T * I);
        reference.dy = rounded(plain.dy, T * O);
    }
    run_products(op_one, &reference, want);
    run_products(b, &plain, got);
    run_products(b, &plain, again);
    for (int i = 0; i < PRODUCTS; i++) {
        char text[96];
        int64_t n = i < 2 ? T * O : i < 4 ? T * I : O * I;
        snprintf(text, sizeof text, "%s, %s, %d rows, %d x %d", name, product_names[i], (int)T, (int)O,
                 (int)I);
        check_relative_error(text, got[i], want[i], n, 2e-5);
        if (is_exact) check_same_bits(text, again[i], got[i], n);
    }
    free_all();
}

static const int64_t shapes[][2] = {{7, 5},    {33, 17},
                                    {64, 32},  {72, 24},
                                    {70, 301}, {136, sized(1000, 200)},
                                    {129, 24}, {sized(512, 130), sized(896, 72)}};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };
static const int64_t row_counts[] = {1, 2, 7, 8, 33, sized(128, 64), sized(257, 65), sized(1000, 129)};
enum { N_COUNTS = sizeof row_counts / sizeof *row_counts, MOST_ROWS = sized(1000, 129) };

static void test_values(void **state) {
    (void)state;
    if (!bodies[OWN]) skip();
    for (int body = 0; body < N_BODIES; body++)
        for (int i = 0; i < N_SHAPES * N_COUNTS; i += sized(1, 3))
            check_values(bodies[body], body_names[body], true, row_counts[i % N_COUNTS],
                         shapes[i / N_COUNTS][0], shapes[i / N_COUNTS][1]);
}

static void test_loose(void **state) {
    (void)state;
    if (!loose_fp32) skip();
    for (int i = 0; i < N_SHAPES * N_COUNTS; i += sized(1, 3)) {
        int64_t T = row_counts[i % N_COUNTS], O = shapes[i / N_COUNTS][0], I = shapes[i / N_COUNTS][1];
        check_values(loose_fp32, "loose fp32", false, T, O, I);
        check_values(loose_bf16, "loose bf16", false, T, O, I);
    }
}

static void test_weight_rows(void **state) {
    (void)state;
    enum { T = 45, O = 70, I = 301 };
    if (!bodies[OWN]) skip();
    for (int body = 0; body < N_BODIES; body++) {
        dr_backend *b = bodies[body];
        float *values = op_normal(O * I, 0, 1), *out = put_poison(b, T * I), *want = op_poison(T * I);
        const float *table = rounded(values, O * I);
        const int32_t *ids = op_ids(T, O);
        dr_weight *w = pack(b, O, I, values);
        check_ok(b->ops->weight_rows(b, w, put_ids(b, ids, T), T, out));
        for (int t = 0; t < T; t++) memcpy(want + t * I, table + ids[t] * I, I * sizeof *want);
        check_same_bits("rows of a weight", get(b, out, T * I), want, T * I);
        b->ops->weight_destroy(b, w);
        free_all();
    }
}

static void test_weight_taken(void **state) {
    (void)state;
    if (!bodies[OWN]) skip();
    for (int body = 0; body < N_BODIES; body++)
        for (int i = 0; i < TAKE_SHAPES; i++) {
            check_weight_taken(bodies[body], take_shapes[i][0], take_shapes[i][1]);
            free_all();
        }
    check_weight_not_taken(plain);
}

// ---- silu(gate) · up as an operand ----

static float *identity(int64_t n) {
    float *values = op_array(n * n, sizeof(float));
    for (int64_t i = 0; i < n; i++) values[i * n + i] = 1;
    return values;
}

// What the device makes of gate and up, and of the gradient there: products with the identity in fp32.
static const float *swiglu_of(const float *gate_up, int64_t T, int64_t F) {
    dr_weight *w = pack(plain, F, F, identity(F));
    float *act = put_poison(plain, T * F);
    check_ok(plain->ops->swiglu_linear_forward(plain, w, put(plain, gate_up, 2 * T * F), T, act));
    plain->ops->weight_destroy(plain, w);
    return get(plain, act, T * F);
}

static const float *swiglu_gradient_of(const float *gate_up, const float *dact, int64_t T, int64_t F) {
    dr_weight *w = pack(plain, F, F, identity(F));
    float *d = put_poison(plain, 2 * T * F), *unused = put_poison(plain, F * F);
    check_ok(plain->ops->swiglu_linear_backward(plain, w, put(plain, gate_up, 2 * T * F),
                                                put(plain, dact, T * F), T, d, unused));
    plain->ops->weight_destroy(plain, w);
    return get(plain, d, 2 * T * F);
}

enum { GATED = 3 };
static const char *const gated_names[GATED] = {"y", "dw", "d of gate and up"};

// By the plain ops, which read silu(gate) · up from memory. start: of dw.
static void run_in_turn(dr_backend *b, const dr_weight *w, const operands *o, const float *both,
                        const float *want[GATED]) {
    int64_t T = o->T, O = o->O, I = o->I;
    float *act = put(b, swiglu_of(both, T, I), T * I), *dy = put(b, o->dy, T * O);
    float *y = put_poison(b, T * O), *dw = put(b, o->start, O * I), *dact = put_poison(b, T * I);
    check_ok(b->ops->linear_forward(b, w, act, T, NULL, y));
    check_ok(b->ops->linear_backward(b, w, act, dy, T, dact, false, dw, NULL));
    want[0] = get(b, y, T * O);
    want[1] = get(b, dw, O * I);
    want[2] = swiglu_gradient_of(both, get(b, dact, T * I), T, I);
    if (dr_rounds_to_bf16(b->precision)) want[2] = rounded(want[2], 2 * T * I);
}

// The bits, or where the library sums in any order the values, of the steps in turn. odd: gate and up begin
// at an address that no wide load takes.
static void check_swiglu(dr_backend *b, const char *name, int64_t T, int64_t O, int64_t I, int odd) {
    const operands o = {
        .T = T, .O = O, .I = I, .dy = op_normal(T * O, 0, 1), .start = op_normal(O * I, 0, 1)};
    const int64_t sizes[GATED] = {T * O, O * I, 2 * T * I};
    const size_t element = dr_gated_bytes(b);
    const float *both = op_normal(2 * T * I, 0, 2), *want[GATED], *got[GATED];
    char *gate_up = (char *)put_poison(b, 2 * T * I + 1) + (odd ? element : 0);
    float *y = put_poison(b, T * O), *d = put_poison(b, 2 * T * I), *dw = put(b, o.start, O * I);
    dr_weight *w = pack(b, O, I, op_normal(O * I, 0, 1));
    if (dr_rounds_to_bf16(b->precision)) both = rounded(both, 2 * T * I);
    b->ops->copy_in(b, gate_up, op_gated(b, op_copy(both, 2 * T * I), 2 * T * I),
                    (size_t)(2 * T * I) * element);
    run_in_turn(b, w, &o, both, want);
    check_ok(b->ops->swiglu_linear_forward(b, w, gate_up, T, y));
    check_ok(b->ops->swiglu_linear_backward(b, w, gate_up, put(b, o.dy, T * O), T, d, dw));
    got[0] = get(b, y, T * O);
    got[1] = get(b, dw, O * I);
    got[2] = get_gated(b, d, 2 * T * I);
    for (int i = 0; i < GATED; i++) {
        char text[96];
        snprintf(text, sizeof text, "%s, %s of swiglu, %d rows, %d x %d", name, gated_names[i], (int)T,
                 (int)O, (int)I);
        if (dr_is_loose(b->precision))
            check_relative_error(text, got[i], want[i], sizes[i], 2e-5);
        else
            check_same_bits(text, got[i], want[i], sizes[i]);
    }
    b->ops->weight_destroy(b, w);
    free_all();
}

static void test_swiglu(void **state) {
    (void)state;
    if (!plain) skip();
    for (int i = 0; i < N_SHAPES * N_COUNTS; i += sized(1, 5)) {
        int64_t T = row_counts[i % N_COUNTS], O = shapes[i / N_COUNTS][0], I = shapes[i / N_COUNTS][1];
        check_swiglu(plain, "fp32", T, O, I, i % 2);
        for (int body = 0; body < N_BODIES; body++)
            check_swiglu(bodies[body], body_names[body], T, O, I, i % 2);
        if (loose_fp32) check_swiglu(loose_fp32, "loose fp32", T, O, I, i % 2);
        if (loose_bf16) check_swiglu(loose_bf16, "loose bf16", T, O, I, i % 2);
    }
}

// ---- gate and up ----

// Values that are rounded may be a step of bf16 apart where the sums in fp32 are not the same.
static void check_gated(const char *text, const float *got, const float *want, int64_t n, int64_t k) {
    const double slack = 2e-6 * sqrt((double)k);
    for (int64_t i = 0; i < n; i++)
        if (!(fabs((double)got[i] - want[i]) <= 0x1p-8 * fabs((double)want[i]) + slack))
            fail_msg("%s: value %d is %.9g, expected %.9g before it is rounded", text, (int)i, (double)got[i],
                     (double)want[i]);
}

// Forward: what the CPU's fp32 body gives of rounded operands, once rounded; backward: the bits of the linear
// layer's gradients of the same dy. odd: gate and up and their gradient begin at addresses that the library
// does not take; the bits are the same.
static void check_gate_up(dr_backend *b, const char *name, int64_t T, int64_t O, int64_t I) {
    const bool rounds = dr_rounds_to_bf16(b->precision);
    const size_t element = dr_gated_bytes(b);
    const float *values = op_normal(O * I, 0, 1), *x = op_normal(T * I, 0, 1),
                *start = op_normal(O * I, 0, 1), *dy = op_normal(T * O, 0, 1);
    const operands reference = {T,
                                O,
                                I,
                                rounds ? rounded(values, O * I) : values,
                                rounds ? rounded(x, T * I) : x,
                                dy,
                                op_normal(O, 0, 1),
                                start};
    float *want[PRODUCTS], *got[2][3];
    char text[96];
    run_products(op_one, &reference, want);
    dr_weight *w = pack(b, O, I, values);
    if (rounds) dy = rounded(dy, T * O);
    float *own_x = put(b, x, T * I), *dx = put_poison(b, T * I), *dw = put(b, start, O * I);
    check_ok(b->ops->linear_backward(b, w, own_x, put(b, dy, T * O), T, dx, false, dw, NULL));
    const float *want_dx = get(b, dx, T * I), *want_dw = get(b, dw, O * I);
    for (int odd = 0; odd < 2; odd++) {
        char *gate_up = (char *)put_poison(b, T * O + 1) + (odd ? element : 0),
             *dgate_up = (char *)put_poison(b, T * O + 1) + (odd ? element : 0);
        b->ops->copy_in(b, dgate_up, op_gated(b, op_copy(dy, T * O), T * O), (size_t)(T * O) * element);
        b->ops->copy_in(b, dw, start, (size_t)(O * I) * sizeof(float));
        check_ok(b->ops->gate_up_forward(b, w, own_x, T, gate_up));
        check_ok(b->ops->gate_up_backward(b, w, own_x, dgate_up, T, dx, dw));
        got[odd][0] = get_gated(b, gate_up, T * O);
        got[odd][1] = get(b, dx, T * I);
        got[odd][2] = get(b, dw, O * I);
    }
    snprintf(text, sizeof text, "%s, gate and up, %d rows, %d x %d", name, (int)T, (int)O, (int)I);
    if (rounds)
        check_gated(text, got[0][0], want[1], T * O, I);
    else
        check_relative_error(text, got[0][0], want[1], T * O, 2e-5);
    for (int odd = 0; odd < 2; odd++) {
        check_same_bits(text, got[odd][0], got[0][0], T * O);
        if (dr_is_loose(b->precision)) {
            check_relative_error(text, got[odd][1], want_dx, T * I, 2e-5);
            check_relative_error(text, got[odd][2], want_dw, O * I, 2e-5);
        } else {
            check_same_bits(text, got[odd][1], want_dx, T * I);
            check_same_bits(text, got[odd][2], want_dw, O * I);
        }
    }
    b->ops->weight_destroy(b, w);
    free_all();
}

static void test_gate_up(void **state) {
    (void)state;
    if (!plain) skip();
    for (int i = 0; i < N_SHAPES * N_COUNTS; i += sized(1, 5)) {
        int64_t T = row_counts[i % N_COUNTS], O = shapes[i / N_COUNTS][0], I = shapes[i / N_COUNTS][1];
        check_gate_up(plain, "fp32", T, O, I);
        for (int body = 0; body < N_BODIES; body++) check_gate_up(bodies[body], body_names[body], T, O, I);
        if (loose_fp32) check_gate_up(loose_fp32, "loose fp32", T, O, I);
        if (loose_bf16) check_gate_up(loose_bf16, "loose bf16", T, O, I);
    }
}

// ---- rows alone ----

// Every row of a product of any number of rows has the bits of the product of that row alone.
static void check_rows_alone(dr_backend *b, const char *name, int64_t O, int64_t I, bool has_bias) {
    dr_weight *w = pack(b, O, I, op_normal(O * I, 0, 1));
    float *x = put(b, op_normal(MOST_ROWS * I, 0, 1), MOST_ROWS * I), *y = put_poison(b, MOST_ROWS * O);
    float *bias = has_bias ? put(b, op_normal(O, 0, 1), O) : NULL;
    for (int64_t t = 0; t < MOST_ROWS; t++)
        check_ok(b->ops->linear_forward(b, w, x + t * I, 1, bias, y + t * O));
    const float *want = get(b, y, MOST_ROWS * O);
    for (int i = 0; i < N_COUNTS; i++)
        for (int64_t t0 = 0; t0 + row_counts[i] <= MOST_ROWS; t0 += sized(311, 61)) {
            char text[96];
            int64_t T = row_counts[i];
            float *part = put_poison(b, T * O);
            check_ok(b->ops->linear_forward(b, w, x + t0 * I, T, bias, part));
            snprintf(text, sizeof text, "%s, %d x %d, %d rows from %d", name, (int)O, (int)I, (int)T,
                     (int)t0);
            check_same_bits(text, get(b, part, T * O), want + t0 * O, T * O);
        }
    b->ops->weight_destroy(b, w);
    free_all();
}

// The same of gate and up.
static void check_gate_up_alone(dr_backend *b, const char *name, int64_t O, int64_t I) {
    const size_t element = dr_gated_bytes(b);
    dr_weight *w = pack(b, O, I, op_normal(O * I, 0, 1));
    float *x = put(b, op_normal(MOST_ROWS * I, 0, 1), MOST_ROWS * I);
    char *y = put_gated(b, op_poison(MOST_ROWS * O), MOST_ROWS * O),
         *part = put_gated(b, op_poison(MOST_ROWS * O), MOST_ROWS * O);
    for (int64_t t = 0; t < MOST_ROWS; t++)
        check_ok(b->ops->gate_up_forward(b, w, x + t * I, 1, y + (size_t)(t * O) * element));
    const float *want = get_gated(b, y, MOST_ROWS * O);
    for (int i = 0; i < N_COUNTS; i++) {
        char text[96];
        const int64_t T = row_counts[i], t0 = MOST_ROWS - T;
        check_ok(b->ops->gate_up_forward(b, w, x + t0 * I, T, part));
        snprintf(text, sizeof text, "%s, gate and up, %d x %d, %d rows", name, (int)O, (int)I, (int)T);
        check_same_bits(text, get_gated(b, part, T * O), want + t0 * O, T * O);
    }
    b->ops->weight_destroy(b, w);
    free_all();
}

static void test_rows_alone(void **state) {
    (void)state;
    if (!bodies[OWN]) skip();
    for (int body = 0; body < N_BODIES; body++)
        for (int i = sized(0, body); i < 2 * N_SHAPES; i += sized(1, 3)) {
            const int64_t O = shapes[i / 2][0], I = shapes[i / 2][1];
            check_rows_alone(bodies[body], body_names[body], O, I, i % 2);
            if (i % 2) check_gate_up_alone(bodies[body], body_names[body], O, I);
        }
}

// The same bits where x, y, bias and the gradients do not begin at addresses that the library takes.
static void test_odd_addresses(void **state) {
    (void)state;
    enum { T = 33, O = 72, I = 24 };
    if (!bodies[OWN]) skip();
    for (int body = 0; body < N_BODIES; body++) {
        dr_backend *b = bodies[body];
        const float *x = op_normal(T * I, 0, 1), *dy = op_normal(T * O, 0, 1), *bias = op_normal(O, 0, 1),
                    *start = op_normal(O * I, 0, 1), *before = op_normal(T * I, 0, 1);
        dr_weight *w = pack(b, O, I, op_normal(O * I, 0, 1));
        const float *got[2][3];
        for (int odd = 0; odd < 2; odd++) {
            float *own_x = put_poison(b, T * I + 1) + odd, *own_dy = put_poison(b, T * O + 1) + odd,
                  *own_bias = put_poison(b, O + 1) + odd, *y = put_poison(b, T * O + 1) + odd,
                  *dx = put_poison(b, T * I + 1) + odd, *dw = put_poison(b, O * I + 1) + odd;
            b->ops->copy_in(b, own_x, x, T * I * sizeof(float));
            b->ops->copy_in(b, own_dy, dy, T * O * sizeof(float));
            b->ops->copy_in(b, own_bias, bias, O * sizeof(float));
            b->ops->copy_in(b, dx, before, T * I * sizeof(float));
            b->ops->copy_in(b, dw, start, O * I * sizeof(float));
            check_ok(b->ops->linear_forward(b, w, own_x, T, own_bias, y));
            check_ok(b->ops->linear_backward(b, w, own_x, own_dy, T, dx, true, dw, NULL));
            got[odd][0] = get(b, y, T * O);
            got[odd][1] = get(b, dx, T * I);
            got[odd][2] = get(b, dw, O * I);
        }
        check_same_bits("y at an odd address", got[1][0], got[0][0], T * O);
        check_same_bits("dx at an odd address", got[1][1], got[0][1], T * I);
        check_same_bits("dw at an odd address", got[1][2], got[0][2], O * I);
        b->ops->weight_destroy(b, w);
        free_all();
    }
}

// ---- memory ----

// Without a device too: every precision that keeps rounded weights says so.
static void test_weight_memory(void **state) {
    (void)state;
#if DR_HAVE_CUDA_KERNELS
    enum { O = 24, I = 40 };
    static const dr_precision rounding[] = {DR_BF16, DR_BF16_LOOSE}, others[] = {DR_FP32, DR_FP32_LOOSE};
    dr_backend_ops ops = {0};
    dr_cuda_fill_linear(&ops);
    for (int i = 0; i < 2; i++) {
        dr_backend b = {.ops = &ops, .precision = rounding[i]};
        assert_int_equal(ops.weight_memory(&b, O, I), O * I * sizeof(uint16_t));
        b.precision = others[i];
        assert_int_equal(ops.weight_memory(&b, O, I), 0);
    }
#else
    skip();
#endif
}

// dy as bf16 is what products keep most of when a weight has many outputs and few inputs: the plan of a
// training pass counts it. fp32 keeps none.
static void test_gradient_memory(void **state) {
    (void)state;
#if DR_HAVE_CUDA_KERNELS
    enum { T = 65, O = 4096, I = 8 };
    const dr_pass_shape shape = {.T = T, .n_out = O, .n_in = I, .n_dy = O, .H = 1, .G = 1, .d = 8, .V = 16};
    static const dr_precision precisions[] = {DR_FP32, DR_BF16};
    if (!plain) skip();
    for (int i = 0; i < 2; i++) {
        dr_backend *b = NULL;
        check_ok(dr_backend_cuda_create(precisions[i], 0, &b));
        const dr_cuda_state *own = b->state;
        dr_weight *w = pack(b, O, I, op_normal(O * I, 0, 1));
        float *x = put(b, op_normal(T * I, 0, 1), T * I), *dy = put(b, op_normal(T * O, 0, 1), T * O);
        check_ok(b->ops->linear_backward(b, w, x, dy, T, put_poison(b, T * I), false, put_poison(b, O * I),
                                         put_poison(b, O)));
        int64_t on_host = 0, plan = b->ops->pass_memory(b, &shape, &on_host);
        assert_int_equal(own->dy.bytes, i == 0 ? 0 : T * O * sizeof(uint16_t));
        assert_true(own->partials.bytes > 0);
        assert_true(own->dy.bytes + own->partials.bytes + own->gated.bytes + own->dgated.bytes <= plan);
        b->ops->weight_destroy(b, w);
        free_all();
        dr_backend_cuda_destroy(b);
    }
#else
    skip();
#endif
}

// A pass over the cache may have more rows than one of training: the plan counts silu(gate) · up and the
// operands of its products, too.
static void test_cached_memory(void **state) {
    (void)state;
#if DR_HAVE_CUDA_KERNELS
    enum { T = 600, O = 8, I = 2048 };
    const dr_pass_shape shape = {
        .T = 8, .n_out = I, .n_in = I, .n_dy = O, .n_cached = T, .H = 1, .G = 1, .d = 8, .V = 16};
    static const dr_precision precisions[] = {DR_FP32, DR_BF16};
    if (!plain) skip();
    for (int i = 0; i < 2; i++) {
        dr_backend *b = NULL;
        check_ok(dr_backend_cuda_create(precisions[i], 0, &b));
        const dr_cuda_state *own = b->state;
        dr_weight *w = pack(b, O, I, op_normal(O * I, 0, 1));
        void *gate_up = put_gated(b, op_normal(T * 2 * I, 0, 1), T * 2 * I);
        float *x = put(b, op_normal(T * I, 0, 1), T * I), *y = put_poison(b, T * O);
        check_ok(b->ops->swiglu_linear_forward(b, w, gate_up, T, y));
        check_ok(b->ops->linear_forward(b, w, x, T, NULL, y));
        int64_t on_host = 0, plan = b->ops->pass_memory(b, &shape, &on_host);
        int64_t of_library = own->lt ? T * I * (int64_t)sizeof(uint16_t) : 0; // rows of x
        assert_int_equal(own->gated.bytes, T * I * (i == 0 ? sizeof(float) : sizeof(uint16_t)));
        assert_true(own->gated.bytes + of_library <= plan);
        b->ops->weight_destroy(b, w);
        free_all();
        dr_backend_cuda_destroy(b);
    }
#else
    skip();
#endif
}

// ---- the program ----

static int setup(void **state) {
#if DR_HAVE_CUDA_KERNELS
    dr_device_probe probe = dr_device_probe_run();
    if (probe.n_devices == 0) {
        print_message("no device: %s\n", probe.reason);
        return op_group_setup(state);
    }
    if (dr_backend_cuda_create(DR_FP32, 0, &plain) != DR_OK) return -1;
    if (dr_backend_cuda_create(DR_BF16, 0, &bodies[LIBRARY]) != DR_OK) return -1;
    dr_cuda_own_products_only(true);
    if (dr_backend_cuda_create(DR_BF16, 0, &bodies[OWN]) != DR_OK) return -1;
    dr_cuda_own_products_only(false);
    dr_status status = dr_backend_cuda_create(DR_FP32_LOOSE, 0, &loose_fp32);
    if (status == DR_OK) status = dr_backend_cuda_create(DR_BF16_LOOSE, 0, &loose_bf16);
    if (status == DR_ERR_UNSUPPORTED) print_message("no cuBLASLt: %s\n", dr_last_error());
    if (status != DR_OK && (DR_IS_EMULATED || status != DR_ERR_UNSUPPORTED)) return -1; // it has the library
#else
    print_message("this build has no CUDA\n");
#endif
    return op_group_setup(state);
}

static int teardown(void **state) {
#if DR_HAVE_CUDA_KERNELS
    for (int i = 0; i < N_BODIES; i++) dr_backend_cuda_destroy(bodies[i]);
    dr_backend_cuda_destroy(plain);
    dr_backend_cuda_destroy(loose_fp32);
    dr_backend_cuda_destroy(loose_bf16);
#endif
    return op_group_teardown(state);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cuda_test(test_values),        cuda_test(test_loose),         cuda_test(test_weight_rows),
        cuda_test(test_rows_alone),    cuda_test(test_odd_addresses), cuda_test(test_swiglu),
        cuda_test(test_gate_up),       cuda_test(test_weight_memory), cuda_test(test_gradient_memory),
        cuda_test(test_cached_memory), cuda_test(test_weight_taken),
    };
    int n_failed = cmocka_run_group_tests(tests, setup, teardown);
    return n_failed != 0 || bodies[OWN] ? n_failed : 77; // 77: skipped
}
