// Attention: one packed sequence of T rows, and T sequences with a paged cache.
#include "bench/ops_parts.h"

enum { PAGE = DR_KV_PAGE, CONTEXT = 512, DECODE_CONTEXT = 4096 };

static int64_t q_stride(const bench_call *c) {
    return (int64_t)c->m->n_heads * c->m->head_size;
}

static int64_t kv_stride(const bench_call *c) {
    return (int64_t)c->m->n_kv_heads * c->m->head_size;
}

// x[0] q, x[1] k, x[2] v, x[3] out, x[4] lse, x[5] dout, x[6] … dq, dk, dv. Half of the square: causal.
static dr_status prepare_packed(bench_call *c, int64_t products) {
    int64_t Q = c->T * q_stride(c), K = c->T * kv_stride(c);
    int32_t *bounds = NULL;
    DR_TRY(bench_call_normal(c, Q, &c->x[0]));
    DR_TRY(bench_call_normal(c, K, &c->x[1]));
    DR_TRY(bench_call_normal(c, K, &c->x[2]));
    DR_TRY(bench_call_zeros(c, Q, &c->x[3]));
    DR_TRY(bench_call_zeros(c, c->T * c->m->n_heads, &c->x[4]));
    DR_TRY(bench_call_host(c, 0, 2, sizeof *bounds, &bounds));
    bounds[1] = (int32_t)c->T;
    c->sequences = (dr_sequences){.n = 1, .cu_seqlens = bounds};
    c->b->ops->kv_round(c->b, c->x[1], c->x[2], kv_stride(c), c->T, c->m->n_kv_heads, c->m->head_size);
    c->product = (bench_product){.m = c->T,
                                 .n = (c->T + 1) / 2,
                                 .k = c->m->head_size,
                                 .trans_b = true,
                                 .count = products * c->m->n_heads};
    c->bytes = 8.0 * (double)(Q + K);
    return DR_OK;
}

static dr_status prepare_forward(bench_call *c) {
    DR_TRY(prepare_packed(c, 2));
    bench_call_compare(c, c->x[3], c->T * q_stride(c));
    bench_call_compare(c, c->x[4], c->T * c->m->n_heads);
    return DR_OK;
}

static dr_status run_forward(bench_call *c) {
    return c->b->ops->attention_forward(c->b, c->x[0], c->x[1], c->x[2], q_stride(c), kv_stride(c),
                                        &c->sequences, c->m->n_heads, c->m->n_kv_heads, c->m->head_size,
                                        c->x[3], c->x[4]);
}

static dr_status prepare_backward(bench_call *c) {
    int64_t Q = c->T * q_stride(c), K = c->T * kv_stride(c);
    DR_TRY(prepare_packed(c, 5));
    DR_TRY(run_forward(c));
    DR_TRY(bench_call_normal(c, Q, &c->x[5]));
    for (int i = 6; i < 9; i++) {
        DR_TRY(bench_call_zeros(c, i == 6 ? Q : K, &c->x[i]));
        bench_call_compare(c, c->x[i], i == 6 ? Q : K);
    }
    c->bytes = 16.0 * (double)(Q + K);
    return DR_OK;
}

static dr_status run_backward(bench_call *c) {
    return c->b->ops->attention_backward(c->b, c->x[5], c->x[0], c->x[1], c->x[2], c->x[3], c->x[4],
                                         q_stride(c), kv_stride(c), &c->sequences, c->m->n_heads,
                                         c->m->n_kv_heads, c->m->head_size, c->x[6], c->x[7], c->x[8]);
}

