// The retrieval model's ops. Everything of a request is computed by one thread in a fixed order.
#include "core/compute/cpu_internal.h"

enum { MEAN_COLUMNS = 64 };

// out (rows, D) = m (rows, n) · x (n, D).
static DR_HOT void small_product(const float *m, int64_t rows, int64_t n, const float *x, int64_t D,
                                 float *out) {
    for (int64_t i = 0; i < rows; i++) {
        float *to = out + i * D;
        memset(to, 0, (size_t)D * sizeof(float));
        for (int64_t j = 0; j < n; j++) {
            float w = m[i * n + j];
            const float *from = x + j * D;
            for (int64_t d = 0; d < D; d++) to[d] += w * from[d];
        }
    }
}

// (2K, D) complex product g = f ⊙ w; both as real rows then imaginary rows, or w interleaved (K, D, 2) when
// `interleaved`.
static DR_HOT void complex_product(const float *f, const float *w, bool interleaved, int64_t K, int64_t D,
                                   float *g) {
    for (int64_t k = 0; k < K; k++)
        for (int64_t d = 0; d < D; d++) {
            int64_t re = k * D + d, im = (K + k) * D + d;
            float wr = interleaved ? w[2 * re] : w[re], wi = interleaved ? w[2 * re + 1] : w[im];
            g[re] = f[re] * wr - f[im] * wi;
            g[im] = f[re] * wi + f[im] * wr;
        }
}

// One request; g: 2K · D floats of scratch.
static DR_HOT void fuse_request(const dr_fusion *t, int64_t q, float *g) {
    int64_t L = t->L, D = t->D, K = L / 2 + 1;
    float *first = t->spectra[0] + q * 2 * K * D, *second = t->spectra[1] + q * 2 * K * D;
    float *a = t->filtered[0] + q * L * D, *b = t->filtered[1] + q * L * D;
    small_product(t->dft, 2 * K, L, t->x[0] + q * L * D, D, first);
    small_product(t->dft, 2 * K, L, t->x[1] + q * L * D, D, second);
    complex_product(first, t->filter, true, K, D, g);
    small_product(t->inverse, L, 2 * K, g, D, a);
    complex_product(second, first, false, K, D, g);
    small_product(t->inverse, L, 2 * K, g, D, b);
    for (int64_t l = 0; l < L; l++) {
        int64_t row = q * L + l;
        float *ra = a + l * D, *rb = b + l * D, *out = t->out + row * D;
        float ga = 1.0f / (1.0f + expf(-(dr_dot(ra, t->gate[0], D) + t->bias[0][0])));
        float gb = 1.0f / (1.0f + expf(-(dr_dot(rb, t->gate[1], D) + t->bias[1][0])));
        const float *position = t->positions + l * D;
        for (int64_t d = 0; d < D; d++) out[d] = 2.0f * (ra[d] * ga + rb[d] * gb) + position[d];
        t->openness[0][row] = ga;
        t->openness[1][row] = gb;
    }
}

static void fusion_forward(dr_backend *b, const dr_fusion *fusion) {
#pragma omp parallel num_threads(b->n_threads) if (b->n_threads > 1 && fusion->B > 1)
    {
        float g[2 * (DR_FUSION_POSITIONS / 2 + 1) * DR_FUSION_COLUMNS];
#pragma omp for schedule(static)
        for (int64_t q = 0; q < fusion->B; q++) fuse_request(fusion, q, g);
    }
}

static DR_HOT void attend_request(const dr_padded_attention *t, int64_t q) {
    int64_t L = t->L, H = t->H, d = t->d, D = H * d, Q = t->last_only ? 1 : L;
    int32_t n = t->lengths[q];
    float scale = 1.0f / sqrtf((float)d);
    for (int64_t h = 0; h < H; h++)
        for (int64_t i = 0; i < Q; i++) {
            int64_t row = q * L + (t->last_only ? n - 1 : i);
            const float *query = t->qkv + row * 3 * D + h * d;
            float *w = t->weights + ((q * H + h) * Q + i) * L, top = -INFINITY, total = 0;
            for (int64_t j = 0; j < L; j++) {
                w[j] = dr_dot(query, t->qkv + (q * L + j) * 3 * D + D + h * d, d) * scale +
                       (j < n ? 0.0f : -10000.0f);
                top = w[j] > top ? w[j] : top;
            }
            for (int64_t j = 0; j < L; j++) total += w[j] = expf(w[j] - top);
            float *out = t->out + (q * Q + i) * D + h * d;
            memset(out, 0, (size_t)d * sizeof(float));
            for (int64_t j = 0; j < L; j++) {
                w[j] /= total;
                const float *value = t->qkv + (q * L + j) * 3 * D + 2 * D + h * d;
                for (int64_t e = 0; e < d; e++) out[e] += w[j] * value[e];
            }
        }
}

static void padded_attention(dr_backend *b, const dr_padded_attention *attention) {
#pragma omp parallel for num_threads(b->n_threads) schedule(static) if (b->n_threads > 1 && attention->B > 1)
    for (int64_t q = 0; q < attention->B; q++) attend_request(attention, q);
}

