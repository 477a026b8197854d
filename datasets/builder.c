// Keys are interned once; events are plain numbers from then on.
#include "datasets/builder.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/log.h"
#include "core/text/normalize.h"

typedef struct key_table {
    char **keys;
    int64_t n, capacity;
    int32_t *slots;
    int64_t size;
} key_table;

typedef struct event {
    int32_t user, item;
    double rating, time;
    int64_t row;
} event;

struct dr_builder {
    key_table users, items;
    char **titles, **categories; // [items.n], NULL: not given
    int64_t texts_capacity;
    event *events;
    int64_t n_events, events_capacity, n_good, n_bad;
};

static uint64_t hash_text(const char *text) {
    uint64_t h = 0xCBF29CE484222325u;
    for (; *text; text++) h = (h ^ (unsigned char)*text) * 0x100000001B3u;
    return h ^ h >> 31;
}

static dr_status table_rehash(key_table *t, int64_t size) {
    int32_t *slots = NULL;
    DR_TRY(dr_alloc(&slots, "key index", size, sizeof *slots));
    memset(slots, 0xFF, (size_t)size * sizeof *slots);
    for (int64_t k = 0; k < t->n; k++) {
        uint64_t i = hash_text(t->keys[k]);
        while (slots[i & (uint64_t)(size - 1)] >= 0) i++;
        slots[i & (uint64_t)(size - 1)] = (int32_t)k;
    }
    dr_free(t->slots);
    t->slots = slots;
    t->size = size;
    return DR_OK;
}

static dr_status intern(key_table *t, const char *key, int32_t *out_id) {
    if (2 * t->n >= t->size) DR_TRY(table_rehash(t, t->size ? 2 * t->size : 1024));
    uint64_t i = hash_text(key);
    for (;; i++) {
        int32_t id = t->slots[i & (uint64_t)(t->size - 1)];
        if (id < 0) break;
        if (strcmp(t->keys[id], key) == 0) {
            *out_id = id;
            return DR_OK;
        }
    }
    if (t->n == t->capacity) {
        DR_TRY(dr_grow(&t->keys, "keys", t->capacity, 2 * t->capacity + 1024, sizeof *t->keys));
        t->capacity = 2 * t->capacity + 1024;
    }
    DR_TRY(dr_strdup(&t->keys[t->n], key));
    t->slots[i & (uint64_t)(t->size - 1)] = (int32_t)t->n;
    *out_id = (int32_t)t->n++;
    return DR_OK;
}

static void table_reset(key_table *t) {
    for (int64_t i = 0; i < t->n; i++) dr_free(t->keys[i]);
    dr_free(t->keys);
    dr_free(t->slots);
}

dr_status dr_builder_create(dr_builder **out_builder) {
    return dr_alloc(out_builder, "data set builder", 1, sizeof **out_builder);
}

void dr_builder_destroy(dr_builder *b) {
    if (!b) return;
    for (int64_t i = 0; i < b->texts_capacity; i++) {
        dr_free(b->titles[i]);
        dr_free(b->categories[i]);
    }
    dr_free(b->titles);
    dr_free(b->categories);
    dr_free(b->events);
    table_reset(&b->users);
    table_reset(&b->items);
    dr_free(b);
}

// UTF-8, entities replaced where the text may have some, white space collapsed, no control characters.
static dr_status clean_text(const char *text, bool has_entities, char **out) {
    dr_buf utf8 = {0}, plain = {0}, clean = {0};
    size_t length = strlen(text);
    dr_status status = dr_utf8_valid(text, length) ? dr_buf_append(&utf8, text, length)
                                                   : dr_latin1_to_utf8(text, length, &utf8);
    if (status == DR_OK)
        status = has_entities ? dr_html_unescape(utf8.data, utf8.length, &plain)
                              : dr_buf_append(&plain, utf8.data, utf8.length);
    bool gap = false;
    for (size_t i = 0; status == DR_OK && i < plain.length; i++) {
        unsigned char c = (unsigned char)plain.data[i];
        if (c <= ' ' || c == 0x7F) {
            gap = clean.length > 0;
            continue;
        }
        if (gap) status = dr_buf_text(&clean, " ");
        gap = false;
        if (status == DR_OK) status = dr_buf_append(&clean, &plain.data[i], 1);
    }
    if (status == DR_OK) status = dr_buf_append(&clean, "", 0);
    dr_buf_reset(&utf8);
    dr_buf_reset(&plain);
    if (status == DR_OK)
        *out = clean.data;
    else
        dr_buf_reset(&clean);
    return status;
}

