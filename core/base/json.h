// Reading JSON with errors a user can act on: file, line and column for syntax; key, expected and found for
// types. A thin layer over jansson: values stay json_t, borrowed from their parent as there.
#ifndef DR_CORE_BASE_JSON_H
#define DR_CORE_BASE_JSON_H

#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

#include "core/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

// Reads one JSON value (duplicate keys refused). The caller owns *out_root: json_decref.
dr_status dr_json_load(const char *path, json_t **out_root);

// The same with each number as a real: integers may have any number of digits.
dr_status dr_json_load_reals(const char *path, json_t **out_root);

// The same from memory; `where` names the source in errors ("model.safetensors header").
dr_status dr_json_parse(const char *where, const char *bytes, size_t length, json_t **out_root);

// Writes indented JSON with sorted keys by dr_file_replace.
dr_status dr_json_save(const json_t *root, const char *path);
// The same as dir/name. Takes `root` over and releases it whatever happens; NULL: DR_ERR_MEMORY, it could not
// be built.
dr_status dr_json_save_in(json_t *root, const char *dir, const char *name);

// Typed members of an object. `where` names the file in errors. DR_ERR_FORMAT when `object` is not an object,
// the key is missing, its type is another, or the number is outside [min, max]; the text names where, key,
// expected and found.
dr_status dr_json_i64(const json_t *object, const char *where, const char *key, int64_t min, int64_t max,
                      int64_t *out);
dr_status dr_json_f64(const json_t *object, const char *where, const char *key, double min, double max,
                      double *out);
dr_status dr_json_bool(const json_t *object, const char *where, const char *key, int *out);
dr_status dr_json_string(const json_t *object, const char *where, const char *key,
                         const char **out);                                                       // borrowed
dr_status dr_json_array(const json_t *object, const char *where, const char *key, json_t **out);  // borrowed
dr_status dr_json_object(const json_t *object, const char *where, const char *key, json_t **out); // borrowed

// As above, but a missing key or null gives `fallback`; another type is still an error.
dr_status dr_json_i64_or(const json_t *object, const char *where, const char *key, int64_t min, int64_t max,
                         int64_t fallback, int64_t *out);
dr_status dr_json_f64_or(const json_t *object, const char *where, const char *key, double min, double max,
                         double fallback, double *out);
dr_status dr_json_bool_or(const json_t *object, const char *where, const char *key, int fallback, int *out);
dr_status dr_json_string_or(const json_t *object, const char *where, const char *key, const char *fallback,
                            const char **out);

// "an object", "a string", … for error texts; "nothing" for NULL.
const char *dr_json_type_name(const json_t *value);

#ifdef __cplusplus
}
#endif
#endif
