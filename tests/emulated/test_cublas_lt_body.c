// What the CUDA body does with a cuBLASLt that fails, does not start, offers nothing, or refuses a number of
// rows.
#include "tests/cuda_memory.h"

#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "core/base/log.h"
#include "cuda/backend_cuda.h"
#include "tests/emulated/stderr_to.h"

int64_t emulated_cublas_lt_living(void);

enum { O = 72, I = 24, T = 50 };

static dr_backend *backend(dr_precision precision, bool own) {
    dr_backend *b = NULL;
    dr_cuda_own_products_only(own);
    check_ok(dr_backend_cuda_create(precision, 0, &b));
    dr_cuda_own_products_only(false);
    return b;
}

// What forward makes of the same rows and weight, and what is said to standard error on the way.
static float *forward(dr_backend *b, int64_t rows, dr_status expected, char **out_said) {
    const char *path = check_path(check_scratch_dir(), "stderr");
    op_stream = 100;
    dr_weight *w = pack(b, O, I, op_normal(O * I, 0, 1));
    float *x = put(b, op_normal(rows * I, 0, 1), rows * I), *y = put_poison(b, rows * O);
    const int kept = stderr_to(path);
    const dr_status status = b->ops->linear_forward(b, w, x, rows, NULL, y);
    dup2(kept, 2);
    close(kept);
    assert_int_equal(status, expected);
    *out_said = check_read_file(path, NULL);
    float *got = get(b, y, rows * O);
    b->ops->weight_destroy(b, w);
    free_memory();
    return got;
}

static void check_said(char *said, const char *text) {
    if (text ? !strstr(said, text) : *said != '\0')
        fail_msg("expected \"%s\", found \"%s\"", text ? text : "", said);
    free(said);
}

// wish: what DR_EMULATED_CUBLASLT is. The own kernels' bits, and a line that says whose they are.
static void check_own_serves(const char *wish, dr_precision precision, dr_precision own_precision,
                             const char *line) {
    dr_backend *own = backend(own_precision, true), *library = backend(precision, false);
    char *said = NULL;
    const float *want = forward(own, T, DR_OK, &said);
    check_said(said, NULL);
    setenv("DR_EMULATED_CUBLASLT", wish, 1);
    const float *got = forward(library, T, DR_OK, &said);
    check_said(said, line);
    check_same_bits("the own kernels' product", got, want, T * O);
    got = forward(library, T, DR_OK, &said); // remembered, and said once
    check_said(said, NULL);
    check_same_bits("the own kernels' product again", got, want, T * O);
    unsetenv("DR_EMULATED_CUBLASLT");
    dr_backend_cuda_destroy(library);
    dr_backend_cuda_destroy(own);
    assert_int_equal(emulated_cublas_lt_living(), 0);
    op_free_arrays();
}

static void test_no_offers(void **state) {
    (void)state;
    static const char line[] = "no algorithm serves operation 0 of a weight of 72 x 24";
    check_own_serves("no-offers", DR_BF16, DR_BF16, line);
    check_own_serves("no-offers", DR_BF16_LOOSE, DR_BF16, line);
    check_own_serves("no-offers", DR_FP32_LOOSE, DR_FP32, line);
}

// 33 rows are among those that an algorithm has to take before it is chosen.
static void test_no_algorithm_for_all(void **state) {
    (void)state;
    check_own_serves("refuse=33", DR_BF16, DR_BF16, "no algorithm serves operation 0 of a weight of 72 x 24");
}

// A bf16 backend, and what is said to standard error while it is made.
static dr_backend *backend_heard(char **out_said) {
    const char *path = check_path(check_scratch_dir(), "stderr");
    dr_backend *b = NULL;
    const int kept = stderr_to(path);
    const dr_status status = dr_backend_cuda_create(DR_BF16, 0, &b);
    dup2(kept, 2);
    close(kept);
    check_ok(status);
    *out_said = check_read_file(path, NULL);
    return b;
}

// The own kernels serve, and a line says why; what only the library has is refused by the same words.
static void test_no_handle(void **state) {
    (void)state;
    static const char reason[] = "libcublasLt.so.13: cublasLtCreate: ";
    dr_backend *own = backend(DR_BF16, true);
    char *said = NULL;
    const float *want = forward(own, T, DR_OK, &said);
    check_said(said, NULL);
    setenv("DR_EMULATED_CUBLASLT", "no-handle", 1);
    dr_backend *b = backend_heard(&said);
    check_said(said, reason);
    check_same_bits("the own kernels' product", forward(b, T, DR_OK, &said), want, T * O);
    check_said(said, NULL);
    dr_backend_cuda_destroy(b);
    check_error(dr_backend_cuda_create(DR_FP32_LOOSE, 0, &b), DR_ERR_UNSUPPORTED, reason);
    check_ok(dr_backend_cuda_create(DR_FP32, 0, &b)); // without the library
    dr_backend_cuda_destroy(b);
    unsetenv("DR_EMULATED_CUBLASLT");
    dr_backend_cuda_destroy(own);
    assert_int_equal(emulated_cublas_lt_living(), 0);
    op_free_arrays();
}

// With the simple kernels no product is the library's, whose products are there.
static void test_simple_kernels(void **state) {
    (void)state;
    dr_backend *own = backend(DR_BF16, true);
    char *said = NULL;
    const float *want = forward(own, T, DR_OK, &said);
    check_said(said, NULL);
    dr_cuda_reference_kernels(true);
    dr_backend *b = backend_heard(&said);
    dr_cuda_reference_kernels(false);
    check_said(said, "own kernels for bf16 products, not cuBLASLt's: they were asked for");
    assert_int_equal(emulated_cublas_lt_living(), 0);
    check_same_bits("the simple kernels' product", forward(b, T, DR_OK, &said), want, T * O);
    check_said(said, NULL);
    dr_backend_cuda_destroy(b);
    dr_backend_cuda_destroy(own);
    op_free_arrays();
}

