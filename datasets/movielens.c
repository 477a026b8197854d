// MovieLens 1M ("::", latin-1), 100K (tabs and bars) and latest (CSV).
#include <stdio.h>
#include <string.h>

#include "datasets/lines.h"
#include "datasets/source.h"

// "Action|Comedy" → "Action, Comedy"; "(no genres listed)" → "".
static dr_status join_genres(const char *genres, dr_buf *out) {
    dr_buf_clear(out);
    DR_TRY(dr_buf_text(out, ""));
    if (genres[0] == '(') return DR_OK;
    for (; *genres; genres++) DR_TRY(*genres == '|' ? dr_buf_text(out, ", ") : dr_buf_append(out, genres, 1));
    return DR_OK;
}

typedef struct reader {
    dr_builder *b;
    dr_buf genres;
    char names[32][64]; // u.genre
    int32_t n_names;
} reader;

static dr_status add_movie(reader *r, const char *id, const char *title, const char *genres) {
    DR_TRY(join_genres(genres, &r->genres));
    dr_builder_good_row(r->b);
    return dr_builder_item(r->b, id, title, r->genres.data);
}

static dr_status add_rating(reader *r, const char *path, int64_t number, char **f) {
    double rating, time;
    if (!f[0][0] || !f[1][0] || !dr_field_number(f[2], &rating) || !dr_field_number(f[3], &time)) {
        char found[128];
        snprintf(found, sizeof found, "%.20s, %.20s, %.20s, %.20s", f[0], f[1], f[2], f[3]);
        dr_builder_bad_row(r->b, path, number, "user, movie, rating, timestamp", found);
        return DR_OK;
    }
    dr_builder_good_row(r->b);
    return dr_builder_event(r->b, f[0], f[1], rating, time);
}

static dr_status movie_1m(void *context, const char *path, int64_t number, char *line) {
    reader *r = context;
    char *f[3];
    int32_t n = dr_fields_split(line, "::", f, 3);
    if (n == 3) return add_movie(r, f[0], f[1], f[2]);
    dr_builder_bad_row(r->b, path, number, "id::title::genres", dr_fields_join(line, ':', n));
    return DR_OK;
}

static dr_status rating_1m(void *context, const char *path, int64_t number, char *line) {
    reader *r = context;
    char *f[4];
    int32_t n = dr_fields_split(line, "::", f, 4);
    if (n == 4) return add_rating(r, path, number, f);
    dr_builder_bad_row(r->b, path, number, "user::movie::rating::timestamp", dr_fields_join(line, ':', n));
    return DR_OK;
}

static dr_status genre_100k(void *context, const char *path, int64_t number, char *line) {
    reader *r = context;
    char *f[2];
    double id = -1;
    bool good = dr_fields_split(line, "|", f, 2) == 2 && dr_field_number(f[1], &id);
    DR_CHECK(good && (int32_t)id == r->n_names && r->n_names < 32 && strlen(f[0]) < 64, DR_ERR_FORMAT,
             "%s:%lld: expected \"genre|%d\", found \"%.60s\"", path, (long long)number, r->n_names, f[0]);
    memcpy(r->names[r->n_names++], f[0], strlen(f[0]) + 1);
    return DR_OK;
}

static dr_status movie_100k(void *context, const char *path, int64_t number, char *line) {
    reader *r = context;
    char *f[40];
    int32_t n = dr_fields_split(line, "|", f, 40);
    if (n < 6 || n - 5 > r->n_names) {
        dr_builder_bad_row(r->b, path, number, "id|title|date||url|genre flags",
                           dr_fields_join(line, '|', n));
        return DR_OK;
    }
    dr_buf genres = {0};
    dr_status status = dr_buf_text(&genres, "");
    for (int32_t g = 1; g < n - 5 && status == DR_OK; g++) // flag 0 is "unknown"
        if (f[5 + g][0] == '1')
            status = dr_buf_printf(&genres, "%s%s", genres.length ? ", " : "", r->names[g]);
    dr_builder_good_row(r->b);
    if (status == DR_OK) status = dr_builder_item(r->b, f[0], f[1], genres.data);
    dr_buf_reset(&genres);
    return status;
}

static dr_status rating_100k(void *context, const char *path, int64_t number, char *line) {
    reader *r = context;
    char *f[4];
    int32_t n = dr_fields_split(line, "\t", f, 4);
    if (n == 4) return add_rating(r, path, number, f);
    dr_builder_bad_row(r->b, path, number, "user, item, rating, timestamp by tabs",
                       dr_fields_join(line, '\t', n));
    return DR_OK;
}

// The first line of a CSV file names its columns. A file without it would lose a row unseen.
static dr_status check_header(const char *path, const char *line, const char *expected) {
    DR_CHECK(strcmp(line, expected) == 0, DR_ERR_FORMAT, "%s:1: expected \"%s\", found \"%.60s\"", path,
             expected, line);
    return DR_OK;
}

static dr_status movie_latest(void *context, const char *path, int64_t number, char *line) {
    reader *r = context;
    char *f[3];
    if (number == 1) return check_header(path, line, "movieId,title,genres");
    int32_t n = dr_fields_quoted(line, ',', f, 3);
    if (n == 3) return add_movie(r, f[0], f[1], f[2]);
    dr_builder_bad_row(r->b, path, number, "movieId,title,genres", dr_fields_join(line, ',', n));
    return DR_OK;
}

static dr_status rating_latest(void *context, const char *path, int64_t number, char *line) {
    reader *r = context;
    char *f[4];
    if (number == 1) return check_header(path, line, "userId,movieId,rating,timestamp");
    int32_t n = dr_fields_quoted(line, ',', f, 4);
    if (n == 4) return add_rating(r, path, number, f);
    dr_builder_bad_row(r->b, path, number, "userId,movieId,rating,timestamp", dr_fields_join(line, ',', n));
    return DR_OK;
}

static dr_status read_file(const dr_source_input *input, const char *name, const char *given,
                           dr_line_visitor visit, reader *r) {
    char *path = NULL;
    DR_TRY(dr_source_path(input->dir, name, given, &path));
    dr_status status = dr_lines_read(path, visit, r);
    dr_free(path);
    return status;
}

static dr_status read_both(const dr_source_input *input, dr_builder *b, const char *items,
                           dr_line_visitor item, const char *ratings, dr_line_visitor rating,
                           bool has_genres) {
    reader r = {.b = b};
    dr_status status = has_genres ? read_file(input, "u.genre?(.gz)", "", genre_100k, &r) : DR_OK;
    if (status == DR_OK) status = read_file(input, items, input->item_file, item, &r);
    if (status == DR_OK) status = read_file(input, ratings, input->interactions, rating, &r);
    dr_buf_reset(&r.genres);
    return status;
}

dr_status dr_source_movielens_1m(const dr_source_input *input, dr_builder *b) {
    return read_both(input, b, "movies.dat?(.gz)", movie_1m, "ratings.dat?(.gz)", rating_1m, false);
}

dr_status dr_source_movielens_100k(const dr_source_input *input, dr_builder *b) {
    return read_both(input, b, "u.item?(.gz)", movie_100k, "u.data?(.gz)", rating_100k, true);
}

dr_status dr_source_movielens_latest(const dr_source_input *input, dr_builder *b) {
    return read_both(input, b, "movies.csv?(.gz)", movie_latest, "ratings.csv?(.gz)", rating_latest, false);
}
