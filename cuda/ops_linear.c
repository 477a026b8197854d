// Linear layers and the general product: through cuBLASLt where the state has it and the weight's sizes suit
// it, else as calls of the own kernels. Weights in fp32 are read where they are; in bf16 a rounded copy is
// kept.
#include "core/base/alloc.h"
#include "cuda/cuda_internal.h"

static dr_status weight_create(dr_backend *b, int64_t n_out, int64_t n_in, dr_weight **out_weight) {
    DR_CHECK(n_out > 0 && n_in > 0, DR_ERR_RANGE, "weight matrix of %lld x %lld", (long long)n_out,
             (long long)n_in);
    dr_weight *w = NULL;
    DR_TRY(dr_alloc(&w, "weight", 1, sizeof *w));
    w->n_out = n_out;
    w->n_in = n_in;
    if (dr_rounds_to_bf16(b->precision)) {
        void *rounded = NULL;
        dr_status status = b->ops->memory_create(b, "rounded weight",
                                                 (size_t)n_out * (size_t)n_in * sizeof(uint16_t), &rounded);
        if (status != DR_OK) {
            dr_free(w);
            return status;
        }
        w->rounded = rounded;
    }
    *out_weight = w;
    return DR_OK;
}

static void weight_destroy(dr_backend *b, dr_weight *w) {
    if (!w) return;
    b->ops->memory_destroy(b, w->rounded);
    dr_free(w);
}

static int64_t weight_memory(dr_backend *b, int64_t n_out, int64_t n_in) {
    return dr_rounds_to_bf16(b->precision) ? n_out * n_in * (int64_t)sizeof(uint16_t) : 0;
}

static dr_status weight_pack(dr_backend *b, dr_weight *w, const float *values) {
    dr_cuda_state *state;
    DR_TRY(dr_cuda_enter(b, &state));
    w->values = values;
    if (!w->rounded) return DR_OK;
    return dr_cuda_round_bf16(values, w->n_out * w->n_in, w->rounded, state->stream);
}

static dr_status weight_round(dr_backend *b, const float *values, int64_t n, uint16_t *rounded) {
    dr_cuda_state *state;
    DR_TRY(dr_cuda_enter(b, &state));
    return dr_cuda_round_bf16(values, n, rounded, state->stream);
}

static dr_status weight_take(dr_backend *b, dr_weight *w, int64_t first, int64_t n, const uint16_t *rounded) {
    DR_TRY(dr_weight_part_check(b, w->n_out * w->n_in, first, n));
    b->ops->copy(b, w->rounded + first, rounded, (size_t)n * sizeof *rounded);
    return DR_OK;
}

static dr_status weight_rows(dr_backend *b, const dr_weight *w, const int32_t *ids, int64_t T, float *out) {
    dr_cuda_state *state;
    DR_TRY(dr_cuda_enter(b, &state));
    if (w->rounded) return dr_cuda_rounded_rows(w->rounded, ids, T, w->n_in, out, state->stream);
    return dr_cuda_embedding_forward(w->values, ids, T, w->n_in, out, state->stream);
}

// The same product said twice: to the library, and to the own kernels.
static dr_status multiply(dr_backend *b, const dr_lt_product *by_library, const dr_cuda_product *product) {
    dr_cuda_state *state;
    bool is_served = false;
    DR_TRY(dr_cuda_enter(b, &state));
    if (state->lt) DR_TRY(dr_cuda_lt_product(state, by_library, &is_served));
    if (is_served) return DR_OK;
    if (dr_rounds_to_bf16(b->precision)) return dr_cuda_product_bf16(product, state->stream);
    return dr_cuda_product_fp32(product, state->stream);
}

static dr_lt_operand weight_operand(const dr_weight *w) {
    return (dr_lt_operand){w->values, w->rounded, w->n_out * w->n_in};
}

// silu(gate) · up [T, F] in scratch, in the type that is multiplied.
static dr_status gated_operand(dr_backend *b, const void *gate_up, int64_t T, int64_t F, dr_lt_operand *out) {
    const bool rounds = dr_rounds_to_bf16(b->precision);
    const int64_t bytes = T * F * (int64_t)(rounds ? sizeof(uint16_t) : sizeof(float));
    dr_cuda_state *state;
    DR_TRY(dr_cuda_enter(b, &state));
    DR_TRY(dr_cuda_reserve(state, &state->gated, "silu(gate) · up", bytes));
    void *data = state->gated.data;
    *out = (dr_lt_operand){rounds ? NULL : data, rounds ? data : NULL, T * F};
    return rounds ? dr_cuda_swiglu_bf16(gate_up, T, F, data, state->stream)
                  : dr_cuda_swiglu(gate_up, T, F, data, state->stream);
}

