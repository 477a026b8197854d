// Every op of the compute seam but attention (test_ops_attention.c) against plain double precision.
// labels: cpu
#include "tests/op_check.h"
#include "tests/op_perf.h"

#include <stdio.h>

enum { SHAPES = 9 };
// rows, outputs, inputs: odd ones, ones behind the borders of panels (32), of blocks of rows (12, 192 a
// thread) and of inputs (512; with a transposed left side 1024, tests/test_ops_exact.c)
static const int64_t linear_shapes[SHAPES][3] = {{1, 1, 1},    {1, 7, 5},    {3, 33, 17},
                                                 {13, 64, 31}, {29, 97, 70}, {12, 31, 129},
                                                 {5, 65, 600}, {7, 3, 1025}, {401, 45, 37}};

static void test_memory(void **state) {
    (void)state;
    char *memory = NULL, from[100], to[100] = {0};
    check_ok(op_one->ops->memory_create(op_one, "memory", 100, (void **)&memory));
    for (int i = 0; i < 100; i++) {
        assert_int_equal(memory[i], 0);
        from[i] = (char)(i * 7);
    }
    op_one->ops->copy_in(op_one, memory, from, 100);
    memset(from, 0, 50);
    op_one->ops->copy_out(op_one, to, memory + 50, 50);
    op_one->ops->copy_out(op_one, to, NULL, 0);
    assert_memory_equal(to, from + 50, 50);
    op_one->ops->memory_destroy(op_one, memory);
    op_one->ops->memory_destroy(op_one, NULL);
    assert_string_equal(op_one->ops->name, "cpu");
}

// ---- linear layers ----

// c [m, n] += op(a) · op(b): element (i, kk) of op(a) is a[i * a_row + kk * a_column].
static void ref_product(const float *a, int64_t a_row, int64_t a_column, const float *b, int64_t b_row,
                        int64_t b_column, int64_t m, int64_t n, int64_t k, double alpha, double *c) {
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            double sum = 0;
            for (int64_t kk = 0; kk < k; kk++)
                sum += (double)a[i * a_row + kk * a_column] * b[kk * b_row + j * b_column];
            c[i * n + j] += alpha * sum;
        }
}

typedef struct linear_case {
    dr_backend *b;
    dr_weight *w;
    int64_t T, n_out, n_in;
    float *x, *values, *bias, *y, *dy;
} linear_case;

static double linear_loss(void *context) {
    linear_case *c = context;
    check_ok(c->b->ops->weight_pack(c->b, c->w, c->values));
    check_ok(c->b->ops->linear_forward(c->b, c->w, c->x, c->T, c->bias, c->y));
    return op_dot(c->y, c->dy, c->T * c->n_out);
}

static void check_linear_forward(linear_case *c) {
    const dr_backend_ops *ops = c->b->ops;
    double *want = op_zeros(c->T * c->n_out);
    ref_product(c->x, c->n_in, 1, c->values, 1, c->n_in, c->T, c->n_out, c->n_in, 1, want);
    check_ok(ops->linear_forward(c->b, c->w, c->x, c->T, NULL, c->y));
    op_close("linear without bias", c->y, want, c->T * c->n_out, 1e-11);
    for (int64_t i = 0; i < c->T * c->n_out; i++) {
        want[i] += c->bias[i % c->n_out];
        c->y[i] = NAN;
    }
    check_ok(ops->linear_forward(c->b, c->w, c->x, c->T, c->bias, c->y));
    op_close("linear with bias", c->y, want, c->T * c->n_out, 1e-11);
}

static void check_linear_backward(linear_case *c) {
    const dr_backend_ops *ops = c->b->ops;
    int64_t n = c->T * c->n_in;
    double *want = op_zeros(n);
    float *dx = op_poison(n), *start = op_normal(n, 0, 3), *sum = op_copy(start, n);
    ref_product(c->dy, c->n_out, 1, c->values, c->n_in, 1, c->T, c->n_in, c->n_out, 1, want);
    int64_t n_weights = c->n_out * c->n_in;
    float *dw = op_normal(n_weights, 0, 2), *dbias = op_normal(c->n_out, 0, 2),
          *plain = op_copy(dw, n_weights), *alone = op_copy(dw, n_weights);
    float *zero = op_array(n_weights, sizeof(float));
    double *want_w = op_double(dw, n_weights), *want_bias = op_double(dbias, c->n_out);
    ref_product(c->dy, 1, c->n_out, c->x, c->n_in, 1, c->n_out, c->n_in, c->T, 1, want_w);
    for (int64_t i = 0; i < c->T * c->n_out; i++) want_bias[i % c->n_out] += c->dy[i];
    check_ok(ops->linear_backward(c->b, c->w, c->x, c->dy, c->T, dx, false, dw, dbias));
    op_close("dx", dx, want, n, 1e-11);
    op_close("dw", dw, want_w, n_weights, 1e-11);
    op_close("dbias", dbias, want_bias, c->n_out, 1e-11);
    check_ok(ops->linear_backward(c->b, c->w, c->x, c->dy, c->T, sum, true, plain, NULL));
    for (int64_t i = 0; i < n; i++) want[i] += start[i];
    op_close("dx, accumulated", sum, want, n, 1e-11);
    check_same_bits("dw without dbias", plain, dw, n_weights);
    check_ok(ops->linear_backward(c->b, c->w, c->x, c->dy, c->T, NULL, false, alone, NULL));
    check_same_bits("dw without dx", alone, dw, n_weights);

    if (n_weights > 20000) return;
    check_ok(ops->linear_backward(c->b, c->w, c->x, c->dy, c->T, NULL, false, zero, NULL));
    op_check_slope("linear by x", linear_loss, c, c->x, dx, n, 0.1f, 1e-4);
    op_check_slope("linear by w", linear_loss, c, c->values, zero, n_weights, 0.1f, 1e-4);
}

