// The folder of DeepRec's authors: {"idx", "history", "target"} lines, and meta.json with
// {"id": {"title", "categories" or "category"}}. A test line holds the user's last items and the last target:
// its sequence.
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/base/json.h"
#include "datasets/json_lines.h"
#include "datasets/lines.h"
#include "datasets/source.h"

typedef struct reader {
    dr_builder *b;
    dr_buf text;
} reader;

static dr_status read_meta(reader *r, const char *path) {
    json_t *root = NULL, *entry;
    const char *key;
    DR_TRY(dr_json_load(path, &root));
    dr_status status = DR_OK;
    json_object_foreach(root, key, entry) {
        const char *title = json_string_value(json_object_get(entry, "title"));
        const json_t *categories = json_object_get(entry, "categories");
        if (!categories) categories = json_object_get(entry, "category");
        if ((status = dr_categories_from_json(categories, &r->text)) != DR_OK) break;
        dr_builder_good_row(r->b);
        if ((status = dr_builder_item(r->b, key, title ? title : "", r->text.data)) != DR_OK) break;
    }
    json_decref(root);
    return status;
}

// The test line of a user holds its last items and the last target: one sequence a line.
static dr_status read_example(void *context, const char *path, int64_t number, char *line) {
    reader *r = context;
    json_t *root = json_loads(line, 0, NULL), *history = json_object_get(root, "history"),
           *target = json_object_get(root, "target"), *idx = json_object_get(root, "idx");
    char user[64], item[32];
    dr_status status = DR_OK;
    bool good = json_is_array(history) && json_is_integer(target) &&
                (json_is_integer(idx) || (json_is_string(idx) && json_string_length(idx) < sizeof user));
    for (size_t i = 0; good && i < json_array_size(history); i++)
        good = json_is_integer(json_array_get(history, i));
    if (!good) {
        dr_builder_bad_row(r->b, path, number, "{\"idx\", \"history\", \"target\"}", line);
    } else {
        int64_t t = 0;
        if (json_is_string(idx))
            snprintf(user, sizeof user, "%s", json_string_value(idx));
        else
            snprintf(user, sizeof user, "%lld", (long long)json_integer_value(idx));
        dr_builder_good_row(r->b);
        for (size_t i = 0; i <= json_array_size(history) && status == DR_OK; i++) {
            json_t *value = i < json_array_size(history) ? json_array_get(history, i) : target;
            if (json_integer_value(value) == 0) continue; // 0 pads
            snprintf(item, sizeof item, "%lld", (long long)json_integer_value(value));
            status = dr_builder_event(r->b, user, item, NAN, (double)t++);
        }
    }
    json_decref(root);
    return status;
}

dr_status dr_source_authors(const dr_source_input *input, dr_builder *b) {
    reader r = {.b = b};
    char *meta = NULL, *test = NULL;
    dr_status status = dr_source_path(input->dir, "meta.json", input->item_file, &meta);
    if (status == DR_OK) status = dr_source_path(input->dir, "test_id.jsonl", input->interactions, &test);
    if (status == DR_OK) status = read_meta(&r, meta);
    if (status == DR_OK) status = dr_lines_read(test, read_example, &r);
    dr_free(meta);
    dr_free(test);
    dr_buf_reset(&r.text);
    return status;
}
