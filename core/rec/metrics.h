// Ranking metrics of one held-out item (Recall@k = hit rate, NDCG@k = 1/log2(rank + 2), MRR@k) and the paired
// bootstrap.
#ifndef DR_CORE_REC_METRICS_H
#define DR_CORE_REC_METRICS_H

#include <stdint.h>

#include "core/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

// 0-based position of `target` among the first k distinct items of a list (0 and negative entries take a
// place but hit nothing; a repeated item takes no place); -1 when it is not there.
int32_t dr_rank_of(const int32_t *items, int32_t n, int32_t k, int32_t target);

// One user's value; rank as from dr_rank_of, -1 gives 0.
double dr_recall_at(int32_t rank, int32_t k);
double dr_ndcg_at(int32_t rank, int32_t k);
double dr_mrr_at(int32_t rank, int32_t k);

// Mean of a - b over n pairs and the 2.5 and 97.5 percentiles of its bootstrap distribution (resamples of
// pairs, seeded).
typedef struct dr_interval {
    double mean, low, high;
} dr_interval;
dr_status dr_bootstrap_paired(const double *a, const double *b, int32_t n, int32_t resamples, uint64_t seed,
                              dr_interval *out);

#ifdef __cplusplus
}
#endif
#endif
