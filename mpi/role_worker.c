// Worker: rolls out the prompts it is given and learns from them, on one weights buffer. Rollout is driven
// tick by tick between messages, so that heartbeats go on.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/alloc.h"
#include "core/base/clock.h"
#include "core/base/log.h"
#include "core/comm/message.h"
#include "core/learn/checkpoint.h"
#include "mpi/metrics_log.h"
#include "mpi/run.h"

typedef struct worker {
    dr_role base;
    const dr_run_settings *settings;
    const dr_run_assets *assets;
    dr_layout layout;
    dr_mailbox box;
    int index;
    dr_collective *learners;
    dr_rollout *rollout;
    dr_optimizer *optimizer;
    dr_learner *learner;
    dr_lm *reference; // frozen policy of the KL penalty, NULL when off
    char reference_dir[1024];
    float *gradient;
    dr_trajectory *held; // of the running step
    int32_t n_held, capacity;
    uint32_t step;
    bool is_rolling;
    double rollout_start, rollout_s;
} worker;

static void drop_held(worker *w) {
    for (int32_t i = 0; i < w->n_held; i++) dr_trajectory_reset(&w->held[i]);
    w->n_held = 0;
}

// The engine is made anew each step: its cache belongs to one version of the weights.
static dr_status on_plan(worker *w, uint32_t step, dr_reader *reader) {
    uint32_t n = 0, samples = 0;
    drop_held(w);
    w->step = step;
    dr_rollout_destroy(w->rollout);
    w->rollout = NULL;
    DR_TRY(dr_rollout_create(&w->assets->rollout, &w->rollout));
    DR_TRY(dr_get_u32(reader, &samples));
    DR_TRY(dr_get_count(reader, 12, &n));
    for (uint32_t i = 0; i < n; i++) {
        uint32_t prompt, user, target;
        DR_TRY(dr_get_u32(reader, &prompt));
        DR_TRY(dr_get_u32(reader, &user));
        DR_TRY(dr_get_u32(reader, &target));
        dr_example e;
        DR_CHECK(user < (uint32_t)w->assets->rollout.dataset->n_users &&
                     dr_dataset_example(w->assets->rollout.dataset, (int32_t)user, DR_SPLIT_TRAIN, &e),
                 DR_ERR_PEER, "worker %d: no training example of user %u", w->index, user);
        dr_rollout_request request = {.seed = w->settings->seed,
                                      .step = step,
                                      .prompt = prompt,
                                      .n_samples = (int32_t)samples,
                                      .user = (int32_t)user,
                                      .target = (int32_t)target,
                                      .history = e.history,
                                      .n_history = e.n_history,
                                      .sampling = w->settings->sampling};
        DR_TRY(dr_rollout_submit(w->rollout, &request));
    }
    DR_TRY(dr_reader_end(reader));
    w->is_rolling = true;
    w->rollout_start = dr_clock_seconds();
    return DR_OK;
}

static dr_status send_trajectory(worker *w, dr_trajectory *t) {
    t->policy_version = (uint64_t)dr_optimizer_updates(w->optimizer);
    DR_TRY(dr_message_begin(&w->box.out, DR_MSG_TRAJECTORY, w->step));
    DR_TRY(dr_trajectory_encode(t, &w->box.out));
    DR_TRY(dr_mailbox_send(&w->box, dr_layout_shard_of(&w->layout, t->prompt), t->policy_version));
    if (w->n_held == w->capacity) {
        DR_TRY(dr_grow(&w->held, "trajectories", w->capacity, 2 * w->capacity + 64, sizeof *w->held));
        w->capacity = 2 * w->capacity + 64;
    }
    w->held[w->n_held++] = *t;
    return DR_OK;
}

static dr_status roll(worker *w) {
    dr_trajectory t = {0};
    DR_TRY(dr_rollout_tick(w->rollout));
    while (dr_rollout_take(w->rollout, &t)) {
        dr_status status = send_trajectory(w, &t);
        if (status != DR_OK) {
            dr_trajectory_reset(&t);
            return status;
        }
        t = (dr_trajectory){0};
    }
    if (dr_rollout_pending(w->rollout) == 0) {
        w->is_rolling = false;
        w->rollout_s = dr_clock_seconds() - w->rollout_start;
    }
    return DR_OK;
}

