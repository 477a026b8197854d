// Exactness of the ops: the same rows give the same bits alone, in a batch, and with more threads.
// labels: cpu
#include "tests/op_check.h"

#include <stdio.h>

#include "core/compute/cpu_internal.h"

// ---- rows: the same bits alone, in any batch, with any number of threads ----

enum { ROWS = 401 };

// Everything that the row ops read; rows t0 … t0 + T - 1 of `out` are written at out's beginning.
typedef struct row_case {
    int64_t D, n_out; // width of x, and of a linear op's result
    const float *x, *w, *bias, *inv_freq;
    const int32_t *ids;
    float *values, *extra; // of the weight; a result beside the main one
    float *stream;         // [ROWS, D], written by the op
} row_case;
typedef void (*row_op)(dr_backend *b, const row_case *c, int64_t t0, int64_t T, float *out);

static dr_weight *packed_weight(dr_backend *b, int64_t n_out, int64_t n_in, const float *values) {
    dr_weight *w = NULL;
    check_ok(b->ops->weight_create(b, n_out, n_in, &w));
    check_ok(b->ops->weight_pack(b, w, values));
    return w;
}

static void row_linear(dr_backend *b, const row_case *c, int64_t t0, int64_t T, float *out) {
    dr_weight *w = packed_weight(b, c->n_out, c->D, c->values);
    check_ok(b->ops->linear_forward(b, w, c->x + t0 * c->D, T, c->bias, out));
    b->ops->weight_destroy(b, w);
}

static void row_head(dr_backend *b, const row_case *c, int64_t t0, int64_t T, float *out) {
    dr_weight *w = packed_weight(b, c->n_out, c->D, c->values);
    float *three = op_poison(3 * T);
    dr_kept *kept = op_array(T, sizeof *kept); // of every second row: the ids up to its target
    int32_t *all = op_array(c->n_out, sizeof *all);
    for (int32_t j = 0; j < c->n_out; j++) all[j] = j;
    for (int64_t t = 0; t < T; t++) kept[t] = (dr_kept){all, (t0 + t) % 2 ? c->ids[t0 + t] + 1 : 0};
    check_ok(b->ops->head_forward(b, w, c->x + t0 * c->D, c->ids + t0, kept, T, 0.7f, three, three + T,
                                  three + 2 * T));
    for (int64_t t = 0; t < T; t++)
        for (int i = 0; i < 3; i++) out[3 * t + i] = three[i * T + t];
    b->ops->weight_destroy(b, w);
}

static void row_stats(dr_backend *b, const row_case *c, int64_t t0, int64_t T, float *out) {
    float *entropy = op_poison(T), *lse = op_poison(T);
    b->ops->softmax_stats(b, c->x + t0 * c->D, T, c->D, 0.7f, lse, entropy);
    for (int64_t t = 0; t < T; t++) {
        out[2 * t] = lse[t];
        out[2 * t + 1] = entropy[t];
    }
}

static void row_gemm(dr_backend *b, const row_case *c, int64_t t0, int64_t T, float *out) {
    check_ok(b->ops->gemm(b, false, true, T, c->n_out, c->D, 0.3f, c->x + t0 * c->D, c->values, 0.0f, out));
}

static void row_gemm_plain(dr_backend *b, const row_case *c, int64_t t0, int64_t T, float *out) {
    for (int64_t i = 0; i < T * c->n_out; i++) out[i] = (float)(i % c->n_out);
    check_ok(b->ops->gemm(b, false, false, T, c->n_out, c->D, 1.0f, c->x + t0 * c->D, c->values, 0.5f, out));
}

static void row_rmsnorm(dr_backend *b, const row_case *c, int64_t t0, int64_t T, float *out) {
    b->ops->rmsnorm_forward(b, c->x + t0 * c->D, c->w, T, c->D, 1e-6f, out, c->extra);
}

static void row_residual(dr_backend *b, const row_case *c, int64_t t0, int64_t T, float *out) {
    for (int64_t i = 0; i < T * c->D; i++) c->stream[i] = c->bias[i % c->D];
    b->ops->rmsnorm_residual_forward(b, c->x + t0 * c->D, c->w, T, c->D, 1e-6f, c->stream, out, c->extra);
}

