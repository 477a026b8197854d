// What the tests of the CUDA body share: its two backends, one case run on both, the
// program around the cases. No device: the backends are NULL and the cases are skipped.
#ifndef DR_TESTS_CUDA_CHECK_H
#define DR_TESTS_CUDA_CHECK_H

#include "tests/cuda_memory.h"

#include <stdio.h>

#if DR_HAVE_CUDA_KERNELS
#include "cuda/backend_cuda.h"
#include "cuda/device_probe.h"
#endif

static dr_backend *cuda;                              // NULL: no device
__attribute__((unused)) static dr_backend *cuda_bf16; // likewise; not every program has cases in bf16
enum { MAX_RESULTS = 16 };

// ---- one case on both backends ----

typedef struct results {
    int n;
    struct {
        const char *name;
        float *values;
        int64_t n;
        double limit; // of the normalised error
    } item[MAX_RESULTS];
} results;
typedef void (*op_case)(dr_backend *b, const int64_t *sizes, results *r);

static inline void give(results *r, const char *name, dr_backend *b, const float *at, int64_t n,
                        double limit) {
    assert_true(r->n < MAX_RESULTS);
    r->item[r->n].name = name;
    r->item[r->n].values = get(b, at, n);
    r->item[r->n].n = n;
    r->item[r->n++].limit = limit;
}

// The same of values of gate and up.
static inline void give_gated(results *r, const char *name, dr_backend *b, const void *at, int64_t n,
                              double limit) {
    give(r, name, b, put(b, get_gated(b, at, n), n), n, limit);
}

static const double forward = 1e-6, gradient = 1e-5;

static inline void compare_on(dr_backend *b, op_case run, const int64_t *sizes, uint64_t stream) {
    results want = {0}, got = {0}, again = {0};
    op_stream = stream;
    run(op_one, sizes, &want);
    op_stream = stream;
    run(b, sizes, &got);
    op_stream = stream;
    run(b, sizes, &again);
    for (int i = 0; i < want.n; i++) {
        double limit = want.item[i].limit * want.item[i].limit; // op_close compares squares
        op_close(want.item[i].name, got.item[i].values, op_double(want.item[i].values, want.item[i].n),
                 want.item[i].n, limit);
        check_same_bits(want.item[i].name, again.item[i].values, got.item[i].values, want.item[i].n);
    }
    free_all();
}

static inline void compare(op_case run, const int64_t *sizes, uint64_t stream) {
    compare_on(cuda, run, sizes, stream);
}

// ---- the program ----

static inline int setup(void **state) {
#if DR_HAVE_CUDA_KERNELS
    dr_device_probe probe = dr_device_probe_run();
    if (probe.n_devices == 0) {
        print_message("no device: %s\n", probe.reason);
    } else if (dr_backend_cuda_create(DR_FP32, 0, &cuda) != DR_OK ||
               dr_backend_cuda_create(DR_BF16, 0, &cuda_bf16) != DR_OK) {
        return -1;
    }
#else
    print_message("this build has no CUDA\n");
#endif
    return op_group_setup(state);
}

static inline int teardown(void **state) {
#if DR_HAVE_CUDA_KERNELS
    dr_backend_cuda_destroy(cuda);
    dr_backend_cuda_destroy(cuda_bf16);
#endif
    return op_group_teardown(state);
}

#define cuda_run(tests)                                                                                      \
    do {                                                                                                     \
        int n_failed = cmocka_run_group_tests(tests, setup, teardown);                                       \
        return n_failed != 0 || cuda ? n_failed : 77; /* 77: skipped */                                      \
    } while (0)

#endif
