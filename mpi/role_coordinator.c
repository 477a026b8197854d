// Coordinator: picks prompts, turns rewards into credits, starts updates, writes metrics and manifests. It
// handles numbers, never token arrays. A step goes through the phases below; messages move it on.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/alloc.h"
#include "core/base/clock.h"
#include "core/base/file.h"
#include "core/base/log.h"
#include "core/base/rng.h"
#include "core/comm/message.h"
#include "core/learn/checkpoint.h"
#include "mpi/metrics_log.h"
#include "mpi/run.h"

typedef enum phase { START, LOADING, PLANNING, ROLLING, TRAINING, SAVING, EXPORTING, ENDING } phase;
static const char *const phase_names[] = {"start",    "loading", "planning",  "rollout",
                                          "training", "saving",  "exporting", "end"};

typedef struct coordinator {
    dr_role base;
    const dr_run_settings *settings;
    const dr_run_assets *assets;
    dr_layout layout;
    dr_mailbox box;
    phase phase;
    int32_t *samples[DR_STAGES]; // users of each stage, in the run's order; disjoint
    int32_t n_samples[DR_STAGES];
    int64_t step, steps_this_start; // step: done so far
    int64_t updates;
    int32_t stage;
    dr_metric_record *records; // of the running step
    int32_t n_records, expected;
    int32_t awaited; // answers still missing
    dr_step_metrics metrics;
    dr_metrics_log *log;
    dr_checkpoint_info checkpoint;
    double step_start, scores_in;
    bool stop_after;
} coordinator;

static int64_t total_steps(const coordinator *c) {
    return (int64_t)c->settings->stages[0].steps + c->settings->stages[1].steps;
}

static int32_t stage_of(const coordinator *c, int64_t step) {
    return step < c->settings->stages[0].steps ? 0 : 1;
}

// ---- samples ----

// Ranks of every user's training target by the retrieval model alone (1 = best), 0 for users without one.
static dr_status rank_targets(const coordinator *c, int32_t *ranks) {
    enum { CHUNK = 128 };
    const dr_dataset *d = c->assets->rollout.dataset;
    int64_t N = (int64_t)d->n_items + 1;
    float *scores = NULL;
    dr_trm_query queries[CHUNK];
    int32_t users[CHUNK], targets[CHUNK], n = 0;
    DR_TRY(dr_alloc(&scores, "difficulty scores", CHUNK * N, sizeof(float)));
    dr_status status = DR_OK;
    for (int32_t u = 0; u <= d->n_users && status == DR_OK; u++) {
        dr_example e;
        if (u < d->n_users && dr_dataset_example(d, u, DR_SPLIT_TRAIN, &e)) {
            queries[n] = (dr_trm_query){e.history, e.n_history, NULL};
            targets[n] = e.target;
            users[n++] = u;
        }
        if (n < CHUNK && u < d->n_users) continue;
        if (n > 0) status = dr_trm_score(c->assets->rollout.trm, queries, n, scores);
        if (status == DR_OK) status = dr_alive_work();
        for (int32_t q = 0; q < n && status == DR_OK; q++) {
            float *row = scores + q * N;
            if (c->assets->rollout.protocol.exclude_history)
                for (int32_t i = 0; i < queries[q].n_history; i++)
                    if (queries[q].history[i] != targets[q]) row[queries[q].history[i]] = -2.0f;
            int32_t rank = 1;
            for (int64_t i = 1; i < N; i++)
                rank += row[i] > row[targets[q]] || (row[i] == row[targets[q]] && i < targets[q]);
            ranks[users[q]] = rank;
        }
        n = 0;
    }
    dr_free(scores);
    return status;
}

