// The gradients of the retrieval model's ops, and what only its training computes. Everything of a request,
// or of a row, is computed by one thread in a fixed order; sums over requests are those of blocks of
// requests, added in order.
#include "core/compute/cpu_internal.h"
#include "core/compute/dropout.h"

enum { ELEMENT_BLOCK = 16384, FUSION_BLOCK = 64 /* requests of one partial sum */ };

static int64_t block_end(int64_t begin, int64_t n) {
    return begin + ELEMENT_BLOCK < n ? begin + ELEMENT_BLOCK : n;
}

// ---- dropout ----

static DR_HOT void dropout_range(const float *x, int64_t begin, int64_t end, dr_dropout_mask mask, float *y) {
    for (int64_t i = begin; i < end; i++) y[i] = x[i] * dr_dropout_factor(mask, i);
}

static void dropout(dr_backend *b, const float *x, int64_t n, float rate, uint32_t key, float *y) {
    const dr_dropout_mask mask = dr_dropout_mask_of(rate, key);
#pragma omp parallel for num_threads(b->n_threads) schedule(static) if (b->n_threads > 1 && n > ELEMENT_BLOCK)
    for (int64_t i = 0; i < n; i += ELEMENT_BLOCK) dropout_range(x, i, block_end(i, n), mask, y);
}

// ---- fusion ----

// out (rows, D) = mᵀ · x for m (n, rows), x (n, D).
static DR_HOT void transposed_product(const float *m, int64_t rows, int64_t n, const float *x, int64_t D,
                                      float *out) {
    for (int64_t i = 0; i < rows; i++) {
        float *to = out + i * D;
        memset(to, 0, (size_t)D * sizeof(float));
        for (int64_t j = 0; j < n; j++) {
            float w = m[j * rows + i];
            const float *from = x + j * D;
            for (int64_t d = 0; d < D; d++) to[d] += w * from[d];
        }
    }
}

// Gradient of the complex product g = f ⊙ w, (2K, D): both as real rows then imaginary rows, or w
// interleaved (K, D, 2) when `interleaved`: df += dg ⊙ conj(w), dw += dg ⊙ conj(f).
static DR_HOT void complex_backward(const float *dg, const float *f, const float *w, bool interleaved,
                                    int64_t K, int64_t D, float *df, float *dw) {
    for (int64_t k = 0; k < K; k++)
        for (int64_t d = 0; d < D; d++) {
            int64_t re = k * D + d, im = (K + k) * D + d;
            int64_t wre = interleaved ? 2 * re : re, wim = interleaved ? 2 * re + 1 : im;
            df[re] += dg[re] * w[wre] + dg[im] * w[wim];
            df[im] += dg[im] * w[wre] - dg[re] * w[wim];
            dw[wre] += dg[re] * f[re] + dg[im] * f[im];
            dw[wim] += dg[im] * f[re] - dg[re] * f[im];
        }
}

// Sums of a block of requests, and scratch of one request; sizes in floats.
typedef struct fusion_sizes {
    int64_t spectrum, gates, work; // 2K · D: a spectrum, or the filter; 2D + 2; both da and db, three spectra
} fusion_sizes;

static fusion_sizes sizes_of(const dr_fusion *t) {
    int64_t spectrum = 2 * (t->L / 2 + 1) * t->D;
    return (fusion_sizes){spectrum, 2 * t->D + 2, 2 * t->L * t->D + 3 * spectrum};
}

// One request's dx; its part of the shared sums is added to `dfilter` and `dgates`.
static DR_HOT void fuse_request_backward(const dr_fusion *t, const dr_fusion_gradient *out, int64_t q,
                                         float *dfilter, float *dgates, float *work) {
    int64_t L = t->L, D = t->D, K = L / 2 + 1, F = 2 * K * D;
    const float *dh = out->dout + q * L * D, *first = t->spectra[0] + q * F, *second = t->spectra[1] + q * F;
    float *da = work, *db = da + L * D, *dg = db + L * D, *dfirst = dg + F, *dsecond = dfirst + F;
    for (int64_t l = 0; l < L; l++) {
        int64_t row = q * L + l;
        const float *a = t->filtered[0] + row * D, *b = t->filtered[1] + row * D, *g = dh + l * D;
        float sa = t->openness[0][row], sb = t->openness[1][row];
        float ga = 2.0f * dr_dot(g, a, D) * sa * (1.0f - sa), gb = 2.0f * dr_dot(g, b, D) * sb * (1.0f - sb);
        for (int64_t d = 0; d < D; d++) {
            da[l * D + d] = 2.0f * sa * g[d] + ga * t->gate[0][d];
            db[l * D + d] = 2.0f * sb * g[d] + gb * t->gate[1][d];
            dgates[d] += ga * a[d];
            dgates[D + d] += gb * b[d];
        }
        dgates[2 * D] += ga;
        dgates[2 * D + 1] += gb;
    }
    memset(dfirst, 0, (size_t)(2 * F) * sizeof(float));
    transposed_product(t->inverse, 2 * K, L, da, D, dg);
    complex_backward(dg, first, t->filter, true, K, D, dfirst, dfilter);
    transposed_product(t->inverse, 2 * K, L, db, D, dg);
    complex_backward(dg, second, first, false, K, D, dsecond, dfirst);
    transposed_product(t->dft, L, 2 * K, dfirst, D, out->dx[0] + q * L * D);
    transposed_product(t->dft, L, 2 * K, dsecond, D, out->dx[1] + q * L * D);
}

