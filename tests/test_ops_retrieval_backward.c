// The ops of the retrieval model's training: gradients against finite differences, and their promises.
// labels: cpu
#include "tests/fusion_case.h"

#include <stdlib.h>

// ---- fusion ----

enum { FUSION_INPUTS = 8 };

// One place of gradients for each input of fusion_backward, in this order: both x, filter, both gates, both
// biases, positions.
typedef struct fusion_slopes {
    float *input[FUSION_INPUTS], *gradient[FUSION_INPUTS];
    int64_t n[FUSION_INPUTS];
    dr_fusion fusion;
    const float *dout;
} fusion_slopes;

static double fusion_loss(void *context) {
    fusion_slopes *s = context;
    op_one->ops->fusion_forward(op_one, &s->fusion);
    return op_dot(s->fusion.out, s->dout, s->fusion.B * L * D);
}

static dr_fusion_gradient fusion_gradients(const fusion_slopes *s) {
    float *const *g = s->gradient;
    return (dr_fusion_gradient){.dout = s->dout,
                                .dx = {g[0], g[1]},
                                .dfilter = g[2],
                                .dgate = {g[3], g[4]},
                                .dbias = {g[5], g[6]},
                                .dpositions = g[7]};
}

static fusion_slopes fusion_slopes_case(int64_t n) {
    fusion_slopes s = {.fusion = fusion_case(n), .dout = op_normal(n * L * D, 0, 1)};
    const dr_fusion *f = &s.fusion;
    const float *inputs[FUSION_INPUTS] = {f->x[0],    f->x[1],    f->filter,  f->gate[0],
                                          f->gate[1], f->bias[0], f->bias[1], f->positions};
    const int64_t sizes[FUSION_INPUTS] = {n * L * D, n * L * D, 2 * K * D, D, D, 1, 1, L * D};
    for (int i = 0; i < FUSION_INPUTS; i++) {
        s.input[i] = op_copy(inputs[i], sizes[i]);
        s.n[i] = sizes[i];
        s.gradient[i] = i < 2 ? op_poison(sizes[i]) : op_array(sizes[i], sizeof(float));
    }
    for (int i = 0; i < 2; i++) {
        s.fusion.x[i] = s.input[i];
        s.fusion.gate[i] = s.input[3 + i];
        s.fusion.bias[i] = s.input[5 + i];
    }
    s.fusion.filter = s.input[2];
    s.fusion.positions = s.input[7];
    return s;
}

static void check_fusion_backward(int64_t n) {
    static const char *const names[FUSION_INPUTS] = {"dx_0",    "dx_1",    "dfilter", "dgate_0",
                                                     "dgate_1", "dbias_0", "dbias_1", "dpositions"};
    fusion_slopes s = fusion_slopes_case(n);
    dr_fusion_gradient g = fusion_gradients(&s);
    fusion_loss(&s);
    check_ok(op_one->ops->fusion_backward(op_one, &s.fusion, &g));
    for (int i = 0; i < FUSION_INPUTS; i++)
        op_check_slope(names[i], fusion_loss, &s, s.input[i], s.gradient[i], s.n[i], 1e-3f, 2e-3);
    fusion_loss(&s); // what is kept is that of the last forward pass
    fusion_slopes again = s;
    for (int i = 0; i < FUSION_INPUTS; i++)
        again.gradient[i] = i < 2 ? op_poison(s.n[i]) : op_array(s.n[i], sizeof(float));
    g = fusion_gradients(&again);
    check_ok(op_two->ops->fusion_backward(op_two, &s.fusion, &g));
    for (int i = 0; i < FUSION_INPUTS; i++)
        check_same_bits("fusion_backward with two threads", again.gradient[i], s.gradient[i], s.n[i]);
    check_ok(op_two->ops->fusion_backward(op_two, &s.fusion, &g)); // added to, but for dx
    for (int i = 0; i < FUSION_INPUTS; i++) {
        double *want = op_double(s.gradient[i], s.n[i]);
        for (int64_t j = 0; j < s.n[i]; j++) want[j] *= i < 2 ? 1 : 2;
        op_close(names[i], again.gradient[i], want, s.n[i], 1e-11);
    }
}

static void test_fusion_backward(void **state) {
    (void)state;
    check_fusion_backward(B);
    op_free_arrays();
    check_fusion_backward(70); // more than one partial sum
}

// ---- attention ----

typedef struct attention_slopes {
    dr_padded_attention attention;
    const float *dout;
    int64_t n;
} attention_slopes;

static double attention_loss(void *context) {
    attention_slopes *s = context;
    op_one->ops->padded_attention(op_one, &s->attention);
    return op_dot(s->attention.out, s->dout, s->n);
}

