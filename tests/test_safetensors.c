// safetensors: what is read, every refusal with its message, damaged files, and a writer that keeps the old
// file when it fails.
// labels: cpu
#include <math.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <unistd.h>

#include "core/base/alloc.h"
#include "core/base/file.h"
#include "core/base/rng.h"
#include "core/store/safetensors_folder.h"
#include "tests/check.h"

// A file of the given header and `n_data` data bytes 0, 1, 2, …; `length` is what the first 8 bytes claim.
static const char *make_file(const char *header, size_t header_bytes, uint64_t length, size_t n_data) {
    static char path[400];
    unsigned char *bytes = calloc(1, 8 + header_bytes + n_data);
    for (int i = 0; i < 8; i++) bytes[i] = (unsigned char)(length >> (8 * i));
    memcpy(bytes + 8, header, header_bytes);
    for (size_t i = 0; i < n_data; i++) bytes[8 + header_bytes + i] = (unsigned char)i;
    snprintf(path, sizeof path, "%s", check_path(check_scratch_dir(), "f.safetensors"));
    check_write_file(path, bytes, 8 + header_bytes + n_data);
    free(bytes);
    return path;
}

static void refuse(const char *path, dr_status expected, const char *text) {
    dr_safetensors *file = NULL;
    check_error(dr_safetensors_open(path, &file), expected, text);
    if (!strstr(dr_last_error(), path)) fail_msg("the error \"%s\" does not name %s", dr_last_error(), path);
    assert_null(file);
    unlink(path);
    char *slash = strrchr((char *)(uintptr_t)path, '/');
    *slash = '\0';
    rmdir(path);
}

static dr_safetensors *open_file(const char *header, size_t n_data) {
    dr_safetensors *file = NULL;
    check_ok(dr_safetensors_open(make_file(header, strlen(header), strlen(header), n_data), &file));
    return file;
}

#define ENTRY(shape, from, to) "{\"dtype\":\"F32\",\"shape\":" shape ",\"data_offsets\":[" from "," to "]}"

static void test_accepted(void **state) {
    (void)state;
    // metadata, padding, any order of offsets, a scalar, zero-sized tensors at a shared offset, unknown
    // members
    dr_safetensors *file = open_file(
        "{\"__metadata__\":{\"format\":\"pt\"},\"b\":" ENTRY("[2]", "4", "12") ",\"none\":" ENTRY(
            "[0,7]", "4", "4") ",\"a/../\\u00e9\":{\"note\":[1],\"dtype\":\"F32\",\"shape\":[],"
                               "\"data_offsets\":[0,4]},\"zero\":" ENTRY("[0]", "12", "12") "}     ",
        12);
    assert_int_equal(dr_safetensors_count(file), 4);
    const dr_safetensor *a = dr_safetensors_find(file, "a/../\xc3\xa9"), *b = dr_safetensors_find(file, "b");
    assert_non_null(a);
    assert_int_equal(a->n_dims, 0);
    assert_int_equal(a->n_values, 1);
    assert_int_equal(b->shape[0], 2);
    assert_int_equal(((const unsigned char *)b->data)[0], 4);
    assert_int_equal(dr_safetensors_find(file, "none")->n_values, 0);
    assert_null(dr_safetensors_find(file, "c"));
    dr_safetensors_close(file);
    file = open_file("{}", 0);
    assert_int_equal(dr_safetensors_count(file), 0);
    dr_safetensors_close(file);
    dr_safetensors_close(NULL);
}

