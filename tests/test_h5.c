// HDF5 layer: what is written comes back, what is damaged is refused, a failed write leaves the old file.
// labels: cpu store
#include "tests/check.h"

#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <unistd.h>

#include "core/base/alloc.h"
#include "core/base/file.h"
#include "core/base/log.h"
#include "core/store/h5.h"
#include "core/store/h5_describe.h"

static dr_h5 *create(const char *path) {
    dr_h5 *file = NULL;
    check_ok(dr_h5_create(path, &file));
    return file;
}

static dr_h5 *open_file(const char *path) {
    dr_h5 *file = NULL;
    check_ok(dr_h5_open(path, &file));
    return file;
}

static void write_floats(dr_h5 *file, const char *name, const float *values, int64_t n) {
    check_ok(dr_h5_write(file, name, DR_H5_F32, 1, &n, values, "values of a test", "m"));
}

static void test_numbers(void **state) {
    (void)state;
    static const struct {
        dr_h5_type type;
        const char *name;
        size_t size;
    } types[] = {{DR_H5_F32, "a/f32", 4}, {DR_H5_F64, "a/f64", 8},   {DR_H5_I32, "a/b/i32", 4},
                 {DR_H5_I64, "i64", 8},   {DR_H5_U8, "a/b/c/u8", 1}, {DR_H5_U16, "u16", 2},
                 {DR_H5_U64, "u64", 8}};
    const char *path = check_path(check_scratch_dir(), "numbers.h5");
    unsigned char bytes[24 * 8];
    for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = (unsigned char)(i * 37 % 120); // no NaN in these
    int64_t shape[4] = {2, 3, 1, 4};
    dr_h5 *file = create(path);
    for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
        dr_h5_set_deflate(file, (int32_t)(t % 3));
        check_ok(dr_h5_write(file, types[t].name, types[t].type, 4, shape, bytes, "bytes", "1"));
    }
    check_ok(dr_h5_commit(file));
    file = open_file(path);
    for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
        int64_t found[4] = {-1, -1, 1, 4};
        int32_t n_dims = 0;
        void *back = NULL;
        check_ok(dr_h5_read(file, types[t].name, types[t].type, 4, found, &back));
        assert_memory_equal(found, shape, sizeof shape);
        assert_memory_equal(back, bytes, 24 * types[t].size);
        dr_free(back);
        int64_t found_shape[4];
        check_ok(dr_h5_shape(file, types[t].name, &n_dims, found_shape));
        assert_int_equal(n_dims, 4);
        assert_memory_equal(found_shape, shape, sizeof shape);
    }
    assert_true(dr_h5_has(file, "a/b/i32"));
    assert_false(dr_h5_has(file, "a/b/none"));
    assert_false(dr_h5_has(file, "no/such/group"));
    dr_h5_close(file);
}

// More than one chunk, none at all, and rows out of the middle.
static void test_rows(void **state) {
    (void)state;
    enum { ROWS = 3000, WIDTH = 300 };
    const char *path = check_path(check_scratch_dir(), "rows.h5");
    int64_t shape[2] = {ROWS, WIDTH}, none[2] = {0, WIDTH};
    float *values = malloc(sizeof *values * ROWS * WIDTH), *back = NULL;
    for (int i = 0; i < ROWS * WIDTH; i++) values[i] = (float)i;
    dr_h5 *file = create(path);
    check_ok(dr_h5_write(file, "big", DR_H5_F32, 2, shape, values, "", ""));
    check_ok(dr_h5_write(file, "empty", DR_H5_F32, 2, none, values, "", ""));
    check_ok(dr_h5_commit(file));

    file = open_file(path);
    check_ok(dr_h5_read(file, "big", DR_H5_F32, 2, shape, &back));
    assert_memory_equal(back, values, sizeof *values * ROWS * WIDTH);
    dr_free(back);
    int64_t found[2] = {-1, -1};
    check_ok(dr_h5_read(file, "empty", DR_H5_F32, 2, found, &back));
    assert_memory_equal(found, none, sizeof none);
    dr_free(back);
    for (int64_t first = 0; first < ROWS; first += 877) {
        int64_t count = first + 900 < ROWS ? 900 : ROWS - first;
        check_ok(dr_h5_read_rows(file, "big", DR_H5_F32, 2, shape, first, count, &back));
        assert_memory_equal(back, values + first * WIDTH, sizeof *values * (size_t)count * WIDTH);
        dr_free(back);
    }
    check_error(dr_h5_read_rows(file, "big", DR_H5_F32, 2, shape, 2999, 2, &back), DR_ERR_RANGE,
                "rows 2999 to 3001 of 3000");
    check_error(dr_h5_read_rows(file, "big", DR_H5_F32, 2, shape, -1, 2, &back), DR_ERR_RANGE, "\"big\"");
    dr_h5_close(file);
    free(values);
}

