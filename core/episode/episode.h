// One episode as a state machine, free of any batching: tokens go in, stops and caps are decided, retrieved
// items are appended. The rollout engine drives many of them.
#ifndef DR_CORE_EPISODE_EPISODE_H
#define DR_CORE_EPISODE_EPISODE_H

#include <stdint.h>

#include "core/base/alloc.h"
#include "core/base/rng.h"
#include "core/base/status.h"
#include "core/episode/protocol.h"
#include "core/episode/template.h"
#include "core/episode/trajectory.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum dr_episode_state {
    DR_EPISODE_RUNNING, // wants the next token
    DR_EPISODE_ASKS,    // has written a preference: wants items
    DR_EPISODE_DONE     // trajectory.stop says why
} dr_episode_state;

enum { DR_N_EOS = 4 };

// The same for all episodes of an engine. Borrowed parts.
typedef struct dr_episode_rules {
    const dr_tokenizer *tokenizer;
    const dr_template *prompt_template;
    const dr_dataset *dataset;
    dr_protocol protocol;
    int32_t eos[DR_N_EOS]; // ids that end a sequence, -1 unused
} dr_episode_rules;

// Ends of a sequence: the model's own id (-1 allowed) and what chat models write, where the vocabulary has
// it.
void dr_episode_rules_eos(dr_episode_rules *rules, int32_t model_eos);

// Zero-initialise. Buffers are kept when an episode is begun again.
typedef struct dr_episode {
    dr_trajectory trajectory;
    dr_episode_state state;
    dr_buf turn_text;   // bytes of this turn's sampled tokens
    dr_buf preference;  // while it asks
    int32_t turn_begin; // token with which this turn began
    uint16_t turn;
} dr_episode;
void dr_episode_reset(dr_episode *episode);

// Starts with a prompt; the trajectory's identity (seed, step, …) is the caller's to fill in afterwards.
dr_status dr_episode_begin(dr_episode *episode, const dr_episode_rules *rules, const int32_t *prompt,
                           int32_t n_prompt);
// The key of the next token's draw.
dr_draw_key dr_episode_draw_key(const dr_episode *episode);
// Tokens that a running episode may sample before a cap ends its turn or itself: at least 1.
int32_t dr_episode_room(const dr_episode *episode, const dr_episode_rules *rules);
// Appends a sampled token and decides what follows. Tags are found in the bytes of the turn's tokens, so it
// does not matter whether a tag is one token or many.
dr_status dr_episode_token(dr_episode *episode, const dr_episode_rules *rules, const dr_sampled *token);
// Grow-only room for dr_episode_items.
typedef struct dr_episode_scratch {
    dr_rendering rendering;
    int32_t *ids;
    int64_t n_ids, capacity;
} dr_episode_scratch;
void dr_episode_scratch_reset(dr_episode_scratch *scratch);
// Answers an episode that asks: notes the retrieval, appends the list's tokens, begins the next turn.
dr_status dr_episode_items(dr_episode *episode, const dr_episode_rules *rules, const float *embedding,
                           int32_t text_dim, const int32_t *items, int32_t n_items,
                           dr_episode_scratch *scratch);

#ifdef __cplusplus
}
#endif
#endif