// One seeded order of users, dealt out to the stages in proportion to what they need, so that no user serves
// both.
static dr_status deal_samples(coordinator *c) {
    const dr_dataset *d = c->assets->rollout.dataset;
    int32_t *ranks = NULL, *order = NULL;
    double need[DR_STAGES];
    for (int s = 0; s < DR_STAGES; s++) {
        const dr_stage_settings *t = &c->settings->stages[s];
        need[s] = (double)t->steps * t->prompts;
        if (t->pool > 0 && need[s] > t->pool) need[s] = t->pool;
        DR_TRY(dr_alloc(&c->samples[s], "stage samples", d->n_users, sizeof(int32_t)));
    }
    DR_TRY(dr_alloc(&ranks, "target ranks", d->n_users, sizeof *ranks));
    DR_TRY(dr_alloc(&order, "order of users", d->n_users, sizeof *order));
    DR_TRY(rank_targets(c, ranks));
    for (int32_t u = 0; u < d->n_users; u++) order[u] = u;
    dr_rng rng = dr_rng_make(c->settings->seed, 0x5A3B1E);
    dr_rng_shuffle(&rng, order, d->n_users);
    double given[DR_STAGES] = {0};
    for (int32_t i = 0; i < d->n_users; i++) {
        int32_t user = order[i], rank = ranks[user];
        bool fits[DR_STAGES];
        for (int s = 0; s < DR_STAGES; s++) {
            const dr_stage_settings *t = &c->settings->stages[s];
            fits[s] = rank > 0 && need[s] > 0 && (t->pool == 0 || c->n_samples[s] < t->pool) &&
                      (t->difficulty_to == 0 || (rank >= t->difficulty_from && rank <= t->difficulty_to));
        }
        if (!fits[0] && !fits[1]) continue;
        int s = !fits[0] ? 1 : !fits[1] ? 0 : given[0] * need[1] <= given[1] * need[0] ? 0 : 1;
        c->samples[s][c->n_samples[s]++] = user;
        given[s]++;
    }
    dr_free(ranks);
    dr_free(order);
    for (int s = 0; s < DR_STAGES; s++) {
        DR_CHECK(need[s] == 0 || c->n_samples[s] > 0, DR_ERR_ARGUMENT,
                 "%s: no training sample has its target at rank %d to %d of the retrieval model",
                 c->settings->stages[s].name, c->settings->stages[s].difficulty_from,
                 c->settings->stages[s].difficulty_to);
        if (need[s] > 0)
            dr_info("%s: %d training samples with the target at rank %d to %d, %d steps of %d",
                    c->settings->stages[s].name, c->n_samples[s], c->settings->stages[s].difficulty_from,
                    c->settings->stages[s].difficulty_to, c->settings->stages[s].steps,
                    c->settings->stages[s].prompts);
    }
    return DR_OK;
}

// ---- sending ----

static dr_status send_simple(coordinator *c, int to, dr_message_type type, uint32_t step) {
    DR_TRY(dr_message_begin(&c->box.out, type, step));
    return dr_mailbox_send(&c->box, to, (uint64_t)c->updates);
}

static dr_status to_all_workers(coordinator *c, dr_message_type type, uint32_t step) {
    for (int w = 0; w < c->layout.n_workers; w++)
        DR_TRY(send_simple(c, dr_layout_worker(&c->layout, w), type, step));
    c->awaited = c->layout.n_workers;
    return DR_OK;
}

static int32_t prompt_user(const coordinator *c, int64_t step, int32_t i) {
    int64_t in_stage = step - (c->stage ? c->settings->stages[0].steps : 0);
    int64_t number = in_stage * c->settings->stages[c->stage].prompts + i;
    return c->samples[c->stage][number % c->n_samples[c->stage]];
}

