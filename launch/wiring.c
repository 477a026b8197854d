// Roles, channels and backends of a training run.
#include "launch/wiring.h"

#include <omp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/log.h"
#include "launch/policy_memory.h"
#include "mpi/world.h"

enum { MAX_ENDPOINTS = 4096 };
static const double LEARNERS_GRACE_S = 2; // the coordinator, who hears all, names a silent one first

static void read_stage(const dr_config *c, const char *name, dr_stage_settings *out) {
    static const char *const weights[] = {"format", "invocation", "diversity", "hit", "rank", "similarity"};
    char key[64];
    snprintf(out->name, sizeof out->name, "%s", name);
#define STAGE_INT(field, setting)                                                                            \
    snprintf(key, sizeof key, "%s." setting, name);                                                          \
    out->field = (int32_t)dr_config_int(c, key)
    STAGE_INT(steps, "steps");
    STAGE_INT(prompts, "prompts");
    STAGE_INT(samples, "samples");
    STAGE_INT(updates, "updates");
    STAGE_INT(pool, "pool");
    STAGE_INT(difficulty_from, "difficulty_from");
    STAGE_INT(difficulty_to, "difficulty_to");
#undef STAGE_INT
    out->reward = dr_reward_defaults(DR_STAGE_REC);
    for (int i = 0; i < DR_REWARD_PARTS; i++) {
        snprintf(key, sizeof key, "%s.weight_%s", name, weights[i]);
        out->reward.weight[i] = (float)dr_config_float(c, key);
    }
    out->reward.k = (int32_t)dr_config_int(c, "protocol.k");
    out->reward.forbid_cjk = dr_config_bool(c, "reward.forbid_cjk");
    out->reward.invocation_step = (float)dr_config_float(c, "reward.invocation_step");
    out->reward.invocation_cap = (int32_t)dr_config_int(c, "reward.invocation_cap");
    out->reward.diversity_scale = (float)dr_config_float(c, "reward.diversity_scale");
    out->reward.rank_step = (float)dr_config_float(c, "reward.rank_step");
    out->reward.similarity_scale = (float)dr_config_float(c, "reward.similarity_scale");
}

void dr_wiring_settings(const dr_config *c, char hash[24], dr_run_settings *out) {
    dr_run_settings s = {.dir = dr_config_string(c, "run.dir"),
                         .config_hash = hash,
                         .seed = (uint64_t)dr_config_int(c, "run.seed"),
                         .deadline_s = dr_config_float(c, "run.deadline"),
                         .stop_after = (int32_t)dr_config_int(c, "run.stop_after"),
                         .sampling = {.temperature = (float)dr_config_float(c, "rollout.temperature"),
                                      .top_p = (float)dr_config_float(c, "rollout.top_p")},
                         .advantage = (dr_advantage_kind)dr_config_choice(c, "learn.advantage"),
                         .loss_mean = (dr_loss_mean)dr_config_choice(c, "learn.loss_mean"),
                         .pack_tokens = dr_config_int(c, "learn.pack_tokens"),
                         .activations =
                             dr_config_bool(c, "learn.recompute") ? DR_RECOMPUTE : DR_KEEP_ACTIVATIONS,
                         .checkpoint_every = (int32_t)dr_config_int(c, "checkpoint.every"),
                         .checkpoint_keep = (int32_t)dr_config_int(c, "checkpoint.keep"),
                         .keep_trajectories = dr_config_bool(c, "output.trajectories"),
                         .tensorboard = dr_config_bool(c, "output.tensorboard"),
                         .policy_dir = dr_config_string(c, "model.policy")};
    s.loss = (dr_loss_settings){.kind = DR_LOSS_POLICY,
                                .temperature = s.sampling.temperature > 0 ? s.sampling.temperature : 1.0f,
                                .clip_low = (float)dr_config_float(c, "learn.clip_low"),
                                .clip_high = (float)dr_config_float(c, "learn.clip_high"),
                                .kl = (dr_kl_kind)dr_config_choice(c, "learn.kl"),
                                .kl_weight = (float)dr_config_float(c, "learn.kl_weight")};
    s.optimizer = (dr_optimizer_settings){.beta1 = (float)dr_config_float(c, "learn.beta1"),
                                          .beta2 = (float)dr_config_float(c, "learn.beta2"),
                                          .epsilon = (float)dr_config_float(c, "learn.epsilon"),
                                          .weight_decay = (float)dr_config_float(c, "learn.weight_decay"),
                                          .clip_norm = (float)dr_config_float(c, "learn.gradient_clip")};
    read_stage(c, "stage1", &s.stages[0]);
    read_stage(c, "stage2", &s.stages[1]);
    s.schedule = (dr_schedule){.kind = (dr_schedule_kind)dr_config_choice(c, "learn.schedule"),
                               .peak = (float)dr_config_float(c, "learn.rate"),
                               .final_share = (float)dr_config_float(c, "learn.rate_end"),
                               .warmup_steps = dr_config_int(c, "learn.warmup")};
    *out = s;
}

