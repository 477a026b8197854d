// RecBole's atomic files: tab-separated, the first line names and types the columns ("user_id:token", …).
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "datasets/lines.h"
#include "datasets/source.h"

enum { COLUMNS = 64 };

typedef struct table {
    dr_builder *b;
    const char *const *wanted;    // column names, best first for each role, NULL between roles
    int32_t n_columns, column[4]; // of each role, -1: not there
    bool is_items;
    dr_buf text, title;
} table;

// Which column plays which role, from the header line.
static void read_header(table *t, char *line) {
    char *f[COLUMNS];
    t->n_columns = dr_fields_split(line, "\t", f, COLUMNS);
    int role = 0;
    for (int i = 0; i < 4; i++) t->column[i] = -1;
    for (const char *const *name = t->wanted; role < 4; name++) {
        if (!*name) {
            role++;
            continue;
        }
        size_t length = strlen(*name);
        for (int32_t c = 0; c < t->n_columns && c < COLUMNS && t->column[role] < 0; c++)
            if (strncmp(f[c], *name, length) == 0 && (f[c][length] == ':' || f[c][length] == '\0'))
                t->column[role] = c;
    }
}

// A token_seq as its makers write it: "War Drama", "Food, Coffee Bars", or a list out of Python with quotes
// and brackets, where commas separate.
static dr_status join_categories(const char *text, dr_buf *out) {
    static const char wrapping[] = " '\"[]";
    const char *separator = text[strcspn(text, ",[")] || strchr("'\"", text[0]) ? "," : " ";
    DR_TRY(dr_buf_text(out, ""));
    for (const char *at = text; *at;) {
        size_t n = strcspn(at, separator), first = strspn(at, wrapping), last = n;
        while (last > first && strchr(wrapping, at[last - 1])) last--;
        if (last > first)
            DR_TRY(dr_buf_printf(out, "%s%.*s", out->length ? ", " : "", (int)(last - first), at + first));
        at += n + (at[n] != '\0');
    }
    return DR_OK;
}

// The columns that a row has no use for are not looked at. MovieLens titles come without their year, which
// tells remakes apart.
static dr_status take_item(table *t, char **f) {
    const char *year = t->column[3] >= 0 ? f[t->column[3]] : "";
    dr_buf_clear(&t->text);
    dr_buf_clear(&t->title);
    DR_TRY(dr_buf_text(&t->title, t->column[1] >= 0 ? f[t->column[1]] : ""));
    if (t->title.length > 0 && year[0]) DR_TRY(dr_buf_printf(&t->title, " (%s)", year));
    DR_TRY(join_categories(t->column[2] >= 0 ? f[t->column[2]] : "", &t->text));
    dr_builder_good_row(t->b);
    return dr_builder_item(t->b, f[t->column[0]], t->title.data, t->text.data);
}

static dr_status read_row(void *context, const char *path, int64_t number, char *line) {
    table *t = context;
    char *f[COLUMNS];
    if (number == 1) {
        read_header(t, line);
        DR_CHECK(t->column[0] >= 0 && (t->is_items || t->column[1] >= 0), DR_ERR_FORMAT,
                 "%s:1: the header names no %s column", path, t->is_items ? "item_id" : "user_id or item_id");
        return DR_OK;
    }
    int32_t n = dr_fields_split(line, "\t", f, COLUMNS);
    if (n != t->n_columns) {
        char expected[48];
        snprintf(expected, sizeof expected, "%d fields as in the header", t->n_columns);
        dr_builder_bad_row(t->b, path, number, expected, dr_fields_join(line, '\t', n));
        return DR_OK;
    }
    if (!f[t->column[0]][0] || (!t->is_items && !f[t->column[1]][0])) {
        dr_builder_bad_row(t->b, path, number, "an id", "nothing");
        return DR_OK;
    }
    if (t->is_items) return take_item(t, f);
    double rating = NAN, time = 0;
    if ((t->column[2] >= 0 && !dr_field_number(f[t->column[2]], &rating)) ||
        (t->column[3] >= 0 && !dr_field_number(f[t->column[3]], &time))) {
        dr_builder_bad_row(t->b, path, number, "a number as rating and timestamp",
                           dr_fields_join(line, '\t', n));
        return DR_OK;
    }
    dr_builder_good_row(t->b);
    return dr_builder_event(t->b, f[t->column[0]], f[t->column[1]], rating, time);
}

dr_status dr_source_recbole(const dr_source_input *input, dr_builder *b) {
    static const char *const inter[] = {"user_id", NULL, "item_id", NULL, "rating", NULL, "timestamp", NULL};
    static const char *const item[] = {"item_id",      NULL,         "movie_title",   "title", "name",
                                       "movie_name",   "item_name",  "business_name", NULL,    "genre",
                                       "class",        "categories", "category",      "type",  NULL,
                                       "release_year", NULL};
    char *path = NULL;
    table items = {.b = b, .wanted = item, .is_items = true}, events = {.b = b, .wanted = inter};
    dr_status status = dr_source_path(input->dir, "*.item?(.gz)", input->item_file, &path);
    if (status == DR_OK) status = dr_lines_read(path, read_row, &items);
    dr_free(path);
    path = NULL;
    if (status == DR_OK) status = dr_source_path(input->dir, "*.inter?(.gz)", input->interactions, &path);
    if (status == DR_OK) status = dr_lines_read(path, read_row, &events);
    dr_free(path);
    dr_buf_reset(&items.text);
    dr_buf_reset(&items.title);
    return status;
}
