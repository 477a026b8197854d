// Attention of the CUDA body against the CPU's; a row's bits in each pass that has it. No device: skipped.
// labels: gpu
#include "tests/cuda_check.h"

#if DR_HAVE_CUDA_KERNELS
#include "cuda/kernels.h"
#endif

enum { PAGE = 16, MAX_SEQUENCES = 8 };

typedef struct packing {
    int32_t n, lengths[MAX_SEQUENCES], prefix[MAX_SEQUENCES];
} packing;

static const packing packings[] = {
    {1, {1}, {-1}},
    {3, {1, 5, 17}, {-1, -1, -1}},
    {6, {0, 16, 0, 33, 2, 149}, {-1, -1, -1, -1, -1, -1}},
    {8, {19, 18, 0, 61, 0, 5, 50, 3}, {-1, 0, 0, 0, -1, 4, -1, 6}},
    {4, {270, 5, 250, 70}, {-1, 0, 0, -1}},
    {3, {600, 129, 300}, {-1, 0, -1}},
};

// Normalised errors of the bf16 kernels against fp32 on the same operands: weights and their gradients are
// rounded to 8 bits of mantissa, scores and sums are not.
static const double weights_rounded = 3e-3, gradients_rounded = 6e-3, scores_exact = 1e-5;

// sizes: packing, H, G, d, and whether weights may be rounded. Operands are what bf16 holds; q, k, v in one
// merged buffer with a gap behind each row.
static void run_attention(dr_backend *b, const int64_t *sizes, results *r) {
    const packing *p = &packings[sizes[0]];
    int32_t H = (int32_t)sizes[1], G = (int32_t)sizes[2], d = (int32_t)sizes[3], cu[MAX_SEQUENCES + 1] = {0};
    for (int32_t s = 0; s < p->n; s++) cu[s + 1] = cu[s] + p->lengths[s];
    const dr_sequences sequences = {p->n, cu, p->prefix};
    int64_t T = cu[p->n], stride = (int64_t)(H + 2 * G) * d + 3, width = (int64_t)H * d;
    float *q = put(b, rounded(op_normal(T * stride, 0, 1), T * stride), T * stride), *k = q + width,
          *v = k + G * d;
    float *out = put_poison(b, T * width), *lse = put_poison(b, T * H), *dq = op_poison(T * stride);
    float *dout = put(b, rounded(op_normal(T * width, 0, 1), T * width), T * width);
    for (int64_t t = 0; t < T; t++) // gaps that can be compared, and must stay
        for (int i = 0; i < 3; i++) dq[t * stride + stride - 3 + i] = 7;
    float *gradients = put(b, dq, T * stride);
    check_ok(b->ops->attention_forward(b, q, k, v, stride, stride, &sequences, H, G, d, out, lse));
    check_ok(b->ops->attention_backward(b, dout, q, k, v, out, lse, stride, stride, &sequences, H, G, d,
                                        gradients, gradients + width, gradients + width + G * d));
    give(r, "attention", b, out, T * width, sizes[4] ? weights_rounded : forward);
    give(r, "log-sum-exp of scores", b, lse, T * H, sizes[4] ? scores_exact : forward);
    give(r, "dq, dk, dv", b, gradients, T * stride, sizes[4] ? gradients_rounded : gradient);
}

static void test_attention(void **state) {
    (void)state;
    if (!cuda) skip();
    static const int64_t heads[][3] = {{1, 1, 1},   {4, 1, 7},  {6, 2, 16},  {2, 1, 64}, {3, 3, 80},
                                       {4, 2, 128}, {9, 1, 17}, {2, 2, 255}, {2, 1, 256}};
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++)
        for (int64_t p = sized(0, i % 3); p < 4; p += sized(1, 3)) {
            const int64_t sizes[] = {p, heads[i][0], heads[i][1], heads[i][2], false};
            compare(run_attention, sizes, 100 * i);
        }
}