// Rows of two heads; what is kept stands in c->stream and c->extra.
static void row_heads(dr_backend *b, const row_case *c, int64_t t0, int64_t T, float *out) {
    memcpy(out, c->x + t0 * c->D, (size_t)(T * c->D) * sizeof(float));
    b->ops->head_norm_forward(b, out, c->w, T, 2, c->D / 2, c->D, 1e-6f, c->stream, c->extra);
}

static void row_layernorm(dr_backend *b, const row_case *c, int64_t t0, int64_t T, float *out) {
    b->ops->layernorm_forward(b, c->x + t0 * c->D, c->w, c->bias, T, c->D, 1e-6f, out, c->extra,
                              c->extra + T);
}

static void row_rope(dr_backend *b, const row_case *c, int64_t t0, int64_t T, float *out) {
    memcpy(out, c->x + t0 * c->D, (size_t)(T * c->D) * sizeof(float));
    b->ops->rope(b, out, c->ids + t0, c->inv_freq, T, 1, c->D, c->D, 1);
}

static void row_gate_up(dr_backend *b, const row_case *c, int64_t t0, int64_t T, float *out) {
    dr_weight *w = packed_weight(b, c->n_out, c->D, c->values);
    void *gated = op_gated(b, op_poison(T * c->n_out), T * c->n_out);
    check_ok(b->ops->gate_up_forward(b, w, c->x + t0 * c->D, T, gated));
    memcpy(out, op_gated_values(b, gated, T * c->n_out), (size_t)(T * c->n_out) * sizeof(float));
    b->ops->weight_destroy(b, w);
}

// x [T, D] is gate and up.
static void row_swiglu_linear(dr_backend *b, const row_case *c, int64_t t0, int64_t T, float *out) {
    dr_weight *w = packed_weight(b, c->n_out, c->D / 2, c->values);
    void *gated = op_gated(b, op_copy(c->x + t0 * c->D, T * c->D), T * c->D);
    check_ok(b->ops->swiglu_linear_forward(b, w, gated, T, out));
    b->ops->weight_destroy(b, w);
}

static void row_gelu(dr_backend *b, const row_case *c, int64_t t0, int64_t T, float *out) {
    b->ops->gelu_forward(b, c->x + t0 * c->D, T * c->D, out);
}

static void row_add(dr_backend *b, const row_case *c, int64_t t0, int64_t T, float *out) {
    for (int64_t i = 0; i < T * c->D; i++) out[i] = c->bias[i % c->D];
    b->ops->add(b, c->x + t0 * c->D, T * c->D, out);
}

static void row_embedding(dr_backend *b, const row_case *c, int64_t t0, int64_t T, float *out) {
    b->ops->embedding_forward(b, c->values, c->ids + t0, T, c->D, out);
}

static void check_rows(const char *name, row_op op, const row_case *c, int64_t width, dr_backend *one,
                       dr_backend *two) {
    static const int64_t sizes[] = {1, 2, 3, 4, 5, 13, 64, 130, 200};
    float *want = op_poison(ROWS * width), *got = op_poison(ROWS * width);
    const int kept = op_n_arrays;
    op(two, c, 0, ROWS, want);
    op(one, c, 0, ROWS, got);
    char text[64];
    snprintf(text, sizeof text, "%s, one thread", name);
    check_same_bits(text, got, want, ROWS * width);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int64_t t0 = (int64_t)i; t0 + sizes[i] <= ROWS; t0 += 57 + 3 * (int64_t)i) {
            float *part = op_poison(sizes[i] * width);
            op(t0 % 2 ? one : two, c, t0, sizes[i], part);
            snprintf(text, sizeof text, "%s, %d rows from %d", name, (int)sizes[i], (int)t0);
            check_same_bits(text, part, want + t0 * width, sizes[i] * width);
            while (op_n_arrays > kept) dr_free(op_arrays[--op_n_arrays]);
        }
}

