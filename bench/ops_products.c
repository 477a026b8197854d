// Memory and products: weights of a layer's largest matrix (gate and up) unless the name says another.
#include "bench/ops_parts.h"

static double element(const bench_call *c) { // bytes of a weight as products read it
    return c->b->precision == DR_BF16 ? 2 : 4;
}

static double gated(const bench_call *c) { // bytes of a value of gate and up
    return (double)dr_gated_bytes(c->b);
}

// x [T, n_in], y [T, n_out]
static dr_status prepare_linear(bench_call *c, int64_t n_out, int64_t n_in) {
    float *values = NULL;
    DR_TRY(bench_call_weight(c, n_out, n_in, &values));
    DR_TRY(bench_call_normal(c, c->T * n_in, &c->x[0]));
    DR_TRY(bench_call_zeros(c, c->T * n_out, &c->x[1]));
    bench_call_compare(c, c->x[1], c->T * n_out);
    c->product = (bench_product){.m = c->T, .n = n_out, .k = n_in, .trans_b = true, .count = 1};
    c->bytes = element(c) * (double)(n_out * n_in) + 4.0 * (double)(c->T * (n_in + n_out));
    return DR_OK;
}

static dr_status prepare_qkv(bench_call *c) {
    int64_t heads = c->m->n_heads + 2 * c->m->n_kv_heads;
    return prepare_linear(c, heads * c->m->head_size, c->m->hidden);
}

// x [T, n_in], gate and up [T, n_out], and these as floats
static dr_status prepare_gate_up(bench_call *c) {
    int64_t O = 2 * (int64_t)c->m->intermediate, I = c->m->hidden;
    float *values = NULL;
    DR_TRY(bench_call_weight(c, O, I, &values));
    DR_TRY(bench_call_normal(c, c->T * I, &c->x[0]));
    DR_TRY(bench_call_gated(c, c->T * O, &c->x[1], &c->x[2]));
    bench_call_compare(c, c->x[2], c->T * O);
    c->product = (bench_product){.m = c->T, .n = O, .k = I, .trans_b = true, .count = 1};
    c->bytes = element(c) * (double)(O * I) + (double)c->T * (4.0 * (double)I + gated(c) * (double)O);
    return DR_OK;
}

static dr_status run_gate_up(bench_call *c) {
    return c->b->ops->gate_up_forward(c->b, c->w, c->x[0], c->T, c->x[1]);
}

static dr_status finish_gate_up(bench_call *c) {
    return bench_call_widen(c, c->x[1], c->out[0].n, c->x[2]);
}

static dr_status prepare_down(bench_call *c) {
    return prepare_linear(c, c->m->hidden, c->m->intermediate);
}

static dr_status prepare_head(bench_call *c) {
    return prepare_linear(c, c->m->vocab, c->m->hidden);
}

static dr_status run_forward(bench_call *c) {
    return c->b->ops->linear_forward(c->b, c->w, c->x[0], c->T, NULL, c->x[1]);
}

// x[0] gate and up, x[1] y: the matrix is down's
static dr_status prepare_gated(bench_call *c) {
    int64_t O = c->m->hidden, I = c->m->intermediate;
    float *values = NULL;
    DR_TRY(bench_call_weight(c, O, I, &values));
    DR_TRY(bench_call_gated(c, c->T * 2 * I, &c->x[0], NULL));
    c->product = (bench_product){.m = c->T, .n = O, .k = I, .trans_b = true, .count = 1};
    return DR_OK;
}

static dr_status prepare_swiglu(bench_call *c) {
    int64_t O = c->m->hidden, I = c->m->intermediate;
    DR_TRY(prepare_gated(c));
    DR_TRY(bench_call_zeros(c, c->T * O, &c->x[1]));
    bench_call_compare(c, c->x[1], c->T * O);
    c->bytes = element(c) * (double)(O * I) + (double)c->T * (gated(c) * 2 * (double)I + 4.0 * (double)O);
    return DR_OK;
}

static dr_status run_swiglu(bench_call *c) {
    return c->b->ops->swiglu_linear_forward(c->b, c->w, c->x[0], c->T, c->x[1]);
}