// Which roles live on this process, and how many learners there are.
typedef struct placement {
    dr_world world;
    dr_layout layout;
    int process_of[MAX_ENDPOINTS];
} placement;

static dr_status place(const dr_config *c, placement *p) {
    int shards = (int)dr_config_int(c, "ranks.reward_shards"), n = p->world.size;
    if (n == 1) {
        p->layout = (dr_layout){shards, 1};
    } else if (n == 2) {
        p->layout = (dr_layout){shards, 1}; // rank 0 scores as well
    } else {
        DR_CHECK(shards < n - 1, DR_ERR_ARGUMENT,
                 "ranks.reward_shards is %d: of %d ranks one coordinates and one must work", shards, n);
        p->layout = (dr_layout){shards, n - 1 - shards};
    }
    int endpoints = dr_layout_endpoints(&p->layout);
    DR_CHECK(endpoints <= MAX_ENDPOINTS, DR_ERR_UNSUPPORTED, "%d endpoints, at most %d", endpoints,
             MAX_ENDPOINTS);
    for (int e = 0; e < endpoints; e++) p->process_of[e] = n == 1 ? 0 : n == 2 ? e == endpoints - 1 : e;
    return DR_OK;
}

// Threads of this process: what is asked for, or the node's cores shared evenly.
static int choose_threads(const dr_config *c, const dr_world *world) {
    int asked = (int)dr_config_int(c, "run.threads");
    int cores = (int)sysconf(_SC_NPROCESSORS_ONLN),
        each = cores / (world->local_size > 0 ? world->local_size : 1);
    int threads = asked > 0 ? asked : each < 1 ? 1 : each;
    omp_set_num_threads(threads);
    return threads;
}

// Whether a worker lives on a process.
static bool has_worker(const placement *p, int process) {
    for (int w = 0; w < p->layout.n_workers; w++)
        if (p->process_of[dr_layout_worker(&p->layout, w)] == process) return true;
    return false;
}

static dr_backend_choice choose_backend(const dr_config *c, const placement *p, int threads) {
    dr_backend_choice choice = {.kind = (dr_backend_kind)dr_config_choice(c, "model.backend"),
                                .precision = dr_train_precision(dr_config_choice(c, "model.precision")),
                                .threads = threads,
                                .may_share = dr_config_bool(c, "ranks.share_devices"),
                                .no_graphs = !dr_config_bool(c, "rollout.graphs"),
                                .option = "model.backend",
                                .is_default = !dr_config_is_given(c, "model.backend"),
                                .fast_option = "model.precision=bf16",
                                .reference = dr_config_choice(c, "model.kernels") == 1};
    if (!has_worker(p, p->world.rank)) { // only the shape of the policy is looked at here
        choice.kind = DR_BACKEND_CPU;
        choice.precision = DR_FP32;
        choice.option = NULL;
    }
    return choice;
}

