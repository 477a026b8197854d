// Element-wise ops, rotary embedding, embedding tables, AdamW and the gradient norm.
#include "core/compute/cpu_internal.h"

enum { ROW_BLOCK = 32, ELEMENT_BLOCK = 16384, MOST_TURNS = 65536 };

// Cosines and sines of the positions seen so far, for one list of frequencies: models have one.
static dr_status turns_reserve(dr_turns *turns, const float *inv_freq, int64_t half, int64_t n) {
    if (turns->half != half || memcmp(turns->inv_freq, inv_freq, (size_t)half * sizeof(float)) != 0) {
        turns->n = turns->half = 0;
        DR_TRY(dr_scratch_reserve(&turns->frequencies, half));
        turns->inv_freq = memcpy(turns->frequencies.data, inv_freq, (size_t)half * sizeof(float));
        turns->half = half;
    }
    if (n <= turns->n) return DR_OK;
    int64_t all = n < 256 ? 256 : 2 * n < MOST_TURNS ? 2 * n : MOST_TURNS;
    turns->n = 0;
    DR_TRY(dr_scratch_reserve(&turns->values, 2 * all * half));
    for (int64_t p = 0; p < all; p++)
        for (int64_t i = 0; i < half; i++) {
            float angle = (float)p * inv_freq[i];
            turns->values.data[2 * p * half + i] = cosf(angle);
            turns->values.data[(2 * p + 1) * half + i] = sinf(angle);
        }
    turns->n = all;
    return DR_OK;
}

int64_t dr_cpu_turns_floats(const dr_pass_shape *s) {
    int64_t n = 2 * s->T > 256 ? 2 * s->T : 256;
    return (n < MOST_TURNS ? n : MOST_TURNS) * s->d + s->d / 2;
}

static DR_HOT void turn_row(float *x, const float *cosine, const float *sine, int64_t n_heads, int64_t d,
                            float sign) {
    int64_t half = d / 2;
    for (float *low = x; low < x + n_heads * d; low += d) {
        float *high = low + half;
        for (int64_t i = 0; i < half; i++) {
            float l = low[i], h = high[i], s = sign * sine[i];
            low[i] = fmaf(-h, s, l * cosine[i]); // by hand: the same fused operation in every loop
            high[i] = fmaf(l, s, h * cosine[i]);
        }
    }
}

// Beyond the table.
static void turn_directly(float *x, int32_t position, const float *inv_freq, int64_t n_heads, int64_t d,
                          float sign) {
    for (int64_t i = 0; i < d / 2; i++) {
        float angle = (float)position * inv_freq[i], c = cosf(angle), s = sinf(angle);
        for (int64_t h = 0; h < n_heads; h++) {
            float pair[2] = {x[h * d + i], x[h * d + i + d / 2]};
            turn_row(pair, &c, &s, 1, 2, sign);
            x[h * d + i] = pair[0];
            x[h * d + i + d / 2] = pair[1];
        }
    }
}

static void rope(dr_backend *b, float *x, const int32_t *positions, const float *inv_freq, int64_t T,
                 int64_t n_heads, int64_t d, int64_t stride, int direction) {
    int64_t half = d / 2, longest = 0;
    float sign = direction < 0 ? -1.0f : 1.0f;
    dr_turns *turns = &dr_cpu_state_of(b)->turns;
    for (int64_t t = 0; t < T; t++)
        if (positions[t] < MOST_TURNS && positions[t] >= longest) longest = positions[t] + 1;
    // without memory for it, no position is in the table
    if (turns_reserve(turns, inv_freq, half, longest) != DR_OK) turns->n = 0;
#pragma omp parallel for num_threads(b->n_threads) schedule(static) if (b->n_threads > 1 && T > ROW_BLOCK)
    for (int64_t t = 0; t < T; t++) {
        if (positions[t] >= turns->n) {
            turn_directly(x + t * stride, positions[t], inv_freq, n_heads, d, sign);
            continue;
        }
        const float *of_row = turns->values.data + 2 * positions[t] * half;
        turn_row(x + t * stride, of_row, of_row + half, n_heads, d, sign);
    }
}

