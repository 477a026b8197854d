// The whole rollout engine with a random policy that keeps to the protocol often enough: prompts, turns,
// retrievals, lists. Checked against the training pass and, in fp32, against another batch size.
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "bench/engine_parts.h"
#include "core/base/alloc.h"
#include "core/base/clock.h"
#include "core/base/rng.h"
#include "core/episode/rollout.h"

enum {
    PROMPTS = sized(8, 1),
    SAMPLES = sized(8, 2),
    EPISODES = PROMPTS * SAMPLES,
    LIVE = 32,
    MOST_TOKENS = 640
};

typedef struct roller {
    dr_rollout_parts parts;
    dr_tokenizer *tokenizer;
    dr_lm *lm;
    dr_template *prompt_template;
    int32_t n_prompts; // submitted by a run
    // of the last run
    dr_trajectory trajectories[EPISODES];
    int32_t n_trajectories;
    dr_rollout_stats stats;
    // of all runs
    double wall_s, decode_s, sample_s, retrieve_s;
} roller;

// ---- the policy ----

static dr_status train_tokenizer(const dr_dataset *d, dr_tokenizer **out) {
    const char *specials[DR_N_TAGS + 1];
    char **texts = NULL;
    dr_status status = DR_OK;
    memcpy(specials, dr_protocol_tags, sizeof dr_protocol_tags);
    specials[DR_N_TAGS] = "<|endoftext|>";
    DR_TRY(dr_alloc(&texts, "corpus", d->n_items, sizeof *texts));
    for (int32_t i = 0; i < d->n_items && status == DR_OK; i++) {
        dr_buf text = {0};
        status = dr_buf_printf(&text, "\n%d. %s\n%s | %s", i % 20 + 1, d->titles[i + 1], d->titles[i + 1],
                               d->categories[i + 1]);
        texts[i] = text.data;
    }
    if (status == DR_OK)
        status = dr_tokenizer_train((const char *const *)texts, d->n_items, BENCH_VOCAB, specials,
                                    DR_N_TAGS + 1, out);
    for (int32_t i = 0; i < d->n_items; i++) dr_free(texts[i]);
    dr_free(texts);
    return status;
}

// Layers that add little; embeddings that all point along dimension 0, so that column 0 of the head acts as a
// bias: tags are likely, ids that the tokenizer does not have are next to impossible.
static void lean(float *params, const dr_lm_tensor *tensor, const dr_tokenizer *tokenizer) {
    static const struct {
        const char *text;
        float lean;
    } leans[] = {{DR_TAG_PREFERENCE, 0.56f}, {DR_TAG_PREFERENCE_END, 0.36f}};
    bool is_head = strcmp(tensor->name, "lm_head.weight") == 0,
         is_embedding = strcmp(tensor->name, "model.embed_tokens.weight") == 0;
    float *w = params + tensor->offset;
    dr_rng rng = dr_rng_make(17, is_head);
    int32_t size = dr_tokenizer_size(tokenizer);
    if (!is_head && !is_embedding && tensor->rows > 1)
        for (int64_t i = 0; i < tensor->rows * tensor->cols; i++) w[i] *= 0.25f;
    for (int64_t r = 0; r < tensor->rows && (is_head || is_embedding); r++)
        for (int64_t c = 0; c < tensor->cols; c++) {
            float first = is_embedding ? 1.0f : r < size ? 0.0f : -3.0f;
            w[r * tensor->cols + c] =
                c == 0 ? first : (float)((is_embedding ? 0.1 : 0.075) * dr_rng_normal(&rng));
        }
    for (size_t i = 0; i < sizeof leans / sizeof *leans && is_head; i++)
        w[dr_tokenizer_special(tokenizer, leans[i].text) * tensor->cols] = leans[i].lean;
}

static dr_status create_policy(dr_backend *backend, const dr_tokenizer *tokenizer, dr_lm **out) {
    dr_lm_config config;
    const dr_lm_tensor *tensors = NULL;
    DR_TRY(dr_lm_preset(sized("small", "tiny"), BENCH_VOCAB, &config));
    config.tied_head = false;
    config.eos_id = dr_tokenizer_special(tokenizer, "<|endoftext|>");
    DR_TRY(dr_lm_create(backend, &config, 5, out));
    int32_t n = dr_lm_tensors(*out, &tensors);
    float *params = NULL;
    DR_TRY(dr_host_open(backend, dr_lm_params(*out), dr_lm_n_params(*out), DR_HOST_CHANGES, &params));
    for (int32_t i = 0; i < n; i++) lean(params, &tensors[i], tokenizer);
    dr_host_close(backend, dr_lm_params(*out), dr_lm_n_params(*out), DR_HOST_CHANGES, params);
    return dr_lm_weights_changed(*out);
}