static void test_refused_headers(void **state) {
    (void)state;
    static const struct {
        const char *header;
        size_t n_data;
        dr_status status;
        const char *text;
    } cases[] = {
        {"", 0, DR_ERR_FORMAT, "does not begin with '{'"},
        {" {}", 0, DR_ERR_FORMAT, "does not begin with '{'"},
        {"[]", 0, DR_ERR_FORMAT, "does not begin with '{'"},
        {"{\"a\":", 0, DR_ERR_FORMAT, "header, byte"},
        {"{} x", 0, DR_ERR_FORMAT, "header, byte"},
        {"{\"a\xff\":1}", 0, DR_ERR_FORMAT, "unable to decode byte 0xff"},
        {"{\"a\\u0000b\":" ENTRY("[1]", "0", "4") "}", 4, DR_ERR_FORMAT, "NUL byte in object key"},
        {"{\"a\":1}", 0, DR_ERR_FORMAT, "tensor a: not an object"},
        {"{\"__metadata__\":[]}", 0, DR_ERR_FORMAT, "__metadata__ is not an object"},
        {"{\"__metadata__\":{\"k\":1}}", 0, DR_ERR_FORMAT, "__metadata__.k is not a string"},
        {"{\"a\":" ENTRY("[1]", "0", "4") ",\"a\":" ENTRY("[1]", "4", "8") "}", 8, DR_ERR_FORMAT,
         "duplicate object key"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"shape\":[1],\"data_offsets\":[0,4]}}", 4, DR_ERR_FORMAT,
         "duplicate object key"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, DR_ERR_FORMAT, "expected dtype, shape and two"},
        {"{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4, DR_ERR_FORMAT, "expected dtype"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":4,\"data_offsets\":[0,4]}}", 4, DR_ERR_FORMAT,
         "expected dtype"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,2,4]}}", 4, DR_ERR_FORMAT,
         "two data_offsets"},
        {"{\"a\":{\"dtype\":\"F31\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, DR_ERR_UNSUPPORTED,
         "unknown dtype \"F31\""},
        {"{\"a\":{\"dtype\":\"F4\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, DR_ERR_UNSUPPORTED,
         "unknown dtype \"F4\""},
        {"{\"a\":" ENTRY("[1,1,1,1,1,1,1,1,1]", "0", "4") "}", 4, DR_ERR_UNSUPPORTED,
         "9 dimensions, at most 8"},
        {"{\"a\":" ENTRY("[1.0]", "0", "4") "}", 4, DR_ERR_FORMAT, "dimension 0 is not a whole number"},
        {"{\"a\":" ENTRY("[1,1e0]", "0", "4") "}", 4, DR_ERR_FORMAT, "dimension 1 is not a whole number"},
        {"{\"a\":" ENTRY("[\"1\"]", "0", "4") "}", 4, DR_ERR_FORMAT, "dimension 0 is not a whole number"},
        {"{\"a\":" ENTRY("[-1]", "0", "4") "}", 4, DR_ERR_FORMAT, "a negative number"},
        {"{\"a\":" ENTRY("[1]", "-0", "4") "}", 4, DR_ERR_FORMAT, "a negative number"},
        {"{\"a\\\\\":" ENTRY("[1]", "-4", "0") "}", 4, DR_ERR_FORMAT, "a negative number"},
        {"{\"a\":" ENTRY("[18446744073709551617]", "0", "4") "}", 4, DR_ERR_FORMAT, "too big integer"},
        {"{\"a\":" ENTRY("[4294967296,4294967296]", "0", "4") "}", 4, DR_ERR_FORMAT, "the shape overflows"},
        {"{\"a\":" ENTRY("[4611686018427387904]", "0", "4") "}", 4, DR_ERR_FORMAT, "the shape overflows"},
        {"{\"a\":" ENTRY("[1]", "0", "4.5") "}", 4, DR_ERR_FORMAT, "not whole numbers"},
        {"{\"a\":" ENTRY("[1]", "4", "0") "}", 4, DR_ERR_FORMAT, "bytes [4, 0) in data of 4 bytes"},
        {"{\"a\":" ENTRY("[2]", "0", "8") "}", 4, DR_ERR_FORMAT, "bytes [0, 8) in data of 4 bytes"},
        {"{\"a\":" ENTRY("[2]", "0", "4") "}", 4, DR_ERR_FORMAT, "4 bytes, its shape needs 8"},
        {"{\"a\":" ENTRY("[0]", "0", "4") "}", 4, DR_ERR_FORMAT, "4 bytes, its shape needs 0"},
        {"{\"a\":" ENTRY("[1]", "4", "8") "}", 8, DR_ERR_FORMAT,
         "begins at data byte 4, expected 0 (a hole)"},
        {"{\"a\":" ENTRY("[1]", "0", "4") ",\"b\":" ENTRY("[1]", "8", "12") "}", 12, DR_ERR_FORMAT,
         "tensor b begins at data byte 8, expected 4 (a hole)"},
        {"{\"a\":" ENTRY("[2]", "0", "8") ",\"b\":" ENTRY("[1]", "4", "8") "}", 8, DR_ERR_FORMAT,
         "tensor b begins at data byte 4, expected 8 (an overlap)"},
        {"{\"a\":" ENTRY("[1]", "0", "4") ",\"b\":" ENTRY("[1]", "0", "4") "}", 4, DR_ERR_FORMAT,
         "(an overlap)"},
        {"{\"a\":" ENTRY("[1]", "0", "4") "}", 5, DR_ERR_FORMAT, "5 data bytes, the tensors cover 4"},
        {"{}", 3, DR_ERR_FORMAT, "3 data bytes, the tensors cover 0"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        size_t length = strlen(cases[i].header);
        refuse(make_file(cases[i].header, length, length, cases[i].n_data), cases[i].status, cases[i].text);
    }
    // a name of a megabyte: no crash, and the message stays readable
    static const char tail[] = "\":" ENTRY("[1]", "0", "8") "}";
    char *name = malloc((1 << 20) + sizeof tail);
    memset(name, 'n', 1 << 20);
    memcpy(name, "{\"", 2);
    memcpy(name + (1 << 20), tail, sizeof tail);
    size_t length = strlen(name);
    refuse(make_file(name, length, length, 8), DR_ERR_FORMAT, "tensor nnnn");
    // a header as deep as the parser's stack would be
    memset(name, '[', 1 << 20);
    memcpy(name, "{\"a\":", 5);
    refuse(make_file(name, 1 << 20, 1 << 20, 0), DR_ERR_FORMAT, "depth");
    free(name);
}