// erf with an absolute error below 2e-7 (Abramowitz & Stegun 7.1.26), free of branches so that loops become
// vectors.
DR_INLINE float erf_fast(float x) {
    float a = fabsf(x), t = 1.0f / (1.0f + 0.3275911f * a);
    float p =
        ((((1.061405429f * t - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t + 0.254829592f) * t;
    float y = 1.0f - p * dr_expf(-a * a);
    return x < 0.0f ? -y : y;
}

static DR_HOT void gelu_forward_range(const float *x, int64_t n, float *y) {
    for (int64_t i = 0; i < n; i++) y[i] = 0.5f * x[i] * (1.0f + erf_fast(x[i] * 0.70710678f));
}

static DR_HOT void gelu_backward_range(const float *dy, const float *x, int64_t n, float *dx) {
    for (int64_t i = 0; i < n; i++) {
        float cdf = 0.5f * (1.0f + erf_fast(x[i] * 0.70710678f));
        dx[i] = dy[i] * (cdf + x[i] * 0.39894228f * dr_expf(-0.5f * x[i] * x[i]));
    }
}

static void gelu_forward(dr_backend *b, const float *x, int64_t n, float *y) {
#pragma omp parallel for num_threads(b->n_threads) schedule(static) if (b->n_threads > 1 && n > ELEMENT_BLOCK)
    for (int64_t i = 0; i < n; i += ELEMENT_BLOCK)
        gelu_forward_range(x + i, n - i < ELEMENT_BLOCK ? n - i : ELEMENT_BLOCK, y + i);
}

static void gelu_backward(dr_backend *b, const float *dy, const float *x, int64_t n, float *dx) {
#pragma omp parallel for num_threads(b->n_threads) schedule(static) if (b->n_threads > 1 && n > ELEMENT_BLOCK)
    for (int64_t i = 0; i < n; i += ELEMENT_BLOCK)
        gelu_backward_range(dy + i, x + i, n - i < ELEMENT_BLOCK ? n - i : ELEMENT_BLOCK, dx + i);
}

static DR_HOT void add_range(const float *x, int64_t n, float *y) {
    for (int64_t i = 0; i < n; i++) y[i] += x[i];
}

static void add(dr_backend *b, const float *x, int64_t n, float *y) {
#pragma omp parallel for num_threads(b->n_threads) schedule(static) if (b->n_threads > 1 && n > ELEMENT_BLOCK)
    for (int64_t i = 0; i < n; i += ELEMENT_BLOCK)
        add_range(x + i, n - i < ELEMENT_BLOCK ? n - i : ELEMENT_BLOCK, y + i);
}

static void embedding_forward(dr_backend *b, const float *table, const int32_t *ids, int64_t T, int64_t D,
                              float *out) {
#pragma omp parallel for num_threads(b->n_threads)                                                           \
    schedule(static) if (b->n_threads > 1 && T * D > 16 * ELEMENT_BLOCK)
    for (int64_t t = 0; t < T; t++) memcpy(out + t * D, table + ids[t] * D, (size_t)D * sizeof(float));
}

static void embedding_backward(dr_backend *b, const float *dout, const int32_t *ids, int64_t T, int64_t D,
                               float *dtable) {
    (void)b;
    for (int64_t t = 0; t < T; t++) add_range(dout + t * D, D, dtable + ids[t] * D);
}

DR_INLINE void adamw_range(float *weights, const float *gradient, float *m, float *v, int64_t begin,
                           int64_t end, float scale, const dr_adamw_settings *s, float correction1,
                           float correction2) {
    for (int64_t i = begin; i < end; i++) {
        float g = gradient[i] * scale;
        m[i] = s->beta1 * m[i] + (1.0f - s->beta1) * g;
        v[i] = s->beta2 * v[i] + (1.0f - s->beta2) * g * g;
        float step = (m[i] * correction1) / (sqrtf(v[i] * correction2) + s->epsilon);
        weights[i] -= s->learning_rate * (step + s->weight_decay * weights[i]);
    }
}

static DR_HOT void adamw_block(float *weights, const float *gradient, float *m, float *v, int64_t begin,
                               int64_t end, float scale, const dr_adamw_settings *s, float correction1,
                               float correction2) {
    adamw_range(weights, gradient, m, v, begin, end, scale, s, correction1, correction2);
}

static void adamw(dr_backend *b, float *weights, const float *gradient, float *m, float *v, int64_t n,
                  float gradient_scale, const dr_adamw_settings *settings) {
    float correction1 = (float)(1.0 / (1.0 - pow(settings->beta1, (double)settings->t)));
    float correction2 = (float)(1.0 / (1.0 - pow(settings->beta2, (double)settings->t)));
    enum { BLOCK = 65536 };
#pragma omp parallel for num_threads(b->n_threads) schedule(static) if (b->n_threads > 1)
    for (int64_t i = 0; i < n; i += BLOCK)
        adamw_block(weights, gradient, m, v, i, i + BLOCK < n ? i + BLOCK : n, gradient_scale, settings,
                    correction1, correction2);
}

// Each block in 8 double lanes.
static void sums_of_squares(dr_backend *b, const float *x, int64_t n, double *out) {
#pragma omp parallel for num_threads(b->n_threads) schedule(static) if (b->n_threads > 1)
    for (int64_t block = 0; block < dr_square_blocks(n); block++) {
        int64_t begin = block * DR_SQUARE_BLOCK, rest = n - begin;
        int64_t count = rest < DR_SQUARE_BLOCK ? rest : DR_SQUARE_BLOCK;
        double lanes[8] = {0}, sum = 0;
        for (int64_t i = 0; i < count; i++) lanes[i & 7] += (double)x[begin + i] * x[begin + i];
        for (int l = 0; l < 8; l++) sum += lanes[l];
        out[block] = sum;
    }
}

void dr_cpu_fill_elementwise(dr_backend_ops *ops) {
    ops->rope = rope;
    ops->gelu_forward = gelu_forward;
    ops->gelu_backward = gelu_backward;
    ops->add = add;
    ops->embedding_forward = embedding_forward;
    ops->embedding_backward = embedding_backward;
    ops->adamw = adamw;
    ops->sums_of_squares = sums_of_squares;
}