// Prompt i of the step goes to worker i mod n. The draw key holds i, so the split changes nothing.
static dr_status send_plans(coordinator *c) {
    const dr_stage_settings *s = &c->settings->stages[c->stage];
    uint32_t step = (uint32_t)c->step + 1;
    for (int e = 1; e <= c->layout.n_shards; e++) {
        DR_TRY(dr_message_begin(&c->box.out, DR_MSG_EXPECT, step));
        DR_TRY(dr_put_u32(&c->box.out, (uint32_t)c->stage));
        DR_TRY(dr_mailbox_send(&c->box, e, (uint64_t)c->updates));
    }
    for (int w = 0; w < c->layout.n_workers; w++) {
        uint32_t n = 0;
        for (int32_t i = w; i < s->prompts; i += c->layout.n_workers) n++;
        DR_TRY(dr_message_begin(&c->box.out, DR_MSG_PLAN, step));
        DR_TRY(dr_put_u32(&c->box.out, (uint32_t)s->samples));
        DR_TRY(dr_put_u32(&c->box.out, n));
        for (int32_t i = w; i < s->prompts; i += c->layout.n_workers) {
            dr_example e;
            int32_t user = prompt_user(c, c->step, i);
            DR_CHECK(dr_dataset_example(c->assets->rollout.dataset, user, DR_SPLIT_TRAIN, &e),
                     DR_ERR_INTERNAL, "user %d has no training example", user);
            DR_TRY(dr_put_u32(&c->box.out, (uint32_t)i));
            DR_TRY(dr_put_u32(&c->box.out, (uint32_t)user));
            DR_TRY(dr_put_u32(&c->box.out, (uint32_t)e.target));
        }
        DR_TRY(dr_mailbox_send(&c->box, dr_layout_worker(&c->layout, w), (uint64_t)c->updates));
    }
    c->expected = s->prompts * s->samples;
    c->n_records = 0;
    memset(&c->metrics, 0, sizeof c->metrics);
    c->step_start = dr_clock_seconds();
    c->phase = ROLLING;
    return DR_OK;
}

// The update a record belongs to: prompts are cut into equal runs.
static int32_t update_of(const dr_stage_settings *s, int32_t record) {
    int64_t n = (int64_t)s->prompts * s->samples;
    return (int32_t)((int64_t)record * s->updates / n);
}

static void reference_dir(const coordinator *c, char out[1024]) {
    if (c->stage == 1 && c->settings->stages[0].steps > 0)
        snprintf(out, 1024, "%.1000s/policy_stage1", c->settings->dir);
    else
        snprintf(out, 1024, "%.1000s", c->settings->policy_dir);
}

static dr_status send_credits(coordinator *c, const dr_credit *credits) {
    for (int e = 1; e <= c->layout.n_shards; e++) {
        uint32_t n = 0;
        for (int32_t i = 0; i < c->n_records; i++)
            n += dr_layout_shard_of(&c->layout, credits[i].prompt) == e;
        DR_TRY(dr_message_begin(&c->box.out, DR_MSG_CREDIT, (uint32_t)c->step + 1));
        DR_TRY(dr_put_u32(&c->box.out, n));
        for (int32_t i = 0; i < c->n_records; i++) {
            if (dr_layout_shard_of(&c->layout, credits[i].prompt) != e) continue;
            DR_TRY(dr_put_u32(&c->box.out, credits[i].prompt));
            DR_TRY(dr_put_u32(&c->box.out, credits[i].sample));
            DR_TRY(dr_put_f32(&c->box.out, credits[i].advantage));
        }
        DR_TRY(dr_mailbox_send(&c->box, e, (uint64_t)c->updates));
    }
    return DR_OK;
}

// Each stage is a run of its own, as in the original: its schedule begins anew, and so do the workers'
// moments.
static float rate_of(const coordinator *c, int32_t update) {
    const dr_stage_settings *s = &c->settings->stages[c->stage];
    dr_schedule schedule = c->settings->schedule;
    schedule.total_steps = (int64_t)s->steps * s->updates;
    int64_t in_stage = c->step - (c->stage ? c->settings->stages[0].steps : 0);
    return dr_schedule_rate(&schedule, in_stage * s->updates + update);
}

