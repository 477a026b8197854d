// A prepared data set: items with title and categories, user sequences in time order, leave-one-out split.
// One self-describing HDF5 file on disk; plain arrays in memory.
#ifndef DR_CORE_STORE_DATASET_H
#define DR_CORE_STORE_DATASET_H

#include <stdint.h>

#include "core/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

// Items are 1 … n_items (0 is padding), users 0 … n_users-1. Everything is owned by the struct.
typedef struct dr_dataset {
    int32_t n_items, n_users;
    char **titles;     // [n_items + 1], unique, UTF-8; [0] = ""
    char **categories; // [n_items + 1], one string, names joined by ", "; "" when none
    char **item_names; // [n_items + 1], the source's own id
    char **user_names; // [n_users], the source's own id
    int64_t *offsets;  // [n_users + 1] into sequence
    int32_t *sequence; // item ids in time order, ties as in the source
    char *name, *source, *options, *tie_order; // how it was made, also stored as attributes
} dr_dataset;

dr_status dr_dataset_load(const char *path,
                          dr_dataset **out_dataset); // checks every range and the stored digest
// Temporary name, fsync, rename. Refuses what load would refuse (DR_ERR_FORMAT) and keeps the old file then.
dr_status dr_dataset_save(const dr_dataset *dataset, const char *path);
void dr_dataset_destroy(dr_dataset *dataset);

typedef enum dr_split { DR_SPLIT_TRAIN, DR_SPLIT_VALID, DR_SPLIT_TEST } dr_split;

// One prediction: the items before the target (not yet cut to the maximum history) and the target.
typedef struct dr_example {
    int32_t user;
    const int32_t *history; // borrowed from the data set
    int32_t n_history;
    int32_t target;
} dr_example;

// TEST: the last item; VALID: the one before it; TRAIN: the one before that (the latest training target).
// False when the user's sequence is too short (a target needs at least one item before it).
int dr_dataset_example(const dr_dataset *dataset, int32_t user, dr_split split, dr_example *out_example);

int64_t dr_dataset_longest(const dr_dataset *dataset); // items of the longest sequence

// User by the source's id, or -1 (linear; build your own index for bulk look-ups).
int32_t dr_dataset_find_user(const dr_dataset *dataset, const char *user_name);

#ifdef __cplusplus
}
#endif
#endif
