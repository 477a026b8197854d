// The retrieval model's ops against double precision and their promises; transfers.
// labels: cpu
#include "tests/op_check.h"

#include <stdlib.h>

// ---- fusion ----

enum { L = 6, D = 20, K = L / 2 + 1, B = 3 };

// Everything that a fusion of n requests reads, and room for what it writes.
static dr_fusion fusion_case(int64_t n) {
    float *dft = op_array(2 * K * L, sizeof(float)), *inverse = op_array(2 * K * L, sizeof(float));
    const double turn = 2 * 3.14159265358979323846 / L, norm = 1 / sqrt((double)L);
    for (int k = 0; k < K; k++)
        for (int l = 0; l < L; l++) {
            double twice = k == 0 || k == K - 1 ? 1 : 2;
            dft[k * L + l] = (float)(cos(turn * k * l) * norm);
            dft[(K + k) * L + l] = (float)(-sin(turn * k * l) * norm);
            inverse[l * 2 * K + k] = (float)(twice * cos(turn * k * l) * norm);
            inverse[l * 2 * K + K + k] = (float)(twice == 1 ? 0 : -twice * sin(turn * k * l) * norm);
        }
    dr_fusion f = {.B = n,
                   .L = L,
                   .D = D,
                   .dft = dft,
                   .inverse = inverse,
                   .filter = op_normal((int64_t)K * D * 2, 0, 1),
                   .positions = op_normal((int64_t)L * D, 0, 1),
                   .out = op_poison(n * L * D)};
    for (int i = 0; i < 2; i++) {
        f.x[i] = op_normal(n * L * D, 0, 1);
        f.gate[i] = op_normal(D, 0, 0.3);
        f.bias[i] = op_normal(1, 0, 1);
        f.spectra[i] = op_poison(n * 2 * K * D);
        f.filtered[i] = op_poison(n * L * D);
        f.openness[i] = op_poison(n * L);
    }
    return f;
}

// Column d of request q in the time domain: what is multiplied by a spectrum is convolved around the circle.
static void convolve(const double *x, const double *kernel, double *out) {
    for (int l = 0; l < L; l++) {
        out[l] = 0;
        for (int j = 0; j < L; j++) out[l] += x[j] * kernel[(l - j + L) % L];
    }
}

// The kernel, in the time domain, of a filter's spectrum; imaginary parts of its ends have no effect.
static void kernel_of(const dr_fusion *f, int d, double *out) {
    const double turn = 2 * 3.14159265358979323846 / L;
    for (int l = 0; l < L; l++) {
        out[l] = 0;
        for (int k = 0; k < K; k++) {
            double re = f->filter[2 * (k * D + d)], im = f->filter[2 * (k * D + d) + 1];
            bool end = k == 0 || k == K - 1;
            out[l] +=
                (end ? re * cos(turn * k * l) : 2 * (re * cos(turn * k * l) - im * sin(turn * k * l))) / L;
        }
    }
}

static double opened(const double *row, const float *gate, float bias) {
    double sum = bias;
    for (int d = 0; d < D; d++) sum += row[d] * gate[d];
    return 1 / (1 + exp(-sum));
}

static void test_fusion(void **state) {
    (void)state;
    dr_fusion f = fusion_case(B);
    double *want = op_zeros((int64_t)B * L * D);
    for (int q = 0; q < B; q++) {
        double a[L][D], b[L][D];
        for (int d = 0; d < D; d++) {
            double x[2][L], kernel[L], out[L];
            for (int i = 0; i < 2; i++)
                for (int l = 0; l < L; l++) x[i][l] = f.x[i][(q * L + l) * D + d];
            kernel_of(&f, d, kernel);
            convolve(x[0], kernel, out);
            for (int l = 0; l < L; l++) a[l][d] = out[l];
            convolve(x[1], x[0], out); // both spectra are orthonormal: one factor 1/√L is left
            for (int l = 0; l < L; l++) b[l][d] = out[l] / sqrt((double)L);
        }
        for (int l = 0; l < L; l++) {
            double ga = opened(a[l], f.gate[0], *f.bias[0]), gb = opened(b[l], f.gate[1], *f.bias[1]);
            for (int d = 0; d < D; d++)
                want[(q * L + l) * D + d] = 2 * (a[l][d] * ga + b[l][d] * gb) + f.positions[l * D + d];
        }
    }
    op_one->ops->fusion_forward(op_one, &f);
    op_close("fusion", f.out, want, (int64_t)B * L * D, 1e-10);
    float *all = op_copy(f.out, (int64_t)B * L * D);
    op_two->ops->fusion_forward(op_two, &f);
    check_same_bits("fusion with two threads", f.out, all, (int64_t)B * L * D);
    dr_fusion last = f;
    last.B = 1;
    for (int i = 0; i < 2; i++) last.x[i] += (int64_t)(B - 1) * L * D;
    op_one->ops->fusion_forward(op_one, &last);
    check_same_bits("fusion alone", f.out, all + (int64_t)(B - 1) * L * D, (int64_t)L * D);
}

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