static int by_key(const void *a, const void *b) {
    const dr_trajectory *x = a, *y = b;
    if (x->prompt != y->prompt) return x->prompt < y->prompt ? -1 : 1;
    return x->sample < y->sample ? -1 : x->sample > y->sample;
}

static dr_status make_learner(worker *w) {
    return dr_learner_create(w->assets->rollout.lm, w->reference, w->settings->pack_tokens,
                             w->assets->rollout.protocol.max_total_tokens, w->settings->activations,
                             &w->learner);
}

// Loads the frozen policy when the stage's one is another than the one held, which goes first: the memory
// plan has room for one.
static dr_status use_reference(worker *w, const char *dir) {
    if (w->settings->loss.kl == DR_KL_OFF || strcmp(w->reference_dir, dir) == 0) return DR_OK;
    dr_learner_destroy(w->learner);
    dr_lm_destroy(w->reference);
    w->learner = NULL;
    w->reference = NULL;
    DR_TRY(dr_lm_load_frozen(w->assets->backend, dir, &w->reference));
    snprintf(w->reference_dir, sizeof w->reference_dir, "%s", dir);
    return make_learner(w);
}

static dr_status send_gradient(void *context, int64_t begin, int64_t end) {
    worker *w = context;
    (void)end; // what follows was sent before
    return dr_optimizer_reduce_begin(w->optimizer, w->gradient, begin);
}

// One optimizer update on this worker's share of the batch; every learner makes the same step.
static dr_status update(worker *w, const dr_learn_item *items, int32_t n, float rate, dr_learn_stats *stats,
                        double *out_norm) {
    dr_backend *b = dr_lm_backend(w->assets->rollout.lm);
    int64_t n_params = dr_lm_n_params(w->assets->rollout.lm);
    const dr_gradient_ready ready = {send_gradient, w};
    b->ops->zero(b, w->gradient, (size_t)n_params * sizeof(float));
    DR_TRY(dr_learner_accumulate(w->learner, items, n, &w->settings->loss, w->gradient, &ready, stats));
    DR_TRY(dr_optimizer_reduce(w->optimizer, w->gradient));
    return dr_optimizer_step(w->optimizer, w->gradient, rate, out_norm);
}

static dr_status read_update(worker *w, dr_reader *reader, dr_learn_item *items, int32_t *out_n,
                             float *out_rate) {
    uint32_t n = 0;
    int32_t used = 0;
    DR_TRY(dr_get_f32(reader, out_rate));
    DR_TRY(dr_get_count(reader, 16, &n));
    for (uint32_t i = 0; i < n; i++) {
        dr_trajectory key = {0};
        float advantage, weight;
        DR_TRY(dr_get_u32(reader, &key.prompt));
        DR_TRY(dr_get_u32(reader, &key.sample));
        DR_TRY(dr_get_f32(reader, &advantage));
        DR_TRY(dr_get_f32(reader, &weight));
        const dr_trajectory *found = bsearch(&key, w->held, (size_t)w->n_held, sizeof *w->held, by_key);
        DR_CHECK(found && used < w->n_held, DR_ERR_PEER, "worker %d: trajectory %u/%u of step %u is not here",
                 w->index, key.prompt, key.sample, w->step);
        items[used++] = (dr_learn_item){found, advantage, weight};
    }
    *out_n = used;
    return DR_OK;
}

static dr_status send_trained(worker *w, const dr_learn_stats *s, double norm, double rate, double train_s) {
    dr_rollout_stats now;
    dr_rollout_stats_get(w->rollout, &now);
    double values[DR_METRIC_SUMS] = {s->tokens,
                                     s->run_tokens,
                                     s->loss,
                                     s->entropy,
                                     s->ratio,
                                     s->clipped,
                                     s->kl,
                                     s->logprob_gap,
                                     norm,
                                     rate,
                                     train_s,
                                     w->rollout_s,
                                     (double)now.sampled_tokens,
                                     (double)(now.prompt_tokens + now.tool_tokens),
                                     now.retrieve_s,
                                     (double)now.retrievals,
                                     (double)now.short_bursts,
                                     (double)now.idle_rows};
    DR_TRY(dr_message_begin(&w->box.out, DR_MSG_TRAINED, w->step));
    for (int i = 0; i < DR_METRIC_SUMS; i++) DR_TRY(dr_put_f64(&w->box.out, values[i]));
    return dr_mailbox_send(&w->box, 0, (uint64_t)dr_optimizer_updates(w->optimizer));
}

