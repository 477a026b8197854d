// The ops of the retrieval model's training as calls of their kernels.
#include "cuda/cuda_internal.h"

static void dropout(dr_backend *b, const float *x, int64_t n, float rate, uint32_t key, float *y) {
    dr_cuda_state *state;
    if (dr_cuda_enter(b, &state) != DR_OK) return;
    dr_cuda_keep(state, dr_cuda_dropout(x, n, dr_dropout_mask_of(rate, key), y, state->stream));
}

static dr_status fusion_backward(dr_backend *b, const dr_fusion *fusion, const dr_fusion_gradient *gradient) {
    dr_cuda_state *state;
    DR_TRY(dr_cuda_enter(b, &state));
    DR_TRY(
        dr_cuda_reserve(state, &state->partials, "parts of requests",
                        dr_fusion_parts_of(fusion->B, fusion->L, fusion->D).total * (int64_t)sizeof(float)));
    return dr_cuda_fusion_backward(fusion, gradient, state->partials.data, state->stream);
}

static void padded_attention_backward(dr_backend *b, const dr_padded_attention *attention, const float *dout,
                                      float *dqkv) {
    dr_cuda_state *state;
    if (dr_cuda_enter(b, &state) != DR_OK) return;
    dr_cuda_keep(state, dr_cuda_padded_attention_backward(attention, dout, dqkv, state->stream));
}

static void mixture_backward(dr_backend *b, const float *dy, const float *weights, const float *z, int64_t T,
                             int64_t E, int64_t D, float *dz, float *dgate) {
    dr_cuda_state *state;
    if (dr_cuda_enter(b, &state) != DR_OK) return;
    dr_cuda_keep(state, dr_cuda_mixture_backward(dy, weights, z, T, E, D, dz, dgate, state->stream));
}

static void noisy_gate_forward(dr_backend *b, const float *noise, const float *spread, int64_t n,
                               float *gate) {
    dr_cuda_state *state;
    if (dr_cuda_enter(b, &state) != DR_OK) return;
    dr_cuda_keep(state, dr_cuda_noisy_gate(noise, spread, n, gate, state->stream));
}

static void noisy_gate_backward(dr_backend *b, const float *dgate, const float *noise, const float *spread,
                                int64_t n, float *dspread) {
    dr_cuda_state *state;
    if (dr_cuda_enter(b, &state) != DR_OK) return;
    dr_cuda_keep(state, dr_cuda_noisy_gate_backward(dgate, noise, spread, n, dspread, state->stream));
}

static void normalize_rows_forward(dr_backend *b, const float *x, int64_t T, int64_t D, float *unit,
                                   float *lengths) {
    dr_cuda_state *state;
    if (dr_cuda_enter(b, &state) != DR_OK) return;
    dr_cuda_keep(state, dr_cuda_normalize_rows(x, T, D, unit, lengths, state->stream));
}

static void normalize_rows_backward(dr_backend *b, const float *dunit, const float *unit,
                                    const float *lengths, int64_t T, int64_t D, float *dx) {
    dr_cuda_state *state;
    if (dr_cuda_enter(b, &state) != DR_OK) return;
    dr_cuda_keep(state, dr_cuda_normalize_rows_backward(dunit, unit, lengths, T, D, dx, state->stream));
}

static void cross_entropy(dr_backend *b, float *logits, const int32_t *targets, int64_t T, int64_t V,
                          float inv_temperature, double *losses) {
    dr_cuda_state *state;
    if (dr_cuda_enter(b, &state) != DR_OK) return;
    dr_cuda_keep(state, dr_cuda_cross_entropy(logits, targets, T, V, inv_temperature, losses, state->stream));
}

void dr_cuda_fill_retrieval_backward(dr_backend_ops *ops) {
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