static dr_policy_choice choose_policy(const dr_config *c, const placement *p, int threads) {
    return (dr_policy_choice){
        .dataset = dr_config_string(c, "data.dataset"),
        .trm = dr_config_string(c, "model.trm"),
        .text_encoder = dr_config_string(c, "model.text_encoder"),
        .prompt_template = dr_config_string(c, "protocol.template"),
        .chat = dr_config_string(c, "protocol.chat"),
        .backend = choose_backend(c, p, threads),
        .use = has_worker(p, p->world.rank) ? DR_POLICY_LEARNS : DR_POLICY_IS_ELSEWHERE,
        .protocol = {.k = (int32_t)dr_config_int(c, "protocol.k"),
                     .k_retrieve = (int32_t)dr_config_int(c, "protocol.k_retrieve"),
                     .max_retrievals = (int32_t)dr_config_int(c, "protocol.max_retrievals"),
                     .max_turn_tokens = (int32_t)dr_config_int(c, "protocol.max_turn_tokens"),
                     .max_total_tokens = (int32_t)dr_config_int(c, "protocol.max_total_tokens"),
                     .exclude_history = dr_config_bool(c, "protocol.exclude_history")},
        .max_live = (int32_t)dr_config_int(c, "rollout.max_live")};
}

// The engine's parts as the settings want them.
static dr_rollout_parts rollout_of(const dr_config *c, const dr_policy_parts *parts) {
    dr_rollout_parts rollout = dr_policy_parts_rollout(parts);
    rollout.prefill_tokens = (int32_t)dr_config_int(c, "rollout.prefill_tokens");
    rollout.burst = (int32_t)dr_config_int(c, "rollout.burst");
    return rollout;
}

// What the worker of this process will take, in one line, before it takes it.
static dr_status plan_memory(const dr_config *c, const dr_run_settings *settings,
                             const dr_policy_choice *choice, const dr_policy_parts *parts,
                             const dr_collective *learners, const dr_memory_place *place) {
    const dr_rollout_parts rollout = rollout_of(c, parts);
    const int64_t on_devices = dr_backend_collective_memory(&choice->backend, learners);
    dr_memory_needs needs = {.rollout = &rollout,
                             .pack_tokens = settings->pack_tokens,
                             .activations = settings->activations,
                             .has_reference = settings->loss.kl != DR_KL_OFF,
                             .n_learners = learners->size,
                             .collective = on_devices > 0 ? on_devices : learners->memory,
                             .reserve = dr_backend_reserve(&choice->backend, parts->backend, learners)};
    char who[32];
    snprintf(who, sizeof who, "worker %d", learners->rank);
    for (int s = 0; s < DR_STAGES; s++)
        if (settings->stages[s].samples > needs.n_samples) needs.n_samples = settings->stages[s].samples;
    return dr_policy_memory_plan(choice, parts, dr_config_string(c, "model.policy"), &needs, place, who);
}

static dr_status create_roles(const placement *p, const dr_run_settings *settings,
                              const dr_run_assets *assets, dr_channel **channels, dr_collective *learners,
                              dr_role **roles, int *n_roles) {
    for (int e = 0; e < dr_layout_endpoints(&p->layout); e++) {
        if (!channels[e]) continue;
        dr_role **role = &roles[*n_roles];
        if (e == 0)
            DR_TRY(dr_coordinator_create(settings, assets, &p->layout, channels[e], role));
        else if (e <= p->layout.n_shards)
            DR_TRY(dr_reward_shard_create(settings, assets, &p->layout, channels[e], role));
        else
            DR_TRY(dr_worker_create(settings, assets, &p->layout, channels[e], learners, role));
        (*n_roles)++;
    }
    return DR_OK;
}

