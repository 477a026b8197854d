// Reward shard: scores the trajectories of its prompts, hands complete groups to the coordinator, keeps the
// step's file.
#include <stdio.h>
#include <stdlib.h>

#include "core/base/alloc.h"
#include "core/base/clock.h"
#include "core/base/file.h"
#include "core/comm/message.h"
#include "core/learn/trajectory_store.h"
#include "mpi/run.h"

// A trajectory that overtook the coordinator's announcement of its step: messages keep their order between
// two ranks only.
typedef struct early_trajectory {
    uint32_t step;
    dr_buf bytes;
} early_trajectory;

typedef struct shard {
    dr_role base;
    const dr_run_settings *settings;
    const dr_run_assets *assets;
    dr_layout layout;
    dr_mailbox box;
    dr_reward_context *rewards;
    dr_trajectory *held; // of the running step
    int32_t n_held, capacity;
    early_trajectory *early;
    int32_t n_early, early_capacity;
    uint32_t step, stage;
    double score_s;
} shard;

static dr_status score(shard *s, dr_trajectory *t) {
    dr_completion completion = {0};
    dr_reward_result result;
    const dr_reward_settings *settings = &s->settings->stages[s->stage].reward;
    float *embeddings = NULL;
    int32_t n = 0;
    dr_status status = dr_completion_from_trajectory(s->assets->rollout.tokenizer, t, &completion);
    if (status == DR_OK && t->n_turns > 0)
        status =
            dr_alloc(&embeddings, "preference vectors", (int64_t)t->n_turns * t->text_dim, sizeof(float));
    for (int32_t k = 0; status == DR_OK && k < t->n_turns; k++) {
        if (!t->turns[k].embedding) continue;
        for (int32_t d = 0; d < t->text_dim; d++)
            embeddings[(int64_t)n * t->text_dim + d] = t->turns[k].embedding[d];
        n++;
    }
    if (status == DR_OK)
        status = dr_reward_score(s->rewards, settings, &completion, t->target, embeddings, n, t->text_dim,
                                 &result);
    if (status == DR_OK) {
        for (int i = 0; i < DR_REWARD_PARTS; i++) t->parts[i] = result.parts[i];
        t->reward = result.total;
        t->has_answer = result.valid;
    }
    dr_free(embeddings);
    dr_completion_reset(&completion);
    return status;
}

// The group's records once its last sample is here.
static dr_status send_if_complete(shard *s, uint32_t prompt) {
    int32_t n = 0;
    for (int32_t i = 0; i < s->n_held; i++) n += s->held[i].prompt == prompt;
    if (n < s->settings->stages[s->stage].samples) return DR_OK;
    DR_TRY(dr_message_begin(&s->box.out, DR_MSG_SCORED, s->step));
    DR_TRY(dr_put_u32(&s->box.out, (uint32_t)n));
    DR_TRY(dr_put_f64(&s->box.out, s->score_s));
    s->score_s = 0;
    for (int32_t i = 0; i < s->n_held; i++) {
        const dr_trajectory *t = &s->held[i];
        if (t->prompt != prompt) continue;
        DR_TRY(dr_put_u32(&s->box.out, t->prompt));
        DR_TRY(dr_put_u32(&s->box.out, t->sample));
        DR_TRY(dr_put_u32(&s->box.out, (uint32_t)dr_trajectory_sampled_count(t)));
        DR_TRY(dr_put_u32(&s->box.out, (uint32_t)t->n_tokens));
        DR_TRY(dr_put_u32(&s->box.out, (uint32_t)t->n_turns));
        DR_TRY(dr_put_u32(&s->box.out, (uint32_t)dr_trajectory_trains(t) | (uint32_t)t->has_answer << 1));
        DR_TRY(dr_put_f32(&s->box.out, t->reward));
        for (int p = 0; p < DR_REWARD_PARTS; p++) DR_TRY(dr_put_f32(&s->box.out, t->parts[p]));
    }
    return dr_mailbox_send(&s->box, 0, 0);
}

