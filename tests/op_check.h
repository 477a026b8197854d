// What the tests of the compute ops share: two backends, arrays of random values or of poison that live until
// the end of a case, a comparer against double precision, derivatives of references and of the ops
// themselves.
#ifndef DR_TESTS_OP_CHECK_H
#define DR_TESTS_OP_CHECK_H

#include "tests/check.h"

#include <math.h>
#include <string.h>

#include "core/base/alloc.h"
#include "core/base/rng.h"
#include "core/compute/backend.h"

static dr_backend *op_one, *op_two; // fp32 with one and with two threads
static void *op_arrays[2048];
static int op_n_arrays;
static uint64_t op_stream; // of the next random array: a case has the same values in every run

static inline int op_group_setup(void **state) {
    (void)state;
    return dr_backend_cpu_create(DR_FP32, 1, &op_one) == DR_OK &&
                   dr_backend_cpu_create(DR_FP32, 2, &op_two) == DR_OK
               ? 0
               : -1;
}

static inline int op_group_teardown(void **state) {
    (void)state;
    dr_backend_cpu_destroy(op_one);
    dr_backend_cpu_destroy(op_two);
    return 0;
}

static inline void op_free_arrays(void) {
    while (op_n_arrays > 0) dr_free(op_arrays[--op_n_arrays]);
}

// Teardown of every case, also of one that failed.
static inline int op_case_teardown(void **state) {
    (void)state;
    op_free_arrays();
    op_stream = 0;
    return 0;
}

#define op_test(function) cmocka_unit_test_teardown(function, op_case_teardown)

static inline void *op_array(int64_t n, size_t size) {
    void *values = NULL;
    check_ok(dr_alloc(&values, "test array", n, size));
    assert_true(op_n_arrays < (int)(sizeof op_arrays / sizeof *op_arrays));
    return op_arrays[op_n_arrays++] = values;
}

static inline double *op_zeros(int64_t n) {
    return op_array(n, sizeof(double));
}

static inline float *op_poison(int64_t n) {
    float *values = op_array(n, sizeof(float));
    for (int64_t i = 0; i < n; i++) values[i] = NAN;
    return values;
}

static inline float *op_normal(int64_t n, double mean, double deviation) {
    float *values = op_array(n, sizeof(float));
    dr_rng rng = dr_rng_make(20, ++op_stream);
    for (int64_t i = 0; i < n; i++) values[i] = (float)(mean + deviation * dr_rng_normal(&rng));
    return values;
}

static inline int32_t *op_ids(int64_t n, uint32_t below) {
    int32_t *ids = op_array(n, sizeof(int32_t));
    dr_rng rng = dr_rng_make(21, ++op_stream);
    for (int64_t i = 0; i < n; i++) ids[i] = (int32_t)dr_rng_below(&rng, below);
    return ids;
}

// Kept sets of T rows: the whole vocabulary, the target alone, with it about half of the ids, or about one in
// thirty, in turn.
static inline dr_kept *op_kept(const int32_t *targets, int64_t T, int64_t V) {
    static const uint32_t one_in[] = {0, 0, 2, 30};
    dr_kept *kept = op_array(T, sizeof *kept);
    int32_t *ids = op_array(T * V, sizeof *ids);
    dr_rng rng = dr_rng_make(22, ++op_stream);
    for (int64_t t = 0; t < T; t++, ids += V) {
        kept[t].ids = ids;
        for (int32_t j = 0; t % 4 > 0 && j < V; j++)
            if (j == targets[t] || (t % 4 > 1 && dr_rng_below(&rng, one_in[t % 4]) == 0))
                ids[kept[t].n++] = j;
    }
    return kept;
}

static inline float *op_copy(const float *from, int64_t n) {
    float *values = op_array(n, sizeof(float));
    if (n > 0) memcpy(values, from, (size_t)n * sizeof(float));
    return values;
}

static inline double *op_double(const float *from, int64_t n) {
    double *values = op_array(n, sizeof(double));
    for (int64_t i = 0; i < n; i++) values[i] = from[i];
    return values;
}

// Fails unless Σ(got-want)²/Σwant² <= limit, where values are taken to be of size 0.1 at least (sums of
// larger ones may come out near zero). NaN never passes.
static inline void op_close(const char *name, const float *got, const double *want, int64_t n, double limit) {
    double difference = 0, norm = 0, worst = 0;
    int64_t at = 0;
    for (int64_t i = 0; i < n; i++) {
        double gap = fabs(got[i] - want[i]);
        difference += gap * gap;
        norm += want[i] * want[i];
        if (!(gap <= worst)) {
            worst = isnan(gap) ? INFINITY : gap;
            at = i;
        }
    }
    double error = difference / fmax(fmax(norm, 0.01 * (double)n), 1e-300);
    if (!(error <= limit))
        fail_msg(
            "%s: normalised error %.3g over %lld values, limit %.3g; element %lld is %.9g, expected %.9g",
            name, error, (long long)n, limit, (long long)at, (double)got[at], want[at]);
}