static dr_status send_training(coordinator *c, const dr_credit *credits) {
    const dr_stage_settings *s = &c->settings->stages[c->stage];
    char reference[1024];
    reference_dir(c, reference);
    for (int w = 0; w < c->layout.n_workers; w++) {
        DR_TRY(dr_message_begin(&c->box.out, DR_MSG_TRAIN, (uint32_t)c->step + 1));
        DR_TRY(dr_put_text(&c->box.out, reference));
        DR_TRY(dr_put_u32(&c->box.out, (uint32_t)s->updates));
        for (int32_t u = 0; u < s->updates; u++) {
            uint32_t n = 0;
            for (int32_t i = 0; i < c->n_records; i++)
                n += update_of(s, i) == u && (int)(credits[i].prompt % (uint32_t)c->layout.n_workers) == w;
            DR_TRY(dr_put_f32(&c->box.out, rate_of(c, u)));
            DR_TRY(dr_put_u32(&c->box.out, n));
            for (int32_t i = 0; i < c->n_records; i++) {
                if (update_of(s, i) != u || (int)(credits[i].prompt % (uint32_t)c->layout.n_workers) != w)
                    continue;
                DR_TRY(dr_put_u32(&c->box.out, credits[i].prompt));
                DR_TRY(dr_put_u32(&c->box.out, credits[i].sample));
                DR_TRY(dr_put_f32(&c->box.out, credits[i].advantage));
                DR_TRY(dr_put_f32(&c->box.out, credits[i].token_weight));
            }
        }
        DR_TRY(dr_mailbox_send(&c->box, dr_layout_worker(&c->layout, w), (uint64_t)c->updates));
    }
    c->updates += s->updates;
    c->awaited = c->layout.n_workers + c->layout.n_shards;
    c->phase = TRAINING;
    return DR_OK;
}

static int by_key(const void *a, const void *b) {
    const dr_metric_record *x = a, *y = b;
    if (x->prompt != y->prompt) return x->prompt < y->prompt ? -1 : 1;
    return x->sample < y->sample ? -1 : x->sample > y->sample;
}

// All rewards are here: advantages and weights per update batch, in prompt and sample order whatever the
// arrival.
static dr_status start_training(coordinator *c) {
    const dr_stage_settings *s = &c->settings->stages[c->stage];
    dr_credit *credits = NULL;
    c->scores_in = dr_clock_seconds();
    qsort(c->records, (size_t)c->n_records, sizeof *c->records, by_key);
    DR_TRY(dr_alloc(&credits, "credits", c->n_records, sizeof *credits));
    for (int32_t i = 0; i < c->n_records; i++) {
        const dr_metric_record *r = &c->records[i];
        credits[i] = (dr_credit){.prompt = r->prompt,
                                 .sample = r->sample,
                                 .reward = r->reward,
                                 .n_sampled = (int32_t)r->n_sampled,
                                 .trains = (r->flags & 1) != 0};
    }
    for (int32_t begin = 0; begin < c->n_records;) {
        int32_t end = begin;
        while (end < c->n_records && update_of(s, end) == update_of(s, begin)) end++;
        dr_advantages(c->settings->advantage, credits + begin, end - begin);
        dr_token_weights(c->settings->loss_mean, credits + begin, end - begin);
        begin = end;
    }
    dr_status status = send_credits(c, credits);
    if (status == DR_OK) status = send_training(c, credits);
    dr_free(credits);
    return status;
}

// ---- receiving ----

static dr_status on_scored(coordinator *c, dr_reader *reader) {
    uint32_t n = 0;
    double seconds = 0;
    DR_TRY(dr_get_count(reader, 28 + 4 * DR_REWARD_PARTS, &n));
    DR_TRY(dr_get_f64(reader, &seconds));
    c->metrics.reward_s += seconds;
    DR_CHECK(c->phase == ROLLING && c->n_records + (int32_t)n <= c->expected, DR_ERR_PEER,
             "coordinator: %u scores too many in phase %s", n, phase_names[c->phase]);
    for (uint32_t i = 0; i < n; i++) {
        dr_metric_record *r = &c->records[c->n_records++];
        DR_TRY(dr_get_u32(reader, &r->prompt));
        DR_TRY(dr_get_u32(reader, &r->sample));
        DR_TRY(dr_get_u32(reader, &r->n_sampled));
        DR_TRY(dr_get_u32(reader, &r->n_tokens));
        DR_TRY(dr_get_u32(reader, &r->n_turns));
        DR_TRY(dr_get_u32(reader, &r->flags));
        DR_TRY(dr_get_f32(reader, &r->reward));
        for (int p = 0; p < DR_REWARD_PARTS; p++) DR_TRY(dr_get_f32(reader, &r->parts[p]));
    }
    DR_TRY(dr_reader_end(reader));
    return c->n_records == c->expected ? start_training(c) : DR_OK;
}

