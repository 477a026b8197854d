// Norms, element-wise ops, tables and the optimizer.
#include <math.h>

#include "bench/ops_parts.h"

// x[0] rows, x[1] and x[2] weight and bias, x[3] y, x[4] and x[5] what is kept, x[6] dy, x[7] … gradients
static dr_status prepare_norm(bench_call *c) {
    int64_t D = c->m->hidden, n = c->T * D;
    DR_TRY(bench_call_normal(c, n, &c->x[0]));
    DR_TRY(bench_call_normal(c, D, &c->x[1]));
    DR_TRY(bench_call_normal(c, D, &c->x[2]));
    DR_TRY(bench_call_zeros(c, n, &c->x[3]));
    DR_TRY(bench_call_zeros(c, c->T, &c->x[4]));
    DR_TRY(bench_call_zeros(c, c->T, &c->x[5]));
    bench_call_compare(c, c->x[3], n);
    c->bytes = 8.0 * (double)n;
    return DR_OK;
}

static dr_status run_rms(bench_call *c) {
    c->b->ops->rmsnorm_forward(c->b, c->x[0], c->x[1], c->T, c->m->hidden, 1e-6f, c->x[3], c->x[4]);
    return DR_OK;
}

// x[6] the residual, added into x[0]: two arrays read, two written
static dr_status prepare_residual(bench_call *c) {
    int64_t n = c->T * c->m->hidden;
    DR_TRY(prepare_norm(c));
    DR_TRY(bench_call_normal(c, n, &c->x[6]));
    bench_call_compare(c, c->x[0], n);
    bench_call_compare(c, c->x[4], c->T);
    c->bytes = 16.0 * (double)n;
    return DR_OK;
}

static dr_status run_residual(bench_call *c) {
    c->b->ops->rmsnorm_residual_forward(c->b, c->x[6], c->x[1], c->T, c->m->hidden, 1e-6f, c->x[0], c->x[3],
                                        c->x[4]);
    return DR_OK;
}

static dr_status run_layer(bench_call *c) {
    c->b->ops->layernorm_forward(c->b, c->x[0], c->x[1], c->x[2], c->T, c->m->hidden, 1e-6f, c->x[3], c->x[4],
                                 c->x[5]);
    return DR_OK;
}

static dr_status prepare_norm_backward(bench_call *c, dr_status (*forward)(bench_call *)) {
    int64_t D = c->m->hidden, n = c->T * D;
    DR_TRY(prepare_norm(c));
    DR_TRY(forward(c));
    DR_TRY(bench_call_normal(c, n, &c->x[6]));
    DR_TRY(bench_call_zeros(c, n, &c->x[7]));
    DR_TRY(bench_call_zeros(c, D, &c->x[8]));
    DR_TRY(bench_call_zeros(c, D, &c->x[9]));
    bench_call_compare(c, c->x[7], n);
    bench_call_compare(c, c->x[8], D);
    bench_call_compare(c, c->x[9], D);
    c->bytes = 16.0 * (double)n;
    return DR_OK;
}

static dr_status prepare_rms_backward(bench_call *c) {
    return prepare_norm_backward(c, run_rms);
}

static dr_status prepare_layer_backward(bench_call *c) {
    return prepare_norm_backward(c, run_layer);
}

static dr_status run_rms_backward(bench_call *c) {
    c->b->ops->rmsnorm_backward(c->b, c->x[6], c->x[0], c->x[1], c->x[4], c->T, c->m->hidden, c->x[7],
                                c->x[8]);
    return DR_OK;
}

static dr_status run_layer_backward(bench_call *c) {
    c->b->ops->layernorm_backward(c->b, c->x[6], c->x[0], c->x[1], c->x[4], c->x[5], c->T, c->m->hidden,
                                  c->x[7], c->x[8], c->x[9]);
    return DR_OK;
}

static dr_status ones(bench_call *c, int slot, int64_t n, float **out) {
    float *host = NULL;
    DR_TRY(bench_call_zeros(c, n, out));
    DR_TRY(bench_call_host(c, slot, n, sizeof *host, &host));
    for (int64_t i = 0; i < n; i++) host[i] = 1.0f;
    c->b->ops->copy_in(c->b, *out, host, (size_t)n * sizeof *host);
    return DR_OK;
}

