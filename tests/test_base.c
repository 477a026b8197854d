// Base services: randomness against published vectors, allocation, buffers, files, JSON, clock, log.
// labels: cpu
#include "tests/check.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/alloc.h"
#include "core/base/clock.h"
#include "core/base/file.h"
#include "core/base/json.h"
#include "core/base/log.h"
#include "core/base/progress.h"
#include "core/base/rng.h"

// Known answers published with Random123 (kat_vectors, philox4x32 with 10 rounds).
static void test_philox_vectors(void **state) {
    (void)state;
    static const uint32_t cases[3][10] = {
        {0, 0, 0, 0, 0, 0, 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8},
        {0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0x408f276d, 0x41c83b0e,
         0xa20bc7c6, 0x6d5451fd},
        {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0, 0xd16cfe09, 0x94fdcceb,
         0x5001e420, 0x24126ea1},
    };
    for (int i = 0; i < 3; i++) {
        uint32_t out[4];
        dr_philox(cases[i], cases[i] + 4, out);
        for (int k = 0; k < 4; k++) assert_int_equal(out[k], cases[i][6 + k]);
    }
}

// The same vectors through a draw's key, and draws of positions ahead.
static void test_draw_vectors(void **state) {
    (void)state;
    static const dr_draw_key keys[3] = {
        {0},
        {UINT64_MAX, UINT32_MAX, UINT32_MAX, 0xffff, 0xffff, UINT32_MAX},
        {0x299f31d0a4093822u, 0x03707344, 0x13198a2e, 0x08d3, 0x85a3, 0x243f6a88},
    };
    static const uint32_t want[3] = {0x6627e8d5, 0x408f276d, 0xd16cfe09};
    for (int i = 0; i < 3; i++) {
        assert_int_equal(dr_draw(&keys[i]), want[i]);
        for (uint32_t ahead = 0; ahead < 70; ahead++) {
            dr_draw_key moved = keys[i];
            moved.position -= ahead;
            assert_int_equal(dr_draw_ahead(&moved, ahead), want[i]);
        }
    }
}

// A draw depends on every part of its key and on nothing else.
static void test_draw_key(void **state) {
    (void)state;
    dr_draw_key key = {.seed = 7, .step = 1, .prompt = 2, .sample = 3, .turn = 4, .position = 5};
    uint32_t base = dr_draw(&key);
    assert_int_equal(dr_draw(&key), base);
    for (int part = 0; part < 7; part++) {
        dr_draw_key other = key;
        if (part == 0) other.seed++;
        if (part == 1) other.seed += (uint64_t)1 << 32;
        if (part == 2) other.step++;
        if (part == 3) other.prompt++;
        if (part == 4) other.sample++;
        if (part == 5) other.turn++;
        if (part == 6) other.position++;
        assert_int_not_equal(dr_draw(&other), base);
    }
    assert_true(dr_unit_float(0) == 0.0f);
    assert_true(dr_unit_float(0xffffffffu) < 1.0f);
}

static void test_rng_stream(void **state) {
    (void)state;
    enum { N = 200000 };
    dr_rng a = dr_rng_make(1, 2), b = a, c = dr_rng_make(1, 3);
    int differs = 0;
    for (int i = 0; i < 100; i++) {
        uint32_t bits = dr_rng_bits(&a);
        assert_int_equal(bits, dr_rng_bits(&b)); // a copy is a fork
        differs += bits != dr_rng_bits(&c);
    }
    assert_true(differs > 90);
    double sum = 0, squares = 0;
    int counts[7] = {0};
    for (int i = 0; i < N; i++) {
        double x = dr_rng_normal(&a);
        sum += x;
        squares += x * x;
        counts[dr_rng_below(&a, 7)]++;
    }
    assert_true(sum / N > -0.01 && sum / N < 0.01); // 4.5 standard errors
    assert_true(squares / N > 0.985 && squares / N < 1.015);
    for (int i = 0; i < 7; i++) assert_true(abs(counts[i] - N / 7) < 800);
    int32_t values[50], seen[50] = {0};
    for (int i = 0; i < 50; i++) values[i] = i;
    dr_rng_shuffle(&a, values, 50);
    int moved = 0;
    for (int i = 0; i < 50; i++) {
        seen[values[i]]++;
        moved += values[i] != i;
    }
    for (int i = 0; i < 50; i++) assert_int_equal(seen[i], 1);
    assert_true(moved > 30);
    assert_int_equal(dr_rng_below(&a, 1), 0);
}

