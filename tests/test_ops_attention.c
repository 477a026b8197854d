// Attention of the compute seam: packed, its gradient, and cached in pages, against plain double precision.
// labels: cpu
#include "tests/op_check.h"

#include <stdio.h>

enum { PAGE = 16, MAX_SEQS = 8 };

// Heads and sequences of one case; q, k, v lie in one merged buffer with a gap behind each row.
typedef struct pack_case {
    dr_backend *b;
    int32_t H, G, d, cu[MAX_SEQS + 1];
    dr_sequences sequences;
    bool both_ways;
    int64_t T, stride;
    float *qkv, *out, *lse, *dout;
    double *rqkv, *rout; // the reference's
} pack_case;

// prefix: as in dr_sequences, NULL for none.
static pack_case pack_make(dr_backend *b, int32_t H, int32_t G, int32_t d, const int32_t *lengths,
                           const int32_t *prefix, int32_t n) {
    pack_case c = {
        .b = b, .H = H, .G = G, .d = d, .sequences = {n, NULL, prefix}, .stride = (H + 2 * G) * d + 3};
    for (int32_t s = 0; s < n; s++) c.cu[s + 1] = c.cu[s] + lengths[s];
    c.T = c.cu[n];
    c.qkv = op_normal(c.T * c.stride, 0, 1);
    c.out = op_poison(c.T * H * d);
    c.lse = op_poison(c.T * H);
    c.dout = op_normal(c.T * H * d, 0, 1);
    c.rqkv = op_double(c.qkv, c.T * c.stride);
    c.rout = op_zeros(c.T * H * d);
    return c;
}

static void forward(pack_case *c) {
    c->sequences.cu_seqlens = c->cu;
    const float *q = c->qkv, *k = q + c->H * c->d, *v = k + c->G * c->d;
    if (c->both_ways)
        check_ok(c->b->ops->attention_bidirectional(c->b, q, k, v, c->stride, c->stride, &c->sequences, c->H,
                                                    c->G, c->d, c->out));
    else
        check_ok(c->b->ops->attention_forward(c->b, q, k, v, c->stride, c->stride, &c->sequences, c->H, c->G,
                                              c->d, c->out, c->lse));
}

static void backward(pack_case *c, float *dqkv) {
    const float *q = c->qkv, *k = q + c->H * c->d, *v = k + c->G * c->d;
    float *dk = dqkv + c->H * c->d;
    check_ok(c->b->ops->attention_backward(c->b, c->dout, q, k, v, c->out, c->lse, c->stride, c->stride,
                                           &c->sequences, c->H, c->G, c->d, dqkv, dk, dk + c->G * c->d));
}

// The rows that row t sees, itself the last but in both directions; returns their number.
static int32_t rows_seen(const pack_case *c, int64_t t, int32_t *rows) {
    int32_t s = 0, n = 0;
    while (c->cu[s + 1] <= t) s++;
    int32_t p = c->sequences.prefix ? c->sequences.prefix[s] : -1;
    for (int32_t j = p < 0 ? 0 : c->cu[p]; p >= 0 && j < c->cu[p + 1]; j++) rows[n++] = j;
    for (int32_t j = c->cu[s]; c->both_ways ? j < c->cu[s + 1] : j <= t; j++) rows[n++] = j;
    return n;
}

// Probabilities of row t, head h over the rows it sees; returns the log-sum-exp.
static double ref_row(const pack_case *c, int64_t t, int32_t h, const int32_t *rows, int32_t n, double *p) {
    int32_t g = h / (c->H / c->G);
    double top = -INFINITY, total = 0;
    for (int32_t j = 0; j < n; j++) {
        const double *q = c->rqkv + t * c->stride + h * c->d,
                     *k = c->rqkv + rows[j] * c->stride + (c->H + g) * c->d;
        p[j] = 0;
        for (int32_t e = 0; e < c->d; e++) p[j] += q[e] * k[e] / sqrt(c->d);
        top = fmax(top, p[j]);
    }
    for (int32_t j = 0; j < n; j++) total += exp(p[j] - top);
    for (int32_t j = 0; j < n; j++) p[j] = exp(p[j] - top) / total;
    return top + log(total);
}