static void test_refused_lengths(void **state) {
    (void)state;
    const char *path = check_path(check_scratch_dir(), "short");
    check_write_file(path, "", 0);
    dr_safetensors *file = NULL;
    check_error(dr_safetensors_open(path, &file), DR_ERR_FORMAT,
                "0 bytes, a safetensors file has at least 8");
    check_write_file(path, "1234567", 7);
    check_error(dr_safetensors_open(path, &file), DR_ERR_FORMAT, "7 bytes");
    check_error(dr_safetensors_open("/nonexistent/x", &file), DR_ERR_IO, "/nonexistent/x: cannot open");
    check_error(dr_safetensors_open(check_scratch_dir(), &file), DR_ERR_IO, "not a regular file");
    refuse(make_file("{}", 2, 3, 0), DR_ERR_FORMAT, "header of 3 bytes in a file of 10");
    refuse(make_file("{}", 2, 1, 0), DR_ERR_FORMAT, "header, byte");
    refuse(make_file("{}", 2, 100000001, 0), DR_ERR_FORMAT, "at most 100000000 are allowed");
    refuse(make_file("{}", 2, UINT64_MAX, 0), DR_ERR_FORMAT, "at most 100000000 are allowed");
    refuse(make_file("{}", 2, UINT64_MAX - 7, 0), DR_ERR_FORMAT, "at most 100000000 are allowed");
}

// Values of half precisions, at odd addresses.
static void test_conversion(void **state) {
    (void)state;
    static const uint16_t half[] = {0x3C00, 0xC000, 0x0001, 0x83FF, 0x7BFF, 0x7C00, 0x8000, 0x3555};
    static const float half_values[] = {1,     -2,       0x1p-24f, -1023 * 0x1p-24f,
                                        65504, INFINITY, -0.0f,    0x1.554p-2f};
    static const uint16_t brain[] = {0x3F80, 0xC2F7, 0x7F80, 0x0001};
    static const float brain_values[] = {1, -123.5f, INFINITY, 0x1p-133f};
    const char *header = "{\"pad\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
                         "\"h\":{\"dtype\":\"F16\",\"shape\":[2,4],\"data_offsets\":[1,17]},"
                         "\"b\":{\"dtype\":\"BF16\",\"shape\":[4],\"data_offsets\":[17,25]},"
                         "\"f\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[25,29]}}";
    size_t length = strlen(header);
    const char *path = make_file(header, length, length, 29);
    size_t total;
    char *bytes = check_read_file(path, &total);
    float one = -3.25f, out[8];
    memcpy(bytes + 8 + length + 1, half, 16);
    memcpy(bytes + 8 + length + 17, brain, 8);
    memcpy(bytes + 8 + length + 25, &one, 4);
    check_write_file(path, bytes, total);
    free(bytes);
    dr_safetensors *file = NULL;
    check_ok(dr_safetensors_open(path, &file));
    const int64_t shape[] = {2, 4}, four = 4, eight = 8, single = 1;
    check_ok(dr_safetensors_read(file, "h", shape, 2, out));
    check_same_bits("F16", out, half_values, 8);
    check_ok(dr_safetensors_read(file, "b", &four, 1, out));
    check_same_bits("BF16", out, brain_values, 4);
    check_ok(dr_safetensors_read(file, "f", &single, 1, out));
    check_same_bits("F32", out, &one, 1);
    check_error(dr_safetensors_read(file, "h", &eight, 1, out), DR_ERR_FORMAT,
                "tensor h has shape [2, 4], expected [8]");
    check_error(dr_safetensors_read(file, "pad", &single, 1, out), DR_ERR_UNSUPPORTED,
                "tensor pad is U8, expected F32, BF16 or F16");
    check_error(dr_safetensors_read(file, "gone", &single, 1, out), DR_ERR_FORMAT, "tensor gone is missing");
    dr_safetensors_close(file);
}