// x[0] queries, keys and values, of which queries are normed in place, x[1] weight, x[2] what is kept, x[3]
// factors, x[4] gradient of the weight. Weight and factors are 1: calls in turn on one array keep its size.
static dr_status prepare_heads(bench_call *c) {
    int64_t d = c->m->head_size, H = c->m->n_heads, stride = (H + 2 * (int64_t)c->m->n_kv_heads) * d;
    DR_TRY(bench_call_normal(c, c->T * stride, &c->x[0]));
    DR_TRY(ones(c, 0, d, &c->x[1]));
    DR_TRY(bench_call_normal(c, c->T * H * d, &c->x[2]));
    DR_TRY(ones(c, 1, c->T * H, &c->x[3]));
    DR_TRY(bench_call_zeros(c, d, &c->x[4]));
    bench_call_compare(c, c->x[0], c->T * stride);
    c->bytes = 12.0 * (double)(c->T * H * d);
    return DR_OK;
}

static dr_status run_heads(bench_call *c) {
    int64_t d = c->m->head_size, H = c->m->n_heads, stride = (H + 2 * (int64_t)c->m->n_kv_heads) * d;
    c->b->ops->head_norm_forward(c->b, c->x[0], c->x[1], c->T, H, d, stride, 1e-6f, c->x[2], c->x[3]);
    return DR_OK;
}

static dr_status prepare_heads_backward(bench_call *c) {
    DR_TRY(prepare_heads(c));
    bench_call_compare(c, c->x[4], c->m->head_size);
    return DR_OK;
}

static dr_status run_heads_backward(bench_call *c) {
    int64_t d = c->m->head_size, H = c->m->n_heads, stride = (H + 2 * (int64_t)c->m->n_kv_heads) * d;
    c->b->ops->head_norm_backward(c->b, c->x[0], c->x[2], c->x[1], c->x[3], c->T, H, d, stride, c->x[4]);
    return DR_OK;
}

static dr_status prepare_rope(bench_call *c) {
    int64_t d = c->m->head_size, n = c->T * c->m->n_heads * d;
    float *inverse = NULL;
    DR_TRY(bench_call_normal(c, n, &c->x[0]));
    DR_TRY(bench_call_zeros(c, d / 2, &c->x[1]));
    DR_TRY(bench_call_host(c, 0, d / 2, sizeof *inverse, &inverse));
    for (int64_t i = 0; i < d / 2; i++)
        inverse[i] = (float)pow(c->m->rope_theta, -2.0 * (double)i / (double)d);
    c->b->ops->copy_in(c->b, c->x[1], inverse, (size_t)(d / 2) * sizeof *inverse);
    DR_TRY(bench_call_ids(c, c->T, 4096, &c->ids));
    bench_call_compare(c, c->x[0], n);
    c->bytes = 8.0 * (double)n;
    return DR_OK;
}

static dr_status run_rope(bench_call *c) {
    int64_t heads = c->m->n_heads, d = c->m->head_size;
    c->b->ops->rope(c->b, c->x[0], c->ids, c->x[1], c->T, heads, d, heads * d, 1);
    return DR_OK;
}

// x[0] rows, x[1] dy, x[2] result
static dr_status prepare_elements(bench_call *c, double arrays) {
    int64_t n = c->T * c->m->hidden;
    for (int i = 0; i < 3; i++) DR_TRY(bench_call_normal(c, n, &c->x[i]));
    bench_call_compare(c, c->x[2], n);
    c->bytes = 4.0 * arrays * (double)n;
    return DR_OK;
}

static dr_status prepare_two(bench_call *c) {
    return prepare_elements(c, 2);
}

static dr_status prepare_three(bench_call *c) {
    return prepare_elements(c, 3);
}

static dr_status prepare_four(bench_call *c) {
    return prepare_elements(c, 4);
}

static dr_status run_gelu(bench_call *c) {
    c->b->ops->gelu_forward(c->b, c->x[0], c->T * c->m->hidden, c->x[2]);
    return DR_OK;
}

static dr_status run_gelu_backward(bench_call *c) {
    c->b->ops->gelu_backward(c->b, c->x[1], c->x[0], c->T * c->m->hidden, c->x[2]);
    return DR_OK;
}

static dr_status run_add(bench_call *c) {
    c->b->ops->add(c->b, c->x[0], c->T * c->m->hidden, c->x[2]);
    return DR_OK;
}

// x[0] table, x[1] rows
static dr_status prepare_embedding(bench_call *c) {
    int64_t D = c->m->hidden;
    DR_TRY(bench_call_normal(c, c->m->vocab * D, &c->x[0]));
    DR_TRY(bench_call_normal(c, c->T * D, &c->x[1]));
    DR_TRY(bench_call_ids(c, c->T, c->m->vocab, &c->ids));
    return DR_OK;
}

