// The training pass over packed sequences: activations kept for the backward, loss head on the chosen rows
// only.
#include <string.h>

#include "core/base/alive.h"
#include "core/base/alloc.h"
#include "core/model/lm_internal.h"

// Activations of one layer; legend: T tokens, D hidden, Q = (H + 2G)·d, A = H·d, F intermediate.
typedef struct layer_activations {
    float *x;      // (T, D) residual stream before the layer
    float *norm1;  // (T, D)
    float *inv1;   // (T)
    float *qk_raw; // (T, A + G·d) queries and keys before their norms; with such norms only
    float *qk_inv; // (T, H + G)
    float *qkv;    // (T, Q) after bias, norms and rotation
    float *att;    // (T, A)
    float *lse;    // (T, H)
    float *mid;    // (T, D) residual stream after attention
    float *norm2;  // (T, D)
    float *inv2;   // (T)
    void *gate_up; // (T, 2F) of dr_gated_bytes
} layer_activations;

struct dr_lm_workspace {
    int64_t max_tokens, bytes;
    dr_activations activations;
    dr_backend *backend;
    float *memory;             // backend memory: the floats below
    layer_activations *layers; // DR_RECOMPUTE: all share what the first one has, but for x
    // Of the last layer only the loss rows go on after attention: R rows, at most T. Its mid to gate_up
    // hold R rows.
    float *top_att, *x_out, *final_inv;  // (R, A), (R, D), (R)
    float *rows, *drows, *row_lse;       // normalised loss rows: (R, D), (R, D), (R)
    float *top, *dtop_att;               // (R, D), (R, A)
    float *dx, *dnorm, *dwide, *datt;    // gradients: (T, D), (T, D), of gate_up or (T, Q), (T, A)
    float *logprob, *entropy, *dlogprob; // (R) each
    lm_numbers numbers;                  // rows: of the loss rows
    int32_t *targets;                    // (R), backend memory
};

// Floats in all. base NULL: only counts, and there need be no layers.
static int64_t carve(const dr_lm *lm, int64_t T, float *base, dr_lm_workspace *w) {
    const dr_lm_config *c = &lm->config;
    int64_t D = c->hidden, Q = lm_qkv_width(c), A = (int64_t)c->n_heads * c->head_size, F = c->intermediate;
    int64_t at = 0, raw = c->qk_norm ? T * lm_qk_width(c) : 0, gated = lm_gated_floats(lm, T * 2 * F);
#define TAKE(pointer, count) ((pointer) = base ? base + at : NULL, at += ((count) + 15) / 16 * 16)
    for (int32_t i = 0; i < c->n_layers; i++) {
        layer_activations counted, *l = w->layers ? &w->layers[i] : &counted;
        TAKE(l->x, T * D);
        if (i > 0 && w->activations == DR_RECOMPUTE) {
            float *x = l->x;
            if (w->layers) *l = w->layers[0];
            l->x = x;
            continue;
        }
        TAKE(l->norm1, T * D);
        TAKE(l->inv1, T);
        TAKE(l->qk_raw, raw);
        TAKE(l->qk_inv, raw / c->head_size);
        TAKE(l->qkv, T * Q);
        TAKE(l->att, T * A);
        TAKE(l->lse, T * c->n_heads);
        TAKE(l->mid, T * D);
        TAKE(l->norm2, T * D);
        TAKE(l->inv2, T);
        TAKE(l->gate_up, gated);
    }
    TAKE(w->x_out, T * D);
    TAKE(w->top_att, T * A);
    TAKE(w->top, T * D);
    TAKE(w->dtop_att, T * A);
    TAKE(w->final_inv, T);
    TAKE(w->rows, T * D);
    TAKE(w->drows, T * D);
    TAKE(w->row_lse, T);
    TAKE(w->dx, T * D);
    TAKE(w->dnorm, T * D);
    TAKE(w->dwide, gated > T * Q ? gated : T * Q);
    TAKE(w->datt, T * A);
    TAKE(w->logprob, T);
    TAKE(w->entropy, T);
    TAKE(w->dlogprob, T);
#undef TAKE
    return at;
}