static row_case row_make(int64_t D, int64_t n_out) {
    row_case c = {.D = D, .n_out = n_out};
    int64_t wide = D > n_out ? D : n_out;
    float *inv_freq = op_array(D, sizeof(float));
    for (int64_t i = 0; i < D; i++) inv_freq[i] = (float)pow(10000, -2.0 * (double)i / (double)D);
    c.x = op_normal(ROWS * D, 0, 1);
    c.w = op_normal(D, 1, 0.2);
    c.bias = op_normal(wide, 0, 1);
    c.values = op_normal(n_out * D, 0, 0.5);
    c.ids = op_ids(ROWS, (uint32_t)n_out);
    c.extra = op_poison(2 * ROWS);
    c.stream = op_poison(ROWS * D);
    c.inv_freq = inv_freq;
    return c;
}

static void test_rows(void **state) {
    (void)state;
    static const int64_t sizes[][2] = {{34, 97}, {64, 32}, {7, 3}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        int64_t D = sizes[i][0], n_out = sizes[i][1];
        row_case c = row_make(D, n_out);
        check_rows("linear", row_linear, &c, n_out, op_one, op_two);
        check_rows("gate and up", row_gate_up, &c, n_out, op_one, op_two);
        check_rows("head", row_head, &c, 3, op_one, op_two);
        check_rows("softmax", row_stats, &c, 2, op_one, op_two);
        check_rows("gemm", row_gemm, &c, n_out, op_one, op_two);
        check_rows("gemm with beta", row_gemm_plain, &c, n_out, op_one, op_two);
        check_rows("rmsnorm", row_rmsnorm, &c, D, op_one, op_two);
        check_rows("rmsnorm of a sum", row_residual, &c, D, op_one, op_two);
        check_rows("layernorm", row_layernorm, &c, D, op_one, op_two);
        if (D % 2 == 0) check_rows("rmsnorm of heads", row_heads, &c, D, op_one, op_two);
        if (D % 2 == 0) check_rows("rope", row_rope, &c, D, op_one, op_two);
        if (D % 2 == 0) check_rows("linear of swiglu", row_swiglu_linear, &c, n_out, op_one, op_two);
        check_rows("gelu", row_gelu, &c, D, op_one, op_two);
        check_rows("add", row_add, &c, D, op_one, op_two);
        check_rows("embedding", row_embedding, &c, D, op_one, op_two);
        op_free_arrays();
    }
    row_case deep = row_make(1030, 40); // several blocks of inputs
    check_rows("deep linear", row_linear, &deep, 40, op_one, op_two);
    check_rows("deep linear of swiglu", row_swiglu_linear, &deep, 40, op_one, op_two);
    check_rows("deep head", row_head, &deep, 3, op_one, op_two);
}

// The bits of add and rmsnorm_forward in turn, with inv_rms and without.
static void check_residual_norm(int64_t T, int64_t D, dr_backend *b) {
    float *residual = op_normal(T * D, 0, 1), *w = op_normal(D, 1, 0.3), *x = op_normal(T * D, 0.3, 2);
    float *sum = op_copy(x, T * D), *want = op_poison(T * D), *want_inv = op_poison(T);
    b->ops->add(b, residual, T * D, sum);
    b->ops->rmsnorm_forward(b, sum, w, T, D, 0.05f, want, want_inv);
    for (int keeps = 0; keeps < 2; keeps++) {
        float *stream = op_copy(x, T * D), *y = op_poison(T * D), *inv = op_poison(T);
        b->ops->rmsnorm_residual_forward(b, residual, w, T, D, 0.05f, stream, y, keeps ? inv : NULL);
        check_same_bits("stream", stream, sum, T * D);
        check_same_bits("norm of the stream", y, want, T * D);
        if (keeps) check_same_bits("factor of the norm", inv, want_inv, T);
    }
    op_free_arrays();
}

static void test_residual_norm(void **state) {
    (void)state;
    static const int64_t shapes[][2] = {{1, 2}, {3, 5}, {7, 16}, {131, 64}, {70, 100}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        check_residual_norm(shapes[i][0], shapes[i][1], op_one);
        check_residual_norm(shapes[i][0], shapes[i][1], op_two);
    }
}