static void test_padded_attention_backward(void **state) {
    (void)state;
    enum { H = 2, d = 5, HD = H * d };
    const int32_t lengths[B] = {L, 1, 4};
    for (int last = 0; last < 2; last++) {
        int64_t Q = last ? 1 : L, n = (int64_t)B * L * 3 * HD;
        float *qkv = op_normal(n, 0, 1), *gradient = op_poison(n), *again = op_poison(n);
        attention_slopes s = {.attention = {.B = B,
                                            .L = L,
                                            .H = H,
                                            .d = d,
                                            .last_only = last,
                                            .qkv = qkv,
                                            .lengths = lengths,
                                            .weights = op_poison((int64_t)B * H * Q * L),
                                            .out = op_poison(B * Q * HD)},
                              .dout = op_normal(B * Q * HD, 0, 1),
                              .n = B * Q * HD};
        attention_loss(&s);
        op_one->ops->padded_attention_backward(op_one, &s.attention, s.dout, gradient);
        op_check_slope("dqkv", attention_loss, &s, qkv, gradient, n, 1e-3f, 2e-3);
        attention_loss(&s);
        op_two->ops->padded_attention_backward(op_two, &s.attention, s.dout, again);
        check_same_bits("dqkv with two threads", again, gradient, n);
    }
}

// ---- rows ----

enum { ROWS = 4, PARTS = 3 };
typedef struct mixture_slopes {
    float *gate, *z;
    const float *dy;
} mixture_slopes;

static double mixture_loss(void *context) {
    mixture_slopes *s = context;
    float weights[ROWS * PARTS], y[ROWS * D];
    memcpy(weights, s->gate, sizeof weights);
    op_one->ops->mixture_forward(op_one, weights, s->z, ROWS, PARTS, D, y);
    return op_dot(y, s->dy, ROWS * D);
}

static void test_mixture_backward(void **state) {
    (void)state;
    enum { N = ROWS * PARTS };
    mixture_slopes s = {op_normal(N, 0, 1), op_normal(N * D, 0, 1), op_normal(ROWS * D, 0, 1)};
    float *weights = op_copy(s.gate, N), *y = op_poison(ROWS * D), *dz = op_poison(N * D);
    float *dgate = op_poison(N);
    op_one->ops->mixture_forward(op_one, weights, s.z, ROWS, PARTS, D, y);
    op_one->ops->mixture_backward(op_one, s.dy, weights, s.z, ROWS, PARTS, D, dz, dgate);
    op_check_slope("dgate", mixture_loss, &s, s.gate, dgate, N, 1e-3f, 2e-3);
    op_check_slope("dz", mixture_loss, &s, s.z, dz, (int64_t)N * D, 1e-3f, 2e-3);
    op_two->ops->mixture_backward(op_two, s.dy, weights, s.z, ROWS, PARTS, D, dz, weights);
    check_same_bits("dgate in the weights' place", weights, dgate, N);
}

typedef struct noise_slopes {
    const float *noise, *dgate;
    float *spread;
    int64_t n;
} noise_slopes;

static double noise_loss(void *context) {
    noise_slopes *s = context;
    float *gate = op_array(s->n, sizeof(float));
    op_one->ops->noisy_gate_forward(op_one, s->noise, s->spread, s->n, gate);
    return op_dot(gate, s->dgate, s->n);
}

static void test_noisy_gate(void **state) {
    (void)state;
    enum { N = 50 };
    noise_slopes s = {op_normal(N, 0, 1), op_normal(N, 0, 1), op_normal(N, 0, 3), N};
    float *gate = op_normal(N, 0, 1), *dspread = op_poison(N);
    double *want = op_double(gate, N);
    s.spread[0] = 30; // where softplus is the identity
    s.spread[1] = -30;
    for (int i = 0; i < N; i++) want[i] += s.noise[i] * (log1p(exp((double)s.spread[i])) + 0.01);
    op_two->ops->noisy_gate_forward(op_two, s.noise, s.spread, N, gate);
    op_close("noisy gate", gate, want, N, 1e-12);
    op_one->ops->noisy_gate_backward(op_one, s.dgate, s.noise, s.spread, N, dspread);
    op_check_slope("dspread", noise_loss, &s, s.spread, dspread, N, 1e-2f, 2e-3);
    op_two->ops->noisy_gate_backward(op_two, s.dgate, s.noise, s.spread, N, s.spread);
    check_same_bits("dspread in the spread's place", s.spread, dspread, N);
}

typedef struct length_slopes {
    float *x;
    const float *dunit;
} length_slopes;

static double length_loss(void *context) {
    length_slopes *s = context;
    float unit[ROWS * D], lengths[ROWS];
    op_one->ops->normalize_rows_forward(op_one, s->x, ROWS, D, unit, lengths);
    return op_dot(unit, s->dunit, ROWS * D);
}