dr_status dr_lm_workspace_create(dr_lm *lm, int64_t max_tokens, dr_activations activations,
                                 dr_lm_workspace **out_workspace) {
    DR_CHECK(max_tokens > 0, DR_ERR_ARGUMENT, "training workspace: %lld tokens", (long long)max_tokens);
    dr_lm_workspace *w = NULL;
    DR_TRY(dr_alloc(&w, "training workspace", 1, sizeof *w));
    w->max_tokens = max_tokens;
    w->activations = activations;
    dr_backend *b = w->backend = lm->backend;
    dr_status status;
    DR_TRY_GOTO(status, dr_alloc(&w->layers, "layer activations", lm->config.n_layers, sizeof *w->layers),
                destroy);
    DR_TRY_GOTO(status, dr_lm_numbers_create(b, max_tokens, &w->numbers), destroy);
    DR_TRY_GOTO(status, dr_memory_create(b, &w->targets, "targets", max_tokens, sizeof *w->targets), destroy);
    int64_t floats = carve(lm, max_tokens, NULL, w);
    DR_TRY_GOTO(status, dr_memory_create(b, &w->memory, "activations", floats, sizeof(float)), destroy);
    carve(lm, max_tokens, w->memory, w);
    w->bytes = floats * (int64_t)sizeof(float);
    *out_workspace = w;
    return DR_OK;
destroy:
    dr_lm_workspace_destroy(w);
    return status;
}

void dr_lm_workspace_destroy(dr_lm_workspace *w) {
    if (!w) return;
    w->backend->ops->memory_destroy(w->backend, w->memory);
    w->backend->ops->memory_destroy(w->backend, w->targets);
    dr_lm_numbers_destroy(w->backend, &w->numbers);
    dr_free(w->layers);
    dr_free(w);
}

int64_t dr_lm_workspace_memory(const dr_lm *lm, int64_t max_tokens, dr_activations activations) {
    dr_lm_workspace counted = {.activations = activations};
    return carve(lm, max_tokens, NULL, &counted) * (int64_t)sizeof(float) + dr_lm_numbers_memory(max_tokens) +
           max_tokens * (int64_t)sizeof(int32_t);
}

int64_t dr_lm_workspace_bytes(const dr_lm_workspace *w) {
    return w->bytes;
}

static dr_sequences sequences_of(const dr_pack *pack) {
    return (dr_sequences){pack->n_seqs, pack->cu_seqlens, pack->prefix};
}

// A prefix stands right before those that share it and has none itself.
static dr_status check_prefix(const dr_pack *pack, int32_t s) {
    int32_t p = pack->prefix ? pack->prefix[s] : -1;
    DR_CHECK(p == -1 ||
                 (p >= 0 && p < s && pack->prefix[p] == -1 && (p == s - 1 || pack->prefix[s - 1] == p)),
             DR_ERR_RANGE,
             "pack: sequence %d goes on from sequence %d, which is not a prefix right before it", s, p);
    return DR_OK;
}