static void write_value(const char *path, float value) {
    dr_safetensor_source source = {"v", 1, {1}, &value, DR_DTYPE_F32, NULL};
    check_ok(dr_safetensors_write(path, &source, 1));
}

static void check_value(const char *path, float expected) {
    dr_safetensors *file = NULL;
    const int64_t one = 1;
    float value = 0;
    char temp[400];
    check_ok(dr_safetensors_open(path, &file));
    check_ok(dr_safetensors_read(file, "v", &one, 1, &value));
    assert_true(value == expected);
    dr_safetensors_close(file);
    snprintf(temp, sizeof temp, "%s.tmp.%d", path, (int)getpid());
    assert_false(dr_file_exists(temp));
}

static void test_written(void **state) {
    (void)state;
    float a[6] = {1, -2, NAN, 4, INFINITY, 0}, scalar = 7, none = 0, back[6];
    dr_safetensor_source sources[] = {{"x.weight", 2, {2, 3}, a, DR_DTYPE_F32, NULL},
                                      {"scalar", 0, {0}, &scalar, DR_DTYPE_F32, NULL},
                                      {"empty", 2, {0, 5}, &none, DR_DTYPE_F32, NULL}};
    const char *path = check_path(check_scratch_dir(), "w.safetensors");
    check_ok(dr_safetensors_write(path, sources, 3));
    dr_safetensors *file = NULL;
    check_ok(dr_safetensors_open(path, &file));
    assert_int_equal(dr_safetensors_count(file), 3);
    const dr_safetensor *x = dr_safetensors_find(file, "x.weight");
    assert_int_equal((uintptr_t)x->data % 4, 0); // the data part is aligned
    check_ok(dr_safetensors_read(file, "x.weight", sources[0].shape, 2, back));
    check_same_bits("x.weight", back, a, 6);
    check_ok(dr_safetensors_read(file, "scalar", NULL, 0, back));
    assert_true(back[0] == 7);
    dr_safetensors_close(file);
    check_ok(dr_safetensors_write(path, NULL, 0));
    check_ok(dr_safetensors_open(path, &file));
    assert_int_equal(dr_safetensors_count(file), 0);
    dr_safetensors_close(file);
    // names that would not read back
    sources[1].name = "x.weight";
    check_error(dr_safetensors_write(path, sources, 2), DR_ERR_ARGUMENT, "x.weight is given twice");
    sources[1].name = "a\"b";
    check_error(dr_safetensors_write(path, sources, 2), DR_ERR_ARGUMENT, "JSON would escape");
    check_error(dr_safetensors_write("/nonexistent/dir/x", sources, 1), DR_ERR_IO, "/nonexistent/dir/x");
}