static dr_status reserve_texts(dr_builder *b) {
    if (b->items.n <= b->texts_capacity) return DR_OK;
    int64_t capacity = 2 * b->items.n + 1024;
    DR_TRY(dr_grow(&b->titles, "titles", b->texts_capacity, capacity, sizeof *b->titles));
    DR_TRY(dr_grow(&b->categories, "categories", b->texts_capacity, capacity, sizeof *b->categories));
    b->texts_capacity = capacity;
    return DR_OK;
}

dr_status dr_builder_item(dr_builder *b, const char *key, const char *title, const char *categories) {
    int32_t id = 0;
    DR_TRY(intern(&b->items, key, &id));
    DR_TRY(reserve_texts(b));
    if (b->titles[id]) return DR_OK;
    DR_TRY(clean_text(title, true, &b->titles[id]));
    return clean_text(categories, true, &b->categories[id]);
}

dr_status dr_builder_event(dr_builder *b, const char *user, const char *item, double rating, double time) {
    event e = {.rating = rating, .time = time, .row = b->n_events};
    DR_TRY(intern(&b->users, user, &e.user));
    DR_TRY(intern(&b->items, item, &e.item));
    DR_TRY(reserve_texts(b));
    if (b->n_events == b->events_capacity) {
        DR_TRY(dr_grow(&b->events, "interactions", b->events_capacity, 2 * b->events_capacity + 4096,
                       sizeof *b->events));
        b->events_capacity = 2 * b->events_capacity + 4096;
    }
    b->events[b->n_events++] = e;
    return DR_OK;
}

void dr_builder_bad_row(dr_builder *b, const char *path, int64_t line, const char *expected,
                        const char *found) {
    if (b->n_bad++ < 5)
        dr_warn("%s:%lld: expected %s, found \"%.60s\"", path, (long long)line, expected, found);
}

void dr_builder_good_row(dr_builder *b) {
    b->n_good++;
}

static int by_user_time(const void *a, const void *b) {
    const event *x = a, *y = b;
    if (x->user != y->user) return x->user < y->user ? -1 : 1;
    if (x->time != y->time) return x->time < y->time ? -1 : 1;
    return x->row < y->row ? -1 : x->row > y->row;
}

// Drops users and items below the core until nothing changes, then users with fewer than 3.
static dr_status filter_core(dr_builder *b, const dr_build_options *o) {
    int32_t *users = NULL, *items = NULL;
    DR_TRY(dr_alloc(&users, "user counts", b->users.n, sizeof *users));
    dr_status status = dr_alloc(&items, "item counts", b->items.n, sizeof *items);
    for (bool changed = status == DR_OK; changed;) {
        memset(users, 0, (size_t)b->users.n * sizeof *users);
        memset(items, 0, (size_t)b->items.n * sizeof *items);
        for (int64_t i = 0; i < b->n_events; i++) {
            users[b->events[i].user]++;
            items[b->events[i].item]++;
        }
        int32_t least_user = o->k_core > 3 ? o->k_core : 3;
        int64_t kept = 0;
        for (int64_t i = 0; i < b->n_events; i++)
            if (users[b->events[i].user] >= least_user && items[b->events[i].item] >= o->k_core)
                b->events[kept++] = b->events[i];
        changed = kept != b->n_events;
        b->n_events = kept;
    }
    dr_free(users);
    dr_free(items);
    return status;
}

static dr_status filter_ratings(dr_builder *b, double least, const char *source) {
    int64_t kept = 0;
    for (int64_t i = 0; least > -1e9 && i < b->n_events; i++) {
        DR_CHECK(!isnan(b->events[i].rating), DR_ERR_ARGUMENT,
                 "%s: a minimum rating of %g, but the source has no ratings", source, least);
        if (b->events[i].rating >= least) b->events[kept++] = b->events[i];
    }
    if (least > -1e9) b->n_events = kept;
    return DR_OK;
}

static int by_pair(const void *a, const void *b) {
    const event *x = a, *y = b;
    if (x->user != y->user) return x->user < y->user ? -1 : 1;
    if (x->item != y->item) return x->item < y->item ? -1 : 1;
    return by_user_time(a, b);
}