// x[2] dy, x[3] dgate_up, x[4] dw, x[5] dgate_up as floats: two products
static dr_status prepare_swiglu_backward(bench_call *c) {
    int64_t O = c->m->hidden, I = c->m->intermediate;
    DR_TRY(prepare_gated(c));
    DR_TRY(bench_call_normal(c, c->T * O, &c->x[2]));
    DR_TRY(bench_call_gated(c, c->T * 2 * I, &c->x[3], &c->x[5]));
    DR_TRY(bench_call_zeros(c, O * I, &c->x[4]));
    bench_call_compare(c, c->x[5], c->T * 2 * I);
    bench_call_compare(c, c->x[4], O * I);
    c->product.count = 2;
    c->bytes =
        (element(c) + 8) * (double)(O * I) + (double)c->T * (gated(c) * 4 * (double)I + 4.0 * (double)O);
    return DR_OK;
}

static dr_status run_swiglu_backward(bench_call *c) {
    return c->b->ops->swiglu_linear_backward(c->b, c->w, c->x[0], c->x[2], c->T, c->x[3], c->x[4]);
}

static dr_status finish_swiglu_backward(bench_call *c) {
    return bench_call_widen(c, c->x[3], c->out[0].n, c->x[5]);
}

// x[0] x, x[1] dy, x[2] dx, x[3] dw: two products
static dr_status prepare_gradients(bench_call *c, bool is_gated) {
    int64_t O = 2 * (int64_t)c->m->intermediate, I = c->m->hidden;
    double dy = is_gated ? gated(c) : 4;
    float *values = NULL;
    DR_TRY(bench_call_weight(c, O, I, &values));
    DR_TRY(bench_call_normal(c, c->T * I, &c->x[0]));
    if (is_gated) DR_TRY(bench_call_gated(c, c->T * O, &c->x[1], NULL));
    if (!is_gated) DR_TRY(bench_call_normal(c, c->T * O, &c->x[1]));
    DR_TRY(bench_call_zeros(c, c->T * I, &c->x[2]));
    DR_TRY(bench_call_zeros(c, O * I, &c->x[3]));
    bench_call_compare(c, c->x[2], c->T * I);
    bench_call_compare(c, c->x[3], O * I);
    c->product = (bench_product){.m = c->T, .n = I, .k = O, .count = 2};
    c->bytes = (element(c) + 8) * (double)(O * I) + (double)c->T * (dy * (double)O + 8.0 * (double)I);
    return DR_OK;
}

static dr_status prepare_backward(bench_call *c) {
    return prepare_gradients(c, false);
}

static dr_status prepare_gate_up_backward(bench_call *c) {
    return prepare_gradients(c, true);
}

static dr_status run_gate_up_backward(bench_call *c) {
    return c->b->ops->gate_up_backward(c->b, c->w, c->x[0], c->x[1], c->T, c->x[2], c->x[3]);
}

static dr_status run_backward(bench_call *c) {
    return c->b->ops->linear_backward(c->b, c->w, c->x[0], c->x[1], c->T, c->x[2], false, c->x[3], NULL);
}

static dr_status prepare_gemm(bench_call *c) {
    int64_t D = c->m->hidden;
    DR_TRY(bench_call_normal(c, c->T * D, &c->x[0]));
    DR_TRY(bench_call_normal(c, D * D, &c->x[1]));
    DR_TRY(bench_call_zeros(c, c->T * D, &c->x[2]));
    bench_call_compare(c, c->x[2], c->T * D);
    c->product = (bench_product){.m = c->T, .n = D, .k = D, .trans_b = true, .is_fp32 = true, .count = 1};
    c->bytes = 4.0 * (double)(2 * c->T * D + D * D);
    return DR_OK;
}

static dr_status run_gemm(bench_call *c) {
    int64_t D = c->m->hidden;
    return c->b->ops->gemm(c->b, false, true, c->T, D, D, 1, c->x[0], c->x[1], 0, c->x[2]);
}

