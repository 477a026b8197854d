// The row-wise ops of the table (norms, rotary embedding, element-wise ops, embedding tables) and the
// optimizer's two, as calls of their kernels. Those that return no status keep their failure.
#include <math.h>

#include "cuda/cuda_internal.h"

static void rmsnorm_forward(dr_backend *b, const float *x, const float *w, int64_t T, int64_t D, float eps,
                            float *y, float *inv_rms) {
    dr_cuda_state *state;
    if (dr_cuda_enter(b, &state) != DR_OK) return;
    dr_cuda_keep(state, dr_cuda_rmsnorm_forward(x, w, T, D, eps, y, inv_rms, state->stream));
}

static void rmsnorm_residual_forward(dr_backend *b, const float *residual, const float *w, int64_t T,
                                     int64_t D, float eps, float *x, float *y, float *inv_rms) {
    dr_cuda_state *state;
    if (dr_cuda_enter(b, &state) != DR_OK) return;
    dr_cuda_keep(state,
                 dr_cuda_rmsnorm_residual_forward(residual, w, T, D, eps, x, y, inv_rms, state->stream));
}

// sums [D] as dr_cuda_column_sums, with the backend's scratch; sums NULL: not wanted.
static dr_status column_sums(dr_cuda_state *state, const char *op, const float *dy, const float *x,
                             const float *mean, const float *inv, int64_t T, int64_t D, float *sums) {
    if (!sums) return DR_OK;
    DR_TRY(dr_cuda_reserve(state, &state->partials, "partial sums",
                           dr_chunk_count(T) * D * (int64_t)sizeof(float)));
    return dr_cuda_column_sums(op, dy, x, mean, inv, T, D, state->partials.data, sums, state->stream);
}

static dr_status norm_gradient(dr_cuda_state *state, const float *dy, const float *x, const float *w,
                               const float *inv_rms, int64_t T, int64_t D, float *dx, float *dw) {
    if (dw)
        DR_TRY(dr_cuda_reserve(state, &state->partials, "partial sums",
                               dr_norm_parts(T) * D * (int64_t)sizeof(float)));
    return dr_cuda_rmsnorm_backward(dy, x, w, inv_rms, T, D, state->partials.data, dx, dw, state->stream);
}

static void rmsnorm_backward(dr_backend *b, const float *dy, const float *x, const float *w,
                             const float *inv_rms, int64_t T, int64_t D, float *dx, float *dw) {
    dr_cuda_state *state;
    if (dr_cuda_enter(b, &state) != DR_OK) return;
    dr_cuda_keep(state, norm_gradient(state, dy, x, w, inv_rms, T, D, dx, dw));
}

static void head_norm_forward(dr_backend *b, float *x, const float *w, int64_t T, int64_t n_heads, int64_t d,
                              int64_t stride, float eps, float *kept, float *inv_rms) {
    dr_cuda_state *state;
    if (dr_cuda_enter(b, &state) != DR_OK) return;
    dr_cuda_keep(state,
                 dr_cuda_head_norm_forward(x, w, T, n_heads, d, stride, eps, kept, inv_rms, state->stream));
}

static dr_status head_norm_gradient(dr_cuda_state *state, float *dx, const float *kept, const float *w,
                                    const float *inv_rms, int64_t T, int64_t n_heads, int64_t d,
                                    int64_t stride, float *dw) {
    DR_TRY(dr_cuda_reserve(state, &state->partials, "partial sums",
                           dr_norm_parts(T * n_heads) * d * (int64_t)sizeof(float)));
    return dr_cuda_head_norm_backward(dx, kept, w, inv_rms, T, n_heads, d, stride, state->partials.data, dw,
                                      state->stream);
}

static void head_norm_backward(dr_backend *b, float *dx, const float *kept, const float *w,
                               const float *inv_rms, int64_t T, int64_t n_heads, int64_t d, int64_t stride,
                               float *dw) {
    dr_cuda_state *state;
    if (dr_cuda_enter(b, &state) != DR_OK) return;
    dr_cuda_keep(state, head_norm_gradient(state, dx, kept, w, inv_rms, T, n_heads, d, stride, dw));
}

static void layernorm_forward(dr_backend *b, const float *x, const float *w, const float *bias, int64_t T,
                              int64_t D, float eps, float *y, float *mean, float *inv_std) {
    dr_cuda_state *state;
    if (dr_cuda_enter(b, &state) != DR_OK) return;
    dr_cuda_keep(state, dr_cuda_layernorm_forward(x, w, bias, T, D, eps, y, mean, inv_std, state->stream));
}

