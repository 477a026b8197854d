// Weights that take rounded values in parts have the bits of packed ones, in every way to multiply.
// labels: cpu
#include "tests/weight_take_check.h"

#include "core/compute/cpu_internal.h"

static void check_ways(dr_bf16_body body) {
    dr_cpu_bf16_body(body);
    for (int threads = 1; threads <= 2; threads++) {
        dr_backend *b = NULL;
        check_ok(dr_backend_cpu_create(DR_BF16, threads, &b));
        for (int i = 0; i < TAKE_SHAPES; i++) {
            check_weight_taken(b, take_shapes[i][0], take_shapes[i][1]);
            free_all();
        }
        dr_backend_cpu_destroy(b);
    }
    dr_cpu_bf16_body(DR_BF16_CHOSEN);
}

static void test_taken(void **state) {
    (void)state;
    check_ways(DR_BF16_LIBRARY);
}

static void test_taken_in_lanes(void **state) {
    (void)state;
    check_ways(DR_BF16_LANES);
}

static void test_rounding(void **state) {
    (void)state;
    enum { N = 300001 }; // more than a thread's block
    float *values = op_normal(N, 0, 3), *got = op_poison(N);
    const float *want = rounded(values, N);
    uint16_t *bits = op_array(N, sizeof *bits);
    check_ok(op_two->ops->weight_round(op_two, values, N, bits));
    for (int i = 0; i < N; i++) {
        uint32_t word = (uint32_t)bits[i] << 16;
        memcpy(&got[i], &word, sizeof word);
    }
    check_same_bits("rounded", got, want, N);
}

static void test_refused(void **state) {
    (void)state;
    check_weight_not_taken(op_one);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cuda_test(test_taken),
        cuda_test(test_taken_in_lanes),
        cuda_test(test_rounding),
        cuda_test(test_refused),
    };
    return cmocka_run_group_tests(tests, op_group_setup, op_group_teardown);
}
