// Values beside their table, dump, hash and reference. The YAML reader is config_yaml.c.
#include "core/base/config.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include <xxhash.h>

typedef struct value {
    dr_scalar *elements; // one for scalars
    int32_t n_elements;
    int32_t has_value, is_given;
} value;

struct dr_config {
    const dr_setting *table;
    int32_t n;
    value *values; // [n]
};

static void value_reset(value *v) {
    for (int32_t i = 0; i < v->n_elements; i++) dr_scalar_reset(&v->elements[i]);
    dr_free(v->elements);
    *v = (value){0};
}

static dr_status value_append(value *v, const dr_setting *setting, const char *where, const char *text) {
    dr_scalar scalar = {0};
    DR_TRY(dr_scalar_read(setting, where, text, &scalar));
    dr_status status =
        dr_grow(&v->elements, setting->key, v->n_elements, v->n_elements + 1, sizeof *v->elements);
    if (status != DR_OK) {
        dr_scalar_reset(&scalar);
        return status;
    }
    v->elements[v->n_elements++] = scalar;
    v->has_value = 1;
    return DR_OK;
}

// Text without the blanks around it, copied.
static dr_status trimmed(const char *begin, const char *end, char **out) {
    while (begin < end && isspace((unsigned char)*begin)) begin++;
    while (end > begin && isspace((unsigned char)end[-1])) end--;
    return dr_strndup(out, begin, (size_t)(end - begin));
}

// A list from "a, b", "[a, b]" or "[]".
static dr_status value_split(value *v, const dr_setting *setting, const char *where, const char *text) {
    char *list = NULL;
    DR_TRY(trimmed(text, text + strlen(text), &list));
    size_t length = strlen(list);
    char *begin = list, *end = list + length;
    if (length >= 2 && list[0] == '[' && list[length - 1] == ']') {
        begin++;
        end--;
    }
    while (begin < end && isspace((unsigned char)*begin)) begin++;
    dr_status status = DR_OK;
    v->has_value = 1;
    while (begin < end && status == DR_OK) {
        char *comma = memchr(begin, ',', (size_t)(end - begin)), *element = NULL;
        char *stop = comma ? comma : end;
        status = trimmed(begin, stop, &element);
        if (status == DR_OK) status = value_append(v, setting, where, element);
        dr_free(element);
        begin = comma ? comma + 1 : end;
    }
    dr_free(list);
    return status;
}

static dr_status value_read(value *v, const dr_setting *setting, const char *where, const char *text) {
    return dr_setting_is_list(setting) ? value_split(v, setting, where, text)
                                       : value_append(v, setting, where, text);
}

dr_status dr_config_create(const dr_setting *table, int32_t n, dr_config **out_config) {
    dr_config *config = NULL;
    DR_TRY(dr_alloc(&config, "configuration", 1, sizeof *config));
    dr_status status = dr_alloc(&config->values, "settings", n, sizeof *config->values);
    config->table = table;
    config->n = status == DR_OK ? n : 0;
    for (int32_t i = 0; i < n && status == DR_OK; i++) {
        DR_ASSERT(dr_setting_find(table, n, table[i].key) == i); // a key appears once
        if (!table[i].fallback) continue;
        status = value_read(&config->values[i], &table[i], "built-in default", table[i].fallback);
        DR_ASSERT(status != DR_ERR_ARGUMENT); // the table's own default must pass
    }
    if (status != DR_OK) {
        dr_config_destroy(config);
        return status;
    }
    *out_config = config;
    return DR_OK;
}

void dr_config_destroy(dr_config *config) {
    if (!config) return;
    for (int32_t i = 0; i < config->n; i++) value_reset(&config->values[i]);
    dr_free(config->values);
    dr_free(config);
}

