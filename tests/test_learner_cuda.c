// The same gradient on the CUDA body, however a batch is cut; in fp32 the processor's. No device: skipped.
// labels: gpu
#include "tests/learner_cases.h"

#if DR_HAVE_CUDA_KERNELS
#include "cuda/backend_cuda.h"
#include "cuda/device_probe.h"
#endif

static bool has_device;

static int group_setup(void **state) {
    (void)state;
#if DR_HAVE_CUDA_KERNELS
    dr_device_probe probe = dr_device_probe_run();
    has_device = probe.n_devices > 0;
    if (!has_device) print_message("no device: %s\n", probe.reason);
#else
    print_message("this build has no CUDA\n");
#endif
    return 0;
}

static void open_cuda(dr_precision precision, double gradient_limit) {
    if (!has_device) skip();
#if DR_HAVE_CUDA_KERNELS
    check_ok(dr_backend_cuda_create(precision, 0, &backend));
#else
    (void)precision;
#endif
    limit = gradient_limit;
    learner_setup();
}

static void close_backend(void) {
    learner_teardown();
    dr_backend_destroy(backend);
    backend = NULL;
}

// Of bf16: sums in another order round an operand of a later product to its neighbour now and then.
static const double fp32_limit = 1e-6, bf16_limit = 2e-3;

// In bf16 with heads that the kernels of every device take, those with wgmma too.
static void run(dr_precision precision, void (*check)(void)) {
    head_size = precision == DR_FP32 ? 0 : 64;
    open_cuda(precision, precision == DR_FP32 ? fp32_limit : bf16_limit);
    check();
    close_backend();
}

static void shared_prompt(void) {
    dr_loss_settings s = policy_loss(DR_KL_K3);
    check_shared_prompt(&s);
}

static void test_packing_fp32(void **state) {
    (void)state;
    run(DR_FP32, check_packing);
}

static void test_packing_bf16(void **state) {
    (void)state;
    run(DR_BF16, check_packing);
}

// The simple kernels have the law of the fast ones.
static void test_packing_reference(void **state) {
    (void)state;
    if (!has_device) skip();
#if DR_HAVE_CUDA_KERNELS
    dr_cuda_reference_kernels(true);
    run(DR_BF16, check_packing);
    dr_cuda_reference_kernels(false);
#endif
}

static void test_batching_fp32(void **state) {
    (void)state;
    run(DR_FP32, check_batching);
}

static void test_batching_bf16(void **state) {
    (void)state;
    run(DR_BF16, check_batching);
}

static void test_shared_prompt_fp32(void **state) {
    (void)state;
    run(DR_FP32, shared_prompt);
}

static void test_shared_prompt_bf16(void **state) {
    (void)state;
    run(DR_BF16, shared_prompt);
}

// What no packing can show: that it is the processor's.
static void test_processor(void **state) {
    (void)state;
    dr_loss_settings s = policy_loss(DR_KL_K3);
    dr_learn_stats stats[2];
    float *want = NULL;
    head_size = 0;
    open_cuda(DR_FP32, 1e-5);
    make_trajectories(MOST);
    for (int i = 0; i < MOST; i++) store_ratios(&trajectories[i], ratios + i % 4, 4);
    check_ok(dr_alloc(&want, "the device's gradient", n_params, sizeof *want));
    stats[0] = accumulate(items, MOST, &s, 256, want);
    close_backend();
    check_ok(dr_backend_cpu_create(DR_FP32, 1, &backend));
    learner_setup();
    clear(gradient);
    stats[1] = accumulate(items, MOST, &s, 256, gradient);
    assert_true(length_of(gradient) > 1e-3 && stats[0].clipped > 2);
    check_relative_error("the processor's gradient", want, gradient, n_params, limit);
    assert_true(stats[0].clipped == stats[1].clipped && stats[0].tokens == stats[1].tokens);
    assert_true(fabs(stats[0].loss - stats[1].loss) <= 1e-5 * (1 + fabs(stats[1].loss)));
    dr_free(want);
    close_backend();
}

#define learner_test(function) cmocka_unit_test_teardown(function, case_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        learner_test(test_packing_fp32),       learner_test(test_packing_bf16),
        learner_test(test_packing_reference),  learner_test(test_batching_fp32),
        learner_test(test_batching_bf16),      learner_test(test_shared_prompt_fp32),
        learner_test(test_shared_prompt_bf16), learner_test(test_processor),
    };
    int n_failed = cmocka_run_group_tests(tests, group_setup, NULL);
    return n_failed != 0 || has_device ? n_failed : 77; // 77: skipped
}