static void test_rng_skip(void **state) {
    (void)state;
    for (uint64_t drawn = 0; drawn < 6; drawn++)
        for (uint64_t n = 0; n < 14; n++) {
            dr_rng a = dr_rng_make(1, 2), b;
            for (uint64_t i = 0; i < drawn; i++) dr_rng_bits(&a);
            b = a;
            for (uint64_t i = 0; i < n; i++) dr_rng_bits(&a);
            dr_rng_skip(&b, n);
            for (int i = 0; i < 9; i++) assert_int_equal(dr_rng_bits(&a), dr_rng_bits(&b));
        }
}

static void test_alloc(void **state) {
    (void)state;
    float *p = NULL;
    int64_t before = dr_alloc_calls();
    check_ok(dr_alloc(&p, "numbers", 10, sizeof *p));
    assert_int_equal(dr_alloc_calls(), before + 1);
    assert_int_equal((uintptr_t)p % 64, 0);
    for (int i = 0; i < 10; i++) assert_true(p[i] == 0);
    p[9] = 5;
    check_ok(dr_grow(&p, "numbers", 10, 1000, sizeof *p));
    assert_true(p[9] == 5 && p[10] == 0 && p[999] == 0);
    float *same = p;
    check_error(dr_grow(&p, "too many numbers", 1000, INT64_MAX, sizeof *p), DR_ERR_RANGE,
                "too many numbers");
    assert_ptr_equal(p, same);
    check_error(dr_alloc(&p, "negative", -1, 4), DR_ERR_RANGE, "negative");
    check_error(dr_alloc(&p, "product", INT64_MAX / 2, 8), DR_ERR_RANGE, "product");
    check_error(dr_alloc(&p, "all but nothing", INT64_MAX, 2), DR_ERR_RANGE, "all but nothing");
    assert_ptr_equal(p, same); // outputs only on success
    dr_free(p);
    dr_free(NULL);
    check_ok(dr_alloc(&p, "none", 0, 4));
    assert_non_null(p);
    dr_free(p);
}

#if !defined(__SANITIZE_ADDRESS__) // the sanitizer stops at a request it finds too large
static void test_alloc_refused(void **state) {
    (void)state;
    char *p = NULL;
    check_error(dr_alloc(&p, "more than there is", (int64_t)1 << 60, 1), DR_ERR_MEMORY, "more than there is");
    assert_null(p);
}
#endif

static void test_buf(void **state) {
    (void)state;
    dr_buf buf = {0};
    check_ok(dr_buf_append(&buf, "", 0));
    assert_string_equal(buf.data, "");
    check_ok(dr_buf_text(&buf, "a"));
    check_ok(dr_buf_append(&buf, "b\0c", 3));
    assert_int_equal(buf.length, 4);
    assert_memory_equal(buf.data, "ab\0c", 5);
    dr_buf_clear(&buf);
    for (int i = 0; i < 1000; i++) check_ok(dr_buf_printf(&buf, "%d,", i));
    assert_int_equal(buf.length, 10 * 2 + 90 * 3 + 900 * 4);
    assert_int_equal(strlen(buf.data), buf.length);
    assert_string_equal(buf.data + buf.length - 4, "999,");
    check_error(dr_buf_append(&buf, "x", (size_t)1 << 50), DR_ERR_RANGE, "do not fit");
    dr_buf_reset(&buf);
    assert_null(buf.data);
    char *copy = NULL;
    check_ok(dr_strndup(&copy, "hello", 3));
    assert_string_equal(copy, "hel");
    dr_free(copy);
}

