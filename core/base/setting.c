// Strict readers: the whole text must be the value, in range; nothing is guessed.
#include "core/base/setting.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int dr_setting_is_list(const dr_setting *setting) {
    return setting->type == DR_VALUE_INT_LIST || setting->type == DR_VALUE_FLOAT_LIST ||
           setting->type == DR_VALUE_STRING_LIST;
}

static dr_value_type element_type(const dr_setting *setting) {
    switch (setting->type) {
    case DR_VALUE_INT_LIST:
        return DR_VALUE_INT;
    case DR_VALUE_FLOAT_LIST:
        return DR_VALUE_FLOAT;
    case DR_VALUE_STRING_LIST:
        return DR_VALUE_STRING;
    default:
        return setting->type;
    }
}

static int has_limits(const dr_setting *setting) {
    return setting->min != 0 || setting->max != 0;
}

static void expected_scalar(const dr_setting *setting, char out[224]) {
    switch (element_type(setting)) {
    case DR_VALUE_INT:
        if (has_limits(setting))
            snprintf(out, 224, "an integer from %.0f to %.0f", setting->min, setting->max);
        else
            snprintf(out, 224, "an integer");
        return;
    case DR_VALUE_FLOAT:
        if (has_limits(setting))
            snprintf(out, 224, "a number from %g to %g", setting->min, setting->max);
        else
            snprintf(out, 224, "a number");
        return;
    case DR_VALUE_BOOL:
        snprintf(out, 224, "true or false");
        return;
    case DR_VALUE_CHOICE:
        snprintf(out, 224, "one of %s", setting->choices);
        return;
    default:
        snprintf(out, 224, "text");
        return;
    }
}

void dr_setting_expected(const dr_setting *setting, char out[256]) {
    char scalar[224];
    expected_scalar(setting, scalar);
    snprintf(out, 256, "%s%s", dr_setting_is_list(setting) ? "a list, each element " : "", scalar);
}

static dr_status refuse(const dr_setting *setting, const char *where, const char *text) {
    char expected[224];
    expected_scalar(setting, expected);
    return DR_FAIL(DR_ERR_ARGUMENT, "%s: '%s': expected %s, found '%.80s'", where, setting->key, expected,
                   text);
}

static int in_limits(const dr_setting *setting, double value) {
    return !has_limits(setting) || (value >= setting->min && value <= setting->max);
}

// Index of text among "a|b|c", or -1.
static int64_t choice_index(const char *choices, const char *text) {
    size_t length = strlen(text);
    for (int64_t index = 0; length > 0; index++) {
        size_t part = strcspn(choices, "|");
        if (part == length && memcmp(choices, text, part) == 0) return index;
        if (choices[part] == '\0') break;
        choices += part + 1;
    }
    return -1;
}

static dr_status read_integer(const dr_setting *setting, const char *where, const char *text, int64_t *out) {
    char *end = NULL;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (text[0] == '\0' || strspn(text, "+-0123456789") != strlen(text) || *end || errno ||
        !in_limits(setting, (double)value))
        return refuse(setting, where, text);
    *out = value;
    return DR_OK;
}

static dr_status read_number(const dr_setting *setting, const char *where, const char *text, double *out) {
    char *end = NULL;
    double value = strtod(text, &end);
    if (text[0] == '\0' || strspn(text, "+-.eE0123456789") != strlen(text) || *end || !isfinite(value) ||
        !in_limits(setting, value))
        return refuse(setting, where, text);
    *out = value;
    return DR_OK;
}

dr_status dr_scalar_read(const dr_setting *setting, const char *where, const char *text, dr_scalar *out) {
    dr_scalar scalar = {0};
    switch (element_type(setting)) {
    case DR_VALUE_INT:
        DR_TRY(read_integer(setting, where, text, &scalar.integer));
        break;
    case DR_VALUE_FLOAT:
        DR_TRY(read_number(setting, where, text, &scalar.number));
        break;
    case DR_VALUE_BOOL:
        scalar.integer = strcmp(text, "true") == 0;
        if (!scalar.integer && strcmp(text, "false") != 0) return refuse(setting, where, text);
        break;
    case DR_VALUE_CHOICE:
        scalar.integer = choice_index(setting->choices, text);
        if (scalar.integer < 0) return refuse(setting, where, text);
        break;
    default:
        DR_TRY(dr_strdup(&scalar.text, text));
        break;
    }
    *out = scalar;
    return DR_OK;
}

