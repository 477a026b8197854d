// Warm-up: supervised training of a policy on trajectories, the scripted teacher's or a user's own.
#ifndef DR_CORE_LEARN_SFT_H
#define DR_CORE_LEARN_SFT_H

#include "core/episode/rollout.h"
#include "core/episode/teacher.h"
#include "core/learn/learner.h"
#include "core/model/optimizer.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct dr_sft_options {
    int64_t steps;        // optimizer updates
    int64_t batch_tokens; // tokens of one update's trajectories, about
    int64_t pack_tokens;  // of one micro-batch
    dr_activations activations;
    float learning_rate;
    int64_t warmup_steps;
    float weight_decay, clip_norm;
    // Of prompt and list tokens in the loss at the start, going down to 0 over the run: they teach a fresh
    // model what to copy, later they are only noise. 0: policy tokens only.
    float context_weight;
    uint64_t seed;
    dr_teacher_settings teacher;
    const char *trajectories; // JSON lines {"user": id, "completion": text}; NULL: the teacher writes
    // After each update: loss per token, tokens per second. NULL: silent.
    void (*on_step)(void *context, int64_t step, double loss, double entropy, double tokens_per_second);
    void *context;
} dr_sft_options;

dr_sft_options dr_sft_defaults(void);

// Trains parts->lm in place. Teacher trajectories: users in a seeded order, each with a training position of
// its sequence, new ones in every update, so nothing is seen twice. Same seed, same bits.
dr_status dr_sft_run(const dr_rollout_parts *parts, const dr_sft_options *options);

#ifdef __cplusplus
}
#endif
#endif