// Every value of a 16-bit type comes back with its bits; what lies between two goes to the nearer one, a tie
// to the even one.
static void check_short_type(dr_dtype dtype, uint16_t infinity) {
    enum { N = 1 << 16 };
    float *values = NULL, *between = NULL;
    const int64_t shape = N;
    const char *path = check_path(check_scratch_dir(), "short.safetensors");
    check_ok(dr_alloc(&values, "values", N, sizeof(float)));
    check_ok(dr_alloc(&between, "values", N, sizeof(float)));
    dr_safetensors *file = NULL;
    uint16_t bits[N], back[N];
    for (int32_t i = 0; i < N; i++) bits[i] = (uint16_t)i;
    dr_buf bytes = {0}; // a file by hand, of all values
    char header[128];
    int n =
        snprintf(header, sizeof header, "{\"v\":{\"dtype\":\"%s\",\"shape\":[%d],\"data_offsets\":[0,%d]}}",
                 dtype == DR_DTYPE_BF16 ? "BF16" : "F16", N, 2 * N);
    uint64_t length = (uint64_t)n;
    check_ok(dr_buf_append(&bytes, &length, 8));
    check_ok(dr_buf_append(&bytes, header, (size_t)n));
    check_ok(dr_buf_append(&bytes, bits, sizeof bits));
    check_write_file(path, bytes.data, bytes.length);
    check_ok(dr_safetensors_open(path, &file));
    check_ok(dr_safetensors_read(file, "v", &shape, 1, values));
    dr_safetensors_close(file);
    for (int round = 0; round < 4;
         round++) { // the value; a bit more; the middle to the next; a bit less than the next
        static const double shares[] = {0, 0.49, 0.5, 0.51};
        for (int32_t i = 0; i < N; i++) {
            bool has_next = (i & 0x7FFF) + 1 < infinity;
            double step = has_next ? (double)values[i + 1] - values[i] : 0;
            between[i] = (float)(values[i] + shares[round] * step);
        }
        dr_safetensor_source source = {"v", 1, {N}, between, dtype, NULL};
        assert_int_equal(dr_safetensor_source_bytes(&source), 2 * N);
        check_ok(dr_safetensors_write(path, &source, 1));
        check_ok(dr_safetensors_open(path, &file));
        assert_int_equal(dr_safetensors_find(file, "v")->dtype, dtype);
        memcpy(back, dr_safetensors_find(file, "v")->data, sizeof back);
        dr_safetensors_close(file);
        for (int32_t i = 0; i < N; i++) {
            bool has_next = (i & 0x7FFF) + 1 < infinity;
            uint16_t want = (uint16_t)(i + (has_next && (round == 3 || (round == 2 && i % 2))));
            if (isnan(values[i]) ? (back[i] & 0x7FFF) <= infinity : back[i] != want)
                fail_msg("value %d, round %d: written as %04x, expected %04x", i, round, back[i], want);
        }
    }
    float large = 3.4e38f; // the nearest value of both types is infinity
    dr_safetensor_source source = {"v", 1, {1}, &large, dtype, NULL};
    check_error(dr_safetensors_write(path, &source, 1), DR_ERR_NUMERIC, "value 0, 3.4e+38, is too large for");
    source.dtype = DR_DTYPE_OTHER;
    check_error(dr_safetensors_write(path, &source, 1), DR_ERR_ARGUMENT, "a type that is not written");
    dr_buf_reset(&bytes);
    dr_free(values);
    dr_free(between);
}

static void test_short_types(void **state) {
    (void)state;
    check_short_type(DR_DTYPE_BF16, 0x7F80);
    check_short_type(DR_DTYPE_F16, 0x7C00);
}

// Values that are counted from 100 on, until one that cannot be had.
static dr_status read_counted(void *context, int64_t first, int64_t n, float *out) {
    const int64_t *end = context;
    DR_CHECK(first + n <= *end, DR_ERR_IO, "value %lld cannot be had", (long long)*end);
    for (int64_t i = 0; i < n; i++) out[i] = (float)(first + i);
    return DR_OK;
}

// A tensor that comes in pieces is the same file.
static void test_fed(void **state) {
    (void)state;
    enum { N = (2 << 20) + 7 };
    const dr_dtype dtypes[] = {DR_DTYPE_F32, DR_DTYPE_BF16};
    const char *dir = check_scratch_dir(), *whole = check_path(dir, "whole"), *fed = check_path(dir, "fed");
    float *values = NULL;
    int64_t end = 100 + N;
    const dr_safetensor_feed feed = {read_counted, &end, 100};
    check_ok(dr_alloc(&values, "values", N, sizeof *values));
    for (int64_t i = 0; i < N; i++) values[i] = (float)(100 + i);
    for (int d = 0; d < 2; d++) {
        dr_safetensor_source sources[] = {{"a", 1, {3}, values, dtypes[d], NULL},
                                          {"b", 1, {N}, values, dtypes[d], NULL}};
        size_t lengths[2];
        check_ok(dr_safetensors_write(whole, sources, 2));
        sources[1].data = NULL;
        sources[1].feed = &feed;
        check_ok(dr_safetensors_write(fed, sources, 2));
        char *bytes[] = {check_read_file(whole, &lengths[0]), check_read_file(fed, &lengths[1])};
        assert_int_equal(lengths[0], lengths[1]);
        assert_memory_equal(bytes[0], bytes[1], lengths[0]);
        end--;
        check_error(dr_safetensors_write(fed, sources, 2), DR_ERR_IO, "cannot be had");
        end++;
        char *after = check_read_file(fed, &lengths[1]);
        assert_int_equal(lengths[0], lengths[1]);
        assert_memory_equal(bytes[0], after, lengths[0]); // the old file
        free(bytes[0]);
        free(bytes[1]);
        free(after);
    }
    dr_free(values);
}