// The chunks of T sequences, n_new rows each behind n_past positions, on pages of their own; a query each.
static dr_status prepare_cache(bench_call *c, int32_t n_past, int32_t n_new) {
    int64_t n_pages = (n_past + n_new + PAGE - 1) / PAGE, rows = c->T * n_new;
    int64_t floats = c->T * n_pages * PAGE * kv_stride(c) * (int64_t)dr_kv_bytes(c->b) / 4;
    dr_attention_chunk *chunks = NULL;
    int32_t *pages = NULL;
    DR_TRY(bench_call_host(c, 0, c->T, sizeof *chunks, &chunks));
    DR_TRY(bench_call_host(c, 1, c->T * n_pages, sizeof *pages, &pages));
    for (int64_t i = 0; i < c->T * n_pages; i++) pages[i] = (int32_t)i;
    for (int64_t s = 0; s < c->T; s++)
        chunks[s] = (dr_attention_chunk){s * n_new, n_new, n_past, pages + s * n_pages};
    DR_TRY(bench_call_normal(c, c->T * q_stride(c), &c->x[0]));
    DR_TRY(bench_call_normal(c, rows * kv_stride(c), &c->x[1]));
    DR_TRY(bench_call_normal(c, rows * kv_stride(c), &c->x[2]));
    DR_TRY(bench_call_zeros(c, c->T * q_stride(c), &c->x[3]));
    DR_TRY(bench_call_zeros(c, floats, &c->x[4]));
    DR_TRY(bench_call_zeros(c, floats, &c->x[5]));
    c->b->ops->kv_round(c->b, c->x[1], c->x[2], kv_stride(c), rows, c->m->n_kv_heads, c->m->head_size);
    bench_call_compare(c, c->x[3], c->T * q_stride(c));
    return DR_OK;
}

static dr_status run_store(bench_call *c) {
    c->b->ops->kv_store(c->b, c->x[1], c->x[2], kv_stride(c), c->host[0], (int32_t)c->T, PAGE,
                        c->m->n_kv_heads, c->m->head_size, c->x[4], c->x[5]);
    return DR_OK;
}

static dr_status run_cached(bench_call *c) {
    return c->b->ops->attention_cached(c->b, c->x[0], q_stride(c), c->x[4], c->x[5], c->host[0],
                                       (int32_t)c->T, PAGE, c->m->n_heads, c->m->n_kv_heads, c->m->head_size,
                                       c->x[3]);
}

// A token of each of T sequences on `context` positions: all of them stored at once, then the last looks
// back.
static dr_status prepare_decode(bench_call *c, int32_t context) {
    DR_TRY(prepare_cache(c, 0, context));
    DR_TRY(run_store(c));
    dr_attention_chunk *chunks = c->host[0];
    for (int64_t s = 0; s < c->T; s++) {
        chunks[s].row = s;
        chunks[s].n_new = 1;
        chunks[s].n_past = context - 1;
    }
    c->product = (bench_product){.m = c->m->n_heads / c->m->n_kv_heads,
                                 .n = context,
                                 .k = c->m->head_size,
                                 .trans_b = true,
                                 .count = 2 * c->T * c->m->n_kv_heads};
    c->bytes = 2.0 * (double)(c->T * context * kv_stride(c)) * (double)dr_kv_bytes(c->b);
    return DR_OK;
}

static dr_status prepare_cached(bench_call *c) {
    return prepare_decode(c, CONTEXT);
}

static dr_status prepare_cached_long(bench_call *c) {
    return prepare_decode(c, DECODE_CONTEXT);
}

// A token of each of T sequences stored behind as many as fill a page but one.
static dr_status prepare_store(bench_call *c) {
    DR_TRY(prepare_cache(c, PAGE - 1, 1));
    c->bytes = 2.0 * (double)(c->T * kv_stride(c)) * (4.0 + (double)dr_kv_bytes(c->b));
    return DR_OK;
}

static dr_status prepare_round(bench_call *c) {
    DR_TRY(bench_call_normal(c, c->T * kv_stride(c), &c->x[1]));
    DR_TRY(bench_call_normal(c, c->T * kv_stride(c), &c->x[2]));
    bench_call_compare(c, c->x[1], c->T * kv_stride(c));
    bench_call_compare(c, c->x[2], c->T * kv_stride(c));
    c->bytes = 16.0 * (double)(c->T * kv_stride(c));
    return DR_OK;
}

static dr_status run_round(bench_call *c) {
    c->b->ops->kv_round(c->b, c->x[1], c->x[2], kv_stride(c), c->T, c->m->n_kv_heads, c->m->head_size);
    return DR_OK;
}

static const bench_op ops[] = {{"attention_forward", prepare_forward, run_forward, NULL, false, true},
                               {"attention_backward", prepare_backward, run_backward, NULL, false, true},
                               {"attention_cached.c512", prepare_cached, run_cached, NULL, true, false},
                               {"attention_cached.c4096", prepare_cached_long, run_cached, NULL, true, false},
                               {"kv_store", prepare_store, run_store, run_cached, true, true},
                               {"kv_round", prepare_round, run_round, NULL, true, true}};
const bench_ops_part bench_ops_attention = {
    "attention", "Attention: one sequence of t rows, or t sequences on a cached context c", ops,
    sizeof ops / sizeof *ops};
