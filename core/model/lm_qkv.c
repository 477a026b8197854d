// Queries, keys and values of one layer, forward and backward: one merged product, or three with a norm over
// each head of queries and keys (Qwen3, arXiv 2505.09388, §2), whose rows then stand densely for the norm.
#include "core/model/lm_internal.h"

lm_qkv dr_lm_qkv_at(const dr_lm_config *c, float *base, int64_t T) {
    int64_t q = (int64_t)c->n_heads * c->head_size, kv = (int64_t)c->n_kv_heads * c->head_size;
    int64_t rows = c->qk_norm ? T : 1, whole = q + 2 * kv;
    return (lm_qkv){base, base + rows * q, base + rows * (q + kv), c->qk_norm ? q : whole,
                    c->qk_norm ? kv : whole};
}

static dr_status forward_with_norms(const dr_lm *lm, dr_backend *b, const lm_layer *layer, const float *x,
                                    int64_t T, const lm_qkv *at, float *raw, float *inv) {
    const dr_lm_config *c = &lm->config;
    int64_t q_rows = T * c->n_heads, k_rows = T * c->n_kv_heads, d = c->head_size;
    float *raw_q = raw ? raw : at->q, *raw_k = raw ? raw + q_rows * d : at->k;
    DR_TRY(b->ops->linear_forward(b, layer->w_q, x, T, NULL, raw_q));
    DR_TRY(b->ops->linear_forward(b, layer->w_k, x, T, NULL, raw_k));
    DR_TRY(b->ops->linear_forward(b, layer->w_v, x, T, NULL, at->v));
    b->ops->rmsnorm_forward(b, raw_q, lm->params + layer->q_norm, q_rows, d, c->rms_eps, at->q, inv);
    b->ops->rmsnorm_forward(b, raw_k, lm->params + layer->k_norm, k_rows, d, c->rms_eps, at->k,
                            inv ? inv + q_rows : NULL);
    return DR_OK;
}

// Queries and keys stand in one row and are turned together, or are turned one after the other.
static void rotate(const dr_lm *lm, dr_backend *b, const lm_qkv *at, const int32_t *positions, int64_t T,
                   int direction) {
    const dr_lm_config *c = &lm->config;
    int64_t d = c->head_size;
    if (!c->qk_norm) {
        b->ops->rope(b, at->q, positions, lm->inv_freq, T, c->n_heads + c->n_kv_heads, d, at->q_stride,
                     direction);
        return;
    }
    b->ops->rope(b, at->q, positions, lm->inv_freq, T, c->n_heads, d, at->q_stride, direction);
    b->ops->rope(b, at->k, positions, lm->inv_freq, T, c->n_kv_heads, d, at->kv_stride, direction);
}

dr_status dr_lm_qkv_forward(const dr_lm *lm, dr_backend *b, const lm_layer *layer, const float *x,
                            const int32_t *positions, int64_t T, float *qkv, float *raw, float *inv) {
    const float *bias = layer->qkv_bias < 0 ? NULL : lm->params + layer->qkv_bias;
    lm_qkv at = dr_lm_qkv_at(&lm->config, qkv, T);
    if (lm->config.qk_norm)
        DR_TRY(forward_with_norms(lm, b, layer, x, T, &at, raw, inv));
    else
        DR_TRY(b->ops->linear_forward(b, layer->w_qkv, x, T, bias, qkv));
    rotate(lm, b, &at, positions, T, 1);
    b->ops->kv_round(b, at.k, at.v, at.kv_stride, T, lm->config.n_kv_heads, lm->config.head_size);
    return DR_OK;
}

static dr_status backward_with_norms(dr_lm *lm, const lm_layer *layer, const float *x, int64_t T,
                                     const lm_qkv *dqkv, const float *raw, const float *inv, float *draw,
                                     float *dx, float *gradient) {
    dr_backend *b = lm->backend;
    const dr_lm_config *c = &lm->config;
    int64_t q_rows = T * c->n_heads, k_rows = T * c->n_kv_heads, d = c->head_size, D = c->hidden;
    int64_t q = c->n_heads * d, kv = c->n_kv_heads * d;
    float *draw_k = draw + q_rows * d, *dw = gradient + layer->qkv;
    b->ops->zero(b, draw, (size_t)(T * lm_qk_width(c)) * sizeof(float));
    b->ops->rmsnorm_backward(b, dqkv->q, raw, lm->params + layer->q_norm, inv, q_rows, d, draw,
                             gradient + layer->q_norm);
    b->ops->rmsnorm_backward(b, dqkv->k, raw + q_rows * d, lm->params + layer->k_norm, inv + q_rows, k_rows,
                             d, draw_k, gradient + layer->k_norm);
    DR_TRY(b->ops->linear_backward(b, layer->w_q, x, draw, T, dx, false, dw, NULL));
    DR_TRY(b->ops->linear_backward(b, layer->w_k, x, draw_k, T, dx, true, dw + q * D, NULL));
    return b->ops->linear_backward(b, layer->w_v, x, dqkv->v, T, dx, true, dw + (q + kv) * D, NULL);
}

dr_status dr_lm_qkv_backward(dr_lm *lm, const lm_layer *layer, const float *x, const int32_t *positions,
                             int64_t T, float *dqkv, const float *raw, const float *inv, float *draw,
                             float *dx, float *gradient) {
    dr_backend *b = lm->backend;
    const dr_lm_config *c = &lm->config;
    lm_qkv at = dr_lm_qkv_at(c, dqkv, T);
    rotate(lm, b, &at, positions, T, -1);
    if (c->qk_norm) return backward_with_norms(lm, layer, x, T, &at, raw, inv, draw, dx, gradient);
    return b->ops->linear_backward(b, layer->w_qkv, x, dqkv, T, dx, false, gradient + layer->qkv,
                                   layer->qkv_bias < 0 ? NULL : gradient + layer->qkv_bias);
}
