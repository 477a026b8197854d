// The loss head, softmax over the vocabulary, and draws.
#include "bench/ops_parts.h"

static double element(const bench_call *c) {
    return c->b->precision == DR_BF16 ? 2 : 4;
}

// x[0] h, x[1] logprob, x[2] entropy, x[3] lse, x[4] dlogprob, x[5] dh, x[6] dw. Logits are a body's own
// business: the bytes are those of one pass over weights and rows, whatever its blocks are.
static dr_status prepare_head(bench_call *c) {
    int64_t D = c->m->hidden, V = c->m->vocab;
    float *values = NULL;
    DR_TRY(bench_call_weight(c, V, D, &values));
    DR_TRY(bench_call_normal(c, c->T * D, &c->x[0]));
    for (int i = 1; i < 4; i++) {
        DR_TRY(bench_call_zeros(c, c->T, &c->x[i]));
        bench_call_compare(c, c->x[i], c->T);
    }
    DR_TRY(bench_call_ids(c, c->T, c->m->vocab, &c->ids));
    c->product = (bench_product){.m = c->T, .n = V, .k = D, .trans_b = true, .count = 1};
    c->bytes = element(c) * (double)(V * D) + 4.0 * (double)(c->T * D);
    return DR_OK;
}

static dr_status run_head(bench_call *c) {
    return c->b->ops->head_forward(c->b, c->w, c->x[0], c->ids, NULL, c->T, 1, c->x[1], c->x[2], c->x[3]);
}

static dr_status prepare_head_backward(bench_call *c) {
    int64_t D = c->m->hidden, V = c->m->vocab;
    DR_TRY(prepare_head(c));
    DR_TRY(run_head(c));
    DR_TRY(bench_call_normal(c, c->T, &c->x[4]));
    DR_TRY(bench_call_zeros(c, c->T * D, &c->x[5]));
    DR_TRY(bench_call_zeros(c, V * D, &c->x[6]));
    c->out[0].values = c->x[5];
    c->out[0].n = c->T * D;
    c->out[1].values = c->x[6];
    c->out[1].n = V * D;
    c->product.count = 3; // logits again, dh, dw
    c->bytes += 8.0 * (double)(V * D) + 4.0 * (double)(c->T * D);
    return DR_OK;
}

static dr_status run_head_backward(bench_call *c) {
    return c->b->ops->head_backward(c->b, c->w, c->x[0], c->ids, NULL, c->T, 1, c->x[3], c->x[4], c->x[5],
                                    c->x[6]);
}

// One id in a thousand is kept, about what top-p leaves, and each row's target is one of them.
static dr_status keep_few(bench_call *c) {
    enum { ONE_IN = 1000 };
    int32_t n = (c->m->vocab + ONE_IN - 1) / ONE_IN, *ids = NULL, *targets = NULL;
    dr_kept *kept = NULL;
    DR_TRY(bench_call_host(c, 0, c->T, sizeof *kept, &kept));
    DR_TRY(bench_call_host(c, 1, n, sizeof *ids, &ids));
    DR_TRY(bench_call_host(c, 2, c->T, sizeof *targets, &targets));
    for (int32_t i = 0; i < n; i++) ids[i] = ONE_IN * i;
    for (int64_t t = 0; t < c->T; t++) {
        kept[t] = (dr_kept){ids, n};
        targets[t] = ids[t % n];
    }
    c->b->ops->copy_in(c->b, c->ids, targets, (size_t)c->T * sizeof *targets);
    return DR_OK;
}

static dr_status prepare_kept_head(bench_call *c) {
    DR_TRY(prepare_head(c));
    return keep_few(c);
}

static dr_status run_kept_head(bench_call *c) {
    return c->b->ops->head_forward(c->b, c->w, c->x[0], c->ids, c->host[0], c->T, 1, c->x[1], c->x[2],
                                   c->x[3]);
}

static dr_status prepare_kept_backward(bench_call *c) {
    DR_TRY(prepare_head_backward(c));
    DR_TRY(keep_few(c));
    // the processor's fp32 body multiplies by the kept ids alone, the others by the whole vocabulary
    if (bench_is_cpu(c->b) && c->b->precision == DR_FP32) {
        const dr_kept *kept = c->host[0];
        c->product.n = kept[0].n;
        c->bytes = 12.0 * (double)(c->product.n * c->m->hidden) + 8.0 * (double)(c->T * c->m->hidden);
    }
    return run_kept_head(c); // the log-sum-exps of the sets
}

static dr_status run_kept_backward(bench_call *c) {
    return c->b->ops->head_backward(c->b, c->w, c->x[0], c->ids, c->host[0], c->T, 1, c->x[3], c->x[4],
                                    c->x[5], c->x[6]);
}

