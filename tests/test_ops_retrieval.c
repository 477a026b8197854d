// The retrieval model's ops against double precision and their promises; transfers.
// labels: cpu
#include "tests/fusion_case.h"

// ---- fusion ----

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
        op_test(test_fusion),    op_test(test_padded_attention), op_test(test_mixture),
        op_test(test_pool_rows), op_test(test_unit_rows),        op_test(test_top_k),
        op_test(test_transfers),
    };
    return cmocka_run_group_tests(tests, op_group_setup, op_group_teardown);
}
