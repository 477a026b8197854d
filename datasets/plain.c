// One line a user, "user item item …" in time order, and an item file in one of four forms, told apart by its
// first line: JSON, "id::title::a|b", tabs, or the item list of DeftRec and its relatives (names of the
// columns, then org_id remap_id "title" a|b with spaces between).
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "datasets/json_lines.h"
#include "datasets/lines.h"
#include "datasets/source.h"

typedef struct reader {
    dr_builder *b;
    dr_buf text;
    bool is_list; // the item file is an item list
} reader;

static dr_status item_json(reader *r, const char *path, int64_t number, const char *line) {
    json_t *root = json_loads(line, 0, NULL), *id = json_object_get(root, "item_id");
    const char *title = json_string_value(json_object_get(root, "title"));
    char key[32];
    if (json_is_integer(id)) snprintf(key, sizeof key, "%lld", (long long)json_integer_value(id));
    dr_status status = DR_OK;
    if (!json_is_integer(id) && !json_is_string(id)) {
        dr_builder_bad_row(r->b, path, number, "{\"item_id\", \"title\", \"categories\"}", line);
    } else {
        dr_builder_good_row(r->b);
        status = dr_categories_from_json(json_object_get(root, "categories"), &r->text);
        if (status == DR_OK)
            status = dr_builder_item(r->b, json_is_string(id) ? json_string_value(id) : key,
                                     title ? title : "", r->text.data);
    }
    json_decref(root);
    return status;
}

static dr_status item_fields(reader *r, const char *path, int64_t number, char *line, const char *separator) {
    char *f[4] = {0};
    int32_t n = r->is_list ? dr_fields_quoted(line, ' ', f, 4) - 1 : dr_fields_split(line, separator, f, 3);
    if (r->is_list) memmove(f, f + 1, 3 * sizeof *f); // sequences use the second id
    if (n < 2 || n > 3 || !f[0][0]) {
        dr_builder_bad_row(r->b, path, number, "id, title and categories",
                           dr_fields_join(line, r->is_list ? ' ' : separator[0], r->is_list ? n + 1 : n));
        return DR_OK;
    }
    dr_buf_clear(&r->text);
    DR_TRY(dr_buf_text(&r->text, ""));
    for (const char *at = n == 3 ? f[2] : ""; *at; at++)
        DR_TRY(*at == '|' ? dr_buf_text(&r->text, ", ") : dr_buf_append(&r->text, at, 1));
    dr_builder_good_row(r->b);
    return dr_builder_item(r->b, f[0], f[1], r->text.data);
}

static dr_status read_item(void *context, const char *path, int64_t number, char *line) {
    reader *r = context;
    if (number == 1 && strncmp(line, "org_id remap_id ", 16) == 0) {
        r->is_list = true;
        return DR_OK;
    }
    if (!r->is_list && line[0] == '{') return item_json(context, path, number, line);
    return item_fields(context, path, number, line, strstr(line, "::") ? "::" : "\t");
}

static dr_status read_user(void *context, const char *path, int64_t number, char *line) {
    reader *r = context;
    char *rest = NULL, *user = strtok_r(line, " \t", &rest),
         *item = user ? strtok_r(NULL, " \t", &rest) : NULL;
    if (!item) {
        dr_builder_bad_row(r->b, path, number, "user item item ...", line);
        return DR_OK;
    }
    dr_builder_good_row(r->b);
    for (int64_t t = 0; item; t++, item = strtok_r(NULL, " \t", &rest))
        DR_TRY(dr_builder_event(r->b, user, item, NAN, (double)t));
    return DR_OK;
}

dr_status dr_source_plain(const dr_source_input *input, dr_builder *b) {
    reader r = {.b = b};
    char *items = NULL, *users = NULL;
    dr_status status =
        dr_source_path(input->dir, "items.@(jsonl|tsv)?(.gz) movies.dat?(.gz) item_list.txt?(.gz)",
                       input->item_file, &items);
    if (status == DR_OK)
        status = dr_source_path(input->dir, "sequences.txt?(.gz) sequential_data.txt?(.gz) test.txt?(.gz)",
                                input->interactions, &users);
    if (status == DR_OK) status = dr_lines_read(items, read_item, &r);
    if (status == DR_OK) status = dr_lines_read(users, read_user, &r);
    dr_free(items);
    dr_free(users);
    dr_buf_reset(&r.text);
    return status;
}
