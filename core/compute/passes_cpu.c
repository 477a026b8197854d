// Passes of the decode loop: with rows enough and weights that stay in the cache, each thread takes a share
// of them through the whole pass, on a body of one thread: nobody waits for the others between two ops. Rows
// do not depend on each other, so the bits are those of one pass.
#include <stdio.h>

#include "core/base/alloc.h"
#include "core/compute/cpu_internal.h"

enum { SHARE = 8 }; // rows of a thread, at least

// It reads weights that b packed, for its own way to multiply bf16, whatever would be chosen now.
static dr_status single_create(dr_backend *b, dr_backend **out) {
    DR_TRY(dr_backend_cpu_create(b->precision, 1, out));
    const dr_cpu_state *state = dr_cpu_state_of(b);
    dr_cpu_state *own = dr_cpu_state_of(*out);
    if (state->bf16 && !own->bf16) return dr_bf16_create(1, &own->bf16);
    if (!state->bf16) {
        dr_bf16_destroy(own->bf16);
        own->bf16 = NULL;
    }
    return DR_OK;
}

dr_status dr_cpu_singles_create(dr_backend *b) {
    dr_cpu_state *state = dr_cpu_state_of(b);
    if (state->singles) return DR_OK;
    DR_TRY(dr_alloc(&state->singles, "bodies of one thread", b->n_threads, sizeof *state->singles));
    for (int i = 0; i < b->n_threads; i++) {
        dr_status status = single_create(b, &state->singles[i]);
        if (status != DR_OK) {
            dr_cpu_singles_destroy(b);
            return status;
        }
    }
    return DR_OK;
}

void dr_cpu_singles_destroy(dr_backend *b) {
    dr_cpu_state *state = dr_cpu_state_of(b);
    for (int i = 0; state->singles && i < b->n_threads; i++) dr_backend_cpu_destroy(state->singles[i]);
    dr_free(state->singles);
    state->singles = NULL;
}

static bool has_rows_for_all(const dr_backend *b, int64_t n_rows) {
    return b->n_threads > 1 && n_rows >= SHARE * b->n_threads;
}

// Each thread reads all weights for its own rows: where they do not stay in the last cache, beside the keys
// that pass through it, threads that share the reading are faster.
static bool stay_near(const dr_backend *b, int64_t row_macs) {
    const dr_cpu_state *state = b->state;
    return row_macs * (dr_rounds_to_bf16(b->precision) ? 2 : 4) <= state->cache / 2;
}

// Single rows are those that draw. Each body may come to run all of them but the others' one.
int64_t dr_cpu_singles_memory(const dr_backend *b, const dr_pass_shape *s) {
    dr_pass_shape part = *s;
    if (!has_rows_for_all(b, s->n_draws) || !stay_near(b, s->row_macs)) return 0;
    part.T = s->n_draws;
    int64_t floats = dr_cpu_cached_floats(s), of_weight = dr_cpu_weight_floats(&part);
    if (of_weight > floats) floats = of_weight;
    floats += dr_cpu_turns_floats(s);
    return b->n_threads * (floats * (int64_t)sizeof(float) + dr_cpu_operand_memory(b, &part));
}

int64_t dr_cpu_row_work(const dr_cached_pass *pass, int32_t row) {
    return pass->row_macs + pass->position_macs * (pass->chunks[row].n_past + 1);
}

// A part ends with the row in whose first half the mark of its share lies, or before it.
void dr_cpu_share_out(const dr_cached_pass *pass, int32_t n_parts, int32_t *begins) {
    int64_t all = 0, before = 0;
    int32_t row = 0;
    for (int32_t r = 0; r < pass->n_chunks; r++) all += dr_cpu_row_work(pass, r);
    for (int32_t part = 0; part < n_parts; part++) {
        const int32_t most = pass->n_chunks - (n_parts - 1 - part); // a row for each part behind
        const int64_t mark = all / n_parts * (part + 1);
        begins[part] = row;
        do before += dr_cpu_row_work(pass, row++);
        while (row < most && 2 * before + dr_cpu_row_work(pass, row) <= 2 * mark);
    }
    begins[n_parts] = pass->n_chunks;
}

// Each thread its part; of what failed, the first part's.
static dr_status run_parts(dr_backend *b, dr_pass_ops *ops, void *context, const int32_t *begins) {
    dr_cpu_state *state = dr_cpu_state_of(b);
    dr_status failed = DR_OK;
    int failed_part = b->n_threads;
    char why[512] = "";
#pragma omp parallel for num_threads(b->n_threads) schedule(static, 1)
    for (int part = 0; part < b->n_threads; part++) {
        dr_status status = ops(context, state->singles[part], begins[part], begins[part + 1] - begins[part]);
        if (status == DR_OK) continue;
#pragma omp critical(dr_pass_failed)
        if (part < failed_part) {
            failed = status;
            failed_part = part;
            snprintf(why, sizeof why, "%s", dr_last_error()); // which is that thread's
        }
    }
    if (failed == DR_OK) return DR_OK;
    return DR_FAIL(failed, "pass, rows %d to %d: %s", begins[failed_part], begins[failed_part + 1] - 1, why);
}

// Nothing is recorded: a pass has the rows that it needs.
static int32_t pass_rows(dr_backend *b, int32_t n_rows) {
    (void)b;
    return n_rows;
}

static dr_status cached_pass(dr_backend *b, const dr_cached_pass *pass, dr_pass_ops *ops, void *context) {
    int32_t begins[DR_MAX_THREADS + 1];
    if (!has_rows_for_all(b, pass->n_chunks) || !stay_near(b, pass->row_macs))
        return ops(context, b, 0, pass->n_chunks);
    DR_TRY(dr_cpu_singles_create(b));
    dr_cpu_share_out(pass, b->n_threads, begins);
    return run_parts(b, ops, context, begins);
}

void dr_cpu_fill_passes(dr_backend_ops *ops) {
    ops->cached_pass = cached_pass;
    ops->pass_rows = pass_rows;
}