static dr_status on_train(worker *w, dr_reader *reader) {
    uint32_t n_updates = 0;
    dr_learn_item *items = NULL;
    dr_learn_stats stats = {0};
    double start = dr_clock_seconds(), norm = 0, rate = 0;
    dr_buf reference = {0};
    if (w->step == (uint32_t)w->settings->stages[0].steps + 1) dr_optimizer_restart(w->optimizer);
    qsort(w->held, (size_t)w->n_held, sizeof *w->held, by_key);
    DR_TRY(dr_alloc(&items, "update items", w->n_held, sizeof *items));
    dr_status status = dr_get_text(reader, &reference);
    if (status == DR_OK) status = use_reference(w, reference.data);
    if (status == DR_OK) status = dr_get_u32(reader, &n_updates);
    for (uint32_t u = 0; u < n_updates && status == DR_OK; u++) {
        int32_t n = 0;
        float update_rate = 0;
        status = read_update(w, reader, items, &n, &update_rate);
        if (status == DR_OK) status = update(w, items, n, update_rate, &stats, &norm);
        rate = update_rate;
    }
    dr_buf_reset(&reference);
    dr_free(items);
    DR_TRY(status);
    DR_TRY(dr_reader_end(reader));
    return send_trained(w, &stats, norm, rate, dr_clock_seconds() - start);
}

static dr_status reply_done(worker *w, uint32_t step) {
    DR_TRY(dr_message_begin(&w->box.out, DR_MSG_DONE, step));
    return dr_mailbox_send(&w->box, 0, (uint64_t)dr_optimizer_updates(w->optimizer));
}

static dr_status on_save(worker *w, uint32_t step) {
    char *dir = NULL;
    dr_checkpoint_file file;
    DR_TRY(dr_checkpoint_dir(w->settings->dir, step, &dir));
    dr_status status = dr_checkpoint_write_part(w->assets->rollout.lm, w->optimizer, dir, w->index,
                                                w->layout.n_workers, &file);
    dr_free(dir);
    DR_TRY(status);
    DR_TRY(dr_message_begin(&w->box.out, DR_MSG_SAVED, step));
    DR_TRY(dr_put_u32(&w->box.out, (uint32_t)w->index));
    DR_TRY(dr_put_text(&w->box.out, file.name));
    DR_TRY(dr_put_u64(&w->box.out, (uint64_t)file.bytes));
    DR_TRY(dr_put_text(&w->box.out, file.digest));
    DR_TRY(dr_put_u64(&w->box.out, (uint64_t)dr_optimizer_updates(w->optimizer)));
    return dr_mailbox_send(&w->box, 0, (uint64_t)dr_optimizer_updates(w->optimizer));
}

static dr_status on_load(worker *w, uint32_t step) {
    char *dir = NULL;
    DR_TRY(dr_checkpoint_dir(w->settings->dir, step, &dir));
    dr_status status = dr_checkpoint_load(w->assets->rollout.lm, w->optimizer, dir);
    dr_free(dir);
    DR_TRY(status);
    return reply_done(w, step);
}

// A policy's folder comes behind its checkpoint, which has the weights that this worker does not.
static dr_status on_export(worker *w, uint32_t step, dr_reader *reader) {
    dr_lm *lm = w->assets->rollout.lm;
    dr_buf dir = {0};
    char *checkpoint = NULL;
    dr_status status = dr_get_text(reader, &dir);
    if (status == DR_OK) status = dr_tokenizer_save(w->assets->rollout.tokenizer, dir.data);
    if (status == DR_OK) status = dr_checkpoint_dir(w->settings->dir, step, &checkpoint);
    if (status == DR_OK)
        status = dr_lm_params(lm) ? dr_lm_save(lm, dir.data, DR_SAVE_FP32)
                                  : dr_checkpoint_export(lm, checkpoint, dir.data);
    dr_free(checkpoint);
    dr_buf_reset(&dir);
    DR_TRY(status);
    return reply_done(w, step);
}