// Objects that there are of libcublasLt.so.12, -1 where it is not loaded.
static int64_t living_of_12(void) {
    int64_t (*living)(void) = NULL;
    void *shared = dlopen("libcublasLt.so.12", RTLD_NOW | RTLD_NOLOAD);
    if (!shared) return -1;
    void *symbol = dlsym(shared, "emulated_cublas_lt_living");
    memcpy(&living, &symbol, sizeof symbol);
    dlclose(shared); // it stays open where it was
    return living();
}

// A driver that is too old for the newest library: the next one serves.
static void test_next_library(void **state) {
    (void)state;
    dr_backend *first = backend(DR_BF16, false);
    char *said = NULL;
    const float *want = forward(first, T, DR_OK, &said);
    check_said(said, NULL);
    dr_backend_cuda_destroy(first);
    assert_int_equal(living_of_12(), -1);
    setenv("DR_EMULATED_CUBLASLT", "no-handle-13", 1);
    dr_backend *b = backend_heard(&said);
    check_said(said, NULL);
    assert_int_equal(living_of_12(), 1); // its handle
    check_same_bits("the next library's product", forward(b, T, DR_OK, &said), want, T * O);
    check_said(said, NULL);
    assert_int_equal(emulated_cublas_lt_living(), 0);
    dr_backend_cuda_destroy(b);
    unsetenv("DR_EMULATED_CUBLASLT");
    assert_int_equal(living_of_12(), 0);
    op_free_arrays();
}

// 50 rows are not among those that are checked: an error, and no other algorithm, before and behind it.
static void test_refused_rows(void **state) {
    (void)state;
    dr_backend *b = backend(DR_BF16, false);
    char *said = NULL;
    const float *want = forward(b, T - 1, DR_OK, &said);
    check_said(said, NULL);
    setenv("DR_EMULATED_CUBLASLT", "refuse=50", 1);
    forward(b, T, DR_ERR_INTERNAL, &said);
    check_said(said, "operation 0 of 50 rows and a weight of 72 x 24");
    const float *got = forward(b, T - 1, DR_OK, &said);
    check_said(said, NULL);
    check_same_bits("one row less", got, want, (T - 1) * O);
    unsetenv("DR_EMULATED_CUBLASLT");
    forward(b, T, DR_OK, &said);
    check_said(said, NULL);
    dr_backend_cuda_destroy(b);
    op_free_arrays();
    assert_int_equal(emulated_cublas_lt_living(), 0);
}

// In the loose precisions the own kernels multiply where no algorithm takes a T within its range.
static void test_refused_loose_rows(void **state) {
    (void)state;
    check_own_serves("refuse=50", DR_BF16_LOOSE, DR_BF16,
                     "no algorithm serves operation 0 of a weight of 72 x 24");
    check_own_serves("refuse=50", DR_FP32_LOOSE, DR_FP32,
                     "no algorithm serves operation 0 of a weight of 72 x 24");
}

static float *product_of(dr_backend *b, const float *weight, const float *x, int64_t rows, int64_t n_out,
                         int64_t n_in) {
    dr_weight *w = pack(b, n_out, n_in, weight);
    float *y = put_poison(b, rows * n_out);
    check_ok(b->ops->linear_forward(b, w, put(b, x, rows * n_in), rows, NULL, y));
    float *got = get(b, y, rows * n_out);
    b->ops->weight_destroy(b, w);
    free_memory();
    return got;
}

// The algorithm of 17 to 32 rows shares sums in three parts at 17 rows, in two at 32, and in four at 24, for
// which there is no workspace. Another one serves 24, the same whatever was multiplied before.
static void test_rows_within_a_range(void **state) {
    (void)state;
    enum { N_OUT = 240, N_IN = 28, MOST_ROWS = 32 };
    static const int64_t orders[2][4] = {{24, 32, 17, 24}, {32, 17, 24, 24}};
    const float *weight = op_normal(N_OUT * N_IN, 0, 1), *x = op_normal(MOST_ROWS * N_IN, 0, 1);
    dr_backend *exact = backend(DR_FP32, true);
    const float *want = product_of(exact, weight, x, MOST_ROWS, N_OUT, N_IN), *first[MOST_ROWS + 1] = {NULL};
    for (int i = 0; i < 2; i++) {
        dr_backend *loose = backend(DR_FP32_LOOSE, false);
        for (int k = 0; k < 4; k++) {
            const int64_t rows = orders[i][k];
            const float *got = product_of(loose, weight, x, rows, N_OUT, N_IN);
            for (int64_t at = 0; at < rows * N_OUT; at++) assert_true(fabsf(got[at] - want[at]) < 1e-4f);
            if (first[rows]) check_same_bits("the same rows again", got, first[rows], rows * N_OUT);
            first[rows] = got;
        }
        dr_backend_cuda_destroy(loose);
    }
    dr_backend_cuda_destroy(exact);
    op_free_arrays();
    assert_int_equal(emulated_cublas_lt_living(), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cuda_test(test_no_offers),          cuda_test(test_no_handle),
        cuda_test(test_simple_kernels),     cuda_test(test_no_algorithm_for_all),
        cuda_test(test_next_library),       cuda_test(test_refused_rows),
        cuda_test(test_refused_loose_rows), cuda_test(test_rows_within_a_range),
    };
    dr_log_set_level(DR_LOG_INFO);
    return cmocka_run_group_tests(tests, op_group_setup, op_group_teardown);
}