static void test_strings(void **state) {
    (void)state;
    enum { LONG = 300000 };
    char *big = malloc(LONG + 1);
    for (int i = 0; i < LONG; i++) big[i] = (char)('a' + i * 7 % 26);
    big[LONG] = '\0';
    const char *texts[] = {"", "Amélie (2001)", "千と千尋の神隠し", "a, b", " space ", NULL, "end"};
    const char *wide[] = {"short", big, ""};
    enum { N = sizeof texts / sizeof *texts };
    const char *path = check_path(check_scratch_dir(), "strings.h5");
    dr_h5 *file = create(path);
    check_ok(dr_h5_write_strings(file, "t/plain", texts, N, "titles"));
    check_ok(dr_h5_write_strings(file, "t/wide", wide, 3, "one long text"));
    check_ok(dr_h5_write_strings(file, "t/none", texts, 0, "no text"));
    check_ok(dr_h5_write_strings(file, "t/empty", texts, 1, "an empty text"));
    check_ok(dr_h5_commit(file));
    assert_true(dr_file_size(path) < 400000); // the padding of short texts is compressed away

    char **back = NULL;
    int64_t n = -1;
    file = open_file(path);
    check_ok(dr_h5_read_strings(file, "t/plain", &n, &back));
    assert_int_equal(n, N);
    for (int i = 0; i < N; i++) assert_string_equal(back[i], texts[i] ? texts[i] : "");
    dr_h5_free_strings(back, n);
    n = 3;
    check_ok(dr_h5_read_strings(file, "t/wide", &n, &back));
    for (int i = 0; i < 3; i++) assert_string_equal(back[i], wide[i]);
    dr_h5_free_strings(back, n);
    n = -1;
    check_ok(dr_h5_read_strings(file, "t/none", &n, &back));
    assert_int_equal(n, 0);
    dr_h5_free_strings(back, n);
    n = -1;
    check_ok(dr_h5_read_strings(file, "t/empty", &n, &back));
    assert_string_equal(back[0], "");
    dr_h5_free_strings(back, n);
    n = 4;
    check_error(dr_h5_read_strings(file, "t/wide", &n, &back), DR_ERR_FORMAT, "dimension 0 is 3, expected 4");
    dr_h5_close(file);
    free(big);
}

