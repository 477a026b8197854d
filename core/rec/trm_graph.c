// One batch through the retrieval model, forward and backward: frequency-domain fusion, gates, transformer,
// query fusion. Everything per request is computed by one thread in a fixed order; sums over requests run in
// request order.
#include <math.h>
#include <string.h>

#include "core/base/alloc.h"
#include "core/base/hot.h"
#include "core/rec/trm_internal.h"

static inline __attribute__((always_inline)) uint32_t mix32(uint32_t h) {
    h ^= h >> 16;
    h *= 0x7FEB352Du;
    h ^= h >> 15;
    h *= 0x846CA68Bu;
    return h ^ h >> 16;
}

// Inverted dropout with a mask that is a function of (key, element): the backward draws it again.
static DR_HOT void dropout_range(float *x, int64_t begin, int64_t end, uint32_t threshold, float scale,
                                 uint32_t key) {
    for (int64_t i = begin; i < end; i++) {
        float kept = mix32((uint32_t)i * 0x9E3779B9u ^ key) < threshold ? 0.0f : scale;
        x[i] *= kept;
    }
}

static void dropout(float *x, int64_t n, float rate, uint32_t key) {
    enum { BLOCK = 16384 };
    uint32_t threshold = (uint32_t)(rate * 4294967296.0f);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i += BLOCK)
        dropout_range(x, i, i + BLOCK < n ? i + BLOCK : n, threshold, 1.0f / (1.0f - rate), key);
}

static dr_status take(dr_backend *b, float **out, const char *label, int64_t count) {
    return dr_memory_create(b, out, label, count, sizeof(float));
}

static int64_t widest(const dr_trm_config *c) {
    return 3 * c->hidden > c->inner ? 3 * c->hidden : c->inner;
}

dr_status dr_trm_batch_create(const dr_trm *trm, int64_t capacity, bool trains, trm_batch **out) {
    const dr_trm_config *c = &trm->config;
    int64_t L = c->max_history, D = c->hidden, P = capacity * L, K2 = 2 * (L / 2 + 1);
    trm_batch *b = NULL;
    DR_TRY(dr_alloc(&b, "retrieval batch", 1, sizeof *b));
    b->backend = trm->backend;
    b->capacity = capacity;
    struct {
        float **pointer;
        int64_t count;
    } plan[] = {{&b->x_id, P * D},
                {&b->x_text, P * D},
                {&b->f_id, capacity * K2 * D},
                {&b->f_text, capacity * K2 * D},
                {&b->a, P * D},
                {&b->b, P * D},
                {&b->gate_a, P},
                {&b->gate_b, P},
                {&b->h, P * D},
                {&b->normed, P * D},
                {&b->mean, P},
                {&b->inv, P},
                {&b->residual, capacity * D},
                {&b->last, capacity * D},
                {&b->query, capacity * D},
                {&b->fused, capacity * D},
                {&b->out_mean, capacity},
                {&b->out_inv, capacity}};
    dr_status status = dr_memory_create(b->backend, &b->inputs, "retrieval inputs",
                                        trm_inputs_size(capacity, L), sizeof *b->inputs);
    for (size_t i = 0; i < sizeof plan / sizeof *plan && status == DR_OK; i++)
        status = take(b->backend, plan[i].pointer, "retrieval activations", plan[i].count);
    for (int32_t l = 0; l < c->n_layers && status == DR_OK; l++) {
        trm_layer_pass *p = &b->layers[l];
        bool is_last = l + 1 == c->n_layers;
        int64_t Q = is_last ? capacity : P, Lq = is_last ? 1 : L;
        if (l == 0) p->x = b->normed; // the others were made by the layer before
        struct {
            float **pointer;
            int64_t count;
        } more[] = {{&p->qkv, P * 3 * D},    {&p->weights, capacity * c->n_heads * Lq * L},
                    {&p->mixed, Q * D},      {&p->projected, Q * D},
                    {&p->mean1, Q},          {&p->inv1, Q},
                    {&p->middle, Q * D},     {&p->up, Q * c->inner},
                    {&p->act, Q * c->inner}, {&p->summed, Q * D},
                    {&p->mean2, Q},          {&p->inv2, Q}};
        for (size_t i = 0; i < sizeof more / sizeof *more && status == DR_OK; i++)
            status = take(b->backend, more[i].pointer, "retrieval activations", more[i].count);
        if (!is_last && status == DR_OK)
            status = take(b->backend, &b->layers[l + 1].x, "retrieval activations", P * D);
        if (l > 0 && !p->x) status = DR_FAIL(DR_ERR_INTERNAL, "retrieval layer %d has no input", l);
    }
    float **gradients[] = {&b->d1, &b->d2, &b->d3, &b->d4};
    for (int i = 0; i < 4 && trains && status == DR_OK; i++)
        status = take(b->backend, gradients[i], "retrieval gradients", P * widest(c));
    if (status != DR_OK) {
        dr_trm_batch_destroy(b);
        return status;
    }
    *out = b;
    return DR_OK;
}