// x[0] logits, x[1] lse, x[2] entropy
static dr_status prepare_logits(bench_call *c, double deviation) {
    int64_t n = c->T * c->m->vocab;
    DR_TRY(bench_call_spread(c, n, deviation, &c->x[0]));
    DR_TRY(bench_call_zeros(c, c->T, &c->x[1]));
    DR_TRY(bench_call_zeros(c, c->T, &c->x[2]));
    bench_call_compare(c, c->x[1], c->T);
    c->bytes = 4.0 * (double)n;
    return DR_OK;
}

static dr_status prepare_stats(bench_call *c) {
    DR_TRY(prepare_logits(c, 1));
    bench_call_compare(c, c->x[2], c->T);
    return DR_OK;
}

static dr_status run_stats(bench_call *c) {
    c->b->ops->softmax_stats(c->b, c->x[0], c->T, c->m->vocab, 1, c->x[1], c->x[2]);
    return DR_OK;
}

// Every tenth id is kept.
static dr_status prepare_kept(bench_call *c) {
    enum { ONE_IN = 10 };
    int32_t n = (c->m->vocab + ONE_IN - 1) / ONE_IN, *ids = NULL;
    dr_kept *kept = NULL;
    DR_TRY(prepare_logits(c, 1));
    DR_TRY(bench_call_host(c, 0, c->T, sizeof *kept, &kept));
    DR_TRY(bench_call_host(c, 1, n, sizeof *ids, &ids));
    for (int32_t i = 0; i < n; i++) ids[i] = ONE_IN * i;
    for (int64_t t = 0; t < c->T; t++) kept[t] = (dr_kept){ids, n};
    c->bytes = 8.0 * (double)(c->T * n); // an id and a logit each
    return DR_OK;
}

static dr_status run_kept(bench_call *c) {
    c->b->ops->kept_lse(c->b, c->x[0], c->T, c->m->vocab, 1, c->host[0], c->x[1]);
    return DR_OK;
}

// out_host: id, logprob and logprob_kept of each row. Logits of this deviation; bytes: every logit read once,
// and what is kept, found by a draw of its own, written once.
static dr_status prepare_draws(bench_call *c, double deviation, float top_p) {
    dr_sampling *settings = NULL;
    uint32_t *bits = NULL;
    dr_sampled *drawn = NULL;
    DR_TRY(prepare_logits(c, deviation));
    DR_TRY(bench_call_host(c, 0, c->T, sizeof *settings, &settings));
    DR_TRY(bench_call_host(c, 1, c->T, sizeof *bits, &bits));
    DR_TRY(bench_call_host(c, 2, c->T, sizeof *drawn, &drawn));
    DR_TRY(bench_call_host(c, 3, 3 * c->T, sizeof(float), &c->out_host));
    c->n_out_host = 3 * c->T;
    for (int64_t t = 0; t < c->T; t++) {
        settings[t] = (dr_sampling){.temperature = 1, .top_p = top_p};
        bits[t] = (uint32_t)t * 2654435761u;
    }
    DR_TRY(c->b->ops->sample(c->b, c->x[0], c->T, c->m->vocab, settings, bits, drawn));
    for (int64_t t = 0; t < c->T; t++) c->bytes += 4.0 * drawn[t].kept.n;
    return DR_OK;
}

static dr_status prepare_whole(bench_call *c) {
    return prepare_draws(c, 1, 1);
}

// A flat distribution, most of whose ids are kept, and a trained policy's sharp one.
static dr_status prepare_flat(bench_call *c) {
    return prepare_draws(c, 1, 0.95f);
}

static dr_status prepare_peaked(bench_call *c) {
    return prepare_draws(c, 5, 0.95f);
}

static dr_status run_sample(bench_call *c) {
    dr_sampled *drawn = c->host[2];
    DR_TRY(c->b->ops->sample(c->b, c->x[0], c->T, c->m->vocab, c->host[0], c->host[1], drawn));
    for (int64_t t = 0; t < c->T; t++) {
        c->out_host[3 * t] = (float)drawn[t].id;
        c->out_host[3 * t + 1] = drawn[t].logprob;
        c->out_host[3 * t + 2] = drawn[t].logprob_kept;
    }
    return DR_OK;
}

static const bench_op ops[] = {
    {"head_forward", prepare_head, run_head, NULL, false, true},
    {"head_backward", prepare_head_backward, run_head_backward, NULL, false, true},
    {"head_forward_kept", prepare_kept_head, run_kept_head, NULL, false, true},
    {"head_backward_kept", prepare_kept_backward, run_kept_backward, NULL, false, true},
    {"softmax_stats", prepare_stats, run_stats, NULL, true, false},
    {"kept_lse", prepare_kept, run_kept, NULL, true, false},
    {"sample_whole", prepare_whole, run_sample, NULL, true, false},
    {"sample_flat", prepare_flat, run_sample, NULL, true, false},
    {"sample_peaked", prepare_peaked, run_sample, NULL, true, false}};
const bench_ops_part bench_ops_head = {"head", "Head, softmax and draws", ops, sizeof ops / sizeof *ops};