static void test_attributes(void **state) {
    (void)state;
    const char *path = check_path(check_scratch_dir(), "attributes.h5");
    char *text = NULL, *big = malloc(100001);
    int64_t i = 0;
    double x = 0;
    float one = 1;
    memset(big, 'x', 100000);
    big[100000] = '\0';
    dr_h5 *file = create(path);
    write_floats(file, "d", &one, 1);
    check_ok(dr_h5_set_string(file, "/", "text", "größer"));
    check_ok(dr_h5_set_string(file, "/", "none", ""));
    check_ok(dr_h5_set_string(file, "d", "big", big));
    check_ok(dr_h5_set_i64(file, "d", "count", INT64_MIN));
    check_ok(dr_h5_set_f64(file, "/", "rate", 0.1));
    check_ok(dr_h5_commit(file));

    file = open_file(path);
    check_ok(dr_h5_get_string(file, "/", "text", &text));
    assert_string_equal(text, "größer");
    dr_free(text);
    check_ok(dr_h5_get_string(file, "/", "none", &text));
    assert_string_equal(text, "");
    dr_free(text);
    check_ok(dr_h5_get_string(file, "d", "big", &text));
    assert_string_equal(text, big);
    dr_free(text);
    check_ok(dr_h5_get_string(file, "d", "description", &text));
    assert_string_equal(text, "values of a test");
    dr_free(text);
    check_ok(dr_h5_get_string(file, "d", "unit", &text));
    assert_string_equal(text, "m");
    dr_free(text);
    check_ok(dr_h5_get_i64(file, "d", "count", &i));
    assert_true(i == INT64_MIN);
    check_ok(dr_h5_get_f64(file, "/", "rate", &x));
    assert_true(x == 0.1);
    i = 7;
    check_error(dr_h5_get_i64(file, "d", "cuont", &i), DR_ERR_FORMAT, "attribute \"cuont\" of d is missing");
    check_error(dr_h5_get_i64(file, "/", "text", &i), DR_ERR_FORMAT, "expected one integer");
    check_error(dr_h5_get_i64(file, "/", "rate", &i), DR_ERR_FORMAT, "expected one integer");
    check_error(dr_h5_get_f64(file, "d", "count", &x), DR_ERR_FORMAT, "expected one real number");
    check_error(dr_h5_get_string(file, "/", "rate", &text), DR_ERR_FORMAT, "expected one text");
    assert_int_equal(i, 7); // outputs only on success
    dr_h5_close(file);
    free(big);
}

static void test_refusals(void **state) {
    (void)state;
    const char *dir = check_scratch_dir(), *path = check_path(dir, "refusals.h5");
    float values[6] = {1, 2, 3, 4, 5, 6};
    const char *texts[] = {"a"};
    int64_t shape[2] = {2, 3};
    void *back = NULL;
    dr_h5 *file = create(path);
    check_ok(dr_h5_write(file, "m", DR_H5_F32, 2, shape, values, "", ""));
    check_ok(dr_h5_write_strings(file, "t", texts, 1, ""));
    check_ok(dr_h5_commit(file));

    file = open_file(path);
    check_error(dr_h5_read(file, "n", DR_H5_F32, 2, shape, &back), DR_ERR_FORMAT,
                "refusals.h5: dataset \"n\" is missing");
    check_error(dr_h5_read(file, "m/x", DR_H5_F32, 2, shape, &back), DR_ERR_FORMAT, "\"m/x\" is missing");
    int64_t wrong[2] = {2, 4};
    check_error(dr_h5_read(file, "m", DR_H5_F32, 2, wrong, &back), DR_ERR_FORMAT,
                "refusals.h5: dataset \"m\": dimension 1 is 3, expected 4");
    check_error(dr_h5_read(file, "m", DR_H5_F32, 1, wrong, &back), DR_ERR_FORMAT,
                "has 2 dimensions, expected 1");
    check_error(dr_h5_read(file, "m", DR_H5_I32, 2, shape, &back), DR_ERR_FORMAT, "not of type int32");
    check_error(dr_h5_read(file, "m", DR_H5_F64, 2, shape, &back), DR_ERR_FORMAT, "not of type float64");
    check_error(dr_h5_read(file, "t", DR_H5_U8, 1, wrong, &back), DR_ERR_FORMAT, "dimension 0 is 1");
    wrong[0] = 1;
    check_error(dr_h5_read(file, "t", DR_H5_U8, 1, wrong, &back), DR_ERR_FORMAT, "not of type uint8");
    int64_t n = -1;
    char **strings = NULL;
    check_error(dr_h5_read_strings(file, "m", &n, &strings), DR_ERR_FORMAT, "has 2 dimensions");
    assert_null(back);
    assert_null(strings);
    dr_h5_close(file);

    check_error(dr_h5_open(check_path(dir, "absent.h5"), &file), DR_ERR_IO, "No such file");
    check_error(dr_h5_open(dir, &file), DR_ERR_FORMAT, dir);
    check_write_file(path, "not HDF5 at all", 15);
    check_error(dr_h5_open(path, &file), DR_ERR_FORMAT, "refusals.h5");
    check_write_file(path, "", 0);
    check_error(dr_h5_open(path, &file), DR_ERR_FORMAT, "refusals.h5");
    check_error(dr_h5_create(check_path(dir, "no/such/folder.h5"), &file), DR_ERR_IO, "folder.h5");
}

