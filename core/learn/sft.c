// The supervised loop. The teacher writes each batch while it is needed: no corpus on disk.
#include "core/learn/sft.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "core/base/alloc.h"
#include "core/base/clock.h"
#include "core/base/file.h"
#include "core/base/json.h"

typedef struct batch {
    dr_trajectory *items;
    int32_t n, capacity;
    int64_t tokens;
} batch;

typedef struct sft {
    const dr_rollout_parts *parts;
    const dr_sft_options *options;
    dr_episode_rules rules;
    dr_teacher *teacher;
    dr_optimizer *optimizer;
    dr_learner *learner;
    float *gradient;
    batch own;     // a user's own trajectories, all of them
    batch current; // of this update
    dr_learn_item *learn;
    int64_t n_learn;
    int32_t *order; // of users
    uint64_t written;
} sft;

dr_sft_options dr_sft_defaults(void) {
    return (dr_sft_options){.steps = 300,
                            .batch_tokens = 8192,
                            .pack_tokens = 4096,
                            .learning_rate = 2e-3f,
                            .warmup_steps = 20,
                            .clip_norm = 1.0f,
                            .seed = 1,
                            .teacher = dr_teacher_defaults()};
}

static dr_status batch_push(batch *b, dr_trajectory *t) {
    if (b->n == b->capacity) {
        DR_TRY(
            dr_grow(&b->items, "warm-up trajectories", b->capacity, 2 * b->capacity + 32, sizeof *b->items));
        b->capacity = 2 * b->capacity + 32;
    }
    b->items[b->n++] = *t;
    b->tokens += t->n_tokens;
    return DR_OK;
}

static void batch_clear(batch *b) {
    for (int32_t i = 0; i < b->n; i++) dr_trajectory_reset(&b->items[i]);
    b->n = 0;
    b->tokens = 0;
}

// The next teacher trajectory: user by user in a seeded order, at a random position of the training part.
static dr_status write_one(sft *s, dr_trajectory *out) {
    const dr_dataset *d = s->parts->dataset;
    uint64_t seed = s->options->seed;
    for (int32_t tries = 0; tries < d->n_users; tries++) {
        uint64_t number = s->written++;
        if (number % (uint64_t)d->n_users == 0) {
            for (int32_t u = 0; u < d->n_users; u++) s->order[u] = u;
            dr_rng shuffle = dr_rng_make(seed, 0x5F70000 + number / (uint64_t)d->n_users);
            dr_rng_shuffle(&shuffle, s->order, d->n_users);
        }
        int32_t user = s->order[number % (uint64_t)d->n_users];
        int64_t n = d->offsets[user + 1] - d->offsets[user] - 2; // the training part
        if (n < 2) continue;
        dr_rng rng = dr_rng_make(seed, 0x5F80000000 + number);
        int64_t least = n > 4 ? n / 2 : 1,
                target = least + (int64_t)dr_rng_below(&rng, (uint32_t)(n - least));
        const int32_t *sequence = d->sequence + d->offsets[user];
        return dr_teacher_write(s->teacher, sequence, (int32_t)target, user, sequence[target], seed, number,
                                out);
    }
    return DR_FAIL(DR_ERR_ARGUMENT, "warm-up: no user has enough items before the held-out ones");
}

static dr_status read_line(sft *s, const char *where, const char *line, size_t length, dr_trajectory *out) {
    json_t *root = NULL;
    const char *completion = NULL;
    char name[64];
    DR_TRY(dr_json_parse(where, line, length, &root));
    json_t *user = json_object_get(root, "user");
    dr_status status = dr_json_string(root, where, "completion", &completion);
    if (json_is_integer(user))
        snprintf(name, sizeof name, "%lld", (long long)json_integer_value(user));
    else
        snprintf(name, sizeof name, "%s", json_string_value(user) ? json_string_value(user) : "");
    int32_t id = dr_dataset_find_user(s->parts->dataset, name);
    dr_example e;
    if (status == DR_OK && (id < 0 || !dr_dataset_example(s->parts->dataset, id, DR_SPLIT_TRAIN, &e)))
        status =
            DR_FAIL(DR_ERR_FORMAT, "%s: \"user\": no such user with a training example: \"%s\"", where, name);
    if (status == DR_OK)
        status = dr_trajectory_from_text(&s->rules, e.history, e.n_history, id, e.target, completion,
                                         strlen(completion), out);
    json_decref(root);
    return status;
}

static dr_status read_own(sft *s, const char *path) {
    dr_buf text = {0};
    dr_status status = dr_file_read(path, 0, &text);
    int64_t line_number = 0;
    for (size_t at = 0; status == DR_OK && at < text.length;) {
        const char *end = memchr(text.data + at, '\n', text.length - at);
        size_t length = end ? (size_t)(end - text.data) - at : text.length - at;
        char where[512];
        snprintf(where, sizeof where, "%s:%lld", path, (long long)++line_number);
        if (length > 0) {
            dr_trajectory t = {0};
            status = read_line(s, where, text.data + at, length, &t);
            if (status == DR_OK) status = batch_push(&s->own, &t);
        }
        at += length + 1;
    }
    dr_buf_reset(&text);
    DR_TRY(status);
    DR_CHECK(s->own.n > 0, DR_ERR_FORMAT, "%s: no trajectories", path);
    return DR_OK;
}