void dr_trm_batch_destroy(trm_batch *b) {
    if (!b) return;
    void (*give_back)(dr_backend *, void *) = b->backend->ops->memory_destroy;
    float *plain[] = {b->x_id,     b->x_text,  b->f_id, b->f_text, b->a,    b->b,     b->gate_a,
                      b->gate_b,   b->h,       b->mean, b->inv,    b->last, b->query, b->fused,
                      b->out_mean, b->out_inv, b->d1,   b->d2,     b->d3,   b->d4,    b->residual};
    for (size_t i = 0; i < sizeof plain / sizeof *plain; i++) give_back(b->backend, plain[i]);
    for (int l = 0; l < TRM_MAX_LAYERS; l++) {
        trm_layer_pass *p = &b->layers[l];
        float *owned[] = {p->x,      p->qkv, p->weights, p->mixed,  p->projected, p->mean1, p->inv1,
                          p->middle, p->up,  p->act,     p->summed, p->mean2,     p->inv2};
        for (size_t i = 0; i < sizeof owned / sizeof *owned; i++)
            give_back(b->backend, owned[i]); // layer 0's x is `normed`
    }
    give_back(b->backend, b->inputs);
    dr_free(b);
}

dr_status dr_trm_lay_out(const dr_trm *trm, const dr_trm_query *queries, int64_t B, trm_inputs out) {
    const dr_trm_config *c = &trm->config;
    int64_t L = c->max_history;
    for (int64_t q = 0; q < B; q++) {
        DR_CHECK(queries[q].n_history > 0, DR_ERR_RANGE, "retrieval: request %lld has an empty history",
                 (long long)q);
        int32_t n = queries[q].n_history < L ? queries[q].n_history : (int32_t)L;
        const int32_t *items = queries[q].history + queries[q].n_history - n;
        out.lengths[q] = n;
        out.last[q] = (int32_t)(q * L) + n - 1;
        for (int32_t l = 0; l < L; l++) {
            int32_t item = l < n ? items[l] : 0;
            DR_CHECK(item >= (l < n) && item <= c->n_items, DR_ERR_RANGE,
                     "retrieval: request %lld names item %d, expected 1 to %d", (long long)q, item,
                     c->n_items);
            out.ids[q * L + l] = item;
        }
    }
    return DR_OK;
}

void dr_trm_batch_gather(const dr_trm *trm, trm_batch *t, int64_t B, const float *adapted,
                         const int32_t *rows) {
    int64_t L = trm->config.max_history, D = trm->config.hidden;
    dr_backend *b = trm->backend;
    DR_ASSERT(B <= t->capacity);
    t->B = B;
    t->in = trm_inputs_of(t->inputs, B, L);
    b->ops->embedding_forward(b, trm->params + trm->items, t->in.ids, B * L, D, t->x_id);
    b->ops->embedding_forward(b, adapted, rows ? rows : t->in.ids, B * L, D, t->x_text);
}