// Old contents stay until a whole new file is there.
static void test_replacement(void **state) {
    (void)state;
    const char *dir = check_scratch_dir(), *path = check_path(dir, "kept.h5");
    char temp[400];
    float old = 1, fresh = 2, *back = NULL;
    int64_t n = 1;
    dr_h5 *file = create(path);
    write_floats(file, "v", &old, 1);
    check_ok(dr_h5_commit(file));
    snprintf(temp, sizeof temp, "%s.tmp.%d", path, (int)getpid());
    assert_false(dr_file_exists(temp));

    file = create(path); // given up
    write_floats(file, "v", &fresh, 1);
    assert_true(dr_file_exists(temp));
    dr_h5_abort(file);
    assert_false(dr_file_exists(temp));

    file = create(path); // an error on the way that the caller overlooks
    write_floats(file, "v", &fresh, 1);
    check_error(dr_h5_write(file, "v", DR_H5_F32, 1, &n, &fresh, "", ""), DR_ERR_IO, "kept.h5");
    write_floats(file, "w", &fresh, 1);
    assert_int_not_equal(dr_h5_commit(file), DR_OK);
    assert_false(dr_file_exists(temp));
    dr_h5_abort(NULL);
    dr_h5_close(NULL);

    file = open_file(path);
    check_ok(dr_h5_read(file, "v", DR_H5_F32, 1, &n, &back));
    assert_true(back[0] == old);
    dr_free(back);
    dr_h5_close(file);
}

// Same contents, same bytes.
static void test_same_bytes(void **state) {
    (void)state;
    const char *dir = check_scratch_dir();
    char *bytes[2];
    size_t length[2];
    for (int i = 0; i < 2; i++) {
        const char *path = check_path(dir, i ? "b.h5" : "a.h5"), *texts[] = {"x", "yy"};
        float values[3] = {1, 2, 3};
        dr_h5 *file = create(path);
        write_floats(file, "g/v", values, 3);
        check_ok(dr_h5_write_strings(file, "g/t", texts, 2, ""));
        check_ok(dr_h5_set_string(file, "/", "name", "n"));
        check_ok(dr_h5_commit(file));
        bytes[i] = check_read_file(path, &length[i]);
        if (i == 0) sleep(1); // a time stamp would differ now
    }
    assert_int_equal(length[0], length[1]);
    assert_memory_equal(bytes[0], bytes[1], length[0]);
    free(bytes[0]);
    free(bytes[1]);
}

static void test_views(void **state) {
    (void)state;
    const char *dir = check_scratch_dir();
    float parts[2][4] = {{1, 2, 3, 4}, {5, 6, 0, 0}}, *back = NULL;
    for (int i = 0; i < 2; i++) {
        int64_t shape[2] = {i ? 1 : 2, 2};
        dr_h5 *file = create(check_path(dir, i ? "rank_1.h5" : "rank_0.h5"));
        check_ok(dr_h5_write(file, "w/layer", DR_H5_F32, 2, shape, parts[i], "", ""));
        check_ok(dr_h5_commit(file));
    }
    const char *path = check_path(dir, "view.h5");
    const dr_h5_part rows[] = {{"rank_0.h5", "w/layer", 2}, {"rank_1.h5", "w/layer", 1}};
    int64_t shape[2] = {3, 2}, second[2] = {1, 2};
    dr_h5 *file = create(path);
    check_ok(dr_h5_write_view(file, "w/layer", DR_H5_F32, 2, shape, rows, 2));
    check_ok(dr_h5_write_view(file, "second", DR_H5_F32, 2, second, &rows[1], 1));
    check_error(dr_h5_write_view(file, "bad", DR_H5_F32, 2, second, rows, 2), DR_ERR_ARGUMENT,
                "has 1 rows, its parts 3");
    check_ok(dr_h5_commit(file));

    file = open_file(path);
    check_ok(dr_h5_read(file, "w/layer", DR_H5_F32, 2, shape, &back));
    for (int i = 0; i < 6; i++) assert_true(back[i] == (float)(i + 1));
    dr_free(back);
    check_ok(dr_h5_read(file, "second", DR_H5_F32, 2, second, &back));
    assert_true(back[0] == 5 && back[1] == 6);
    dr_free(back);
    dr_h5_close(file);
    assert_int_equal(unlink(check_path(dir, "rank_1.h5")), 0);
    file = open_file(path);
    check_error(dr_h5_read(file, "w/layer", DR_H5_F32, 2, shape, &back), DR_ERR_IO, "rank_1.h5");
    dr_h5_close(file);
}

