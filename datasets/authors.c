// The folder of DeepRec's authors: lines {"idx", "history", "target"} for training, validation and test, and
// meta.json with {"id": {"title", "categories" or "category"}}. A line shows at most the last 20 items, and
// no line says whose it is. A test line ends a user's sequence; what came before is found in the line that
// ends where this one's history does, and so on.
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/base/file.h"
#include "core/base/json.h"
#include "datasets/json_lines.h"
#include "datasets/lines.h"
#include "datasets/source.h"

// History and target of one line, in time order.
typedef struct window {
    int64_t begin; // in items
    int32_t n;
    bool is_used;
    char *idx; // test lines only
} window;

typedef struct reader {
    dr_builder *b;
    dr_buf text;
    bool is_test; // what is being read
    int32_t *items;
    int64_t n_items, items_capacity;
    window *windows;
    int64_t n_windows, windows_capacity;
    int32_t span; // items of the longest history
    int32_t *slots;
    int64_t n_slots; // windows by their last `span` items, test lines left out
} reader;

static void reader_reset(reader *r) {
    for (int64_t i = 0; i < r->n_windows; i++) dr_free(r->windows[i].idx);
    dr_free(r->windows);
    dr_free(r->items);
    dr_free(r->slots);
    dr_buf_reset(&r->text);
}

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

static bool is_item(const json_t *value) {
    return json_is_integer(value) && json_integer_value(value) >= 0 && json_integer_value(value) <= INT32_MAX;
}

static dr_status push_item(reader *r, const json_t *value) {
    if (json_integer_value(value) == 0) return DR_OK; // pads
    if (r->n_items == r->items_capacity) {
        int64_t more = 2 * r->items_capacity + 4096;
        DR_TRY(dr_grow(&r->items, "lines' items", r->items_capacity, more, sizeof *r->items));
        r->items_capacity = more;
    }
    r->items[r->n_items++] = (int32_t)json_integer_value(value);
    return DR_OK;
}

static dr_status push_window(reader *r, const json_t *history, const json_t *target, const char *idx) {
    if (r->n_windows == r->windows_capacity) {
        int64_t more = 2 * r->windows_capacity + 1024;
        DR_TRY(dr_grow(&r->windows, "lines", r->windows_capacity, more, sizeof *r->windows));
        r->windows_capacity = more;
    }
    window *w = &r->windows[r->n_windows];
    *w = (window){.begin = r->n_items};
    for (size_t i = 0; i < json_array_size(history); i++) DR_TRY(push_item(r, json_array_get(history, i)));
    DR_TRY(push_item(r, target));
    w->n = (int32_t)(r->n_items - w->begin);
    if (w->n - 1 > r->span) r->span = w->n - 1;
    if (r->is_test) DR_TRY(dr_strdup(&w->idx, idx));
    r->n_windows++;
    return DR_OK;
}

static dr_status read_line(void *context, const char *path, int64_t number, char *line) {
    reader *r = context;
    json_t *root = json_loads(line, 0, NULL), *history = json_object_get(root, "history"),
           *target = json_object_get(root, "target"), *idx = json_object_get(root, "idx");
    char name[32];
    dr_status status = DR_OK;
    bool good = json_is_array(history) && is_item(target) && json_integer_value(target) > 0 &&
                (json_is_integer(idx) || (json_is_string(idx) && json_string_length(idx) > 0));
    for (size_t i = 0; good && i < json_array_size(history); i++) good = is_item(json_array_get(history, i));
    if (!good) {
        dr_builder_bad_row(r->b, path, number, "{\"idx\", \"history\", \"target\"}", line);
    } else {
        if (json_is_integer(idx)) snprintf(name, sizeof name, "%lld", (long long)json_integer_value(idx));
        dr_builder_good_row(r->b);
        status = push_window(r, history, target, json_is_string(idx) ? json_string_value(idx) : name);
    }
    json_decref(root);
    return status;
}

static uint64_t hash_items(const int32_t *items, int32_t n) {
    uint64_t h = 0x9E3779B97F4A7C15u;
    for (int32_t i = 0; i < n; i++) h = (h ^ (uint32_t)items[i]) * 0xFF51AFD7ED558CCDu, h ^= h >> 32;
    return h;
}