// Derivatives of a reference in double precision by central differences, one element after the other.
typedef double (*op_loss)(void *context);
static inline double *op_differentiate(op_loss loss, void *context, double *x, int64_t n) {
    double *gradient = op_zeros(n), step = 1e-5;
    for (int64_t i = 0; i < n; i++) {
        double kept = x[i];
        x[i] = kept + step;
        double above = loss(context);
        x[i] = kept - step;
        gradient[i] = (above - loss(context)) / (2 * step);
        x[i] = kept;
    }
    return gradient;
}

// The gradient that an op reports against differences of the op's own forward pass, along random directions.
// tolerance: share of the gradient's length, of 0.1 at least.
static inline void op_check_slope(const char *name, op_loss loss, void *context, float *x,
                                  const float *gradient, int64_t n, float step, double tolerance) {
    float *kept = op_copy(x, n);
    double length = 0;
    for (int64_t i = 0; i < n; i++) length += (double)gradient[i] * gradient[i];
    length = sqrt(length);
    for (int trial = 0; trial < 3; trial++) {
        float *direction = op_normal(n, 0, 1);
        double want = 0, value[2];
        for (int64_t i = 0; i < n; i++) want += (double)direction[i] * gradient[i];
        for (int side = 0; side < 2; side++) {
            for (int64_t i = 0; i < n; i++) x[i] = kept[i] + (side ? -step : step) * direction[i];
            value[side] = loss(context);
        }
        memcpy(x, kept, (size_t)n * sizeof(float));
        double got = (value[0] - value[1]) / (2 * (double)step);
        if (!(fabs(got - want) <= tolerance * fmax(length, 0.1)))
            fail_msg(
                "%s: the gradient says %.6g along a direction, differences of the op say %.6g (length %.4g)",
                name, want, got, length);
    }
}

// n values of gate and up in host memory as b keeps them (dr_gated_bytes), and back: fp32 ones are the very
// array.
static inline void *op_gated(const dr_backend *b, float *values, int64_t n) {
    if (!dr_rounds_to_bf16(b->precision)) return values;
    uint16_t *halves = op_array(n, sizeof *halves);
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &values[i], sizeof bits);
        bool is_nan = (bits & 0x7FFFFFFFu) > 0x7F800000u; // to nearest, ties to even
        halves[i] = (uint16_t)(is_nan ? bits >> 16 | 0x40u : (bits + 0x7FFFu + (bits >> 16 & 1)) >> 16);
    }
    return halves;
}

static inline float *op_gated_values(const dr_backend *b, void *gated, int64_t n) {
    if (!dr_rounds_to_bf16(b->precision)) return gated;
    const uint16_t *halves = gated;
    float *values = op_array(n, sizeof *values);
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits = (uint32_t)halves[i] << 16;
        memcpy(&values[i], &bits, sizeof bits);
    }
    return values;
}

// silu(gate) · up [T, F] itself, of an fp32 backend, and its gradient dgate_up [T, 2F] from dout: products
// with the identity add zeros to what they multiply.
static inline dr_weight *op_identity(dr_backend *b, int64_t F) {
    float *identity = op_array(F * F, sizeof(float));
    dr_weight *w = NULL;
    for (int64_t i = 0; i < F; i++) identity[i * F + i] = 1;
    check_ok(b->ops->weight_create(b, F, F, &w));
    check_ok(b->ops->weight_pack(b, w, identity));
    return w;
}

static inline void op_swiglu(dr_backend *b, const float *gate_up, int64_t T, int64_t F, float *out) {
    dr_weight *w = op_identity(b, F);
    check_ok(b->ops->swiglu_linear_forward(b, w, gate_up, T, out));
    b->ops->weight_destroy(b, w);
}

static inline void op_swiglu_gradient(dr_backend *b, const float *dout, const float *gate_up, int64_t T,
                                      int64_t F, float *dgate_up) {
    dr_weight *w = op_identity(b, F);
    float *unused = op_array(F * F, sizeof(float));
    check_ok(b->ops->swiglu_linear_backward(b, w, gate_up, dout, T, dgate_up, unused));
    b->ops->weight_destroy(b, w);
}

static inline double op_dot(const float *a, const float *b, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)a[i] * b[i];
    return sum;
}

#endif
