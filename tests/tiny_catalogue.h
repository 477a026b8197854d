// A hand-made data set for tests: 24 items in three kinds, four users. Plain arrays, freed by
// tiny_catalogue_reset.
#ifndef DR_TESTS_TINY_CATALOGUE_H
#define DR_TESTS_TINY_CATALOGUE_H

#include <stdio.h>
#include <string.h>

#include "core/base/alloc.h"
#include "core/store/dataset.h"

enum { TINY_ITEMS = 24, TINY_USERS = 4, TINY_LENGTH = 9 };

static inline dr_dataset tiny_catalogue(void) {
    static const char *const titles[TINY_ITEMS + 1] = {
        "",           "Star War",    "Star War II",  "Blue Moon",  "Red Sun",   "12. Zimmer", "The Assistant",
        "Café Noir",  "七人の侍",    "Night Train",  "Long Road",  "Deep Sea",  "High Peak",  "Cold Wind",
        "Warm Rain",  "Old House",   "New Bridge",   "Quiet Town", "Loud City", "Slow River", "Fast Car",
        "Dark Woods", "Bright Star", "Last <think>", "First Light"};
    static const char *const kinds[3] = {"Drama", "Comedy, Romance", "Action, War"};
    dr_dataset d = {.n_items = TINY_ITEMS, .n_users = TINY_USERS};
    (void)!dr_alloc(&d.titles, "titles", TINY_ITEMS + 1, sizeof(char *));
    (void)!dr_alloc(&d.categories, "categories", TINY_ITEMS + 1, sizeof(char *));
    (void)!dr_alloc(&d.item_names, "names", TINY_ITEMS + 1, sizeof(char *));
    (void)!dr_alloc(&d.user_names, "users", TINY_USERS, sizeof(char *));
    (void)!dr_alloc(&d.offsets, "offsets", TINY_USERS + 1, sizeof(int64_t));
    (void)!dr_alloc(&d.sequence, "sequence", TINY_USERS * TINY_LENGTH, sizeof(int32_t));
    for (int i = 0; i <= TINY_ITEMS; i++) {
        char name[16];
        snprintf(name, sizeof name, "i%d", i);
        (void)!dr_strdup(&d.titles[i], titles[i]);
        (void)!dr_strdup(&d.categories[i], i == 0 || i == 24 ? "" : kinds[i % 3]);
        (void)!dr_strdup(&d.item_names[i], name);
    }
    for (int u = 0; u < TINY_USERS; u++) {
        char name[16];
        snprintf(name, sizeof name, "%d", 100 + u);
        (void)!dr_strdup(&d.user_names[u], name);
        for (int i = 0; i < TINY_LENGTH; i++)
            d.sequence[u * TINY_LENGTH + i] = 1 + (u * 7 + i * 5) % TINY_ITEMS;
        d.offsets[u + 1] = (u + 1) * TINY_LENGTH;
    }
    (void)!dr_strdup(&d.name, "tiny");
    return d;
}

static inline void tiny_catalogue_reset(dr_dataset *d) {
    for (int i = 0; i <= TINY_ITEMS; i++) {
        dr_free(d->titles[i]);
        dr_free(d->categories[i]);
        dr_free(d->item_names[i]);
    }
    for (int u = 0; u < TINY_USERS; u++) dr_free(d->user_names[u]);
    dr_free(d->titles);
    dr_free(d->categories);
    dr_free(d->item_names);
    dr_free(d->user_names);
    dr_free(d->offsets);
    dr_free(d->sequence);
    dr_free(d->name);
    memset(d, 0, sizeof *d);
}

#endif