static void test_linear(void **state) {
    (void)state;
    for (int s = 0; s < SHAPES; s++)
        for (int threads = 1; threads <= 2; threads++) {
            int64_t T = linear_shapes[s][0], n_out = linear_shapes[s][1], n_in = linear_shapes[s][2];
            linear_case c = {.b = threads == 1 ? op_one : op_two, .T = T, .n_out = n_out, .n_in = n_in};
            c.x = op_normal(T * n_in, 0, 1);
            c.values = op_normal(n_out * n_in, 0, 0.5);
            c.bias = op_normal(n_out, 0, 1);
            c.y = op_poison(T * n_out);
            c.dy = op_normal(T * n_out, 0, 1);
            check_ok(c.b->ops->weight_create(c.b, n_out, n_in, &c.w));
            check_ok(c.b->ops->weight_pack(c.b, c.w, c.values));
            check_linear_forward(&c);
            check_linear_backward(&c);
            // packed again after an update: the new values count
            for (int64_t i = 0; i < n_out * n_in; i++) c.values[i] *= -2.0f;
            check_ok(c.b->ops->weight_pack(c.b, c.w, c.values));
            check_linear_forward(&c);
            c.b->ops->weight_destroy(c.b, c.w);
            op_free_arrays();
        }
    op_one->ops->weight_destroy(op_one, NULL);
    dr_weight *none = NULL;
    check_error(op_one->ops->weight_create(op_one, 0, 3, &none), DR_ERR_RANGE, "0 x 3");
    check_error(op_one->ops->weight_create(op_one, 3, -1, &none), DR_ERR_RANGE, "3 x -1");
    assert_null(none);
}

// No rows: nothing is written, gradients stay.
static void test_linear_no_rows(void **state) {
    (void)state;
    dr_backend *fresh = NULL;
    dr_weight *w = NULL;
    check_ok(dr_backend_cpu_create(DR_FP32, 2, &fresh));
    float *values = op_normal(35, 0, 1), *dw = op_normal(35, 0, 1), *kept = op_copy(dw, 35), untouched = 7;
    check_ok(fresh->ops->weight_create(fresh, 5, 7, &w));
    check_ok(fresh->ops->weight_pack(fresh, w, values));
    check_ok(fresh->ops->linear_forward(fresh, w, values, 0, NULL, &untouched));
    check_ok(fresh->ops->linear_backward(fresh, w, values, values, 0, &untouched, false, dw, NULL));
    assert_true(untouched == 7);
    check_same_bits("dw", dw, kept, 35);
    fresh->ops->weight_destroy(fresh, w);
    dr_backend_cpu_destroy(fresh);
}

static void test_gemm(void **state) {
    (void)state;
    static const int64_t shapes[][3] = {{1, 1, 1}, {5, 33, 7}, {13, 70, 515}, {50, 31, 64}, {400, 40, 9}};
    static const float alphas[] = {1.0f, 0.7f, -2.0f, 0.0f}, betas[] = {0.0f, 1.0f, 0.5f, -1.0f};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (int variant = 0; variant < 4 * 2; variant++)
            for (int scaling = 0; scaling < 4; scaling++) {
                dr_backend *b = variant & 4 ? op_two : op_one;
                bool trans_a = variant & 1, trans_b = variant & 2;
                int64_t m = shapes[s][0], n = shapes[s][1], k = shapes[s][2];
                float alpha = alphas[scaling], beta = betas[(scaling + variant) % 4];
                float *a = op_normal(m * k, 0, 1), *right = op_normal(k * n, 0, 1),
                      *c = op_normal(m * n, 0, 1);
                double *want = op_double(c, m * n);
                for (int64_t i = 0; i < m * n; i++) {
                    want[i] *= beta;
                    if (beta == 0.0f) c[i] = NAN; // and is not read then
                }
                ref_product(a, trans_a ? 1 : k, trans_a ? m : 1, right, trans_b ? 1 : n, trans_b ? k : 1, m,
                            n, k, alpha, want);
                check_ok(b->ops->gemm(b, trans_a, trans_b, m, n, k, alpha, a, right, beta, c));
                char name[96];
                snprintf(name, sizeof name, "gemm %d%d of %d x %d x %d, alpha %g, beta %g", trans_a, trans_b,
                         (int)m, (int)n, (int)k, (double)alpha, (double)beta);
                op_close(name, c, want, m * n, 1e-11);
                op_free_arrays();
            }
}