// Worker sums arrive in any order and are added in worker order once all are there.
static dr_status on_trained(coordinator *c, int from, dr_reader *reader) {
    int w = from - 1 - c->layout.n_shards;
    DR_CHECK(c->phase == TRAINING && w >= 0 && w < DR_METRIC_WORKERS, DR_ERR_PEER,
             "coordinator: unexpected sums of endpoint %d", from);
    for (int i = 0; i < DR_METRIC_SUMS; i++) DR_TRY(dr_get_f64(reader, &c->metrics.worker[w][i]));
    return dr_reader_end(reader);
}

static dr_status on_saved(coordinator *c, dr_reader *reader) {
    uint32_t part = 0;
    uint64_t bytes = 0, updates = 0;
    dr_buf text = {0};
    DR_TRY(dr_get_u32(reader, &part));
    DR_CHECK(c->phase == SAVING && part < (uint32_t)c->checkpoint.n_files, DR_ERR_PEER,
             "coordinator: unexpected part %u", part);
    dr_checkpoint_file *f = &c->checkpoint.files[part];
    dr_status status = dr_get_text(reader, &text);
    if (status == DR_OK) snprintf(f->name, sizeof f->name, "%s", text.data);
    if (status == DR_OK) status = dr_get_u64(reader, &bytes);
    if (status == DR_OK) status = dr_get_text(reader, &text);
    if (status == DR_OK) snprintf(f->digest, sizeof f->digest, "%s", text.data);
    if (status == DR_OK) status = dr_get_u64(reader, &updates);
    f->bytes = (int64_t)bytes;
    c->checkpoint.updates = (int64_t)updates;
    dr_buf_reset(&text);
    return status;
}

// ---- moving on ----

static dr_status start_saving(coordinator *c) {
    dr_checkpoint_info_reset(&c->checkpoint);
    c->checkpoint.step = c->step;
    c->checkpoint.n_files = c->layout.n_workers;
    snprintf(c->checkpoint.config_hash, sizeof c->checkpoint.config_hash, "%s", c->settings->config_hash);
    DR_TRY(
        dr_alloc(&c->checkpoint.files, "checkpoint files", c->layout.n_workers, sizeof *c->checkpoint.files));
    c->phase = SAVING;
    return to_all_workers(c, DR_MSG_SAVE, (uint32_t)c->step);
}

static dr_status commit_checkpoint(coordinator *c) {
    char *dir = NULL;
    DR_TRY(dr_checkpoint_dir(c->settings->dir, c->step, &dir));
    dr_status status = dr_checkpoint_commit(dr_lm_config_of(c->assets->rollout.lm), dir, &c->checkpoint);
    if (status == DR_OK) status = dr_checkpoint_prune(c->settings->dir, c->settings->checkpoint_keep);
    if (status == DR_OK) dr_info("checkpoint of step %lld: %s", (long long)c->step, dir);
    dr_free(dir);
    return status;
}

static dr_status start_export(coordinator *c, const char *name) {
    dr_buf dir = {0};
    dr_status status = dr_buf_printf(&dir, "%s/%s", c->settings->dir, name);
    if (status == DR_OK) status = dr_message_begin(&c->box.out, DR_MSG_EXPORT, (uint32_t)c->step);
    if (status == DR_OK) status = dr_put_text(&c->box.out, dir.data);
    if (status == DR_OK)
        status = dr_mailbox_send(&c->box, dr_layout_worker(&c->layout, 0), (uint64_t)c->updates);
    dr_buf_reset(&dir);
    c->awaited = 1;
    c->phase = EXPORTING;
    return status;
}

static dr_status stop_all(coordinator *c, bool interrupted) {
    for (int e = 1; e < dr_layout_endpoints(&c->layout); e++)
        DR_TRY(send_simple(c, e, DR_MSG_STOP, (uint32_t)c->step));
    c->base.was_interrupted = interrupted;
    c->phase = ENDING;
    return DR_OK;
}