static void layernorm_backward(dr_backend *b, const float *dy, const float *x, const float *w,
                               const float *mean, const float *inv_std, int64_t T, int64_t D, float *dx,
                               float *dw, float *dbias) {
    dr_cuda_state *state;
    if (dr_cuda_enter(b, &state) != DR_OK) return;
    dr_cuda_keep(state, dr_cuda_layernorm_backward(dy, x, w, mean, inv_std, T, D, dx, state->stream));
    dr_cuda_keep(state, column_sums(state, "layernorm_backward", dy, x, mean, inv_std, T, D, dw));
    dr_cuda_keep(state, column_sums(state, "layernorm_backward", dy, NULL, NULL, NULL, T, D, dbias));
}

static void rope(dr_backend *b, float *x, const int32_t *positions, const float *inv_freq, int64_t T,
                 int64_t n_heads, int64_t d, int64_t stride, int direction) {
    dr_cuda_state *state;
    if (dr_cuda_enter(b, &state) != DR_OK) return;
    dr_cuda_keep(state,
                 dr_cuda_rope(x, positions, inv_freq, T, n_heads, d, stride, direction, state->stream));
}

static void gelu_forward(dr_backend *b, const float *x, int64_t n, float *y) {
    dr_cuda_state *state;
    if (dr_cuda_enter(b, &state) != DR_OK) return;
    dr_cuda_keep(state, dr_cuda_gelu_forward(x, n, y, state->stream));
}

static void gelu_backward(dr_backend *b, const float *dy, const float *x, int64_t n, float *dx) {
    dr_cuda_state *state;
    if (dr_cuda_enter(b, &state) != DR_OK) return;
    dr_cuda_keep(state, dr_cuda_gelu_backward(dy, x, n, dx, state->stream));
}

static void add(dr_backend *b, const float *x, int64_t n, float *y) {
    dr_cuda_state *state;
    if (dr_cuda_enter(b, &state) != DR_OK) return;
    dr_cuda_keep(state, dr_cuda_add(x, n, y, state->stream));
}

static void embedding_forward(dr_backend *b, const float *table, const int32_t *ids, int64_t T, int64_t D,
                              float *out) {
    dr_cuda_state *state;
    if (dr_cuda_enter(b, &state) != DR_OK) return;
    dr_cuda_keep(state, dr_cuda_embedding_forward(table, ids, T, D, out, state->stream));
}

static void embedding_backward(dr_backend *b, const float *dout, const int32_t *ids, int64_t T, int64_t D,
                               float *dtable) {
    dr_cuda_state *state;
    if (dr_cuda_enter(b, &state) != DR_OK) return;
    dr_cuda_keep(state, dr_cuda_embedding_backward(dout, ids, T, D, dtable, state->stream));
}

static void adamw(dr_backend *b, float *weights, const float *gradient, float *m, float *v, int64_t n,
                  float gradient_scale, const dr_adamw_settings *settings) {
    dr_cuda_state *state;
    if (dr_cuda_enter(b, &state) != DR_OK) return;
    dr_cuda_keep(state, dr_cuda_adamw(weights, gradient, m, v, n, gradient_scale, settings, state->stream));
}

static dr_status square_sums(dr_backend *b, const float *x, int64_t n, double *out) {
    dr_cuda_state *state;
    size_t bytes = (size_t)dr_square_blocks(n) * sizeof(double);
    DR_TRY(dr_cuda_enter(b, &state));
    DR_TRY(dr_cuda_reserve(state, &state->partials, "partial sums", (int64_t)bytes));
    DR_TRY(dr_cuda_sums_of_squares(x, n, state->partials.data, state->stream));
    b->ops->copy_out(b, out, state->partials.data, bytes);
    return state->failed;
}

static void sums_of_squares(dr_backend *b, const float *x, int64_t n, double *out) {
    dr_status status = n > 0 ? square_sums(b, x, n, out) : DR_OK;
    dr_cuda_keep(b->state, status);
    for (int64_t i = 0; status != DR_OK && i < dr_square_blocks(n); i++) out[i] = NAN;
}

void dr_cuda_fill_rows(dr_backend_ops *ops) {
    ops->rmsnorm_forward = rmsnorm_forward;
    ops->rmsnorm_residual_forward = rmsnorm_residual_forward;
    ops->rmsnorm_backward = rmsnorm_backward;
    ops->head_norm_forward = head_norm_forward;
    ops->head_norm_backward = head_norm_backward;
    ops->layernorm_forward = layernorm_forward;
    ops->layernorm_backward = layernorm_backward;
    ops->rope = rope;
    ops->gelu_forward = gelu_forward;
    ops->gelu_backward = gelu_backward;
    ops->add = add;
    ops->embedding_forward = embedding_forward;
    ops->embedding_backward = embedding_backward;
    ops->adamw = adamw;
    ops->sums_of_squares = sums_of_squares;
}