static dr_status create_parts(bench_engine *engine, const bench_world *world, roller *r) {
    DR_TRY(train_tokenizer(world->dataset, &r->tokenizer));
    DR_TRY(create_policy(engine->backend, r->tokenizer, &r->lm));
    DR_TRY(dr_template_load("compact", &r->prompt_template));
    r->parts = (dr_rollout_parts){.lm = r->lm,
                                  .tokenizer = r->tokenizer,
                                  .trm = world->trm,
                                  .dataset = world->dataset,
                                  .prompt_template = r->prompt_template,
                                  .protocol = {.k = 10,
                                               .k_retrieve = 12,
                                               .max_retrievals = sized(3, 1),
                                               .max_turn_tokens = sized(110, 64),
                                               .max_total_tokens = MOST_TOKENS,
                                               .exclude_history = true},
                                  .max_live = LIVE,
                                  .prefill_tokens = 1024};
    return DR_OK;
}

// ---- a run ----

static void drop_trajectories(roller *r) {
    for (int32_t i = 0; i < r->n_trajectories; i++) dr_trajectory_reset(&r->trajectories[i]);
    r->n_trajectories = 0;
}

static dr_status run_episodes(roller *r, dr_rollout *rollout) {
    const dr_dataset *d = r->parts.dataset;
    for (int32_t p = 0; p < r->n_prompts; p++) {
        dr_example e;
        DR_CHECK(dr_dataset_example(d, p, DR_SPLIT_TEST, &e), DR_ERR_INTERNAL, "user %d has no example", p);
        dr_rollout_request request = {.seed = 9,
                                      .prompt = (uint32_t)p,
                                      .n_samples = SAMPLES,
                                      .user = p,
                                      .target = e.target,
                                      .history = e.history,
                                      .n_history = e.n_history,
                                      .sampling = {.temperature = 1.0f, .top_p = 0.95f}};
        DR_TRY(dr_rollout_submit(rollout, &request));
    }
    while (dr_rollout_pending(rollout) > 0) {
        DR_TRY(dr_rollout_tick(rollout));
        while (r->n_trajectories < EPISODES && dr_rollout_take(rollout, &r->trajectories[r->n_trajectories]))
            r->n_trajectories++;
    }
    return DR_OK;
}

static dr_status rollout_run(void *context, double *out_seconds) {
    roller *r = context;
    dr_rollout *rollout = NULL;
    drop_trajectories(r);
    DR_TRY(dr_rollout_create(&r->parts, &rollout));
    double begun = dr_clock_seconds();
    dr_status status = run_episodes(r, rollout);
    *out_seconds = dr_clock_seconds() - begun;
    dr_rollout_stats_get(rollout, &r->stats);
    dr_rollout_destroy(rollout);
    r->wall_s += *out_seconds;
    r->decode_s += r->stats.decode_s;
    r->sample_s += r->stats.sample_s;
    r->retrieve_s += r->stats.retrieve_s;
    return status;
}

// ---- checks ----

// Stored log-probabilities of one trajectory against the training pass over the same ids.
static dr_status check_logprobs(roller *r, dr_lm_workspace *workspace, const dr_trajectory *t, double most) {
    int32_t rows[MOST_TOKENS], targets[MOST_TOKENS], n = 0, bounds[2] = {0, t->n_tokens};
    float logprob[MOST_TOKENS], entropy[MOST_TOKENS];
    for (int32_t i = 1; i < t->n_tokens; i++)
        if (t->provenance[i] == DR_FROM_POLICY) {
            rows[n] = i - 1;
            targets[n++] = t->ids[i];
        }
    dr_pack pack = {.n_tokens = t->n_tokens,
                    .ids = t->ids,
                    .cu_seqlens = bounds,
                    .n_seqs = 1,
                    .n_rows = n,
                    .rows = rows,
                    .targets = targets};
    DR_TRY(dr_lm_forward(r->lm, workspace, &pack, 1.0f, logprob, entropy));
    for (int32_t i = 0; i < n; i++) {
        double stored = t->logprob[rows[i] + 1];
        DR_CHECK(fabs(logprob[i] - stored) <= most, DR_ERR_INTERNAL,
                 "check: prompt %u sample %u token %d was sampled with log-probability %g, the training pass "
                 "says %g",
                 t->prompt, t->sample, rows[i] + 1, stored, (double)logprob[i]);
    }
    return DR_OK;
}