static void ref_forward(const pack_case *c, double *lse) {
    double p[512];
    int32_t rows[512];
    for (int64_t t = 0; t < c->T; t++)
        for (int32_t h = 0; h < c->H; h++) {
            int32_t n = rows_seen(c, t, rows), g = h / (c->H / c->G);
            double *out = c->rout + (t * c->H + h) * c->d, l = ref_row(c, t, h, rows, n, p);
            if (lse) lse[t * c->H + h] = l;
            for (int32_t e = 0; e < c->d; e++) out[e] = 0;
            for (int32_t j = 0; j < n; j++)
                for (int32_t e = 0; e < c->d; e++)
                    out[e] += p[j] * c->rqkv[rows[j] * c->stride + (c->H + c->G + g) * c->d + e];
        }
}

// dq, dk, dv at the places of q, k, v: the textbook's formula.
static void ref_backward(const pack_case *c, double *d_qkv) {
    double p[512], dp[512];
    int32_t d = c->d, rows[512];
    for (int64_t t = 0; t < c->T; t++)
        for (int32_t h = 0; h < c->H; h++) {
            int32_t n = rows_seen(c, t, rows), g = h / (c->H / c->G);
            const float *dout = c->dout + (t * c->H + h) * d;
            double mean = 0;
            ref_row(c, t, h, rows, n, p);
            for (int32_t j = 0; j < n; j++) {
                int64_t v = rows[j] * c->stride + (c->H + c->G + g) * d;
                dp[j] = 0;
                for (int32_t e = 0; e < d; e++) {
                    dp[j] += dout[e] * c->rqkv[v + e];
                    d_qkv[v + e] += p[j] * dout[e];
                }
                mean += p[j] * dp[j];
            }
            for (int32_t j = 0; j < n; j++) {
                int64_t q = t * c->stride + h * d, k = rows[j] * c->stride + (c->H + g) * d;
                double ds = p[j] * (dp[j] - mean) / sqrt(d);
                for (int32_t e = 0; e < d; e++) {
                    d_qkv[q + e] += ds * c->rqkv[k + e];
                    d_qkv[k + e] += ds * c->rqkv[q + e];
                }
            }
        }
}

static double ref_loss(void *context) {
    pack_case *c = context;
    double sum = 0;
    ref_forward(c, NULL);
    for (int64_t i = 0; i < c->T * c->H * c->d; i++) sum += c->rout[i] * c->dout[i];
    return sum;
}

static double loss(void *context) {
    pack_case *c = context;
    forward(c);
    return op_dot(c->out, c->dout, c->T * c->H * c->d);
}

// The rows of dq, dk, dv without what lies between them; nothing may have been written there.
static float *without_gaps(const pack_case *c, const float *values, const char *name) {
    int64_t width = c->stride - 3;
    float *dense = op_array(c->T * width, sizeof(float));
    for (int64_t t = 0; t < c->T; t++) {
        memcpy(dense + t * width, values + t * c->stride, (size_t)width * sizeof(float));
        for (int i = 0; i < 3; i++)
            if (!isnan(values[t * c->stride + width + i]))
                fail_msg("%s: something behind row %d", name, (int)t);
    }
    return dense;
}