dr_status dr_config_copy(const dr_config *config, dr_config **out_copy) {
    dr_config *copy = NULL;
    DR_TRY(dr_config_create(config->table, config->n, &copy));
    dr_status status = DR_OK;
    for (int32_t i = 0; i < config->n && status == DR_OK; i++) {
        const value *from = &config->values[i];
        value *to = &copy->values[i];
        value_reset(to);
        status = dr_alloc(&to->elements, config->table[i].key, from->n_elements, sizeof *to->elements);
        for (int32_t k = 0; k < from->n_elements && status == DR_OK; k++) {
            dr_scalar scalar = from->elements[k];
            if (scalar.text) status = dr_strdup(&scalar.text, from->elements[k].text);
            if (status == DR_OK) to->elements[to->n_elements++] = scalar;
        }
        to->has_value = from->has_value;
        to->is_given = from->is_given;
    }
    if (status != DR_OK) {
        dr_config_destroy(copy);
        return status;
    }
    *out_copy = copy;
    return DR_OK;
}

void dr_config_swap(dr_config *config, dr_config *source) {
    DR_ASSERT(config->table == source->table && config->n == source->n);
    value *kept = config->values;
    config->values = source->values;
    source->values = kept;
}

const dr_setting *dr_config_table(const dr_config *config, int32_t *out_n) {
    *out_n = config->n;
    return config->table;
}

static dr_status unknown_key(const dr_config *config, const char *where, const char *key) {
    const char *nearest = dr_setting_nearest(config->table, config->n, key);
    return DR_FAIL(DR_ERR_ARGUMENT, "%s: unknown setting '%.80s'; the nearest known one is '%s'", where, key,
                   nearest ? nearest : "(there is none)");
}

dr_status dr_config_set(dr_config *config, const char *where, const char *key, const char *text) {
    int32_t at = dr_setting_find(config->table, config->n, key);
    if (at < 0) return unknown_key(config, where, key);
    value fresh = {0};
    dr_status status = value_read(&fresh, &config->table[at], where, text);
    if (status != DR_OK) {
        value_reset(&fresh);
        return status;
    }
    fresh.is_given = 1;
    value_reset(&config->values[at]);
    config->values[at] = fresh;
    return DR_OK;
}

dr_status dr_config_append(dr_config *config, const char *where, const char *key, const char *text) {
    int32_t at = dr_setting_find(config->table, config->n, key);
    if (at < 0) return unknown_key(config, where, key);
    const dr_setting *setting = &config->table[at];
    DR_CHECK(dr_setting_is_list(setting), DR_ERR_ARGUMENT, "%s: '%s' takes one value", where, key);
    value *v = &config->values[at];
    if (!v->is_given) {
        value fresh = {.is_given = 1, .has_value = 1};
        dr_status status = text ? value_append(&fresh, setting, where, text) : DR_OK;
        if (status != DR_OK) {
            value_reset(&fresh);
            return status;
        }
        value_reset(v);
        *v = fresh;
        return DR_OK;
    }
    return text ? value_append(v, setting, where, text) : DR_OK;
}

dr_status dr_config_override(dr_config *config, const char *assignment) {
    const char *equals = strchr(assignment, '=');
    if (!equals || equals == assignment)
        return DR_FAIL(DR_ERR_ARGUMENT, "--set: expected key=value, found '%.80s'", assignment);
    char *key = NULL, where[128];
    DR_TRY(trimmed(assignment, equals, &key));
    snprintf(where, sizeof where, "--set %.100s", assignment);
    dr_status status = dr_config_set(config, where, key, equals + 1);
    dr_free(key);
    return status;
}

dr_status dr_config_complete(const dr_config *config, const char *where) {
    dr_buf missing = {0};
    dr_status status = DR_OK;
    for (int32_t i = 0; i < config->n && status == DR_OK; i++)
        if (!config->values[i].has_value)
            status = dr_buf_printf(&missing, "%s'%s'", missing.length ? ", " : "", config->table[i].key);
    if (status == DR_OK && missing.length)
        status = DR_FAIL(DR_ERR_ARGUMENT, "%s: no value for %s", where, missing.data);
    dr_buf_reset(&missing);
    return status;
}

