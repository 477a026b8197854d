// Error texts for jansson.
#include "core/base/json.h"

#include <math.h>
#include <string.h>

#include "core/base/alloc.h"
#include "core/base/file.h"

static dr_status parse(const char *where, const char *bytes, size_t length, size_t flags, json_t **out_root) {
    json_error_t error;
    json_t *root = json_loadb(bytes, length, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY | flags, &error);
    if (!root)
        return DR_FAIL(DR_ERR_FORMAT, "%s:%d:%d: not valid JSON: %s", where, error.line < 1 ? 1 : error.line,
                       error.column < 0 ? 0 : error.column, error.text);
    *out_root = root;
    return DR_OK;
}

dr_status dr_json_parse(const char *where, const char *bytes, size_t length, json_t **out_root) {
    return parse(where, bytes, length, 0, out_root);
}

static dr_status load(const char *path, size_t flags, json_t **out_root) {
    dr_buf bytes = {0};
    dr_status status = dr_file_read(path, 0, &bytes);
    if (status == DR_OK) status = parse(path, bytes.data, bytes.length, flags, out_root);
    dr_buf_reset(&bytes);
    return status;
}

dr_status dr_json_load(const char *path, json_t **out_root) {
    return load(path, 0, out_root);
}

dr_status dr_json_load_reals(const char *path, json_t **out_root) {
    return load(path, JSON_DECODE_INT_AS_REAL, out_root);
}

static int append_piece(const char *piece, size_t length, void *user) {
    return dr_buf_append((dr_buf *)user, piece, length) == DR_OK ? 0 : -1;
}

dr_status dr_json_save(const json_t *root, const char *path) {
    dr_buf text = {0};
    dr_status status = DR_OK;
    if (json_dump_callback(root, append_piece, &text, JSON_INDENT(2) | JSON_SORT_KEYS | JSON_ENCODE_ANY) != 0)
        status = DR_FAIL(DR_ERR_INTERNAL, "%s: the value cannot be written as JSON", path);
    if (status == DR_OK) status = dr_buf_text(&text, "\n");
    if (status == DR_OK) status = dr_file_replace(path, text.data, text.length);
    dr_buf_reset(&text);
    return status;
}

dr_status dr_json_save_in(json_t *root, const char *dir, const char *name) {
    char *path = NULL;
    DR_CHECK(root, DR_ERR_MEMORY, "%s/%s: cannot build", dir, name);
    dr_status status = dr_path_join(&path, dir, name);
    if (status == DR_OK) status = dr_json_save(root, path);
    json_decref(root);
    dr_free(path);
    return status;
}

const char *dr_json_type_name(const json_t *value) {
    if (!value) return "nothing";
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "an array";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
        return "an integer";
    case JSON_REAL:
        return "a number with a fraction";
    case JSON_TRUE:
        return "true";
    case JSON_FALSE:
        return "false";
    case JSON_NULL:
        return "null";
    }
    return "an unknown type";
}

// The member, or NULL when it is missing or null and may be.
static dr_status member(const json_t *object, const char *where, const char *key, const char *expected,
                        int is_optional, json_t **out) {
    if (!json_is_object(object))
        return DR_FAIL(DR_ERR_FORMAT, "%s: expected an object with '%s', found %s", where, key,
                       dr_json_type_name(object));
    json_t *value = json_object_get(object, key);
    if (is_optional && (!value || json_is_null(value))) {
        *out = NULL;
        return DR_OK;
    }
    if (!value) return DR_FAIL(DR_ERR_FORMAT, "%s: '%s' is missing, expected %s", where, key, expected);
    *out = value;
    return DR_OK;
}

static dr_status wrong_type(const char *where, const char *key, const char *expected, const json_t *value) {
    if (json_is_string(value))
        return DR_FAIL(DR_ERR_FORMAT, "%s: '%s': expected %s, found the string \"%.60s\"", where, key,
                       expected, json_string_value(value));
    return DR_FAIL(DR_ERR_FORMAT, "%s: '%s': expected %s, found %s", where, key, expected,
                   dr_json_type_name(value));
}

