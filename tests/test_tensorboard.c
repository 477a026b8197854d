// TensorBoard event files: byte for byte what TensorBoard's own writer makes of the same numbers.
// labels: cpu store
#include "tests/check.h"

#include <stdlib.h>
#include <string.h>

#include "core/base/log.h"
#include "core/store/tensorboard.h"

static void write_two_steps(const char *path) {
    static const char *const tags[] = {"reward", "reward_parts/hit"};
    dr_tensorboard *board = NULL;
    check_ok(dr_tensorboard_create(path, 1000.0, &board));
    check_ok(dr_tensorboard_scalars(board, 1, 1000.5, tags, (const float[]){0.25f, -1.5f}, 2));
    check_ok(dr_tensorboard_scalars(board, 300, 1001.25, tags, (const float[]){2.0f}, 1));
    dr_tensorboard_close(board);
}

static void test_golden(void **state) {
    (void)state;
    const char *path = check_path(check_scratch_dir(), "two_steps.tfevents");
    size_t n = 0, n_golden = 0;
    write_two_steps(path);
    write_two_steps(path); // replaces, does not append
    char *bytes = check_read_file(path, &n);
    char *golden = check_read_file(check_golden("tensorboard/two_steps.tfevents"), &n_golden);
    assert_int_equal(n, n_golden);
    assert_memory_equal(bytes, golden, n);
    free(bytes);
    free(golden);
}

static void test_errors(void **state) {
    (void)state;
    dr_tensorboard *board = NULL;
    const char *dir = check_scratch_dir();
    dr_log_set_level(DR_LOG_ERROR + 1);
    check_error(dr_tensorboard_create(check_path(dir, "no/such/folder"), 0, &board), DR_ERR_IO,
                "no/such/folder");
    assert_null(board);
    check_ok(dr_tensorboard_create("/dev/null", 0, &board));
    dr_tensorboard_close(board);
    check_error(dr_tensorboard_create("/dev/full", 0, &board), DR_ERR_IO,
                "/dev/full: cannot write: No space left");
    dr_tensorboard_close(NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_golden), cmocka_unit_test(test_errors)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