static const value *value_of(const dr_config *config, const char *key, dr_value_type type) {
    int32_t at = dr_setting_find(config->table, config->n, key);
    if (at < 0 || config->table[at].type != type || !config->values[at].has_value)
        dr_assert_failed(key, "setting asked for by a wrong key or type, or without a value", 0);
    return &config->values[at];
}

int64_t dr_config_int(const dr_config *config, const char *key) {
    return value_of(config, key, DR_VALUE_INT)->elements[0].integer;
}

double dr_config_float(const dr_config *config, const char *key) {
    return value_of(config, key, DR_VALUE_FLOAT)->elements[0].number;
}

int dr_config_bool(const dr_config *config, const char *key) {
    return value_of(config, key, DR_VALUE_BOOL)->elements[0].integer != 0;
}

const char *dr_config_string(const dr_config *config, const char *key) {
    return value_of(config, key, DR_VALUE_STRING)->elements[0].text;
}

int32_t dr_config_choice(const dr_config *config, const char *key) {
    return (int32_t)value_of(config, key, DR_VALUE_CHOICE)->elements[0].integer;
}

const char *dr_config_choice_name(const dr_config *config, const char *key, char out[64]) {
    int32_t index = dr_config_choice(config, key);
    const char *choices = config->table[dr_setting_find(config->table, config->n, key)].choices;
    for (; index > 0; index--) choices += strcspn(choices, "|") + 1;
    snprintf(out, 64, "%.*s", (int)strcspn(choices, "|"), choices);
    return out;
}

int32_t dr_config_count(const dr_config *config, const char *key) {
    int32_t at = dr_setting_find(config->table, config->n, key);
    DR_ASSERT(at >= 0 && dr_setting_is_list(&config->table[at]));
    return config->values[at].n_elements;
}

static const dr_scalar *element_of(const dr_config *config, const char *key, dr_value_type type,
                                   int32_t index) {
    const value *v = value_of(config, key, type);
    DR_ASSERT(index >= 0 && index < v->n_elements);
    return &v->elements[index];
}

int64_t dr_config_int_at(const dr_config *config, const char *key, int32_t index) {
    return element_of(config, key, DR_VALUE_INT_LIST, index)->integer;
}

double dr_config_float_at(const dr_config *config, const char *key, int32_t index) {
    return element_of(config, key, DR_VALUE_FLOAT_LIST, index)->number;
}

const char *dr_config_string_at(const dr_config *config, const char *key, int32_t index) {
    return element_of(config, key, DR_VALUE_STRING_LIST, index)->text;
}

int dr_config_has(const dr_config *config, const char *key) {
    int32_t at = dr_setting_find(config->table, config->n, key);
    DR_ASSERT(at >= 0);
    return config->values[at].has_value;
}

int dr_config_is_given(const dr_config *config, const char *key) {
    int32_t at = dr_setting_find(config->table, config->n, key);
    DR_ASSERT(at >= 0);
    return config->values[at].is_given;
}

static dr_status write_value(const dr_config *config, int32_t at, dr_buf *out) {
    const dr_setting *setting = &config->table[at];
    const value *v = &config->values[at];
    if (!dr_setting_is_list(setting)) return dr_scalar_write(setting, &v->elements[0], out);
    DR_TRY(dr_buf_text(out, "["));
    for (int32_t i = 0; i < v->n_elements; i++) {
        if (i) DR_TRY(dr_buf_text(out, ", "));
        DR_TRY(dr_scalar_write(setting, &v->elements[i], out));
    }
    return dr_buf_text(out, "]");
}

// Bytes of the section part: "train" of "train.lr"; 0 when the key has no section.
static size_t section_length(const char *key) {
    const char *dot = strrchr(key, '.');
    return dot ? (size_t)(dot - key) : 0;
}

