// Signs of life of long work: who hears them, and that files that are written, flushed, read and checked give
// them piece by piece.
// labels: cpu
#include "tests/check.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "core/base/alive.h"
#include "core/base/alloc.h"
#include "core/base/log.h"
#include "core/store/h5.h"
#include "core/store/safetensors.h"
#include "tests/tiny_checkpoint.h"

enum { MIB = 1 << 20 };

typedef struct ear {
    int works, waits;
    int fails_at; // of works; 0: never
} ear;

static dr_status hear(void *context, bool is_waiting) {
    ear *e = context;
    if (is_waiting)
        e->waits++;
    else if (++e->works == e->fails_at)
        return DR_FAIL(DR_ERR_PEER, "the listener's own error");
    return DR_OK;
}

static void *say_elsewhere(void *unused) {
    (void)unused;
    return dr_alive_work() == DR_OK && dr_alive_wait() == DR_OK ? "fine" : NULL;
}

static void test_who_hears(void **state) {
    (void)state;
    ear outer = {0}, inner = {.fails_at = 2};
    const dr_alive_listener one = {hear, &outer}, other = {hear, &inner}, deaf = {NULL, NULL};
    pthread_t thread;
    void *said = NULL;
    check_ok(dr_alive_work()); // nobody
    assert_null(dr_alive_listen(&one));
    check_ok(dr_alive_work());
    check_ok(dr_alive_wait());
    assert_ptr_equal(dr_alive_listen(&other), &one);
    check_ok(dr_alive_work());
    quiet();
    check_error(dr_alive_work(), DR_ERR_PEER, "the listener's own error");
    loud(NULL);
    assert_ptr_equal(dr_alive_listen(&deaf), &other);
    check_ok(dr_alive_work());
    assert_ptr_equal(dr_alive_listen(&one), &deaf);
    assert_int_equal(pthread_create(&thread, NULL, say_elsewhere, NULL), 0);
    pthread_join(thread, &said);
    assert_non_null(said);
    assert_ptr_equal(dr_alive_listen(NULL), &one);
    assert_true(outer.works == 1 && outer.waits == 1 && inner.works == 2 && inner.waits == 0);
    assert_true(dr_alive_every(60) == 1 && dr_alive_every(2) == 0.5);
}

static float *values_of(int64_t n) {
    float *values = NULL;
    check_ok(dr_alloc(&values, "values", n, sizeof *values));
    for (int64_t i = 0; i < n; i++) values[i] = (float)(i % 1009) - 500.0f;
    return values;
}

// A dataset of 100 MiB in rows of 12 KB and one of long rows, written and read back; whole and in part.
static void test_h5(void **state) {
    (void)state;
    const char *path = check_path(check_scratch_dir(), "large.h5");
    const int64_t shapes[2][2] = {{8738, 3000}, {26, 1 << 20}};
    for (int i = 0; i < 2; i++) {
        int64_t n = shapes[i][0] * shapes[i][1], shape[2] = {-1, -1};
        float *values = values_of(n), *got = NULL;
        ear e = {0};
        const dr_alive_listener listener = {hear, &e};
        dr_h5 *file = NULL;
        check_ok(dr_h5_create(path, &file));
        dr_alive_listen(&listener);
        check_ok(dr_h5_write(file, "values", DR_H5_F32, 2, shapes[i], values, "of a test", ""));
        assert_in_range(e.works, 5, 30);
        e.works = 0;
        check_ok(dr_h5_commit(file)); // is flushed
        assert_in_range(e.works, 1, 4);
        check_ok(dr_h5_open(path, &file));
        e.works = 0;
        check_ok(dr_h5_read(file, "values", DR_H5_F32, 2, shape, &got));
        assert_in_range(e.works, 5, 30);
        check_same_bits("values", got, values, n);
        dr_free(got);
        check_ok(dr_h5_read_rows(file, "values", DR_H5_F32, 2, shape, 3, shape[0] - 5, &got));
        check_same_bits("rows", got, values + 3 * shape[1], n - 5 * shape[1]);
        dr_free(got);
        e = (ear){.fails_at = 3};
        quiet();
        check_error(dr_h5_read(file, "values", DR_H5_F32, 2, shape, &got), DR_ERR_PEER, "listener's own");
        loud(NULL);
        dr_alive_listen(NULL);
        dr_h5_close(file);
        dr_free(values);
    }
}

static void test_safetensors(void **state) {
    (void)state;
    const char *path = check_path(check_scratch_dir(), "model.safetensors");
    int64_t n = 20 * MIB; // 80 MiB
    ear e = {0};
    const dr_alive_listener listener = {hear, &e};
    dr_safetensor_source source = {.name = "values", .n_dims = 1, .shape = {n}, .data = values_of(n)};
    dr_alive_listen(&listener);
    check_ok(dr_safetensors_write(path, &source, 1));
    assert_true(e.works >= 5);
    e = (ear){.fails_at = 4};
    quiet();
    check_error(dr_safetensors_write(path, &source, 1), DR_ERR_PEER, "listener's own");
    loud(NULL);
    dr_alive_listen(NULL);
    assert_int_equal(dr_file_size(path) / MIB, 80); // the file of before
    dr_free((void *)source.data);
}

// A checkpoint's digests are those of its whole files, read a MiB at a time.
static void test_digests(void **state) {
    (void)state;
    const char *run = check_scratch_dir();
    dr_lm_config config;
    dr_lm *lm = NULL;
    dr_optimizer *optimizer = NULL;
    dr_checkpoint_file file;
    dr_checkpoint_info info = {.step = 3, .updates = 1, .n_files = 1, .files = &file}, read = {0};
    const dr_optimizer_settings settings = {0.9f, 0.95f, 1e-8f, 0.1f, 1.0f};
    char *dir = dir_of(run, 3), want[24];
    ear e = {0};
    const dr_alive_listener listener = {hear, &e};
    check_ok(dr_lm_preset("tiny", 3000, &config));
    check_ok(dr_lm_create(backend, &config, 3, &lm));
    check_ok(dr_optimizer_create(lm, &settings, NULL, &optimizer));
    check_ok(dr_checkpoint_write_part(lm, optimizer, dir, 0, 1, &file));
    check_ok(dr_checkpoint_commit(&config, dir, &info));
    char *path = file_of(run, 3, file.name);
    size_t length = 0;
    char *bytes = check_read_file(path, &length);
    snprintf(want, sizeof want, "%016llx", (unsigned long long)XXH3_64bits(bytes, length));
    assert_string_equal(file.digest, want);
    assert_true(file.bytes == (int64_t)length && length > 2 * MIB && length % MIB != 0);
    dr_alive_listen(&listener);
    check_ok(dr_checkpoint_verify(dir, &read));
    assert_int_equal(e.works, (int)(length / MIB) + 2); // and the view's one
    dr_checkpoint_info_reset(&read);
    e.works = 0;
    check_ok(dr_checkpoint_read(dir, &read));
    assert_true(e.works == 0 && read.updates == 1 && read.n_files == 1);
    assert_string_equal(read.files[0].digest, want);
    dr_checkpoint_info_reset(&read);
    dr_alive_listen(NULL);
    free(bytes);
    dr_free(path);
    dr_free(dir);
    dr_optimizer_destroy(optimizer);
    dr_lm_destroy(lm);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_who_hears),
        cmocka_unit_test(test_h5),
        cmocka_unit_test(test_safetensors),
        cmocka_unit_test(test_digests),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