// A row of attention is a function of its sequence up to there: the sequence alone, cut off behind the row,
// among others, with two threads.
static void check_attention_rows(int32_t H, int32_t G, int32_t d) {
    enum { N = 61, LEFT = 33, RIGHT = 18, ALL = LEFT + N + RIGHT };
    int64_t stride = (H + 2 * G) * d, width = (int64_t)H * d;
    float *qkv = op_normal(ALL * stride, 0, 1), *want = op_poison(ALL * width), *lse = op_poison(ALL * H);
    float *got = op_poison(2 * N * width), *got_lse = op_poison(2 * N * H);
    const float *k = qkv + H * d, *v = k + G * d;
    const int32_t bounds[] = {0, LEFT, LEFT + N, ALL};
    const dr_sequences pack = {3, bounds, NULL};
    check_ok(op_two->ops->attention_forward(op_two, qkv, k, v, stride, stride, &pack, H, G, d, want, lse));
    check_ok(op_one->ops->attention_forward(op_one, qkv, k, v, stride, stride, &pack, H, G, d, got, got_lse));
    check_same_bits("attention, one thread", got, want, ALL * width);
    check_same_bits("log-sum-exp, one thread", got_lse, lse, ALL * H);
    char name[64];
    int64_t at = LEFT * stride;
    for (int32_t n = 1; n <= N; n++) { // the middle sequence alone, ever longer
        const int32_t ends[] = {0, n};
        const dr_sequences alone = {1, ends, NULL};
        check_ok(op_one->ops->attention_forward(op_one, qkv + at, k + at, v + at, stride, stride, &alone, H,
                                                G, d, got, got_lse));
        snprintf(name, sizeof name, "attention of %d/%d heads of %d, %d rows alone", H, G, d, n);
        check_same_bits(name, got, want + LEFT * width, n * width);
        check_same_bits(name, got_lse, lse + LEFT * H, n * H);
    }
    for (int32_t n = 1; n <= N; n++) { // cut in two: the second part goes on from the first, twice
        const int32_t cut[] = {0, n, N, N + N - n}, prefix[] = {-1, 0, 0};
        const dr_sequences shared = {3, cut, prefix};
        float *twice = op_array((N + N - n) * stride, sizeof(float));
        memcpy(twice, qkv + at, (size_t)(N * stride) * sizeof(float));
        memcpy(twice + N * stride, qkv + at + n * stride, (size_t)((N - n) * stride) * sizeof(float));
        check_ok(op_two->ops->attention_forward(op_two, twice, twice + H * d, twice + (H + G) * d, stride,
                                                stride, &shared, H, G, d, got, got_lse));
        snprintf(name, sizeof name, "attention of %d/%d heads of %d, cut at %d", H, G, d, n);
        check_same_bits(name, got, want + LEFT * width, N * width);
        check_same_bits(name, got + N * width, want + (LEFT + n) * width, (N - n) * width);
        check_same_bits(name, got_lse, lse + LEFT * H, N * H);
        check_same_bits(name, got_lse + N * H, lse + (LEFT + n) * H, (N - n) * H);
    }
    op_free_arrays();
}

static void test_attention_rows(void **state) {
    (void)state;
    static const int32_t heads[][3] = {{4, 2, 16},  {2, 1, 64}, {3, 1, 80},
                                       {1, 1, 128}, {4, 2, 20}, {6, 2, 13}};
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++)
        check_attention_rows(heads[i][0], heads[i][1], heads[i][2]);
}

// ---- gradients: not row by row, but the same in every run and with any number of threads ----

static void run_gradients(dr_backend *b, const row_case *c, const dr_kept *kept, const float *dy, float *dx,
                          float *dw, float *dbias, float *dh, float *dhead) {
    dr_weight *w = packed_weight(b, c->n_out, c->D, c->values);
    float logprob[ROWS], entropy[ROWS], lse[ROWS];
    check_ok(b->ops->linear_backward(b, w, c->x, dy, ROWS, dx, false, dw, dbias));
    check_ok(b->ops->head_forward(b, w, c->x, c->ids, kept, ROWS, 1.0f, logprob, entropy, lse));
    check_ok(b->ops->head_backward(b, w, c->x, c->ids, kept, ROWS, 1.0f, lse, dy, dh, dhead));
    b->ops->weight_destroy(b, w);
}

