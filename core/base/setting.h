// One typed setting as a table row, and the reading of its value from text. Configuration files, --set
// overrides and command-line options are all rows of such tables, so their checks, help and reference come
// from one place.
#ifndef DR_CORE_BASE_SETTING_H
#define DR_CORE_BASE_SETTING_H

#include <stddef.h>
#include <stdint.h>

#include "core/base/alloc.h"
#include "core/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum dr_value_type {
    DR_VALUE_INT,
    DR_VALUE_FLOAT,
    DR_VALUE_BOOL,
    DR_VALUE_STRING,
    DR_VALUE_CHOICE,
    DR_VALUE_INT_LIST,
    DR_VALUE_FLOAT_LIST,
    DR_VALUE_STRING_LIST
} dr_value_type;

// All text is static. `fallback` is the default as one would write it ("0.2", "true", "[5, 10]"); NULL: must
// be given. min and max hold for numbers and for each number of a list; both 0: no limits. choices: "a|b|c".
typedef struct dr_setting {
    const char *key; // "section.name", or an option's name without the dashes
    dr_value_type type;
    const char *fallback;
    double min, max;
    const char *choices;
    const char *unit; // "tokens", "s", …, for text its kind, or ""
    const char *help;
    int32_t is_free; // 1: has no effect on results (paths, intervals), so it stays out of dr_config_hash
} dr_setting;

// Rows of a table, in the order key, default, limits or choices, unit, help.
#define DR_INT(key, fallback, min, max, unit, help)                                                          \
    { key, DR_VALUE_INT, fallback, min, max, NULL, unit, help, 0 }
#define DR_FLOAT(key, fallback, min, max, unit, help)                                                        \
    { key, DR_VALUE_FLOAT, fallback, min, max, NULL, unit, help, 0 }
#define DR_BOOL(key, fallback, help)                                                                         \
    { key, DR_VALUE_BOOL, fallback, 0, 0, NULL, "", help, 0 }
#define DR_STRING(key, fallback, help)                                                                       \
    { key, DR_VALUE_STRING, fallback, 0, 0, NULL, "", help, 0 }
#define DR_CHOICE(key, fallback, choices, help)                                                              \
    { key, DR_VALUE_CHOICE, fallback, 0, 0, choices, "", help, 0 }
#define DR_INT_LIST(key, fallback, min, max, unit, help)                                                     \
    { key, DR_VALUE_INT_LIST, fallback, min, max, NULL, unit, help, 0 }
#define DR_FLOAT_LIST(key, fallback, min, max, unit, help)                                                   \
    { key, DR_VALUE_FLOAT_LIST, fallback, min, max, NULL, unit, help, 0 }
#define DR_STRING_LIST(key, fallback, help)                                                                  \
    { key, DR_VALUE_STRING_LIST, fallback, 0, 0, NULL, "", help, 0 }
// Text whose kind is worth a word: "FILE", "FOLDER", "KEY=VALUE"; the help shows it in place of the value.
#define DR_TEXT(key, fallback, kind, help)                                                                   \
    { key, DR_VALUE_STRING, fallback, 0, 0, NULL, kind, help, 0 }
#define DR_TEXT_LIST(key, fallback, kind, help)                                                              \
    { key, DR_VALUE_STRING_LIST, fallback, 0, 0, NULL, kind, help, 0 }

// The same for settings that do not affect results.
#define DR_FREE_INT(key, fallback, min, max, unit, help)                                                     \
    { key, DR_VALUE_INT, fallback, min, max, NULL, unit, help, 1 }
#define DR_FREE_FLOAT(key, fallback, min, max, unit, help)                                                   \
    { key, DR_VALUE_FLOAT, fallback, min, max, NULL, unit, help, 1 }
#define DR_FREE_BOOL(key, fallback, help)                                                                    \
    { key, DR_VALUE_BOOL, fallback, 0, 0, NULL, "", help, 1 }
#define DR_FREE_STRING(key, fallback, help)                                                                  \
    { key, DR_VALUE_STRING, fallback, 0, 0, NULL, "", help, 1 }

// One scalar. Numbers: which one holds follows from the setting's type.
typedef struct dr_scalar {
    int64_t integer; // INT, BOOL (0 or 1), CHOICE (index into choices)
    double number;   // FLOAT
    char *text;      // STRING: owned; NULL otherwise
} dr_scalar;

// Reads one scalar (for a list: one element). `where` begins the error text ("run.yaml:12", "--set").
// DR_ERR_ARGUMENT names where, key, expected (type, range, choices) and found.
dr_status dr_scalar_read(const dr_setting *setting, const char *where, const char *text, dr_scalar *out);
void dr_scalar_reset(dr_scalar *scalar);

// Appends the scalar as YAML: shortest digits that read back to the same number, strings in double quotes.
dr_status dr_scalar_write(const dr_setting *setting, const dr_scalar *scalar, dr_buf *out);

// "an integer from 1 to 64", "one of full, compact", "a list of numbers", … into out.
void dr_setting_expected(const dr_setting *setting, char out[256]);
int dr_setting_is_list(const dr_setting *setting);

// Row with that key, or -1.
int32_t dr_setting_find(const dr_setting *table, int32_t n, const char *key);

// The name most like `wanted` (edit distance; a match of the part after the last dot counts as near), or NULL
// if n is 0.
const char *dr_nearest_name(const char *wanted, const char *const *names, int32_t n);
const char *dr_setting_nearest(const dr_setting *table, int32_t n, const char *wanted);

#ifdef __cplusplus
}
#endif
#endif
