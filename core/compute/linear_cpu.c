// Linear layers and the general product: fp32 through our own kernels, bf16 through oneDNN where the
// processor multiplies it, else through our own as well.
#include <dnnl.h>
#include <omp.h>

#include "core/base/alloc.h"
#include "core/compute/cpu_internal.h"

static dr_status weight_create(dr_backend *b, int64_t n_out, int64_t n_in, dr_weight **out_weight) {
    (void)b;
    DR_CHECK(n_out > 0 && n_in > 0, DR_ERR_RANGE, "weight matrix of %lld x %lld", (long long)n_out,
             (long long)n_in);
    dr_weight *w = NULL;
    DR_TRY(dr_alloc(&w, "weight", 1, sizeof *w));
    w->n_out = n_out;
    w->n_in = n_in;
    *out_weight = w;
    return DR_OK;
}

static void weight_destroy(dr_backend *b, dr_weight *w) {
    (void)b;
    if (!w) return;
    dr_free(w->bf16);
    dr_free(w);
}

static int64_t weight_memory(dr_backend *b, int64_t n_out, int64_t n_in) {
    if (b->precision != DR_BF16) return 0;
    bool has_units = dr_cpu_state_of(b)->bf16 != NULL; // else in panels
    return (has_units ? n_out * n_in : dr_panels_floats(n_in, n_out)) * (int64_t)sizeof(bf16);
}

static dr_status weight_pack(dr_backend *b, dr_weight *w, const float *values) {
    struct dr_bf16 *units = dr_cpu_state_of(b)->bf16;
    w->values = b->precision == DR_BF16 ? NULL : values;
    if (b->precision != DR_BF16) return DR_OK; // fp32 products read the values as they stand
    return units ? dr_bf16_weight_pack(units, w, values) : dr_bf16_lanes_pack(b, w, values);
}

static dr_status weight_round(dr_backend *b, const float *values, int64_t n, uint16_t *rounded) {
    dr_bf16_round(values, n, b->n_threads, rounded);
    return DR_OK;
}

static dr_status weight_take(dr_backend *b, dr_weight *w, int64_t first, int64_t n, const uint16_t *rounded) {
    DR_TRY(dr_weight_part_check(b, w->n_out * w->n_in, first, n));
    return dr_cpu_state_of(b)->bf16 ? dr_bf16_weight_take(w, first, n, rounded)
                                    : dr_bf16_lanes_take(b, w, first, n, rounded);
}

static dr_status weight_rows(dr_backend *b, const dr_weight *w, const int32_t *ids, int64_t T, float *out) {
    int64_t n = w->n_in;
#pragma omp parallel for num_threads(b->n_threads) schedule(static) if (b->n_threads > 1 && T > 64)
    for (int64_t t = 0; t < T; t++)
        if (b->precision != DR_BF16)
            memcpy(out + t * n, w->values + ids[t] * n, (size_t)n * sizeof(float));
        else if (dr_cpu_state_of(b)->bf16)
            dr_bf16_row(w, ids[t], out + t * n);
        else
            dr_bf16_lanes_row(w, ids[t], out + t * n);
    return DR_OK;
}

static void add_bias(const float *bias, int64_t T, int64_t n, float *y) {
    for (int64_t t = 0; t < T; t++)
        for (int64_t j = 0; j < n; j++) y[t * n + j] += bias[j];
}

static dr_status loose_forward(dr_backend *b, const dr_weight *w, const float *x, int64_t T, float *y) {
    omp_set_num_threads(b->n_threads); // the library asks OpenMP
    dnnl_status_t status =
        dnnl_sgemm('N', 'T', T, w->n_out, w->n_in, 1.0f, x, w->n_in, w->values, w->n_in, 0.0f, y, w->n_out);
    DR_CHECK(status == dnnl_success, DR_ERR_INTERNAL, "sgemm of %lld x %lld x %lld: status %d", (long long)T,
             (long long)w->n_out, (long long)w->n_in, (int)status);
    return DR_OK;
}