static dr_status check_pack(const dr_lm *lm, const dr_lm_workspace *w, const dr_pack *pack) {
    DR_CHECK(pack->n_tokens <= w->max_tokens && pack->n_rows <= w->max_tokens, DR_ERR_RANGE,
             "pack of %lld tokens and %lld loss rows, the workspace holds %lld", (long long)pack->n_tokens,
             (long long)pack->n_rows, (long long)w->max_tokens);
    DR_CHECK(pack->n_seqs > 0 && pack->cu_seqlens[0] == 0 && pack->cu_seqlens[pack->n_seqs] == pack->n_tokens,
             DR_ERR_RANGE, "pack: sequence bounds do not cover its %lld tokens", (long long)pack->n_tokens);
    dr_sequences sequences = sequences_of(pack);
    for (int32_t i = 0; i < pack->n_seqs; i++) {
        DR_TRY(check_prefix(pack, i));
        int64_t own = (int64_t)pack->cu_seqlens[i + 1] - pack->cu_seqlens[i];
        int64_t length = own + dr_rows_of(&sequences, dr_prefix_of(&sequences, i));
        DR_CHECK(own >= 0 && length <= lm->config.max_positions, DR_ERR_RANGE,
                 "pack: sequence %d has %lld tokens, the model allows 0 to %d", i,
                 (long long)(own < 0 ? own : length), lm->config.max_positions);
    }
    for (int64_t t = 0; t < pack->n_tokens; t++)
        DR_CHECK(pack->ids[t] >= 0 && pack->ids[t] < lm->config.vocab, DR_ERR_RANGE,
                 "pack: token %lld is %d, the vocabulary has %d", (long long)t, pack->ids[t],
                 lm->config.vocab);
    for (int64_t r = 0; r < pack->n_rows; r++)
        DR_CHECK(pack->rows[r] >= 0 && pack->rows[r] < pack->n_tokens, DR_ERR_RANGE,
                 "pack: loss row %lld reads position %d of %lld", (long long)r, pack->rows[r],
                 (long long)pack->n_tokens);
    return DR_OK;
}

static void layer_norm(dr_lm *lm, const lm_layer *layer, const layer_activations *a, int64_t T) {
    dr_backend *b = lm->backend;
    const dr_lm_config *c = &lm->config;
    b->ops->rmsnorm_forward(b, a->x, dr_lm_vector(lm, layer->norm1), T, c->hidden, c->rms_eps, a->norm1,
                            a->inv1);
}

// From a layer's normalised input a->norm1 to what attention gives for each row.
static dr_status layer_attend(dr_lm *lm, const lm_layer *layer, layer_activations *a, const dr_pack *pack,
                              const int32_t *positions) {
    dr_backend *b = lm->backend;
    const dr_lm_config *c = &lm->config;
    int64_t T = pack->n_tokens;
    lm_qkv at = dr_lm_qkv_at(c, a->qkv);
    dr_sequences sequences = sequences_of(pack);
    DR_TRY(dr_lm_qkv_forward(lm, lm->backend, layer, a->norm1, positions, T, a->qkv, a->qk_raw, a->qk_inv));
    return b->ops->attention_forward(b, at.q, at.k, at.v, at.stride, at.stride, &sequences, c->n_heads,
                                     c->n_kv_heads, c->head_size, a->att, a->lse);
}

// What follows attention, on n rows of it and of the residual stream x, up to gate and up.
static dr_status layer_activate(dr_lm *lm, const lm_layer *layer, layer_activations *a, const float *att,
                                const float *x, int64_t n) {
    dr_backend *b = lm->backend;
    const dr_lm_config *c = &lm->config;
    int64_t D = c->hidden;
    DR_TRY(b->ops->linear_forward(b, layer->w_o, att, n, NULL, a->mid));
    b->ops->rmsnorm_residual_forward(b, x, dr_lm_vector(lm, layer->norm2), n, D, c->rms_eps, a->mid, a->norm2,
                                     a->inv2);
    return b->ops->gate_up_forward(b, layer->w_gate_up, a->norm2, n, a->gate_up);
}

// Where a layer's result goes, and the norm that follows it: the next layer's first, or the last one.
typedef struct layer_result {
    float *x, *norm, *inv; // (n, D), (n, D), (n)
    int64_t weight;        // of the norm, in the parameters
} layer_result;

static dr_status layer_finish(dr_lm *lm, const lm_layer *layer, const layer_activations *a, int64_t n,
                              const layer_result *to) {
    dr_backend *b = lm->backend;
    const dr_lm_config *c = &lm->config;
    DR_TRY(b->ops->swiglu_linear_forward(b, layer->w_down, a->gate_up, n, to->x));
    b->ops->rmsnorm_residual_forward(b, a->mid, dr_lm_vector(lm, to->weight), n, c->hidden, c->rms_eps, to->x,
                                     to->norm, to->inv);
    return DR_OK;
}