static void test_padded_attention(void **state) {
    (void)state;
    enum { H = 2, d = 5, HD = H * d };
    const int32_t lengths[B] = {L, 1, 4};
    float *qkv = op_normal((int64_t)B * L * 3 * HD, 0, 1);
    double *want = op_zeros((int64_t)B * L * HD);
    for (int q = 0; q < B; q++)
        for (int i = 0; i < L; i++)
            for (int h = 0; h < H; h++) {
                double w[L], total = 0;
                for (int j = 0; j < L; j++) {
                    double dot = 0;
                    for (int e = 0; e < d; e++)
                        dot += (double)qkv[((q * L + i) * 3) * HD + h * d + e] *
                               qkv[((q * L + j) * 3 + 1) * HD + h * d + e];
                    total += w[j] = j < lengths[q] ? exp(dot / sqrt(d)) : 0;
                }
                for (int j = 0; j < L; j++)
                    for (int e = 0; e < d; e++)
                        want[(q * L + i) * HD + h * d + e] +=
                            w[j] / total * qkv[((q * L + j) * 3 + 2) * HD + h * d + e];
            }
    dr_padded_attention a = {.B = B,
                             .L = L,
                             .H = H,
                             .d = d,
                             .qkv = qkv,
                             .lengths = lengths,
                             .weights = op_poison((int64_t)B * H * L * L),
                             .out = op_poison((int64_t)B * L * HD)};
    op_one->ops->padded_attention(op_one, &a);
    op_close("attention", a.out, want, (int64_t)B * L * HD, 1e-10);
    float *all = op_copy(a.out, (int64_t)B * L * HD);
    a.last_only = true;
    a.out = op_poison((int64_t)B * HD);
    op_two->ops->padded_attention(op_two, &a);
    for (int q = 0; q < B; q++)
        check_same_bits("the last position alone", a.out + q * HD, all + (q * L + lengths[q] - 1) * HD, HD);
}

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

static void test_mixture(void **state) {
    (void)state;
    enum { T = 4, E = 3 };
    float *gate = op_normal(T * E, 0, 1), *z = op_normal((int64_t)T * E * D, 0, 1), *y = op_poison(T * D);
    double *want = op_zeros(T * D);
    for (int t = 0; t < T; t++) {
        double total = 0;
        for (int e = 0; e < E; e++) total += exp(gate[t * E + e]);
        for (int e = 0; e < E; e++)
            for (int j = 0; j < D; j++)
                want[t * D + j] += exp(gate[t * E + e]) / total * z[(t * E + e) * D + j];
    }
    float *alone = op_copy(gate + E, E), *row = op_poison(D);
    op_two->ops->mixture_forward(op_two, gate, z, T, E, D, y);
    op_close("mixture", y, want, T * D, 1e-12);
    op_one->ops->mixture_forward(op_one, alone, z + (int64_t)E * D, 1, E, D, row);
    check_same_bits("mixture alone", row, y + D, D);
    check_same_bits("its weights", alone, gate + E, E);
}

// First rows and means; wide enough for several blocks of columns, and a sequence of no rows.
static void test_pool_rows(void **state) {
    (void)state;
    enum { N = 4, W = 131 };
    const int32_t ends[N + 1] = {0, 1, 1, 4, 40};
    const dr_sequences all = {N, ends, NULL};
    float *x = op_normal((int64_t)ends[N] * W, 0, 1), *first = op_poison((int64_t)N * W),
          *mean = op_poison((int64_t)N * W);
    check_ok(op_two->ops->pool_rows(op_two, x, &all, DR_POOL_FIRST, W, first));
    check_ok(op_two->ops->pool_rows(op_two, x, &all, DR_POOL_MEAN, W, mean));
    for (int s = 0; s < N; s++) {
        int32_t n = ends[s + 1] - ends[s];
        const int32_t own_ends[] = {0, n};
        const dr_sequences own = {1, own_ends, NULL};
        float *alone = op_poison(W);
        check_ok(op_one->ops->pool_rows(op_one, x + (int64_t)ends[s] * W, &own, DR_POOL_MEAN, W, alone));
        check_same_bits("a mean alone", alone, mean + (int64_t)s * W, W);
        for (int j = 0; j < W; j++) {
            double sum = 0;
            for (int32_t t = ends[s]; t < ends[s + 1]; t++) sum += x[(int64_t)t * W + j];
            assert_true(mean[s * W + j] == (n > 0 ? (float)(sum / n) : 0.0f));
            assert_true(first[s * W + j] == (n > 0 ? x[(int64_t)ends[s] * W + j] : 0.0f));
        }
    }
}

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