static dr_status fp32_forward(dr_backend *b, const dr_weight *w, const dr_rows *x, int64_t T, float *y) {
    for (int64_t t = 0, n; t < T; t += n) {
        const dr_rows from = dr_rows_from(x, t);
        const float *rows = NULL;
        n = x->is_gated ? dr_rows_chunk(b, T - t) : T;
        DR_TRY(dr_rows_floats(b, 0, &from, n, false, &rows));
        if (b->precision == DR_FP32_LOOSE)
            DR_TRY(loose_forward(b, w, rows, n, y + t * w->n_out));
        else
            DR_TRY(dr_cpu_apply_weight(b, w, rows, n, y + t * w->n_out));
    }
    return DR_OK;
}

static dr_status rows_forward(dr_backend *b, const dr_weight *w, const dr_rows *x, int64_t T,
                              const dr_result *y) {
    if (dr_cpu_state_of(b)->bf16) return dr_bf16_forward(b, w, x, T, y);
    if (b->precision == DR_BF16) return dr_bf16_lanes_forward(b, w, x, T, y);
    return fp32_forward(b, w, x, T, y->values);
}

static dr_status linear_forward(dr_backend *b, const dr_weight *w, const float *x, int64_t T,
                                const float *bias, float *y) {
    const dr_rows rows = dr_rows_plain(x, w->n_in);
    const dr_result to = {y, NULL};
    DR_TRY(rows_forward(b, w, &rows, T, &to));
    if (bias) add_bias(bias, T, w->n_out, y);
    return DR_OK;
}

// Values of dr_gated_bytes as rows: gate and up of rows of n, or n values as they are.
static dr_rows gated_rows(const dr_backend *b, const void *values, int64_t n, bool is_gated) {
    return dr_rounds_to_bf16(b->precision) ? (dr_rows){NULL, values, n, is_gated}
                                           : (dr_rows){values, NULL, n, is_gated};
}

static dr_status gate_up_forward(dr_backend *b, const dr_weight *w, const float *x, int64_t T,
                                 void *gate_up) {
    const dr_rows rows = dr_rows_plain(x, w->n_in);
    const dr_result to =
        dr_rounds_to_bf16(b->precision) ? (dr_result){NULL, gate_up} : (dr_result){gate_up, NULL};
    return rows_forward(b, w, &rows, T, &to);
}

static dr_status swiglu_linear_forward(dr_backend *b, const dr_weight *w, const void *gate_up, int64_t T,
                                       float *y) {
    const dr_rows rows = gated_rows(b, gate_up, w->n_in, true);
    const dr_result to = {y, NULL};
    return rows_forward(b, w, &rows, T, &to);
}

static dr_status input_gradient(dr_backend *b, const dr_weight *w, const dr_rows *dy, int64_t T, float *dx,
                                bool accumulate) {
    const int64_t O = w->n_out, I = w->n_in;
    if (dr_cpu_state_of(b)->bf16) return dr_bf16_backward_input(b, w, dy, T, dx, accumulate);
    if (b->precision == DR_BF16) return dr_bf16_lanes_backward_input(b, w, dy, T, dx, accumulate);
    return dr_cpu_product(b, dy->values, O, 1, w->values, I, 1, T, I, O, dx, accumulate);
}

static dr_status weight_gradient(dr_backend *b, const dr_rows *x, const dr_rows *dy, int64_t T, float *dw) {
    const int64_t O = dy->n, I = x->n;
    if (dr_cpu_state_of(b)->bf16) return dr_bf16_backward_weight(b, x, dy, T, dw);
    if (b->precision == DR_BF16) return dr_bf16_lanes_backward_weight(b, x, dy, T, dw);
    return dr_cpu_product(b, dy->values, 1, O, x->values, I, 1, O, I, T, dw, true);
}