static void test_status_and_log(void **state) {
    (void)state;
    for (int i = DR_OK; i <= DR_ERR_INTERNAL; i++)
        assert_string_not_equal(dr_status_name((dr_status)i), "unknown status");
    assert_string_equal(dr_status_name((dr_status)999), "unknown status");
    const char *path = check_path(check_scratch_dir(), "log");
    int file = open(path, O_CREAT | O_RDWR, 0600), kept = dup(STDERR_FILENO);
    dup2(file, STDERR_FILENO);
    dr_log_set_identity("learner", 3);
    dr_log_set_level(DR_LOG_WARN);
    dr_info("not this one");
    char *text = malloc(10000);
    memset(text, 'x', 9999);
    text[9999] = '\0';
    dr_warn("%s", text);
    dr_status status = DR_FAIL(DR_ERR_FORMAT, "row %d is bad", 7);
    dr_log_set_level(DR_LOG_INFO);
    dr_log_set_identity("", 0);
    dup2(kept, STDERR_FILENO);
    close(kept);
    close(file);
    free(text);
    check_error(status, DR_ERR_FORMAT, "row 7 is bad");
    size_t length;
    char *log = check_read_file(path, &length);
    assert_null(strstr(log, "not this one"));
    assert_non_null(strstr(log, "warn  [learner 3] xxx"));
    assert_non_null(strstr(log, "error [learner 3] format error: row 7 is bad\n"));
    int lines = 0;
    for (size_t i = 0; i < length; i++) lines += log[i] == '\n';
    assert_int_equal(lines, 2); // an overlong line is cut, its newline is not
    free(log);
}

static void test_clock(void **state) {
    (void)state;
    double begin = dr_clock_seconds();
    dr_clock_sleep(0.02);
    double passed = dr_clock_seconds() - begin;
    assert_true(passed >= 0.02 && passed < 5);
    dr_clock_sleep(-1);
    char text[32];
    dr_clock_format(8.24, text);
    assert_string_equal(text, "8.2 s");
    dr_clock_format(185.2, text);
    assert_string_equal(text, "3 min 05 s");
    dr_clock_format(99.96, text);
    assert_string_equal(text, "1 min 40 s");
    dr_clock_format(3599.6, text);
    assert_string_equal(text, "1 h 00 min");
    dr_clock_format(8040, text);
    assert_string_equal(text, "2 h 14 min");
    dr_clock_stamp(text);
    assert_int_equal(strlen(text), 24);
    assert_int_equal(text[10], 'T');
}

static void test_progress_plain(void **state) {
    (void)state;
    const char *path = check_path(check_scratch_dir(), "progress");
    int file = open(path, O_CREAT | O_RDWR, 0600), kept = dup(STDERR_FILENO);
    dup2(file, STDERR_FILENO);
    dr_progress progress = dr_progress_start("reading", "rows", 100);
    int is_terminal = progress.is_terminal;
    progress.drawn -= 5; // as if it had begun earlier
    progress.started -= 5;
    dr_progress_note(&progress, "%d bad", 2);
    for (int i = 0; i <= 100; i++) dr_progress_update(&progress, i);
    dr_progress_finish(&progress);
    dup2(kept, STDERR_FILENO);
    close(kept);
    close(file);
    assert_false(is_terminal);
    char *text = check_read_file(path, NULL);
    assert_non_null(strstr(text, "reading: 10 %, 10 rows in 5.0 s, 2 bad\n"));
    assert_non_null(strstr(text, "reading: done, 100 rows in 5.0 s, 2 bad\n"));
    assert_null(strstr(text, "20 %")); // not twice within a second
    assert_null(strchr(text, '\r'));
    free(text);
}