static void test_normalize_rows(void **state) {
    (void)state;
    length_slopes s = {op_normal(ROWS * D, 0, 2), op_normal(ROWS * D, 0, 1)};
    float *unit = op_poison(ROWS * D), *lengths = op_poison(ROWS), *all = op_poison(ROWS * D), sum[D];
    float *dx = op_array(ROWS * D, sizeof(float)), *zeros = op_array(D, sizeof(float));
    op_one->ops->normalize_rows_forward(op_one, s.x, ROWS, D, unit, lengths);
    op_one->ops->unit_rows(op_one, s.x, ROWS, D, all);
    op_close("unit rows", unit, op_double(all, ROWS * D), ROWS * D, 1e-12);
    for (int t = 0; t < ROWS; t++)
        assert_true(fabs((double)lengths[t] - sqrt(op_dot(s.x + t * D, s.x + t * D, D))) < 1e-5);
    op_one->ops->normalize_rows_backward(op_one, s.dunit, unit, lengths, ROWS, D, dx);
    op_check_slope("dx", length_loss, &s, s.x, dx, ROWS * D, 1e-3f, 2e-3);
    for (int j = 0; j < D; j++) sum[j] = 1 + dx[j];
    for (int j = 0; j < D; j++) all[j] = 1;
    op_two->ops->normalize_rows_backward(op_two, s.dunit, unit, lengths, 1, D, all);
    op_close("dx, added up", all, op_double(sum, D), D, 1e-12);
    op_two->ops->normalize_rows_forward(op_two, zeros, 1, D, unit, lengths);
    op_two->ops->normalize_rows_backward(op_two, s.dunit, unit, lengths, 1, D, zeros);
    for (int j = 0; j < D; j++) assert_true(unit[j] == 0 && zeros[j] == 0);
}

enum { COLUMNS = 30 };
typedef struct entropy_slopes {
    float *logits;
    const int32_t *targets;
} entropy_slopes;

static double entropy_loss(void *context) {
    entropy_slopes *s = context;
    float *logits = op_copy(s->logits, ROWS * COLUMNS);
    double losses[ROWS], sum = 0;
    op_one->ops->cross_entropy(op_one, logits, s->targets, ROWS, COLUMNS, 3.0f, losses);
    for (int t = 0; t < ROWS; t++) sum += losses[t];
    return sum / ROWS;
}

static void test_cross_entropy(void **state) {
    (void)state;
    const int32_t targets[ROWS] = {1, COLUMNS - 1, 7, 7};
    entropy_slopes s = {op_normal(ROWS * COLUMNS, 0, 0.5), targets};
    float *gradient = op_copy(s.logits, ROWS * COLUMNS), *alone;
    double losses[ROWS];
    op_one->ops->cross_entropy(op_one, gradient, targets, ROWS, COLUMNS, 3.0f, losses);
    for (int t = 0; t < ROWS; t++) {
        double total = 0;
        for (int j = 1; j < COLUMNS; j++) total += exp(3.0 * s.logits[t * COLUMNS + j]);
        assert_true(fabs(losses[t] - log(total) + 3.0 * s.logits[t * COLUMNS + targets[t]]) < 1e-5);
        assert_true(gradient[t * COLUMNS] == 0);
    }
    op_check_slope("dlogits", entropy_loss, &s, s.logits, gradient, ROWS * COLUMNS, 1e-3f, 2e-3);
    alone = op_copy(s.logits, ROWS * COLUMNS);
    op_two->ops->cross_entropy(op_two, alone, targets, ROWS, COLUMNS, 3.0f, losses);
    check_same_bits("dlogits with two threads", alone, gradient, ROWS * COLUMNS);
}

// ---- dropout ----

static void test_dropout(void **state) {
    (void)state;
    enum { N = 40000 };
    const float rate = 0.3f, scale = 1.0f / (1.0f - rate);
    float *x = op_normal(N, 0, 1), *y = op_poison(N), *other = op_poison(N);
    int dropped = 0, both = 0;
    for (int i = 0; i < N; i++) x[i] = x[i] == 0 ? 1 : x[i];
    op_two->ops->dropout(op_two, x, N, rate, 77, y);
    op_one->ops->dropout(op_one, x, N, rate, 78, other);
    for (int i = 0; i < N; i++) {
        assert_true(y[i] == 0 || y[i] == x[i] * scale);
        dropped += y[i] == 0;
        both += y[i] == 0 && other[i] == 0;
    }
    assert_true(abs(dropped - (int)(N * 0.3)) < 400 && abs(both - (int)(N * 0.09)) < 300); // 4 deviations
    op_one->ops->dropout(op_one, x, 100, rate, 77, other); // the mask is a function of the element
    check_same_bits("the first alone", other, y, 100);
    float *kept = op_copy(x, N);
    op_one->ops->dropout(op_one, x, N, rate, 77, x);
    check_same_bits("in place", x, y, N);
    op_one->ops->dropout(op_one, kept, N, 0.0f, 77, y);
    check_same_bits("at rate 0", y, kept, N);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        op_test(test_fusion_backward),  op_test(test_padded_attention_backward),
        op_test(test_mixture_backward), op_test(test_noisy_gate),
        op_test(test_normalize_rows),   op_test(test_cross_entropy),
        op_test(test_dropout),
    };
    return cmocka_run_group_tests(tests, op_group_setup, op_group_teardown);
}
