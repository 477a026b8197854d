// The loss head in blocks of rows, so that [T, V] logits never exist: product, softmax, log-probabilities;
// backward: product, gradient at the logits, the two products of a linear layer. Logits come from
// linear_forward: the same bits as the sampler sees.
#include <string.h>

#include "cuda/cuda_internal.h"

enum { HEAD_ROWS = DR_CUDA_HEAD_ROWS };

// The kept sets of T rows on the device; NULL: none.
static dr_status send_kept(dr_cuda_state *state, const dr_kept *kept, int64_t T, dr_cuda_kept *out) {
    *out = (dr_cuda_kept){0};
    if (!kept) return DR_OK;
    int64_t n_ids = 0, starts_bytes = dr_kept_bytes(T, 0);
    for (int64_t t = 0; t < T; t++) n_ids += kept[t].n;
    dr_cuda_stage *stage;
    DR_TRY(dr_cuda_stage_open(state, dr_kept_bytes(T, n_ids), &stage));
    int64_t *starts = (int64_t *)stage->host;
    int32_t *ids = (int32_t *)(stage->host + starts_bytes);
    starts[0] = 0;
    for (int64_t t = 0; t < T; t++) {
        if (kept[t].n > 0) memcpy(ids + starts[t], kept[t].ids, (size_t)kept[t].n * sizeof *ids);
        starts[t + 1] = starts[t] + kept[t].n;
    }
    out->starts = (const int64_t *)stage->device;
    out->ids = (const int32_t *)(stage->device + starts_bytes);
    return dr_cuda_stage_send(state, stage, dr_kept_bytes(T, n_ids));
}

static void softmax_stats(dr_backend *b, const float *logits, int64_t T, int64_t V, float temperature,
                          float *lse, float *entropy) {
    dr_cuda_state *state;
    if (dr_cuda_enter(b, &state) != DR_OK) return;
    dr_cuda_keep(state, dr_cuda_softmax_stats(logits, T, V, temperature, lse, entropy, state->stream));
}

static dr_status kept_stats(dr_backend *b, const float *logits, int64_t T, int64_t V, float temperature,
                            const dr_kept *kept, float *lse) {
    dr_cuda_state *state;
    dr_cuda_kept sets;
    DR_TRY(dr_cuda_enter(b, &state));
    DR_TRY(send_kept(state, kept, T, &sets));
    return dr_cuda_kept_lse(logits, T, V, temperature, sets, lse, state->stream);
}

static void kept_lse(dr_backend *b, const float *logits, int64_t T, int64_t V, float temperature,
                     const dr_kept *kept, float *lse) {
    dr_cuda_keep(b->state, kept_stats(b, logits, T, V, temperature, kept, lse));
}

// A block of logits, the gradient there as bf16 where products round, rows of h of two products where the
// library multiplies, and the stages at most: kept sets that are each the whole vocabulary.
static int64_t head_memory(dr_backend *b, int64_t V, int64_t D) {
    const dr_cuda_state *state = b->state;
    int64_t gradient = dr_rounds_to_bf16(b->precision) ? V : 0, rows = state->lt ? 2 * D : 0;
    return HEAD_ROWS * ((gradient + rows) * (int64_t)sizeof(uint16_t) + V * (int64_t)sizeof(float)) +
           dr_turns_memory(V);
}

// Logits of rows t0 … t0 + rows - 1 in the backend's scratch.
static dr_status block_logits(dr_backend *b, dr_cuda_state *state, const dr_weight *w, const float *h,
                              int64_t t0, int64_t rows, float **out_logits) {
    DR_TRY(dr_cuda_reserve(state, &state->logits, "logits of one block of rows",
                           HEAD_ROWS * w->n_out * (int64_t)sizeof(float)));
    *out_logits = state->logits.data;
    return dr_cuda_linear(b, w, h + t0 * w->n_in, rows, NULL, *out_logits);
}

static dr_status head_forward(dr_backend *b, const dr_weight *w, const float *h, const int32_t *targets,
                              const dr_kept *kept, int64_t T, float temperature, float *logprob,
                              float *entropy, float *lse) {
    dr_cuda_state *state;
    int64_t V = w->n_out;
    DR_TRY(dr_cuda_enter(b, &state));
    for (int64_t t0 = 0; t0 < T; t0 += HEAD_ROWS) {
        int64_t rows = T - t0 < HEAD_ROWS ? T - t0 : HEAD_ROWS;
        float *logits;
        DR_TRY(block_logits(b, state, w, h, t0, rows, &logits));
        DR_TRY(dr_cuda_softmax_stats(logits, rows, V, temperature, lse + t0, entropy + t0, state->stream));
        if (kept) DR_TRY(kept_stats(b, logits, rows, V, temperature, kept + t0, lse + t0));
        DR_TRY(dr_cuda_logprobs(logits, targets + t0, rows, V, temperature, lse + t0, logprob + t0,
                                state->stream));
    }
    return DR_OK;
}

static dr_status head_backward(dr_backend *b, const dr_weight *w, const float *h, const int32_t *targets,
                               const dr_kept *kept, int64_t T, float temperature, const float *lse,
                               const float *dlogprob, float *dh, float *dw) {
    dr_cuda_state *state;
    int64_t V = w->n_out, D = w->n_in;
    DR_TRY(dr_cuda_enter(b, &state));
    for (int64_t t0 = 0; t0 < T; t0 += HEAD_ROWS) {
        int64_t rows = T - t0 < HEAD_ROWS ? T - t0 : HEAD_ROWS;
        float *logits;
        dr_cuda_kept sets;
        DR_TRY(block_logits(b, state, w, h, t0, rows, &logits));
        DR_TRY(send_kept(state, kept ? kept + t0 : NULL, rows, &sets));
        DR_TRY(dr_cuda_head_gradient(logits, targets + t0, sets, rows, V, temperature, lse + t0,
                                     dlogprob + t0, state->stream));
        DR_TRY(dr_cuda_linear_backward(b, w, h + t0 * D, logits, rows, dh + t0 * D, false, dw, NULL));
    }
    return DR_OK;
}

void dr_cuda_fill_head(dr_backend_ops *ops) {
    ops->softmax_stats = softmax_stats;
    ops->kept_lse = kept_lse;
    ops->head_memory = head_memory;
    ops->head_forward = head_forward;
    ops->head_backward = head_backward;
}