static dr_status i64_of(const json_t *value, const char *where, const char *key, int64_t min, int64_t max,
                        int64_t *out) {
    if (!json_is_integer(value)) return wrong_type(where, key, "an integer", value);
    int64_t number = (int64_t)json_integer_value(value);
    if (number < min || number > max)
        return DR_FAIL(DR_ERR_FORMAT, "%s: '%s': expected an integer from %lld to %lld, found %lld", where,
                       key, (long long)min, (long long)max, (long long)number);
    *out = number;
    return DR_OK;
}

static dr_status f64_of(const json_t *value, const char *where, const char *key, double min, double max,
                        double *out) {
    if (!json_is_number(value)) return wrong_type(where, key, "a number", value);
    double number = json_number_value(value);
    if (!(number >= min && number <= max) || isnan(number))
        return DR_FAIL(DR_ERR_FORMAT, "%s: '%s': expected a number from %g to %g, found %g", where, key, min,
                       max, number);
    *out = number;
    return DR_OK;
}

static dr_status bool_of(const json_t *value, const char *where, const char *key, int *out) {
    if (!json_is_boolean(value)) return wrong_type(where, key, "true or false", value);
    *out = json_is_true(value);
    return DR_OK;
}

static dr_status string_of(const json_t *value, const char *where, const char *key, const char **out) {
    if (!json_is_string(value)) return wrong_type(where, key, "a string", value);
    if (strlen(json_string_value(value)) != json_string_length(value))
        return DR_FAIL(DR_ERR_FORMAT, "%s: '%s': the string contains a NUL character", where, key);
    *out = json_string_value(value);
    return DR_OK;
}

dr_status dr_json_i64(const json_t *object, const char *where, const char *key, int64_t min, int64_t max,
                      int64_t *out) {
    json_t *value = NULL;
    DR_TRY(member(object, where, key, "an integer", 0, &value));
    return i64_of(value, where, key, min, max, out);
}

dr_status dr_json_f64(const json_t *object, const char *where, const char *key, double min, double max,
                      double *out) {
    json_t *value = NULL;
    DR_TRY(member(object, where, key, "a number", 0, &value));
    return f64_of(value, where, key, min, max, out);
}

dr_status dr_json_bool(const json_t *object, const char *where, const char *key, int *out) {
    json_t *value = NULL;
    DR_TRY(member(object, where, key, "true or false", 0, &value));
    return bool_of(value, where, key, out);
}

dr_status dr_json_string(const json_t *object, const char *where, const char *key, const char **out) {
    json_t *value = NULL;
    DR_TRY(member(object, where, key, "a string", 0, &value));
    return string_of(value, where, key, out);
}

dr_status dr_json_array(const json_t *object, const char *where, const char *key, json_t **out) {
    json_t *value = NULL;
    DR_TRY(member(object, where, key, "an array", 0, &value));
    if (!json_is_array(value)) return wrong_type(where, key, "an array", value);
    *out = value;
    return DR_OK;
}

dr_status dr_json_object(const json_t *object, const char *where, const char *key, json_t **out) {
    json_t *value = NULL;
    DR_TRY(member(object, where, key, "an object", 0, &value));
    if (!json_is_object(value)) return wrong_type(where, key, "an object", value);
    *out = value;
    return DR_OK;
}

dr_status dr_json_i64_or(const json_t *object, const char *where, const char *key, int64_t min, int64_t max,
                         int64_t fallback, int64_t *out) {
    json_t *value = NULL;
    DR_TRY(member(object, where, key, "an integer", 1, &value));
    if (value) return i64_of(value, where, key, min, max, out);
    *out = fallback;
    return DR_OK;
}

dr_status dr_json_f64_or(const json_t *object, const char *where, const char *key, double min, double max,
                         double fallback, double *out) {
    json_t *value = NULL;
    DR_TRY(member(object, where, key, "a number", 1, &value));
    if (value) return f64_of(value, where, key, min, max, out);
    *out = fallback;
    return DR_OK;
}

dr_status dr_json_bool_or(const json_t *object, const char *where, const char *key, int fallback, int *out) {
    json_t *value = NULL;
    DR_TRY(member(object, where, key, "true or false", 1, &value));
    if (value) return bool_of(value, where, key, out);
    *out = fallback;
    return DR_OK;
}

dr_status dr_json_string_or(const json_t *object, const char *where, const char *key, const char *fallback,
                            const char **out) {
    json_t *value = NULL;
    DR_TRY(member(object, where, key, "a string", 1, &value));
    if (value) return string_of(value, where, key, out);
    *out = fallback;
    return DR_OK;
}
