// From the text of an answer line to an item: exact match of normalised titles by hashing. Numbers in front
// belong to the title here; who reads numbered lines takes their numbers off first.
#ifndef DR_CORE_REWARD_TITLE_INDEX_H
#define DR_CORE_REWARD_TITLE_INDEX_H

#include <stddef.h>
#include <stdint.h>

#include "core/base/alloc.h"
#include "core/base/status.h"
#include "core/store/dataset.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct dr_title_index dr_title_index;

// Borrows nothing. Items whose normalised titles agree are one title; the smallest id stands for them.
dr_status dr_title_index_create(const dr_dataset *dataset, dr_title_index **out_index);
void dr_title_index_destroy(dr_title_index *index);
// Item of a title that is already normalised, or 0. An empty text is no title.
int32_t dr_title_index_find(const dr_title_index *index, const char *normalized, size_t length);
// The normalised title of an item 1 … n_items, NUL-terminated; borrowed.
const char *dr_title_index_title(const dr_title_index *index, int32_t item);

#ifdef __cplusplus
}
#endif
#endif
