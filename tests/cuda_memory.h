// What the tests of the CUDA body share: memory of either backend that lives until the end of a case, packed
// weights.
#ifndef DR_TESTS_CUDA_MEMORY_H
#define DR_TESTS_CUDA_MEMORY_H

#include "tests/op_check.h"
#include "tests/small_cases.h"

enum { MAX_MEMORY = 512 };

static struct {
    dr_backend *b;
    void *at;
} memory[MAX_MEMORY];
static int n_memory;

static inline void *put_bytes(dr_backend *b, const void *values, size_t bytes) {
    void *at = NULL;
    check_ok(b->ops->memory_create(b, "test array", bytes, &at));
    assert_true(n_memory < MAX_MEMORY);
    memory[n_memory].b = b;
    memory[n_memory++].at = at;
    b->ops->copy_in(b, at, values, bytes);
    return at;
}

static inline float *put(dr_backend *b, const float *values, int64_t n) {
    return put_bytes(b, values, (size_t)n * sizeof(float));
}

static inline int32_t *put_ids(dr_backend *b, const int32_t *ids, int64_t n) {
    return put_bytes(b, ids, (size_t)n * sizeof(int32_t));
}

static inline float *put_poison(dr_backend *b, int64_t n) {
    return put(b, op_poison(n), n);
}

static inline float *get(dr_backend *b, const float *at, int64_t n) {
    float *values = op_array(n, sizeof(float));
    b->ops->copy_out(b, values, at, (size_t)n * sizeof(float));
    return values;
}

// n values of gate and up as b keeps them.
static inline void *put_gated(dr_backend *b, const float *values, int64_t n) {
    return put_bytes(b, op_gated(b, op_copy(values, n), n), (size_t)n * dr_gated_bytes(b));
}

static inline float *get_gated(dr_backend *b, const void *at, int64_t n) {
    void *gated = op_array(n, dr_gated_bytes(b));
    b->ops->copy_out(b, gated, at, (size_t)n * dr_gated_bytes(b));
    return op_gated_values(b, gated, n);
}

static inline void free_memory(void) {
    while (n_memory > 0) {
        n_memory--;
        memory[n_memory].b->ops->memory_destroy(memory[n_memory].b, memory[n_memory].at);
    }
}

static inline void free_all(void) {
    free_memory();
    op_free_arrays();
}

static inline int case_teardown(void **state) {
    free_memory();
    return op_case_teardown(state);
}

// The values, rounded to bf16.
static inline float *rounded(const float *values, int64_t n) {
    float *copy = op_copy(values, n);
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &copy[i], sizeof bits);
        bits = (bits + 0x7FFFu + (bits >> 16 & 1)) & 0xFFFF0000u; // to nearest, ties to even
        memcpy(&copy[i], &bits, sizeof bits);
    }
    return copy;
}

static inline dr_weight *pack(dr_backend *b, int64_t n_out, int64_t n_in, const float *values) {
    dr_weight *w = NULL;
    check_ok(b->ops->weight_create(b, n_out, n_in, &w));
    check_ok(b->ops->weight_pack(b, w, put(b, values, n_out * n_in)));
    return w;
}

#define cuda_test(function) cmocka_unit_test_teardown(function, case_teardown)

#endif