static dr_status handle(worker *w) {
    dr_message_header header;
    dr_reader reader;
    DR_TRY(dr_message_open(w->box.in.data, w->box.in.length, &header, &reader));
    switch (header.type) {
    case DR_MSG_HEARTBEAT:
        return DR_OK;
    case DR_MSG_PLAN:
        return on_plan(w, header.step, &reader);
    case DR_MSG_TRAIN:
        return on_train(w, &reader);
    case DR_MSG_SAVE:
        return on_save(w, header.step);
    case DR_MSG_LOAD:
        return on_load(w, header.step);
    case DR_MSG_EXPORT:
        return on_export(w, header.step, &reader);
    case DR_MSG_STOP:
        w->base.is_done = true;
        return DR_OK;
    default:
        return DR_FAIL(DR_ERR_PEER, "worker %d: unexpected message %s", w->index,
                       dr_message_name(header.type));
    }
}

static dr_status worker_poll(dr_role *role, bool *out_worked) {
    worker *w = (worker *)role;
    int from = -1;
    DR_TRY(w->box.channel->ops->poll(w->box.channel, &from, &w->box.in));
    DR_TRY(dr_mailbox_beat(&w->box, 0, 0));
    if (from < 0 && !w->is_rolling) return dr_mailbox_watch(&w->box, 0, 0, "waiting for work");
    double begun = dr_clock_seconds();
    if (from >= 0) w->box.heard[from] = begun;
    *out_worked = true;
    DR_TRY(from >= 0 ? handle(w) : roll(w));
    dr_mailbox_excuse(&w->box, begun);
    return DR_OK;
}

// Long work goes on: the coordinator hears it, and the learners who wait for this one's part of an update.
static dr_status hear(void *context, bool is_waiting) {
    worker *w = context;
    DR_TRY(dr_mailbox_beat(&w->box, 0, 0));
    return is_waiting ? DR_OK : w->learners->ops->alive(w->learners);
}

static void worker_destroy(dr_role *role) {
    worker *w = (worker *)role;
    drop_held(w);
    dr_free(w->held);
    dr_rollout_destroy(w->rollout);
    dr_learner_destroy(w->learner);
    dr_optimizer_destroy(w->optimizer);
    dr_lm_destroy(w->reference);
    dr_backend *b = dr_lm_backend(w->assets->rollout.lm);
    b->ops->memory_destroy(b, w->gradient);
    dr_mailbox_reset(&w->box);
    dr_free(w);
}

static const dr_role_ops ops = {"worker", worker_poll, worker_destroy};

dr_status dr_worker_create(const dr_run_settings *settings, const dr_run_assets *assets,
                           const dr_layout *layout, dr_channel *channel, dr_collective *learners,
                           dr_role **out_role) {
    worker *w = NULL;
    DR_TRY(dr_alloc(&w, "worker", 1, sizeof *w));
    w->base.ops = &ops;
    w->base.alive = (dr_alive_listener){hear, w};
    w->settings = settings;
    w->assets = assets;
    w->layout = *layout;
    w->learners = learners;
    w->index = channel->rank - 1 - layout->n_shards;
    dr_lm *lm = assets->rollout.lm;
    dr_status status = dr_mailbox_init(&w->box, channel, ops.name, settings->deadline_s);
    if (status == DR_OK) status = dr_optimizer_create(lm, &settings->optimizer, learners, &w->optimizer);
    if (status == DR_OK) status = make_learner(w);
    if (status == DR_OK)
        status =
            dr_memory_create(dr_lm_backend(lm), &w->gradient, "gradient", dr_lm_n_params(lm), sizeof(float));
    if (status != DR_OK) {
        worker_destroy(&w->base);
        return status;
    }
    *out_role = &w->base;
    return DR_OK;
}