// y (t, o) = Σ_i x (t, i) · w (o, i), in fp32, or as bf16 into rounded_y where that is not NULL.
static dr_status forward(dr_backend *b, const char *op, const dr_weight *w, const dr_lt_operand *x, int64_t T,
                         const float *bias, float *y, uint16_t *rounded_y) {
    const dr_lt_product by_library = {.op = rounded_y ? DR_LT_FORWARD_ROUNDED
                                            : bias    ? DR_LT_FORWARD_BIAS
                                                      : DR_LT_FORWARD,
                                      .n_out = w->n_out,
                                      .n_in = w->n_in,
                                      .T = T,
                                      .left = weight_operand(w),
                                      .right = *x,
                                      .bias = bias,
                                      .out = rounded_y ? (void *)rounded_y : y};
    const dr_cuda_product product = {.op = op,
                                     .a = {x->values, x->rounded, w->n_in, 1},
                                     .b = {w->values, w->rounded, w->n_in, 1},
                                     .m = T,
                                     .n = w->n_out,
                                     .k = w->n_in,
                                     .alpha = 1.0f,
                                     .bias = bias,
                                     .c = y,
                                     .rounded_c = rounded_y};
    return multiply(b, &by_library, &product);
}

dr_status dr_cuda_linear(dr_backend *b, const dr_weight *w, const float *x, int64_t T, const float *bias,
                         float *y) {
    const dr_lt_operand rows = {x, NULL, T * w->n_in};
    return forward(b, "linear_forward", w, &rows, T, bias, y, NULL);
}

static dr_status gate_up_forward(dr_backend *b, const dr_weight *w, const float *x, int64_t T,
                                 void *gate_up) {
    const dr_lt_operand rows = {x, NULL, T * w->n_in};
    const bool rounds = dr_rounds_to_bf16(b->precision);
    return forward(b, "gate_up_forward", w, &rows, T, NULL, rounds ? NULL : gate_up, rounds ? gate_up : NULL);
}

static dr_status swiglu_linear_forward(dr_backend *b, const dr_weight *w, const void *gate_up, int64_t T,
                                       float *y) {
    dr_lt_operand rows;
    DR_TRY(gated_operand(b, gate_up, T, w->n_in, &rows));
    return forward(b, "swiglu_linear_forward", w, &rows, T, NULL, y, NULL);
}

// dx (t, i) = Σ_o dy (t, o) · w (o, i)
static dr_status input_gradient(dr_backend *b, const char *op, const dr_weight *w, const dr_lt_operand *dy,
                                int64_t T, float *dx, bool accumulate) {
    const dr_lt_product by_library = {.op = DR_LT_BACKWARD_INPUT,
                                      .n_out = w->n_out,
                                      .n_in = w->n_in,
                                      .T = T,
                                      .left = weight_operand(w),
                                      .right = *dy,
                                      .out = dx,
                                      .accumulate = accumulate};
    const dr_cuda_product product = {.op = op,
                                     .a = {dy->values, dy->rounded, w->n_out, 1},
                                     .b = {w->values, w->rounded, 1, w->n_in},
                                     .m = T,
                                     .n = w->n_in,
                                     .k = w->n_out,
                                     .alpha = 1.0f,
                                     .beta = accumulate ? 1.0f : 0.0f,
                                     .c = dx};
    return multiply(b, &by_library, &product);
}

// dw (o, i) += Σ_t dy (t, o) · x (t, i)
static dr_status weight_gradient(dr_backend *b, const char *op, const dr_weight *w, const dr_lt_operand *x,
                                 const dr_lt_operand *dy, int64_t T, float *dw) {
    const dr_lt_product by_library = {.op = DR_LT_BACKWARD_WEIGHT,
                                      .n_out = w->n_out,
                                      .n_in = w->n_in,
                                      .T = T,
                                      .left = *x,
                                      .right = *dy,
                                      .out = dw,
                                      .accumulate = true};
    const dr_cuda_product product = {.op = op,
                                     .a = {dy->values, dy->rounded, 1, w->n_out},
                                     .b = {x->values, x->rounded, 1, w->n_in},
                                     .m = w->n_out,
                                     .n = w->n_in,
                                     .k = T,
                                     .alpha = 1.0f,
                                     .beta = 1.0f,
                                     .c = dw};
    return multiply(b, &by_library, &product);
}

dr_status dr_cuda_gradient_products(dr_backend *b, const char *op, const dr_weight *w, const float *x,
                                    const dr_lt_operand *dy, int64_t T, float *dx, bool accumulate,
                                    float *dw) {
    const dr_lt_operand rows = {x, NULL, T * w->n_in};
    if (dx) DR_TRY(input_gradient(b, op, w, dy, T, dx, accumulate));
    return weight_gradient(b, op, w, &rows, dy, T, dw);
}

// dy of a layer's both products: rounded once, where products round.
static dr_status shared_gradient(dr_backend *b, const float *dy, int64_t n, dr_lt_operand *out) {
    dr_cuda_state *state;
    DR_TRY(dr_cuda_enter(b, &state));
    *out = (dr_lt_operand){dy, NULL, n};
    if (!dr_rounds_to_bf16(b->precision)) return DR_OK;
    DR_TRY(dr_cuda_reserve(state, &state->dy, "gradient of products", n * (int64_t)sizeof(uint16_t)));
    out->rounded = state->dy.data;
    return dr_cuda_round_bf16(dy, n, state->dy.data, state->stream);
}

