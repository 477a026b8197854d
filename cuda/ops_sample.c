// Draws: how each row is drawn goes to the device, ids and log-probabilities come back, then the kept ids.
#include <cuda_runtime_api.h>

#include "core/base/alloc.h"
#include "cuda/cuda_internal.h"

static dr_status send_draws(dr_cuda_state *state, const dr_sampling *settings, const uint32_t *bits,
                            int64_t T, const dr_cuda_draw **out_draws) {
    dr_cuda_stage *stage;
    DR_TRY(dr_cuda_stage_open(state, T * (int64_t)sizeof(dr_cuda_draw), &stage));
    dr_cuda_draw *draws = (dr_cuda_draw *)stage->host;
    for (int64_t t = 0; t < T; t++) {
        bool greedy = settings[t].temperature == 0;
        draws[t] = (dr_cuda_draw){greedy ? 1.0f : 1.0f / settings[t].temperature, settings[t].top_p, bits[t],
                                  greedy};
    }
    *out_draws = (const dr_cuda_draw *)stage->device;
    return dr_cuda_stage_send(state, stage, T * (int64_t)sizeof *draws);
}

// Host memory for what T rows with n_ids kept ids between them bring back.
static dr_status reserve_host(dr_cuda_state *state, int64_t T, int64_t n_ids) {
    if (T > state->n_drawn) {
        DR_TRY(dr_grow(&state->drawn_host, "draws", state->n_drawn, T, sizeof *state->drawn_host));
        state->n_drawn = T;
    }
    if (n_ids > state->n_kept_ids) {
        int64_t n = n_ids + n_ids / 4;
        DR_TRY(dr_grow(&state->kept_host, "kept ids", state->n_kept_ids, n, sizeof *state->kept_host));
        state->n_kept_ids = n;
    }
    return DR_OK;
}

static dr_status fetch(dr_cuda_state *state, void *to, const void *from, size_t bytes) {
    DR_CUDA_TRY(DR_ERR_INTERNAL, cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, state->stream),
                "draws, %zu bytes", bytes);
    return DR_OK;
}

// Says what is wrong with a row that no token could be drawn from.
static dr_status refuse(dr_backend *b, const float *logits, int64_t V, int64_t row,
                        const dr_sampling *settings) {
    float *z = NULL;
    DR_TRY(dr_alloc(&z, "logits of a row", V, sizeof *z));
    b->ops->copy_out(b, z, logits + row * V, (size_t)V * sizeof *z);
    dr_status status = dr_sampling_refuse(z, V, row, settings[row].temperature);
    dr_free(z);
    return status;
}

static dr_status fetch_kept(dr_cuda_state *state, const int32_t *kept_ids, int64_t T, int64_t V,
                            dr_sampled *out) {
    const dr_cuda_drawn *drawn = state->drawn_host;
    int32_t *at = state->kept_host;
    for (int64_t t = 0; t < T; t++) {
        out[t] = (dr_sampled){.id = drawn[t].id,
                              .logprob = drawn[t].logprob,
                              .logprob_kept = drawn[t].logprob_kept,
                              .kept = {drawn[t].n_kept > 0 ? at : NULL, drawn[t].n_kept}};
        if (drawn[t].n_kept == 0) continue;
        DR_TRY(fetch(state, at, kept_ids + t * V, (size_t)drawn[t].n_kept * sizeof *at));
        at += drawn[t].n_kept;
    }
    DR_CUDA_TRY(DR_ERR_INTERNAL, cudaStreamSynchronize(state->stream), "kept ids of %lld draws",
                (long long)T);
    return DR_OK;
}

static dr_status sample(dr_backend *b, const float *logits, int64_t T, int64_t V, const dr_sampling *settings,
                        const uint32_t *bits, dr_sampled *out) {
    dr_cuda_state *state;
    const dr_cuda_draw *draws;
    int64_t ids_bytes = T * V * (int64_t)sizeof(int32_t), drawn_bytes = T * (int64_t)sizeof(dr_cuda_drawn),
            n_ids = 0;
    for (int64_t t = 0; t < T; t++) DR_TRY(dr_sampling_check(&settings[t]));
    if (T == 0) return DR_OK;
    DR_TRY(dr_cuda_enter(b, &state));
    DR_TRY(send_draws(state, settings, bits, T, &draws));
    DR_TRY(dr_cuda_reserve(state, &state->kept_ids, "kept ids", ids_bytes));
    DR_TRY(dr_cuda_reserve(state, &state->drawn, "draws", drawn_bytes));
    DR_TRY(reserve_host(state, T, 0));
    DR_TRY(dr_cuda_sample(logits, T, V, draws, state->kept_ids.data, state->drawn.data, state->stream));
    DR_TRY(fetch(state, state->drawn_host, state->drawn.data, (size_t)drawn_bytes));
    DR_CUDA_TRY(DR_ERR_INTERNAL, cudaStreamSynchronize(state->stream), "%lld draws", (long long)T);
    for (int64_t t = 0; t < T; t++) {
        if (state->drawn_host[t].id < 0) return refuse(b, logits, V, t, settings);
        n_ids += state->drawn_host[t].n_kept;
    }
    DR_TRY(reserve_host(state, T, n_ids));
    return fetch_kept(state, state->kept_ids.data, T, V, out);
}

void dr_cuda_fill_sample(dr_backend_ops *ops) {
    ops->sample = sample;
}
