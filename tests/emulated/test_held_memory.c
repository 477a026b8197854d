// Memory that is given back while work under way may wait for other ranks: held until none does.
#include "tests/check.h"

#include "cuda/backend_cuda.h"
#include "cuda/held_memory.h"

enum { BYTES = 1 << 20 };
static dr_backend *backend;

static int64_t free_bytes(void) {
    int64_t left = 0, total = 0;
    check_ok(backend->ops->memory_free(backend, &left, &total));
    return left;
}

static void test_held(void **state) {
    (void)state;
    const int64_t all = free_bytes();
    void *first = NULL, *second = NULL;
    dr_transfer *transfer = NULL;
    check_ok(backend->ops->memory_create(backend, "first", BYTES, &first));
    check_ok(backend->ops->memory_create(backend, "second", BYTES, &second));
    check_ok(backend->ops->transfer_create(backend, "transfer", BYTES, &transfer));
    dr_cuda_hold_memory();
    dr_cuda_hold_memory(); // another group's
    backend->ops->memory_destroy(backend, first);
    backend->ops->transfer_destroy(backend, transfer);
    assert_true(free_bytes() == all - 2 * BYTES);
    dr_cuda_let_memory_go();
    backend->ops->memory_destroy(backend, second);
    assert_true(free_bytes() == all - 2 * BYTES);
    dr_cuda_let_memory_go();
    assert_true(free_bytes() == all);
    check_ok(backend->ops->memory_create(backend, "third", BYTES, &first));
    backend->ops->memory_destroy(backend, first); // at once
    assert_true(free_bytes() == all);
}

// More than the list has room for at first; a backend that goes leaves its memory there.
static void test_many_held(void **state) {
    (void)state;
    enum { N = 40 };
    const int64_t all = free_bytes();
    dr_backend *other = NULL;
    void *memory[N];
    check_ok(dr_backend_cuda_create(DR_FP32, 0, &other));
    for (int i = 0; i < N; i++) check_ok(other->ops->memory_create(other, "one of many", BYTES, &memory[i]));
    dr_cuda_hold_memory();
    for (int i = 0; i < N; i++) other->ops->memory_destroy(other, memory[i]);
    dr_backend_cuda_destroy(other);
    assert_true(free_bytes() <= all - N * (int64_t)BYTES);
    dr_cuda_let_memory_go();
    assert_true(free_bytes() == all);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_held), cmocka_unit_test(test_many_held)};
    if (dr_backend_cuda_create(DR_FP32, 0, &backend) != DR_OK) return 1;
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    dr_backend_cuda_destroy(backend);
    return failed;
}
