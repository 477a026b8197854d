// Rows of a product's operand that are made for it in scratch: silu(gate) · up, and what is rounded to bf16
// or was. Threads share the rows, and each makes and rounds one while it is near.
#include <omp.h>

#include "core/compute/cpu_internal.h"

enum {
    TOKENS = 128,  // that a product gives a thread at a time
    CHUNK = 1024,  // made at a time, at least
    SHARED = 65536 // elements that are worth waking threads for
};

int64_t dr_rows_chunk(const dr_backend *b, int64_t left) {
    const dr_cpu_state *state = b->state;
    int64_t even = (int64_t)TOKENS * b->n_threads, chunk = (CHUNK + even - 1) / even * even;
    if (state->bf16) chunk = DR_UNIT_ROWS;
    return left < chunk ? left : chunk;
}

DR_INLINE float swiglu(float gate, float up) {
    return gate / (1.0f + dr_expf(-gate)) * up;
}

static DR_HOT void swiglu_row(const float *gate, const float *up, int64_t n, float *out) {
    for (int64_t j = 0; j < n; j++) out[j] = swiglu(gate[j], up[j]);
}

static DR_HOT void swiglu_row_bf16(const bf16 *gate, const bf16 *up, int64_t n, float *out) {
    for (int64_t j = 0; j < n; j++) out[j] = swiglu(dr_bf16_value(gate[j]), dr_bf16_value(up[j]));
}

// silu(gate) · up of the t-th row.
static void make_row(const dr_rows *rows, int64_t t, float *out) {
    const int64_t n = rows->n, at = t * 2 * n;
    if (rows->rounded)
        swiglu_row_bf16(rows->rounded + at, rows->rounded + at + n, n, out);
    else
        swiglu_row(rows->values + at, rows->values + at + n, n, out);
}

static DR_HOT void widen_row(const bf16 *from, int64_t n, float *out) {
    for (int64_t j = 0; j < n; j++) out[j] = dr_bf16_value(from[j]);
}

static void make_floats(dr_backend *b, const dr_rows *rows, int64_t T, bool rounds, float *out) {
    const int64_t n = rows->n;
#pragma omp parallel for num_threads(b->n_threads) schedule(static) if (b->n_threads > 1 && T * n > SHARED)
    for (int64_t t = 0; t < T; t++) {
        float *row = out + t * n;
        if (!rows->is_gated) {
            widen_row(rows->rounded + t * n, n, row);
            continue;
        }
        make_row(rows, t, row);
        if (rounds) dr_bf16_round_floats(row, n, 1, row);
    }
}

dr_status dr_rows_floats(dr_backend *b, int which, const dr_rows *rows, int64_t T, bool rounds,
                         const float **out) {
    dr_cpu_state *state = dr_cpu_state_of(b);
    dr_scratch *scratch = rows->is_gated ? &state->gated : &state->operands[which];
    *out = rows->values;
    if (!rows->is_gated && !rows->rounded && !rounds) return DR_OK;
    DR_TRY(dr_scratch_reserve(scratch, T * rows->n));
    *out = scratch->data;
    if (rows->is_gated || rows->rounded)
        make_floats(b, rows, T, rounds, scratch->data);
    else
        dr_bf16_round_floats(rows->values, T * rows->n, b->n_threads, scratch->data);
    return DR_OK;
}

dr_status dr_rows_bf16(dr_backend *b, const dr_rows *rows, int64_t T, bf16 *out) {
    dr_cpu_state *state = dr_cpu_state_of(b);
    const int64_t n = rows->n;
    if (!rows->is_gated && rows->rounded) {
        memcpy(out, rows->rounded, (size_t)(T * n) * sizeof *out);
        return DR_OK;
    }
    if (!rows->is_gated) {
        dr_bf16_round(rows->values, T * n, b->n_threads, out);
        return DR_OK;
    }
    for (int i = 0; i < b->n_threads; i++) DR_TRY(dr_scratch_reserve(&state->thread[i], n));
#pragma omp parallel for num_threads(b->n_threads) schedule(static) if (b->n_threads > 1 && T * n > SHARED)
    for (int64_t t = 0; t < T; t++) {
        float *row = state->thread[omp_get_thread_num()].data;
        make_row(rows, t, row);
        dr_bf16_round(row, n, 1, out + t * n);
    }
    return DR_OK;
}

// act: silu(gate) · up. The exponential is what takes time: all three need it.
typedef struct swiglu_gradient {
    float dgate, dup, act;
} swiglu_gradient;

DR_INLINE swiglu_gradient gradient_of(float gate, float up, float g) {
    const float one = 1.0f + dr_expf(-gate), s = 1.0f / one;
    return (swiglu_gradient){g * up * s * (1.0f + gate * (1.0f - s)), g * gate * s, gate / one * up};
}

static DR_HOT void swiglu_row_gradient(const float *restrict gate, const float *restrict up, int64_t n,
                                       float *restrict dact, float *restrict dgate, float *restrict dup) {
    for (int64_t j = 0; j < n; j++) {
        const swiglu_gradient d = gradient_of(gate[j], up[j], dact[j]);
        dgate[j] = d.dgate;
        dup[j] = d.dup;
        dact[j] = d.act;
    }
}

static DR_HOT void swiglu_row_gradient_bf16(const bf16 *restrict gate, const bf16 *restrict up, int64_t n,
                                            float *restrict dact, bf16 *restrict dgate, bf16 *restrict dup) {
    for (int64_t j = 0; j < n; j++) {
        const swiglu_gradient d = gradient_of(dr_bf16_value(gate[j]), dr_bf16_value(up[j]), dact[j]);
        dgate[j] = (bf16)dr_bf16_bits(d.dgate);
        dup[j] = (bf16)dr_bf16_bits(d.dup);
        dact[j] = d.act;
    }
}

void dr_swiglu_gradient(dr_backend *b, const void *gate_up, int64_t T, int64_t n, float *dact,
                        void *dgate_up) {
    const bool is_rounded = dr_rounds_to_bf16(b->precision);
#pragma omp parallel for num_threads(b->n_threads) schedule(static) if (b->n_threads > 1 && T * n > SHARED)
    for (int64_t t = 0; t < T; t++) {
        if (is_rounded) {
            const bf16 *gate = (const bf16 *)gate_up + t * 2 * n;
            bf16 *dgate = (bf16 *)dgate_up + t * 2 * n;
            swiglu_row_gradient_bf16(gate, gate + n, n, dact + t * n, dgate, dgate + n);
        } else {
            const float *gate = (const float *)gate_up + t * 2 * n;
            float *dgate = (float *)dgate_up + t * 2 * n;
            swiglu_row_gradient(gate, gate + n, n, dact + t * n, dgate, dgate + n);
        }
    }
}