static void add_fusion_sums(const dr_fusion *t, const fusion_sizes *s, const float *mine,
                            const dr_fusion_gradient *out) {
    const float *gates = mine + s->spectrum;
    for (int64_t i = 0; i < s->spectrum; i++) out->dfilter[i] += mine[i];
    for (int i = 0; i < 2; i++) {
        for (int64_t d = 0; d < t->D; d++) out->dgate[i][d] += gates[i * t->D + d];
        *out->dbias[i] += gates[2 * t->D + i];
    }
}

static int64_t block_count(int64_t B) {
    return (B + FUSION_BLOCK - 1) / FUSION_BLOCK;
}

int64_t dr_cpu_fusion_floats(const dr_pass_shape *s) {
    const fusion_sizes sizes = sizes_of(&(dr_fusion){.L = s->n_positions, .D = s->n_columns});
    return block_count(s->n_requests) * (sizes.spectrum + sizes.gates + sizes.work);
}

static dr_status fusion_backward(dr_backend *b, const dr_fusion *t, const dr_fusion_gradient *out) {
    const fusion_sizes s = sizes_of(t);
    const int64_t n_blocks = block_count(t->B), each = s.spectrum + s.gates + s.work;
    dr_scratch *scratch = &dr_cpu_state_of(b)->shared;
    DR_TRY(dr_scratch_reserve(scratch, n_blocks * each));
#pragma omp parallel for num_threads(b->n_threads) schedule(dynamic) if (b->n_threads > 1 && n_blocks > 1)
    for (int64_t block = 0; block < n_blocks; block++) {
        float *mine = scratch->data + block * each, *gates = mine + s.spectrum;
        memset(mine, 0, (size_t)(s.spectrum + s.gates) * sizeof(float));
        for (int64_t q = block * FUSION_BLOCK; q < t->B && q < (block + 1) * FUSION_BLOCK; q++)
            fuse_request_backward(t, out, q, mine, gates, gates + s.gates);
    }
    for (int64_t block = 0; block < n_blocks; block++)
        add_fusion_sums(t, &s, scratch->data + block * each, out);
    for (int64_t row = 0; row < t->B * t->L; row++)
        for (int64_t d = 0; d < t->D; d++)
            out->dpositions[row % t->L * t->D + d] += out->dout[row * t->D + d];
    return DR_OK;
}

// ---- attention ----

static DR_HOT void attend_request_backward(const dr_padded_attention *t, int64_t q, const float *dout,
                                           float *dqkv) {
    int64_t L = t->L, H = t->H, d = t->d, D = H * d, Q = t->last_only ? 1 : L;
    float scale = 1.0f / sqrtf((float)d), dw[DR_FUSION_POSITIONS];
    memset(dqkv + q * L * 3 * D, 0, (size_t)(L * 3 * D) * sizeof(float));
    for (int64_t h = 0; h < H; h++)
        for (int64_t i = 0; i < Q; i++) {
            int64_t row = q * L + (t->last_only ? t->lengths[q] - 1 : i);
            const float *w = t->weights + ((q * H + h) * Q + i) * L;
            const float *g = dout + (q * Q + i) * D + h * d, *query = t->qkv + row * 3 * D + h * d;
            float *dquery = dqkv + row * 3 * D + h * d, mean = 0;
            for (int64_t j = 0; j < L; j++) {
                dw[j] = dr_dot(g, t->qkv + (q * L + j) * 3 * D + 2 * D + h * d, d);
                mean += dw[j] * w[j];
            }
            for (int64_t j = 0; j < L; j++) {
                float ds = w[j] * (dw[j] - mean) * scale;
                const float *key = t->qkv + (q * L + j) * 3 * D + D + h * d;
                float *dkey = dqkv + (q * L + j) * 3 * D + D + h * d, *dvalue = dkey + D;
                for (int64_t e = 0; e < d; e++) {
                    dquery[e] += ds * key[e];
                    dkey[e] += ds * query[e];
                    dvalue[e] += w[j] * g[e];
                }
            }
        }
}

static void padded_attention_backward(dr_backend *b, const dr_padded_attention *attention, const float *dout,
                                      float *dqkv) {
#pragma omp parallel for num_threads(b->n_threads) schedule(static) if (b->n_threads > 1 && attention->B > 1)
    for (int64_t q = 0; q < attention->B; q++) attend_request_backward(attention, q, dout, dqkv);
}

// ---- rows ----