// After a step and its checkpoint: the policy folder at a stage's end, then the next step or the end.
static dr_status after_saving(coordinator *c) {
    if (c->stop_after) return stop_all(c, true);
    bool stage1_over = c->step == c->settings->stages[0].steps && c->step > 0;
    if (c->step == total_steps(c)) return start_export(c, "policy");
    if (stage1_over) return start_export(c, "policy_stage1");
    c->phase = PLANNING;
    return DR_OK;
}

static dr_status after_export(coordinator *c) {
    if (c->step == total_steps(c)) return stop_all(c, false);
    c->phase = PLANNING;
    return DR_OK;
}

static dr_status after_training(coordinator *c) {
    c->step++;
    c->steps_this_start++;
    c->metrics.step = c->step;
    c->metrics.stage = c->settings->stages[c->stage].name;
    c->metrics.updates = c->updates;
    c->metrics.step_s = dr_clock_seconds() - c->step_start;
    c->metrics.rollout_s = c->scores_in - c->step_start;
    c->metrics.train_s = dr_clock_seconds() - c->scores_in;
    DR_TRY(dr_metrics_log_step(c->log, &c->metrics, c->records, c->n_records, c->layout.n_workers));
    bool due = c->settings->checkpoint_every > 0 && c->step % c->settings->checkpoint_every == 0;
    bool stage_end = c->step == c->settings->stages[0].steps || c->step == total_steps(c);
    c->stop_after = c->step < total_steps(c) &&
                    ((c->settings->stop_after > 0 && c->steps_this_start >= c->settings->stop_after) ||
                     (c->settings->stop_requested && *c->settings->stop_requested));
    if (due || stage_end || c->stop_after) return start_saving(c);
    c->phase = PLANNING;
    return DR_OK;
}

static dr_status answer(coordinator *c) {
    if (--c->awaited > 0) return DR_OK;
    switch (c->phase) {
    case LOADING:
        c->phase = PLANNING;
        return DR_OK;
    case TRAINING:
        return after_training(c);
    case SAVING:
        DR_TRY(commit_checkpoint(c));
        return after_saving(c);
    case EXPORTING:
        return after_export(c);
    default:
        return DR_FAIL(DR_ERR_PEER, "coordinator: an unexpected answer in phase %s", phase_names[c->phase]);
    }
}

static dr_status handle(coordinator *c, int from) {
    dr_message_header header;
    dr_reader reader;
    DR_TRY(dr_message_open(c->box.in.data, c->box.in.length, &header, &reader));
    switch (header.type) {
    case DR_MSG_HEARTBEAT:
        return DR_OK;
    case DR_MSG_SCORED:
        return on_scored(c, &reader);
    case DR_MSG_TRAINED:
        DR_TRY(on_trained(c, from, &reader));
        return answer(c);
    case DR_MSG_SAVED:
        DR_TRY(on_saved(c, &reader));
        return answer(c);
    case DR_MSG_DONE:
        return answer(c);
    default:
        return DR_FAIL(DR_ERR_PEER, "coordinator: unexpected message %s", dr_message_name(header.type));
    }
}

// Fresh start or the newest usable checkpoint.
static dr_status begin(coordinator *c) {
    int64_t found = -1;
    DR_TRY(deal_samples(c));
    DR_TRY(dr_checkpoint_find(c->settings->dir, &found));
    DR_CHECK(found < 0 || c->settings->resume, DR_ERR_ARGUMENT,
             "%s already holds a checkpoint of step %lld: continue with --resume, or choose another run.dir",
             c->settings->dir, (long long)found);
    DR_TRY(dr_metrics_log_open(c->settings->dir, found < 0 ? 0 : found, c->settings->tensorboard, &c->log));
    if (found < 0) {
        c->phase = PLANNING;
        return DR_OK;
    }
    char *dir = NULL;
    dr_checkpoint_info info = {0};
    DR_TRY(dr_checkpoint_dir(c->settings->dir, found, &dir));
    dr_status status = dr_checkpoint_read(dir, &info); // whole, as it was found
    if (status == DR_OK && strcmp(info.config_hash, c->settings->config_hash) != 0)
        dr_warn("%s was written with other settings (%s, now %s): going on with the new ones", dir,
                info.config_hash, c->settings->config_hash);
    c->updates = info.updates;
    dr_checkpoint_info_reset(&info);
    dr_free(dir);
    DR_TRY(status);
    c->step = found;
    dr_info("resuming after step %lld", (long long)found);
    c->phase = LOADING;
    return to_all_workers(c, DR_MSG_LOAD, (uint32_t)found);
}

