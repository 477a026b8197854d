// What the roles share: typed settings of a run, the assets of a process, and the loop that drives the roles
// living in it. Roles know channel.h and collective.h, never MPI, YAML or the command line.
#ifndef DR_MPI_RUN_H
#define DR_MPI_RUN_H

#include <signal.h>
#include <stdbool.h>

#include "core/base/alive.h"
#include "core/comm/channel.h"
#include "core/comm/collective.h"
#include "core/episode/rollout.h"
#include "core/learn/advantage.h"
#include "core/learn/learner.h"
#include "core/model/optimizer.h"
#include "core/reward/reward.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { DR_STAGES = 2 };

typedef struct dr_stage_settings {
    char name[16];
    int32_t steps, prompts, samples, updates;
    int32_t pool; // training samples at most; 0: all that fit
    int32_t difficulty_from,
        difficulty_to; // rank of the target by the retrieval model alone; to 0: no filter
    dr_reward_settings reward;
} dr_stage_settings;

typedef struct dr_run_settings {
    const char *dir;         // run folder
    const char *config_hash; // of what affects results
    uint64_t seed;
    double deadline_s;
    int32_t stop_after; // steps of this start; 0: to the end
    bool resume;
    dr_stage_settings stages[DR_STAGES];
    dr_sampling sampling;
    dr_advantage_kind advantage;
    dr_loss_mean loss_mean;
    dr_loss_settings loss;
    dr_schedule schedule; // of each stage by itself; total_steps is filled in from the stage
    dr_optimizer_settings optimizer;
    int64_t pack_tokens;
    dr_activations activations;
    int32_t checkpoint_every, checkpoint_keep;
    bool keep_trajectories, tensorboard; // write trajectories/, tensorboard/
    const char *policy_dir;              // of the start
    const volatile sig_atomic_t *stop_requested;
} dr_run_settings;

// Borrowed pieces a process needs; rollout.lm and tokenizer are NULL where no worker and no shard lives.
typedef struct dr_run_assets {
    dr_rollout_parts rollout;
    dr_backend *backend; // for a reference model
} dr_run_assets;

// Endpoints: 0 coordinator, 1 … n_shards reward shards, then the workers.
typedef struct dr_layout {
    int n_shards, n_workers;
} dr_layout;
static inline int dr_layout_endpoints(const dr_layout *layout) {
    return 1 + layout->n_shards + layout->n_workers;
}
static inline int dr_layout_worker(const dr_layout *layout, int worker) {
    return 1 + layout->n_shards + worker;
}
static inline int dr_layout_shard_of(const dr_layout *layout, uint32_t prompt) {
    return 1 + (int)((prompt * 2654435761u) >> 16) % layout->n_shards;
}

// A role: poll does one small piece of work and says whether it did any; done once it has nothing left to do.
// An error ends the run. DR_ERR_INTERRUPTED from the coordinator is the orderly early end.
typedef struct dr_role dr_role;
typedef struct dr_role_ops {
    const char *name;
    dr_status (*poll)(dr_role *role, bool *out_worked);
    void (*destroy)(dr_role *role);
} dr_role_ops;
struct dr_role {
    const dr_role_ops *ops;
    bool is_done, was_interrupted;
    dr_alive_listener alive; // hears the role's long work, so that its peers do
};

dr_status dr_coordinator_create(const dr_run_settings *settings, const dr_run_assets *assets,
                                const dr_layout *layout, dr_channel *channel, dr_role **out_role);
dr_status dr_reward_shard_create(const dr_run_settings *settings, const dr_run_assets *assets,
                                 const dr_layout *layout, dr_channel *channel, dr_role **out_role);
dr_status dr_worker_create(const dr_run_settings *settings, const dr_run_assets *assets,
                           const dr_layout *layout, dr_channel *channel, dr_collective *learners,
                           dr_role **out_role);

// Drives the roles of one process until all are done; sleeps when none has work.
dr_status dr_run_roles(dr_role **roles, int n);

// A role's side of a channel: messages numbered, heartbeats sent and expected.
typedef struct dr_mailbox {
    dr_channel *channel;
    const char *role;
    double deadline_s;
    uint64_t sent;
    double *heard; // [endpoints] when each was last heard
    double beat;   // when the last heartbeat went out; 0: none yet, and no silence counts
    dr_buf out, in;
    dr_buf heartbeat; // apart from out: goes out in the midst of other work
} dr_mailbox;
dr_status dr_mailbox_init(dr_mailbox *box, dr_channel *channel, const char *role, double deadline_s);
void dr_mailbox_reset(dr_mailbox *box);
dr_status dr_mailbox_send(dr_mailbox *box, int to, uint64_t policy_version); // what was begun in box->out
// A heartbeat to endpoints `first` … `last`, where one is due (dr_alive_every); a role calls it in each poll,
// and its listener in long work. Silence counts from the first call on.
dr_status dr_mailbox_beat(dr_mailbox *box, int first, int last);
// What this role did since `begun` (dr_clock_seconds) without looking for messages is no silence of others.
void dr_mailbox_excuse(dr_mailbox *box, double begun);
// DR_ERR_TIMEOUT when an endpoint of first … last has been silent for longer than the deadline; `phase` says
// what for.
dr_status dr_mailbox_watch(const dr_mailbox *box, int first, int last, const char *phase);

#ifdef __cplusplus
}
#endif
#endif