// The embedding's rows, or a weight packed again: rows of it show what it holds.
static dr_status prepare_rows(bench_call *c) {
    int64_t D = c->m->hidden;
    DR_TRY(bench_call_weight(c, c->m->vocab, D, &c->x[0]));
    DR_TRY(bench_call_ids(c, c->T, c->m->vocab, &c->ids));
    DR_TRY(bench_call_zeros(c, c->T * D, &c->x[1]));
    bench_call_compare(c, c->x[1], c->T * D);
    c->bytes = (element(c) + 4) * (double)(c->T * D);
    return DR_OK;
}

static dr_status run_rows(bench_call *c) {
    return c->b->ops->weight_rows(c->b, c->w, c->ids, c->T, c->x[1]);
}

static dr_status prepare_pack(bench_call *c) {
    DR_TRY(prepare_rows(c));
    c->bytes = (element(c) + 4) * (double)c->m->vocab * (double)c->m->hidden;
    return DR_OK;
}

static dr_status run_pack(bench_call *c) {
    return c->b->ops->weight_pack(c->b, c->w, c->x[0]);
}

static dr_status prepare_copy(bench_call *c) {
    int64_t n = c->T * c->m->hidden;
    void *host = NULL;
    DR_TRY(bench_call_normal(c, n, &c->x[0]));
    DR_TRY(bench_call_normal(c, n, &c->x[1]));
    DR_TRY(bench_call_host(c, 0, n, sizeof(float), &host));
    c->b->ops->copy_out(c->b, host, c->x[0], (size_t)n * sizeof(float));
    bench_call_compare(c, c->x[1], n);
    c->bytes = 8.0 * (double)n;
    return DR_OK;
}

static size_t copy_bytes(const bench_call *c) {
    return (size_t)(c->T * c->m->hidden) * sizeof(float);
}

static dr_status run_copy(bench_call *c) {
    c->b->ops->copy(c->b, c->x[1], c->x[0], copy_bytes(c));
    return DR_OK;
}

static dr_status run_copy_in(bench_call *c) {
    c->b->ops->copy_in(c->b, c->x[1], c->host[0], copy_bytes(c));
    return DR_OK;
}

static dr_status run_copy_out(bench_call *c) {
    c->b->ops->copy_out(c->b, c->host[0], c->x[1], copy_bytes(c));
    return DR_OK;
}

static dr_status run_zero(bench_call *c) {
    c->b->ops->zero(c->b, c->x[1], copy_bytes(c));
    return DR_OK;
}

// Back into backend memory, where it is compared.
static dr_status finish_copy_out(bench_call *c) {
    c->b->ops->zero(c->b, c->x[1], copy_bytes(c));
    return run_copy_in(c);
}

static const bench_op ops[] = {
    {"linear_forward.qkv", prepare_qkv, run_forward, NULL, true, true},
    {"gate_up_forward", prepare_gate_up, run_gate_up, finish_gate_up, true, true},
    {"linear_forward.down", prepare_down, run_forward, NULL, true, true},
    {"linear_forward.head", prepare_head, run_forward, NULL, true, false},
    {"linear_backward", prepare_backward, run_backward, NULL, false, true},
    {"gate_up_backward", prepare_gate_up_backward, run_gate_up_backward, NULL, false, true},
    {"swiglu_linear_forward.down", prepare_swiglu, run_swiglu, NULL, true, true},
    {"swiglu_linear_backward.down", prepare_swiglu_backward, run_swiglu_backward, finish_swiglu_backward,
     false, true},
    {"gemm", prepare_gemm, run_gemm, NULL, true, true},
    {"weight_pack.embedding", prepare_pack, run_pack, run_rows, false, true},
    {"weight_rows.embedding", prepare_rows, run_rows, NULL, true, true},
    {"copy", prepare_copy, run_copy, NULL, false, true},
    {"copy_in", prepare_copy, run_copy_in, NULL, false, true},
    {"copy_out", prepare_copy, run_copy_out, finish_copy_out, true, true},
    {"zero", prepare_copy, run_zero, NULL, false, true}};
const bench_ops_part bench_ops_products = {"products", "Memory and products", ops, sizeof ops / sizeof *ops};