static void check_pack(dr_backend *b, int32_t H, int32_t G, int32_t d, const int32_t *lengths,
                       const int32_t *prefix, int32_t n) {
    pack_case c = pack_make(b, H, G, d, lengths, prefix, n);
    int64_t n_qkv = c.T * c.stride, width = c.stride - 3;
    double *lse = op_zeros(c.T * H), *want = op_zeros(n_qkv), *dense = op_zeros(c.T * width);
    float *dqkv = op_poison(n_qkv), *again = op_poison(n_qkv);
    char name[64];
    snprintf(name, sizeof name, "attention of %d/%d heads of %d, %d rows", H, G, d, (int)c.T);
    forward(&c);
    ref_forward(&c, lse);
    op_close(name, c.out, c.rout, c.T * H * d, 1e-11);
    op_close("log-sum-exp of scores", c.lse, lse, c.T * H, 1e-11);

    backward(&c, dqkv);
    ref_backward(&c, want);
    for (int64_t t = 0; t < c.T; t++)
        memcpy(dense + t * width, want + t * c.stride, (size_t)width * sizeof(double));
    float *got = without_gaps(&c, dqkv, name);
    op_close(name, got, dense, c.T * width, 1e-10);
    memcpy(again, dqkv, (size_t)n_qkv * sizeof(float));
    backward(&c, again); // overwrites
    check_same_bits("the gradient once more", without_gaps(&c, again, name), got, c.T * width);
    if (c.T * width <= 2500) {
        double *numeric = op_differentiate(ref_loss, &c, c.rqkv, n_qkv);
        for (int64_t t = 0; t < c.T; t++)
            memcpy(dense + t * width, numeric + t * c.stride, (size_t)width * sizeof(double));
        op_close("the gradient by differences of the reference", got, dense, c.T * width, 1e-10);
    }
    for (int64_t t = 0; t < c.T; t++)
        for (int i = 0; i < 3; i++) dqkv[t * c.stride + width + i] = 0; // what the gaps do to the loss
    op_check_slope(name, loss, &c, c.qkv, dqkv, n_qkv, 2e-3f, 1e-2);
    op_free_arrays();
}

static void test_packed(void **state) {
    (void)state;
    static const int32_t heads[][3] = {{1, 1, 1},  {4, 1, 7},  {6, 2, 16}, {4, 2, 20},
                                       {2, 1, 64}, {3, 3, 80}, {9, 1, 17}, {2, 2, 256}};
    static const int32_t few[] = {1, 5, 17}, odd[] = {0, 16, 0, 33, 2, 49}, one[] = {99};
    // three prompts: of 19 rows with three sequences, one of them empty, of none with one, of 50 with one
    static const int32_t shared[] = {19, 18, 0, 61, 0, 5, 50, 3}, prefix[] = {-1, 0, 0, 0, -1, 4, -1, 6};
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++) {
        const int32_t *h = heads[i];
        check_pack(op_one, h[0], h[1], h[2], few, NULL, 1);
        check_pack(op_one, h[0], h[1], h[2], few, NULL, 3);
        check_pack(op_two, h[0], h[1], h[2], odd, NULL, 6);
        check_pack(op_two, h[0], h[1], h[2], shared, prefix, h[2] <= 64 ? 8 : 3);
        if (h[2] <= 64) check_pack(op_two, h[0], h[1], h[2], one, NULL, 1);
    }
}

// In both directions; a sequence has the bits that it has alone.
static void test_bidirectional(void **state) {
    (void)state;
    static const int32_t heads[][3] = {{1, 1, 1}, {4, 1, 7}, {6, 2, 16}, {2, 2, 64}, {9, 1, 17}, {2, 2, 256}};
    static const int32_t lengths[] = {1, 5, 0, 17, 16, 49}, n = 6;
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++) {
        const int32_t *h = heads[i];
        pack_case c = pack_make(op_two, h[0], h[1], h[2], lengths, NULL, n);
        c.both_ways = true;
        forward(&c);
        ref_forward(&c, NULL);
        op_close("attention in both directions", c.out, c.rout, c.T * c.H * c.d, 1e-11);
        for (int32_t s = 0; s < n; s++) {
            pack_case alone = pack_make(op_one, h[0], h[1], h[2], lengths + s, NULL, 1);
            alone.both_ways = true;
            memcpy(alone.qkv, c.qkv + c.cu[s] * c.stride, (size_t)(alone.T * c.stride) * sizeof(float));
            forward(&alone);
            check_same_bits("a sequence alone", alone.out, c.out + (int64_t)c.cu[s] * c.H * c.d,
                            alone.T * c.H * c.d);
        }
        op_free_arrays();
    }
    pack_case c = pack_make(op_one, 1, 1, 4, lengths, (const int32_t[]){-1, 0}, 2);
    c.sequences.cu_seqlens = c.cu;
    check_error(op_one->ops->attention_bidirectional(op_one, c.qkv, c.qkv, c.qkv, c.stride, c.stride,
                                                     &c.sequences, 1, 1, 4, c.out),
                DR_ERR_UNSUPPORTED, "prefixes");
}

