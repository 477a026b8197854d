// Queries, keys and values of one layer, forward and backward: one product, a norm over each head of queries
// and keys where the model has them (Qwen3, arXiv 2505.09388, §2), rotation.
#include "core/model/lm_internal.h"

lm_qkv dr_lm_qkv_at(const dr_lm_config *c, float *base) {
    int64_t q = (int64_t)c->n_heads * c->head_size, kv = (int64_t)c->n_kv_heads * c->head_size;
    return (lm_qkv){base, base + q, base + q + kv, q + 2 * kv};
}

// raw and inv: those of all queries, then those of all keys.
static void norms_forward(const dr_lm *lm, dr_backend *b, const lm_layer *layer, int64_t T, const lm_qkv *at,
                          float *raw, float *inv) {
    const dr_lm_config *c = &lm->config;
    int64_t H = c->n_heads, G = c->n_kv_heads, d = c->head_size;
    b->ops->head_norm_forward(b, at->q, dr_lm_vector(lm, layer->q_norm), T, H, d, at->stride, c->rms_eps, raw,
                              inv);
    b->ops->head_norm_forward(b, at->k, dr_lm_vector(lm, layer->k_norm), T, G, d, at->stride, c->rms_eps,
                              raw ? raw + T * H * d : NULL, inv ? inv + T * H : NULL);
}

static void norms_backward(dr_lm *lm, const lm_layer *layer, int64_t T, const lm_qkv *dqkv, const float *raw,
                           const float *inv, float *gradient) {
    dr_backend *b = lm->backend;
    const dr_lm_config *c = &lm->config;
    int64_t H = c->n_heads, G = c->n_kv_heads, d = c->head_size;
    b->ops->head_norm_backward(b, dqkv->q, raw, dr_lm_vector(lm, layer->q_norm), inv, T, H, d, dqkv->stride,
                               gradient + layer->q_norm);
    b->ops->head_norm_backward(b, dqkv->k, raw + T * H * d, dr_lm_vector(lm, layer->k_norm), inv + T * H, T,
                               G, d, dqkv->stride, gradient + layer->k_norm);
}

// Queries and keys stand side by side and are turned together.
static void rotate(const dr_lm *lm, dr_backend *b, const lm_qkv *at, const int32_t *positions, int64_t T,
                   int direction) {
    const dr_lm_config *c = &lm->config;
    b->ops->rope(b, at->q, positions, lm->inv_freq, T, c->n_heads + c->n_kv_heads, c->head_size, at->stride,
                 direction);
}

dr_status dr_lm_qkv_forward(const dr_lm *lm, dr_backend *b, const lm_layer *layer, const float *x,
                            const int32_t *positions, int64_t T, float *qkv, float *raw, float *inv) {
    const float *bias = layer->qkv_bias < 0 ? NULL : dr_lm_vector(lm, layer->qkv_bias);
    lm_qkv at = dr_lm_qkv_at(&lm->config, qkv);
    DR_TRY(b->ops->linear_forward(b, layer->w_qkv, x, T, bias, qkv));
    if (lm->config.qk_norm) norms_forward(lm, b, layer, T, &at, raw, inv);
    rotate(lm, b, &at, positions, T, 1);
    b->ops->kv_round(b, at.k, at.v, at.stride, T, lm->config.n_kv_heads, lm->config.head_size);
    return DR_OK;
}

dr_status dr_lm_qkv_backward(dr_lm *lm, const lm_layer *layer, const float *x, const int32_t *positions,
                             int64_t T, float *dqkv, const float *raw, const float *inv, float *dx,
                             float *gradient) {
    dr_backend *b = lm->backend;
    lm_qkv at = dr_lm_qkv_at(&lm->config, dqkv);
    rotate(lm, b, &at, positions, T, -1);
    if (lm->config.qk_norm) norms_backward(lm, layer, T, &at, raw, inv, gradient);
    return b->ops->linear_backward(b, layer->w_qkv, x, dqkv, T, dx, false, gradient + layer->qkv,
                                   layer->qkv_bias < 0 ? NULL : gradient + layer->qkv_bias);
}