// In both directions; sequences, fp32, are the bits that they are alone. sizes: packing, H, G, d.
static void run_bidirectional(dr_backend *b, const int64_t *sizes, results *r) {
    const packing *p = &packings[sizes[0]];
    int32_t H = (int32_t)sizes[1], G = (int32_t)sizes[2], d = (int32_t)sizes[3], cu[MAX_SEQUENCES + 1] = {0};
    for (int32_t s = 0; s < p->n; s++) cu[s + 1] = cu[s] + p->lengths[s];
    const dr_sequences sequences = {p->n, cu, NULL};
    int64_t T = cu[p->n], stride = (int64_t)(H + 2 * G) * d + 3, width = (int64_t)H * d;
    float *q = put(b, op_normal(T * stride, 0, 1), T * stride), *k = q + width, *v = k + G * d;
    float *out = put_poison(b, T * width), *alone = put_poison(b, T * width);
    check_ok(b->ops->attention_bidirectional(b, q, k, v, stride, stride, &sequences, H, G, d, out));
    for (int32_t s = 0; s < p->n; s++) {
        const int32_t ends[] = {0, p->lengths[s]};
        const dr_sequences own = {1, ends, NULL};
        int64_t at = cu[s] * stride;
        check_ok(b->ops->attention_bidirectional(b, q + at, k + at, v + at, stride, stride, &own, H, G, d,
                                                 alone + cu[s] * width));
    }
    check_same_bits("sequences alone", get(b, alone, T * width), get(b, out, T * width), T * width);
    give(r, "attention in both directions", b, out, T * width, forward);
}

static void test_bidirectional(void **state) {
    (void)state;
    if (!cuda) skip();
    static const int64_t heads[][3] = {{1, 1, 1},    {4, 1, 7},   {6, 2, 16},
                                       {16, 16, 64}, {4, 2, 128}, {2, 1, 256}};
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++)
        for (int64_t p = 0; p < 5; p++) {
            const int64_t sizes[] = {p, heads[i][0], heads[i][1], heads[i][2]};
            compare(run_bidirectional, sizes, 100 * i);
            compare_on(cuda_bf16, run_bidirectional, sizes, 100 * i); // fp32 there, too
        }
}

static dr_backend *mma,
    *simple; // bf16 without wgmma, which the gradient has otherwise; by the simple kernels

// Heads for the tensor cores' kernels and, behind them, for the others, which do not round.
static void test_bf16_attention(void **state) {
    (void)state;
    if (!mma) skip();
    static const int64_t heads[][4] = {
        {2, 1, 64, true}, {14, 2, 64, true}, {4, 2, 128, true}, {3, 1, 128, true},  {6, 2, 16, true},
        {2, 2, 80, true}, {64, 1, 64, true}, {3, 1, 7, false},  {65, 1, 16, false}, {2, 1, 256, false}};
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++)
        for (int64_t p = sized(0, i % 5); p < 6; p += sized(1, 5)) {
            const int64_t sizes[] = {p, heads[i][0], heads[i][1], heads[i][2], heads[i][3]};
            compare_on(mma, run_attention, sizes, 100 * i);
        }
}

// As backends are made unless they are asked for otherwise: where the device has wgmma, its gradient of the
// other kernels' forward pass.
static void test_default_attention(void **state) {
    (void)state;
    if (!cuda_bf16) skip();
    static const int64_t heads[][3] = {{2, 1, 64}, {14, 2, 64}, {4, 2, 128}, {28, 4, 128}};
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++)
        for (int64_t p = sized(0, i); p < 6; p += sized(1, 4)) {
            const int64_t sizes[] = {p, heads[i][0], heads[i][1], heads[i][2], true};
            compare_on(cuda_bf16, run_attention, sizes, 100 * i);
        }
}

// Heads that the fast kernels take, by the simple ones: nothing is rounded but keys and values.
static void test_simple_attention(void **state) {
    (void)state;
    if (!simple) skip();
    static const int64_t heads[][3] = {{2, 1, 64}, {4, 2, 128}};
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++)
        for (int64_t p = sized(0, i); p < 6; p += sized(1, 4)) {
            const int64_t sizes[] = {p, heads[i][0], heads[i][1], heads[i][2], false};
            compare_on(simple, run_attention, sizes, 100 * i);
        }
}

// The kernels with wgmma, on a backend of their own: equal bits each time, others than the cache's.
static dr_backend *wgmma; // NULL: no device of compute capability 9.0, or no code for it in this build

