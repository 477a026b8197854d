// The training of a retrieval model with its memory looked at, for plans of it: a catalogue, options, and
// what training takes at most.
#ifndef DR_TESTS_RETRIEVAL_PLAN_H
#define DR_TESTS_RETRIEVAL_PLAN_H

#include <stdio.h>
#include <string.h>

#include "core/base/alloc.h"
#include "core/rec/trm_train.h"
#include "tests/check.h"
#include "tests/small_cases.h"

enum {
    PLAN_ITEMS = DR_SMALL_CASES ? 80 : 600,
    PLAN_USERS = DR_SMALL_CASES ? 10 : 100,
    PLAN_LENGTH = DR_SMALL_CASES ? 16 : 30,
    PLAN_BATCH = DR_SMALL_CASES ? 96 : 256
};

static inline dr_dataset plan_catalogue(void) {
    dr_dataset d = {.n_items = PLAN_ITEMS, .n_users = PLAN_USERS};
    check_ok(dr_alloc(&d.titles, "titles", PLAN_ITEMS + 1, sizeof(char *)));
    check_ok(dr_alloc(&d.categories, "categories", PLAN_ITEMS + 1, sizeof(char *)));
    check_ok(dr_alloc(&d.offsets, "offsets", PLAN_USERS + 1, sizeof(int64_t)));
    check_ok(dr_alloc(&d.sequence, "sequence", (int64_t)PLAN_USERS * PLAN_LENGTH, sizeof(int32_t)));
    for (int i = 0; i <= PLAN_ITEMS; i++) {
        char title[32];
        snprintf(title, sizeof title, "film number %d", i);
        check_ok(dr_strdup(&d.titles[i], i == 0 ? "" : title));
        check_ok(dr_strdup(&d.categories[i], i % 2 ? "Drama" : "Comedy, War"));
    }
    for (int u = 0; u < PLAN_USERS; u++) {
        for (int i = 0; i < PLAN_LENGTH; i++)
            d.sequence[u * PLAN_LENGTH + i] = 1 + (u * 97 + i * 13) % PLAN_ITEMS;
        d.offsets[u + 1] = (int64_t)(u + 1) * PLAN_LENGTH;
    }
    return d;
}

static inline void plan_catalogue_reset(dr_dataset *d) {
    for (int i = 0; i <= PLAN_ITEMS; i++) {
        dr_free(d->titles[i]);
        dr_free(d->categories[i]);
    }
    dr_free(d->titles);
    dr_free(d->categories);
    dr_free(d->offsets);
    dr_free(d->sequence);
    memset(d, 0, sizeof *d);
}

static inline dr_trm_train_options plan_options(void) {
    dr_trm_train_options o = dr_trm_train_defaults();
    o.config.hidden = DR_SMALL_CASES ? 16 : 64;
    o.config.text_dim = DR_SMALL_CASES ? 64 : 256;
    o.config.inner = DR_SMALL_CASES ? 32 : 128;
    o.config.n_experts = 4;
    o.config.max_history = DR_SMALL_CASES ? 10 : 20;
    o.batch = PLAN_BATCH;
    o.max_epochs = 1;
    o.samples_per_epoch = PLAN_BATCH;
    return o;
}

static inline void plan_encoder(dr_trm_train_options *o) {
    snprintf(o->config.text_encoder, sizeof o->config.text_encoder, "%s", check_golden("sentence_bert"));
    o->config.max_text_tokens = 96;
}

typedef double plan_look(void *context); // bytes in use

typedef struct plan_watch {
    plan_look *look;
    void *context;
    double most;
} plan_watch;

static inline void plan_watch_look(plan_watch *w) {
    double now = w->look(w->context);
    w->most = now > w->most ? now : w->most;
}

static inline void plan_on_batch(void *context, int64_t done, int64_t total) {
    (void)done, (void)total;
    plan_watch_look(context);
}

static inline void plan_on_epoch(void *context, int32_t epoch, double loss, double recall, double ndcg,
                                 double seconds, bool is_best) {
    (void)epoch, (void)loss, (void)recall, (void)ndcg, (void)seconds, (void)is_best;
    plan_watch_look(context);
}

// Bytes that training takes beside what is in use now, where it is looked at: behind updates and epochs.
static inline double plan_taken(dr_backend *b, const dr_dataset *data, dr_trm_train_options o,
                                plan_look *look, void *context) {
    plan_watch watch = {.look = look, .context = context};
    double before = look(context);
    dr_trm *trm = NULL;
    o.on_batch = plan_on_batch;
    o.on_epoch = plan_on_epoch;
    o.context = &watch;
    check_ok(dr_trm_train(b, data, &o, &trm));
    dr_trm_destroy(trm);
    return watch.most - before;
}

#endif