// Scores of hundreds: the softmax is one-hot, nothing overflows.
static void test_large_scores(void **state) {
    (void)state;
    const int32_t lengths[] = {40, 7};
    pack_case c = pack_make(op_one, 2, 1, 20, lengths, NULL, 2);
    int64_t n = c.T * c.stride;
    for (int64_t i = 0; i < n; i++)
        if (i % c.stride < 3 * 20) c.rqkv[i] = c.qkv[i] *= 12; // queries and keys, not values
    double *lse = op_zeros(c.T * c.H), *want = op_zeros(n);
    float *dqkv = op_array(n, sizeof(float));
    forward(&c);
    ref_forward(&c, lse);
    double largest = 0;
    for (int64_t i = 0; i < c.T * c.H; i++) largest = fmax(largest, lse[i]);
    assert_true(largest > 300);
    op_close("large scores", c.out, c.rout, c.T * c.H * c.d, 1e-7);
    op_close("log-sum-exp of large scores", c.lse, lse, c.T * c.H, 1e-11);
    backward(&c, dqkv);
    ref_backward(&c, want);
    op_close("gradient of large scores", dqkv, want, n, 1e-6);
}

static void test_sizes_refused(void **state) {
    (void)state;
    const int32_t lengths[] = {3};
    pack_case c = pack_make(op_one, 4, 2, 16, lengths, NULL, 1);
    const dr_backend_ops *ops = op_one->ops;
    const int32_t page = 0;
    dr_attention_chunk chunk = {0, 3, 0, &page};
    const dr_sequences pack = {1, c.cu, NULL};
    static const int32_t bad[][3] = {{4, 3, 16}, {4, 0, 16}, {4, 2, 0}, {2, 2, 257}};
    for (int i = 0; i < 4; i++) {
        int32_t H = bad[i][0], G = bad[i][1], d = bad[i][2];
        check_error(ops->attention_forward(op_one, c.qkv, c.qkv, c.qkv, c.stride, c.stride, &pack, H, G, d,
                                           c.out, c.lse),
                    DR_ERR_RANGE, "attention");
        check_error(ops->attention_backward(op_one, c.dout, c.qkv, c.qkv, c.qkv, c.out, c.lse, c.stride,
                                            c.stride, &pack, H, G, d, c.qkv, c.qkv, c.qkv),
                    DR_ERR_RANGE, "attention");
        check_error(
            ops->attention_cached(op_one, c.qkv, c.stride, c.qkv, c.qkv, &chunk, 1, PAGE, H, G, d, c.out),
            DR_ERR_RANGE, "attention");
    }
    check_error(ops->attention_cached(op_one, c.qkv, c.stride, c.qkv, c.qkv, &chunk, 1, 32, 4, 2, 16, c.out),
                DR_ERR_UNSUPPORTED, "pages of 32");
    for (int64_t i = 0; i < c.T * 64; i++) assert_true(isnan(c.out[i])); // nothing was written
}

// ---- cached ----

enum { SEQUENCES = 3, PAGES = 24 };

// Sequence s of a pack goes into the cache in chunks; the calls mix the sequences. Every output row must have
// the bits of the packed pass.
typedef struct cache_case {
    pack_case pack;
    float *keys, *values; // [PAGES, PAGE, G, d] in size
    int32_t pages[SEQUENCES][PAGES], done[SEQUENCES];
} cache_case;

static void round_keys(pack_case *c) {
    float *k = c->qkv + c->H * c->d;
    c->b->ops->kv_round(c->b, k, k + c->G * c->d, c->stride, c->T, c->G, c->d);
}