static dr_status index_windows(reader *r) {
    for (r->n_slots = 1024; r->n_slots < 2 * r->n_windows;) r->n_slots *= 2;
    DR_TRY(dr_alloc(&r->slots, "line index", r->n_slots, sizeof *r->slots));
    memset(r->slots, 0xFF, (size_t)r->n_slots * sizeof *r->slots);
    for (int64_t w = 0; w < r->n_windows; w++) {
        const window *of = &r->windows[w];
        if (of->idx || of->n < r->span) continue;
        uint64_t at = hash_items(r->items + of->begin + of->n - r->span, r->span);
        while (r->slots[at & (uint64_t)(r->n_slots - 1)] >= 0) at++;
        r->slots[at & (uint64_t)(r->n_slots - 1)] = (int32_t)w;
    }
    return DR_OK;
}

// The first line not used yet that ends with these `span` items; one that begins with them is preferred, for
// then the sequence begins there too. NULL: none.
static window *find_window(reader *r, const int32_t *items) {
    window *found = NULL;
    for (uint64_t at = hash_items(items, r->span);; at++) {
        int32_t w = r->slots[at & (uint64_t)(r->n_slots - 1)];
        if (w < 0) return found;
        window *of = &r->windows[w];
        if (of->is_used ||
            memcmp(r->items + of->begin + of->n - r->span, items, (size_t)r->span * sizeof *items) != 0)
            continue;
        if (of->n == r->span) return of;
        if (!found) found = of;
    }
}

// Earlier items, the latest first, into *earlier (grown as needed).
static dr_status find_earlier(reader *r, const window *last, int32_t **earlier, int64_t *capacity,
                              int64_t *out_n) {
    const window *at = last;
    int64_t n = 0;
    while (at->n > r->span) {
        window *before = find_window(r, r->items + at->begin);
        if (!before) break;
        before->is_used = true;
        if (before->n > r->span) {
            if (n == *capacity) {
                DR_TRY(dr_grow(earlier, "earlier items", *capacity, 2 * *capacity + 256, sizeof **earlier));
                *capacity = 2 * *capacity + 256;
            }
            (*earlier)[n++] = r->items[before->begin];
        }
        at = before;
    }
    *out_n = n;
    return DR_OK;
}

static dr_status add_event(reader *r, const char *user, int32_t item, int64_t t) {
    char key[16];
    snprintf(key, sizeof key, "%d", item);
    return dr_builder_event(r->b, user, key, NAN, (double)t);
}

static dr_status add_users(reader *r) {
    int32_t *earlier = NULL;
    int64_t capacity = 0, n = 0;
    dr_status status = index_windows(r);
    for (int64_t w = 0; w < r->n_windows && status == DR_OK; w++) {
        const window *last = &r->windows[w];
        if (!last->idx) continue;
        int64_t t = 0;
        status = find_earlier(r, last, &earlier, &capacity, &n);
        while (n > 0 && status == DR_OK) status = add_event(r, last->idx, earlier[--n], t++);
        for (int32_t i = 0; i < last->n && status == DR_OK; i++)
            status = add_event(r, last->idx, r->items[last->begin + i], t++);
    }
    dr_free(earlier);
    return status;
}

// A file beside the test lines; fine when it is not there.
static dr_status read_beside(reader *r, const char *test, const char *name) {
    const char *slash = strrchr(test, '/');
    dr_buf path = {0};
    DR_TRY(dr_buf_printf(&path, "%.*s%s", slash ? (int)(slash + 1 - test) : 0, test, name));
    dr_status status = dr_file_exists(path.data) ? dr_lines_read(path.data, read_line, r) : DR_OK;
    dr_buf_reset(&path);
    return status;
}

dr_status dr_source_authors(const dr_source_input *input, dr_builder *b) {
    reader r = {.b = b, .is_test = true};
    char *meta = NULL, *test = NULL;
    dr_status status = dr_source_path(input->dir, "meta.json", input->item_file, &meta);
    if (status == DR_OK) status = dr_source_path(input->dir, "test_id.jsonl", input->interactions, &test);
    if (status == DR_OK) status = read_meta(&r, meta);
    if (status == DR_OK) status = dr_lines_read(test, read_line, &r);
    r.is_test = false;
    if (status == DR_OK) status = read_beside(&r, test, "valid_id.jsonl");
    if (status == DR_OK) status = read_beside(&r, test, "train_id.jsonl");
    if (status == DR_OK) status = add_users(&r);
    dr_free(meta);
    dr_free(test);
    reader_reset(&r);
    return status;
}