static void test_files(void **state) {
    (void)state;
    const char *dir = check_scratch_dir();
    char *deep = NULL, *path = NULL;
    check_ok(dr_path_join(&deep, dir, "a/b/c"));
    check_ok(dr_dir_make(deep));
    check_ok(dr_dir_make(deep));
    assert_true(dr_dir_exists(deep));
    check_ok(dr_path_join(&path, deep, "file"));
    assert_int_equal(dr_file_size(path), -1);
    check_ok(dr_file_replace(path, "one\0two", 7));
    check_ok(dr_file_replace(path, "three", 5));
    assert_int_equal(dr_file_size(path), 5);
    dr_buf buf = {0};
    check_ok(dr_buf_text(&buf, ">"));
    check_ok(dr_file_read(path, 5, &buf));
    assert_string_equal(buf.data, ">three");
    check_error(dr_file_read(path, 4, &buf), DR_ERR_RANGE, path);
    assert_string_equal(buf.data, ">three");
    check_error(dr_file_read(deep, 0, &buf), DR_ERR_IO, "is a folder");
    check_error(dr_file_read(check_path(dir, "missing"), 0, &buf), DR_ERR_IO, "No such file");
    dr_buf_reset(&buf);
    // Replacing what cannot be replaced leaves no temporary file behind.
    check_error(dr_file_replace(deep, "x", 1), DR_ERR_IO, deep);
    check_error(dr_dir_make(check_path(path, "below")), DR_ERR_IO, path);
    char command[600];
    snprintf(command, sizeof command, "test -z \"$(find '%s' -name '*.tmp*')\"", dir);
    assert_int_equal(system(command), 0);
    dr_free(deep);
    dr_free(path);
    check_ok(dr_path_join(&path, "/", "etc"));
    assert_string_equal(path, "/etc");
    dr_free(path);
    check_ok(dr_path_join(&path, "runs//", "x"));
    assert_string_equal(path, "runs/x");
    dr_free(path);
}

// /dev/full takes no byte: the write fails and the error says so.
static void test_full_disk(void **state) {
    (void)state;
    const char *dir = check_scratch_dir();
    const char *path = check_path(dir, "kept");
    check_ok(dr_file_replace(path, "old", 3));
    char temp[400];
    snprintf(temp, sizeof temp, "%s.tmp%ld", path, (long)getpid());
    if (symlink("/dev/full", temp) != 0 || !dr_file_exists("/dev/full")) skip();
    check_error(dr_file_replace(path, "new", 3), DR_ERR_IO, "No space left");
    char *text = check_read_file(path, NULL);
    assert_string_equal(text, "old");
    free(text);
    assert_false(dr_file_exists(temp));
}

