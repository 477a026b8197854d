// Tensors of the golden files that scripts in tests/golden wrote.
#ifndef DR_TESTS_GOLDEN_H
#define DR_TESTS_GOLDEN_H

#include "core/base/alloc.h"
#include "core/store/safetensors.h"
#include "tests/check.h"

// All values of a tensor, to be freed with dr_free; out_n may be NULL.
static inline float *read_golden(const dr_safetensors *file, const char *name, int64_t *out_n) {
    const dr_safetensor *t = dr_safetensors_find(file, name);
    if (!t) fail_msg("golden %s is missing", name);
    float *values = NULL;
    check_ok(dr_alloc(&values, "golden", t->n_values, sizeof(float)));
    check_ok(dr_safetensors_read(file, name, t->shape, t->n_dims, values));
    if (out_n) *out_n = t->n_values;
    return values;
}

#endif