// Matrices and vectors out of two flat datasets that are cut anywhere, within rows too.
static void test_runs(void **state) {
    (void)state;
    enum { N = 60, ROWS = 7, COLUMNS = 5, BEGIN = 11 };
    const char *dir = check_scratch_dir(), *names[] = {"a.h5", "b.h5"};
    int64_t shape[2] = {ROWS, COLUMNS}, length = 8;
    float values[N], *back = NULL;
    for (int i = 0; i < N; i++) values[i] = (float)(i + 1);
    for (int64_t cut = BEGIN; cut <= BEGIN + ROWS * COLUMNS; cut++) {
        const int64_t lengths[] = {cut, N - cut};
        for (int i = 0; i < 2; i++) {
            dr_h5 *part = create(check_path(dir, names[i]));
            check_ok(dr_h5_write(part, "flat", DR_H5_F32, 1, &lengths[i], values + i * cut, "", ""));
            check_ok(dr_h5_commit(part));
        }
        const dr_h5_run runs[] = {{names[0], "flat", cut, BEGIN, cut - BEGIN},
                                  {names[1], "flat", N - cut, 0, BEGIN + ROWS * COLUMNS - cut}},
                        vector[] = {{names[0], "flat", cut, cut - 3, 3}, {names[1], "flat", N - cut, 0, 5}};
        dr_h5 *file = create(check_path(dir, "runs.h5"));
        check_ok(dr_h5_write_runs(file, "w/matrix", DR_H5_F32, 2, shape, runs, 2));
        check_ok(dr_h5_write_runs(file, "w/vector", DR_H5_F32, 1, &length, vector, 2));
        dr_log_set_level(DR_LOG_ERROR + 1);
        check_error(dr_h5_write_runs(file, "bad", DR_H5_F32, 2, shape, runs, 0), DR_ERR_ARGUMENT,
                    "has 35 values, its runs 0");
        dr_log_set_level(DR_LOG_INFO);
        check_ok(dr_h5_commit(file));
        file = open_file(check_path(dir, "runs.h5"));
        check_ok(dr_h5_read(file, "w/matrix", DR_H5_F32, 2, shape, &back));
        check_same_bits("matrix", back, values + BEGIN, ROWS * COLUMNS);
        dr_free(back);
        check_ok(dr_h5_read(file, "w/vector", DR_H5_F32, 1, &length, &back));
        check_same_bits("vector", back, values + cut - 3, length);
        dr_free(back);
        dr_h5_close(file);
    }
}

// Reads all of damaged's contents; true when they are what write_victim wrote.
enum { VICTIM = 1500 };

static void write_victim(const char *path, const float *values) {
    const char *texts[] = {"The Silent Harbour (1987)", "", "Amélie"};
    dr_h5 *file = create(path);
    write_floats(file, "g/values", values, VICTIM);
    check_ok(dr_h5_write_strings(file, "g/texts", texts, 3, "titles"));
    check_ok(dr_h5_set_string(file, "/", "format", "victim"));
    check_ok(dr_h5_set_i64(file, "g/values", "count", 123456789));
    check_ok(dr_h5_commit(file));
}