static int32_t find_trajectory(const roller *r, uint32_t prompt, uint32_t sample) {
    for (int32_t i = 0; i < r->n_trajectories; i++)
        if (r->trajectories[i].prompt == prompt && r->trajectories[i].sample == sample) return i;
    return -1;
}

// The first prompt's samples again, three at a time: the same bytes. Uses up the last run's trajectories.
static dr_status check_batching(roller *r) {
    dr_buf want[SAMPLES] = {0}, got = {0};
    double unused = 0;
    dr_status status = DR_OK;
    for (uint32_t s = 0; s < SAMPLES && status == DR_OK; s++)
        status = dr_trajectory_encode(&r->trajectories[find_trajectory(r, 0, s)], &want[s]);
    r->parts.max_live = 3;
    r->n_prompts = 1;
    if (status == DR_OK) status = rollout_run(r, &unused);
    for (uint32_t s = 0; s < SAMPLES && status == DR_OK; s++) {
        dr_buf_clear(&got);
        status = dr_trajectory_encode(&r->trajectories[find_trajectory(r, 0, s)], &got);
        if (status == DR_OK &&
            (got.length != want[s].length || memcmp(got.data, want[s].data, got.length) != 0))
            status =
                DR_FAIL(DR_ERR_INTERNAL, "check: sample %u differs between %d and 3 live episodes", s, LIVE);
    }
    for (int s = 0; s < SAMPLES; s++) dr_buf_reset(&want[s]);
    dr_buf_reset(&got);
    r->parts.max_live = LIVE;
    r->n_prompts = PROMPTS;
    return status;
}

static dr_status check_rollout(bench_engine *engine, roller *r) {
    bool is_exact = engine->backend->precision == DR_FP32;
    dr_lm_workspace *workspace = NULL;
    double unused = 0;
    DR_TRY(rollout_run(r, &unused));
    DR_CHECK(r->n_trajectories == EPISODES && r->stats.retrievals >= EPISODES / 2, DR_ERR_INTERNAL,
             "check: %d trajectories and %lld retrievals from %d episodes", r->n_trajectories,
             (long long)r->stats.retrievals, EPISODES);
    for (uint32_t i = 0; i < EPISODES; i++)
        DR_CHECK(find_trajectory(r, i / SAMPLES, i % SAMPLES) >= 0, DR_ERR_INTERNAL,
                 "check: sample %u of prompt %u never came", i % SAMPLES, i / SAMPLES);
    DR_TRY(dr_lm_workspace_create(r->lm, MOST_TOKENS, DR_KEEP_ACTIVATIONS, &workspace));
    dr_status status = DR_OK;
    for (int32_t i = 0; i < EPISODES && status == DR_OK; i += 4)
        status = check_logprobs(r, workspace, &r->trajectories[i], is_exact ? 0 : 0.1);
    dr_lm_workspace_destroy(workspace);
    if (status == DR_OK && is_exact) status = check_batching(r);
    return status;
}

// ---- figures ----

// What one pass of the last run had to do at least, on average: the weights once, keys and values of every
// position that a sampled token looked at, products of the rows that ran.
static bench_work pass_work(const bench_engine *engine, const roller *r, bench_product *products) {
    const dr_lm_config *c = dr_lm_config_of(r->lm);
    const dr_rollout_stats *s = &r->stats;
    double looked = 0, attended = 0, passes = (double)s->passes; // positions: of sampled rows, of all rows
    for (int32_t i = 0; i < r->n_trajectories; i++) {
        const dr_trajectory *t = &r->trajectories[i];
        bool is_first = t->sample == 0; // a prompt runs once for all its samples
        for (int32_t at = 1; at < t->n_tokens; at++) {
            if (t->provenance[at] == DR_FROM_POLICY) looked += at;
            if (t->provenance[at] != DR_FROM_PROMPT || is_first) attended += at;
        }
    }
    bench_lm_products(c, (int64_t)lround((double)s->decode_rows / passes),
                      (int64_t)lround((double)s->sampled_tokens / passes), products);
    return (bench_work){.bytes = bench_lm_weight_bytes(engine->backend, c) +
                                 looked * bench_kv_bytes(engine->backend, c) / passes,
                        .products = products,
                        .n_products = BENCH_LM_PRODUCTS,
                        .other_flops = bench_attention_flops(c, attended) / passes};
}

