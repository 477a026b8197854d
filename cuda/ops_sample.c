// Draws: how each row is drawn goes to the device, ids and log-probabilities come back, then the kept ids.
#include <cuda_runtime_api.h>

#include "core/base/alloc.h"
#include "cuda/cuda_internal.h"
#include "cuda/draw_index.h"

dr_cuda_draw dr_cuda_draw_of(const dr_sampling *settings, uint32_t bits) {
    bool greedy = settings->temperature == 0;
    return (dr_cuda_draw){greedy ? 1.0f : 1.0f / settings->temperature, settings->top_p, bits, greedy};
}

static dr_status send_draws(dr_cuda_state *state, const dr_sampling *settings, const uint32_t *bits,
                            int64_t T, const dr_cuda_draw **out_draws) {
    dr_cuda_stage *stage;
    DR_TRY(dr_cuda_stage_open(state, T * (int64_t)sizeof(dr_cuda_draw), &stage));
    dr_cuda_draw *draws = (dr_cuda_draw *)stage->host;
    for (int64_t t = 0; t < T; t++) draws[t] = dr_cuda_draw_of(&settings[t], bits[t]);
    *out_draws = (const dr_cuda_draw *)stage->device;
    return dr_cuda_stage_send(state, stage, T * (int64_t)sizeof *draws);
}

dr_status dr_cuda_reserve_draws(dr_cuda_state *state, int64_t T, int64_t V) {
    DR_TRY(dr_cuda_reserve(state, &state->draw_scratch, "scratch of draws", dr_draw_bytes(T, V)));
    return dr_cuda_reserve(state, &state->kept_ids, "kept ids", T * V * (int64_t)sizeof(int32_t));
}

dr_status dr_cuda_reserve_drawn(dr_cuda_state *state, int64_t n, int64_t n_ids) {
    if (n > state->n_drawn) {
        DR_TRY(dr_grow(&state->drawn_host, "draws", state->n_drawn, n, sizeof *state->drawn_host));
        state->n_drawn = n;
    }
    if (n_ids > state->n_kept_ids) {
        int64_t wider = dr_kept_capacity(n_ids);
        DR_TRY(dr_grow(&state->kept_host, "kept ids", state->n_kept_ids, wider, sizeof *state->kept_host));
        state->n_kept_ids = wider;
    }
    return DR_OK;
}

dr_status dr_cuda_fetch(dr_cuda_state *state, void *to, const void *from, size_t bytes) {
    DR_CUDA_TRY(DR_ERR_INTERNAL, cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, state->stream),
                "draws, %zu bytes", bytes);
    return DR_OK;
}

dr_sampled dr_cuda_sampled_of(const dr_cuda_drawn *drawn, const int32_t *kept) {
    return (dr_sampled){.id = drawn->id,
                        .logprob = drawn->logprob,
                        .logprob_kept = drawn->logprob_kept,
                        .kept = {drawn->n_kept > 0 ? kept : NULL, drawn->n_kept}};
}

static dr_status fetch_kept(dr_cuda_state *state, const int32_t *kept_ids, int64_t T, int64_t V,
                            dr_sampled *out) {
    const dr_cuda_drawn *drawn = state->drawn_host;
    int32_t *at = state->kept_host;
    for (int64_t t = 0; t < T; t++) {
        out[t] = dr_cuda_sampled_of(&drawn[t], at);
        if (drawn[t].n_kept == 0) continue;
        DR_TRY(dr_cuda_fetch(state, at, kept_ids + t * V, (size_t)drawn[t].n_kept * sizeof *at));
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
    int64_t drawn_bytes = T * (int64_t)sizeof(dr_cuda_drawn), n_ids = 0;
    for (int64_t t = 0; t < T; t++) DR_TRY(dr_sampling_check(&settings[t]));
    if (T == 0) return DR_OK;
    DR_TRY(dr_cuda_enter(b, &state));
    DR_TRY(send_draws(state, settings, bits, T, &draws));
    DR_TRY(dr_cuda_reserve_draws(state, T, V));
    DR_TRY(dr_cuda_reserve(state, &state->drawn, "draws", drawn_bytes));
    DR_TRY(dr_cuda_reserve_drawn(state, T, 0));
    DR_TRY(dr_cuda_sample(logits, T, V, draws, NULL, NULL, state->draw_scratch.data, state->kept_ids.data,
                          state->drawn.data, state->stream));
    DR_TRY(dr_cuda_fetch(state, state->drawn_host, state->drawn.data, (size_t)drawn_bytes));
    DR_CUDA_TRY(DR_ERR_INTERNAL, cudaStreamSynchronize(state->stream), "%lld draws", (long long)T);
    for (int64_t t = 0; t < T; t++) {
        const dr_cuda_drawn *drawn = &state->drawn_host[t];
        const dr_bad_logit bad = {drawn->n_kept, drawn->logprob};
        if (drawn->id < 0) return dr_sampling_refuse(&bad, 0, t, settings[t].temperature);
        n_ids += drawn->n_kept;
    }
    DR_TRY(dr_cuda_reserve_drawn(state, T, n_ids));
    return fetch_kept(state, state->kept_ids.data, T, V, out);
}

void dr_cuda_fill_sample(dr_backend_ops *ops) {
    ops->sample = sample;
}
