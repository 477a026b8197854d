// Counting baselines that every table shows beside the models: popularity and last-item transitions.
#ifndef DR_CORE_REC_BASELINES_H
#define DR_CORE_REC_BASELINES_H

#include "core/store/dataset.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct dr_counts dr_counts;

// Counts items and neighbouring pairs in each sequence less its last `held_out` items (2 for tests: neither
// target is seen).
dr_status dr_counts_create(const dr_dataset *dataset, int32_t held_out, dr_counts **out_counts);
void dr_counts_destroy(dr_counts *counts);

// The k most frequent items outside the history; ties to the smaller id. out_items [k], filled with 0 when
// fewer remain.
dr_status dr_counts_popular(const dr_counts *counts, const int32_t *history, int32_t n_history, int32_t k,
                            int32_t *out_items);
// The items that followed the history's last one most often, outside the history; popularity fills up.
dr_status dr_counts_transitions(const dr_counts *counts, const int32_t *history, int32_t n_history, int32_t k,
                                int32_t *out_items);

#ifdef __cplusplus
}
#endif
#endif