static dr_status read_victim(const char *path, const float *values, int *out_same) {
    dr_h5 *file = NULL;
    float *back = NULL;
    char **texts = NULL, *format = NULL;
    int64_t n = VICTIM, n_texts = 3, count = 0;
    DR_TRY(dr_h5_open(path, &file));
    dr_status status = dr_h5_read(file, "g/values", DR_H5_F32, 1, &n, &back);
    if (status == DR_OK) status = dr_h5_read_strings(file, "g/texts", &n_texts, &texts);
    if (status == DR_OK) status = dr_h5_get_string(file, "/", "format", &format);
    if (status == DR_OK) status = dr_h5_get_i64(file, "g/values", "count", &count);
    if (status == DR_OK)
        *out_same = memcmp(back, values, VICTIM * sizeof *values) == 0 && count == 123456789 &&
                    strcmp(texts[0], "The Silent Harbour (1987)") == 0 && texts[1][0] == '\0' &&
                    strcmp(texts[2], "Amélie") == 0 && strcmp(format, "victim") == 0;
    dr_free(back);
    dr_free(format);
    dr_h5_free_strings(texts, n_texts);
    dr_h5_close(file);
    return status;
}

static dr_status ignore_object(void *context, const dr_h5_object *object) {
    (void)context;
    (void)object;
    return DR_OK;
}

static dr_status ignore_attribute(void *context, const char *path, const char *name, const char *text) {
    (void)context;
    return path && name && text ? DR_OK : DR_ERR_INTERNAL;
}

// Every byte flipped, in turn and with changing masks: an error, or contents that are right all the same
// (bytes that mean nothing). Never a crash, never other contents.
static void test_flipped_bytes(void **state) {
    (void)state;
    const char *dir = check_scratch_dir(), *path = check_path(dir, "good.h5"),
               *bad = check_path(dir, "bad.h5");
    const dr_h5_visitor visitor = {.object = ignore_object, .attribute = ignore_attribute};
    static const char masks[] = {(char)0xFF, 0x01, 0x10, (char)0x80};
    float values[VICTIM];
    for (int i = 0; i < VICTIM; i++) values[i] = (float)i * 0.25f;
    write_victim(path, values);
    size_t length = 0;
    char *bytes = check_read_file(path, &length);
    int refused = 0;
    dr_log_set_level(DR_LOG_ERROR + 1);
    for (size_t i = 0; i < length; i++) {
        int same = 1;
        bytes[i] ^= masks[i % 4];
        check_write_file(bad, bytes, length);
        bytes[i] ^= masks[i % 4];
        if (read_victim(bad, values, &same) != DR_OK)
            refused++;
        else if (!same)
            fail_msg("byte %zu of %zu flipped by %02x: other contents without an error", i, length,
                     (unsigned char)masks[i % 4]);
        if (i % 5 == 0) dr_h5_describe(bad, &visitor); // an error or not; it must come back
    }
    dr_log_set_level(DR_LOG_INFO);
    assert_true(refused > VICTIM * 4); // every byte of the values at least
    free(bytes);
}

static void test_truncated(void **state) {
    (void)state;
    const char *dir = check_scratch_dir(), *path = check_path(dir, "good.h5"),
               *bad = check_path(dir, "bad.h5");
    float values[VICTIM] = {0};
    write_victim(path, values);
    size_t length = 0;
    char *bytes = check_read_file(path, &length);
    dr_log_set_level(DR_LOG_ERROR + 1);
    for (int i = 0; i < 100; i++) {
        int same = 0;
        check_write_file(bad, bytes, length * (size_t)i / 100);
        if (read_victim(bad, values, &same) == DR_OK) fail_msg("%d %% of the file are taken for it", i);
    }
    dr_log_set_level(DR_LOG_INFO);
    free(bytes);
}

