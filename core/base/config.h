// Effective settings of a run: defaults of one table, then YAML files, then key=value overrides, each checked
// as it is read. Also writes them back as YAML, hashes them, and makes the reference page.
#ifndef DR_CORE_BASE_CONFIG_H
#define DR_CORE_BASE_CONFIG_H

#include <stddef.h>
#include <stdint.h>

#include "core/base/alloc.h"
#include "core/base/setting.h"
#include "core/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct dr_config dr_config;

// Starts with the defaults. The table is borrowed and must outlive the object; a table with a bad default or
// a key twice is our bug (assertion).
dr_status dr_config_create(const dr_setting *table, int32_t n, dr_config **out_config);
void dr_config_destroy(dr_config *config);

// Reads YAML over what is there: nested maps become dotted keys ("train:\n  lr: 1e-4" sets train.lr),
// sequences fill lists. Refused with file, line and column: syntax, an unknown key (with the nearest known
// one), a value of another type or out of range, the same key twice in one file, aliases, tags, more than one
// document. All or nothing: after an error the configuration is as it was.
dr_status dr_config_load(dr_config *config, const char *path);
dr_status dr_config_parse(dr_config *config, const char *where, const char *text, size_t length);

// "key=value" as given to --set; lists as "a, b" or "[a, b]".
dr_status dr_config_override(dr_config *config, const char *assignment);

// Sets one value from text; `where` begins the error text. A list's text is split at commas; dr_config_append
// adds one element without splitting (the first call replaces the default).
dr_status dr_config_set(dr_config *config, const char *where, const char *key, const char *text);
dr_status dr_config_append(dr_config *config, const char *where, const char *key, const char *text);

// DR_ERR_ARGUMENT naming the settings without a default that nobody gave; `where` begins the error text.
dr_status dr_config_complete(const dr_config *config, const char *where);

// Values by key. An unknown key, another type, or a missing value is our bug (assertion).
int64_t dr_config_int(const dr_config *config, const char *key);
double dr_config_float(const dr_config *config, const char *key);
int dr_config_bool(const dr_config *config, const char *key);
const char *dr_config_string(const dr_config *config,
                             const char *key);                      // borrowed, until the key is set again
int32_t dr_config_choice(const dr_config *config, const char *key); // index into the row's choices
const char *dr_config_choice_name(const dr_config *config, const char *key,
                                  char out[64]);                   // its text, in `out`
int32_t dr_config_count(const dr_config *config, const char *key); // elements of a list
int64_t dr_config_int_at(const dr_config *config, const char *key, int32_t index);
double dr_config_float_at(const dr_config *config, const char *key, int32_t index);
const char *dr_config_string_at(const dr_config *config, const char *key, int32_t index);
int dr_config_has(const dr_config *config, const char *key);      // a default or a given value
int dr_config_is_given(const dr_config *config, const char *key); // by a file or an override

// Appends all settings that have a value as YAML, sections as maps; reading it back gives the same
// configuration.
dr_status dr_config_dump(const dr_config *config, dr_buf *out);

// XXH64 of the values that affect results (rows with is_free are left out).
dr_status dr_config_hash(const dr_config *config, uint64_t *out_hash);

// Appends a Markdown reference of a table, one section each.
dr_status dr_settings_reference(const dr_setting *table, int32_t n, dr_buf *out);

// For the YAML reader: replaces all values of `config` by those of `source` (same table), which is left with
// the old ones.
void dr_config_swap(dr_config *config, dr_config *source);
dr_status dr_config_copy(const dr_config *config, dr_config **out_copy);
const dr_setting *dr_config_table(const dr_config *config, int32_t *out_n);

#ifdef __cplusplus
}
#endif
#endif
