// Arguments of a call, made and given back.
#include <math.h>
#include <string.h>

#include "bench/ops_parts.h"
#include "core/base/alloc.h"
#include "core/base/rng.h"

static dr_status keep(bench_call *c, float *memory) {
    DR_CHECK(c->n_memory < (int)(sizeof c->memory / sizeof *c->memory), DR_ERR_INTERNAL,
             "a call has more than %d arrays", c->n_memory);
    c->memory[c->n_memory++] = memory;
    return DR_OK;
}

dr_status bench_call_normal(bench_call *c, int64_t n, float **out) {
    return bench_call_spread(c, n, 1, out);
}

dr_status bench_call_spread(bench_call *c, int64_t n, double deviation, float **out) {
    DR_TRY(bench_normal(c->b, n, 0, deviation, ++c->stream, out));
    return keep(c, *out);
}

dr_status bench_call_zeros(bench_call *c, int64_t n, float **out) {
    DR_TRY(dr_memory_create(c->b, out, "zeros", n, sizeof(float)));
    return keep(c, *out);
}

// bf16 is the upper half of a float: here the lower half is cut off, since any value will do.
dr_status bench_call_gated(bench_call *c, int64_t n, float **out, float **out_floats) {
    const bool is_rounded = dr_gated_bytes(c->b) == sizeof(uint16_t);
    uint32_t *host = NULL;
    if (out_floats) DR_TRY(bench_call_zeros(c, n, out_floats));
    DR_TRY(bench_call_normal(c, n, out));
    if (!is_rounded) return DR_OK;
    DR_TRY(dr_alloc(&host, "gate and up", n, sizeof *host));
    c->b->ops->copy_out(c->b, host, *out, (size_t)n * sizeof *host);
    for (int64_t i = 0; i < n; i++) {
        const uint16_t half = (uint16_t)(host[i] >> 16); // in place: none stands before its float
        memcpy((char *)host + i * 2, &half, sizeof half);
    }
    c->b->ops->copy_in(c->b, *out, host, (size_t)n * sizeof(uint16_t));
    dr_free(host);
    return DR_OK;
}

dr_status bench_call_widen(bench_call *c, const void *gated, int64_t n, float *out) {
    const size_t size = dr_gated_bytes(c->b);
    void *host = NULL;
    uint32_t *wide = NULL;
    if (size == sizeof(float)) {
        c->b->ops->copy(c->b, out, gated, (size_t)n * size);
        return DR_OK;
    }
    DR_TRY(dr_alloc(&host, "gate and up", n, size));
    dr_status status = dr_alloc(&wide, "gate and up as floats", n, sizeof *wide);
    if (status == DR_OK) {
        c->b->ops->copy_out(c->b, host, gated, (size_t)n * size);
        for (int64_t i = 0; i < n; i++) wide[i] = (uint32_t)((const uint16_t *)host)[i] << 16;
        c->b->ops->copy_in(c->b, out, wide, (size_t)n * sizeof *wide);
    }
    dr_free(wide);
    dr_free(host);
    return status;
}

dr_status bench_call_ids(bench_call *c, int64_t n, int32_t below, int32_t **out) {
    int32_t *ids = NULL;
    float *memory = NULL;
    dr_rng rng = dr_rng_make(24, ++c->stream);
    DR_TRY(bench_call_zeros(c, n, &memory)); // as many bytes
    DR_TRY(dr_alloc(&ids, "ids", n, sizeof *ids));
    for (int64_t i = 0; i < n; i++) ids[i] = (int32_t)dr_rng_below(&rng, (uint32_t)below);
    c->b->ops->copy_in(c->b, memory, ids, (size_t)n * sizeof *ids);
    dr_free(ids);
    *out = (int32_t *)(void *)memory;
    return DR_OK;
}

dr_status bench_call_host(bench_call *c, int slot, int64_t count, size_t size, void *out_pointer) {
    DR_TRY(dr_alloc(&c->host[slot], "host memory", count, size));
    memcpy(out_pointer, &c->host[slot], sizeof(void *));
    return DR_OK;
}

// Rows of about unit length, as a model's: logits stay small.
dr_status bench_call_weight(bench_call *c, int64_t n_out, int64_t n_in, float **out_values) {
    DR_TRY(bench_normal(c->b, n_out * n_in, 0, 1 / sqrt((double)n_in), ++c->stream, out_values));
    DR_TRY(keep(c, *out_values));
    DR_TRY(c->b->ops->weight_create(c->b, n_out, n_in, &c->w));
    return c->b->ops->weight_pack(c->b, c->w, *out_values);
}

void bench_call_compare(bench_call *c, float *values, int64_t n) {
    for (int i = 0; i < BENCH_OP_OUTPUTS; i++)
        if (!c->out[i].values) {
            c->out[i].values = values;
            c->out[i].n = n;
            return;
        }
}

void bench_call_reset(bench_call *c) {
    if (c->w) c->b->ops->weight_destroy(c->b, c->w);
    while (c->n_memory > 0) c->b->ops->memory_destroy(c->b, c->memory[--c->n_memory]);
    for (int i = 0; i < (int)(sizeof c->host / sizeof *c->host); i++) dr_free(c->host[i]);
}
