// Bursts: what the host decided goes to the device once, each draw is followed by what moves its rows on, and
// all results come back once at the end.
#include <cuda_runtime_api.h>

#include "core/base/alloc.h"
#include "cuda/cuda_internal.h"
#include "cuda/stage_plan.h"

static dr_burst_layout layout_of(const dr_burst *burst) {
    return dr_burst_layout_of(burst->n_rows, burst->n_steps);
}

// Pages that are sent: what the rows can take at most, if there are as many.
static int64_t pool_of(const dr_burst *burst) {
    const int64_t most = burst->n_rows * dr_burst_row_pages(burst->n_steps);
    if (!burst->pages) return 0;
    return burst->pages->n_pool < most ? burst->pages->n_pool : most;
}

static void write_burst(const dr_burst *burst, const dr_burst_layout *at, char *host) {
    dr_burst_row *rows = (dr_burst_row *)(host + at->rows);
    dr_cuda_draw *draws = (dr_cuda_draw *)(host + at->draws);
    dr_draw_key *keys = (dr_draw_key *)(host + at->keys);
    int32_t *pool = (int32_t *)(host + at->pool);
    *(int64_t *)host = *(int64_t *)(host + at->n_taken) = 0;
    for (int64_t i = 0; i < pool_of(burst); i++) pool[i] = burst->pages->pool[i];
    for (int64_t r = 0; r < burst->n_rows; r++) {
        rows[r] = dr_burst_row_at(burst, r);
        draws[r] = dr_cuda_draw_of(&burst->settings[r], 0); // bits are made of the key
        keys[r] = burst->keys[r];
    }
}

static bool keeps_parts(const dr_burst *burst) {
    for (int64_t r = 0; r < burst->n_rows; r++)
        if (burst->settings[r].temperature != 0 && burst->settings[r].top_p < 1.0f) return true;
    return false;
}

static int64_t listed_ids(const dr_burst *burst) {
    return dr_burst_listed_ids(burst->n_rows, burst->V);
}

static dr_status reserve(dr_cuda_state *state, const dr_burst *burst) {
    const int64_t n_drawn = burst->n_steps * burst->n_rows;
    dr_cuda_burst *own = &state->burst;
    DR_TRY(dr_cuda_reserve_draws(state, burst->n_rows, burst->V));
    if (own->lists)
        DR_TRY(dr_cuda_reserve(state, &own->list, "kept ids of a burst",
                               listed_ids(burst) * (int64_t)sizeof(int32_t)));
    DR_TRY(dr_cuda_reserve(state, &state->drawn, "draws", n_drawn * (int64_t)sizeof(dr_cuda_drawn)));
    DR_TRY(dr_cuda_reserve_drawn(state, n_drawn, 0));
    if (burst->n_rows > own->n_rows_host) {
        DR_TRY(dr_grow(&own->rows_host, "rows of a burst", own->n_rows_host, burst->n_rows,
                       sizeof *own->rows_host));
        own->n_rows_host = burst->n_rows;
    }
    return DR_OK;
}

static dr_status burst_begin(dr_backend *b, const dr_burst *burst) {
    dr_cuda_state *state;
    DR_TRY(dr_burst_check(burst));
    if (burst->pages) DR_TRY(dr_cuda_check_page(burst->pages->page_size));
    DR_TRY(dr_cuda_enter(b, &state));
    dr_cuda_burst *own = &state->burst;
    const dr_burst_layout at = layout_of(burst);
    dr_cuda_end_burst(state); // one that did not come to its end
    own->lists = keeps_parts(burst);
    DR_TRY(reserve(state, burst));
    DR_TRY(dr_cuda_stage_reserve(state, &own->stage, at.bytes));
    write_burst(burst, &at, own->stage.host);
    DR_TRY(dr_cuda_stage_send(state, &own->stage, at.taken));
    DR_TRY(dr_cuda_plan_passes(b, burst->passes, burst->passes ? burst->n_steps - 1 : 0));
    own->burst = burst;
    own->step = 0;
    return DR_OK;
}

