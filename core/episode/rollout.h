// The rollout engine: continuous batching of LLM-TRM episodes without rounds. Each tick runs one batched pass
// of the policy in which some sequences decode one token, others prefill a prompt or the item list they just
// got, and, in bursts, passes of single tokens behind it; episodes that ended a preference in this tick are
// encoded and retrieved for together, and go on in the first tick that finds their lists: the next one where
// the retrieval model computes on the processor, and where it has a device to itself, or a stream of one,
// when it is done. Until then they stand by. A prompt is prefilled once and its n samples fork its cache; the
// cache is kept across turns. Results depend on weights, template and draw keys only, never on what else is
// in the batch, in which order requests came or how long bursts are.
#ifndef DR_CORE_EPISODE_ROLLOUT_H
#define DR_CORE_EPISODE_ROLLOUT_H

#include <stdbool.h>
#include <stdint.h>

#include "core/episode/protocol.h"
#include "core/episode/template.h"
#include "core/episode/trajectory.h"
#include "core/model/lm.h"
#include "core/rec/trm.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { DR_ROLLOUT_BURST = 8 }; // what a device draws between two visits of its host

// Everything is borrowed and must outlive the engine.
typedef struct dr_rollout_parts {
    dr_lm *lm;
    const dr_tokenizer *tokenizer;
    dr_trm *trm;
    const dr_dataset *dataset;
    const dr_template *prompt_template;
    dr_protocol protocol;
    int32_t max_live;       // episodes decoded together
    int32_t prefill_tokens; // prefill budget of one tick
    int32_t burst;          // tokens that an episode may draw in one tick; 0: 1 where backend memory is the
                            // host's too, else DR_ROLLOUT_BURST
    int32_t kv_pages; // pages of the cache; 0: a third of what max_live episodes of the longest kind need.
                      // When pages run short the youngest episodes give theirs up and are prefilled again
                      // later: the same bits, more work
    double retrieval_deadline_s; // of a wait for a retrieval when nothing else can run; 0: ten minutes
} dr_rollout_parts;

// n_samples episodes of one prompt.
typedef struct dr_rollout_request {
    uint64_t seed;
    uint32_t step, prompt;
    int32_t first_sample, n_samples;
    int32_t user, target;
    const int32_t *history; // borrowed until the request's last episode is finished
    int32_t n_history;
    dr_sampling sampling;
} dr_rollout_request;

typedef struct dr_rollout_stats {
    int64_t prompt_tokens, tool_tokens,
        sampled_tokens;                // pushed through the policy (a shared prompt counts once)
    int64_t retrievals, ticks, passes; // passes of the policy: several a tick in bursts
    int64_t decode_rows;               // token positions run, re-run and idle ones included
    int64_t preemptions;               // episodes that gave up their cache pages
    int64_t short_bursts; // in which rows were finished before their limits: kept sets found no room
    int64_t idle_rows;    // rows of passes that were finished before: by that, a stop, their limit, no page
    double decode_s, retrieve_s; // of the host: decode_s queues passes where a device runs them
    double sample_s;             // and there this waits for a burst's passes and draws
} dr_rollout_stats;

typedef struct dr_rollout dr_rollout;
dr_status dr_rollout_create(const dr_rollout_parts *parts, dr_rollout **out_rollout);
void dr_rollout_destroy(dr_rollout *rollout);
// Bytes of backend memory that the engine and the passes it runs take; an outline of the policy is enough.
dr_status dr_rollout_memory(const dr_rollout_parts *parts, int64_t *out_cache, int64_t *out_passes);
// Bytes that its retrievals take beside the retrieval model: on the host, and of that model's backend.
void dr_rollout_retrieval_memory(const dr_rollout_parts *parts, int64_t *out_host, int64_t *out_backend);
// Refused: empty or bad history, sampling settings out of range, more samples than a draw key holds, a
// retrieval larger than what the history leaves of the catalogue.
dr_status dr_rollout_submit(dr_rollout *rollout, const dr_rollout_request *request);
// One tick; does nothing when idle. DR_ERR_TIMEOUT: a retrieval was not done by its deadline. Other errors
// are of the machine (memory, numbers), never of what the policy wrote.
dr_status dr_rollout_tick(dr_rollout *rollout);
// Moves one finished trajectory to *out (which the caller then owns); false when none is ready.
bool dr_rollout_take(dr_rollout *rollout, dr_trajectory *out);
int32_t dr_rollout_pending(const dr_rollout *rollout); // episodes submitted and not yet taken
void dr_rollout_stats_get(const dr_rollout *rollout, dr_rollout_stats *out_stats); // since create

#ifdef __cplusplus
}
#endif
#endif
