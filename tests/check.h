// What the tests share: cmocka's headers in the order it wants, and a tensor comparer that fails with the
// facts.
#ifndef DR_TESTS_CHECK_H
#define DR_TESTS_CHECK_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "core/base/status.h"

// Fails unless |got[i] - want[i]| <= absolute + relative * |want[i]| for all i; names the worst element and
// how much of the tolerance it used. NaN never passes.
void check_close(const char *name, const float *got, const float *want, int64_t n, double absolute,
                 double relative);

// Fails unless sqrt(Σ(got-want)²/Σwant²) <= limit.
void check_relative_error(const char *name, const float *got, const float *want, int64_t n, double limit);

// Fails unless the n floats are equal bit for bit.
void check_same_bits(const char *name, const float *got, const float *want, int64_t n);

// Fails unless status is `expected` and, when text is not NULL, dr_last_error() contains it.
void check_error(dr_status status, dr_status expected, const char *text);

#define check_ok(call) assert_int_equal((call), DR_OK)

// Makes a fresh folder under the system's scratch place; the path is in static storage of 8 rotating slots.
const char *check_scratch_dir(void);
// dir/name in static storage of 16 rotating slots.
const char *check_path(const char *dir, const char *name);
// The same of tests/golden, or of $DR_GOLDEN_DIR where a program runs elsewhere than it was built.
const char *check_golden(const char *name);
// Whole file as bytes; fails when it can't be read. Free with free().
char *check_read_file(const char *path, size_t *out_length);
void check_write_file(const char *path, const void *bytes, size_t length);

#endif
