// AdamW over a model's flat parameters: moments, global-norm clipping, learning-rate schedule. Several
// learners share the work: each keeps the moments of its shard of the parameters only, updates that, and gets
// the other shards from their owners (stage 1 of ZeRO, Rajbhandari et al., arXiv 1910.02054; lm_shard.h).
#ifndef DR_CORE_MODEL_OPTIMIZER_H
#define DR_CORE_MODEL_OPTIMIZER_H

#include "core/comm/collective.h"
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
// learners: the group that makes every step together, borrowed; NULL: this learner alone. DR_ERR_UNSUPPORTED:
// the model does not have this learner's fp32 weights.
dr_status dr_optimizer_create(dr_lm *lm, const dr_optimizer_settings *settings, dr_collective *learners,
                              dr_optimizer **out_optimizer);
void dr_optimizer_destroy(dr_optimizer *optimizer);
// Bytes of the moments of one of n learners, at most; an outline is enough.
int64_t dr_optimizer_memory(const dr_lm *lm, int n_learners);

// The parameters that this learner updates.
dr_shard dr_optimizer_shard(const dr_optimizer *optimizer);

// Gradients [n_params] (backend memory) of all learners, summed up in rank order within this one's shard;
// what is outside stays. A learner alone has nothing to do here.
dr_status dr_optimizer_reduce(dr_optimizer *optimizer, float *gradient);
// Begins that during a backward pass: values from `begin` on are final (dr_gradient_ready), go on their way
// and may be what they are or their sum from now on. Waits for no other learner. dr_optimizer_reduce follows
// on every learner, whether it began or not.
dr_status dr_optimizer_reduce_begin(dr_optimizer *optimizer, float *gradient, int64_t begin);
// One update with gradient [n_params], of which this learner's shard is read (backend memory; borrowed,
// unchanged), and the given rate; then all learners have all weights, and the model's are repacked. *out_norm
// is the norm of the whole gradient before clipping. Norm and weights have the same bits for any number of
// learners that share the same sum. DR_ERR_NUMERIC, on all of them, when the norm is not finite: nothing has
// changed then.
dr_status dr_optimizer_step(dr_optimizer *optimizer, const float *gradient, float learning_rate,
                            double *out_norm);

// Zero moments, as at the start: what was learned of the gradients' sizes belongs to another objective.
void dr_optimizer_restart(dr_optimizer *optimizer);

// State for checkpoints: first and second moments of the shard in backend memory, the number of updates done,
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