// The settling of step `step`, which the pass of that number follows.
static dr_cuda_settling settling_of(const dr_cuda_state *state, int32_t step, int32_t *ids,
                                    int32_t *positions) {
    const dr_burst *burst = state->burst.burst;
    const dr_burst_layout at = layout_of(burst);
    const int64_t n = burst->n_rows;
    char *device = state->burst.stage.device;
    dr_cuda_settling settling = {.n_rows = n,
                                 .V = burst->V,
                                 .has_stops = burst->stops != NULL,
                                 .rows = (dr_burst_row *)(device + at.rows),
                                 .drawn = (dr_cuda_drawn *)state->drawn.data + step * n,
                                 .n_listed = (int64_t *)device,
                                 .room = listed_ids(burst),
                                 .ids = ids,
                                 .positions = positions,
                                 .pool = (const int32_t *)(device + at.pool),
                                 .n_taken = (int64_t *)(device + at.n_taken),
                                 .taken = (int32_t *)(device + at.taken),
                                 .n_pool = pool_of(burst),
                                 .row_pages = dr_burst_row_pages(burst->n_steps),
                                 .next = dr_cuda_plan_rows_of(state, step)};
    if (burst->stops) settling.stops = *burst->stops;
    return settling;
}

static dr_status draw_step(dr_cuda_state *state, const float *logits, int32_t *ids, int32_t *positions) {
    dr_cuda_burst *own = &state->burst;
    const dr_burst *burst = own->burst;
    const int64_t n = burst->n_rows;
    const dr_burst_layout at = layout_of(burst);
    const dr_cuda_draw *draws = (const dr_cuda_draw *)(own->stage.device + at.draws);
    const dr_draw_key *keys = (const dr_draw_key *)(own->stage.device + at.keys);
    const dr_cuda_settling settling = settling_of(state, own->step++, ids, positions);
    const bool is_followed = burst->pages && burst->pages->chunks && own->step < burst->n_steps;
    DR_CHECK(!is_followed || settling.next.spans, DR_ERR_INTERNAL,
             "burst: pages are taken before pass %d, which has no plan that could name them", own->step);
    DR_TRY(dr_cuda_sample(logits, n, burst->V, draws, keys, settling.rows, state->draw_scratch.data,
                          state->kept_ids.data, settling.drawn, state->stream));
    DR_TRY(dr_cuda_settle(&settling, state->stream));
    if (!own->lists) return DR_OK;
    return dr_cuda_list_kept(&settling, state->kept_ids.data, own->list.data, state->stream);
}

static dr_status burst_draw(dr_backend *b, const float *logits, int32_t *ids, int32_t *positions) {
    dr_cuda_state *state;
    DR_TRY(dr_cuda_enter(b, &state));
    DR_ASSERT(state->burst.burst && state->burst.step < state->burst.burst->n_steps);
    dr_status status = draw_step(state, logits, ids, positions);
    if (status != DR_OK) dr_cuda_end_burst(state);
    return status;
}

// The first draw that had no numbers to draw from.
static dr_status refuse_failed(const dr_cuda_state *state, const dr_burst *burst) {
    const dr_burst_row *rows = state->burst.rows_host;
    int64_t failed = -1;
    for (int64_t r = 0; r < burst->n_rows; r++)
        if (rows[r].has_failed && (failed < 0 || rows[r].n_drawn < rows[failed].n_drawn)) failed = r;
    if (failed < 0) return DR_OK;
    const int32_t step = rows[failed].n_drawn;
    const dr_cuda_drawn *drawn = &state->drawn_host[step * burst->n_rows + failed];
    const dr_bad_logit bad = {drawn->n_kept, drawn->logprob};
    return dr_sampling_refuse(&bad, step, failed, burst->settings[failed].temperature);
}

