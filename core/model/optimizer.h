// AdamW over a model's flat parameters: moments, global-norm clipping, learning-rate schedule.
#ifndef DR_CORE_MODEL_OPTIMIZER_H
#define DR_CORE_MODEL_OPTIMIZER_H

#include "core/model/lm.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum dr_schedule_kind {
    DR_SCHEDULE_CONSTANT,
    DR_SCHEDULE_LINEAR,
    DR_SCHEDULE_COSINE
} dr_schedule_kind;

typedef struct dr_schedule {
    dr_schedule_kind kind;
    float peak, final_share; // decays to peak · final_share at total_steps
    int64_t warmup_steps, total_steps;
} dr_schedule;

// Learning rate of 0-based update `t`.
float dr_schedule_rate(const dr_schedule *schedule, int64_t t);

typedef struct dr_optimizer_settings {
    float beta1, beta2, epsilon, weight_decay;
    float clip_norm; // 0: off
} dr_optimizer_settings;

typedef struct dr_optimizer dr_optimizer;
dr_status dr_optimizer_create(dr_lm *lm, const dr_optimizer_settings *settings, dr_optimizer **out_optimizer);
void dr_optimizer_destroy(dr_optimizer *optimizer);

// One update with gradient [n_params] (backend memory; borrowed, unchanged) and the given rate; then repacks
// the model's weights. *out_norm is the gradient's norm before clipping. DR_ERR_NUMERIC when it is not
// finite: nothing has changed then.
dr_status dr_optimizer_step(dr_optimizer *optimizer, const float *gradient, float learning_rate,
                            double *out_norm);

// Zero moments, as at the start: what was learned of the gradients' sizes belongs to another objective.
void dr_optimizer_restart(dr_optimizer *optimizer);

// State for checkpoints: first and second moments [n_params] in backend memory, the number of updates done,
// and how many of them the moments have seen.
float *dr_optimizer_first(dr_optimizer *optimizer);
float *dr_optimizer_second(dr_optimizer *optimizer);
int64_t dr_optimizer_updates(const dr_optimizer *optimizer);
int64_t dr_optimizer_age(const dr_optimizer *optimizer);
void dr_optimizer_set_updates(dr_optimizer *optimizer, int64_t updates, int64_t age);

#ifdef __cplusplus
}
#endif
#endif