// Models rank only unseen items, so a repeated one could never be hit.
static void drop_repeats(dr_builder *b) {
    int64_t kept = 0, n = b->n_events;
    if (n == 0) return; // no array yet
    qsort(b->events, (size_t)n, sizeof *b->events, by_pair);
    for (int64_t i = 0; i < n; i++)
        if (kept == 0 || b->events[kept - 1].user != b->events[i].user ||
            b->events[kept - 1].item != b->events[i].item)
            b->events[kept++] = b->events[i];
    b->n_events = kept;
    if (kept < n) dr_info("%lld repeated interactions dropped, the earliest stays", (long long)(n - kept));
}

// Events are sorted by user and time here.
static void keep_latest(dr_builder *b, int32_t most) {
    int64_t kept = 0;
    for (int64_t begin = 0; most > 0 && begin < b->n_events;) {
        int64_t end = begin;
        while (end < b->n_events && b->events[end].user == b->events[begin].user) end++;
        for (int64_t i = end - begin > most ? end - most : begin; i < end; i++)
            b->events[kept++] = b->events[i];
        begin = end;
    }
    if (most > 0) b->n_events = kept;
}

typedef struct titled {
    char *folded; // as exact matching compares it
    int32_t item;
} titled;

static int by_title(const void *a, const void *b) {
    const titled *x = a, *y = b;
    int order = strcmp(x->folded, y->folded);
    return order ? order : x->item - y->item;
}

// One round: of each group of equal titles, all but the first item get " [2]", " [3]", …
static dr_status tell_titles_apart(dr_dataset *d, titled *list, bool *out_changed) {
    bool changed = false;
    for (int32_t i = 1; i <= d->n_items; i++) {
        dr_buf folded = {0};
        DR_TRY(dr_title_normalize(d->titles[i], strlen(d->titles[i]), false, &folded));
        dr_free(list[i - 1].folded);
        list[i - 1] = (titled){folded.data, i};
    }
    qsort(list, (size_t)d->n_items, sizeof *list, by_title);
    for (int32_t begin = 0, i = 1; i < d->n_items; i++) {
        dr_buf fresh = {0};
        if (strcmp(list[i].folded, list[begin].folded) != 0) {
            begin = i;
            continue;
        }
        DR_TRY(dr_buf_printf(&fresh, "%s [%d]", d->titles[list[i].item], i - begin + 1));
        dr_free(d->titles[list[i].item]);
        d->titles[list[i].item] = fresh.data;
        changed = true;
    }
    *out_changed = changed;
    return DR_OK;
}

// Repeated until nothing is equal, because a title may look like the result of a round already. Titles that
// change become longer each time, so it ends.
static dr_status make_titles_unique(dr_dataset *d) {
    titled *list = NULL;
    bool changed = true;
    DR_TRY(dr_alloc(&list, "titles", d->n_items, sizeof *list));
    dr_status status = DR_OK;
    while (changed && status == DR_OK) status = tell_titles_apart(d, list, &changed);
    for (int32_t i = 0; i < d->n_items; i++) dr_free(list[i].folded);
    dr_free(list);
    return status;
}

// Rows of the data set for what is left, in order of first appearance of the key.
static dr_status fill_items(dr_builder *b, int32_t *row_of, dr_dataset *d) {
    for (int64_t i = 0; i < b->n_events; i++) row_of[b->events[i].item] = -1;
    for (int64_t k = 0; k < b->items.n; k++)
        if (row_of[k] == -1) row_of[k] = ++d->n_items;
    int64_t n = (int64_t)d->n_items + 1;
    DR_TRY(dr_alloc(&d->titles, "titles", n, sizeof *d->titles));
    DR_TRY(dr_alloc(&d->categories, "categories", n, sizeof *d->categories));
    DR_TRY(dr_alloc(&d->item_names, "item ids", n, sizeof *d->item_names));
    DR_TRY(dr_strdup(&d->titles[0], ""));
    DR_TRY(dr_strdup(&d->categories[0], ""));
    DR_TRY(dr_strdup(&d->item_names[0], ""));
    for (int64_t k = 0; k < b->items.n; k++) {
        int32_t row = row_of[k];
        if (row <= 0) continue;
        DR_TRY(clean_text(b->items.keys[k], false, &d->item_names[row]));
        DR_TRY(dr_strdup(&d->categories[row], b->categories[k] ? b->categories[k] : ""));
        if (b->titles[k] && b->titles[k][0]) {
            DR_TRY(dr_strdup(&d->titles[row], b->titles[k]));
        } else {
            dr_buf title = {0};
            DR_TRY(dr_buf_printf(&title, "Item %s", d->item_names[row]));
            d->titles[row] = title.data;
        }
    }
    return make_titles_unique(d);
}