static void test_unit_rows(void **state) {
    (void)state;
    enum { T = 3 };
    float *x = op_normal(T * D, 0, 2), *out = op_poison(T * D);
    for (int j = 0; j < D; j++) x[D + j] = 0;
    op_one->ops->unit_rows(op_one, x, T, D, out);
    double length = op_dot(out, out, D);
    assert_true(fabs(length - 1) < 1e-6);
    assert_true(op_dot(out, x, D) > 0 && op_dot(out + D, out + D, D) == 0);
    for (int j = 1; j < D; j++) assert_true(fabs((double)out[j] * x[0] - (double)out[0] * x[j]) < 1e-6);
}

// ---- the best of a row ----

static void test_top_k(void **state) {
    (void)state;
    enum { T = 2, V = 9, TOP = 5 };
    const float scores[T * V] = {1, 3,   -INFINITY, 3,         2, NAN, 0,   -0.0f, -7,
                                 4, NAN, -INFINITY, -INFINITY, 4, -1,  NAN, NAN,   -INFINITY};
    const int32_t want[T * TOP] = {1, 3, 4, 0, 6, 0, 4, 5, -1, -1};
    dr_hit hits[T * TOP];
    for (int threads = 0; threads < 2; threads++) {
        dr_backend *b = threads ? op_two : op_one;
        check_ok(b->ops->top_k(b, scores, T, V, TOP, hits));
        for (int i = 0; i < T * TOP; i++) {
            assert_int_equal(hits[i].item, want[i]);
            assert_true(want[i] < 0 ? hits[i].score == -INFINITY
                                    : hits[i].score == scores[i / TOP * V + want[i]]);
        }
    }
    check_error(op_one->ops->top_k(op_one, scores, 1, V, DR_TOP_MOST + 1, hits), DR_ERR_RANGE,
                "at most 1024");
    float x[4] = {1, 2, 3, 4};
    const int64_t places[] = {2, 0, 2};
    op_one->ops->fill_places(op_one, x, places, 3, -INFINITY);
    assert_true(x[0] == -INFINITY && x[1] == 2 && x[2] == -INFINITY && x[3] == 4);
}

// ---- transfers ----

static void test_transfers(void **state) {
    (void)state;
    dr_transfer *t = NULL;
    float *there = NULL;
    bool is_done = false;
    check_ok(op_one->ops->transfer_create(op_one, "test transfer", 6 * sizeof(float), &t));
    check_ok(dr_memory_create(op_one, &there, "there", 3, sizeof(float)));
    float *here = (float *)(void *)t->host;
    for (int i = 0; i < 6; i++) here[i] = (float)i;
    check_ok(op_one->ops->transfer_in(op_one, t, 2 * sizeof(float), there, 3 * sizeof(float)));
    check_ok(op_one->ops->transfer_out(op_one, t, 4 * sizeof(float), there, 2 * sizeof(float)));
    check_ok(op_one->ops->transfer_done(op_one, t, &is_done));
    assert_true(is_done);
    const float want[6] = {0, 1, 2, 3, 2, 3};
    assert_memory_equal(here, want, sizeof want);
    op_one->ops->memory_destroy(op_one, there);
    op_one->ops->transfer_destroy(op_one, t);
    op_one->ops->transfer_destroy(op_one, NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        op_test(test_fusion),
        op_test(test_fusion_backward),
        op_test(test_padded_attention),
        op_test(test_padded_attention_backward),
        op_test(test_mixture),
        op_test(test_mixture_backward),
        op_test(test_noisy_gate),
        op_test(test_normalize_rows),
        op_test(test_cross_entropy),
        op_test(test_dropout),
        op_test(test_pool_rows),
        op_test(test_unit_rows),
        op_test(test_top_k),
        op_test(test_transfers),
    };
    return cmocka_run_group_tests(tests, op_group_setup, op_group_teardown);
}