static dr_status connect(const placement *p, double deadline_s, dr_channel **channels,
                         dr_collective **learners) {
    if (p->world.size == 1) {
        DR_TRY(dr_loopback_create(dr_layout_endpoints(&p->layout), channels));
        return dr_collective_alone_create(learners);
    }
    DR_TRY(dr_channel_mpi_create(p->process_of, dr_layout_endpoints(&p->layout), channels));
    int workers[MAX_ENDPOINTS];
    for (int w = 0; w < p->layout.n_workers; w++) workers[w] = p->process_of[dr_layout_worker(&p->layout, w)];
    DR_TRY(dr_collective_mpi_create(workers, p->layout.n_workers, deadline_s, learners));
    if (*learners) (*learners)->deadline_s += LEARNERS_GRACE_S;
    return DR_OK;
}

// What a process holds while it runs; learners: NULL where no worker lives.
typedef struct process_parts {
    dr_policy_parts policy;
    dr_channel *channels[MAX_ENDPOINTS];
    dr_collective *learners, *on_devices;
    dr_device_binding binding; // of the worker that lives here
    bool is_plan;              // ends with the plan
    dr_role *roles[MAX_ENDPOINTS];
    int n_roles;
} process_parts;

static dr_status meet(const dr_config *c, const placement *p) {
    return p->world.size > 1 ? dr_world_meet(&p->world, dr_config_float(c, "run.start_deadline")) : DR_OK;
}

// Which device this process's worker takes, from what all workers see.
static dr_status bind_device(const placement *p, const dr_backend_choice *choice, dr_collective *learners,
                             dr_device_binding *out) {
    dr_seen_devices *seen = NULL;
    dr_device_binding *bound = NULL;
    DR_TRY(dr_alloc(&seen, "devices of all workers", learners->size, sizeof *seen));
    dr_status status = dr_alloc(&bound, "devices of all workers", learners->size, sizeof *bound);
    seen[learners->rank].node = p->world.node;
    if (status == DR_OK) status = dr_backend_see(choice, &seen[learners->rank]);
    if (status == DR_OK) status = dr_devices_exchange(learners, seen);
    if (status == DR_OK) {
        dr_devices_bind(seen, learners->size, bound);
        *out = bound[learners->rank];
    }
    dr_free(bound);
    dr_free(seen);
    return status;
}

// Returns when all workers have come here.
static dr_status wait_for_workers(dr_collective *learners) {
    double one = 1;
    return learners->ops->allreduce_sum_double(learners, &one, 1);
}

// A worker's device, what is planned for it, and then all but the policy. What is free is looked at when all
// workers have their backends, and before any of them can have begun to take more.
static dr_status prepare_worker(const dr_config *c, const placement *p, const dr_run_settings *settings,
                                dr_policy_choice *choice, process_parts *own) {
    dr_memory_place place;
    DR_TRY(bind_device(p, &choice->backend, own->learners, &own->binding));
    choice->backend.binding = &own->binding;
    DR_TRY(dr_policy_parts_backends(choice, &own->policy));
    DR_TRY(wait_for_workers(own->learners));
    DR_TRY(dr_policy_memory_place(choice, &own->policy, &place));
    DR_TRY(wait_for_workers(own->learners));
    DR_TRY(plan_memory(c, settings, choice, &own->policy, own->learners, &place));
    if (own->is_plan) return DR_OK;
    // before what takes some workers longer than others: its deadline is that of one exchange
    DR_TRY(dr_backend_collective(&choice->backend, own->policy.backend, own->learners, &own->on_devices));
    return dr_policy_parts_retrieval(choice, &own->policy);
}

// Everything but the policy and the roles. Who is no worker has its retrieval model before any worker looks
// at what is free.
static dr_status prepare(const dr_config *c, const placement *p, const dr_run_settings *settings, int threads,
                         process_parts *own) {
    dr_policy_choice choice = choose_policy(c, p, threads);
    bool works = has_worker(p, p->world.rank);
    DR_TRY(dr_policy_parts_data(&choice, &own->policy));
    if (!works) DR_TRY(dr_policy_parts_backends(&choice, &own->policy));
    if (!works) DR_TRY(dr_policy_parts_retrieval(&choice, &own->policy));
    DR_TRY(meet(c, p));
    DR_TRY(connect(p, settings->deadline_s, own->channels, &own->learners));
    return works ? prepare_worker(c, p, settings, &choice, own) : DR_OK;
}

