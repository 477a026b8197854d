// The engine's state, shared by its parts: rollout.c (requests in, tick, trajectories out), rollout_batch.c
// (who runs in this tick, cache pages), rollout_burst.c (passes and draws of a tick) and rollout_retrieval.c
// (lists for those who ask). Nothing outside
// core/episode includes it.
#ifndef DR_CORE_EPISODE_ROLLOUT_INTERNAL_H
#define DR_CORE_EPISODE_ROLLOUT_INTERNAL_H

#include "core/episode/episode.h"
#include "core/episode/rollout.h"
#include "core/episode/stops.h"

// One request and its prompt, from submit until its last sample has its own cache.
typedef struct rollout_group {
    dr_rollout_request request;
    int32_t *prompt;
    int64_t n_prompt, prompt_capacity; // 0 tokens: not rendered yet
    int32_t n_admitted;                // samples that became live
    int32_t n_waiting;                 // live samples that have not forked the prompt's cache
    int32_t seq;                       // cache of the prompt without its last token, or -1
    int32_t chunk_tick_tokens;         // tokens of it in the batch being built
} rollout_group;

// One live episode.
typedef struct rollout_live {
    dr_episode episode;
    dr_sampling sampling;
    const int32_t *history;
    int32_t n_history;
    rollout_group *group; // while it waits for the prompt's cache, else NULL
    int32_t seq;          // its cache, or -1
    bool in_batch;
    bool is_served; // it asks, and a retrieval for it is under way
} rollout_live;

// A batch of retrievals.
typedef struct rollout_retrieval {
    dr_trm_retrieval *work;
    rollout_live **asking; // [n] of [max_live]
    int32_t n;
} rollout_retrieval;
enum { ROLLOUT_RETRIEVALS = 2 }; // batches under way at a time

struct dr_rollout {
    dr_rollout_parts parts;
    dr_episode_rules rules;
    dr_kv_cache *kv;
    dr_stops *stops;
    int32_t vocab, text_dim;
    uint64_t weight_version; // of the cache's contents
    int32_t n_pages;

    rollout_live *slots;  // [max_live]
    rollout_live **live;  // [n_live] oldest first
    rollout_live **spare; // [max_live - n_live]
    int32_t n_live;

    rollout_group **groups; // [n_groups] in order of submission
    int32_t n_groups, groups_capacity;
    dr_trajectory *finished; // [n_finished] from `first_finished` on
    int32_t first_finished, n_finished, finished_capacity;
    int32_t n_pending;

    // one tick
    dr_lm_chunk *chunks; // [2 max_live + 1]
    rollout_live **rows; // [n_rows] episodes that get logits, in the order of their chunks
    int32_t n_chunks, n_rows;
    int64_t reserved_pages; // that the chunks of this tick will take
    float *logits;          // [dr_lm_burst_rows(max_live), vocab], backend memory
    // the draws of one tick, of the rows: [max_live], drawn [burst, max_live]
    dr_sampling *sampling;
    dr_draw_key *keys;
    uint8_t *states;
    int32_t *limits, *counts;
    dr_sampled *drawn;
    int32_t fitting; // steps of a burst whose kept sets find room, as far as is known; at most parts.burst
    rollout_retrieval retrievals[ROLLOUT_RETRIEVALS];
    int32_t first_retrieval, n_retrievals; // under way: these, from the first on, around the end
    const char **texts;                    // [max_live] of a batch that begins
    dr_trm_query *queries;                 // [max_live]
    int32_t *items;                        // [k_retrieve] of one list
    dr_episode_scratch scratch;
    dr_rollout_stats stats;
};

// Fills chunks and rows of this tick: oldest episodes first, one decode token each, prompts and lists within
// the prefill budget. Opens, forks and, when pages run short, closes caches. No chunk: all that could run
// wait for a retrieval, or for pages of those that do.
dr_status dr_rollout_batch(dr_rollout *r);
// Runs chunks and draws of this tick, and gives the episodes their tokens.
dr_status dr_rollout_burst(dr_rollout *r);
// Pages that n more tokens of a cache with `length` tokens take.
int64_t dr_rollout_pages(int64_t length, int64_t n);

dr_status dr_rollout_retrievals_create(dr_rollout *r);
void dr_rollout_retrievals_destroy(dr_rollout *r); // waits for what is under way
// Hands out the lists that are there and begins a retrieval for those who ask. wait: first the oldest one
// that is under way, with a deadline. Episodes may be done afterwards.
dr_status dr_rollout_retrieve(dr_rollout *r, bool wait);

#endif
