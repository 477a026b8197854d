// Bursts on the CPU: the reference. Nothing is gained by one here but the same results in the same order.
#include "core/base/alloc.h"
#include "core/compute/cpu_internal.h"

static dr_status reserve(dr_cpu_state *state, int64_t n_rows, int64_t n_drawn) {
    if (n_rows > state->n_burst_rows) {
        DR_TRY(dr_grow(&state->burst_rows, "rows of a burst", state->n_burst_rows, n_rows,
                       sizeof *state->burst_rows));
        DR_TRY(dr_grow(&state->burst_bits, "rows of a burst", state->n_burst_rows, n_rows,
                       sizeof *state->burst_bits));
        state->n_burst_rows = n_rows;
    }
    if (n_drawn > state->n_burst_drawn) {
        DR_TRY(dr_grow(&state->burst_drawn, "draws of a burst", state->n_burst_drawn, n_drawn,
                       sizeof *state->burst_drawn));
        state->n_burst_drawn = n_drawn;
    }
    return DR_OK;
}

static dr_status burst_begin(dr_backend *b, const dr_burst *burst) {
    dr_cpu_state *state = dr_cpu_state_of(b);
    const int64_t n_drawn = burst->n_steps * burst->n_rows;
    DR_TRY(dr_burst_check(burst));
    DR_TRY(reserve(state, burst->n_rows, n_drawn));
    DR_TRY(dr_cpu_reserve_draws(b, n_drawn, burst->V));
    for (int64_t r = 0; r < burst->n_rows; r++) state->burst_rows[r] = dr_burst_row_at(burst, r);
    state->burst = burst;
    state->burst_step = state->burst_taken = 0;
    return DR_OK;
}

// The row's page for its next position, where it goes on and lacks one.
static void take_page(dr_cpu_state *state, int64_t r) {
    const dr_burst_pages *pages = state->burst->pages;
    dr_burst_row *row = &state->burst_rows[r];
    const int32_t place = state->burst_taken;
    if (!dr_burst_wants_page(row) || !dr_burst_take_page(row, place, pages->n_pool, pages->page_size)) return;
    pages->lists[r][row->room / pages->page_size - 1] = pages->pool[place];
    state->burst_taken++;
}

// The next pass finds a row that is finished where it stands.
static void place_rows(const dr_cpu_state *state) {
    const dr_burst *burst = state->burst;
    if (!burst->pages || !burst->pages->chunks || state->burst_step == burst->n_steps) return;
    dr_attention_chunk *chunks =
        burst->pages->chunks + (int64_t)(state->burst_step - 1) * burst->pages->n_chunks;
    for (int64_t r = 0; r < burst->n_rows; r++) chunks[r].n_past = state->burst_rows[r].position;
}

static dr_status burst_draw(dr_backend *b, const float *logits, int32_t *ids, int32_t *positions) {
    dr_cpu_state *state = dr_cpu_state_of(b);
    const dr_burst *burst = state->burst;
    DR_ASSERT(burst && state->burst_step < burst->n_steps);
    const int64_t n = burst->n_rows, first = state->burst_step * n;
    for (int64_t r = 0; r < n; r++)
        state->burst_bits[r] = dr_draw_ahead(&burst->keys[r], (uint32_t)state->burst_step);
    const dr_cpu_draws draws = {.settings = burst->settings,
                                .bits = state->burst_bits,
                                .rows = state->burst_rows,
                                .step = state->burst_step++,
                                .kept = state->kept + first,
                                .out = state->burst_drawn + first};
    dr_status status = dr_cpu_draw(b, logits, n, burst->V, &draws);
    if (status != DR_OK) {
        state->burst = NULL;
        return status;
    }
    for (int64_t r = 0; r < n; r++) {
        dr_burst_row *row = &state->burst_rows[r];
        if (!row->is_finished) {
            dr_burst_count(row, burst->stops, draws.out[r].id);
            take_page(state, r);
            dr_burst_go_on(row, draws.out[r].id);
        }
        ids[r] = row->id;
        positions[r] = row->position;
    }
    place_rows(state);
    return DR_OK;
}

static dr_status burst_end(dr_backend *b, dr_sampled *out, int32_t *counts, dr_burst_room *out_room) {
    dr_cpu_state *state = dr_cpu_state_of(b);
    const dr_burst *burst = state->burst;
    DR_ASSERT(burst && state->burst_step == burst->n_steps);
    for (int64_t r = 0; r < burst->n_rows; r++) {
        counts[r] = state->burst_rows[r].n_drawn;
        if (burst->pages) burst->pages->counts[r] += state->burst_rows[r].n_taken;
    }
    memcpy(out, state->burst_drawn, (size_t)(burst->n_steps * burst->n_rows) * sizeof *out);
    *out_room = (dr_burst_room){burst->n_steps, INT64_MAX};
    state->burst = NULL;
    return DR_OK;
}

void dr_cpu_fill_burst(dr_backend_ops *ops) {
    ops->burst_begin = burst_begin;
    ops->burst_draw = burst_draw;
    ops->burst_end = burst_end;
}