static void test_gemm_nothing_to_sum(void **state) {
    (void)state;
    float c[6] = {NAN, NAN, NAN, NAN, NAN, NAN}, d[6] = {1, 2, 3, 4, 5, 6}, one = 1;
    check_ok(op_one->ops->gemm(op_one, false, false, 2, 3, 0, 1.0f, &one, &one, 0.0f, c));
    check_ok(op_one->ops->gemm(op_one, false, false, 2, 3, 0, 1.0f, &one, &one, 0.5f, d));
    for (int i = 0; i < 6; i++) {
        assert_true(c[i] == 0);
        assert_true(d[i] == 0.5f * (float)(i + 1));
    }
}

// ---- norms ----

enum { NORMS = 7 };
static const int64_t norm_shapes[NORMS][2] = {{1, 2},  {3, 5},    {7, 16},  {4, 33},
                                              {9, 47}, {131, 64}, {70, 100}};

typedef struct norm_case {
    bool is_layer; // LayerNorm, else RMSNorm
    int64_t T, D;
    double eps;
    float *x, *w, *bias, *y, *dy, *mean, *inv;
    double *rx, *rw, *rbias, *ry; // the reference's
} norm_case;

static void ref_norm(norm_case *c, double *mean, double *inv) {
    for (int64_t t = 0; t < c->T; t++) {
        double mu = 0, square = 0;
        for (int64_t i = 0; i < c->D && c->is_layer; i++) mu += c->rx[t * c->D + i] / (double)c->D;
        for (int64_t i = 0; i < c->D; i++) square += pow(c->rx[t * c->D + i] - mu, 2) / (double)c->D;
        double scale = 1 / sqrt(square + c->eps);
        for (int64_t i = 0; i < c->D; i++)
            c->ry[t * c->D + i] =
                (c->rx[t * c->D + i] - mu) * scale * c->rw[i] + (c->is_layer ? c->rbias[i] : 0);
        if (mean) mean[t] = mu;
        if (inv) inv[t] = scale;
    }
}

static double ref_norm_loss(void *context) {
    norm_case *c = context;
    double sum = 0;
    ref_norm(c, NULL, NULL);
    for (int64_t i = 0; i < c->T * c->D; i++) sum += c->dy[i] * c->ry[i];
    return sum;
}

static void norm_forward(norm_case *c, dr_backend *b, const float *x) {
    if (c->is_layer)
        b->ops->layernorm_forward(b, x, c->w, c->bias, c->T, c->D, (float)c->eps, c->y, c->mean, c->inv);
    else
        b->ops->rmsnorm_forward(b, x, c->w, c->T, c->D, (float)c->eps, c->y, c->inv);
}

static double norm_loss(void *context) {
    norm_case *c = context;
    norm_forward(c, op_one, c->x);
    return op_dot(c->y, c->dy, c->T * c->D);
}

static void norm_backward(norm_case *c, float *dx, float *dw, float *dbias) {
    if (c->is_layer)
        op_one->ops->layernorm_backward(op_one, c->dy, c->x, c->w, c->mean, c->inv, c->T, c->D, dx, dw,
                                        dbias);
    else
        op_one->ops->rmsnorm_backward(op_one, c->dy, c->x, c->w, c->inv, c->T, c->D, dx, dw);
}

static void add_doubles(double *to, const float *from, int64_t n) {
    for (int64_t i = 0; i < n; i++) to[i] += from[i];
}