static layer_result result_of(const dr_lm *lm, const dr_lm_workspace *w, int32_t layer) {
    if (layer + 1 == lm->config.n_layers)
        return (layer_result){w->x_out, w->rows, w->final_inv, lm->final_norm};
    const layer_activations *next = &w->layers[layer + 1];
    return (layer_result){next->x, next->norm1, next->inv1, lm->layers[layer + 1].norm1};
}

// Ids, positions and loss rows of a pack, to the backend.
static void send_numbers(dr_lm_workspace *w, const dr_pack *pack) {
    lm_numbers *numbers = &w->numbers;
    dr_sequences sequences = sequences_of(pack);
    for (int32_t s = 0; s < pack->n_seqs; s++) {
        int32_t n_prefix = dr_rows_of(&sequences, dr_prefix_of(&sequences, s));
        for (int32_t t = pack->cu_seqlens[s]; t < pack->cu_seqlens[s + 1]; t++)
            numbers->host_positions[t] = n_prefix + t - pack->cu_seqlens[s];
    }
    lm_send(w->backend, numbers->ids, pack->ids, pack->n_tokens);
    lm_send(w->backend, numbers->positions, numbers->host_positions, pack->n_tokens);
    lm_send(w->backend, numbers->rows, pack->rows, pack->n_rows);
}

// Hidden states of the loss rows into w->rows.
static dr_status body_forward(dr_lm *lm, dr_lm_workspace *w, const dr_pack *pack) {
    DR_TRY(check_pack(lm, w, pack));
    dr_backend *b = lm->backend;
    const dr_lm_config *c = &lm->config;
    int64_t T = pack->n_tokens, D = c->hidden;
    send_numbers(w, pack);
    DR_TRY(b->ops->weight_rows(b, lm->w_embed, w->numbers.ids, T, w->layers[0].x));
    layer_norm(lm, &lm->layers[0], &w->layers[0], T);
    for (int32_t i = 0; i < c->n_layers; i++) {
        const lm_layer *layer = &lm->layers[i];
        layer_activations *a = &w->layers[i];
        bool is_last = i + 1 == c->n_layers;
        int64_t n = is_last ? pack->n_rows : T;
        DR_TRY(layer_attend(lm, layer, a, pack, w->numbers.positions));
        if (is_last) { // gathers of rows
            b->ops->embedding_forward(b, a->att, w->numbers.rows, n, (int64_t)c->n_heads * c->head_size,
                                      w->top_att);
            b->ops->embedding_forward(b, a->x, w->numbers.rows, n, D, w->top);
        }
        DR_TRY(layer_activate(lm, layer, a, is_last ? w->top_att : a->att, is_last ? w->top : a->x, n));
        layer_result to = result_of(lm, w, i);
        DR_TRY(layer_finish(lm, layer, a, n, &to));
        DR_TRY(dr_alive_work());
    }
    return DR_OK;
}

static dr_status check_kept(const dr_lm *lm, const dr_pack *pack) {
    for (int64_t r = 0; r < pack->n_rows; r++) {
        const dr_kept *kept = &pack->kept[r];
        bool has_target = kept->n == 0;
        for (int32_t k = 0, before = -1; k < kept->n; before = kept->ids[k++]) {
            DR_CHECK(kept->ids[k] > before && kept->ids[k] < lm->config.vocab, DR_ERR_RANGE,
                     "pack: id %d of the kept set of loss row %lld is %d, after %d, the vocabulary has %d", k,
                     (long long)r, kept->ids[k], before, lm->config.vocab);
            has_target |= kept->ids[k] == pack->targets[r];
        }
        DR_CHECK(has_target, DR_ERR_RANGE, "pack: target %lld, %d, is not in its kept set of %d ids",
                 (long long)r, pack->targets[r], kept->n);
    }
    return DR_OK;
}