// Runs n[s] more rows of each sequence, in the order `first`, first + 1, … of the sequences.
static void cache_step(cache_case *c, const int32_t n[SEQUENCES], int first) {
    pack_case *p = &c->pack;
    dr_attention_chunk chunks[SEQUENCES];
    int32_t n_chunks = 0;
    int64_t rows = 0, width = (int64_t)p->H * p->d;
    for (int i = 0; i < SEQUENCES; i++) {
        int s = (first + i) % SEQUENCES;
        if (n[s] == 0) continue;
        chunks[n_chunks++] = (dr_attention_chunk){rows, n[s], c->done[s], c->pages[s]};
        rows += n[s];
    }
    float *qkv = op_poison(rows * p->stride), *out = op_poison(rows * width);
    for (int i = 0, at = 0; i < SEQUENCES; i++) {
        int s = (first + i) % SEQUENCES;
        memcpy(qkv + at * p->stride, p->qkv + (p->cu[s] + c->done[s]) * p->stride,
               (size_t)(n[s] * p->stride) * sizeof(float));
        at += n[s];
    }
    const float *k = qkv + p->H * p->d, *v = k + p->G * p->d;
    p->b->ops->kv_store(p->b, k, v, p->stride, chunks, n_chunks, PAGE, p->G, p->d, c->keys, c->values);
    check_ok(p->b->ops->attention_cached(p->b, qkv, p->stride, c->keys, c->values, chunks, n_chunks, PAGE,
                                         p->H, p->G, p->d, out));
    for (int i = 0, at = 0; i < SEQUENCES; i++) {
        int s = (first + i) % SEQUENCES;
        check_same_bits("cached and packed", out + at * width, p->out + (p->cu[s] + c->done[s]) * width,
                        n[s] * width);
        at += n[s];
        c->done[s] += n[s];
    }
}

static void check_cached(dr_backend *packed_by, dr_backend *cached_by, int32_t H, int32_t G, int32_t d) {
    static const int32_t lengths[SEQUENCES] = {75, 40, 101};
    // a long prefill, its rest, single tokens, a chunk over several borders of pages
    static const int32_t steps[][SEQUENCES] = {{21, 0, 64}, {1, 0, 1},  {1, 3, 1},   {0, 13, 0}, {26, 1, 1},
                                               {1, 1, 16},  {0, 0, 17}, {25, 22, 0}, {0, 0, 1}};
    cache_case c = {.pack = pack_make(packed_by, H, G, d, lengths, NULL, SEQUENCES)};
    int32_t order[PAGES];
    dr_rng rng = dr_rng_make(7, 7);
    for (int i = 0; i < PAGES; i++) order[i] = i;
    dr_rng_shuffle(&rng, order, PAGES);
    for (int i = 0; i < PAGES; i++) c.pages[i % SEQUENCES][i / SEQUENCES] = order[i];
    c.keys = op_poison(PAGES * PAGE * G * d); // what was never stored is never used
    c.values = op_poison(PAGES * PAGE * G * d);
    round_keys(&c.pack);
    forward(&c.pack);
    c.pack.b = cached_by;
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) cache_step(&c, steps[i], (int)i % SEQUENCES);
    for (int s = 0; s < SEQUENCES; s++) assert_int_equal(c.done[s], lengths[s]);
    op_free_arrays();
}

static void test_cached_is_packed(void **state) {
    (void)state;
    static const int32_t heads[][3] = {{4, 2, 20}, {2, 1, 64},  {3, 3, 80}, {8, 1, 16},
                                       {1, 1, 5},  {12, 4, 24}, {6, 6, 16}, {18, 9, 8}};
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++) {
        check_cached(op_one, op_one, heads[i][0], heads[i][1], heads[i][2]);
        check_cached(op_two, op_one, heads[i][0], heads[i][1], heads[i][2]);
        check_cached(op_one, op_two, heads[i][0], heads[i][1], heads[i][2]);
    }
}

// bf16: a cache of two bytes an element gives the bits of a packed pass over what it can hold.
static void test_cached_bf16(void **state) {
    (void)state;
    static const int32_t heads[][3] = {{4, 2, 20}, {2, 1, 64},  {3, 3, 80},  {8, 1, 16},
                                       {1, 1, 5},  {2, 1, 256}, {5, 5, 256}, {18, 9, 8}};
    dr_backend *one = NULL, *two = NULL;
    check_ok(dr_backend_cpu_create(DR_BF16, 1, &one));
    check_ok(dr_backend_cpu_create(DR_BF16, 2, &two));
    assert_int_equal(dr_kv_bytes(one), 2);
    assert_int_equal(dr_kv_bytes(op_one), 4);
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++) {
        check_cached(one, one, heads[i][0], heads[i][1], heads[i][2]);
        check_cached(one, two, heads[i][0], heads[i][1], heads[i][2]);
    }
    dr_backend_cpu_destroy(one);
    dr_backend_cpu_destroy(two);
}