void dr_scalar_reset(dr_scalar *scalar) {
    if (!scalar) return;
    dr_free(scalar->text);
    *scalar = (dr_scalar){0};
}

static dr_status write_number(double value, dr_buf *out) {
    char text[40];
    if (value == floor(value) && fabs(value) < 1e9)
        return dr_buf_printf(out, "%.0f", value + 0.0); // never 6e+01
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, value);
        if (strtod(text, NULL) == value) break;
    }
    return dr_buf_text(out, text);
}

static dr_status write_quoted(const char *text, dr_buf *out) {
    DR_TRY(dr_buf_text(out, "\""));
    for (const char *c = text; *c; c++) {
        if (*c == '"' || *c == '\\')
            DR_TRY(dr_buf_printf(out, "\\%c", *c));
        else if ((unsigned char)*c < 0x20 || *c == 0x7f)
            DR_TRY(dr_buf_printf(out, "\\x%02X", (unsigned)(unsigned char)*c));
        else
            DR_TRY(dr_buf_append(out, c, 1));
    }
    return dr_buf_text(out, "\"");
}

static dr_status write_choice(const char *choices, int64_t index, dr_buf *out) {
    for (; index > 0; index--) choices += strcspn(choices, "|") + 1;
    return dr_buf_append(out, choices, strcspn(choices, "|"));
}

dr_status dr_scalar_write(const dr_setting *setting, const dr_scalar *scalar, dr_buf *out) {
    switch (element_type(setting)) {
    case DR_VALUE_INT:
        return dr_buf_printf(out, "%lld", (long long)scalar->integer);
    case DR_VALUE_FLOAT:
        return write_number(scalar->number, out);
    case DR_VALUE_BOOL:
        return dr_buf_text(out, scalar->integer ? "true" : "false");
    case DR_VALUE_CHOICE:
        return write_choice(setting->choices, scalar->integer, out);
    default:
        return write_quoted(scalar->text, out);
    }
}

int32_t dr_setting_find(const dr_setting *table, int32_t n, const char *key) {
    for (int32_t i = 0; i < n; i++)
        if (strcmp(table[i].key, key) == 0) return i;
    return -1;
}

// Edit distance of the first 63 bytes (insert, delete, replace, swap of neighbours each cost 1).
static int edit_distance(const char *a, const char *b) {
    int rows[3][64], n = (int)strnlen(a, 63), m = (int)strnlen(b, 63);
    for (int j = 0; j <= m; j++) rows[0][j] = j;
    for (int i = 1; i <= n; i++) {
        int *now = rows[i % 3], *last = rows[(i - 1) % 3];
        now[0] = i;
        for (int j = 1; j <= m; j++) {
            int best = last[j - 1] + (a[i - 1] != b[j - 1]);
            if (last[j] + 1 < best) best = last[j] + 1;
            if (now[j - 1] + 1 < best) best = now[j - 1] + 1;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] &&
                rows[(i - 2) % 3][j - 2] + 1 < best)
                best = rows[(i - 2) % 3][j - 2] + 1;
            now[j] = best;
        }
    }
    return rows[n % 3][m];
}

static const char *last_part(const char *name) {
    const char *dot = strrchr(name, '.');
    return dot ? dot + 1 : name;
}

static int name_distance(const char *wanted, const char *name) {
    int whole = edit_distance(wanted, name);
    int tail = edit_distance(last_part(wanted), last_part(name)) + 1; // right name, wrong section
    return tail < whole ? tail : whole;
}

const char *dr_nearest_name(const char *wanted, const char *const *names, int32_t n) {
    const char *best = NULL;
    for (int32_t i = 0; i < n; i++)
        if (!best || name_distance(wanted, names[i]) < name_distance(wanted, best)) best = names[i];
    return best;
}

const char *dr_setting_nearest(const dr_setting *table, int32_t n, const char *wanted) {
    const char *best = NULL;
    for (int32_t i = 0; i < n; i++)
        if (!best || name_distance(wanted, table[i].key) < name_distance(wanted, best)) best = table[i].key;
    return best;
}