static void drop_held(shard *s) {
    for (int32_t i = 0; i < s->n_held; i++) dr_trajectory_reset(&s->held[i]);
    s->n_held = 0;
}

static dr_status keep_early(shard *s, uint32_t step, const void *bytes, size_t length) {
    if (s->n_early == s->early_capacity) {
        int32_t capacity = 2 * s->early_capacity + 16;
        DR_TRY(dr_grow(&s->early, "early trajectories", s->early_capacity, capacity, sizeof *s->early));
        s->early_capacity = capacity;
    }
    early_trajectory *early = &s->early[s->n_early];
    *early = (early_trajectory){.step = step};
    DR_TRY(dr_buf_append(&early->bytes, bytes, length));
    s->n_early++;
    return DR_OK;
}

static dr_status on_trajectory(shard *s, uint32_t step, const void *bytes, size_t length) {
    dr_trajectory t = {0};
    if (step > s->step) return keep_early(s, step, bytes, length);
    DR_CHECK(step == s->step, DR_ERR_PEER, "reward shard: a trajectory of step %u in step %u", step, s->step);
    DR_TRY(dr_trajectory_decode(bytes, length, &t));
    double start = dr_clock_seconds();
    dr_status status = score(s, &t);
    s->score_s += dr_clock_seconds() - start;
    if (status == DR_OK && s->n_held == s->capacity) {
        status = dr_grow(&s->held, "trajectories", s->capacity, 2 * s->capacity + 64, sizeof *s->held);
        if (status == DR_OK) s->capacity = 2 * s->capacity + 64;
    }
    if (status != DR_OK) {
        dr_trajectory_reset(&t);
        return status;
    }
    s->held[s->n_held++] = t;
    return send_if_complete(s, t.prompt);
}

// A step begins: what came too early for it is scored now.
static dr_status on_expect(shard *s, uint32_t step, dr_reader *reader) {
    drop_held(s);
    s->step = step;
    DR_TRY(dr_get_u32(reader, &s->stage));
    DR_CHECK(s->stage < DR_STAGES, DR_ERR_PEER, "reward shard: stage %u", s->stage);
    DR_TRY(dr_reader_end(reader));
    int32_t n = s->n_early;
    dr_status status = DR_OK;
    s->n_early = 0; // those of later steps are put back in front
    for (int32_t i = 0; i < n; i++) {
        early_trajectory early = s->early[i];
        if (status == DR_OK && early.step > step) {
            s->early[s->n_early++] = early;
            continue;
        }
        if (status == DR_OK) status = on_trajectory(s, early.step, early.bytes.data, early.bytes.length);
        if (status == DR_OK) status = dr_alive_work();
        dr_buf_reset(&early.bytes);
    }
    return status;
}

static int by_key(const void *a, const void *b) {
    const dr_trajectory *x = a, *y = b;
    if (x->prompt != y->prompt) return x->prompt < y->prompt ? -1 : 1;
    return x->sample < y->sample ? -1 : x->sample > y->sample;
}

static dr_status write_file(shard *s) {
    const dr_trajectory **order = NULL;
    dr_buf path = {0};
    DR_TRY(dr_alloc(&order, "trajectory order", s->n_held, sizeof *order));
    for (int32_t i = 0; i < s->n_held; i++) order[i] = &s->held[i];
    dr_status status = dr_buf_printf(&path, "%s/trajectories", s->settings->dir);
    if (status == DR_OK) status = dr_dir_make(path.data);
    if (status == DR_OK)
        status = dr_buf_printf(&path, "/step_%06u_shard_%d.h5", s->step, s->box.channel->rank - 1);
    if (status == DR_OK)
        status =
            dr_trajectories_write(path.data, order, s->n_held, s->step, s->settings->stages[s->stage].name);
    dr_buf_reset(&path);
    dr_free(order);
    return status;
}

