// Bodies of metrics.h.
#include "core/rec/metrics.h"

#include <math.h>
#include <stdlib.h>

#include "core/base/alloc.h"
#include "core/base/rng.h"

int32_t dr_rank_of(const int32_t *items, int32_t n, int32_t k, int32_t target) {
    int32_t place = 0;
    for (int32_t i = 0; i < n && place < k; i++) {
        int32_t repeated = 0;
        for (int32_t j = 0; j < i && items[i] > 0 && !repeated; j++) repeated = items[j] == items[i];
        if (repeated) continue;
        if (items[i] == target && target > 0) return place;
        place++;
    }
    return -1;
}

double dr_recall_at(int32_t rank, int32_t k) {
    return rank >= 0 && rank < k ? 1.0 : 0.0;
}

double dr_ndcg_at(int32_t rank, int32_t k) {
    return rank >= 0 && rank < k ? 1.0 / log2(rank + 2.0) : 0.0;
}

double dr_mrr_at(int32_t rank, int32_t k) {
    return rank >= 0 && rank < k ? 1.0 / (rank + 1.0) : 0.0;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

dr_status dr_bootstrap_paired(const double *a, const double *b, int32_t n, int32_t resamples, uint64_t seed,
                              dr_interval *out) {
    DR_CHECK(n > 0 && resamples >= 100, DR_ERR_ARGUMENT, "bootstrap: %d pairs, %d resamples", n, resamples);
    double *means = NULL;
    DR_TRY(dr_alloc(&means, "bootstrap means", resamples, sizeof *means));
    dr_rng rng = dr_rng_make(seed, 0xB007);
    double mean = 0;
    for (int32_t i = 0; i < n; i++) mean += (a[i] - b[i]) / n;
    for (int32_t r = 0; r < resamples; r++) {
        for (int32_t i = 0; i < n; i++) {
            uint32_t pick = dr_rng_below(&rng, (uint32_t)n);
            means[r] += (a[pick] - b[pick]) / n;
        }
    }
    qsort(means, (size_t)resamples, sizeof *means, by_value);
    *out =
        (dr_interval){mean, means[(int32_t)(0.025 * resamples)], means[(int32_t)(0.975 * (resamples - 1))]};
    dr_free(means);
    return DR_OK;
}
