// RMSNorm, of rows and of heads, and LayerNorm, forward and backward. Row sums run in 16 fixed lanes, so a
// row's bits do not depend on its place.
#include "core/compute/cpu_internal.h"

DR_INLINE float sum(const float *x, int64_t D) {
    float lanes[DR_LANES] = {0};
    int64_t j = 0;
    for (; j + DR_LANES <= D; j += DR_LANES)
        for (int l = 0; l < DR_LANES; l++) lanes[l] += x[j + l];
    for (int l = 0; j + l < D; l++) lanes[l] += x[j + l];
    return dr_lane_sum(lanes);
}

static DR_HOT void rmsnorm_forward_rows(const float *x, const float *w, int64_t T, int64_t D, float eps,
                                        float *y, float *inv_rms) {
    for (int64_t t = 0; t < T; t++) {
        const float *row = x + t * D;
        float inv = 1.0f / sqrtf(dr_dot(row, row, D) / (float)D + eps);
        for (int64_t j = 0; j < D; j++) y[t * D + j] = row[j] * inv * w[j];
        if (inv_rms) inv_rms[t] = inv;
    }
}

enum { ROW_BLOCK = 64 };

static void rmsnorm_forward(dr_backend *b, const float *x, const float *w, int64_t T, int64_t D, float eps,
                            float *y, float *inv_rms) {
#pragma omp parallel for num_threads(b->n_threads) schedule(static) if (b->n_threads > 1 && T > ROW_BLOCK)
    for (int64_t t = 0; t < T; t += ROW_BLOCK)
        rmsnorm_forward_rows(x + t * D, w, T - t < ROW_BLOCK ? T - t : ROW_BLOCK, D, eps, y + t * D,
                             inv_rms ? inv_rms + t : NULL);
}

static DR_HOT void add_rows(const float *residual, int64_t n, float *x) {
    for (int64_t i = 0; i < n; i++) x[i] += residual[i];
}

static void rmsnorm_residual_forward(dr_backend *b, const float *residual, const float *w, int64_t T,
                                     int64_t D, float eps, float *x, float *y, float *inv_rms) {
#pragma omp parallel for num_threads(b->n_threads) schedule(static) if (b->n_threads > 1 && T > ROW_BLOCK)
    for (int64_t t = 0; t < T; t += ROW_BLOCK) {
        int64_t rows = T - t < ROW_BLOCK ? T - t : ROW_BLOCK;
        for (int64_t i = t; i < t + rows; i++) { // a row is normed while it is near
            add_rows(residual + i * D, D, x + i * D);
            rmsnorm_forward_rows(x + i * D, w, 1, D, eps, y + i * D, inv_rms ? inv_rms + i : NULL);
        }
    }
}

// What the gradient at a row takes of the row itself.
DR_INLINE float rmsnorm_gradient_scale(const float *g, const float *row, const float *w, float inv,
                                       int64_t D) {
    float lanes[DR_LANES] = {0};
    int64_t j = 0;
    for (; j + DR_LANES <= D; j += DR_LANES)
        for (int l = 0; l < DR_LANES; l++) lanes[l] += g[j + l] * w[j + l] * row[j + l];
    for (int l = 0; j + l < D; l++) lanes[l] += g[j + l] * w[j + l] * row[j + l];
    return dr_lane_sum(lanes) * inv * inv * inv / (float)D;
}

static DR_HOT void rmsnorm_backward_rows(const float *dy, const float *x, const float *w,
                                         const float *inv_rms, int64_t T, int64_t D, float *dx) {
    for (int64_t t = 0; t < T; t++) {
        const float *g = dy + t * D, *row = x + t * D;
        float inv = inv_rms[t], scale = rmsnorm_gradient_scale(g, row, w, inv, D);
        for (int64_t i = 0; i < D; i++) dx[t * D + i] += g[i] * w[i] * inv - row[i] * scale;
    }
}

// Columns begin … end - 1 of dw, over all rows in order.
static DR_HOT void rmsnorm_backward_columns(const float *dy, const float *x, const float *inv_rms, int64_t T,
                                            int64_t D, int64_t begin, int64_t end, float *dw) {
    for (int64_t t = 0; t < T; t++)
        for (int64_t i = begin; i < end; i++) dw[i] += dy[t * D + i] * x[t * D + i] * inv_rms[t];
}

static void rmsnorm_backward(dr_backend *b, const float *dy, const float *x, const float *w,
                             const float *inv_rms, int64_t T, int64_t D, float *dx, float *dw) {
    int parts = b->n_threads;
#pragma omp parallel for num_threads(parts) schedule(static) if (parts > 1 && T > ROW_BLOCK)
    for (int64_t t = 0; t < T; t += ROW_BLOCK)
        rmsnorm_backward_rows(dy + t * D, x + t * D, w, inv_rms + t, T - t < ROW_BLOCK ? T - t : ROW_BLOCK, D,
                              dx + t * D);
    if (!dw) return;
#pragma omp parallel for num_threads(parts) schedule(static) if (parts > 1 && T > ROW_BLOCK)
    for (int part = 0; part < parts; part++)
        rmsnorm_backward_columns(dy, x, inv_rms, T, D, D * part / parts, D * (part + 1) / parts, dw);
}