static dr_status fill_users(dr_builder *b, const int32_t *row_of, dr_dataset *d) {
    int32_t n = 0;
    for (int64_t i = 0; i < b->n_events; i++) n += i == 0 || b->events[i].user != b->events[i - 1].user;
    DR_TRY(dr_alloc(&d->user_names, "user ids", n, sizeof *d->user_names));
    DR_TRY(dr_alloc(&d->offsets, "offsets", (int64_t)n + 1, sizeof *d->offsets));
    DR_TRY(dr_alloc(&d->sequence, "sequence", b->n_events, sizeof *d->sequence));
    for (int64_t i = 0; i < b->n_events; i++) {
        if (i == 0 || b->events[i].user != b->events[i - 1].user) {
            DR_TRY(clean_text(b->users.keys[b->events[i].user], false, &d->user_names[d->n_users]));
            d->offsets[d->n_users++] = i;
        }
        d->sequence[i] = row_of[b->events[i].item];
    }
    d->offsets[n] = b->n_events;
    return DR_OK;
}

// "k-core 5, minimum rating 3, maximum history all; seed 1".
static dr_status write_options(const dr_build_options *o, const char *details, dr_buf *out) {
    DR_TRY(o->k_core > 1 ? dr_buf_printf(out, "k-core %d", o->k_core) : dr_buf_text(out, "k-core none"));
    DR_TRY(o->min_rating > -1e9 ? dr_buf_printf(out, ", minimum rating %g", o->min_rating)
                                : dr_buf_text(out, ", minimum rating none"));
    DR_TRY(o->max_history > 0 ? dr_buf_printf(out, ", maximum history %d", o->max_history)
                              : dr_buf_text(out, ", maximum history none"));
    DR_TRY(dr_buf_text(out, o->keep_repeats ? ", repeats kept" : ", repeats dropped"));
    return dr_buf_printf(out, "%s%s", details[0] ? "; " : "", details);
}

static dr_status describe(const dr_build_options *o, const char *name, const char *source,
                          const char *details, dr_dataset *d) {
    dr_buf text = {0};
    DR_TRY(dr_strdup(&d->name, name));
    DR_TRY(dr_strdup(&d->source, source));
    dr_status status = write_options(o, details, &text);
    if (status != DR_OK) {
        dr_buf_reset(&text);
        return status;
    }
    d->options = text.data;
    return dr_strdup(&d->tie_order, "interactions of equal time keep their order in the source");
}

dr_status dr_builder_finish(dr_builder *b, const dr_build_options *o, const char *name, const char *source,
                            const char *details, dr_dataset **out_dataset) {
    DR_CHECK(o->max_history == 0 || o->max_history >= 3, DR_ERR_ARGUMENT,
             "a maximum history of %d; training, validation and test need 3 items a user", o->max_history);
    int64_t limit = o->bad_rows >= 0 ? o->bad_rows : b->n_good / 100 > 10 ? b->n_good / 100 : 10;
    if (b->n_bad > 0)
        dr_warn("%lld bad rows beside %lld good ones", (long long)b->n_bad, (long long)b->n_good);
    DR_CHECK(b->n_bad <= limit, DR_ERR_FORMAT, "%s: %lld bad rows, at most %lld are allowed", source,
             (long long)b->n_bad, (long long)limit);
    DR_TRY(filter_ratings(b, o->min_rating, source));
    if (!o->keep_repeats) drop_repeats(b);
    DR_TRY(filter_core(b, o));
    DR_CHECK(b->n_events > 0, DR_ERR_ARGUMENT, "%s: no interactions are left after the filters", source);
    qsort(b->events, (size_t)b->n_events, sizeof *b->events, by_user_time);
    keep_latest(b, o->max_history);
    dr_dataset *d = NULL;
    int32_t *row_of = NULL;
    DR_TRY(dr_alloc(&d, "data set", 1, sizeof *d));
    dr_status status = dr_alloc(&row_of, "item rows", b->items.n, sizeof *row_of);
    if (status == DR_OK) status = fill_items(b, row_of, d);
    if (status == DR_OK) status = fill_users(b, row_of, d);
    if (status == DR_OK) status = describe(o, name, source, details, d);
    dr_free(row_of);
    if (status != DR_OK) {
        dr_dataset_destroy(d);
        return status;
    }
    *out_dataset = d;
    return DR_OK;
}