static void test_gradients_and_threads(void **state) {
    (void)state;
    enum { D = 45, OUT = 83 };
    row_case c = row_make(D, OUT);
    float *dy = op_normal(ROWS * OUT, 0, 1), *results[3][5];
    const dr_kept *kept = op_kept(c.ids, ROWS, OUT);
    for (int i = 0; i < 3; i++) {
        const int64_t sizes[5] = {ROWS * D, OUT * D, OUT, ROWS * D, OUT * D};
        for (int k = 0; k < 5; k++) results[i][k] = op_array(sizes[k], sizeof(float));
        run_gradients(i == 1 ? op_one : op_two, &c, kept, dy, results[i][0], results[i][1], results[i][2],
                      results[i][3], results[i][4]);
        for (int k = 0; k < 5; k++) check_same_bits("gradients", results[i][k], results[0][k], sizes[k]);
    }
}

// ---- the two widths of the kernels ----

static void run_products(float *out, int64_t n_floats) {
    static const int64_t shapes[][3] = {{1, 33, 70}, {13, 97, 64}, {40, 31, 600}, {23, 64, 9}};
    int64_t used = 0;
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        int64_t m = shapes[s][0], n = shapes[s][1], k = shapes[s][2];
        op_stream = 1000 + s; // the same operands for both widths
        float *a = op_normal(m * k, 0, 1), *b = op_normal(n * k, 0, 1), *bias = op_normal(n, 0, 1);
        dr_weight *w = packed_weight(op_two, n, k, b);
        check_ok(op_two->ops->linear_forward(op_two, w, a, m, bias, out + used));
        used += m * n;
        for (int variant = 0; variant < 4; variant++) {
            for (int64_t i = 0; i < m * n; i++) out[used + i] = 1;
            check_ok(
                op_one->ops->gemm(op_one, variant & 1, variant & 2, m, n, k, 1.0f, a, b, 1.0f, out + used));
            used += m * n;
        }
        op_two->ops->weight_destroy(op_two, w);
        assert_true(used <= n_floats);
    }
}

// out, lse, dq, dk, dv of one pack, then the same rows through the cache.
static void run_attention(int32_t d, float *out) {
    enum { H = 4, G = 2, N = 50, PAGES = 4 };
    const int32_t cu[] = {0, 19, 37, N}, prefix[] = {-1, 0, 0}, pages[PAGES] = {2, 0, 3, 1};
    const dr_sequences pack = {3, cu, prefix};
    int64_t stride = (H + 2 * G) * d, width = (int64_t)H * d;
    op_stream = 2000;
    float *qkv = op_normal(N * stride, 0, 1), *dout = op_normal(N * width, 0, 1);
    float *keys = op_array(PAGES * 16 * G * d, sizeof(float)),
          *values = op_array(PAGES * 16 * G * d, sizeof(float));
    const float *k = qkv + width, *v = k + G * d;
    float *lse = out + N * width, *dqkv = lse + N * H, *cached = dqkv + N * stride;
    dr_attention_chunk chunk = {0, N, 0, pages};
    const dr_backend_ops *ops = op_one->ops;
    check_ok(ops->attention_forward(op_one, qkv, k, v, stride, stride, &pack, H, G, d, out, lse));
    check_ok(ops->attention_backward(op_one, dout, qkv, k, v, out, lse, stride, stride, &pack, H, G, d, dqkv,
                                     dqkv + width, dqkv + width + G * d));
    ops->kv_store(op_one, k, v, stride, &chunk, 1, 16, G, d, keys, values);
    check_ok(ops->attention_cached(op_one, qkv, stride, keys, values, &chunk, 1, 16, H, G, d, cached));
}

static bool has_two_widths(void) {
#if defined(__SANITIZE_ADDRESS__) // hot.h compiles the narrow kernels for the least processor then
    const bool is_fused = false;
#else
    const bool is_fused = true;
#endif
    if (is_fused && dr_cpu_is_wide()) return true;
    print_message(is_fused ? "this processor has no vectors of 16 lanes\n"
                           : "a sanitizer's build has no fused multiply-adds in the narrow kernels\n");
    return false;
}