// Final advantages: prompt, sample, value; then the file is written and the step is over here.
static dr_status on_credit(shard *s, uint32_t step, dr_reader *reader) {
    uint32_t n = 0;
    DR_TRY(dr_get_count(reader, 12, &n));
    if (s->n_held > 0) qsort(s->held, (size_t)s->n_held, sizeof *s->held, by_key); // none: no array yet
    for (uint32_t i = 0; i < n; i++) {
        dr_trajectory key = {0};
        float advantage = 0;
        DR_TRY(dr_get_u32(reader, &key.prompt));
        DR_TRY(dr_get_u32(reader, &key.sample));
        DR_TRY(dr_get_f32(reader, &advantage));
        dr_trajectory *found =
            s->n_held > 0 ? bsearch(&key, s->held, (size_t)s->n_held, sizeof *s->held, by_key) : NULL;
        if (found) found->advantage = advantage;
    }
    DR_TRY(dr_reader_end(reader));
    if (s->settings->keep_trajectories && s->n_held > 0) DR_TRY(write_file(s));
    drop_held(s);
    DR_TRY(dr_message_begin(&s->box.out, DR_MSG_DONE, step));
    return dr_mailbox_send(&s->box, 0, 0);
}

static dr_status handle(shard *s) {
    dr_message_header header;
    dr_reader reader;
    DR_TRY(dr_message_open(s->box.in.data, s->box.in.length, &header, &reader));
    switch (header.type) {
    case DR_MSG_HEARTBEAT:
        return DR_OK;
    case DR_MSG_EXPECT:
        return on_expect(s, header.step, &reader);
    case DR_MSG_TRAJECTORY:
        return on_trajectory(s, header.step, reader.bytes + reader.at, reader.length - reader.at);
    case DR_MSG_CREDIT:
        return on_credit(s, header.step, &reader);
    case DR_MSG_STOP:
        s->base.is_done = true;
        return DR_OK;
    default:
        return DR_FAIL(DR_ERR_PEER, "reward shard: unexpected message %s", dr_message_name(header.type));
    }
}

static dr_status shard_poll(dr_role *role, bool *out_worked) {
    shard *s = (shard *)role;
    int from = -1;
    DR_TRY(s->box.channel->ops->poll(s->box.channel, &from, &s->box.in));
    DR_TRY(dr_mailbox_beat(&s->box, 0, 0));
    if (from < 0) return dr_mailbox_watch(&s->box, 0, 0, "waiting for work");
    double begun = s->box.heard[from] = dr_clock_seconds();
    *out_worked = true;
    DR_TRY(handle(s));
    dr_mailbox_excuse(&s->box, begun);
    return DR_OK;
}

static dr_status hear(void *context, bool is_waiting) {
    shard *s = context;
    (void)is_waiting;
    return dr_mailbox_beat(&s->box, 0, 0);
}

static void shard_destroy(dr_role *role) {
    shard *s = (shard *)role;
    drop_held(s);
    dr_free(s->held);
    for (int32_t i = 0; i < s->n_early; i++) dr_buf_reset(&s->early[i].bytes);
    dr_free(s->early);
    dr_reward_context_destroy(s->rewards);
    dr_mailbox_reset(&s->box);
    dr_free(s);
}

static const dr_role_ops ops = {"reward shard", shard_poll, shard_destroy};

dr_status dr_reward_shard_create(const dr_run_settings *settings, const dr_run_assets *assets,
                                 const dr_layout *layout, dr_channel *channel, dr_role **out_role) {
    shard *s = NULL;
    DR_TRY(dr_alloc(&s, "reward shard", 1, sizeof *s));
    s->base.ops = &ops;
    s->base.alive = (dr_alive_listener){hear, s};
    s->settings = settings;
    s->assets = assets;
    s->layout = *layout;
    dr_status status = dr_mailbox_init(&s->box, channel, ops.name, settings->deadline_s);
    if (status == DR_OK)
        status = dr_reward_context_create(assets->rollout.dataset, assets->rollout.trm, NULL,
                                          assets->rollout.prompt_template, &s->rewards);
    if (status != DR_OK) {
        shard_destroy(&s->base);
        return status;
    }
    *out_role = &s->base;
    return DR_OK;
}