static void write_too_much(const char *path, const char *reason) {
    float *values = NULL;
    check_ok(dr_alloc(&values, "values", 1 << 20, sizeof(float)));
    dr_safetensor_source source = {"v", 1, {1 << 20}, values, DR_DTYPE_F32, NULL};
    check_error(dr_safetensors_write(path, &source, 1), DR_ERR_IO, reason);
    if (!strstr(dr_last_error(), path)) fail_msg("the error \"%s\" does not name %s", dr_last_error(), path);
    dr_free(values);
}

static void test_file_size_limit(void **state) {
    (void)state;
    const char *path = check_path(check_scratch_dir(), "limited.safetensors");
    write_value(path, 3);
    struct rlimit before, small;
    getrlimit(RLIMIT_FSIZE, &before);
    small = before;
    small.rlim_cur = 1 << 20;
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &small);
    write_too_much(path, "File too large");
    setrlimit(RLIMIT_FSIZE, &before);
    check_value(path, 3);
    write_value(path, 4);
    check_value(path, 4);
}

static void test_full_disk(void **state) {
    (void)state;
    const char *dir = check_scratch_dir();
    if (mount("tmpfs", dir, "tmpfs", 0, "size=2m") != 0) skip(); // needs root
    const char *path = check_path(dir, "full.safetensors");
    write_value(path, 5);
    write_too_much(path, "No space left on device");
    check_value(path, 5);
    write_value(path, 6);
    check_value(path, 6);
    assert_int_equal(umount(dir), 0);
    rmdir(dir);
}

// Every truncation is refused; every flipped byte of the header either is refused or gives tensors that stay
// inside the file.
static void test_damage(void **state) {
    (void)state;
    float a[10] = {0};
    dr_safetensor_source sources[] = {{"model.a", 2, {2, 3}, a, DR_DTYPE_F32, NULL},
                                      {"model.b", 1, {4}, a, DR_DTYPE_F32, NULL}};
    const char *path = check_path(check_scratch_dir(), "d.safetensors");
    check_ok(dr_safetensors_write(path, sources, 2));
    size_t total;
    char *bytes = check_read_file(path, &total);
    size_t header_end = total - 40;
    dr_safetensors *file = NULL;
    for (size_t n = 0; n < total; n++) {
        check_write_file(path, bytes, n);
        if (dr_safetensors_open(path, &file) == DR_OK)
            fail_msg("cut to %zu of %zu bytes: accepted", n, total);
    }
    dr_rng rng = dr_rng_make(8, 8);
    for (size_t i = 0; i < header_end; i++) {
        char kept = bytes[i];
        bytes[i] = (char)(bytes[i] ^ (1 + (int)dr_rng_below(&rng, 255)));
        check_write_file(path, bytes, total);
        bytes[i] = kept;
        if (dr_safetensors_open(path, &file) != DR_OK) continue;
        int64_t values = 0;
        for (int32_t t = 0; t < dr_safetensors_count(file); t++) {
            const dr_safetensor *tensor = dr_safetensors_at(file, t);
            values += tensor->n_values;
        }
        assert_true(values <= 40); // bytes of data there are
        dr_safetensors_close(file);
    }
    free(bytes);
}

static void write_named(const char *dir, const char *file, const char *tensor, float value) {
    dr_safetensor_source source = {tensor, 1, {1}, &value, DR_DTYPE_F32, NULL};
    check_ok(dr_safetensors_write(check_path(dir, file), &source, 1));
}

static void refuse_index(const char *dir, const char *index, dr_status expected, const char *text) {
    const char *path = check_path(dir, "model.safetensors.index.json");
    dr_safetensors_folder *folder = NULL;
    check_write_file(path, index, strlen(index));
    check_error(dr_safetensors_folder_open(dir, &folder), expected, text);
    if (!strstr(dr_last_error(), path)) fail_msg("the error \"%s\" does not name %s", dr_last_error(), path);
    assert_null(folder);
}

