// metrics.jsonl and the terminal line of a step. What a run with the same seed repeats stands at the top of
// each object; what it can't (seconds, rates) stands in its "timing" object.
#ifndef DR_MPI_METRICS_LOG_H
#define DR_MPI_METRICS_LOG_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/status.h"
#include "core/episode/trajectory.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { DR_METRIC_SUMS = 18, DR_METRIC_WORKERS = 1024 };

// One trajectory as the coordinator sees it. flags: 1 takes part in the loss, 2 valid format.
typedef struct dr_metric_record {
    uint32_t prompt, sample, n_sampled, n_tokens, n_turns, flags;
    float reward, parts[DR_REWARD_PARTS];
} dr_metric_record;

typedef struct dr_step_metrics {
    int64_t step, updates;
    const char *stage;
    double step_s, rollout_s, reward_s, train_s;
    // of each worker: tokens, run tokens, loss, entropy, ratio, clipped, kl, log-prob gap, gradient norm,
    // rate, train s, rollout s, sampled tokens, prompt and tool tokens, retrieval s, retrievals, short
    // bursts, idle rows
    double worker[DR_METRIC_WORKERS][DR_METRIC_SUMS];
} dr_step_metrics;

typedef struct dr_metrics_log dr_metrics_log;
// Opens RUN/metrics.jsonl for appending and drops the lines after `step`, so that a resumed run leaves no
// trace of the steps that it repeats. With `tensorboard`, the same numbers also go to RUN/tensorboard/, as
// curves named after the members ("reward", "reward_parts/hit", "timing/step_s").
dr_status dr_metrics_log_open(const char *run_dir, int64_t step, bool tensorboard, dr_metrics_log **out_log);
void dr_metrics_log_close(dr_metrics_log *log);
dr_status dr_metrics_log_step(dr_metrics_log *log, const dr_step_metrics *metrics,
                              const dr_metric_record *records, int32_t n, int32_t n_workers);

#ifdef __cplusplus
}
#endif
#endif