static void test_wgmma_attention(void **state) {
    (void)state;
    if (!wgmma) skip();
    static const int64_t heads[][3] = {{1, 1, 64},  {2, 1, 64},  {14, 2, 64},  {64, 1, 64},
                                       {1, 1, 128}, {4, 2, 128}, {28, 4, 128}, {3, 1, 128}};
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++)
        for (int64_t p = sized(0, i % 5); p < 6; p += sized(1, 5)) {
            const int64_t sizes[] = {p, heads[i][0], heads[i][1], heads[i][2], true};
            compare_on(wgmma, run_attention, sizes, 100 * i);
        }
}

// ---- rows ----

// One sequence of N rows, and what its rows get when it is packed alone.
typedef struct whole {
    dr_backend *b;
    int32_t N, H, G, d;
    int64_t stride, width;
    float *host, *q, *k, *v; // [N, stride]; k and v hold what a cache can
    float *want, *want_lse;  // on the host
} whole;

static dr_status forward_of(const whole *w, float *q, const dr_sequences *sequences, float *out, float *lse) {
    float *k = q + w->width, *v = k + w->G * w->d;
    return w->b->ops->attention_forward(w->b, q, k, v, w->stride, w->stride, sequences, w->H, w->G, w->d, out,
                                        lse);
}

static whole whole_of(dr_backend *b, int32_t N, int32_t H, int32_t G, int32_t d) {
    whole w = {.b = b, .N = N, .H = H, .G = G, .d = d, .stride = (H + 2 * G) * d, .width = H * d};
    w.q = put(b, op_normal(N * w.stride, 0, 1), N * w.stride);
    w.k = w.q + w.width;
    w.v = w.k + G * d;
    b->ops->kv_round(b, w.k, w.v, w.stride, N, G, d);
    w.host = get(b, w.q, N * w.stride);
    float *out = put_poison(b, N * w.width), *lse = put_poison(b, N * H);
    const int32_t ends[] = {0, N};
    const dr_sequences all = {1, ends, NULL};
    check_ok(forward_of(&w, w.q, &all, out, lse));
    w.want = get(b, out, N * w.width);
    w.want_lse = get(b, lse, N * H);
    return w;
}

// Its first n rows alone, and the rows behind them twice behind these as a prefix.
static void check_cut(const whole *w, int32_t n) {
    const int32_t N = w->N, ends[] = {0, n}, cut[] = {0, n, N, N + N - n}, prefix[] = {-1, 0, 0};
    const dr_sequences alone = {1, ends, NULL}, shared = {3, cut, prefix};
    float *twice = op_array((2 * N - n) * w->stride, sizeof(float));
    memcpy(twice, w->host, (size_t)(N * w->stride) * sizeof(float));
    memcpy(twice + N * w->stride, w->host + n * w->stride, (size_t)((N - n) * w->stride) * sizeof(float));
    float *both = put(w->b, twice, (2 * N - n) * w->stride);
    float *out = put_poison(w->b, 2 * N * w->width), *lse = put_poison(w->b, 2 * N * w->H);
    check_ok(forward_of(w, w->q, &alone, out, lse));
    check_same_bits("rows alone", get(w->b, out, n * w->width), w->want, n * w->width);
    check_same_bits("log-sum-exp alone", get(w->b, lse, n * w->H), w->want_lse, n * w->H);
    check_ok(forward_of(w, both, &shared, out, lse));
    float *got = get(w->b, out, (2 * N - n) * w->width);
    check_same_bits("rows behind a prefix", got, w->want, N * w->width);
    check_same_bits("rows of the second sharer", got + N * w->width, w->want + n * w->width,
                    (N - n) * w->width);
}

static void cached(const whole *w, const dr_attention_chunk *chunks, int32_t n, const float *q, void *keys,
                   void *values, float *out) {
    check_ok(w->b->ops->attention_cached(w->b, q, w->stride, keys, values, chunks, n, PAGE, w->H, w->G, w->d,
                                         out));
}

enum { MAX_PAGES = 64, DECODED = 5 };