// kv_round: to the nearest bf16, ties to even, in keys and values only; nothing in fp32.
static void test_kv_round(void **state) {
    (void)state;
    static const int32_t lengths[] = {300};
    dr_backend *backends[2] = {op_one};
    check_ok(dr_backend_cpu_create(DR_BF16, 2, &backends[1]));
    for (int i = 0; i < 2; i++) {
        pack_case c = pack_make(backends[i], 3, 2, 5, lengths, NULL, 1);
        const int64_t first = c.H * c.d, behind = first + 2 * c.G * c.d;
        c.qkv[first] = 1.0f + 0x1p-8f;     // half-way: 1 is even
        c.qkv[first + 1] = 1.0f + 0x3p-8f; // half-way: 1 + 2^-6 is
        c.qkv[first + 2] = INFINITY;
        float *before = op_copy(c.qkv, c.T * c.stride);
        round_keys(&c);
        for (int64_t t = 0; t < c.T; t++)
            for (int64_t e = 0; e < c.stride; e++) {
                float was = before[t * c.stride + e], is = c.qkv[t * c.stride + e];
                bool rounds = i == 1 && e >= first && e < behind;
                if (!rounds) assert_true(memcmp(&was, &is, sizeof is) == 0);
                if (!rounds || !isfinite(was)) continue;
                int power = 0;
                double unit = (frexp((double)was, &power), ldexp(1.0, power - 8));
                assert_true((double)is == nearbyint((double)was / unit) * unit);
            }
        assert_true(isinf(c.qkv[first + 2]));
        op_free_arrays();
    }
    dr_backend_cpu_destroy(backends[1]);
}

// Pages that two sequences share: what one of them stores behind the common part is not seen by the other.
static void test_shared_pages(void **state) {
    (void)state;
    enum { COMMON = 32, OWN = 9, N = COMMON + OWN, H = 2, G = 1, D = 20 };
    const int32_t lengths[] = {N, N};
    pack_case p = pack_make(op_one, H, G, D, lengths, NULL, 2);
    memcpy(p.qkv + N * p.stride, p.qkv, (size_t)(COMMON * p.stride) * sizeof(float)); // the same beginning
    forward(&p);
    float *keys = op_poison(6 * PAGE * D), *values = op_poison(6 * PAGE * D),
          *out = op_poison(2 * OWN * H * D);
    const int32_t pages[2][3] = {{4, 1, 5}, {4, 1, 0}};
    const float *k = p.qkv + H * D, *v = k + D;
    dr_attention_chunk common = {0, COMMON, 0, pages[0]};
    op_one->ops->kv_store(op_one, k, v, p.stride, &common, 1, PAGE, G, D, keys, values);
    for (int s = 0; s < 2; s++) {
        dr_attention_chunk own = {s * N + COMMON, OWN, COMMON, pages[s]};
        op_one->ops->kv_store(op_one, k, v, p.stride, &own, 1, PAGE, G, D, keys, values);
    }
    float *q = op_normal(2 * OWN * p.stride, 0, 1);
    for (int s = 0; s < 2; s++)
        memcpy(q + s * OWN * p.stride, p.qkv + (s * N + COMMON) * p.stride,
               (size_t)(OWN * p.stride) * sizeof(float));
    dr_attention_chunk both[2] = {{0, OWN, COMMON, pages[0]}, {OWN, OWN, COMMON, pages[1]}};
    check_ok(op_one->ops->attention_cached(op_one, q, p.stride, keys, values, both, 2, PAGE, H, G, D, out));
    for (int s = 0; s < 2; s++)
        check_same_bits("shared pages", out + s * OWN * H * D, p.out + (s * N + COMMON) * H * D, OWN * H * D);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        op_test(test_packed),           op_test(test_large_scores),  op_test(test_sizes_refused),
        op_test(test_cached_is_packed), op_test(test_cached_bf16),   op_test(test_kv_round),
        op_test(test_shared_pages),     op_test(test_bidirectional),
    };
    return cmocka_run_group_tests(tests, op_group_setup, op_group_teardown);
}