// Fletcher32 sums 16-bit words modulo 65535, where 0xFFFF is 0: only our digest sees this page.
static void test_page_of_ones(void **state) {
    (void)state;
    enum { N = 1 << 14, PAGE = 4096 };
    static const char zeros[PAGE];
    const char *path = check_path(check_scratch_dir(), "zeros.h5");
    float values[N], *back = NULL;
    int64_t n = N;
    for (int i = 0; i < N; i++) values[i] = i / 2048 % 2 ? 0 : (float)(i + 1);
    dr_h5 *file = create(path);
    write_floats(file, "v", values, N);
    check_ok(dr_h5_commit(file));
    size_t length = 0;
    char *bytes = check_read_file(path, &length), *page = memmem(bytes + 8192, length - 8192, zeros, PAGE);
    assert_non_null(page);
    memset(page, 0xFF, PAGE);
    check_write_file(path, bytes, length);
    file = open_file(path);
    check_ok(dr_h5_read_rows(file, "v", DR_H5_F32, 1, &n, 0, N, &back)); // the library sees nothing
    int n_nan = 0;
    for (int i = 0; i < N; i++) n_nan += isnan(back[i]);
    assert_int_equal(n_nan, PAGE / 4);
    dr_free(back);
    check_error(dr_h5_read(file, "v", DR_H5_F32, 1, &n, &back), DR_ERR_FORMAT,
                "dataset \"v\" is damaged: digest");
    dr_h5_close(file);
    free(bytes);
}

// Writes more than `path`'s place can hold: some call must say so, and commit too.
static void write_too_much(const char *path, const char *reason) {
    enum { N = 1 << 20 };
    float *values = malloc(sizeof *values * N);
    for (int i = 0; i < N; i++) values[i] = (float)i;
    dr_h5 *file = create(path);
    int64_t n = N;
    for (int i = 0; i < 3; i++) {
        char name[8];
        snprintf(name, sizeof name, "v%d", i);
        dr_status status = dr_h5_write(file, name, DR_H5_F32, 1, &n, values, "", "");
        if (i == 0) check_error(status, DR_ERR_IO, reason);
    }
    dr_status status = dr_h5_commit(file);
    if (status != DR_ERR_IO) fail_msg("commit says '%s' (%s)", dr_status_name(status), dr_last_error());
    if (!strstr(dr_last_error(), path)) fail_msg("the error \"%s\" does not name %s", dr_last_error(), path);
    free(values);
}

static void check_old_is_there(const char *path, float expected) {
    int64_t n = 1;
    float *back = NULL;
    char temp[400];
    dr_h5 *file = open_file(path);
    check_ok(dr_h5_read(file, "v", DR_H5_F32, 1, &n, &back));
    assert_true(back[0] == expected);
    dr_free(back);
    dr_h5_close(file);
    snprintf(temp, sizeof temp, "%s.tmp.%d", path, (int)getpid());
    assert_false(dr_file_exists(temp));
}

static void write_old(const char *path, float value) {
    dr_h5 *file = create(path);
    write_floats(file, "v", &value, 1);
    check_ok(dr_h5_commit(file));
}

static void test_file_size_limit(void **state) {
    (void)state;
    const char *path = check_path(check_scratch_dir(), "limited.h5");
    write_old(path, 3);
    struct rlimit before, small;
    getrlimit(RLIMIT_FSIZE, &before);
    small = before;
    small.rlim_cur = 1 << 20;
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &small);
    write_too_much(path, "v0: file write failed: File too large");
    setrlimit(RLIMIT_FSIZE, &before);
    check_old_is_there(path, 3);
    write_old(path, 4); // and the library still works
    check_old_is_there(path, 4);
}

static void test_full_disk(void **state) {
    (void)state;
    const char *dir = check_scratch_dir();
    if (mount("tmpfs", dir, "tmpfs", 0, "size=2m") != 0) skip(); // needs root
    const char *path = check_path(dir, "full.h5");
    write_old(path, 5);
    write_too_much(path, "v0: file write failed: No space left on device");
    check_old_is_there(path, 5);
    write_old(path, 6);
    check_old_is_there(path, 6);
    assert_int_equal(umount(dir), 0);
    rmdir(dir);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_numbers),       cmocka_unit_test(test_rows),
        cmocka_unit_test(test_strings),       cmocka_unit_test(test_attributes),
        cmocka_unit_test(test_refusals),      cmocka_unit_test(test_replacement),
        cmocka_unit_test(test_same_bytes),    cmocka_unit_test(test_views),
        cmocka_unit_test(test_flipped_bytes), cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_page_of_ones),  cmocka_unit_test(test_file_size_limit),
        cmocka_unit_test(test_full_disk),     cmocka_unit_test(test_runs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
