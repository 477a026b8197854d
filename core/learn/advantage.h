// Advantages of a batch of trajectories from their rewards: pure functions over small records, computed in
// one fixed order.
#ifndef DR_CORE_LEARN_ADVANTAGE_H
#define DR_CORE_LEARN_ADVANTAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum dr_advantage_kind {
    DR_ADVANTAGE_REINFORCE_PP,
    DR_ADVANTAGE_GRPO,
    DR_ADVANTAGE_RLOO
} dr_advantage_kind;
typedef enum dr_loss_mean { DR_MEAN_TRAJECTORY, DR_MEAN_PACKED_PAIR } dr_loss_mean;

// One trajectory of an update batch; records of a prompt stand together, in sample order.
typedef struct dr_credit {
    uint32_t prompt, sample;
    float reward;
    int32_t n_sampled;  // sampled tokens
    bool trains;        // false: loss mask 0 (too long, or nothing sampled)
    float advantage;    // out
    float token_weight; // out: weight of each of its sampled tokens in the objective
} dr_credit;

// REINFORCE++ with group baseline (Hu et al., arXiv 2501.03262; DeepRec §3.4): reward less the mean of its
// group, then normalised to mean 0 and deviation 1 over all sampled tokens of the batch. GRPO (arXiv
// 2402.03300): (reward - mean) / std of the group. RLOO (arXiv 2402.14740): reward less the mean of the
// others in the group.
void dr_advantages(dr_advantage_kind kind, dr_credit *credits, int32_t n);
// DR_MEAN_TRAJECTORY: mean over a trajectory's tokens, then over trajectories. DR_MEAN_PACKED_PAIR: mean over
// the sampled tokens of consecutive pairs of trajectories, then over pairs (the original's micro-batches of
// two).
void dr_token_weights(dr_loss_mean mean, dr_credit *credits, int32_t n);

#ifdef __cplusplus
}
#endif
#endif
