// Gradient of the objective over trajectories: packs them into micro-batches (micro_batch.h), runs the model,
// applies the clipped policy loss or the supervised one. Weights of tokens are given from outside, so
// micro-batches, packing and ranks do not change the objective.
#ifndef DR_CORE_LEARN_LEARNER_H
#define DR_CORE_LEARN_LEARNER_H

#include "core/episode/trajectory.h"
#include "core/model/lm.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum dr_loss_kind { DR_LOSS_POLICY, DR_LOSS_SUPERVISED } dr_loss_kind;
typedef enum dr_kl_kind { DR_KL_OFF, DR_KL_K1, DR_KL_K3 } dr_kl_kind;

typedef struct dr_loss_settings {
    dr_loss_kind kind;
    float temperature; // of the sampling distribution whose log-probabilities are stored; the ratio and the
                       // KL penalty are over the set that top-p left when the token was drawn
    float clip_low, clip_high; // ratio kept within [1 - low, 1 + high] (Schulman et al., arXiv 1707.06347;
                               // DAPO's upper bound)
    dr_kl_kind kl;             // against the reference model
    float kl_weight;
    float context_weight; // supervised only: weight of prompt and list tokens beside the policy's own; 0: not
                          // trained on
} dr_loss_settings;

typedef struct dr_learn_item {
    const dr_trajectory *trajectory; // borrowed
    float advantage, token_weight;
} dr_learn_item;

// Sums over the sampled tokens that were trained on.
typedef struct dr_learn_stats {
    double tokens;                                   // sampled tokens
    double run_tokens;                               // all tokens that went through the model
    double loss;                                     // weighted
    double entropy, ratio, clipped, kl, logprob_gap; // gap: |log-prob now - log-prob stored|
    double largest_gap;
} dr_learn_stats;
void dr_learn_stats_add(dr_learn_stats *sum, const dr_learn_stats *part);

typedef struct dr_learner dr_learner;
// lm and reference (NULL unless a KL penalty is used) are borrowed. pack_tokens: budget of one micro-batch;
// longest: longest trajectory that may come. The reference model's pass keeps nothing for a backward.
dr_status dr_learner_create(dr_lm *lm, dr_lm *reference, int64_t pack_tokens, int64_t longest,
                            dr_activations activations, dr_learner **out_learner);
// Bytes that it will take, an outline of lm is enough; the reference model, its weights left out, is like lm.
int64_t dr_learner_memory(const dr_lm *lm, bool has_reference, int64_t pack_tokens, int64_t longest,
                          dr_activations activations);
void dr_learner_destroy(dr_learner *learner);
// gradient [n_params] (backend memory) += gradient of the objective's part; stats are added to. ready (or
// NULL), for the call that is the last one of a step: is told by the backward pass of the call's last
// micro-batch which values are final; by nobody where no token of the items is trained on.
// DR_ERR_NUMERIC names the first trajectory with a log-probability that is not finite.
dr_status dr_learner_accumulate(dr_learner *learner, const dr_learn_item *items, int32_t n,
                                const dr_loss_settings *settings, float *gradient,
                                const dr_gradient_ready *ready, dr_learn_stats *stats);

#ifdef __cplusplus
}
#endif
#endif