static dr_status prepare_gather(bench_call *c) {
    DR_TRY(prepare_embedding(c));
    bench_call_compare(c, c->x[1], c->T * c->m->hidden);
    c->bytes = 8.0 * (double)(c->T * c->m->hidden);
    return DR_OK;
}

static dr_status prepare_scatter(bench_call *c) {
    DR_TRY(prepare_embedding(c));
    bench_call_compare(c, c->x[0], (int64_t)c->m->vocab * c->m->hidden);
    c->bytes = 12.0 * (double)(c->T * c->m->hidden);
    return DR_OK;
}

static dr_status run_gather(bench_call *c) {
    c->b->ops->embedding_forward(c->b, c->x[0], c->ids, c->T, c->m->hidden, c->x[1]);
    return DR_OK;
}

static dr_status run_scatter(bench_call *c) {
    c->b->ops->embedding_backward(c->b, c->x[1], c->ids, c->T, c->m->hidden, c->x[0]);
    return DR_OK;
}

// Parameters of a layer's gate and up: x[0] weights, x[1] gradient, x[2] m, x[3] v
static int64_t n_updated(const bench_call *c) {
    return 2 * (int64_t)c->m->intermediate * c->m->hidden;
}

static dr_status prepare_adamw(bench_call *c) {
    int64_t n = n_updated(c);
    DR_TRY(bench_call_normal(c, n, &c->x[0]));
    DR_TRY(bench_call_normal(c, n, &c->x[1]));
    DR_TRY(bench_call_zeros(c, n, &c->x[2]));
    DR_TRY(bench_call_zeros(c, n, &c->x[3]));
    for (int i = 0; i < 4; i++)
        if (i != 1) bench_call_compare(c, c->x[i], n);
    c->bytes = 28.0 * (double)n; // four read, three written
    return DR_OK;
}

static dr_status run_adamw(bench_call *c) {
    const dr_adamw_settings settings = {1e-3f, 0.9f, 0.95f, 1e-8f, 0.01f, 1};
    c->b->ops->adamw(c->b, c->x[0], c->x[1], c->x[2], c->x[3], n_updated(c), 1, &settings);
    return DR_OK;
}

static dr_status prepare_squares(bench_call *c) {
    DR_TRY(bench_call_normal(c, n_updated(c), &c->x[0]));
    DR_TRY(bench_call_zeros(c, 1, &c->x[1]));
    DR_TRY(bench_call_host(c, 0, 1, sizeof(float), &c->out_host));
    c->n_out_host = 1;
    bench_call_compare(c, c->x[1], 1); // to wait for
    c->bytes = 4.0 * (double)n_updated(c);
    return DR_OK;
}

static dr_status run_squares(bench_call *c) {
    c->out_host[0] = (float)dr_sum_of_squares(c->b, c->x[0], n_updated(c));
    return DR_OK;
}

static const bench_op ops[] = {
    {"rmsnorm_forward", prepare_norm, run_rms, NULL, true, true},
    {"rmsnorm_residual_forward", prepare_residual, run_residual, NULL, true, true},
    {"rmsnorm_backward", prepare_rms_backward, run_rms_backward, NULL, false, true},
    {"head_norm_forward", prepare_heads, run_heads, NULL, true, true},
    {"head_norm_backward", prepare_heads_backward, run_heads_backward, NULL, false, true},
    {"layernorm_forward", prepare_norm, run_layer, NULL, false, true},
    {"layernorm_backward", prepare_layer_backward, run_layer_backward, NULL, false, true},
    {"rope", prepare_rope, run_rope, NULL, true, true},
    {"gelu_forward", prepare_two, run_gelu, NULL, false, true},
    {"gelu_backward", prepare_four, run_gelu_backward, NULL, false, true},
    {"add", prepare_three, run_add, NULL, true, true},
    {"embedding_forward", prepare_gather, run_gather, NULL, false, true},
    {"embedding_backward", prepare_scatter, run_scatter, NULL, false, true},
    {"adamw", prepare_adamw, run_adamw, NULL, false, true},
    {"sum_of_squares", prepare_squares, run_squares, NULL, false, true}};
const bench_ops_part bench_ops_rows = {"rows", "Norms, element-wise ops, tables, optimizer", ops,
                                       sizeof ops / sizeof *ops};
