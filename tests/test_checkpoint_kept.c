// Which checkpoints are kept, and under which name one is believed.
// labels: cpu
#include "tests/tiny_checkpoint.h"

#include <stdio.h>
#include <stdlib.h>

static void test_prune(void **state) {
    (void)state;
    const char *run = check_scratch_dir();
    learner_state s = state_make_part(1, 0, 2);
    dr_checkpoint_file file;
    static const int64_t steps[] = {1, 2, 5, 10, 100}; // in number's order, not in that of names
    for (int i = 0; i < 5; i++) save_ok(run, steps[i], 1 + i % 2);
    static const int64_t unfinished[] = {3, 50, 101};
    for (int i = 0; i < 3; i++) {
        char *dir = dir_of(run, unfinished[i]);
        check_ok(dr_checkpoint_write_part(s.lm, s.optimizer, dir, 0, 2, &file));
        dr_free(dir);
    }
    check_ok(dr_checkpoint_prune(run, 9)); // nothing to do, and nothing done
    for (int i = 0; i < 5; i++) assert_true(has_file(run, steps[i], "manifest.json"));
    check_ok(dr_checkpoint_prune(run, 3)); // 100, 10, 5; 101 may still be written, so may 50
    assert_false(has_file(run, 1, "") || has_file(run, 2, "") || has_file(run, 3, ""));
    assert_true(has_file(run, 50, "rank_0.h5") && has_file(run, 101, "rank_0.h5"));
    check_loads(run, 5);
    check_loads(run, 10);
    check_loads(run, 100);
    check_ok(dr_checkpoint_prune(run, 1));
    assert_false(has_file(run, 5, "") || has_file(run, 10, "") || has_file(run, 50, ""));
    assert_true(has_file(run, 101, "rank_0.h5"));
    check_found(run, 100);
    check_loads(run, 100);
    check_ok(dr_checkpoint_prune(check_path(run, "no/such/run"), 1));
    state_free(&s);
}

// Damaged checkpoints do not push out the last good one.
static void test_prune_keeps_a_sound_one(void **state) {
    (void)state;
    const char *run = check_scratch_dir();
    for (int step = 1; step <= 4; step++) save_ok(run, step, 2);
    quiet();
    char *bytes[2] = {NULL, NULL}, *paths[2] = {file_of(run, 4, "rank_1.h5"), file_of(run, 3, "view.h5")};
    size_t lengths[2];
    for (int i = 0; i < 2; i++) {
        bytes[i] = check_read_file(paths[i], &lengths[i]);
        check_write_file(paths[i], bytes[i], lengths[i] / 2);
    }
    check_ok(dr_checkpoint_prune(run, 1)); // 4 and 3 are damaged, 2 is the newest sound one, 1 is surplus
    assert_true(has_file(run, 4, "manifest.json") && has_file(run, 3, "manifest.json"));
    assert_false(has_file(run, 1, ""));
    check_ok(dr_checkpoint_prune(run, 1)); // nothing left to remove
    check_found(run, 2);
    check_loads(run, 2);
    check_write_file(paths[1], bytes[1], lengths[1]); // 3 is whole again
    check_ok(dr_checkpoint_prune(run, 1));
    assert_false(has_file(run, 2, ""));
    check_found(run, 3);
    check_write_file(paths[0], bytes[0], lengths[0]);
    check_ok(dr_checkpoint_prune(run, 1));
    assert_false(has_file(run, 3, ""));
    check_found(run, 4);
    for (int i = 0; i < 2; i++) {
        free(bytes[i]);
        dr_free(paths[i]);
    }
}

// A sound checkpoint under another step's name would resume at the wrong step.
static void test_renamed(void **state) {
    (void)state;
    const char *run = check_scratch_dir();
    save_ok(run, 1, 2);
    save_ok(run, 2, 2);
    char *from = dir_of(run, 1), *to = dir_of(run, 7);
    assert_int_equal(rename(from, to), 0);
    quiet();
    dr_checkpoint_info info = {0};
    check_error(dr_checkpoint_verify(to, &info), DR_ERR_FORMAT,
                "the manifest says step 1, the folder's name 7");
    check_found(run, 2);
    assert_int_equal(rename(to, check_path(run, "checkpoints/best")), 0); // any other name says nothing
    check_ok(dr_checkpoint_verify(check_path(run, "checkpoints/best"), &info));
    assert_int_equal(info.step, 1);
    dr_checkpoint_info_reset(&info);
    dr_free(from);
    dr_free(to);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        checkpoint_test(test_prune),
        checkpoint_test(test_prune_keeps_a_sound_one),
        checkpoint_test(test_renamed),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