static void test_narrow_products(void **state) {
    (void)state;
    if (!has_two_widths()) skip();
    enum { N = 30000 };
    float *wide = op_array(N, sizeof(float)), *narrow = op_array(N, sizeof(float));
    run_products(wide, N);
    dr_cpu_narrow_only(true);
    bool is_narrow = !dr_cpu_is_wide();
    run_products(narrow, N);
    dr_cpu_narrow_only(false);
    assert_true(is_narrow && dr_cpu_is_wide());
    check_same_bits("narrow products", narrow, wide, N);
}

static void test_narrow_attention(void **state) {
    (void)state;
    if (!has_two_widths()) skip();
    static const int32_t sizes[] = {16, 20, 24, 64, 80, 7};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        int64_t n = 50 * (4 * sizes[i] + 4 + 8 * sizes[i] + 4 * sizes[i]);
        float *wide = op_poison(n), *narrow = op_poison(n);
        run_attention(sizes[i], wide);
        dr_cpu_narrow_only(true);
        run_attention(sizes[i], narrow);
        dr_cpu_narrow_only(false);
        char name[64];
        snprintf(name, sizeof name, "narrow attention, heads of %d", sizes[i]);
        check_same_bits(name, narrow, wide, n);
        op_free_arrays();
    }
}

// What can be said on every processor: asking for narrow kernels changes nothing where there are no others.
static void test_narrow_only(void **state) {
    (void)state;
    enum { N = 30000 };
    bool was_wide = dr_cpu_is_wide();
    float *first = op_array(N, sizeof(float)), *second = op_array(N, sizeof(float));
    dr_cpu_narrow_only(true);
    assert_false(dr_cpu_is_wide());
    run_products(first, N);
    run_products(second, N);
    dr_cpu_narrow_only(false);
    assert_int_equal(dr_cpu_is_wide(), was_wide);
    check_same_bits("narrow products once more", second, first, N);
    if (was_wide) return;
    run_products(second, N);
    check_same_bits("narrow products unasked", second, first, N);
}

// ---- bf16 ----

static double rounded(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits = (bits + 0x7FFFu + (bits >> 16 & 1)) & 0xFFFF0000u; // to nearest, ties to even
    memcpy(&x, &bits, sizeof x);
    return x;
}

// c = a · b of rounded operands; `exact` gets what the unrounded ones give.
static void ref_bf16(const float *a, int64_t a_row, int64_t a_column, const float *b, int64_t b_row,
                     int64_t b_column, int64_t m, int64_t n, int64_t k, float *c, float *exact) {
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            double sum = 0, full = 0;
            for (int64_t kk = 0; kk < k; kk++) {
                float x = a[i * a_row + kk * a_column], y = b[kk * b_row + j * b_column];
                sum += rounded(x) * rounded(y);
                full += (double)x * y;
            }
            c[i * n + j] += (float)sum;
            exact[i * n + j] += (float)full;
        }
}

// Operands are of size 1: a sum of k products is of size √k, a product is off by 2^-8 at most.
static void check_bf16(const char *name, const float *got, const float *want, const float *exact, int64_t n,
                       int64_t k) {
    double size = sqrt((double)k);
    check_close(name, got, want, n, 2e-6 * size, 2e-6);
    check_close(name, got, exact, n, 0.02 * size, 0x1p-7);
}

