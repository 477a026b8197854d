// A backend for tests that finishes rows of a burst early, as a device does whose memory for kept sets is
// full: the CPU body, of whose draws those are withheld that find no room.
#ifndef DR_TESTS_NARROW_BACKEND_H
#define DR_TESTS_NARROW_BACKEND_H

#include "core/compute/backend.h"

static dr_backend *narrow_inner; // the CPU body
static int64_t narrow_ids;       // that all kept sets of a burst have room for, or one step's worst case
static int64_t narrow_n_rows, narrow_n_steps, narrow_V;

static dr_status narrow_burst_begin(dr_backend *b, const dr_burst *burst) {
    (void)b;
    narrow_n_rows = burst->n_rows;
    narrow_n_steps = burst->n_steps;
    narrow_V = burst->V;
    return narrow_inner->ops->burst_begin(narrow_inner, burst);
}

// Rows in their order, step by step; one whose set does not fit is finished without that draw.
static dr_status narrow_burst_end(dr_backend *b, dr_sampled *out, int32_t *counts, dr_burst_room *out_room) {
    (void)b;
    int64_t listed = 0, n = narrow_n_rows;
    DR_TRY(narrow_inner->ops->burst_end(narrow_inner, out, counts, out_room));
    out_room->n_ids = narrow_ids > n * narrow_V ? narrow_ids : n * narrow_V;
    for (int32_t step = 0; step < narrow_n_steps; step++)
        for (int64_t r = 0; r < n; r++) {
            if (counts[r] <= step) continue;
            listed += out[step * n + r].kept.n;
            if (out[step * n + r].kept.n == 0 || listed <= out_room->n_ids) continue;
            listed -= out[step * n + r].kept.n;
            counts[r] = step;
            if (step < out_room->n_fitted) out_room->n_fitted = step;
        }
    return DR_OK;
}

// inner: a CPU backend, borrowed.
static inline dr_backend narrow_backend(dr_backend *inner, int64_t n_ids) {
    static dr_backend_ops ops;
    dr_backend narrow = *inner;
    ops = *inner->ops;
    ops.burst_begin = narrow_burst_begin;
    ops.burst_end = narrow_burst_end;
    narrow_inner = inner;
    narrow_ids = n_ids;
    narrow.ops = &ops;
    return narrow;
}

#endif