static dr_status advance(coordinator *c, bool *out_worked) {
    if (c->phase == START) {
        *out_worked = true;
        return begin(c);
    }
    if (c->phase == PLANNING) {
        *out_worked = true;
        if (c->step >= total_steps(c)) return start_export(c, "policy"); // resumed after the last step
        c->stage = stage_of(c, c->step);
        return send_plans(c);
    }
    if (c->phase == ENDING && c->box.channel->ops->pending_sends(c->box.channel) == 0) c->base.is_done = true;
    return DR_OK;
}

static dr_status coordinator_poll(dr_role *role, bool *out_worked) {
    coordinator *c = (coordinator *)role;
    int from = -1, last = dr_layout_endpoints(&c->layout) - 1;
    DR_TRY(c->box.channel->ops->poll(c->box.channel, &from, &c->box.in));
    if (c->phase != ENDING) DR_TRY(dr_mailbox_beat(&c->box, 1, last));
    double begun = dr_clock_seconds();
    if (from >= 0) {
        c->box.heard[from] = begun;
        *out_worked = true;
        DR_TRY(handle(c, from));
    } else {
        if (c->phase != ENDING && c->phase != START)
            DR_TRY(dr_mailbox_watch(&c->box, 1, last, phase_names[c->phase]));
        DR_TRY(advance(c, out_worked));
    }
    dr_mailbox_excuse(&c->box, begun);
    return DR_OK;
}

static dr_status hear(void *context, bool is_waiting) {
    coordinator *c = context;
    (void)is_waiting;
    return dr_mailbox_beat(&c->box, 1, dr_layout_endpoints(&c->layout) - 1);
}

static void coordinator_destroy(dr_role *role) {
    coordinator *c = (coordinator *)role;
    for (int s = 0; s < DR_STAGES; s++) dr_free(c->samples[s]);
    dr_free(c->records);
    dr_metrics_log_close(c->log);
    dr_checkpoint_info_reset(&c->checkpoint);
    dr_mailbox_reset(&c->box);
    dr_free(c);
}

static const dr_role_ops ops = {"coordinator", coordinator_poll, coordinator_destroy};

dr_status dr_coordinator_create(const dr_run_settings *settings, const dr_run_assets *assets,
                                const dr_layout *layout, dr_channel *channel, dr_role **out_role) {
    coordinator *c = NULL;
    int64_t most = 1;
    for (int s = 0; s < DR_STAGES; s++) {
        int64_t n = (int64_t)settings->stages[s].prompts * settings->stages[s].samples;
        if (n > most) most = n;
    }
    DR_CHECK(layout->n_workers <= DR_METRIC_WORKERS, DR_ERR_UNSUPPORTED, "%d workers, at most %d",
             layout->n_workers, DR_METRIC_WORKERS);
    DR_TRY(dr_alloc(&c, "coordinator", 1, sizeof *c));
    c->base.ops = &ops;
    c->base.alive = (dr_alive_listener){hear, c};
    c->settings = settings;
    c->assets = assets;
    c->layout = *layout;
    dr_status status = dr_mailbox_init(&c->box, channel, ops.name, settings->deadline_s);
    if (status == DR_OK) status = dr_alloc(&c->records, "records", most, sizeof *c->records);
    if (status != DR_OK) {
        coordinator_destroy(&c->base);
        return status;
    }
    *out_role = &c->base;
    return DR_OK;
}