static void test_json(void **state) {
    (void)state;
    static const char text[] =
        "{\"n\": 3, \"x\": 0.5, \"b\": true, \"s\": \"hi\", \"a\": [1], \"o\": {}, \"z\": null}";
    json_t *root = NULL, *child = NULL;
    check_ok(dr_json_parse("t", text, strlen(text), &root));
    int64_t n = -1;
    double x = -1;
    int b = -1;
    const char *s = NULL;
    check_ok(dr_json_i64(root, "t", "n", 0, 3, &n));
    assert_int_equal(n, 3);
    check_ok(dr_json_f64(root, "t", "x", 0, 1, &x));
    assert_true(x == 0.5);
    check_ok(dr_json_f64(root, "t", "n", 0, 9, &x)); // an integer is a number
    assert_true(x == 3);
    check_ok(dr_json_bool(root, "t", "b", &b));
    assert_int_equal(b, 1);
    check_ok(dr_json_string(root, "t", "s", &s));
    assert_string_equal(s, "hi");
    check_ok(dr_json_array(root, "t", "a", &child));
    check_ok(dr_json_object(root, "t", "o", &child));
    check_ok(dr_json_i64_or(root, "t", "z", 0, 9, 42, &n));
    assert_int_equal(n, 42);
    check_ok(dr_json_string_or(root, "t", "none", "fallback", &s));
    assert_string_equal(s, "fallback");
    check_error(dr_json_i64(root, "cfg.json", "n", 4, 9, &n), DR_ERR_FORMAT,
                "cfg.json: 'n': expected an integer from 4 to 9, found 3");
    check_error(dr_json_i64(root, "t", "s", 0, 9, &n), DR_ERR_FORMAT,
                "expected an integer, found the string \"hi\"");
    check_error(dr_json_i64(root, "t", "x", 0, 9, &n), DR_ERR_FORMAT, "found a number with a fraction");
    check_error(dr_json_bool(root, "t", "n", &b), DR_ERR_FORMAT, "expected true or false, found an integer");
    check_error(dr_json_string(root, "t", "none", &s), DR_ERR_FORMAT, "'none' is missing, expected a string");
    check_error(dr_json_string_or(root, "t", "n", "", &s), DR_ERR_FORMAT, "expected a string");
    check_error(dr_json_array(root, "t", "o", &child), DR_ERR_FORMAT, "expected an array, found an object");
    check_error(dr_json_object(child, "t", "a", &child), DR_ERR_FORMAT, "is missing");
    check_error(dr_json_i64(json_object_get(root, "a"), "t", "n", 0, 9, &n), DR_ERR_FORMAT, "found an array");
    assert_int_equal(n, 42);
    json_decref(root);
}

static void test_json_syntax(void **state) {
    (void)state;
    json_t *root = NULL;
    check_error(dr_json_parse("f.json", "{\n \"a\": 1,\n \"b\": }", 20, &root), DR_ERR_FORMAT, "f.json:3:");
    check_error(dr_json_parse("f.json", "{\"a\": 1, \"a\": 2}", 16, &root), DR_ERR_FORMAT, "duplicate");
    check_error(dr_json_parse("f.json", "", 0, &root), DR_ERR_FORMAT, "f.json:1:");
    check_error(dr_json_parse("f.json", "{} x", 4, &root), DR_ERR_FORMAT, "f.json:1:");
    check_error(dr_json_parse("f.json", "\"\xff\"", 3, &root), DR_ERR_FORMAT, "f.json:1:");
    assert_null(root);
    const char *path = check_path(check_scratch_dir(), "x.json");
    check_error(dr_json_load(path, &root), DR_ERR_IO, path);
    json_t *value = json_pack("{s:i,s:[f]}", "b", 1, "a", 0.5);
    check_ok(dr_json_save(value, path));
    check_ok(dr_json_load(path, &root));
    assert_true(json_equal(root, value));
    json_decref(root);
    json_decref(value);
    // Depth is bounded by the library: a hostile file is an error, not a crash.
    char *deep = malloc(100000);
    memset(deep, '[', 100000);
    check_error(dr_json_parse("deep", deep, 100000, &root), DR_ERR_FORMAT, "deep:1:");
    free(deep);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_philox_vectors),
        cmocka_unit_test(test_draw_vectors),
        cmocka_unit_test(test_draw_key),
        cmocka_unit_test(test_rng_stream),
        cmocka_unit_test(test_rng_skip),
        cmocka_unit_test(test_alloc),
#if !defined(__SANITIZE_ADDRESS__)
        cmocka_unit_test(test_alloc_refused),
#endif
        cmocka_unit_test(test_buf),
        cmocka_unit_test(test_status_and_log),
        cmocka_unit_test(test_clock),
        cmocka_unit_test(test_progress_plain),
        cmocka_unit_test(test_files),
        cmocka_unit_test(test_full_disk),
        cmocka_unit_test(test_json),
        cmocka_unit_test(test_json_syntax),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