static dr_status fetch_list(dr_cuda_state *state, int64_t n_drawn, int64_t n_listed) {
    DR_TRY(dr_cuda_reserve_drawn(state, n_drawn, n_listed));
    DR_TRY(dr_cuda_fetch(state, state->kept_host, state->burst.list.data,
                         (size_t)n_listed * sizeof *state->kept_host));
    DR_CUDA_TRY(DR_ERR_INTERNAL, cudaStreamSynchronize(state->stream), "%lld kept ids", (long long)n_listed);
    return DR_OK;
}

// What the rows took, read into the stage's host memory.
static dr_status fetch_taken(dr_cuda_state *state, const dr_burst *burst, const dr_burst_layout *at) {
    dr_cuda_stage *stage = &state->burst.stage;
    if (!burst->pages || at->bytes == at->taken) return DR_OK;
    return dr_cuda_fetch(state, stage->host + at->taken, stage->device + at->taken,
                         (size_t)(at->bytes - at->taken));
}

static void keep_taken(const dr_cuda_state *state, const dr_burst *burst, const dr_burst_layout *at) {
    const int32_t *taken = (const int32_t *)(state->burst.stage.host + at->taken);
    const dr_burst_pages *pages = burst->pages;
    const int64_t row_pages = dr_burst_row_pages(burst->n_steps);
    for (int64_t r = 0; pages && r < burst->n_rows; r++)
        for (int32_t i = 0; i < state->burst.rows_host[r].n_taken; i++)
            pages->lists[r][pages->counts[r]++] = taken[r * row_pages + i];
}

static dr_burst_room room_of(const dr_cuda_state *state, const dr_burst *burst) {
    const dr_burst_row *rows = state->burst.rows_host;
    dr_burst_room room = {burst->n_steps, listed_ids(burst)};
    for (int64_t r = 0; r < burst->n_rows; r++)
        if (rows[r].found_no_room && rows[r].n_drawn < room.n_fitted) room.n_fitted = rows[r].n_drawn;
    return room;
}

static dr_status burst_end(dr_backend *b, dr_sampled *out, int32_t *counts, dr_burst_room *out_room) {
    dr_cuda_state *state;
    int64_t n_listed = 0;
    DR_TRY(dr_cuda_enter(b, &state));
    dr_cuda_burst *own = &state->burst;
    const dr_burst *burst = own->burst;
    DR_ASSERT(burst && own->step == burst->n_steps);
    const dr_burst_layout at = layout_of(burst);
    const int64_t n = burst->n_rows, n_drawn = burst->n_steps * n;
    dr_cuda_end_burst(state);
    DR_TRY(fetch_taken(state, burst, &at));
    DR_TRY(dr_cuda_fetch(state, &n_listed, own->stage.device, sizeof n_listed));
    DR_TRY(dr_cuda_fetch(state, own->rows_host, own->stage.device + at.rows,
                         (size_t)n * sizeof *own->rows_host));
    DR_TRY(dr_cuda_fetch(state, state->drawn_host, state->drawn.data,
                         (size_t)n_drawn * sizeof *state->drawn_host));
    DR_CUDA_TRY(DR_ERR_INTERNAL, cudaStreamSynchronize(state->stream), "%lld draws", (long long)n_drawn);
    DR_TRY(refuse_failed(state, burst));
    if (n_listed > 0) DR_TRY(fetch_list(state, n_drawn, n_listed));
    keep_taken(state, burst, &at);
    *out_room = room_of(state, burst);
    for (int64_t r = 0; r < n; r++) {
        counts[r] = own->rows_host[r].n_drawn;
        for (int32_t step = 0; step < counts[r]; step++) {
            const dr_cuda_drawn *drawn = &state->drawn_host[step * n + r];
            out[step * n + r] = dr_cuda_sampled_of(drawn, state->kept_host + drawn->kept_at);
        }
    }
    return DR_OK;
}

void dr_cuda_fill_burst(dr_backend_ops *ops) {
    ops->burst_begin = burst_begin;
    ops->burst_draw = burst_draw;
    ops->burst_end = burst_end;
}