static void check_norm_gradient(norm_case *c) {
    int64_t n = c->T * c->D, D = c->D;
    float *dx = op_normal(n, 0, 1), *dw = op_normal(D, 0, 1), *dbias = op_normal(D, 0, 1);
    float *zero_dx = op_array(n, sizeof(float)), *zero_dw = op_array(D, sizeof(float));
    float *alone = op_array(n, sizeof(float));
    if (n <= 600) {
        double *want_dx = op_differentiate(ref_norm_loss, c, c->rx, n);
        double *want_dw = op_differentiate(ref_norm_loss, c, c->rw, D);
        double *want_dbias = op_differentiate(ref_norm_loss, c, c->rbias, D);
        add_doubles(want_dx, dx, n);
        add_doubles(want_dw, dw, D);
        add_doubles(want_dbias, dbias, D);
        norm_backward(c, dx, dw, dbias);
        op_close("norm dx", dx, want_dx, n, 1e-10);
        op_close("norm dw", dw, want_dw, D, 1e-11);
        if (c->is_layer) op_close("norm dbias", dbias, want_dbias, D, 1e-12);
    }
    norm_backward(c, zero_dx, zero_dw, NULL);
    norm_backward(c, alone, NULL, NULL);
    check_same_bits("norm dx without dw", alone, zero_dx, n);
    if (D < 5) return; // nearly constant: differences see rounding only
    op_check_slope("norm by x", norm_loss, c, c->x, zero_dx, n, 2e-3f, 5e-3);
    op_check_slope("norm by w", norm_loss, c, c->w, zero_dw, D, 0.1f, 1e-4);
}

static void check_norm(bool is_layer, int64_t T, int64_t D, double mean_of_x, dr_backend *b) {
    norm_case c = {.is_layer = is_layer, .T = T, .D = D, .eps = 0.05};
    c.x = op_normal(T * D, mean_of_x, 1);
    c.w = op_normal(D, 1, 0.3);
    c.bias = op_normal(D, 0, 1);
    c.dy = op_normal(T * D, 0, 1);
    c.y = op_poison(T * D);
    c.mean = op_poison(T);
    c.inv = op_poison(T);
    c.rx = op_double(c.x, T * D);
    c.rw = op_double(c.w, D);
    c.rbias = op_double(c.bias, D);
    c.ry = op_zeros(T * D);
    double *mean = op_zeros(T), *inv = op_zeros(T);
    c.eps = (double)(float)c.eps;
    norm_forward(&c, b, c.x);
    ref_norm(&c, mean, inv);
    op_close("norm", c.y, c.ry, T * D, mean_of_x == 0 ? 1e-11 : 1e-7);
    op_close("norm's factor", c.inv, inv, T, mean_of_x == 0 ? 1e-11 : 1e-7);
    if (is_layer) op_close("norm's mean", c.mean, mean, T, 1e-12);
    if (mean_of_x == 0 && b == op_one) check_norm_gradient(&c);
    if (!is_layer) { // y may be x
        float *in_place = op_copy(c.x, T * D), *want = op_poison(T * D);
        b->ops->rmsnorm_forward(b, c.x, c.w, T, D, 0.05f, want, c.inv);
        b->ops->rmsnorm_forward(b, in_place, c.w, T, D, 0.05f, in_place, c.inv);
        check_same_bits("norm in place", in_place, want, T * D);
    }
    op_free_arrays();
}

static void test_norms(void **state) {
    (void)state;
    for (int is_layer = 0; is_layer < 2; is_layer++)
        for (int s = 0; s < NORMS; s++) {
            check_norm(is_layer, norm_shapes[s][0], norm_shapes[s][1], 0, op_one);
            check_norm(is_layer, norm_shapes[s][0], norm_shapes[s][1], 0, op_two);
            check_norm(is_layer, norm_shapes[s][0], norm_shapes[s][1], 50, op_one);
        }
}

// ---- rotary embedding ----

static void check_rope(int64_t T, int64_t heads, int64_t d, int64_t gap, uint32_t furthest, double limit) {
    int64_t stride = heads * d + gap, n = T * stride;
    float *x = op_normal(n, 0, 1), *inv_freq = op_array(d / 2, sizeof(float));
    int32_t *positions = op_ids(T, furthest + 1);
    for (int64_t i = 0; i < d / 2; i++) inv_freq[i] = (float)pow(10000, -2.0 * (double)i / (double)d);
    for (int direction = 1; direction >= -1; direction -= 2) {
        float *got = op_copy(x, n);
        double *want = op_double(x, n);
        for (int64_t t = 0; t < T; t++)
            for (int64_t h = 0; h < heads; h++)
                for (int64_t i = 0; i < d / 2; i++) {
                    double angle = (double)positions[t] * inv_freq[i] * direction,
                           *head = want + t * stride + h * d;
                    double low = head[i], high = head[i + d / 2];
                    head[i] = low * cos(angle) - high * sin(angle);
                    head[i + d / 2] = high * cos(angle) + low * sin(angle);
                }
        op_one->ops->rope(op_one, got, positions, inv_freq, T, heads, d, stride, direction);
        op_close("rope", got, want, n, limit);
        for (int64_t t = 0; t < T; t++) // what lies between the rows is somebody else's
            check_same_bits("beside rope", got + t * stride + heads * d, x + t * stride + heads * d, gap);
        // the backward turns back, and is the transpose: <R a, b> = <a, Rᵀ b>
        float *other = op_normal(n, 0, 1), *turned = op_copy(other, n), *back = op_copy(got, n);
        op_one->ops->rope(op_one, turned, positions, inv_freq, T, heads, d, stride, -direction);
        double left = 0, right = 0;
        for (int64_t i = 0; i < n; i++) {
            if (i % stride >= heads * d) continue;
            left += (double)got[i] * other[i];
            right += (double)x[i] * turned[i];
        }
        assert_true(fabs(left - right) <= 1e-5 * sqrt((double)n));
        op_one->ops->rope(op_one, back, positions, inv_freq, T, heads, d, stride, -direction);
        op_close("rope there and back", back, op_double(x, n), n, 1e-12);
    }
    op_free_arrays();
}