static void check_bf16_products(void) {
    static const int64_t shapes[][3] = {{1, 7, 5}, {3, 33, 17}, {16, 64, 128}, {45, 70, 301}, {530, 40, 24}};
    dr_backend *b = NULL;
    check_ok(dr_backend_cpu_create(DR_BF16, 2, &b));
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        int64_t T = shapes[s][0], O = shapes[s][1], I = shapes[s][2];
        float *x = op_normal(T * I, 0, 1), *values = op_normal(O * I, 0, 1), *dy = op_normal(T * O, 0, 1);
        float *bias = op_normal(O, 0, 1), *y = op_poison(T * O), *dx = op_poison(T * I),
              *dw = op_normal(O * I, 0, 1);
        float *want_y = op_array(T * O, 4), *full_y = op_array(T * O, 4), *want_dx = op_array(T * I, 4);
        float *full_dx = op_array(T * I, 4), *want_dw = op_copy(dw, O * I), *full_dw = op_copy(dw, O * I);
        dr_weight *w = packed_weight(b, O, I, values);
        for (int64_t i = 0; i < T * O; i++) want_y[i] = full_y[i] = bias[i % O];
        ref_bf16(x, I, 1, values, 1, I, T, O, I, want_y, full_y);
        ref_bf16(dy, O, 1, values, I, 1, T, I, O, want_dx, full_dx);
        ref_bf16(dy, 1, O, x, I, 1, O, I, T, want_dw, full_dw);
        check_ok(b->ops->linear_forward(b, w, x, T, bias, y));
        check_bf16("bf16 linear", y, want_y, full_y, T * O, I);
        check_ok(b->ops->linear_backward(b, w, x, dy, T, dx, false, dw, NULL));
        check_bf16("bf16 dx", dx, want_dx, full_dx, T * I, O);
        check_bf16("bf16 dw", dw, want_dw, full_dw, O * I, T);
        check_ok(b->ops->linear_backward(b, w, x, dy, T, dx, true, dw, NULL));
        for (int64_t i = 0; i < T * I; i++) {
            want_dx[i] *= 2;
            full_dx[i] *= 2;
        }
        check_bf16("bf16 dx, accumulated", dx, want_dx, full_dx, T * I, O);
        int32_t last[] = {(int32_t)O - 1, (int32_t)O / 2, 0};
        float *rows = op_poison(3 * I), *want_rows = op_array(3 * I, sizeof(float));
        for (int64_t i = 0; i < 3 * I; i++) want_rows[i] = (float)rounded(values[last[i / I] * I + i % I]);
        check_ok(b->ops->weight_rows(b, w, last, 3, rows));
        check_same_bits("rows of a bf16 weight", rows, want_rows, 3 * I);
        b->ops->weight_destroy(b, w);
        op_free_arrays();
    }
    dr_backend_cpu_destroy(b);
}

static void check_bf16_rows(void) {
    dr_backend *one = NULL, *two = NULL;
    check_ok(dr_backend_cpu_create(DR_BF16, 1, &one));
    check_ok(dr_backend_cpu_create(DR_BF16, 2, &two));
    row_case c = row_make(130, 97), deep = row_make(700, 40);
    check_rows("bf16 linear", row_linear, &c, 97, one, two);
    check_rows("bf16 head", row_head, &c, 3, one, two);
    check_rows("bf16 deep linear", row_linear, &deep, 40, one, two);
    check_rows("bf16 gate and up", row_gate_up, &c, 97, one, two);
    check_rows("bf16 deep gate and up", row_gate_up, &deep, 40, one, two);
    check_rows("bf16 linear of swiglu", row_swiglu_linear, &c, 97, one, two);
    check_rows("bf16 deep linear of swiglu", row_swiglu_linear, &deep, 40, one, two);
    dr_backend_cpu_destroy(one);
    dr_backend_cpu_destroy(two);
}

static void check_bf16_body(dr_bf16_body body) {
    dr_cpu_bf16_body(body);
    check_bf16_products();
    check_bf16_rows();
    dr_cpu_bf16_body(DR_BF16_CHOSEN);
}

static void test_bf16(void **state) {
    (void)state;
    check_bf16_body(DR_BF16_LIBRARY);
}

static void test_bf16_in_lanes(void **state) {
    (void)state;
    check_bf16_body(DR_BF16_LANES);
}

static float *op_rounded(int64_t n) {
    float *x = op_normal(n, 0, 1);
    for (int64_t i = 0; i < n; i++) x[i] = (float)rounded(x[i]);
    return x;
}

typedef struct linear_results {
    float *rows, *y, *dx, *dx_added, *dw;
} linear_results;