static void softmax_row(float *x, int64_t n) {
    float top = x[0], total = 0;
    for (int64_t i = 1; i < n; i++) top = x[i] > top ? x[i] : top;
    for (int64_t i = 0; i < n; i++) total += x[i] = expf(x[i] - top);
    for (int64_t i = 0; i < n; i++) x[i] /= total;
}

static void mixture_forward(dr_backend *b, float *gate, const float *z, int64_t T, int64_t E, int64_t D,
                            float *y) {
#pragma omp parallel for num_threads(b->n_threads) schedule(static) if (b->n_threads > 1 && T > 1)
    for (int64_t t = 0; t < T; t++) {
        float *weights = gate + t * E, *out = y + t * D;
        softmax_row(weights, E);
        memset(out, 0, (size_t)D * sizeof(float));
        for (int64_t e = 0; e < E; e++)
            for (int64_t d = 0; d < D; d++) out[d] += weights[e] * z[(t * E + e) * D + d];
    }
}

// n columns, at most MEAN_COLUMNS, of the mean of a sequence's rows.
static DR_HOT void mean_columns(const float *rows, int32_t n_rows, int64_t D, int64_t n, float *out) {
    double sums[MEAN_COLUMNS] = {0};
    for (int32_t t = 0; t < n_rows; t++)
        for (int64_t d = 0; d < n; d++) sums[d] += (double)rows[t * D + d];
    for (int64_t d = 0; d < n; d++) out[d] = n_rows > 0 ? (float)(sums[d] / n_rows) : 0.0f;
}

static void pool_sequence(const float *rows, int32_t n_rows, dr_pooling pooling, int64_t D, float *out) {
    int32_t n_pooled = pooling == DR_POOL_FIRST && n_rows > 1 ? 1 : n_rows; // a first row is its own mean
    for (int64_t d = 0; d < D; d += MEAN_COLUMNS)
        mean_columns(rows + d, n_pooled, D, D - d < MEAN_COLUMNS ? D - d : MEAN_COLUMNS, out + d);
}

static dr_status pool_rows(dr_backend *b, const float *x, const dr_sequences *sequences, dr_pooling pooling,
                           int64_t D, float *out) {
#pragma omp parallel for num_threads(b->n_threads) schedule(static) if (b->n_threads > 1 && sequences->n > 1)
    for (int32_t s = 0; s < sequences->n; s++)
        pool_sequence(x + sequences->cu_seqlens[s] * D, dr_rows_of(sequences, s), pooling, D, out + s * D);
    return DR_OK;
}

static void unit_rows(dr_backend *b, const float *x, int64_t T, int64_t D, float *out) {
#pragma omp parallel for num_threads(b->n_threads) schedule(static) if (b->n_threads > 1 && T > 1)
    for (int64_t t = 0; t < T; t++) {
        double norm = 0;
        for (int64_t d = 0; d < D; d++) norm += (double)x[t * D + d] * x[t * D + d];
        float inv = norm > 0 ? (float)(1.0 / sqrt(norm)) : 0.0f;
        for (int64_t d = 0; d < D; d++) out[t * D + d] = x[t * D + d] * inv;
    }
}

static void fill_places(dr_backend *b, float *x, const int64_t *places, int64_t n, float value) {
    (void)b;
    for (int64_t i = 0; i < n; i++) x[places[i]] = value;
}

static bool is_better(dr_hit a, dr_hit b) {
    return a.score > b.score || (a.score == b.score && a.item < b.item);
}

// Insertion into a short sorted list: k is small beside the row, most columns fail the first comparison.
static void select_top(const float *scores, int64_t V, int32_t k, dr_hit *out) {
    int32_t n = 0;
    for (int32_t item = 0; item < V; item++) {
        dr_hit hit = {item, scores[item]};
        if (!(hit.score > -INFINITY) || (n == k && !is_better(hit, out[k - 1]))) continue;
        int32_t at = n < k ? n++ : k - 1;
        for (; at > 0 && is_better(hit, out[at - 1]); at--) out[at] = out[at - 1];
        out[at] = hit;
    }
    for (; n < k; n++) out[n] = (dr_hit){-1, -INFINITY};
}

static dr_status top_k(dr_backend *b, const float *scores, int64_t T, int64_t V, int32_t k, dr_hit *out) {
    DR_CHECK(k >= 1 && k <= DR_TOP_MOST && V <= INT32_MAX, DR_ERR_RANGE,
             "top_k: %d of %lld columns, at most %d", k, (long long)V, DR_TOP_MOST);
#pragma omp parallel for num_threads(b->n_threads) schedule(static) if (b->n_threads > 1 && T > 1)
    for (int64_t t = 0; t < T; t++) select_top(scores + t * V, V, k, out + t * k);
    return DR_OK;
}

void dr_cpu_fill_retrieval(dr_backend_ops *ops) {
    ops->fusion_forward = fusion_forward;
    ops->padded_attention = padded_attention;
    ops->mixture_forward = mixture_forward;
    ops->pool_rows = pool_rows;
    ops->unit_rows = unit_rows;
    ops->fill_places = fill_places;
    ops->top_k = top_k;
}