static void test_rope(void **state) {
    (void)state;
    check_rope(1, 1, 2, 0, 9, 1e-12);
    check_rope(13, 3, 20, 5, 40, 1e-12);
    check_rope(7, 2, 64, 1, 100, 1e-11);
    check_rope(5, 1, 80, 0, 8000, 1e-8); // the angle itself is an fp32 product
    check_rope(9, 5, 6, 11, 0, 1e-12);
}

// ---- activations, embedding ----

typedef struct activation_case {
    bool is_gelu;
    int64_t T, F;
    float *x, *y, *dy;
    double *rx;
} activation_case;

static double ref_silu(double x) {
    return x / (1 + exp(-x));
}

static void ref_activation(const activation_case *c, double *y) {
    for (int64_t i = 0; i < c->T * c->F; i++) {
        const double *gate = c->rx + i / c->F * 2 * c->F + i % c->F;
        y[i] = c->is_gelu ? 0.5 * c->rx[i] * (1 + erf(c->rx[i] / sqrt(2))) : ref_silu(gate[0]) * gate[c->F];
    }
}

static double ref_activation_loss(void *context) {
    activation_case *c = context;
    static double y[4096];
    double sum = 0;
    ref_activation(c, y);
    for (int64_t i = 0; i < c->T * c->F; i++) sum += y[i] * c->dy[i];
    return sum;
}

static void activation_forward(activation_case *c, dr_backend *b) {
    if (c->is_gelu)
        b->ops->gelu_forward(b, c->x, c->T * c->F, c->y);
    else
        op_swiglu(b, c->x, c->T, c->F, c->y);
}

static double activation_loss(void *context) {
    activation_case *c = context;
    activation_forward(c, op_one);
    return op_dot(c->y, c->dy, c->T * c->F);
}

static void check_activation(bool is_gelu, int64_t T, int64_t F, dr_backend *b) {
    activation_case c = {.is_gelu = is_gelu, .T = T, .F = F};
    int64_t n = T * F, n_in = is_gelu ? n : 2 * n;
    c.x = op_normal(n_in, 0, 2);
    c.dy = op_normal(n, 0, 1);
    c.y = op_poison(n);
    c.rx = op_double(c.x, n_in);
    double *want = op_zeros(n);
    float *dx = op_poison(n_in);
    activation_forward(&c, b);
    ref_activation(&c, want);
    for (int64_t i = 0; i < n && is_gelu;
         i++) // its erf is good to 2e-7 everywhere, not relative to what it is
        if (!(fabs(c.y[i] - want[i]) <= 3e-7 * (1 + fabs(c.rx[i]))))
            fail_msg("gelu of %g is %.9g, expected %.9g", c.rx[i], (double)c.y[i], want[i]);
    op_close(is_gelu ? "gelu" : "swiglu", c.y, want, n, is_gelu ? 1e-7 : 1e-12);
    if (is_gelu)
        b->ops->gelu_backward(b, c.dy, c.x, n, dx);
    else
        op_swiglu_gradient(b, c.dy, c.x, T, F, dx);
    if (n_in <= 2000)
        op_close("d activation", dx, op_differentiate(ref_activation_loss, &c, c.rx, n_in), n_in,
                 is_gelu ? 1e-7 : 1e-12);
    op_check_slope("activation", activation_loss, &c, c.x, dx, n_in, 2e-3f, 5e-3);
    op_free_arrays();
}