static linear_results run_linear(dr_backend *b, int64_t T, int64_t O, int64_t I, const float *x,
                                 const float *values, const float *dy, const float *start) {
    int32_t some[] = {(int32_t)O - 1, (int32_t)O / 2, 0};
    linear_results r = {op_poison(3 * I), op_poison(T * O), op_poison(T * I), op_copy(start, T * I),
                        op_copy(values, O * I)};
    dr_weight *w = packed_weight(b, O, I, values);
    check_ok(b->ops->weight_rows(b, w, some, 3, r.rows));
    for (int64_t t = 0; t < 3; t++)
        check_same_bits("row of a weight", r.rows + t * I, values + some[t] * I, I);
    check_ok(b->ops->linear_forward(b, w, x, T, NULL, r.y));
    float *unused = op_array(O * I, sizeof(float));
    check_ok(b->ops->linear_backward(b, w, x, dy, T, r.dx, false, r.dw, NULL));
    check_ok(b->ops->linear_backward(b, w, x, dy, T, r.dx_added, true, unused, NULL));
    b->ops->weight_destroy(b, w);
    return r;
}

// With operands that bf16 holds, and so without rounding, lanes give the bits of fp32's own chains, in both
// widths; and a sum over tokens does not depend on where it is cut. Sizes cross every block there is.
static void check_chains(int64_t T, int64_t O, int64_t I) {
    dr_backend *plain = NULL, *lanes = NULL;
    check_ok(dr_backend_cpu_create(DR_FP32, 2, &plain));
    check_ok(dr_backend_cpu_create(DR_BF16, 2, &lanes));
    float *x = op_rounded(T * I), *values = op_rounded(O * I), *dy = op_rounded(T * O),
          *start = op_normal(T * I, 0, 1);
    linear_results want = run_linear(plain, T, O, I, x, values, dy, start);
    for (int narrow = 0; narrow < 2; narrow++) {
        dr_cpu_narrow_only(narrow != 0);
        linear_results got = run_linear(lanes, T, O, I, x, values, dy, start);
        dr_cpu_narrow_only(false);
        check_same_bits("bf16 forward", got.y, want.y, T * O);
        check_same_bits("bf16 dx", got.dx, want.dx, T * I);
        check_same_bits("bf16 dx, added", got.dx_added, want.dx_added, T * I);
        check_same_bits("bf16 dw", got.dw, want.dw, O * I);
    }
    float *parts = op_copy(values, O * I);
    dr_weight *w = packed_weight(plain, O, I, values);
    for (int64_t t = 0, n; t < T; t += n) {
        n = T - t < 500 ? T - t : 500;
        check_ok(plain->ops->linear_backward(plain, w, x + t * I, dy + t * O, n, NULL, false, parts, NULL));
    }
    check_same_bits("dw in parts", parts, want.dw, O * I);
    plain->ops->weight_destroy(plain, w);
    dr_backend_cpu_destroy(plain);
    dr_backend_cpu_destroy(lanes);
    op_free_arrays();
}

static void test_bf16_is_the_same_chain(void **state) {
    (void)state;
    dr_cpu_bf16_body(DR_BF16_LANES);
    check_chains(37, 75, 530);
    check_chains(1101, 1107, 33);
    check_chains(8300, 50, 13);
    check_chains(5, 8300, 13);
    dr_cpu_bf16_body(DR_BF16_CHOSEN);
}

static void test_backends_refused(void **state) {
    (void)state;
    dr_backend *none = NULL;
    check_error(dr_backend_cpu_create(DR_FP32, -1, &none), DR_ERR_ARGUMENT, "threads");
    check_error(dr_backend_cpu_create(DR_FP32, DR_MAX_THREADS + 1, &none), DR_ERR_ARGUMENT, "threads");
    assert_null(none);
    assert_true(dr_cpu_has_bf16() || !dr_cpu_has_amx());
}

int main(void) {
    const struct CMUnitTest tests[] = {
        op_test(test_rows),
        op_test(test_residual_norm),
        op_test(test_attention_rows),
        op_test(test_gradients_and_threads),
        op_test(test_narrow_products),
        op_test(test_narrow_attention),
        op_test(test_narrow_only),
        op_test(test_bf16),
        op_test(test_bf16_in_lanes),
        op_test(test_bf16_is_the_same_chain),
        op_test(test_backends_refused),
    };
    return cmocka_run_group_tests(tests, op_group_setup, op_group_teardown);
}