static void test_index(void **state) {
    (void)state;
    const char *dir = check_scratch_dir(), *other = check_scratch_dir();
    dr_safetensors_folder *folder = NULL;
    check_error(dr_safetensors_folder_open(dir, &folder), DR_ERR_IO, "model.safetensors: cannot open");
    write_named(dir, "s1.safetensors", "a", 1);
    write_named(dir, "s2.safetensors", "b", 2);
    const char *good = "{\"metadata\": {\"total_size\": 8}, \"weight_map\": {\"a\": \"s1.safetensors\", "
                       "\"b\": \"s2.safetensors\"}}";
    check_write_file(check_path(dir, "model.safetensors.index.json"), good, strlen(good));
    check_ok(dr_safetensors_folder_open(dir, &folder));
    const int64_t one = 1, two = 2;
    float value = 0;
    assert_int_equal(dr_safetensors_folder_count(folder), 2);
    assert_string_equal(dr_safetensors_folder_at(folder, 1)->name, "b");
    check_ok(dr_safetensors_folder_read(folder, "b", &one, 1, &value));
    assert_true(value == 2);
    check_error(dr_safetensors_folder_read(folder, "c", &one, 1, &value), DR_ERR_FORMAT,
                "index.json: tensor c is missing");
    check_error(dr_safetensors_folder_check(folder, "a", &two, 1), DR_ERR_FORMAT,
                "s1.safetensors: tensor a has shape [1], expected [2]");
    dr_safetensors_folder_close(folder);
    folder = NULL;

    refuse_index(dir, "[]", DR_ERR_FORMAT, "expected an object");
    refuse_index(dir, "{\"weight_map\": {\"a\"", DR_ERR_FORMAT, "index.json");
    refuse_index(dir, "{\"weight_map\": {}}", DR_ERR_FORMAT, "weight_map is empty");
    refuse_index(dir, "{\"weight_map\": {\"a\": 1}}", DR_ERR_FORMAT, "tensor a: expected a file name, found");
    refuse_index(dir, "{\"weight_map\": {\"a\": \"s1.safetensors\", \"b\": \"s3.safetensors\"}}", DR_ERR_IO,
                 "shard s3.safetensors is missing");
    refuse_index(dir,
                 "{\"weight_map\": {\"a\": \"s1.safetensors\", \"b\": \"s2.safetensors\", \"c\": "
                 "\"s1.safetensors\"}}",
                 DR_ERR_FORMAT, "tensor c is in no shard, expected in s1.safetensors");
    refuse_index(dir, "{\"weight_map\": {\"a\": \"s2.safetensors\", \"b\": \"s1.safetensors\"}}",
                 DR_ERR_FORMAT, "tensor a is in shard s1.safetensors, the index says s2.safetensors");
    // two shards with the same tensor; a tensor that the index does not know
    write_named(dir, "s3.safetensors", "a", 3);
    refuse_index(dir, "{\"weight_map\": {\"a\": \"s1.safetensors\", \"b\": \"s3.safetensors\"}}",
                 DR_ERR_FORMAT, "tensor b is in no shard");
    dr_safetensor_source both[] = {{"a", 1, {1}, &value, DR_DTYPE_F32, NULL},
                                   {"b", 1, {1}, &value, DR_DTYPE_F32, NULL}};
    check_ok(dr_safetensors_write(check_path(dir, "s3.safetensors"), both, 2));
    refuse_index(dir, "{\"weight_map\": {\"a\": \"s1.safetensors\", \"b\": \"s3.safetensors\"}}",
                 DR_ERR_FORMAT, "tensor a is in shard s3.safetensors too, the index says s1.safetensors");
    refuse_index(dir, "{\"weight_map\": {\"a\": \"s3.safetensors\"}}", DR_ERR_FORMAT,
                 "tensor b of shard s3.safetensors is not in weight_map");
    // files outside the folder, though they are there
    write_named(other, "x.safetensors", "a", 1);
    char index[600];
    snprintf(index, sizeof index, "{\"weight_map\": {\"a\": \"%s\"}}", check_path(other, "x.safetensors"));
    refuse_index(dir, index, DR_ERR_FORMAT, "is not the name of a file in this folder");
    static const char *const names[] = {"../x", "..", ".", "", "sub/x", "a\\\\b", ".hidden"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(index, sizeof index, "{\"weight_map\": {\"a\": \"%s\"}}", names[i]);
        refuse_index(dir, index, DR_ERR_FORMAT, "is not the name of a file in this folder");
    }
    // the single file comes first
    write_named(dir, "model.safetensors", "z", 9);
    check_ok(dr_safetensors_folder_open(dir, &folder));
    assert_string_equal(dr_safetensors_folder_at(folder, 0)->name, "z");
    dr_safetensors_folder_close(folder);
    dr_safetensors_folder_close(NULL);
}