static dr_status run_prepared(const dr_config *c, const placement *p, const dr_run_settings *settings,
                              process_parts *own, int *out_interrupted) {
    if (own->learners) {
        own->policy.learner = own->learners->rank;
        own->policy.n_learners = own->learners->size;
    }
    DR_TRY(dr_policy_parts_model(&own->policy, dr_config_string(c, "model.policy")));
    dr_run_assets assets = {.rollout = rollout_of(c, &own->policy), .backend = own->policy.backend};
    assets.rollout.retrieval_deadline_s = settings->deadline_s;
    dr_status status =
        create_roles(p, settings, &assets, own->channels, own->on_devices ? own->on_devices : own->learners,
                     own->roles, &own->n_roles);
    if (status == DR_OK) status = meet(c, p); // deadlines begin when the slowest has its weights and memory
    if (status == DR_OK) status = dr_run_roles(own->roles, own->n_roles);
    if (own->n_roles > 0 && own->roles[0]) *out_interrupted = own->roles[0]->was_interrupted;
    return status;
}

static void close_parts(const placement *p, process_parts *own) {
    for (int r = 0; r < own->n_roles; r++) own->roles[r]->ops->destroy(own->roles[r]);
    for (int e = 0; e < dr_layout_endpoints(&p->layout); e++)
        if (own->channels[e]) own->channels[e]->ops->destroy(own->channels[e]);
    if (own->on_devices) own->on_devices->ops->destroy(own->on_devices);
    if (own->learners) own->learners->ops->destroy(own->learners);
    dr_policy_parts_close(&own->policy);
    dr_free(own);
}

// The others wait for a peer that has failed. Comes before anything is given back: memory of a device is only
// when the device is done, which waits without a deadline for exchanges that the others may never make.
static void abort_on_failure(const placement *p, dr_status status) {
    if (status != DR_OK && p->world.size > 1) dr_world_abort(1);
}

static dr_status run_placed(const dr_config *c, const dr_run_settings *settings, bool is_plan, placement *p,
                            int *out_interrupted) {
    process_parts *own = NULL;
    DR_TRY(place(c, p));
    DR_TRY(dr_alloc(&own, "parts of a process", 1, sizeof *own));
    int threads = choose_threads(c, &p->world);
    if (p->world.rank == 0)
        dr_info("%d process%s: coordinator, %d reward shard%s, %d worker%s; %d thread%s each", p->world.size,
                p->world.size > 1 ? "es" : "", p->layout.n_shards, p->layout.n_shards > 1 ? "s" : "",
                p->layout.n_workers, p->layout.n_workers > 1 ? "s" : "", threads, threads > 1 ? "s" : "");
    own->is_plan = is_plan;
    dr_status status = prepare(c, p, settings, threads, own);
    if (status == DR_OK && !is_plan) status = run_prepared(c, p, settings, own, out_interrupted);
    abort_on_failure(p, status);
    close_parts(p, own);
    return status;
}

dr_status dr_wiring_run(const dr_cli *cli, const dr_config *config, const dr_run_settings *settings,
                        bool is_plan, int *out_interrupted) {
    placement *p = NULL;
    DR_TRY(dr_alloc(&p, "placement", 1, sizeof *p));
    p->world = (dr_world){.size = 1, .local_size = 1};
    int argc = cli->argc;
    char **argv = cli->argv;
    bool launched = dr_world_is_launched();
    double deadline_s = dr_config_float(config, "run.start_deadline");
    dr_status status = launched ? dr_world_init(&argc, &argv, deadline_s, &p->world) : DR_OK;
    if (status == DR_OK && p->world.size > 1) dr_log_set_identity("rank", p->world.rank);
    if (status == DR_OK) status = run_placed(config, settings, is_plan, p, out_interrupted);
    abort_on_failure(p, status);
    if (launched) dr_world_finalize(deadline_s);
    dr_free(p);
    return status;
}
