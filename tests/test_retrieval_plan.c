// What the training of a retrieval model says that it will take, against what it takes, and its refusal.
// labels: cpu
#include "tests/check.h"

#include <malloc.h>

#include "core/base/log.h"
#include "core/learn/memory_plan.h"
#include "tests/retrieval_plan.h"

static double in_use(void *context) {
    struct mallinfo2 info = mallinfo2();
    (void)context;
    return (double)info.uordblks + (double)info.hblkhd;
}

static void compare(const char *what, dr_precision precision, dr_trm_train_options options) {
    dr_dataset data = plan_catalogue();
    dr_backend *b = NULL;
    check_ok(dr_backend_cpu_create(precision, 2, &b));
    dr_memory_plan plan;
    check_ok(dr_memory_plan_make_retrieval(b, &data, &options, 0, &plan));
    assert_int_equal(plan.host, 0);
    double taken = plan_taken(b, &data, options, in_use, NULL), planned = (double)plan.bytes;
    print_message("%s: planned %.2f MB, taken %.2f MB\n", what, planned * 1e-6, taken * 1e-6);
    if (planned < taken) fail_msg("%.0f bytes were planned, %.0f are taken", planned, taken);
    if (planned > 4.0 / 3.0 * taken) fail_msg("%.0f bytes were planned, only %.0f are taken", planned, taken);
    dr_backend_cpu_destroy(b);
    plan_catalogue_reset(&data);
}

static void test_taken(void **state) {
    (void)state;
#if defined(__SANITIZE_ADDRESS__)
    skip(); // its allocator has other counters
#endif
    dr_trm_train_options o = plan_options();
    compare("hashed", DR_FP32, o);
    compare("hashed, bf16", DR_BF16, o);
    o.batch = 400;
    o.config.hidden = 32;
    o.config.text_dim = 512;
    o.config.n_layers = 3;
    compare("wide texts", DR_FP32, o);
    o = plan_options();
    o.config.max_history = 6;
    o.batch = 512;
    plan_encoder(&o);
    compare("sentence encoder", DR_FP32, o);
}

static void test_refusal(void **state) {
    (void)state;
    dr_dataset data = plan_catalogue();
    dr_trm_train_options o = plan_options();
    dr_backend *b = NULL;
    dr_memory_plan plan, larger;
    char want[128];
    check_ok(dr_backend_cpu_create(DR_FP32, 1, &b));
    check_ok(dr_memory_plan_make_retrieval(b, &data, &o, 0, &plan));
    o.batch *= 2;
    check_ok(dr_memory_plan_make_retrieval(b, &data, &o, 0, &larger));
    assert_true(larger.bytes > plan.bytes);
    dr_memory_place place = {.free = plan.bytes, .total = 4 * plan.bytes, .n_workers = 1};
    dr_log_set_level(DR_LOG_ERROR + 1);
    check_ok(dr_memory_plan_check(&plan, &place));
    snprintf(want, sizeof want, "in all %.1f MB; free are %.1f of %.1f MB. A smaller batch",
             (double)larger.bytes * 1e-6, (double)place.free * 1e-6, (double)place.total * 1e-6);
    check_error(dr_memory_plan_check(&larger, &place), DR_ERR_MEMORY, want);
    // what the training itself refuses
    o.batch = 0;
    check_error(dr_memory_plan_make_retrieval(b, &data, &o, 0, &plan), DR_ERR_ARGUMENT, "batch 0");
    o = plan_options();
    o.config.hidden = 7777;
    check_error(dr_memory_plan_make_retrieval(b, &data, &o, 0, &plan), DR_ERR_FORMAT, "sizes out of range");
    snprintf(o.config.text_encoder, sizeof o.config.text_encoder, "%s", check_golden("nowhere"));
    check_error(dr_memory_plan_make_retrieval(b, &data, &o, 0, &plan), DR_ERR_ARGUMENT, "no such folder");
    dr_log_set_level(DR_LOG_INFO);
    dr_backend_cpu_destroy(b);
    plan_catalogue_reset(&data);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_taken),
        cmocka_unit_test(test_refusal),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