static void check_folder(const char *dir, const dr_safetensor_source *sources, int32_t n, int n_shards) {
    dr_safetensors_folder *folder = NULL;
    char name[64];
    check_ok(dr_safetensors_folder_open(dir, &folder));
    assert_int_equal(dr_safetensors_folder_count(folder), n);
    for (int32_t i = 0; i < n; i++) {
        float back[8];
        check_ok(dr_safetensors_folder_read(folder, sources[i].name, sources[i].shape, 1, back));
        check_same_bits(sources[i].name, back, sources[i].data, sources[i].shape[0]);
    }
    dr_safetensors_folder_close(folder);
    assert_int_equal(dr_file_exists(check_path(dir, "model.safetensors")), n_shards == 1);
    assert_int_equal(dr_file_exists(check_path(dir, "model.safetensors.index.json")), n_shards > 1);
    for (int total = 1; total < 7; total++) // what is there and what is gone
        for (int i = 1; i <= total; i++) {
            snprintf(name, sizeof name, "model-%05d-of-%05d.safetensors", i, total);
            assert_int_equal(dr_file_exists(check_path(dir, name)), n_shards > 1 && total == n_shards);
            snprintf(name, sizeof name, "model-%05d-of-%05d.safetensors.new", i, total);
            assert_false(dr_file_exists(check_path(dir, name)));
        }
}

static void test_shards(void **state) {
    (void)state;
    float a[8] = {1, 2, 3, 4, 5, 6, 7, 8}, b[8] = {9, 10, 11, 12, 13, 14, 15, 16};
    dr_safetensor_source first[] = {{"p", 1, {4}, a, DR_DTYPE_F32, NULL},
                                    {"q", 1, {4}, a + 4, DR_DTYPE_F32, NULL},
                                    {"r", 1, {8}, b, DR_DTYPE_F32, NULL},
                                    {"s", 1, {1}, a, DR_DTYPE_F32, NULL},
                                    {"t", 1, {2}, b, DR_DTYPE_F32, NULL}};
    dr_safetensor_source second[] = {{"p", 1, {4}, b, DR_DTYPE_F32, NULL},
                                     {"q", 1, {4}, b + 4, DR_DTYPE_F32, NULL},
                                     {"r", 1, {8}, a, DR_DTYPE_F32, NULL},
                                     {"s", 1, {1}, b, DR_DTYPE_F32, NULL},
                                     {"t", 1, {2}, a, DR_DTYPE_F32, NULL}};
    const char *dir = check_scratch_dir();
    check_error(dr_safetensors_folder_write(dir, first, 5, 0), DR_ERR_ARGUMENT, "shards of 0 bytes");
    check_ok(dr_safetensors_folder_write(dir, first, 5, 76)); // 76 bytes in all
    check_folder(dir, first, 5, 1);
    check_ok(dr_safetensors_folder_write(dir, second, 5, 75)); // 16 + 16 + 32 + 4, then 8
    check_folder(dir, second, 5, 2);
    size_t length;
    char *index = check_read_file(check_path(dir, "model.safetensors.index.json"), &length);
    assert_non_null(strstr(index, "\"total_size\": 76"));
    assert_non_null(strstr(index, "\"t\": \"model-00002-of-00002.safetensors\""));
    free(index);
    check_ok(dr_safetensors_folder_write(dir, first, 5, 20)); // 16, 16, 32 alone, 4 + 8
    check_folder(dir, first, 5, 4);
    check_ok(dr_safetensors_folder_write(dir, second, 5, 20)); // the same names, other values
    check_folder(dir, second, 5, 4);
    // a write that fails leaves the old shards
    struct rlimit before, small;
    getrlimit(RLIMIT_FSIZE, &before);
    small = before;
    small.rlim_cur = 150;
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &small);
    check_error(dr_safetensors_folder_write(dir, first, 5, 70), DR_ERR_IO, "File too large");
    setrlimit(RLIMIT_FSIZE, &before);
    check_folder(dir, second, 5, 4);
    check_ok(dr_safetensors_folder_write(dir, first, 5, 1 << 20));
    check_folder(dir, first, 5, 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_accepted),        cmocka_unit_test(test_refused_headers),
        cmocka_unit_test(test_refused_lengths), cmocka_unit_test(test_conversion),
        cmocka_unit_test(test_written),         cmocka_unit_test(test_short_types),
        cmocka_unit_test(test_file_size_limit), cmocka_unit_test(test_full_disk),
        cmocka_unit_test(test_damage),          cmocka_unit_test(test_index),
        cmocka_unit_test(test_shards),          cmocka_unit_test(test_fed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