// From the cache in chunks, on pages in no order; then, in one call, single rows and a few at a time of
// sequences that share all pages with the one before, some, or none (a copy of the whole on pages of its
// own).
static void check_cached(const whole *w, const int32_t *steps, int32_t n_steps) {
    const int32_t n = (int32_t)(w->N + PAGE - 1) / PAGE;
    int32_t pages[2 * MAX_PAGES], half[MAX_PAGES];
    size_t bytes = (size_t)(2 * n * PAGE * w->G * w->d) * dr_kv_bytes(w->b);
    char *nans = op_array((int64_t)bytes, 1);
    memset(nans, 0xFF, bytes);
    void *keys = put_bytes(w->b, nans, bytes), *values = put_bytes(w->b, nans, bytes);
    assert_true(n <= MAX_PAGES);
    for (int32_t i = 0; i < 2 * n; i++) pages[i] = 2 * n - 1 - (i ^ 1) % (2 * n);
    float *out = put_poison(w->b, w->N * w->width);
    for (int32_t i = 0, past = 0; i < n_steps; past += steps[i++]) {
        const dr_attention_chunk chunk = {past, steps[i], past, pages};
        w->b->ops->kv_store(w->b, w->k, w->v, w->stride, &chunk, 1, PAGE, w->G, w->d, keys, values);
        cached(w, &chunk, 1, w->q, keys, values, out);
    }
    check_same_bits("rows from the cache", get(w->b, out, w->N * w->width), w->want, w->N * w->width);

    const dr_attention_chunk copy = {0, w->N, 0, pages + n};
    w->b->ops->kv_store(w->b, w->k, w->v, w->stride, &copy, 1, PAGE, w->G, w->d, keys, values);
    for (int32_t i = 0; i < n; i++) half[i] = i < n / 2 ? pages[i] : pages[n + i];
    const int32_t last = w->N - 1;
    const dr_attention_chunk chunks[DECODED] = {
        {0, 1, last, pages}, {1, 1, last - 1, pages},     {2, 3, w->N / 2, pages},
        {5, 1, last, half},  {6, 2, last - 1, pages + n},
    };
    float *q = put_poison(w->b, w->N * w->stride);
    for (int32_t c = 0; c < DECODED; c++)
        w->b->ops->copy(w->b, q + chunks[c].row * w->stride, w->q + chunks[c].n_past * w->stride,
                        (size_t)(chunks[c].n_new * w->stride) * sizeof(float));
    cached(w, chunks, DECODED, q, keys, values, out);
    for (int32_t c = 0; c < DECODED; c++)
        check_same_bits("rows of many sequences",
                        get(w->b, out + chunks[c].row * w->width, chunks[c].n_new * w->width),
                        w->want + chunks[c].n_past * w->width, chunks[c].n_new * w->width);
}

static void check_attention_rows(dr_backend *b, int32_t H, int32_t G, int32_t d) {
    static const int32_t steps[] = {1, 16, 1, 30, 27};
    whole w = whole_of(b, 75, H, G, d);
    for (int32_t n = 1; n <= w.N; n += sized(7, 36)) check_cut(&w, n);
    check_cached(&w, steps, 5);
    free_all();
}

static void test_attention_rows(void **state) {
    (void)state;
    if (!cuda) skip();
    static const int32_t heads[][3] = {{4, 2, 16},  {2, 1, 64},  {3, 1, 80},  {6, 2, 13},
                                       {8, 1, 128}, {2, 2, 256}, {65, 1, 16}, {7, 1, 64}};
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++) {
        check_attention_rows(cuda, heads[i][0], heads[i][1], heads[i][2]);
        check_attention_rows(cuda_bf16, heads[i][0], heads[i][1], heads[i][2]);
    }
    check_attention_rows(simple, 2, 1, 64);
}

// Rows that see several splits of keys.
static void test_long_rows(void **state) {
    (void)state;
    if (!cuda) skip();
    static const int32_t heads[][3] = {{7, 1, 64}, {4, 2, 128}, {33, 1, 40}},
                         steps[] = {255, 1, 1, 3, 40, 210, 1, 2, 87}, cuts[] = {255, 256, 257, 511, 599};
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++) {
        whole w = whole_of(cuda_bf16, 600, heads[i][0], heads[i][1], heads[i][2]);
        for (int c = sized(0, (int)i); c < 5; c += sized(1, 4)) check_cut(&w, cuts[c]);
        check_cached(&w, steps, 9);
        free_all();
    }
}

