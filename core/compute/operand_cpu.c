// Rows on the left of a product that are made for it in scratch: silu(gate) · up, and what is rounded to
// bf16. Threads share the rows, and each makes and rounds one while it is near.
#include <omp.h>

#include "core/compute/cpu_internal.h"

enum {
    TOKENS = 128,  // that a product gives a thread at a time
    CHUNK = 1024,  // made at a time, at least
    SHARED = 65536 // elements of silu(gate) · up that are worth waking threads for
};

int64_t dr_rows_chunk(const dr_backend *b, int64_t left) {
    const dr_cpu_state *state = b->state;
    int64_t even = (int64_t)TOKENS * b->n_threads, chunk = (CHUNK + even - 1) / even * even;
    if (state->bf16) chunk = DR_UNIT_ROWS;
    return left < chunk ? left : chunk;
}

static DR_HOT void swiglu_row(const float *gate, const float *up, int64_t n, float *out) {
    for (int64_t j = 0; j < n; j++) out[j] = gate[j] / (1.0f + dr_expf(-gate[j])) * up[j];
}

static void make_floats(dr_backend *b, const dr_rows *rows, int64_t T, bool rounds, float *out) {
    const int64_t n = rows->n;
#pragma omp parallel for num_threads(b->n_threads) schedule(static) if (b->n_threads > 1 && T * n > SHARED)
    for (int64_t t = 0; t < T; t++) {
        const float *gate = rows->values + t * 2 * n;
        swiglu_row(gate, gate + n, n, out + t * n);
        if (rounds) dr_bf16_round_floats(out + t * n, n, 1, out + t * n);
    }
}

dr_status dr_rows_floats(dr_backend *b, int which, const dr_rows *rows, int64_t T, bool rounds,
                         const float **out) {
    dr_cpu_state *state = dr_cpu_state_of(b);
    dr_scratch *scratch = rows->is_gated ? &state->gated : &state->operands[which];
    *out = rows->values;
    if (!rows->is_gated && !rounds) return DR_OK;
    DR_TRY(dr_scratch_reserve(scratch, T * rows->n));
    *out = scratch->data;
    if (rows->is_gated)
        make_floats(b, rows, T, rounds, scratch->data);
    else
        dr_bf16_round_floats(rows->values, T * rows->n, b->n_threads, scratch->data);
    return DR_OK;
}

dr_status dr_rows_bf16(dr_backend *b, const dr_rows *rows, int64_t T, bf16 *out) {
    dr_cpu_state *state = dr_cpu_state_of(b);
    const int64_t n = rows->n;
    if (!rows->is_gated) {
        dr_bf16_round(rows->values, T * n, b->n_threads, out);
        return DR_OK;
    }
    for (int i = 0; i < b->n_threads; i++) DR_TRY(dr_scratch_reserve(&state->thread[i], n));
#pragma omp parallel for num_threads(b->n_threads) schedule(static) if (b->n_threads > 1 && T * n > SHARED)
    for (int64_t t = 0; t < T; t++) {
        const float *gate = rows->values + t * 2 * n;
        float *row = state->thread[omp_get_thread_num()].data;
        swiglu_row(gate, gate + n, n, row);
        dr_bf16_round(row, n, 1, out + t * n);
    }
    return DR_OK;
}

// The exponential is what takes time: both need it.
static DR_HOT void swiglu_row_gradient(const float *restrict gate, const float *restrict up, int64_t n,
                                       float *restrict dact, float *restrict dgate, float *restrict dup) {
    for (int64_t j = 0; j < n; j++) {
        float one = 1.0f + dr_expf(-gate[j]), s = 1.0f / one, g = dact[j];
        dup[j] = g * gate[j] * s;
        dgate[j] = g * up[j] * s * (1.0f + gate[j] * (1.0f - s));
        dact[j] = gate[j] / one * up[j];
    }
}

void dr_swiglu_gradient(dr_backend *b, const float *gate_up, int64_t T, int64_t n, float *dact,
                        float *dgate_up) {
#pragma omp parallel for num_threads(b->n_threads) schedule(static) if (b->n_threads > 1 && T * n > SHARED)
    for (int64_t t = 0; t < T; t++) {
        const float *gate = gate_up + t * 2 * n;
        float *dgate = dgate_up + t * 2 * n;
        swiglu_row_gradient(gate, gate + n, n, dact + t * n, dgate, dgate + n);
    }
}