static dr_status phase_figure(bench_engine *engine, const char *name, double seconds, double share) {
    char note[64];
    bench_figure figure = {.name = name, .unit = "s", .value = seconds * share, .note = note};
    snprintf(note, sizeof note, "%.1f%% of a run of %.2f s", 100 * share, seconds);
    return bench_report_add(engine->report, &figure);
}

static dr_status rollout_figures(bench_engine *engine, roller *r) {
    double seconds = 0, least = 0;
    const char *bound = NULL;
    char note[128];
    bench_product products[BENCH_LM_PRODUCTS];
    r->wall_s = r->decode_s = r->sample_s = r->retrieve_s = 0;
    DR_TRY(bench_median(rollout_run, r, engine->seconds, &seconds));
    const dr_rollout_stats *s = &r->stats;
    bench_work work = pass_work(engine, r, products);
    DR_TRY(bench_roofline(engine->ceilings, &work, &least, &bound));
    double sampled = (double)s->sampled_tokens, prefilled = (double)(s->prompt_tokens + s->tool_tokens),
           passes = (double)s->passes;
    bench_figure figure = {.name = "rollout.sampled",
                           .unit = "tokens/s",
                           .value = sampled / seconds,
                           .ceiling = sampled / (least * passes),
                           .bound = bound,
                           .note = note,
                           .seconds = seconds};
    snprintf(note, sizeof note, "%d episodes, %lld retrievals, %lld ticks, %lld passes", EPISODES,
             (long long)s->retrievals, (long long)s->ticks, (long long)s->passes);
    DR_TRY(bench_report_add(engine->report, &figure));
    figure = (bench_figure){.name = "rollout.prefilled",
                            .unit = "tokens/s",
                            .value = prefilled / seconds,
                            .ceiling = prefilled / (least * passes),
                            .bound = bound,
                            .note = "prompts once for all samples, and item lists",
                            .seconds = seconds};
    DR_TRY(bench_report_add(engine->report, &figure));
    DR_TRY(phase_figure(engine, "rollout.decode", seconds, r->decode_s / r->wall_s));
    DR_TRY(phase_figure(engine, "rollout.sample", seconds, r->sample_s / r->wall_s));
    DR_TRY(phase_figure(engine, "rollout.retrieve", seconds, r->retrieve_s / r->wall_s));
    DR_TRY(phase_figure(engine, "rollout.rest", seconds,
                        (r->wall_s - r->decode_s - r->sample_s - r->retrieve_s) / r->wall_s));
    snprintf(note, sizeof note, "of %d; %.1f rows a pass with prefill", LIVE,
             (double)s->decode_rows / passes);
    figure =
        (bench_figure){.name = "rollout.batch", .unit = "episodes", .value = sampled / passes, .note = note};
    return bench_report_add(engine->report, &figure);
}

dr_status bench_rollout_figures(bench_engine *engine) {
    bench_world world = {0};
    roller *r = NULL;
    dr_status status;
    bool is_cpu = bench_is_cpu(engine->backend);
    DR_TRY(bench_world_create(is_cpu ? engine->backend->precision : DR_FP32,
                              is_cpu ? engine->backend->n_threads : 0, &world));
    if (!is_cpu) DR_TRY_GOTO(status, bench_world_to_device(&world), reset_world); // as `deeprec train` does
    DR_TRY_GOTO(status, dr_alloc(&r, "rollout benchmark", 1, sizeof *r), reset_world);
    r->n_prompts = PROMPTS;
    DR_TRY_GOTO(status, create_parts(engine, &world, r), release);
    DR_TRY_GOTO(status, check_rollout(engine, r), release);
    bench_report_section(engine->report,
                         "Rollout: prompts of several samples, random policy, temperature 1, top-p 0.95");
    status = rollout_figures(engine, r);
release:
    drop_trajectories(r);
    dr_template_destroy(r->prompt_template);
    dr_lm_destroy(r->lm);
    dr_tokenizer_destroy(r->tokenizer);
    dr_free(r);
reset_world:
    bench_world_reset(&world);
    return status;
}
