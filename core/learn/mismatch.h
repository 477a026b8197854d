// Proof that sampling and training compute the same numbers. Sequences are sampled the hard way: in batches
// that change from tick to tick, samples of one prompt sharing its cache, prompts and tool results arriving
// in pieces between the decoding of others. Then each recorded log-probability is compared, bit for bit, with
// the one of another way through the model under the same weights. Context tokens are random ids, so any
// model serves.
#ifndef DR_CORE_LEARN_MISMATCH_H
#define DR_CORE_LEARN_MISMATCH_H

#include <stdint.h>

#include "core/episode/trajectory.h"
#include "core/model/lm.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct dr_mismatch_settings {
    int64_t tokens;         // sampled, at least
    int32_t live;           // sequences decoded together
    int32_t samples;        // of one prompt
    int32_t longest_prompt; // at least 2
    int32_t turns, longest_turn, longest_tool;
    int64_t pack_tokens; // budget of a packed training batch
    dr_sampling sampling;
    uint64_t seed;
} dr_mismatch_settings;
// For a context of max_positions: 10^5 tokens, 24 live, 3 samples, up to 3 turns, temperature 1, top-p 0.95.
dr_mismatch_settings dr_mismatch_defaults(int32_t max_positions);

typedef struct dr_mismatch_set {
    dr_trajectory *sequences; // [n], owned; of a prompt's samples, one behind another
    int32_t n, capacity;
    int64_t n_sampled, n_tokens;
    int64_t n_kept,
        n_kept_ids; // sampled tokens whose kept set was recorded (up to 2^25 ids in all), ids in them
    double seconds, first_s; // of sampling; until the first token was sampled
} dr_mismatch_set;
void dr_mismatch_set_reset(dr_mismatch_set *set);

// Result of one comparison.
typedef struct dr_mismatch {
    int64_t tokens;             // compared
    int64_t different;          // whose bits differ
    float largest;              // |Δ log-probability|
    int32_t sequence, position; // of the first difference; -1: none
    double seconds;
} dr_mismatch;

// Settings that do not fit the model's max_position_embeddings: DR_ERR_ARGUMENT. *out_set is empty on errors.
dr_status dr_mismatch_sample(dr_lm *lm, const dr_mismatch_settings *settings, dr_mismatch_set *out_set);
// Against the training pass, sequences packed in a shuffled order, some with their prompt shared. over_kept:
// of the tokens whose kept set was recorded, the log-probabilities over that set; else those of the whole
// softmax.
dr_status dr_mismatch_train(dr_lm *lm, const dr_mismatch_settings *settings, const dr_mismatch_set *set,
                            bool over_kept, dr_mismatch *out);
// Against the cached pass over every `stride`-th sequence alone, in pieces of 1 to longest_piece tokens; 1:
// one token at a time.
dr_status dr_mismatch_replay(dr_lm *lm, const dr_mismatch_settings *settings, const dr_mismatch_set *set,
                             int32_t stride, int32_t longest_piece, dr_mismatch *out);

#ifdef __cplusplus
}
#endif
#endif
