// One batch through the retrieval model, forward and backward: frequency-domain fusion, gates, transformer,
// query fusion. All of it ops of the backend.
#include "core/base/alloc.h"
#include "core/rec/trm_internal.h"

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

// The lists of dr_trm_batch_create, added up.
int64_t dr_trm_batch_memory(const dr_trm_config *c, int64_t capacity, bool trains) {
    int64_t L = c->max_history, D = c->hidden, P = capacity * L, K2 = 2 * (L / 2 + 1);
    int64_t floats = P * (6 * D + 4) + capacity * (2 * K2 * D + 4 * D + 2);
    for (int32_t l = 0; l < c->n_layers; l++) {
        bool is_last = l + 1 == c->n_layers;
        int64_t Q = is_last ? capacity : P, Lq = is_last ? 1 : L;
        floats += P * 3 * D + capacity * c->n_heads * Lq * L + Q * (4 * D + 4 + 2 * c->inner);
        if (!is_last) floats += P * D;
    }
    if (trains) floats += 4 * P * widest(c);
    return floats * (int64_t)sizeof(float) + trm_inputs_size(capacity, L) * (int64_t)sizeof(int32_t);
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

static dr_fusion fusion_of(const dr_trm *trm, const trm_batch *t) {
    const float *p = trm->params;
    return (dr_fusion){.B = t->B,
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
}

// Softmax attention of each request; the last layer has one query row, the last item's.
static dr_padded_attention attention_of(const dr_trm *trm, const trm_batch *t, int32_t l) {
    const dr_trm_config *c = &trm->config;
    const trm_layer_pass *p = &t->layers[l];
    return (dr_padded_attention){.B = t->B,
                                 .L = c->max_history,
                                 .H = c->n_heads,
                                 .d = c->hidden / c->n_heads,
                                 .last_only = l + 1 == c->n_layers,
                                 .qkv = p->qkv,
                                 .lengths = t->in.lengths,
                                 .weights = p->weights,
                                 .out = p->mixed};
}

// In place. The backward pass draws the same mask again.
static void drop(dr_trm *trm, float *x, int64_t n, uint32_t key) {
    trm->backend->ops->dropout(trm->backend, x, n, trm->config.dropout, key, x);
}

static dr_status layer_forward(dr_trm *trm, trm_batch *t, int32_t l, float *out, dr_rng *rng) {
    const dr_trm_config *c = &trm->config;
    const trm_layer *w = &trm->layers[l];
    trm_layer_pass *p = &t->layers[l];
    dr_backend *b = trm->backend;
    bool is_last = l + 1 == c->n_layers;
    int64_t D = c->hidden, P = t->B * c->max_history, Q = is_last ? t->B : P;
    const float *params = trm->params;
    const dr_padded_attention attention = attention_of(trm, t, l);
    p->rows = Q;
    DR_TRY(b->ops->linear_forward(b, w->w_qkv, p->x, P, params + w->qkv_bias, p->qkv));
    b->ops->padded_attention(b, &attention);
    DR_TRY(b->ops->linear_forward(b, w->w_out, p->mixed, Q, params + w->out_bias, p->projected));
    if (rng) drop(trm, p->projected, Q * D, p->drop1 = dr_rng_bits(rng));
    if (is_last) b->ops->embedding_forward(b, p->x, t->in.last, Q, D, t->residual);
    b->ops->add(b, is_last ? t->residual : p->x, Q * D, p->projected);
    b->ops->layernorm_forward(b, p->projected, params + w->norm1, params + w->norm1_bias, Q, D,
                              c->layernorm_eps, p->middle, p->mean1, p->inv1);
    DR_TRY(b->ops->linear_forward(b, w->w_up, p->middle, Q, params + w->up_bias, p->up));
    b->ops->gelu_forward(b, p->up, Q * c->inner, p->act);
    DR_TRY(b->ops->linear_forward(b, w->w_down, p->act, Q, params + w->down_bias, p->summed));
    if (rng) drop(trm, p->summed, Q * D, p->drop2 = dr_rng_bits(rng));
    b->ops->add(b, p->middle, Q * D, p->summed);
    b->ops->layernorm_forward(b, p->summed, params + w->norm2, params + w->norm2_bias, Q, D, c->layernorm_eps,
                              out, p->mean2, p->inv2);
    return DR_OK;
}

dr_status dr_trm_batch_forward(dr_trm *trm, trm_batch *t, const float *query_text, dr_rng *rng) {
    const dr_trm_config *c = &trm->config;
    dr_backend *b = trm->backend;
    int64_t D = c->hidden, P = t->B * c->max_history;
    const dr_fusion fusion = fusion_of(trm, t);
    b->ops->fusion_forward(b, &fusion);
    b->ops->layernorm_forward(b, t->h, trm->params + trm->norm, trm->params + trm->norm_bias, P, D,
                              c->layernorm_eps, t->normed, t->mean, t->inv);
    t->drop = rng ? dr_rng_bits(rng) | 1u : 0; // 0: this pass has no dropout
    if (rng) drop(trm, t->normed, P * D, t->drop);
    for (int32_t l = 0; l < c->n_layers; l++)
        DR_TRY(layer_forward(trm, t, l, l + 1 < c->n_layers ? t->layers[l + 1].x : t->last, rng));
    b->ops->copy(b, t->query, t->last, trm_bytes(t->B * D));
    if (query_text) b->ops->add(b, query_text, t->B * D, t->query);
    b->ops->layernorm_forward(b, t->query, trm->params + trm->out_norm, trm->params + trm->out_norm_bias,
                              t->B, D, c->layernorm_eps, t->fused, t->out_mean, t->out_inv);
    return DR_OK;
}

// From dout (Q, D), the gradient of the layer's output in t->d1, to that of its first norm's output in t->d4.
static dr_status feed_forward_backward(dr_trm *trm, trm_batch *t, int32_t l, float *gradient) {
    const trm_layer *w = &trm->layers[l];
    const trm_layer_pass *p = &t->layers[l];
    dr_backend *b = trm->backend;
    int64_t D = trm->config.hidden, I = trm->config.inner, Q = p->rows;
    float *dsum = t->d2, *dact = t->d3, *dmiddle = t->d4;
    b->ops->zero(b, dsum, trm_bytes(Q * D));
    b->ops->layernorm_backward(b, t->d1, p->summed, trm->params + w->norm2, p->mean2, p->inv2, Q, D, dsum,
                               gradient + w->norm2, gradient + w->norm2_bias);
    b->ops->copy(b, dmiddle, dsum, trm_bytes(Q * D)); // the residual branch
    if (t->drop) drop(trm, dsum, Q * D, p->drop2);
    DR_TRY(b->ops->linear_backward(b, w->w_down, p->act, dsum, Q, dact, false, gradient + w->down,
                                   gradient + w->down_bias));
    b->ops->gelu_backward(b, dact, p->up, Q * I, dact);
    return b->ops->linear_backward(b, w->w_up, p->middle, dact, Q, dmiddle, true, gradient + w->up,
                                   gradient + w->up_bias);
}

// From t->d4 to the gradient of the layer's input (P, D) in t->d1.
static dr_status attention_backward(dr_trm *trm, trm_batch *t, int32_t l, float *gradient) {
    const trm_layer *w = &trm->layers[l];
    const trm_layer_pass *p = &t->layers[l];
    dr_backend *b = trm->backend;
    bool is_last = l + 1 == trm->config.n_layers;
    int64_t D = trm->config.hidden, P = t->B * trm->config.max_history, Q = p->rows;
    const dr_padded_attention attention = attention_of(trm, t, l);
    float *dmiddle = t->d4, *dprojected = t->d2, *dmixed = t->d3, *dqkv = t->d4, *dx = t->d1;
    b->ops->zero(b, dprojected, trm_bytes(Q * D));
    b->ops->layernorm_backward(b, dmiddle, p->projected, trm->params + w->norm1, p->mean1, p->inv1, Q, D,
                               dprojected, gradient + w->norm1, gradient + w->norm1_bias);
    if (is_last) { // the residual branch, to the rows it came from
        b->ops->zero(b, dx, trm_bytes(P * D));
        b->ops->embedding_backward(b, dprojected, t->in.last, Q, D, dx);
    } else {
        b->ops->copy(b, dx, dprojected, trm_bytes(P * D));
    }
    if (t->drop) drop(trm, dprojected, Q * D, p->drop1);
    DR_TRY(b->ops->linear_backward(b, w->w_out, p->mixed, dprojected, Q, dmixed, false, gradient + w->out,
                                   gradient + w->out_bias));
    b->ops->padded_attention_backward(b, &attention, dmixed, dqkv);
    return b->ops->linear_backward(b, w->w_qkv, p->x, dqkv, P, dx, true, gradient + w->qkv,
                                   gradient + w->qkv_bias);
}

// From dh (P, D), the gradient of what the fusion gave, to its parameters' and the items'.
static dr_status inputs_backward(dr_trm *trm, trm_batch *t, const float *dh, float *dx_id, float *dx_text,
                                 float *gradient) {
    dr_backend *b = trm->backend;
    int64_t D = trm->config.hidden;
    const dr_fusion fusion = fusion_of(trm, t);
    const dr_fusion_gradient out = {
        .dout = dh,
        .dx = {dx_id, dx_text},
        .dfilter = gradient + trm->filter,
        .dgate = {gradient + trm->item_gate, gradient + trm->fusion_gate},
        .dbias = {gradient + trm->item_gate_bias, gradient + trm->fusion_gate_bias},
        .dpositions = gradient + trm->positions};
    DR_TRY(b->ops->fusion_backward(b, &fusion, &out));
    b->ops->embedding_backward(b, dx_id, t->in.ids, t->B * fusion.L, D, gradient + trm->items);
    b->ops->zero(b, gradient + trm->items, trm_bytes(D)); // padding stays as it is
    return DR_OK;
}

dr_status dr_trm_batch_backward(dr_trm *trm, trm_batch *t, const float *dfused, float *gradient,
                                float *dx_text, float *dquery) {
    const dr_trm_config *c = &trm->config;
    dr_backend *b = trm->backend;
    int64_t D = c->hidden, P = t->B * c->max_history;
    b->ops->zero(b, dquery, trm_bytes(t->B * D));
    b->ops->layernorm_backward(b, dfused, t->query, trm->params + trm->out_norm, t->out_mean, t->out_inv,
                               t->B, D, dquery, gradient + trm->out_norm, gradient + trm->out_norm_bias);
    b->ops->copy(b, t->d1, dquery, trm_bytes(t->B * D));
    for (int32_t l = c->n_layers - 1; l >= 0; l--) {
        DR_TRY(feed_forward_backward(trm, t, l, gradient));
        DR_TRY(attention_backward(trm, t, l, gradient));
    }
    if (t->drop) drop(trm, t->d1, P * D, t->drop);
    float *dh = t->d2, *dx_id = t->d3;
    b->ops->zero(b, dh, trm_bytes(P * D));
    b->ops->layernorm_backward(b, t->d1, t->h, trm->params + trm->norm, t->mean, t->inv, P, D, dh,
                               gradient + trm->norm, gradient + trm->norm_bias);
    return inputs_backward(trm, t, dh, dx_id, dx_text, gradient);
}
