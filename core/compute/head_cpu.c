// The loss head: log-probabilities and entropy of a softmax over the vocabulary, and their gradient, in
// blocks of rows, so that [T, V] logits never exist. Logits come from linear_forward: the same bits as the
// sampler sees. Where top-p left few ids, the gradient touches only them.
#include "core/compute/cpu_internal.h"

// SPARSE_SHARE: a kept set of at most this part of the vocabulary has its gradient taken id by id.
enum { HEAD_ROWS = 128, SPARSE_SHARE = 16 };

// z → d(Σ dlogprob · logprob)/dz in place.
static DR_HOT void row_gradient(float *z, int64_t V, float inv_temperature, float lse, int32_t target,
                                float dlogprob) {
    float scale = dlogprob * inv_temperature;
    for (int64_t j = 0; j < V; j++) z[j] = -scale * dr_expf(z[j] * inv_temperature - lse);
    z[target] += scale;
}

// The same where the softmax is over the kept ids: 0 at the others.
static DR_HOT void row_kept_gradient(float *z, int64_t V, float inv_temperature, float lse,
                                     const dr_kept *kept, int32_t target, float dlogprob) {
    float scale = dlogprob * inv_temperature;
    int64_t at = 0;
    for (int32_t k = 0; k < kept->n; k++) {
        int64_t id = kept->ids[k];
        memset(z + at, 0, (size_t)(id - at) * sizeof(float));
        z[id] = -scale * dr_expf(z[id] * inv_temperature - lse);
        at = id + 1;
    }
    memset(z + at, 0, (size_t)(V - at) * sizeof(float));
    z[target] += scale;
}

// A block of logits, its rows as each thread packs them, and what the product of its gradient with the weight
// packs or rounds; through oneDNN the logits once more where a block is filled up with rows. A block has its
// room whatever T is.
static int64_t head_memory(dr_backend *b, int64_t T, int64_t V, int64_t D) {
    (void)T;
    int64_t logits = HEAD_ROWS * V * (int64_t)sizeof(float),
            rows = HEAD_ROWS * D * (2 + b->n_threads) * (int64_t)sizeof(float);
    if (b->precision == DR_BF16)
        return logits + rows +
               (dr_cpu_state_of(b)->bf16 ? HEAD_ROWS * V * (int64_t)(sizeof(bf16) + sizeof(float))
                                         : dr_bf16_lanes_memory(b, HEAD_ROWS, V, D));
    return logits + rows + dr_panels_floats(V < DR_DEPTH ? V : DR_DEPTH, D) * (int64_t)sizeof(float);
}

static dr_status head_forward(dr_backend *b, const dr_weight *w, const float *h, const int32_t *targets,
                              const dr_kept *kept, int64_t T, float temperature, float *logprob,
                              float *entropy, float *lse) {
    int64_t V = w->n_out, D = w->n_in;
    dr_scratch *scratch = &dr_cpu_state_of(b)->head;
    DR_TRY(dr_scratch_reserve(scratch, HEAD_ROWS * V));
    float *logits = scratch->data;
    for (int64_t t0 = 0; t0 < T; t0 += HEAD_ROWS) {
        int64_t rows = T - t0 < HEAD_ROWS ? T - t0 : HEAD_ROWS;
        DR_TRY(b->ops->linear_forward(b, w, h + t0 * D, rows, NULL, logits));
        b->ops->softmax_stats(b, logits, rows, V, temperature, lse + t0, entropy + t0);
        if (kept) b->ops->kept_lse(b, logits, rows, V, temperature, kept + t0, lse + t0);
        for (int64_t r = 0; r < rows; r++)
            logprob[t0 + r] = dr_logprob_of(logits[r * V + targets[t0 + r]], temperature, lse[t0 + r]);
    }
    return DR_OK;
}

// What head_backward works on.
typedef struct head_gradient {
    const dr_weight *w;
    const float *h;
    const int32_t *targets;
    const dr_kept *kept;
    float temperature;
    const float *lse, *dlogprob;
    float *dh, *dw;
} head_gradient;

// At most HEAD_ROWS rows of one kind.
typedef struct row_list {
    int64_t at[HEAD_ROWS];
    int n;
} row_list;

