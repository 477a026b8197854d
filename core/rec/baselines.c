// Counts and the two rankings over them.
#include "core/rec/baselines.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/alloc.h"

typedef struct item_pair {
    int32_t from, to;
} item_pair;

typedef struct successor {
    int32_t item, count;
} successor;

struct dr_counts {
    int32_t n_items;
    int32_t *popularity;    // [n_items + 1]
    int32_t *by_popularity; // [n_items] ids, most frequent first
    int64_t *first;         // [n_items + 2] into successors
    successor *successors;  // of each item, most frequent first
    uint8_t *seen;          // [n_items + 1] scratch
};

static int by_pair(const void *a, const void *b) {
    const item_pair *x = a, *y = b;
    return x->from != y->from ? (x->from < y->from ? -1 : 1) : (x->to > y->to) - (x->to < y->to);
}

static int by_count(const void *a, const void *b) {
    const successor *x = a, *y = b;
    return x->count != y->count ? (x->count > y->count ? -1 : 1) : (x->item > y->item) - (x->item < y->item);
}

static dr_status count_pairs(dr_counts *c, const dr_dataset *d, int32_t held_out) {
    item_pair *pairs = NULL;
    int64_t n = 0;
    DR_TRY(dr_alloc(&pairs, "item pairs", d->offsets[d->n_users] + 1, sizeof *pairs));
    for (int32_t u = 0; u < d->n_users; u++)
        for (int64_t i = d->offsets[u]; i < d->offsets[u + 1] - held_out; i++) {
            c->popularity[d->sequence[i]]++;
            if (i + 1 < d->offsets[u + 1] - held_out)
                pairs[n++] = (item_pair){d->sequence[i], d->sequence[i + 1]};
        }
    qsort(pairs, (size_t)n, sizeof *pairs, by_pair);
    dr_status status = dr_alloc(&c->successors, "successors", n + 1, sizeof *c->successors);
    int64_t used = 0, at = 0;
    for (int32_t item = 0; item <= c->n_items && status == DR_OK; item++) {
        c->first[item] = used;
        while (at < n && pairs[at].from == item) {
            int64_t run = at;
            while (run < n && pairs[run].from == item && pairs[run].to == pairs[at].to) run++;
            c->successors[used++] = (successor){pairs[at].to, (int32_t)(run - at)};
            at = run;
        }
        qsort(c->successors + c->first[item], (size_t)(used - c->first[item]), sizeof *c->successors,
              by_count);
    }
    c->first[c->n_items + 1] = used;
    dr_free(pairs);
    return status;
}

static dr_status rank_popularity(dr_counts *c) {
    successor *all = NULL;
    DR_TRY(dr_alloc(&all, "popularity ranking", c->n_items, sizeof *all));
    for (int32_t i = 1; i <= c->n_items; i++) all[i - 1] = (successor){i, c->popularity[i]};
    qsort(all, (size_t)c->n_items, sizeof *all, by_count);
    for (int32_t i = 0; i < c->n_items; i++) c->by_popularity[i] = all[i].item;
    dr_free(all);
    return DR_OK;
}

dr_status dr_counts_create(const dr_dataset *dataset, int32_t held_out, dr_counts **out_counts) {
    dr_counts *c = NULL;
    int64_t n = dataset->n_items;
    DR_TRY(dr_alloc(&c, "counts", 1, sizeof *c));
    c->n_items = dataset->n_items;
    dr_status status;
    DR_TRY_GOTO(status, dr_alloc(&c->popularity, "popularity", n + 1, sizeof *c->popularity), destroy);
    DR_TRY_GOTO(status, dr_alloc(&c->by_popularity, "popularity ranking", n, sizeof *c->by_popularity),
                destroy);
    DR_TRY_GOTO(status, dr_alloc(&c->first, "successor index", n + 2, sizeof *c->first), destroy);
    DR_TRY_GOTO(status, dr_alloc(&c->seen, "seen items", n + 1, 1), destroy);
    DR_TRY_GOTO(status, count_pairs(c, dataset, held_out), destroy);
    DR_TRY_GOTO(status, rank_popularity(c), destroy);
    *out_counts = c;
    return DR_OK;
destroy:
    dr_counts_destroy(c);
    return status;
}

void dr_counts_destroy(dr_counts *c) {
    if (!c) return;
    dr_free(c->popularity);
    dr_free(c->by_popularity);
    dr_free(c->first);
    dr_free(c->successors);
    dr_free(c->seen);
    dr_free(c);
}

static dr_status rank(const dr_counts *c, const int32_t *history, int32_t n_history, int32_t k,
                      bool with_transitions, int32_t *out_items) {
    DR_CHECK(n_history > 0, DR_ERR_RANGE, "baseline: empty history");
    uint8_t *seen = c->seen;
    int32_t n = 0, last = history[n_history - 1];
    memset(seen, 0, (size_t)c->n_items + 1);
    for (int32_t i = 0; i < n_history; i++) seen[history[i]] = 1;
    for (int64_t i = c->first[last]; with_transitions && i < c->first[last + 1] && n < k; i++) {
        int32_t item = c->successors[i].item;
        if (seen[item]) continue;
        seen[item] = 1;
        out_items[n++] = item;
    }
    for (int32_t i = 0; i < c->n_items && n < k; i++)
        if (!seen[c->by_popularity[i]]) out_items[n++] = c->by_popularity[i];
    while (n < k) out_items[n++] = 0;
    return DR_OK;
}

dr_status dr_counts_popular(const dr_counts *counts, const int32_t *history, int32_t n_history, int32_t k,
                            int32_t *out_items) {
    return rank(counts, history, n_history, k, false, out_items);
}

dr_status dr_counts_transitions(const dr_counts *counts, const int32_t *history, int32_t n_history, int32_t k,
                                int32_t *out_items) {
    return rank(counts, history, n_history, k, true, out_items);
}