// out (rows, D) = mᵀ · x for m (n, rows), x (n, D).
static DR_HOT void small_product(const float *m, int64_t rows, int64_t n, const float *x, int64_t D,
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

static inline __attribute__((always_inline)) float row_dot(const float *x, const float *y, int64_t D) {
    float lanes[16] = {0};
    int64_t d = 0;
    for (; d + 16 <= D; d += 16)
        for (int l = 0; l < 16; l++) lanes[l] += x[d + l] * y[d + l];
    for (int l = 0; d + l < D; l++) lanes[l] += x[d + l] * y[d + l];
    for (int w = 8; w > 0; w /= 2)
        for (int l = 0; l < w; l++) lanes[l] += lanes[l + w];
    return lanes[0];
}

static void fuse(const dr_trm *trm, trm_batch *t) {
    const float *p = trm->params;
    const dr_fusion fusion = {.B = t->B,
                              .L = trm->config.max_history,
                              .D = trm->config.hidden,
                              .x = {t->x_id, t->x_text},
                              .dft = trm->dft,
                              .inverse = trm->inverse,
                              .filter = p + trm->filter,
                              .gate = {p + trm->item_gate, p + trm->fusion_gate},
                              .bias = {p + trm->item_gate_bias, p + trm->fusion_gate_bias},
                              .positions = p + trm->positions,
                              .spectra = {t->f_id, t->f_text},
                              .filtered = {t->a, t->b},
                              .openness = {t->gate_a, t->gate_b},
                              .out = t->h};
    trm->backend->ops->fusion_forward(trm->backend, &fusion);
}

// Softmax attention of each request; the last layer has one query row, the last item's.
static void attend(const dr_trm *trm, const trm_batch *t, const trm_layer_pass *p, bool is_last) {
    const dr_trm_config *c = &trm->config;
    const dr_padded_attention attention = {.B = t->B,
                                           .L = c->max_history,
                                           .H = c->n_heads,
                                           .d = c->hidden / c->n_heads,
                                           .last_only = is_last,
                                           .qkv = p->qkv,
                                           .lengths = t->in.lengths,
                                           .weights = p->weights,
                                           .out = p->mixed};
    trm->backend->ops->padded_attention(trm->backend, &attention);
}

static dr_status layer_forward(dr_trm *trm, trm_batch *t, int32_t l, float *out, dr_rng *rng) {
    const dr_trm_config *c = &trm->config;
    const trm_layer *w = &trm->layers[l];
    trm_layer_pass *p = &t->layers[l];
    dr_backend *b = trm->backend;
    bool is_last = l + 1 == c->n_layers;
    int64_t D = c->hidden, P = t->B * c->max_history, Q = is_last ? t->B : P;
    const float *params = trm->params;
    p->rows = Q;
    DR_TRY(b->ops->linear_forward(b, w->w_qkv, p->x, P, params + w->qkv_bias, p->qkv));
    attend(trm, t, p, is_last);
    DR_TRY(b->ops->linear_forward(b, w->w_out, p->mixed, Q, params + w->out_bias, p->projected));
    if (rng) dropout(p->projected, Q * D, c->dropout, p->drop1 = dr_rng_bits(rng));
    if (is_last) b->ops->embedding_forward(b, p->x, t->in.last, Q, D, t->residual);
    b->ops->add(b, is_last ? t->residual : p->x, Q * D, p->projected);
    b->ops->layernorm_forward(b, p->projected, params + w->norm1, params + w->norm1_bias, Q, D,
                              c->layernorm_eps, p->middle, p->mean1, p->inv1);
    DR_TRY(b->ops->linear_forward(b, w->w_up, p->middle, Q, params + w->up_bias, p->up));
    b->ops->gelu_forward(b, p->up, Q * c->inner, p->act);
    DR_TRY(b->ops->linear_forward(b, w->w_down, p->act, Q, params + w->down_bias, p->summed));
    if (rng) dropout(p->summed, Q * D, c->dropout, p->drop2 = dr_rng_bits(rng));
    b->ops->add(b, p->middle, Q * D, p->summed);
    b->ops->layernorm_forward(b, p->summed, params + w->norm2, params + w->norm2_bias, Q, D, c->layernorm_eps,
                              out, p->mean2, p->inv2);
    return DR_OK;
}

dr_status dr_trm_batch_forward(dr_trm *trm, trm_batch *t, const float *query_text, dr_rng *rng) {
    const dr_trm_config *c = &trm->config;
    dr_backend *b = trm->backend;
    int64_t D = c->hidden, P = t->B * c->max_history;
    fuse(trm, t);
    b->ops->layernorm_forward(b, t->h, trm->params + trm->norm, trm->params + trm->norm_bias, P, D,
                              c->layernorm_eps, t->normed, t->mean, t->inv);
    t->drop = rng ? dr_rng_bits(rng) | 1u : 0; // 0: this pass has no dropout
    if (rng) dropout(t->normed, P * D, c->dropout, t->drop);
    for (int32_t l = 0; l < c->n_layers; l++)
        DR_TRY(layer_forward(trm, t, l, l + 1 < c->n_layers ? t->layers[l + 1].x : t->last, rng));
    b->ops->copy(b, t->query, t->last, (size_t)(t->B * D) * sizeof(float));
    if (query_text) b->ops->add(b, query_text, t->B * D, t->query);
    b->ops->layernorm_forward(b, t->query, trm->params + trm->out_norm, trm->params + trm->out_norm_bias,
                              t->B, D, c->layernorm_eps, t->fused, t->out_mean, t->out_inv);
    return DR_OK;
}

// dqkv (P, 3D) from dmixed (Q, D).
static DR_HOT void attend_backward(const dr_trm *trm, const trm_batch *t, const trm_layer_pass *p, int64_t q,
                                   bool is_last, const float *dmixed, float *dqkv) {
    const dr_trm_config *c = &trm->config;
    int64_t L = c->max_history, D = c->hidden, H = c->n_heads, d = D / H, Lq = is_last ? 1 : L;
    float scale = 1.0f / sqrtf((float)d), dw[TRM_MAX_HISTORY];
    memset(dqkv + q * L * 3 * D, 0, (size_t)(L * 3 * D) * sizeof(float));
    for (int64_t h = 0; h < H; h++)
        for (int64_t i = 0; i < Lq; i++) {
            int64_t row = is_last ? t->in.last[q] : q * L + i;
            const float *w = p->weights + ((q * H + h) * Lq + i) * L;
            const float *dout = dmixed + (is_last ? q : q * L + i) * D + h * d,
                        *query = p->qkv + row * 3 * D + h * d;
            float *dquery = dqkv + row * 3 * D + h * d, mean = 0;
            for (int64_t j = 0; j < L; j++) {
                dw[j] = row_dot(dout, p->qkv + (q * L + j) * 3 * D + 2 * D + h * d, d);
                mean += dw[j] * w[j];
            }
            for (int64_t j = 0; j < L; j++) {
                float ds = w[j] * (dw[j] - mean) * scale;
                const float *key = p->qkv + (q * L + j) * 3 * D + D + h * d;
                float *dkey = dqkv + (q * L + j) * 3 * D + D + h * d, *dvalue = dkey + D;
                for (int64_t e = 0; e < d; e++) {
                    dquery[e] += ds * key[e];
                    dkey[e] += ds * query[e];
                    dvalue[e] += w[j] * dout[e];
                }
            }
        }
}

// In: dout (Q, D) gradient of the layer's output, in t->d1. Out: gradient of its input (P, D) in t->d1.
static dr_status layer_backward(dr_trm *trm, trm_batch *t, int32_t l, bool has_dropout, float *gradient) {
    const dr_trm_config *c = &trm->config;
    const trm_layer *w = &trm->layers[l];
    const trm_layer_pass *p = &t->layers[l];
    dr_backend *b = trm->backend;
    bool is_last = l + 1 == c->n_layers;
    int64_t D = c->hidden, L = c->max_history, P = t->B * L, Q = p->rows, I = c->inner;
    const float *params = trm->params;
    float *dsum = t->d2, *dact = t->d3, *dmiddle = t->d4;
    memset(dsum, 0, (size_t)(Q * D) * sizeof(float));
    b->ops->layernorm_backward(b, t->d1, p->summed, params + w->norm2, p->mean2, p->inv2, Q, D, dsum,
                               gradient + w->norm2, gradient + w->norm2_bias);
    memcpy(dmiddle, dsum, (size_t)(Q * D) * sizeof(float)); // the residual branch
    if (has_dropout) dropout(dsum, Q * D, c->dropout, p->drop2);
    DR_TRY(b->ops->linear_backward_input(b, w->w_down, dsum, Q, dact, false));
    DR_TRY(b->ops->linear_backward_weight(b, p->act, dsum, Q, D, I, gradient + w->down,
                                          gradient + w->down_bias));
    b->ops->gelu_backward(b, dact, p->up, Q * I, dact);
    DR_TRY(b->ops->linear_backward_input(b, w->w_up, dact, Q, dmiddle, true));
    DR_TRY(
        b->ops->linear_backward_weight(b, p->middle, dact, Q, I, D, gradient + w->up, gradient + w->up_bias));

    float *dprojected = t->d2, *dmixed = t->d3, *dqkv = t->d4, *dx = t->d1;
    memset(dprojected, 0, (size_t)(Q * D) * sizeof(float));
    b->ops->layernorm_backward(b, dmiddle, p->projected, params + w->norm1, p->mean1, p->inv1, Q, D,
                               dprojected, gradient + w->norm1, gradient + w->norm1_bias);
    memset(dx, 0, (size_t)(P * D) * sizeof(float));
    for (int64_t r = 0; r < Q; r++) // the residual branch, to the rows it came from
        memcpy(dx + (is_last ? t->in.last[r] : r) * D, dprojected + r * D, (size_t)D * sizeof(float));
    if (has_dropout) dropout(dprojected, Q * D, c->dropout, p->drop1);
    DR_TRY(b->ops->linear_backward_input(b, w->w_out, dprojected, Q, dmixed, false));
    DR_TRY(b->ops->linear_backward_weight(b, p->mixed, dprojected, Q, D, D, gradient + w->out,
                                          gradient + w->out_bias));
#pragma omp parallel for schedule(static)
    for (int64_t q = 0; q < t->B; q++) attend_backward(trm, t, p, q, is_last, dmixed, dqkv);
    DR_TRY(b->ops->linear_backward_input(b, w->w_qkv, dqkv, P, dx, true));
    return b->ops->linear_backward_weight(b, p->x, dqkv, P, 3 * D, D, gradient + w->qkv,
                                          gradient + w->qkv_bias);
}

// Per-request part of the fusion's backward: dh (L, D) → dx_id, dx_text; shared sums go to this request's own
// slots.
static DR_HOT void fuse_backward(const dr_trm *trm, const trm_batch *t, int64_t q, const float *dh,
                                 float *dx_id, float *dx_text, float *dfilter, float *dgates, float *work) {
    const dr_trm_config *c = &trm->config;
    int64_t L = c->max_history, D = c->hidden, K = L / 2 + 1, F = 2 * K * D;
    const float *p = trm->params, *f_id = t->f_id + q * F, *f_text = t->f_text + q * F;
    float *da = work, *db = da + L * D, *dg = db + L * D, *df_id = dg + F, *df_text = df_id + F;
    for (int64_t l = 0; l < L; l++) {
        int64_t row = q * L + l;
        const float *a = t->a + row * D, *b = t->b + row * D, *g = dh + l * D;
        float sa = t->gate_a[row], sb = t->gate_b[row];
        float ga = 2.0f * row_dot(g, a, D) * sa * (1.0f - sa),
              gb = 2.0f * row_dot(g, b, D) * sb * (1.0f - sb);
        for (int64_t d = 0; d < D; d++) {
            da[l * D + d] = 2.0f * sa * g[d] + ga * p[trm->item_gate + d];
            db[l * D + d] = 2.0f * sb * g[d] + gb * p[trm->fusion_gate + d];
            dgates[d] += ga * a[d];
            dgates[D + d] += gb * b[d];
        }
        dgates[2 * D] += ga;
        dgates[2 * D + 1] += gb;
    }
    memset(df_id, 0, (size_t)(2 * F) * sizeof(float));
    small_product(trm->inverse, 2 * K, L, da, D, dg);
    complex_backward(dg, f_id, p + trm->filter, true, K, D, df_id, dfilter);
    small_product(trm->inverse, 2 * K, L, db, D, dg);
    complex_backward(dg, f_text, f_id, false, K, D, df_text, df_id);
    small_product(trm->dft, L, 2 * K, df_id, D, dx_id);
    small_product(trm->dft, L, 2 * K, df_text, D, dx_text);
}

enum {
    FUSE_BLOCK = 64
}; // requests of one partial sum; partial sums are added in order, whatever the threads

static dr_status fusion_backward(dr_trm *trm, trm_batch *t, const float *dh, float *dx_id, float *dx_text,
                                 float *gradient) {
    const dr_trm_config *c = &trm->config;
    int64_t L = c->max_history, D = c->hidden, K = L / 2 + 1, F = 2 * K * D, G = 2 * D + 2;
    int64_t n_blocks = (t->B + FUSE_BLOCK - 1) / FUSE_BLOCK, work = 2 * L * D + 3 * F;
    float *sums = NULL;
    DR_TRY(dr_alloc(&sums, "fusion gradients", n_blocks * (F + G + work), sizeof(float)));
#pragma omp parallel for schedule(dynamic)
    for (int64_t block = 0; block < n_blocks; block++) {
        float *mine = sums + block * (F + G + work);
        for (int64_t q = block * FUSE_BLOCK; q < t->B && q < (block + 1) * FUSE_BLOCK; q++)
            fuse_backward(trm, t, q, dh + q * L * D, dx_id + q * L * D, dx_text + q * L * D, mine, mine + F,
                          mine + F + G);
    }
    for (int64_t block = 0; block < n_blocks; block++) {
        const float *mine = sums + block * (F + G + work), *gates = mine + F;
        for (int64_t i = 0; i < F; i++) gradient[trm->filter + i] += mine[i];
        for (int64_t d = 0; d < D; d++) {
            gradient[trm->item_gate + d] += gates[d];
            gradient[trm->fusion_gate + d] += gates[D + d];
        }
        gradient[trm->item_gate_bias] += gates[2 * D];
        gradient[trm->fusion_gate_bias] += gates[2 * D + 1];
    }
    dr_free(sums);
    return DR_OK;
}

dr_status dr_trm_batch_backward(dr_trm *trm, trm_batch *t, const float *dfused, float *gradient,
                                float *dx_text, float *dquery) {
    const dr_trm_config *c = &trm->config;
    dr_backend *b = trm->backend;
    int64_t L = c->max_history, D = c->hidden, P = t->B * L;
    bool has_dropout = t->drop != 0;
    memset(dquery, 0, (size_t)(t->B * D) * sizeof(float));
    b->ops->layernorm_backward(b, dfused, t->query, trm->params + trm->out_norm, t->out_mean, t->out_inv,
                               t->B, D, dquery, gradient + trm->out_norm, gradient + trm->out_norm_bias);
    memcpy(t->d1, dquery, (size_t)(t->B * D) * sizeof(float));
    for (int32_t l = c->n_layers - 1; l >= 0; l--) DR_TRY(layer_backward(trm, t, l, has_dropout, gradient));
    if (has_dropout) dropout(t->d1, P * D, c->dropout, t->drop);
    float *dh = t->d2, *dx_id = t->d3;
    memset(dh, 0, (size_t)(P * D) * sizeof(float));
    b->ops->layernorm_backward(b, t->d1, t->h, trm->params + trm->norm, t->mean, t->inv, P, D, dh,
                               gradient + trm->norm, gradient + trm->norm_bias);
    for (int64_t p = 0; p < P; p++)
        for (int64_t d = 0; d < D; d++) gradient[trm->positions + p % L * D + d] += dh[p * D + d];
    DR_TRY(fusion_backward(trm, t, dh, dx_id, dx_text, gradient));
    for (int64_t p = 0; p < P; p++) { // row 0 is padding and stays as it is
        if (t->in.ids[p] == 0) continue;
        float *row = gradient + trm->items + (int64_t)t->in.ids[p] * D;
        for (int64_t d = 0; d < D; d++) row[d] += dx_id[p * D + d];
    }
    return DR_OK;
}
