// One trajectory: an append-only stream of token ids with a provenance byte each. Nothing in it is ever
// decoded and tokenised again; the loss mask is the provenance. Plain data owned by the struct.
#ifndef DR_CORE_EPISODE_TRAJECTORY_H
#define DR_CORE_EPISODE_TRAJECTORY_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/alloc.h"
#include "core/base/status.h"
#include "core/compute/backend.h"
#include "core/text/tokenizer.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum dr_provenance {
    DR_FROM_PROMPT = 0, // the rendered prompt
    DR_FROM_POLICY = 1, // sampled: the only tokens that are trained on
    DR_FROM_FORCED = 2, // put there by the program in the policy's place
    DR_FROM_TOOL = 3    // the retrieval model's item list, with its tags and blank lines
} dr_provenance;

typedef enum dr_stop {
    DR_STOP_NONE = 0,      // still running
    DR_STOP_ANSWER,        // </recommendation_list> was written
    DR_STOP_EOS,           // end-of-sequence token
    DR_STOP_EMPTY_QUERY,   // a preference without text
    DR_STOP_TURN_CAP,      // too many new tokens in one turn
    DR_STOP_RETRIEVAL_CAP, // asked for more retrievals than allowed
    DR_STOP_TOTAL_CAP      // too many tokens in all: the whole trajectory gets loss mask 0
} dr_stop;

// One retrieval.
typedef struct dr_turn {
    int32_t query_begin, query_end; // token range [begin, end) of the policy's turn that asked
    char *preference;               // cleaned text, owned
    float *embedding;               // [text_dim] as retrieved with; serves the diversity reward; owned
    int32_t *items;                 // [n_items], best first; owned
    int32_t n_items;
} dr_turn;

enum {
    DR_REWARD_FORMAT,
    DR_REWARD_INVOCATION,
    DR_REWARD_DIVERSITY,
    DR_REWARD_HIT,
    DR_REWARD_RANK,
    DR_REWARD_SIMILARITY,
    DR_REWARD_PARTS
};

typedef struct dr_trajectory {
    // which draw of which prompt: the key that reproduces it
    uint64_t seed;
    uint32_t step, prompt, sample; // prompt: position in the run's order of prompts; sample: 0 … n-1
    int32_t user, target;          // of the data set; target 0 when unknown
    uint64_t policy_version;

    int32_t n_tokens, capacity;
    int32_t *ids;        // [n_tokens]
    uint8_t *provenance; // [n_tokens] dr_provenance
    uint16_t *turn_of;   // [n_tokens] turn number, 0-based
    float *logprob; // [n_tokens] at the sampling temperature over the full vocabulary; 0 where not sampled
    float *logprob_kept; // [n_tokens] over the kept set of top-p; 0 where not sampled
    int64_t *kept_end;   // [n_tokens] where each token's kept set ends in kept_ids
    int32_t *kept_ids;   // 4 bytes for each id that top-p left
    int64_t kept_capacity;

    int32_t n_turns; // retrievals done
    dr_turn *turns;
    int32_t text_dim; // length of the turns' embeddings
    dr_stop stop;

    // filled by the reward shard
    float parts[DR_REWARD_PARTS]; // unweighted values
    float reward;                 // weighted sum for the stage
    bool has_answer;              // format holds
    float advantage;
} dr_trajectory;

void dr_trajectory_reset(dr_trajectory *t); // frees what it owns and zeroes it
// Makes room for n tokens in all, so that appending up to there allocates nothing.
dr_status dr_trajectory_reserve(dr_trajectory *t, int32_t n);
// Appends n tokens of one provenance; logprobs may be NULL (zeros).
dr_status dr_trajectory_append(dr_trajectory *t, const int32_t *ids, int32_t n, dr_provenance from,
                               uint16_t turn, const float *logprob, const float *logprob_kept);
// Appends one token that the policy sampled, with its log-probabilities and kept set.
dr_status dr_trajectory_append_sampled(dr_trajectory *t, const dr_sampled *token, uint16_t turn);
// The set that token i was drawn from; n 0: the whole vocabulary, or not sampled.
dr_kept dr_trajectory_kept(const dr_trajectory *t, int32_t i);
// Appends a retrieval; text and arrays are copied.
dr_status dr_trajectory_add_turn(dr_trajectory *t, int32_t query_begin, int32_t query_end,
                                 const char *preference, const float *embedding, int32_t text_dim,
                                 const int32_t *items, int32_t n_items);
// Tokens of the rendered prompt that it begins with.
int32_t dr_trajectory_prompt_count(const dr_trajectory *t);
int32_t dr_trajectory_sampled_count(const dr_trajectory *t);
// True when the trajectory takes part in the loss (its stop is not DR_STOP_TOTAL_CAP and it has sampled
// tokens).
bool dr_trajectory_trains(const dr_trajectory *t);

// Self-contained little-endian bytes with a version and explicit counts: the wire and nothing else. Kept sets
// stay behind: they are the learner's, who has sampled the trajectory. decode refuses any byte string that is
// not exactly one trajectory, with a clear error, and leaves *out untouched.
dr_status dr_trajectory_encode(const dr_trajectory *t, dr_buf *out);
dr_status dr_trajectory_decode(const void *bytes, size_t length, dr_trajectory *out);

#ifdef __cplusplus
}
#endif
#endif