static int same_section(const char *a, const char *b) {
    size_t length = section_length(a);
    return length == section_length(b) && memcmp(a, b, length) == 0;
}

// Writes the keys of one section; a dotted section ("stage.cold") stays a dotted key, which the reader takes
// as well.
static dr_status dump_section(const dr_config *config, int32_t first, dr_buf *out) {
    const char *key = config->table[first].key;
    size_t length = section_length(key);
    int has_any = 0;
    for (int32_t i = first; i < config->n; i++) {
        if (!same_section(key, config->table[i].key) || !config->values[i].has_value) continue;
        if (!has_any && length) DR_TRY(dr_buf_printf(out, "%.*s:\n", (int)length, key));
        has_any = 1;
        DR_TRY(dr_buf_printf(out, "%s%s: ", length ? "  " : "",
                             config->table[i].key + (length ? length + 1 : 0)));
        DR_TRY(write_value(config, i, out));
        DR_TRY(dr_buf_text(out, "\n"));
    }
    return DR_OK;
}

// True when an earlier row has opened this row's section already.
static int section_seen(const dr_setting *table, int32_t at) {
    for (int32_t i = 0; i < at; i++)
        if (same_section(table[i].key, table[at].key)) return 1;
    return 0;
}

dr_status dr_config_dump(const dr_config *config, dr_buf *out) {
    for (int32_t i = 0; i < config->n; i++)
        if (!section_seen(config->table, i)) DR_TRY(dump_section(config, i, out));
    return DR_OK;
}

dr_status dr_config_hash(const dr_config *config, uint64_t *out_hash) {
    dr_buf text = {0};
    dr_status status = DR_OK;
    for (int32_t i = 0; i < config->n && status == DR_OK; i++) {
        if (config->table[i].is_free || !config->values[i].has_value) continue;
        status = dr_buf_printf(&text, "%s=", config->table[i].key);
        if (status == DR_OK) status = write_value(config, i, &text);
        if (status == DR_OK) status = dr_buf_text(&text, "\n");
    }
    if (status == DR_OK) *out_hash = XXH64(text.data, text.length, 0);
    dr_buf_reset(&text);
    return status;
}

static dr_status reference_row(const dr_setting *setting, dr_buf *out) {
    char expected[256];
    dr_setting_expected(setting, expected);
    size_t length = section_length(setting->key);
    DR_TRY(dr_buf_printf(out, "| `%s` | ", setting->key + (length ? length + 1 : 0)));
    for (const char *c = expected; *c; c++) // a bar inside a table cell must be escaped
        DR_TRY(*c == '|' ? dr_buf_text(out, ", ") : dr_buf_append(out, c, 1));
    if (setting->unit && setting->unit[0]) DR_TRY(dr_buf_printf(out, " (%s)", setting->unit));
    if (!setting->fallback)
        DR_TRY(dr_buf_text(out, " | none: must be given | "));
    else if (setting->fallback[0] == '\0')
        DR_TRY(dr_buf_text(out, " | empty | "));
    else
        DR_TRY(dr_buf_printf(out, " | `%s` | ", setting->fallback));
    return dr_buf_printf(out, "%s |\n", setting->help);
}

dr_status dr_settings_reference(const dr_setting *table, int32_t n, dr_buf *out) {
    for (int32_t first = 0; first < n; first++) {
        if (section_seen(table, first)) continue;
        size_t length = section_length(table[first].key);
        DR_TRY(dr_buf_printf(out, "%s## %.*s\n\n| setting | value | default | meaning |\n|---|---|---|---|\n",
                             out->length ? "\n" : "", length ? (int)length : 7,
                             length ? table[first].key : "general"));
        for (int32_t i = first; i < n; i++)
            if (same_section(table[first].key, table[i].key)) DR_TRY(reference_row(&table[i], out));
    }
    return DR_OK;
}