dr_status dr_lm_forward(dr_lm *lm, dr_lm_workspace *w, const dr_pack *pack, float temperature,
                        float *out_logprob, float *out_entropy) {
    DR_CHECK(temperature > 0, DR_ERR_ARGUMENT, "loss temperature %g", (double)temperature);
    for (int64_t r = 0; r < pack->n_rows; r++)
        DR_CHECK(pack->targets[r] >= 0 && pack->targets[r] < lm->config.vocab, DR_ERR_RANGE,
                 "pack: target %lld is %d, the vocabulary has %d", (long long)r, pack->targets[r],
                 lm->config.vocab);
    if (pack->kept) DR_TRY(check_kept(lm, pack));
    DR_TRY(body_forward(lm, w, pack));
    dr_backend *b = lm->backend;
    size_t bytes = (size_t)pack->n_rows * sizeof(float);
    lm_send(b, w->targets, pack->targets, pack->n_rows);
    DR_TRY(b->ops->head_forward(b, lm->w_head, w->rows, w->targets, pack->kept, pack->n_rows, temperature,
                                w->logprob, w->entropy, w->row_lse));
    b->ops->copy_out(b, out_logprob, w->logprob, bytes);
    b->ops->copy_out(b, out_entropy, w->entropy, bytes);
    return DR_OK;
}

dr_status dr_lm_logits(dr_lm *lm, dr_lm_workspace *w, const dr_pack *pack, float *out_logits) {
    DR_TRY(body_forward(lm, w, pack));
    dr_backend *b = lm->backend;
    return b->ops->linear_forward(b, lm->w_head, w->rows, pack->n_rows, NULL, out_logits);
}

// In: dx (n, D) = gradient at the layer's output. Out: dx = gradient at the residual stream before the second
// half, datt (n, A) that of the rows `att` of attention's result.
static dr_status layer_backward_second(dr_lm *lm, const lm_layer *layer, const layer_activations *a,
                                       dr_lm_workspace *w, const float *att, int64_t n, float *dx,
                                       float *datt, float *gradient) {
    dr_backend *b = lm->backend;
    const dr_lm_config *c = &lm->config;
    int64_t D = c->hidden;
    DR_TRY(b->ops->swiglu_linear_backward(b, layer->w_down, a->gate_up, dx, n, w->dwide,
                                          gradient + layer->down));
    DR_TRY(b->ops->gate_up_backward(b, layer->w_gate_up, a->norm2, w->dwide, n, w->dnorm,
                                    gradient + layer->gate_up));
    b->ops->rmsnorm_backward(b, w->dnorm, a->mid, dr_lm_vector(lm, layer->norm2), a->inv2, n, D, dx,
                             gradient + layer->norm2);
    return b->ops->linear_backward(b, layer->w_o, att, dx, n, datt, false, gradient + layer->o, NULL);
}

// In: w->datt, and w->dx = gradient at the residual stream beside attention. Out: w->dx = gradient at a->x.
static dr_status layer_backward_first(dr_lm *lm, const lm_layer *layer, const layer_activations *a,
                                      dr_lm_workspace *w, const dr_pack *pack, float *gradient) {
    dr_backend *b = lm->backend;
    const dr_lm_config *c = &lm->config;
    int64_t T = pack->n_tokens;
    lm_qkv at = dr_lm_qkv_at(c, a->qkv), to = dr_lm_qkv_at(c, w->dwide);
    dr_sequences sequences = sequences_of(pack);
    DR_TRY(b->ops->attention_backward(b, w->datt, at.q, at.k, at.v, a->att, a->lse, at.stride, at.stride,
                                      &sequences, c->n_heads, c->n_kv_heads, c->head_size, to.q, to.k, to.v));
    DR_TRY(dr_lm_qkv_backward(lm, layer, a->norm1, w->numbers.positions, T, w->dwide, a->qk_raw, a->qk_inv,
                              w->dnorm, gradient));
    b->ops->rmsnorm_backward(b, w->dnorm, a->x, dr_lm_vector(lm, layer->norm1), a->inv1, T, c->hidden, w->dx,
                             gradient + layer->norm1);
    return DR_OK;
}

