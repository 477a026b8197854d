// The loss head in blocks of rows, so that [T, V] logits never exist: product, softmax, log-probabilities;
// backward: product, gradient at the logits, the two products of a linear layer. Logits come from
// linear_forward: the same bits as the sampler sees.
#include <string.h>

#include "cuda/cuda_internal.h"

// The kept sets of the first rows, *out_rows of T, on the device; NULL: of all, which have none.
static dr_status send_kept(dr_cuda_state *state, const dr_kept *kept, int64_t T, int64_t V, dr_cuda_kept *out,
                           int64_t *out_rows) {
    *out = (dr_cuda_kept){0};
    *out_rows = T;
    if (!kept) return DR_OK;
    int64_t n_ids = 0, rows = dr_kept_rows(kept, T, V, &n_ids), starts_bytes = dr_kept_bytes(rows, 0);
    dr_cuda_stage *stage;
    DR_CHECK(rows > 0 || T == 0, DR_ERR_RANGE, "kept set of %d ids, the vocabulary has %lld", kept[0].n,
             (long long)V);
    DR_TRY(dr_cuda_stage_open(state, dr_kept_bytes(rows, n_ids), &stage));
    int64_t *starts = (int64_t *)stage->host;
    int32_t *ids = (int32_t *)(stage->host + starts_bytes);
    starts[0] = 0;
    for (int64_t t = 0; t < rows; t++) {
        if (kept[t].n > 0) memcpy(ids + starts[t], kept[t].ids, (size_t)kept[t].n * sizeof *ids);
        starts[t + 1] = starts[t] + kept[t].n;
    }
    out->starts = (const int64_t *)stage->device;
    out->ids = (const int32_t *)(stage->device + starts_bytes);
    *out_rows = rows;
    return dr_cuda_stage_send(state, stage, dr_kept_bytes(rows, n_ids));
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
    DR_TRY(dr_cuda_enter(b, &state));
    for (int64_t t = 0, rows = 0; t < T; t += rows) {
        dr_cuda_kept sets;
        DR_TRY(send_kept(state, kept + t, T - t, V, &sets, &rows));
        DR_TRY(dr_cuda_kept_lse(logits + t * V, rows, V, temperature, sets, lse + t, state->stream));
    }
    return DR_OK;
}

static void kept_lse(dr_backend *b, const float *logits, int64_t T, int64_t V, float temperature,
                     const dr_kept *kept, float *lse) {
    dr_cuda_keep(b->state, kept_stats(b, logits, T, V, temperature, kept, lse));
}

// A block of logits and the stages of kept sets; where products round the gradient once more, as bf16, and
// where the library multiplies rows of h for two products. The plan of a pass (pass_memory) counts what these
// two share with its layers for itself.
static int64_t head_memory(dr_backend *b, int64_t T, int64_t V, int64_t D) {
    const dr_cuda_state *state = b->state;
    int64_t bytes = V * (int64_t)sizeof(float);
    if (dr_rounds_to_bf16(b->precision)) bytes += (V + (state->lt ? 2 * D : 0)) * (int64_t)sizeof(uint16_t);
    return dr_head_block(T, V, 0) * bytes + dr_turns_memory(T, V);
}

// Logits of the block that begins at row t0 of T, in the backend's scratch.
static dr_status block_logits(dr_backend *b, dr_cuda_state *state, const dr_weight *w, const float *h,
                              int64_t T, int64_t t0, float **out_logits) {
    DR_TRY(dr_cuda_reserve(state, &state->logits, "logits of one block of rows",
                           dr_head_block(T, w->n_out, 0) * w->n_out * (int64_t)sizeof(float)));
    *out_logits = state->logits.data;
    return dr_cuda_linear(b, w, h + t0 * w->n_in, dr_head_block(T, w->n_out, t0), NULL, *out_logits);
}

static dr_status head_forward(dr_backend *b, const dr_weight *w, const float *h, const int32_t *targets,
                              const dr_kept *kept, int64_t T, float temperature, float *logprob,
                              float *entropy, float *lse) {
    dr_cuda_state *state;
    int64_t V = w->n_out;
    DR_TRY(dr_cuda_enter(b, &state));
    for (int64_t t0 = 0, rows = 0; t0 < T; t0 += rows) {
        float *logits;
        rows = dr_head_block(T, V, t0);
        DR_TRY(block_logits(b, state, w, h, T, t0, &logits));
        DR_TRY(dr_cuda_softmax_stats(logits, rows, V, temperature, lse + t0, entropy + t0, state->stream));
        if (kept) DR_TRY(kept_stats(b, logits, rows, V, temperature, kept + t0, lse + t0));
        DR_TRY(dr_cuda_logprobs(logits, targets + t0, rows, V, temperature, lse + t0, logprob + t0,
                                state->stream));
    }
    return DR_OK;
}

// Rows of a block, and what becomes of their logits.
typedef struct block {
    float *logits; // [rows, V]
    const int32_t *targets;
    const dr_kept *kept; // or NULL
    const float *lse, *dlogprob;
    int64_t rows, V;
    float temperature;
} block;

// The gradient at a block's logits: in their place, or beside them as bf16 where products round.
static dr_status block_gradient(dr_backend *b, dr_cuda_state *state, const block *at, dr_lt_operand *out) {
    const int64_t n = at->rows * at->V;
    const bool rounds = dr_rounds_to_bf16(b->precision);
    if (rounds)
        DR_TRY(dr_cuda_reserve(state, &state->dy, "gradient of products", n * (int64_t)sizeof(uint16_t)));
    *out = (dr_lt_operand){rounds ? NULL : at->logits, rounds ? state->dy.data : NULL, n};
    for (int64_t t = 0, rows = 0; t < at->rows; t += rows) {
        const float *logits = at->logits + t * at->V, *lse = at->lse + t, *dlogprob = at->dlogprob + t;
        dr_cuda_kept sets;
        DR_TRY(send_kept(state, at->kept ? at->kept + t : NULL, at->rows - t, at->V, &sets, &rows));
        if (rounds)
            DR_TRY(dr_cuda_head_gradient_bf16(logits, at->targets + t, sets, rows, at->V, at->temperature,
                                              lse, dlogprob, (uint16_t *)state->dy.data + t * at->V,
                                              state->stream));
        else
            DR_TRY(dr_cuda_head_gradient(logits, at->targets + t, sets, rows, at->V, at->temperature, lse,
                                         dlogprob, at->logits + t * at->V, state->stream));
    }
    return DR_OK;
}

static dr_status head_backward(dr_backend *b, const dr_weight *w, const float *h, const int32_t *targets,
                               const dr_kept *kept, int64_t T, float temperature, const float *lse,
                               const float *dlogprob, float *dh, float *dw) {
    dr_cuda_state *state;
    int64_t V = w->n_out, D = w->n_in;
    DR_TRY(dr_cuda_enter(b, &state));
    for (int64_t t0 = 0, rows = 0; t0 < T; t0 += rows) {
        float *logits;
        dr_lt_operand gradient;
        rows = dr_head_block(T, V, t0);
        DR_TRY(block_logits(b, state, w, h, T, t0, &logits));
        const block at = {logits, targets + t0, kept ? kept + t0 : NULL, lse + t0, dlogprob + t0, rows,
                          V,      temperature};
        DR_TRY(block_gradient(b, state, &at, &gradient));
        DR_TRY(dr_cuda_gradient_products(b, "head_backward", w, h + t0 * D, &gradient, rows, dh + t0 * D,
                                         false, dw));
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