static dr_status linear_backward(dr_backend *b, const dr_weight *w, const float *x, const float *dy,
                                 int64_t T, float *dx, bool accumulate, float *dw, float *dbias) {
    static const char op[] = "linear_backward";
    dr_cuda_state *state;
    dr_lt_operand gradient;
    DR_TRY(dr_cuda_enter(b, &state));
    DR_TRY(shared_gradient(b, dy, T * w->n_out, &gradient));
    DR_TRY(dr_cuda_gradient_products(b, op, w, x, &gradient, T, dx, accumulate, dw));
    if (!dbias) return DR_OK;
    DR_TRY(dr_cuda_reserve(state, &state->partials, "partial sums",
                           dr_chunk_count(T) * w->n_out * (int64_t)sizeof(float)));
    return dr_cuda_column_sums(op, dy, NULL, NULL, NULL, T, w->n_out, state->partials.data, dbias,
                               state->stream);
}

// The gradient's bf16 values are the operand of both products.
static dr_status gate_up_backward(dr_backend *b, const dr_weight *w, const float *x, const void *dgate_up,
                                  int64_t T, float *dx, float *dw) {
    const bool rounds = dr_rounds_to_bf16(b->precision);
    const dr_lt_operand gradient = {rounds ? NULL : dgate_up, rounds ? dgate_up : NULL, T * w->n_out};
    return dr_cuda_gradient_products(b, "gate_up_backward", w, x, &gradient, T, dx, false, dw);
}

// dgate_up from dact [T, F], and silu(gate) · up as an operand: in dact's place, or as bf16.
static dr_status gated_gradient(dr_backend *b, const void *gate_up, float *dact, int64_t T, int64_t F,
                                void *dgate_up, dr_lt_operand *out) {
    dr_cuda_state *state;
    DR_TRY(dr_cuda_enter(b, &state));
    *out = (dr_lt_operand){dact, NULL, T * F};
    if (!dr_rounds_to_bf16(b->precision))
        return dr_cuda_swiglu_gradient(gate_up, dact, T, F, dgate_up, dact, state->stream);
    DR_TRY(dr_cuda_reserve(state, &state->gated, "silu(gate) · up", T * F * (int64_t)sizeof(uint16_t)));
    *out = (dr_lt_operand){NULL, state->gated.data, T * F};
    return dr_cuda_swiglu_gradient_bf16(gate_up, dact, T, F, dgate_up, state->gated.data, state->stream);
}

static dr_status swiglu_linear_backward(dr_backend *b, const dr_weight *w, const void *gate_up,
                                        const float *dy, int64_t T, void *dgate_up, float *dw) {
    static const char op[] = "swiglu_linear_backward";
    dr_cuda_state *state;
    dr_lt_operand gradient, rows;
    DR_TRY(dr_cuda_enter(b, &state));
    DR_TRY(dr_cuda_reserve(state, &state->dgated, "gradient at silu(gate) · up",
                           T * w->n_in * (int64_t)sizeof(float)));
    DR_TRY(shared_gradient(b, dy, T * w->n_out, &gradient));
    DR_TRY(input_gradient(b, op, w, &gradient, T, state->dgated.data, false));
    DR_TRY(gated_gradient(b, gate_up, state->dgated.data, T, w->n_in, dgate_up, &rows));
    return weight_gradient(b, op, w, &rows, &gradient, T, dw);
}

static dr_status gemm(dr_backend *b, bool trans_a, bool trans_b, int64_t m, int64_t n, int64_t k, float alpha,
                      const float *a, const float *b_matrix, float beta, float *c) {
    dr_cuda_state *state;
    const dr_cuda_product product = {.op = "gemm",
                                     .a = {a, NULL, trans_a ? 1 : k, trans_a ? m : 1},
                                     .b = {b_matrix, NULL, trans_b ? k : 1, trans_b ? 1 : n},
                                     .m = m,
                                     .n = n,
                                     .k = k,
                                     .alpha = alpha,
                                     .beta = beta,
                                     .c = c};
    DR_TRY(dr_cuda_enter(b, &state));
    return dr_cuda_product_fp32(&product, state->stream);
}

void dr_cuda_fill_linear(dr_backend_ops *ops) {
    ops->weight_create = weight_create;
    ops->weight_destroy = weight_destroy;
    ops->weight_memory = weight_memory;
    ops->weight_pack = weight_pack;
    ops->weight_round = weight_round;
    ops->weight_take = weight_take;
    ops->weight_rows = weight_rows;
    ops->linear_forward = dr_cuda_linear;
    ops->linear_backward = linear_backward;
    ops->gate_up_forward = gate_up_forward;
    ops->gate_up_backward = gate_up_backward;
    ops->swiglu_linear_forward = swiglu_linear_forward;
    ops->swiglu_linear_backward = swiglu_linear_backward;
    ops->gemm = gemm;
}