// A row's heads stand densely: they are rows of rmsnorm.
static void head_norm_forward(dr_backend *b, float *x, const float *w, int64_t T, int64_t n_heads, int64_t d,
                              int64_t stride, float eps, float *kept, float *inv_rms) {
    const int64_t width = n_heads * d;
    bool shared = b->n_threads > 1 && T * n_heads > ROW_BLOCK;
#pragma omp parallel for num_threads(b->n_threads) schedule(static) if (shared)
    for (int64_t t = 0; t < T; t++) {
        float *heads = x + t * stride;
        if (kept) memcpy(kept + t * width, heads, (size_t)width * sizeof(float));
        rmsnorm_forward_rows(heads, w, n_heads, d, eps, heads, inv_rms ? inv_rms + t * n_heads : NULL);
    }
}

static DR_HOT void head_norm_backward_row(float *dx, const float *kept, const float *w, const float *inv_rms,
                                          int64_t n_heads, int64_t d) {
    for (int64_t h = 0; h < n_heads; h++) {
        float *g = dx + h * d;
        const float *head = kept + h * d;
        float inv = inv_rms[h], scale = rmsnorm_gradient_scale(g, head, w, inv, d);
        for (int64_t i = 0; i < d; i++) g[i] = g[i] * w[i] * inv - head[i] * scale;
    }
}

static void head_norm_backward(dr_backend *b, float *dx, const float *kept, const float *w,
                               const float *inv_rms, int64_t T, int64_t n_heads, int64_t d, int64_t stride,
                               float *dw) {
    int parts = b->n_threads;
    bool shared = parts > 1 && T * n_heads > ROW_BLOCK;
    // dw first: it reads what dx is written over
#pragma omp parallel for num_threads(parts) schedule(static) if (shared)
    for (int part = 0; part < parts; part++)
        for (int64_t t = 0; t < T; t++)
            rmsnorm_backward_columns(dx + t * stride, kept + t * n_heads * d, inv_rms + t * n_heads, n_heads,
                                     d, d * part / parts, d * (part + 1) / parts, dw);
#pragma omp parallel for num_threads(parts) schedule(static) if (shared)
    for (int64_t t = 0; t < T; t++)
        head_norm_backward_row(dx + t * stride, kept + t * n_heads * d, w, inv_rms + t * n_heads, n_heads, d);
}

static DR_HOT void layernorm_forward_rows(const float *x, const float *w, const float *bias, int64_t T,
                                          int64_t D, float eps, float *y, float *mean, float *inv_std) {
    for (int64_t t = 0; t < T; t++) {
        const float *row = x + t * D;
        float mu = sum(row, D) / (float)D, lanes[DR_LANES] = {0};
        int64_t j = 0;
        for (; j + DR_LANES <= D; j += DR_LANES)
            for (int l = 0; l < DR_LANES; l++) lanes[l] += (row[j + l] - mu) * (row[j + l] - mu);
        for (int l = 0; j + l < D; l++) lanes[l] += (row[j + l] - mu) * (row[j + l] - mu);
        float inv = 1.0f / sqrtf(dr_lane_sum(lanes) / (float)D + eps);
        for (int64_t i = 0; i < D; i++) y[t * D + i] = (row[i] - mu) * inv * w[i] + bias[i];
        if (mean) mean[t] = mu;
        if (inv_std) inv_std[t] = inv;
    }
}

static void layernorm_forward(dr_backend *b, const float *x, const float *w, const float *bias, int64_t T,
                              int64_t D, float eps, float *y, float *mean, float *inv_std) {
#pragma omp parallel for num_threads(b->n_threads) schedule(static) if (b->n_threads > 1 && T > ROW_BLOCK)
    for (int64_t t = 0; t < T; t += ROW_BLOCK)
        layernorm_forward_rows(x + t * D, w, bias, T - t < ROW_BLOCK ? T - t : ROW_BLOCK, D, eps, y + t * D,
                               mean ? mean + t : NULL, inv_std ? inv_std + t : NULL);
}

static DR_HOT void layernorm_backward(dr_backend *b, const float *dy, const float *x, const float *w,
                                      const float *mean, const float *inv_std, int64_t T, int64_t D,
                                      float *dx, float *dw, float *dbias) {
    (void)b;
    for (int64_t t = 0; t < T; t++) {
        const float *g = dy + t * D, *row = x + t * D;
        float mu = mean[t], inv = inv_std[t];
        float by_one = dr_dot(g, w, D), lanes[DR_LANES] = {0};
        int64_t j = 0;
        for (; j + DR_LANES <= D; j += DR_LANES)
            for (int l = 0; l < DR_LANES; l++) lanes[l] += g[j + l] * w[j + l] * (row[j + l] - mu);
        for (int l = 0; j + l < D; l++) lanes[l] += g[j + l] * w[j + l] * (row[j + l] - mu);
        float by_x = dr_lane_sum(lanes) * inv * inv / (float)D;
        by_one /= (float)D;
        for (int64_t i = 0; i < D; i++) dx[t * D + i] += inv * (g[i] * w[i] - by_one - (row[i] - mu) * by_x);
        for (int64_t i = 0; dw && i < D; i++) dw[i] += g[i] * (row[i] - mu) * inv;
        for (int64_t i = 0; dbias && i < D; i++) dbias[i] += g[i];
    }
}

void dr_cpu_fill_norm(dr_backend_ops *ops) {
    ops->rmsnorm_forward = rmsnorm_forward;
    ops->rmsnorm_residual_forward = rmsnorm_residual_forward;
    ops->rmsnorm_backward = rmsnorm_backward;
    ops->head_norm_forward = head_norm_forward;
    ops->head_norm_backward = head_norm_backward;
    ops->layernorm_forward = layernorm_forward;
    ops->layernorm_backward = layernorm_backward;
}