// Trajectories of one update into s->learn, each sampled token weighing the same; then the gradient.
static dr_status fill_batch(sft *s, float context_weight, dr_learn_stats *stats) {
    int32_t n = 0;
    int64_t tokens = 0, sampled = 0;
    batch_clear(&s->current);
    while (tokens < s->options->batch_tokens) {
        const dr_trajectory *t;
        if (s->own.n > 0) {
            t = &s->own.items[s->written++ % (uint64_t)s->own.n]; // in file order, over and over
        } else {
            dr_trajectory fresh = {0};
            DR_TRY(write_one(s, &fresh));
            DR_TRY(batch_push(&s->current, &fresh));
            t = NULL; // its address is taken below: the array may still move
        }
        if (n == s->n_learn) {
            DR_TRY(dr_grow(&s->learn, "warm-up batch", s->n_learn, 2 * s->n_learn + 64, sizeof *s->learn));
            s->n_learn = 2 * s->n_learn + 64;
        }
        s->learn[n++].trajectory = t;
        tokens += t ? t->n_tokens : s->current.items[s->current.n - 1].n_tokens;
    }
    for (int32_t i = 0; i < n; i++) {
        if (s->own.n == 0) s->learn[i].trajectory = &s->current.items[i];
        sampled += dr_trajectory_sampled_count(s->learn[i].trajectory);
    }
    DR_CHECK(sampled > 0, DR_ERR_ARGUMENT, "warm-up: a batch of %d trajectories has no token of the policy",
             n);
    for (int32_t i = 0; i < n; i++) {
        s->learn[i].advantage = 1.0f;
        s->learn[i].token_weight = 1.0f / (float)sampled;
    }
    return dr_learner_accumulate(s->learner, s->learn, n,
                                 &(dr_loss_settings){.kind = DR_LOSS_SUPERVISED,
                                                     .temperature = 1.0f,
                                                     .context_weight = context_weight},
                                 s->gradient, NULL, stats);
}

static dr_status run_steps(sft *s) {
    const dr_sft_options *o = s->options;
    dr_schedule schedule = {DR_SCHEDULE_COSINE, o->learning_rate, 0.05f, o->warmup_steps, o->steps};
    dr_backend *b = dr_lm_backend(s->parts->lm);
    int64_t n_params = dr_lm_n_params(s->parts->lm);
    for (int64_t step = 0; step < o->steps; step++) {
        double start = dr_clock_seconds(), norm = 0;
        dr_learn_stats stats = {0};
        b->ops->zero(b, s->gradient, (size_t)n_params * sizeof(float));
        DR_TRY(fill_batch(s, o->context_weight * (1.0f - (float)step / (float)o->steps), &stats));
        DR_TRY(dr_optimizer_step(s->optimizer, s->gradient, dr_schedule_rate(&schedule, step), &norm));
        if (o->on_step)
            o->on_step(o->context, step + 1, stats.loss, stats.tokens > 0 ? stats.entropy / stats.tokens : 0,
                       stats.run_tokens / (dr_clock_seconds() - start));
    }
    return DR_OK;
}

dr_status dr_sft_run(const dr_rollout_parts *parts, const dr_sft_options *options) {
    sft s = {.parts = parts, .options = options};
    s.rules = (dr_episode_rules){.tokenizer = parts->tokenizer,
                                 .prompt_template = parts->prompt_template,
                                 .dataset = parts->dataset,
                                 .protocol = parts->protocol};
    dr_episode_rules_eos(&s.rules, dr_lm_config_of(parts->lm)->eos_id);
    dr_optimizer_settings settings = {0.9f, 0.95f, 1e-8f, options->weight_decay, options->clip_norm};
    int32_t n_users = parts->dataset->n_users;
    dr_backend *b = dr_lm_backend(parts->lm);
    DR_CHECK(options->steps > 0 && options->batch_tokens > 0, DR_ERR_ARGUMENT,
             "warm-up: steps and batch tokens must be "
             "positive");
    dr_status status = dr_alloc(&s.order, "order of users", n_users, sizeof *s.order);
    if (status == DR_OK)
        status = dr_memory_create(b, &s.gradient, "gradient", dr_lm_n_params(parts->lm), sizeof(float));
    if (status == DR_OK && options->trajectories) status = read_own(&s, options->trajectories);
    if (status == DR_OK && !options->trajectories)
        status = dr_teacher_create(&s.rules, parts->trm, &options->teacher, &s.teacher);
    if (status == DR_OK) status = dr_optimizer_create(parts->lm, &settings, NULL, &s.optimizer);
    if (status == DR_OK)
        status = dr_learner_create(parts->lm, NULL, options->pack_tokens, parts->protocol.max_total_tokens,
                                   options->activations, &s.learner);
    if (status == DR_OK) status = run_steps(&s);
    dr_learner_destroy(s.learner);
    dr_optimizer_destroy(s.optimizer);
    dr_teacher_destroy(s.teacher);
    batch_clear(&s.current);
    batch_clear(&s.own);
    dr_free(s.current.items);
    dr_free(s.own.items);
    dr_free(s.learn);
    b->ops->memory_destroy(b, s.gradient);
    dr_free(s.order);
    return status;
}