static dr_status linear_backward(dr_backend *b, const dr_weight *w, const float *x, const float *dy,
                                 int64_t T, float *dx, bool accumulate, float *dw, float *dbias) {
    const int64_t O = w->n_out;
    const dr_rows rows = dr_rows_plain(x, w->n_in), gradient = dr_rows_plain(dy, O);
    if (dx) DR_TRY(input_gradient(b, w, &gradient, T, dx, accumulate));
    DR_TRY(weight_gradient(b, &rows, &gradient, T, dw));
    for (int64_t t = 0; dbias && t < T; t++)
        for (int64_t j = 0; j < O; j++) dbias[j] += dy[t * O + j];
    return DR_OK;
}

static dr_status gate_up_backward(dr_backend *b, const dr_weight *w, const float *x, const void *dgate_up,
                                  int64_t T, float *dx, float *dw) {
    const dr_rows rows = dr_rows_plain(x, w->n_in), gradient = gated_rows(b, dgate_up, w->n_out, false);
    DR_TRY(input_gradient(b, w, &gradient, T, dx, false));
    return weight_gradient(b, &rows, &gradient, T, dw);
}

// In chunks, whose gradient at silu(gate) · up stays near until they are made in its place.
static dr_status swiglu_linear_backward(dr_backend *b, const dr_weight *w, const void *gate_up,
                                        const float *dy, int64_t T, void *dgate_up, float *dw) {
    const int64_t O = w->n_out, I = w->n_in, row = 2 * I * (int64_t)dr_gated_bytes(b);
    dr_scratch *gated = &dr_cpu_state_of(b)->gated;
    DR_TRY(dr_scratch_reserve(gated, dr_rows_chunk(b, T) * I));
    for (int64_t t = 0, n; t < T; t += n) {
        const dr_rows gradient = dr_rows_plain(dy + t * O, O), rows = dr_rows_plain(gated->data, I);
        n = dr_rows_chunk(b, T - t);
        DR_TRY(input_gradient(b, w, &gradient, n, gated->data, false));
        dr_swiglu_gradient(b, (const char *)gate_up + t * row, n, I, gated->data, (char *)dgate_up + t * row);
        DR_TRY(weight_gradient(b, &rows, &gradient, n, dw));
    }
    return DR_OK;
}

static dr_status gemm(dr_backend *b, bool trans_a, bool trans_b, int64_t m, int64_t n, int64_t k, float alpha,
                      const float *a, const float *b_matrix, float beta, float *c) {
    for (int64_t i = 0; beta != 0.0f && beta != 1.0f && i < m * n; i++) c[i] *= beta;
    const float *left = a;
    if (alpha != 1.0f) { // scaled copy of a: keeps the product itself one plain chain
        dr_scratch *scratch = &dr_cpu_state_of(b)->thread[0];
        DR_TRY(dr_scratch_reserve(scratch, m * k));
        for (int64_t i = 0; i < m * k; i++) scratch->data[i] = alpha * a[i];
        left = scratch->data;
    }
    return dr_cpu_product(b, left, trans_a ? 1 : k, trans_a ? m : 1, b_matrix, trans_b ? 1 : n,
                          trans_b ? k : 1, m, n, k, c, beta != 0.0f);
}

void dr_cpu_fill_linear(dr_backend_ops *ops) {
    ops->weight_create = weight_create;
    ops->weight_destroy = weight_destroy;
    ops->weight_memory = weight_memory;
    ops->weight_pack = weight_pack;
    ops->weight_round = weight_round;
    ops->weight_take = weight_take;
    ops->weight_rows = weight_rows;
    ops->linear_forward = linear_forward;
    ops->linear_backward = linear_backward;
    ops->gate_up_forward = gate_up_forward;
    ops->gate_up_backward = gate_up_backward;
    ops->swiglu_linear_forward = swiglu_linear_forward;
    ops->swiglu_linear_backward = swiglu_linear_backward;
    ops->gemm = gemm;
}