static void mixture_backward(dr_backend *b, const float *dy, const float *weights, const float *z, int64_t T,
                             int64_t E, int64_t D, float *dz, float *dgate) {
#pragma omp parallel for num_threads(b->n_threads) schedule(static) if (b->n_threads > 1 && T > 1)
    for (int64_t t = 0; t < T; t++) {
        const float *w = weights + t * E, *g = dy + t * D;
        float dw[DR_MIXTURE_MOST], mean = 0;
        for (int64_t e = 0; e < E; e++) {
            const float *from = z + (t * E + e) * D;
            float *to = dz + (t * E + e) * D, sum = 0;
            for (int64_t d = 0; d < D; d++) {
                to[d] = w[e] * g[d];
                sum += from[d] * g[d];
            }
            dw[e] = sum;
            mean += sum * w[e];
        }
        for (int64_t e = 0; e < E; e++) dgate[t * E + e] = w[e] * (dw[e] - mean);
    }
}

static float softplus(float x) {
    return x > 20.0f ? x : log1pf(expf(x));
}

static void noisy_gate_forward(dr_backend *b, const float *noise, const float *spread, int64_t n,
                               float *gate) {
#pragma omp parallel for num_threads(b->n_threads) schedule(static) if (b->n_threads > 1 && n > ELEMENT_BLOCK)
    for (int64_t i = 0; i < n; i++) gate[i] += noise[i] * (softplus(spread[i]) + DR_LEAST_NOISE);
}

static void noisy_gate_backward(dr_backend *b, const float *dgate, const float *noise, const float *spread,
                                int64_t n, float *dspread) {
#pragma omp parallel for num_threads(b->n_threads) schedule(static) if (b->n_threads > 1 && n > ELEMENT_BLOCK)
    for (int64_t i = 0; i < n; i++) {
        float slope = 1.0f / (1.0f + expf(-spread[i]));
        dspread[i] = dgate[i] * noise[i] * slope;
    }
}

static float inverse_length(float length) {
    return length > DR_LEAST_LENGTH ? 1.0f / length : 0.0f;
}

static void normalize_rows_forward(dr_backend *b, const float *x, int64_t T, int64_t D, float *unit,
                                   float *lengths) {
#pragma omp parallel for num_threads(b->n_threads) schedule(static) if (b->n_threads > 1 && T > 1)
    for (int64_t t = 0; t < T; t++) {
        float sum = 0;
        for (int64_t d = 0; d < D; d++) sum += x[t * D + d] * x[t * D + d];
        lengths[t] = sqrtf(sum);
        float inv = inverse_length(lengths[t]);
        for (int64_t d = 0; d < D; d++) unit[t * D + d] = x[t * D + d] * inv;
    }
}

static void normalize_rows_backward(dr_backend *b, const float *dunit, const float *unit,
                                    const float *lengths, int64_t T, int64_t D, float *dx) {
#pragma omp parallel for num_threads(b->n_threads) schedule(static) if (b->n_threads > 1 && T > 1)
    for (int64_t t = 0; t < T; t++) {
        float dot = 0, inv = inverse_length(lengths[t]);
        for (int64_t d = 0; d < D; d++) dot += dunit[t * D + d] * unit[t * D + d];
        for (int64_t d = 0; d < D; d++) dx[t * D + d] += (dunit[t * D + d] - unit[t * D + d] * dot) * inv;
    }
}

static void cross_entropy_row(float *z, int32_t target, int64_t T, int64_t V, float inv_temperature,
                              double *loss) {
    float top = -INFINITY;
    for (int64_t j = 1; j < V; j++) top = z[j] > top ? z[j] : top;
    double total = 0;
    *loss = -(double)(z[target] - top) * inv_temperature;
    for (int64_t j = 1; j < V; j++) {
        z[j] = expf((z[j] - top) * inv_temperature);
        total += z[j];
    }
    *loss += log(total);
    float scale = (float)(1.0 / total / (double)T) * inv_temperature;
    z[0] = 0;
    for (int64_t j = 1; j < V; j++) z[j] *= scale;
    z[target] -= inv_temperature / (float)T;
}

static void cross_entropy(dr_backend *b, float *logits, const int32_t *targets, int64_t T, int64_t V,
                          float inv_temperature, double *losses) {
#pragma omp parallel for num_threads(b->n_threads) schedule(static) if (b->n_threads > 1 && T > 1)
    for (int64_t t = 0; t < T; t++)
        cross_entropy_row(logits + t * V, targets[t], T, V, inv_temperature, losses + t);
}

void dr_cpu_fill_retrieval_backward(dr_backend_ops *ops) {
    ops->dropout = dropout;
    ops->fusion_backward = fusion_backward;
    ops->padded_attention_backward = padded_attention_backward;
    ops->mixture_backward = mixture_backward;
    ops->noisy_gate_forward = noisy_gate_forward;
    ops->noisy_gate_backward = noisy_gate_backward;
    ops->normalize_rows_forward = normalize_rows_forward;
    ops->normalize_rows_backward = normalize_rows_backward;
    ops->cross_entropy = cross_entropy;
}
