// Open addressing over the normalised titles; FNV-1a as the hash.
#include "core/reward/title_index.h"

#include <string.h>

#include "core/text/normalize.h"

struct dr_title_index {
    int32_t n_items;
    char *text;       // all normalised titles, each NUL-terminated
    size_t *begin;    // [n_items + 1] into text; [0] is an empty one
    int32_t *slots;   // [n_slots] items, 0 = free
    uint64_t n_slots; // a power of two
};

static uint64_t hash_of(const char *text, size_t length) {
    uint64_t hash = 14695981039346656037ull;
    for (size_t i = 0; i < length; i++) hash = (hash ^ (unsigned char)text[i]) * 1099511628211ull;
    return hash ^ hash >> 29;
}

const char *dr_title_index_title(const dr_title_index *index, int32_t item) {
    DR_ASSERT(item >= 1 && item <= index->n_items);
    return index->text + index->begin[item];
}

int32_t dr_title_index_find(const dr_title_index *index, const char *normalized, size_t length) {
    if (length == 0) return 0;
    for (uint64_t at = hash_of(normalized, length);; at++) {
        int32_t item = index->slots[at & (index->n_slots - 1)];
        if (item == 0) return 0;
        const char *title = index->text + index->begin[item];
        if (strlen(title) == length && memcmp(title, normalized, length) == 0) return item;
    }
}

static void insert(dr_title_index *index, int32_t item) {
    const char *title = index->text + index->begin[item];
    size_t length = strlen(title);
    if (length == 0 || dr_title_index_find(index, title, length) != 0) return;
    uint64_t at = hash_of(title, length);
    while (index->slots[at & (index->n_slots - 1)] != 0) at++;
    index->slots[at & (index->n_slots - 1)] = item;
}

static dr_status fill(const dr_dataset *dataset, dr_title_index *index) {
    dr_buf text = {0};
    dr_status status = dr_buf_append(&text, "", 1);
    for (int32_t i = 1; i <= dataset->n_items && status == DR_OK; i++) {
        index->begin[i] = text.length;
        status = dr_title_normalize(dataset->titles[i], strlen(dataset->titles[i]), false, &text);
        if (status == DR_OK) status = dr_buf_append(&text, "", 1);
    }
    if (status != DR_OK) {
        dr_buf_reset(&text);
        return status;
    }
    index->text = text.data;
    for (int32_t i = 1; i <= dataset->n_items; i++) insert(index, i);
    return DR_OK;
}

dr_status dr_title_index_create(const dr_dataset *dataset, dr_title_index **out_index) {
    dr_title_index *index = NULL;
    dr_status status = DR_OK;
    DR_TRY(dr_alloc(&index, "title index", 1, sizeof *index));
    index->n_items = dataset->n_items;
    for (index->n_slots = 16; index->n_slots < 2 * ((uint64_t)dataset->n_items + 1);) index->n_slots *= 2;
    DR_TRY_GOTO(status,
                dr_alloc(&index->begin, "titles", (int64_t)dataset->n_items + 1, sizeof *index->begin),
                destroy);
    DR_TRY_GOTO(status, dr_alloc(&index->slots, "title table", (int64_t)index->n_slots, sizeof *index->slots),
                destroy);
    DR_TRY_GOTO(status, fill(dataset, index), destroy);
    *out_index = index;
    return DR_OK;
destroy:
    dr_title_index_destroy(index);
    return status;
}

void dr_title_index_destroy(dr_title_index *index) {
    if (!index) return;
    dr_free(index->text);
    dr_free(index->begin);
    dr_free(index->slots);
    dr_free(index);
}
