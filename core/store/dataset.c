// The data set file: strings and arrays under fixed names, every range checked on loading.
#include "core/store/dataset.h"

#include <stdlib.h>
#include <string.h>

#include "core/base/alloc.h"
#include "core/store/h5.h"

enum { FORMAT_VERSION = 1 };

void dr_dataset_destroy(dr_dataset *d) {
    if (!d) return;
    dr_h5_free_strings(d->titles, (int64_t)d->n_items + 1);
    dr_h5_free_strings(d->categories, (int64_t)d->n_items + 1);
    dr_h5_free_strings(d->item_names, (int64_t)d->n_items + 1);
    dr_h5_free_strings(d->user_names, d->n_users);
    dr_free(d->offsets);
    dr_free(d->sequence);
    dr_free(d->name);
    dr_free(d->source);
    dr_free(d->options);
    dr_free(d->tie_order);
    dr_free(d);
}

static int by_text(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static dr_status check_titles(const dr_dataset *d, const char *path) {
    const char **sorted = NULL;
    DR_TRY(dr_alloc(&sorted, "sorted titles", d->n_items, sizeof *sorted));
    dr_status status = DR_OK;
    for (int32_t i = 1; i <= d->n_items && status == DR_OK; i++) {
        sorted[i - 1] = d->titles[i];
        if (!d->titles[i][0]) status = DR_FAIL(DR_ERR_FORMAT, "%s: item %d has no title", path, i);
    }
    if (status == DR_OK) qsort(sorted, (size_t)d->n_items, sizeof *sorted, by_text);
    for (int32_t i = 1; i < d->n_items && status == DR_OK; i++)
        if (strcmp(sorted[i - 1], sorted[i]) == 0)
            status = DR_FAIL(DR_ERR_FORMAT, "%s: two items share the title \"%s\"", path, sorted[i]);
    dr_free(sorted);
    return status;
}

static dr_status check_sequences(const dr_dataset *d, int64_t n_events, const char *path) {
    DR_CHECK(d->offsets[0] == 0 && d->offsets[d->n_users] == n_events, DR_ERR_FORMAT,
             "%s: user offsets run from %lld to %lld, expected 0 to %lld", path, (long long)d->offsets[0],
             (long long)d->offsets[d->n_users], (long long)n_events);
    for (int32_t u = 0; u < d->n_users; u++)
        DR_CHECK(d->offsets[u] <= d->offsets[u + 1], DR_ERR_FORMAT, "%s: user %d: offsets go back", path, u);
    for (int64_t i = 0; i < n_events; i++)
        DR_CHECK(d->sequence[i] >= 1 && d->sequence[i] <= d->n_items, DR_ERR_FORMAT,
                 "%s: event %lld names item %d, expected 1 to %d", path, (long long)i, d->sequence[i],
                 d->n_items);
    return DR_OK;
}

static dr_status read_all(dr_h5 *file, dr_dataset *d) {
    const char *path = dr_h5_path(file);
    int64_t version = 0, n_users = 0, n_items = 0, n = 0;
    char *kind = NULL;
    DR_TRY(dr_h5_get_string(file, "/", "format", &kind));
    bool ours = strcmp(kind, "deeprec-dataset") == 0;
    dr_free(kind);
    DR_CHECK(ours, DR_ERR_FORMAT, "%s: not a prepared data set", path);
    DR_TRY(dr_h5_get_i64(file, "/", "version", &version));
    DR_CHECK(version == FORMAT_VERSION, DR_ERR_UNSUPPORTED, "%s: data set version %lld, expected %d", path,
             (long long)version, FORMAT_VERSION);
    DR_TRY(dr_h5_get_i64(file, "/", "n_items", &n_items));
    DR_TRY(dr_h5_get_i64(file, "/", "n_users", &n_users));
    DR_CHECK(n_items > 0 && n_items < 1 << 28 && n_users > 0 && n_users < 1 << 30, DR_ERR_FORMAT,
             "%s: %lld items and %lld users", path, (long long)n_items, (long long)n_users);
    n = n_items + 1;
    DR_TRY(dr_h5_read_strings(file, "items/title", &n, &d->titles));
    d->n_items = (int32_t)n_items; // from here destroy knows how many strings there are
    DR_TRY(dr_h5_read_strings(file, "items/categories", &n, &d->categories));
    DR_TRY(dr_h5_read_strings(file, "items/id", &n, &d->item_names));
    DR_TRY(dr_h5_read_strings(file, "users/id", &n_users, &d->user_names));
    d->n_users = (int32_t)n_users;
    n = n_users + 1;
    DR_TRY(dr_h5_read(file, "users/offset", DR_H5_I64, 1, &n, &d->offsets));
    int64_t n_events = -1;
    DR_TRY(dr_h5_read(file, "users/sequence", DR_H5_I32, 1, &n_events, &d->sequence));
    DR_TRY(dr_h5_get_string(file, "/", "name", &d->name));
    DR_TRY(dr_h5_get_string(file, "/", "source", &d->source));
    DR_TRY(dr_h5_get_string(file, "/", "options", &d->options));
    DR_TRY(dr_h5_get_string(file, "/", "tie_order", &d->tie_order));
    DR_TRY(check_titles(d, path));
    return check_sequences(d, n_events, path);
}

dr_status dr_dataset_load(const char *path, dr_dataset **out_dataset) {
    dr_h5 *file = NULL;
    dr_dataset *d = NULL;
    DR_TRY(dr_h5_open(path, &file));
    dr_status status = dr_alloc(&d, "data set", 1, sizeof *d);
    if (status == DR_OK) status = read_all(file, d);
    dr_h5_close(file);
    if (status != DR_OK) {
        dr_dataset_destroy(d);
        return status;
    }
    *out_dataset = d;
    return DR_OK;
}

static dr_status write_all(dr_h5 *file, const dr_dataset *d) {
    int64_t n_users = d->n_users, n_offsets = n_users + 1, n_events = d->offsets[n_users];
    DR_TRY(dr_h5_write_strings(file, "items/title", (const char *const *)d->titles, d->n_items + 1,
                               "unique title of each item; row 0 is padding"));
    DR_TRY(dr_h5_write_strings(file, "items/categories", (const char *const *)d->categories, d->n_items + 1,
                               "category names of each item, joined by a comma and a space"));
    DR_TRY(dr_h5_write_strings(file, "items/id", (const char *const *)d->item_names, d->n_items + 1,
                               "the source's own item id"));
    DR_TRY(dr_h5_write_strings(file, "users/id", (const char *const *)d->user_names, n_users,
                               "the source's own user id"));
    DR_TRY(dr_h5_write(file, "users/offset", DR_H5_I64, 1, &n_offsets, d->offsets,
                       "user u owns events offset[u] to offset[u + 1] of the sequence", "events"));
    DR_TRY(
        dr_h5_write(file, "users/sequence", DR_H5_I32, 1, &n_events, d->sequence,
                    "items in time order; the last one of a user is the test target, the one before it the "
                    "validation target",
                    "item rows"));
    DR_TRY(dr_h5_set_string(file, "/", "format", "deeprec-dataset"));
    DR_TRY(dr_h5_set_i64(file, "/", "version", FORMAT_VERSION));
    DR_TRY(dr_h5_set_i64(file, "/", "n_items", d->n_items));
    DR_TRY(dr_h5_set_i64(file, "/", "n_users", n_users));
    DR_TRY(dr_h5_set_i64(file, "/", "n_interactions", n_events));
    DR_TRY(dr_h5_set_string(file, "/", "split",
                            "leave one out by time: last item test, the one before it validation"));
    DR_TRY(dr_h5_set_string(file, "/", "name", d->name ? d->name : ""));
    DR_TRY(dr_h5_set_string(file, "/", "source", d->source ? d->source : ""));
    DR_TRY(dr_h5_set_string(file, "/", "options", d->options ? d->options : ""));
    return dr_h5_set_string(file, "/", "tie_order", d->tie_order ? d->tie_order : "");
}

dr_status dr_dataset_save(const dr_dataset *d, const char *path) {
    dr_h5 *file = NULL;
    DR_TRY(check_titles(d, path));
    DR_TRY(check_sequences(d, d->offsets[d->n_users], path));
    DR_TRY(dr_h5_create(path, &file));
    dr_status status = write_all(file, d);
    if (status != DR_OK) {
        dr_h5_abort(file);
        return status;
    }
    return dr_h5_commit(file);
}

int64_t dr_dataset_longest(const dr_dataset *d) {
    int64_t longest = 0;
    for (int32_t u = 0; u < d->n_users; u++) {
        int64_t n = d->offsets[u + 1] - d->offsets[u];
        longest = n > longest ? n : longest;
    }
    return longest;
}

int dr_dataset_example(const dr_dataset *d, int32_t user, dr_split split, dr_example *out) {
    static const int32_t back[] = {[DR_SPLIT_TEST] = 1, [DR_SPLIT_VALID] = 2, [DR_SPLIT_TRAIN] = 3};
    int64_t n = d->offsets[user + 1] - d->offsets[user], at = n - back[split];
    if (at < 1) return 0;
    const int32_t *items = d->sequence + d->offsets[user];
    *out = (dr_example){user, items, (int32_t)at, items[at]};
    return 1;
}

int32_t dr_dataset_find_user(const dr_dataset *d, const char *user_name) {
    for (int32_t u = 0; u < d->n_users; u++)
        if (strcmp(d->user_names[u], user_name) == 0) return u;
    return -1;
}