// By their whole logits, gathered so that rows of the other kind between them cost nothing.
static dr_status dense_rows(dr_backend *b, const head_gradient *g, const row_list *rows) {
    int64_t V = g->w->n_out, D = g->w->n_in;
    dr_scratch *scratch = &dr_cpu_state_of(b)->head;
    DR_TRY(dr_scratch_reserve(scratch, HEAD_ROWS * (V + 2 * D)));
    float *logits = scratch->data, *h = logits + HEAD_ROWS * V, *dh = h + HEAD_ROWS * D,
          inv = 1.0f / g->temperature;
    for (int r = 0; r < rows->n; r++) memcpy(h + r * D, g->h + rows->at[r] * D, (size_t)D * sizeof(float));
    DR_TRY(b->ops->linear_forward(b, g->w, h, rows->n, NULL, logits));
#pragma omp parallel for num_threads(b->n_threads) schedule(static) if (b->n_threads > 1 && rows->n > 1)
    for (int r = 0; r < rows->n; r++) {
        int64_t t = rows->at[r];
        float *z = logits + r * V;
        if (g->kept && g->kept[t].n > 0)
            row_kept_gradient(z, V, inv, g->lse[t], &g->kept[t], g->targets[t], g->dlogprob[t]);
        else
            row_gradient(z, V, inv, g->lse[t], g->targets[t], g->dlogprob[t]);
    }
    DR_TRY(b->ops->linear_backward(b, g->w, h, logits, rows->n, dh, false, g->dw, NULL));
    for (int r = 0; r < rows->n; r++) memcpy(g->dh + rows->at[r] * D, dh + r * D, (size_t)D * sizeof(float));
    return DR_OK;
}

static DR_HOT float dot(const float *x, const float *y, int64_t n) {
    return dr_dot(x, y, n);
}

static DR_HOT void add_scaled(float scale, const float *x, int64_t n, float *y) {
    for (int64_t i = 0; i < n; i++) y[i] += scale * x[i];
}

// dz of one row's kept ids, and dh of the row.
static void sparse_row(const head_gradient *g, int64_t t, float *dz) {
    int64_t D = g->w->n_in;
    const dr_kept *kept = &g->kept[t];
    float inv = 1.0f / g->temperature, scale = g->dlogprob[t] * inv;
    memset(g->dh + t * D, 0, (size_t)D * sizeof(float));
    for (int32_t k = 0; k < kept->n; k++) {
        const float *row = g->w->values + kept->ids[k] * D;
        dz[k] = -scale * dr_expf(dot(g->h + t * D, row, D) * inv - g->lse[t]);
        if (kept->ids[k] == g->targets[t]) dz[k] += scale;
        add_scaled(dz[k], row, D, g->dh + t * D);
    }
}

// Rows whose kept sets are small: only the rows of w that they name. Each thread writes its own part of dw,
// in the order of the list.
static dr_status sparse_rows(dr_backend *b, const head_gradient *g, const row_list *rows) {
    int64_t V = g->w->n_out, D = g->w->n_in, offset[HEAD_ROWS + 1] = {0};
    dr_scratch *scratch = &dr_cpu_state_of(b)->head;
    for (int r = 0; r < rows->n; r++) offset[r + 1] = offset[r] + g->kept[rows->at[r]].n;
    DR_TRY(dr_scratch_reserve(scratch, offset[rows->n]));
    float *dz = scratch->data;
#pragma omp parallel for num_threads(b->n_threads) schedule(static) if (b->n_threads > 1 && rows->n > 1)
    for (int r = 0; r < rows->n; r++) sparse_row(g, rows->at[r], dz + offset[r]);
#pragma omp parallel for num_threads(b->n_threads) schedule(static) if (b->n_threads > 1)
    for (int part = 0; part < b->n_threads; part++) {
        int64_t begin = V * part / b->n_threads, end = V * (part + 1) / b->n_threads;
        for (int r = 0; r < rows->n; r++) {
            const dr_kept *kept = &g->kept[rows->at[r]];
            for (int32_t k = 0; k < kept->n; k++)
                if (kept->ids[k] >= begin && kept->ids[k] < end)
                    add_scaled(dz[offset[r] + k], g->h + rows->at[r] * D, D, g->dw + kept->ids[k] * D);
        }
    }
    return DR_OK;
}

// A row's way depends on its kept set alone, so that packing does not change its numbers. In bf16 the logits
// are those of rounded operands, which only the whole product gives.
static bool is_sparse(const dr_backend *b, const head_gradient *g, int64_t t) {
    return b->precision != DR_BF16 && g->kept && g->kept[t].n > 0 &&
           g->kept[t].n <= g->w->n_out / SPARSE_SHARE;
}

static dr_status head_backward(dr_backend *b, const dr_weight *w, const float *h, const int32_t *targets,
                               const dr_kept *kept, int64_t T, float temperature, const float *lse,
                               const float *dlogprob, float *dh, float *dw) {
    head_gradient g = {w, h, targets, kept, temperature, lse, dlogprob, dh, dw};
    row_list dense = {.n = 0}, sparse = {.n = 0};
    for (int64_t t = 0; t < T; t++) {
        row_list *list = is_sparse(b, &g, t) ? &sparse : &dense;
        list->at[list->n++] = t;
        if (list->n < HEAD_ROWS) continue;
        DR_TRY(list == &sparse ? sparse_rows(b, &g, list) : dense_rows(b, &g, list));
        list->n = 0;
    }
    if (sparse.n > 0) DR_TRY(sparse_rows(b, &g, &sparse));
    return dense.n > 0 ? dense_rows(b, &g, &dense) : DR_OK;
}

void dr_cpu_fill_head(dr_backend_ops *ops) {
    ops->head_memory = head_memory;
    ops->head_forward = head_forward;
    ops->head_backward = head_backward;
}
