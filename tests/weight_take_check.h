// A weight whose rounded values come in parts against one that is packed whole, on any body that rounds.
#ifndef DR_TESTS_WEIGHT_TAKE_CHECK_H
#define DR_TESTS_WEIGHT_TAKE_CHECK_H

#include "tests/cuda_memory.h"

#include "core/base/log.h"

enum { TAKE_T = 5 };

// What the products with a weight give, forward and back, and its rows.
static inline float *take_results(dr_backend *b, const dr_weight *w, int64_t n_out, int64_t n_in,
                                  int64_t *out_n) {
    int64_t T = TAKE_T, n = n_out * n_in;
    float *x = put(b, op_normal(T * n_in, 0, 1), T * n_in),
          *dy = put(b, op_normal(T * n_out, 0, 1), T * n_out);
    float *all = put_poison(b, n + T * n_out + T * n_in), *dw = put_poison(b, n);
    int32_t *ids = op_array(n_out, sizeof *ids);
    for (int32_t i = 0; i < n_out; i++) ids[i] = i;
    check_ok(b->ops->weight_rows(b, w, put_ids(b, ids, n_out), n_out, all));
    check_ok(b->ops->linear_forward(b, w, x, T, NULL, all + n));
    check_ok(b->ops->linear_backward(b, w, x, dy, T, all + n + T * n_out, false, dw, NULL));
    *out_n = n + T * n_out + T * n_in;
    return get(b, all, *out_n);
}

// Cuts anywhere, within rows too; every second part first.
static inline void take_in_parts(dr_backend *b, dr_weight *w, int64_t n, int64_t part,
                                 const uint16_t *rounded) {
    for (int64_t odd = 1; odd >= 0; odd--)
        for (int64_t first = odd * part; first < n; first += 2 * part)
            check_ok(b->ops->weight_take(b, w, first, n - first < part ? n - first : part, rounded + first));
}

static inline void check_weight_taken(dr_backend *b, int64_t n_out, int64_t n_in) {
    const int64_t n = n_out * n_in, parts[] = {n, n_in, n_in + 1, n / 3 + 1, 5};
    float *values = op_normal(n, 0, 1);
    if (n > 3) values[1] = 1.00390625f, values[2] = -1.01171875f; // halfway: to the even one
    float *at = put(b, values, n);
    dr_weight *whole = NULL;
    void *memory = NULL;
    check_ok(b->ops->memory_create(b, "rounded", (size_t)n * sizeof(uint16_t), &memory));
    check_ok(b->ops->weight_create(b, n_out, n_in, &whole));
    check_ok(b->ops->weight_pack(b, whole, at));
    check_ok(b->ops->weight_round(b, at, n, memory));
    uint64_t stream = op_stream;
    for (size_t p = 0; p < sizeof parts / sizeof *parts; p++) {
        dr_weight *taken = NULL;
        int64_t n_results = 0;
        if (p > 0 && n / parts[p] > 3000) continue; // slow
        check_ok(b->ops->weight_create(b, n_out, n_in, &taken));
        if (p % 2) check_ok(b->ops->weight_pack(b, taken, put_poison(b, n))); // other values before
        take_in_parts(b, taken, n, parts[p], memory);
        op_stream = stream;
        float *want = take_results(b, whole, n_out, n_in, &n_results);
        op_stream = stream;
        check_same_bits("taken in parts", take_results(b, taken, n_out, n_in, &n_results), want, n_results);
        dr_log_set_level(DR_LOG_ERROR + 1);
        check_error(b->ops->weight_take(b, taken, 1, n, memory), DR_ERR_RANGE, "of a weight of");
        check_error(b->ops->weight_take(b, taken, -1, 1, memory), DR_ERR_RANGE, "values -1 to 0");
        dr_log_set_level(DR_LOG_INFO);
        check_ok(b->ops->weight_take(b, taken, n, 0, memory));
        b->ops->weight_destroy(b, taken);
    }
    b->ops->weight_destroy(b, whole);
    b->ops->memory_destroy(b, memory);
}

static inline void check_weight_not_taken(dr_backend *b) {
    dr_weight *w = NULL;
    const uint16_t rounded[6] = {0};
    check_ok(b->ops->weight_create(b, 2, 3, &w));
    dr_log_set_level(DR_LOG_ERROR + 1);
    check_error(b->ops->weight_take(b, w, 0, 6, rounded), DR_ERR_UNSUPPORTED, "do not round");
    dr_log_set_level(DR_LOG_INFO);
    b->ops->weight_destroy(b, w);
}

static const int64_t take_shapes[][2] = {{1, 1}, {3, 5}, {32, 64}, {33, 70}, {97, 129}, {64, 8}, {8, 200}};
enum { TAKE_SHAPES = sizeof take_shapes / sizeof *take_shapes };

#endif