static void test_activations(void **state) {
    (void)state;
    static const int64_t shapes[][2] = {{1, 1}, {3, 7}, {5, 33}, {35, 29}, {131, 160}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (int variant = 0; variant < 4; variant++)
            check_activation(variant & 1, shapes[s][0], shapes[s][1], variant & 2 ? op_two : op_one);
}

// Values that a trained model does have: the gate closes or opens fully, whatever its size.
static void test_activations_far_out(void **state) {
    (void)state;
    static const float far[] = {-1000, -300, -128, -100, -90, -89.2f, -88.8f, -88, -87, -60, -20, -9,
                                0,     9,    20,   60,   87,  88,     88.8f,  90,  128, 300, 1000};
    enum { N = sizeof far / sizeof *far };
    float gate_up[2 * N], got[N], d[2 * N], ones[N], want[N], want_d[2 * N];
    for (int i = 0; i < N; i++) {
        double s = 1 / (1 + exp(-(double)far[i]));
        gate_up[i] = far[i];
        gate_up[N + i] = 2;
        ones[i] = 1;
        want[i] = (float)(2 * far[i] * s);
        want_d[i] = (float)(2 * s * (1 + far[i] * (1 - s)));
        want_d[N + i] = (float)(far[i] * s);
    }
    op_one->ops->gelu_forward(op_one, far, N, got);
    for (int i = 0; i < N; i++) d[i] = far[i] > 0 ? far[i] : 0;
    check_close("gelu far out", got, d, N, 1e-6, 1e-6);
    op_one->ops->gelu_backward(op_one, ones, far, N, got);
    for (int i = 0; i < N; i++) d[i] = far[i] > 0 ? 1 : far[i] < 0 ? 0 : 0.5f;
    check_close("d gelu far out", got, d, N, 1e-6, 1e-6);
    op_swiglu(op_one, gate_up, 1, N, got);
    check_close("swiglu far out", got, want, N, 1e-6, 1e-6);
    op_swiglu_gradient(op_one, ones, gate_up, 1, N, d);
    check_close("d swiglu far out", d, want_d, 2 * N, 1e-6, 1e-6);
}

static void test_add_and_embedding(void **state) {
    (void)state;
    enum { N = 1003, VOCAB = 11, T = 37, D = 19 };
    float *x = op_normal(N, 0, 1), *y = op_normal(N, 0, 1), *want = op_copy(y, N);
    for (int i = 0; i < N; i++) want[i] += x[i];
    op_one->ops->add(op_one, x, N, y);
    check_same_bits("add", y, want, N);

    float *table = op_normal(VOCAB * D, 0, 1), *out = op_poison(T * D), *dout = op_normal(T * D, 0, 1);
    float *dtable = op_normal(VOCAB * D, 0, 1), *sum = op_copy(dtable, VOCAB * D);
    int32_t *ids = op_ids(T, VOCAB - 1); // the last row is never asked for
    op_two->ops->embedding_forward(op_two, table, ids, T, D, out);
    for (int t = 0; t < T; t++) {
        check_same_bits("embedding", out + t * D, table + ids[t] * D, D);
        for (int j = 0; j < D; j++) sum[ids[t] * D + j] += dout[t * D + j]; // in the order of t
    }
    op_two->ops->embedding_backward(op_two, dout, ids, T, D, dtable);
    check_same_bits("d embedding", dtable, sum, VOCAB * D);
}

// ---- the loss head ----

typedef struct head_case {
    dr_backend *b;
    dr_weight *w;
    int64_t T, V, D;
    float temperature;
    float *h, *values, *dlogprob, *logprob, *entropy, *lse;
    int32_t *targets;
    const dr_kept *kept;
} head_case;

static void head_forward(head_case *c) {
    check_ok(c->b->ops->head_forward(c->b, c->w, c->h, c->targets, c->kept, c->T, c->temperature, c->logprob,
                                     c->entropy, c->lse));
}

static double head_loss(void *context) {
    head_case *c = context;
    check_ok(c->b->ops->weight_pack(c->b, c->w, c->values));
    head_forward(c);
    return op_dot(c->logprob, c->dlogprob, c->T);
}

static bool head_keeps(const head_case *c, int64_t t, int64_t id) {
    bool has = !c->kept || c->kept[t].n == 0;
    for (int32_t k = 0; !has && k < c->kept[t].n; k++) has = c->kept[t].ids[k] == id;
    return has;
}

// One row of the reference: z [V] becomes the gradient by the logits of dlogprob · logprob.
static void ref_head_row(const head_case *c, int64_t t, double *z, double *logprob, double *entropy,
                         double *lse) {
    double top = -INFINITY, total = 0, all = 0, sum = 0;
    for (int64_t j = 0; j < c->V; j++) {
        z[j] = 0;
        for (int64_t i = 0; i < c->D; i++) z[j] += (double)c->h[t * c->D + i] * c->values[j * c->D + i];
        z[j] /= c->temperature;
        top = fmax(top, z[j]);
    }
    for (int64_t j = 0; j < c->V; j++) {
        all += exp(z[j] - top);
        total += head_keeps(c, t, j) ? exp(z[j] - top) : 0;
    }
    *lse = top + log(total);
    *logprob = z[c->targets[t]] - *lse;
    for (int64_t j = 0; j < c->V; j++) {
        double p = head_keeps(c, t, j) ? exp(z[j] - *lse) : 0;
        sum += exp(z[j] - top) / all * (top + log(all) - z[j]);
        z[j] = c->dlogprob[t] * ((j == c->targets[t]) - p) / c->temperature;
    }
    *entropy = sum;
}

// What a sampler sees, the whole logits, gives the head's own bits.
static void check_stats_are_heads(const head_case *c) {
    float *logits = op_poison(c->T * c->V), *lse = op_poison(c->T), *entropy = op_poison(c->T);
    check_ok(c->b->ops->linear_forward(c->b, c->w, c->h, c->T, NULL, logits));
    c->b->ops->softmax_stats(c->b, logits, c->T, c->V, c->temperature, lse, entropy);
    if (c->kept) c->b->ops->kept_lse(c->b, logits, c->T, c->V, c->temperature, c->kept, lse);
    check_same_bits("lse of logits", lse, c->lse, c->T);
    check_same_bits("entropy of logits", entropy, c->entropy, c->T);
    for (int64_t t = 0; t < c->T; t++) {
        float logprob = dr_logprob_of(logits[t * c->V + c->targets[t]], c->temperature, lse[t]);
        check_same_bits("log-probability of logits", &logprob, &c->logprob[t], 1);
    }
}

static void check_head(dr_backend *b, int64_t T, int64_t V, int64_t D, float temperature, double size,
                       bool has_kept) {
    head_case c = {.b = b, .T = T, .V = V, .D = D, .temperature = temperature};
    c.h = op_normal(T * D, 0, size);
    c.values = op_normal(V * D, 0, 1);
    c.dlogprob = op_normal(T, 0, 1);
    c.targets = op_ids(T, (uint32_t)V);
    c.kept = has_kept ? op_kept(c.targets, T, V) : NULL;
    c.logprob = op_poison(T);
    c.entropy = op_poison(T);
    c.lse = op_poison(T);
    double *logprob = op_zeros(T), *entropy = op_zeros(T), *lse = op_zeros(T), *z = op_zeros(V);
    float *dh = op_poison(T * D), *dw = op_normal(V * D, 0, 1), *zero = op_array(V * D, sizeof(float));
    double *want_dh = op_zeros(T * D), *want_dw = op_double(dw, V * D);
    check_ok(b->ops->weight_create(b, V, D, &c.w));
    check_ok(b->ops->weight_pack(b, c.w, c.values));
    head_forward(&c);
    for (int64_t t = 0; t < T; t++) {
        ref_head_row(&c, t, z, &logprob[t], &entropy[t], &lse[t]);
        for (int64_t j = 0; j < V; j++)
            for (int64_t i = 0; i < D; i++) {
                want_dh[t * D + i] += z[j] * c.values[j * D + i];
                want_dw[j * D + i] += z[j] * c.h[t * D + i];
            }
    }
    op_close("log-probability", c.logprob, logprob, T, 1e-9);
    op_close("log-sum-exp", c.lse, lse, T, 1e-11);
    for (int64_t t = 0; t < T; t++)
        if (!(fabs(c.entropy[t] - entropy[t]) <= 1e-5 + 3e-7 * fabs(lse[t])))
            fail_msg("entropy of row %d is %g, expected %g", (int)t, (double)c.entropy[t], entropy[t]);
    check_stats_are_heads(&c);
    check_ok(
        b->ops->head_backward(b, c.w, c.h, c.targets, c.kept, T, temperature, c.lse, c.dlogprob, dh, dw));
    op_close("head dh", dh, want_dh, T * D, 1e-9);
    op_close("head dw", dw, want_dw, V * D, 1e-9);
    check_ok(
        b->ops->head_backward(b, c.w, c.h, c.targets, c.kept, T, temperature, c.lse, c.dlogprob, dh, zero));
    if (size <= 1 && b == op_one) {
        op_check_slope("head by h", head_loss, &c, c.h, dh, T * D, 2e-3f, 1e-2);
        op_check_slope("head by w", head_loss, &c, c.values, zero, V * D, 2e-3f, 1e-2);
    }
    b->ops->weight_destroy(b, c.w);
    op_free_arrays();
}

static void test_head(void **state) {
    (void)state;
    for (int round = 0; round < 4; round++) {
        dr_backend *b = round < 2 ? op_one : op_two;
        bool kept = round % 2 == 1;
        check_head(b, 1, 1, 3, 1.0f, 1, kept);
        check_head(b, 1, 97, 33, 1.0f, 1, kept);
        check_head(b, 7, 301, 20, 0.7f, 1, kept);
        check_head(b, 131, 70, 16, 2.0f, 1, kept); // more rows than one block
        check_head(b, 5, 130, 40, 1.0f, 30, kept); // nearly certain, and nearly impossible targets
    }
}

// ---- AdamW, the gradient's norm ----

static void test_adamw(void **state) {
    (void)state;
    enum { N = 65536 + 777 };
    dr_adamw_settings s = {0.02f, 0.9f, 0.95f, 1e-8f, 0.1f, 0};
    float *w = op_normal(N, 0, 1), *m = op_array(N, sizeof(float)), *v = op_array(N, sizeof(float));
    float *w2 = op_copy(w, N), *m2 = op_copy(m, N), *v2 = op_copy(v, N), *start = op_copy(w, N);
    double *rw = op_double(w, N), *rm = op_zeros(N), *rv = op_zeros(N);
    for (s.t = 1; s.t <= 3; s.t++) {
        float *g = op_normal(N, 0.2, 1), *kept = op_copy(g, N), scale = s.t == 2 ? 0.25f : 1.0f;
        op_one->ops->adamw(op_one, w, g, m, v, N, scale, &s);
        op_two->ops->adamw(op_two, w2, g, m2, v2, N, scale, &s);
        check_same_bits("the gradient is only read", g, kept, N);
        double beta1 = s.beta1, beta2 = s.beta2, t = (double)s.t;
        for (int64_t i = 0; i < N; i++) {
            double x = (double)g[i] * scale;
            rm[i] = beta1 * rm[i] + (1 - beta1) * x;
            rv[i] = beta2 * rv[i] + (1 - beta2) * x * x;
            double first = rm[i] / (1 - pow(beta1, t)), second = rv[i] / (1 - pow(beta2, t));
            rw[i] -= s.learning_rate * (first / (sqrt(second) + s.epsilon) + s.weight_decay * rw[i]);
        }
    }
    op_close("first moment", m, rm, N, 1e-12);
    op_close("second moment", v, rv, N, 1e-12);
    for (int64_t i = 0; i < N; i++) { // what changed, not what there was
        w[i] -= start[i];
        rw[i] -= start[i];
    }
    op_close("weights", w, rw, N, 1e-11);
    for (int64_t i = 0; i < N; i++) w2[i] -= start[i];
    check_same_bits("two threads", w2, w, N);
    check_same_bits("two threads", m2, m, N);
    check_same_bits("two threads", v2, v, N);
}

static void test_sum_of_squares(void **state) {
    (void)state;
    static const int64_t sizes[] = {0, 1, 7, 4095, 4096, 4097, 30011};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        int64_t n = sizes[s];
        float *x = op_normal(n, 0, 1);
        long double want = 0;
        for (int64_t i = 0; i < n; i++) {
            if (i % 1000 == 3) x[i] *= 1e15f; // its square does not fit in fp32's range of whole numbers
            want += (long double)x[i] * x[i];
        }
        double got = dr_sum_of_squares(op_one, x, n), other = dr_sum_of_squares(op_two, x, n);
        assert_memory_equal(&got, &other, sizeof got);
        assert_true(fabsl(got - want) <= 1e-14L * want);
    }
    enum { N = 3 * DR_SQUARE_BLOCK + 11 }; // a part that begins with a block has the block's own bits
    float *x = op_normal(N, 0, 1);
    double whole[4], part[3];
    op_one->ops->sums_of_squares(op_one, x, N, whole);
    op_two->ops->sums_of_squares(op_two, x + DR_SQUARE_BLOCK, N - DR_SQUARE_BLOCK, part);
    assert_memory_equal(part, whole + 1, sizeof part);
    float *bad = op_normal(5000, 0, 1);
    bad[4999] = 1e30f;
    assert_true(isfinite(dr_sum_of_squares(op_one, bad, 5000)));
    bad[4999] = NAN;
    assert_true(isnan(dr_sum_of_squares(op_one, bad, 5000)));
    bad[4999] = -INFINITY;
    assert_true(isinf(dr_sum_of_squares(op_one, bad, 5000)));
}

int main(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "perf") == 0) return op_perf(argv);
    const struct CMUnitTest tests[] = {
        op_test(test_memory),
        op_test(test_linear),
        op_test(test_linear_no_rows),
        op_test(test_gemm),
        op_test(test_gemm_nothing_to_sum),
        op_test(test_norms),
        op_test(test_rope),
        op_test(test_activations),
        op_test(test_activations_far_out),
        op_test(test_add_and_embedding),
        op_test(test_head),
        op_test(test_adamw),
        op_test(test_sum_of_squares),
    };
    return cmocka_run_group_tests(tests, op_group_setup, op_group_teardown);
}
