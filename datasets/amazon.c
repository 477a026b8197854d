// Amazon reviews as JSON lines: 2018 (reviewerID, asin, overall, unixReviewTime; metadata asin, title,
// category) and 2023 (user_id, parent_asin, rating, timestamp; metadata parent_asin, title, categories); 2023
// also as the benchmark's CSV of ratings alone.
#include <jansson.h>
#include <string.h>

#include "datasets/json_lines.h"
#include "datasets/lines.h"
#include "datasets/source.h"

typedef struct reader {
    dr_builder *b;
    dr_buf categories;
    bool is_csv; // the reviews
} reader;

static const char *text_of(const json_t *root, const char *first, const char *second) {
    const char *text = json_string_value(json_object_get(root, first));
    return text ? text : json_string_value(json_object_get(root, second));
}

static dr_status read_item(void *context, const char *path, int64_t number, char *line) {
    reader *r = context;
    json_t *root = json_loads(line, 0, NULL);
    const char *key = text_of(root, "parent_asin", "asin"), *title = text_of(root, "title", "title");
    const json_t *categories = json_object_get(root, "categories");
    if (!json_array_size(categories)) categories = json_object_get(root, "category");
    dr_status status = DR_OK;
    if (!key) {
        dr_builder_bad_row(r->b, path, number, "an item with \"parent_asin\" or \"asin\"", line);
    } else {
        dr_builder_good_row(r->b);
        status = dr_categories_from_json(categories, &r->categories);
        if (status == DR_OK) status = dr_builder_item(r->b, key, title ? title : "", r->categories.data);
    }
    json_decref(root);
    return status;
}

static dr_status read_rating(reader *r, const char *path, int64_t number, char *line) {
    static const char header[] = "user_id,parent_asin,rating,timestamp";
    char *f[4];
    double rating, time;
    if (number == 1) {
        DR_CHECK(strcmp(line, header) == 0, DR_ERR_FORMAT, "%s:1: expected JSON or \"%s\", found \"%.60s\"",
                 path, header, line);
        return DR_OK;
    }
    int32_t n = dr_fields_quoted(line, ',', f, 4);
    if (n != 4 || !f[0][0] || !f[1][0] || !dr_field_number(f[2], &rating) || !dr_field_number(f[3], &time)) {
        dr_builder_bad_row(r->b, path, number, header, dr_fields_join(line, ',', n));
        return DR_OK;
    }
    dr_builder_good_row(r->b);
    return dr_builder_event(r->b, f[0], f[1], rating, time);
}

static dr_status read_review(void *context, const char *path, int64_t number, char *line) {
    reader *r = context;
    if (number == 1) r->is_csv = line[0] != '{';
    if (r->is_csv) return read_rating(r, path, number, line);
    json_t *root = json_loads(line, 0, NULL);
    const char *user = text_of(root, "user_id", "reviewerID"), *item = text_of(root, "parent_asin", "asin");
    const json_t *rating = json_object_get(root, "rating"), *time = json_object_get(root, "timestamp");
    if (!rating) rating = json_object_get(root, "overall");
    if (!time) time = json_object_get(root, "unixReviewTime");
    dr_status status = DR_OK;
    if (!user || !item || !json_is_number(rating) || !json_is_number(time)) {
        dr_builder_bad_row(r->b, path, number, "a review with user, item, rating and time", line);
    } else {
        dr_builder_good_row(r->b);
        status = dr_builder_event(r->b, user, item, json_number_value(rating), json_number_value(time));
    }
    json_decref(root);
    return status;
}

dr_status dr_source_amazon(const dr_source_input *input, dr_builder *b) {
    reader r = {.b = b};
    char *reviews = NULL, *items = NULL;
    dr_status status =
        dr_source_path(input->dir, "!(meta_*).@(jsonl|json|csv)?(.gz)", input->interactions, &reviews);
    if (status == DR_OK)
        status = dr_source_path(input->dir, "meta_*.@(jsonl|json)?(.gz)", input->item_file, &items);
    if (status == DR_OK) status = dr_lines_read(items, read_item, &r);
    if (status == DR_OK) status = dr_lines_read(reviews, read_review, &r);
    dr_free(reviews);
    dr_free(items);
    dr_buf_reset(&r.categories);
    return status;
}
