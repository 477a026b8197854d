// Full-ranking evaluation of policies beside their baselines on the same users: who hits the held-out item,
// how often the answer is valid, and whether a difference is more than chance.
#ifndef DR_CORE_EVAL_EVALUATE_H
#define DR_CORE_EVAL_EVALUATE_H

#include <stdint.h>

#include "core/base/status.h"
#include "core/episode/rollout.h"
#include "core/reward/reward.h"
#include "core/store/dataset.h"

#ifdef __cplusplus
extern "C" {
#endif

// One ranker's outcome on a list of users. rank[i] is the 0-based position of user i's target in the ranker's
// list, or -1.
typedef struct dr_evaluation {
    char name[64];
    int32_t n_users;
    int32_t *rank;              // [n_users], owned
    double recall[3];           // @1, @5, @10
    double ndcg[2];             // @5, @10
    double mrr;                 // @10
    double valid_share;         // of answers that keep the format; 1 for rankers without text
    double mean_retrievals;     // of one trajectory; 0 for rankers without text
    double mean_sampled_tokens; // of one trajectory; 0 for rankers without text
    double seconds;             // wall clock of producing the lists
} dr_evaluation;

void dr_evaluation_reset(dr_evaluation *evaluation); // frees the ranks and zeroes the struct

// The users whose sequence is long enough for `split`, in data set order; every `stride`-th when stride > 1.
// *out_users is a new array owned by the caller.
dr_status dr_evaluate_users(const dr_dataset *dataset, dr_split split, int32_t stride, int32_t **out_users,
                            int32_t *out_n);

// Called as trajectories finish: done of total.
typedef void (*dr_evaluate_progress)(void *context, int64_t done, int64_t total);

typedef struct dr_evaluate_options {
    dr_split split;
    const int32_t *users; // [n_users], borrowed
    int32_t n_users;
    dr_sampling sampling;          // temperature 0: greedy, the paper's way
    uint64_t seed;                 // matters when temperature > 0
    dr_evaluate_progress progress; // NULL: silent
    void *progress_context;
} dr_evaluate_options;

// The policy: one trajectory a user; an answer that breaks the format scores 0.
dr_status dr_evaluate_policy(const dr_rollout_parts *parts, const dr_reward_context *rewards,
                             const dr_evaluate_options *options, const char *name, dr_evaluation *out);
// The retrieval model alone, no preference, items of the history left out.
dr_status dr_evaluate_trm(dr_trm *trm, const dr_dataset *dataset, const dr_evaluate_options *options,
                          dr_evaluation *out);
// Popularity and last-item transitions, counted on the part of each sequence that stands before the split's
// target.
dr_status dr_evaluate_popularity(const dr_dataset *dataset, const dr_evaluate_options *options,
                                 dr_evaluation *out);
dr_status dr_evaluate_transitions(const dr_dataset *dataset, const dr_evaluate_options *options,
                                  dr_evaluation *out);

// Paired bootstrap of Recall@10 and NDCG@10 over users (Efron & Tibshirani, 1993, ch. 13): difference a - b
// and its 95 % interval from 2,000 seeded resamples. Both evaluations must cover the same users.
typedef struct dr_paired_difference {
    double recall, recall_low, recall_high;
    double ndcg, ndcg_low, ndcg_high;
} dr_paired_difference;
dr_status dr_evaluate_compare(const dr_evaluation *a, const dr_evaluation *b, uint64_t seed,
                              dr_paired_difference *out);

#ifdef __cplusplus
}
#endif
#endif
