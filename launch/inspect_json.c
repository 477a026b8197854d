// JSON files of ours and of Hugging Face folders, JSON lines, and training configurations.
#include <float.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/config.h"
#include "core/base/file.h"
#include "core/base/json.h"
#include "launch/inspect.h"
#include "launch/settings.h"

static void print_value(const json_t *value) {
    switch (json_typeof(value)) {
    case JSON_STRING:
        printf("\"%.100s\"\n", json_string_value(value));
        return;
    case JSON_INTEGER:
        printf("%lld\n", (long long)json_integer_value(value));
        return;
    case JSON_REAL:
        printf("%.9g\n", json_real_value(value));
        return;
    case JSON_OBJECT:
        printf("an object of %zu\n", json_object_size(value));
        return;
    case JSON_ARRAY:
        printf("a list of %zu\n", json_array_size(value));
        return;
    default:
        printf("%s\n", dr_json_type_name(value));
        return;
    }
}

static void print_members(const json_t *object, const char *indent) {
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)object, key, value) {
        printf("%s%-28s ", indent, key);
        print_value(value);
    }
}

// tokenizer.json: kind of model, sizes, added tokens.
static dr_status print_tokenizer(const json_t *root, const char *path) {
    json_t *model = NULL, *added = NULL;
    const char *type = NULL;
    DR_TRY(dr_json_object(root, path, "model", &model));
    DR_TRY(dr_json_array(root, path, "added_tokens", &added));
    DR_TRY(dr_json_string_or(model, path, "type", "unnamed", &type));
    printf("%s: tokenizer\n  %s, %zu tokens, %zu merges, %zu added tokens\n", path, type,
           json_object_size(json_object_get(model, "vocab")),
           json_array_size(json_object_get(model, "merges")), json_array_size(added));
    for (size_t i = 0; i < json_array_size(added); i++) {
        const char *content = NULL;
        int64_t id = 0;
        DR_TRY(dr_json_string(json_array_get(added, i), path, "content", &content));
        DR_TRY(dr_json_i64(json_array_get(added, i), path, "id", 0, INT32_MAX, &id));
        printf("  %6lld %s\n", (long long)id, content);
    }
    return DR_OK;
}

dr_status dr_inspect_json(const char *path) {
    json_t *root = NULL;
    DR_TRY(dr_json_load(path, &root));
    dr_status status = DR_OK;
    if (json_object_get(root, "model") && json_object_get(root, "added_tokens")) {
        status = print_tokenizer(root, path);
    } else if (json_is_object(root)) {
        printf("%s: JSON object of %zu\n", path, json_object_size(root));
        print_members(root, "  ");
    } else {
        printf("%s: JSON, ", path);
        print_value(root);
    }
    json_decref(root);
    return status;
}

// First, last, smallest and largest value of one number over the lines of a .jsonl file.
typedef struct series {
    char name[64];
    double first, last, min, max;
    int64_t n;
} series;
enum { MAX_SERIES = 64 };

static void series_add(series *all, int *n_all, const char *name, double value) {
    int at = 0;
    while (at < *n_all && strcmp(all[at].name, name) != 0) at++;
    if (at == MAX_SERIES) return;
    if (at == *n_all) {
        all[at] = (series){.first = value, .min = DBL_MAX, .max = -DBL_MAX};
        snprintf(all[at].name, sizeof all[at].name, "%.63s", name);
        ++*n_all;
    }
    series *s = &all[at];
    s->last = value;
    if (value < s->min) s->min = value;
    if (value > s->max) s->max = value;
    s->n++;
}

static dr_status add_line(const char *path, int64_t line, const char *text, size_t length, series *all,
                          int *n_all, json_t *metrics) {
    char where[600];
    snprintf(where, sizeof where, "%.500s, line %lld", path, (long long)line);
    json_t *root = NULL;
    DR_TRY(dr_json_parse(where, text, length, &root));
    const char *key;
    json_t *value;
    json_object_foreach(root, key, value) if (json_is_number(value))
        series_add(all, n_all, key, json_number_value(value));
    if (dr_inspect_is_metrics(root)) json_array_append(metrics, root);
    json_decref(root);
    return DR_OK;
}

dr_status dr_inspect_json_lines(const char *path) {
    dr_buf text = {0};
    series *all = NULL;
    int n_all = 0;
    int64_t n_lines = 0;
    json_t *metrics = json_array();
    dr_status status = dr_file_read(path, 0, &text);
    if (status == DR_OK) status = dr_alloc(&all, "series", MAX_SERIES, sizeof *all);
    for (size_t at = 0; status == DR_OK && at < text.length;) {
        const char *end = memchr(text.data + at, '\n', text.length - at);
        size_t length = end ? (size_t)(end - (text.data + at)) : text.length - at;
        n_lines++;
        if (length) status = add_line(path, n_lines, text.data + at, length, all, &n_all, metrics);
        at += length + 1;
    }
    if (status == DR_OK) {
        printf("%s: JSON lines, %lld lines\n", path, (long long)n_lines);
        if (n_all) printf("  %-28s %12s %12s %12s %12s\n", "number", "first", "last", "smallest", "largest");
    }
    for (int i = 0; status == DR_OK && i < n_all; i++)
        printf("  %-28s %12.6g %12.6g %12.6g %12.6g\n", all[i].name, all[i].first, all[i].last, all[i].min,
               all[i].max);
    if (status == DR_OK && json_array_size(metrics) > 0) dr_inspect_metrics(metrics);
    json_decref(metrics);
    dr_free(all);
    dr_buf_reset(&text);
    return status;
}

dr_status dr_inspect_settings(const char *path) {
    dr_config *config = NULL;
    dr_buf text = {0};
    uint64_t hash = 0;
    DR_TRY(dr_settings_read(path, NULL, 0, 0, &config));
    dr_status status = dr_config_hash(config, &hash);
    if (status == DR_OK) {
        int32_t n = 0;
        const dr_setting *table = dr_config_table(config, &n);
        printf("%s: training configuration, hash %016llx; settings it gives:\n", path,
               (unsigned long long)hash);
        for (int32_t i = 0; i < n; i++)
            if (dr_config_is_given(config, table[i].key)) printf("  %-28s %s\n", table[i].key, table[i].help);
    }
    dr_buf_reset(&text);
    dr_config_destroy(config);
    return status;
}