// Calls on the cache whose tiles have 1 to 33 rows and more, which warps share by fours, by twos or not:
// single rows of sequences on the same pages, whose first split is one tile, and as many rows of one
// sequence.
static void check_few_rows(int32_t group, int32_t G, int32_t d) {
    enum { SEEN = 290, MOST = 33 };
    const int32_t n_pages = (SEEN + PAGE - 1) / PAGE;
    whole w = whole_of(cuda_bf16, SEEN, group * G, G, d);
    int32_t pages[MAX_PAGES];
    const size_t bytes = (size_t)(n_pages * PAGE * G * d) * dr_kv_bytes(w.b);
    char *nans = op_array((int64_t)bytes, 1);
    memset(nans, 0xFF, bytes);
    void *keys = put_bytes(w.b, nans, bytes), *values = put_bytes(w.b, nans, bytes);
    for (int32_t i = 0; i < n_pages; i++) pages[i] = (i * 5 + 3) % n_pages;
    const dr_attention_chunk all = {0, SEEN, 0, pages};
    w.b->ops->kv_store(w.b, w.k, w.v, w.stride, &all, 1, PAGE, G, d, keys, values);
    float *q = put_poison(w.b, MOST * w.stride), *out = put_poison(w.b, MOST * w.width);
    for (int32_t n = 1; n == 1 || n * group < MOST + group; n++) {
        dr_attention_chunk chunks[MOST];
        for (int32_t c = 0; c < n; c++) {
            chunks[c] = (dr_attention_chunk){c, 1, SEEN - 1 - c, pages};
            w.b->ops->copy(w.b, q + c * w.stride, w.q + chunks[c].n_past * w.stride,
                           (size_t)w.stride * sizeof(float));
        }
        cached(&w, chunks, n, q, keys, values, out);
        const float *got = get(w.b, out, n * w.width);
        for (int32_t c = 0; c < n; c++)
            check_same_bits("a row of one of few sequences", got + c * w.width,
                            w.want + chunks[c].n_past * w.width, w.width);
        const dr_attention_chunk one = {0, n, SEEN - n, pages};
        cached(&w, &one, 1, w.q + one.n_past * w.stride, keys, values, out);
        check_same_bits("few rows of one sequence", get(w.b, out, n * w.width), w.want + one.n_past * w.width,
                        n * w.width);
    }
    free_all();
}

static void test_few_rows(void **state) {
    (void)state;
    if (!cuda) skip();
    static const int32_t groups[] = {1, 2, 4, 7, 8, 16, 17, 33}, head_sizes[] = {64, 80, 128};
    for (int i = 0; i < 8; i++)
        for (int j = sized(0, i % 3); j < 3; j += sized(1, 3))
            check_few_rows(groups[i], groups[i] == 7 ? 2 : 1, head_sizes[j]);
}

static int attention_setup(void **state) {
    if (setup(state) != 0) return -1;
#if DR_HAVE_CUDA_KERNELS
    if (!cuda) return 0;
    dr_cuda_reference_kernels(true);
    dr_status status = dr_backend_cuda_create(DR_BF16, 0, &simple);
    dr_cuda_reference_kernels(false);
    dr_cuda_wgmma_in_bf16(DR_WGMMA_NOWHERE);
    if (status == DR_OK) status = dr_backend_cuda_create(DR_BF16, 0, &mma);
    dr_cuda_wgmma_in_bf16(DR_WGMMA_GRADIENT);
    if (status != DR_OK) return -1;
    const dr_device_probe probe = dr_device_probe_run();
    if (probe.devices[0].major != 9 || probe.devices[0].minor != 0 || !dr_cuda_wgmma_is_built()) return 0;
    dr_cuda_wgmma_in_bf16(DR_WGMMA_BOTH);
    status = dr_backend_cuda_create(DR_BF16, 0, &wgmma);
    dr_cuda_wgmma_in_bf16(DR_WGMMA_GRADIENT);
    return status == DR_OK ? 0 : -1;
#else
    return 0;
#endif
}

static int attention_teardown(void **state) {
#if DR_HAVE_CUDA_KERNELS
    dr_backend_cuda_destroy(wgmma);
    dr_backend_cuda_destroy(mma);
    dr_backend_cuda_destroy(simple);
#endif
    return teardown(state);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cuda_test(test_attention),         cuda_test(test_bf16_attention),   cuda_test(test_wgmma_attention),
        cuda_test(test_default_attention), cuda_test(test_simple_attention), cuda_test(test_attention_rows),
        cuda_test(test_long_rows),         cuda_test(test_few_rows),         cuda_test(test_bidirectional),
    };
    int n_failed = cmocka_run_group_tests(tests, attention_setup, attention_teardown);
    return n_failed != 0 || cuda ? n_failed : 77; // 77: skipped
}