static dr_status tell(const dr_gradient_ready *ready, int64_t begin, int64_t end) {
    DR_TRY(dr_alive_work());
    return ready ? ready->tell(ready->context, begin, end) : DR_OK;
}

// From the gradient of the loss rows to w->dx below the last layer; gradients are 0 where no loss row is.
static dr_status top_backward(dr_lm *lm, dr_lm_workspace *w, const dr_pack *pack, float *gradient,
                              const dr_gradient_ready *ready) {
    dr_backend *b = lm->backend;
    const dr_lm_config *c = &lm->config;
    int64_t T = pack->n_tokens, R = pack->n_rows, D = c->hidden, A = (int64_t)c->n_heads * c->head_size;
    int32_t last = c->n_layers - 1;
    b->ops->zero(b, w->top, (size_t)(R * D) * sizeof(float));
    b->ops->rmsnorm_backward(b, w->drows, w->x_out, dr_lm_vector(lm, lm->final_norm), w->final_inv, R, D,
                             w->top, gradient + lm->final_norm);
    DR_TRY(tell(ready, lm->final_norm, lm->n_params)); // with the head where it has weights of its own
    DR_TRY(layer_backward_second(lm, &lm->layers[last], &w->layers[last], w, w->top_att, R, w->top,
                                 w->dtop_att, gradient));
    DR_TRY(tell(ready, lm->layers[last].o, lm->final_norm));
    b->ops->zero(b, w->dx, (size_t)(T * D) * sizeof(float));
    b->ops->zero(b, w->datt, (size_t)(T * A) * sizeof(float));
    b->ops->embedding_backward(b, w->top, w->numbers.rows, R, D, w->dx); // scatters of rows
    b->ops->embedding_backward(b, w->dtop_att, w->numbers.rows, R, A, w->datt);
    DR_TRY(layer_backward_first(lm, &lm->layers[last], &w->layers[last], w, pack, gradient));
    return tell(ready, lm->layers[last].norm1, lm->layers[last].o);
}

dr_status dr_lm_backward(dr_lm *lm, dr_lm_workspace *w, const dr_pack *pack, float temperature,
                         const float *dlogprob, float *gradient, const dr_gradient_ready *ready) {
    dr_backend *b = lm->backend;
    const dr_lm_config *c = &lm->config;
    int64_t T = pack->n_tokens;
    DR_CHECK(!lm->is_frozen, DR_ERR_UNSUPPORTED, "a model that was loaded for reading has no gradients");
    b->ops->copy_in(b, w->dlogprob, dlogprob, (size_t)pack->n_rows * sizeof(float));
    DR_TRY(b->ops->head_backward(b, lm->w_head, w->rows, w->targets, pack->kept, pack->n_rows, temperature,
                                 w->row_lse, w->dlogprob, w->drows, gradient + lm->head));
    DR_TRY(top_backward(lm, w, pack, gradient, ready));
    for (int32_t i = c->n_layers - 2; i >= 0; i--) {
        const lm_layer *layer = &lm->layers[i];
        layer_activations *a = &w->layers[i];
        if (w->activations == DR_RECOMPUTE) {
            layer_norm(lm, layer, a, T);
            DR_TRY(layer_attend(lm, layer, a, pack, w->numbers.positions));
            DR_TRY(layer_activate(lm, layer, a, a->att, a->x, T));
        }
        DR_TRY(layer_backward_second(lm, layer, a, w, a->att, T, w->dx, w->datt, gradient));
        DR_TRY(tell(ready, layer->o, lm->layers[i + 1].norm1));
        DR_TRY(layer_backward_first(lm, layer, a, w, pack, gradient));
        DR_TRY(tell(ready, layer->norm1, layer->o));
    }
    b->ops->embedding_backward(b, w->dx, w->numbers.ids, T, c->hidden, gradient + lm->embed);
    return tell(ready, 0, lm->layers[0].norm1); // the embedding, last: a tied head adds to it first
}
