// The rollout engine: requests in, ticks, finished trajectories out.
#include "core/episode/rollout.h"

#include <string.h>

#include "core/base/clock.h"
#include "core/episode/rollout_internal.h"

enum { MAX_SAMPLES = 1 << 16 }; // what a draw key holds

// ---- create, destroy ----

static dr_status check_parts(const dr_rollout_parts *p) {
    const dr_protocol *protocol = &p->protocol;
    const dr_trm_config *trm = dr_trm_config_of(p->trm);
    DR_CHECK(p->max_live >= 1 && p->prefill_tokens >= 1 && p->burst >= 0 && p->kv_pages >= 0, DR_ERR_ARGUMENT,
             "rollout: max_live %d, prefill_tokens %d, burst %d, kv_pages %d", p->max_live, p->prefill_tokens,
             p->burst, p->kv_pages);
    DR_CHECK(protocol->k >= 1 && protocol->k_retrieve >= 1 && protocol->max_retrievals >= 0 &&
                 protocol->max_turn_tokens >= 1 && protocol->max_total_tokens >= 1,
             DR_ERR_ARGUMENT, "rollout: protocol with k %d, k_retrieve %d, caps %d, %d, %d", protocol->k,
             protocol->k_retrieve, protocol->max_retrievals, protocol->max_turn_tokens,
             protocol->max_total_tokens);
    DR_CHECK(trm->n_items == p->dataset->n_items, DR_ERR_ARGUMENT,
             "the retrieval model has %d items, the data set %s has %d", trm->n_items, p->dataset->name,
             p->dataset->n_items);
    DR_CHECK(dr_trm_text_encoder(p->trm) != NULL, DR_ERR_UNSUPPORTED,
             "the retrieval model's text vectors are external: preferences cannot be encoded");
    DR_CHECK(dr_tokenizer_size(p->tokenizer) <= dr_lm_config_of(p->lm)->vocab, DR_ERR_ARGUMENT,
             "the tokenizer has %d tokens, the policy only %d", dr_tokenizer_size(p->tokenizer),
             dr_lm_config_of(p->lm)->vocab);
    return DR_OK;
}

static dr_status create_buffers(dr_rollout *r) {
    int64_t n = r->parts.max_live;
    DR_TRY(dr_alloc(&r->slots, "live episodes", n, sizeof *r->slots));
    DR_TRY(dr_alloc(&r->live, "live list", n, sizeof *r->live));
    DR_TRY(dr_alloc(&r->spare, "spare list", n, sizeof *r->spare));
    DR_TRY(dr_alloc(&r->chunks, "chunks", 2 * n + 1, sizeof *r->chunks));
    DR_TRY(dr_alloc(&r->rows, "rows", n, sizeof *r->rows));
    dr_backend *b = dr_lm_backend(r->parts.lm);
    const int64_t n_logits = (int64_t)dr_lm_burst_rows(r->parts.lm, r->parts.max_live) * r->vocab;
    DR_TRY(dr_memory_create(b, &r->logits, "logits", n_logits, sizeof *r->logits));
    if (r->parts.burst == 0) r->parts.burst = b->ops->host_view(b, r->logits) ? 1 : DR_ROLLOUT_BURST;
    r->fitting = r->parts.burst;
    DR_TRY(dr_alloc(&r->sampling, "draws", n, sizeof *r->sampling));
    DR_TRY(dr_alloc(&r->keys, "draws", n, sizeof *r->keys));
    DR_TRY(dr_alloc(&r->states, "draws", n, sizeof *r->states));
    DR_TRY(dr_alloc(&r->limits, "draws", n, sizeof *r->limits));
    DR_TRY(dr_alloc(&r->counts, "draws", n, sizeof *r->counts));
    DR_TRY(dr_alloc(&r->drawn, "draws", n * r->parts.burst, sizeof *r->drawn));
    for (int64_t i = 0; i < n; i++) {
        r->slots[i].seq = -1;
        r->spare[i] = &r->slots[n - 1 - i];
    }
    return dr_rollout_retrievals_create(r);
}

static int32_t longest_of(const dr_rollout_parts *p) {
    int32_t most = dr_lm_config_of(p->lm)->max_positions;
    return p->protocol.max_total_tokens < most ? p->protocol.max_total_tokens : most;
}

// One episode's worst case, plus one page for the copy of a partly filled one while its origin is still
// there. Most episodes are far from the cap, so by default a third of everybody's worst case is set aside.
static dr_status count_pages(const dr_rollout_parts *p, int32_t *out_pages) {
    int64_t one = dr_rollout_pages(0, longest_of(p)) + 1, all = (p->max_live + 1) * one + 1,
            pages = p->kv_pages;
    if (pages == 0) pages = all / 3 > 2 * one ? all / 3 : 2 * one;
    if (pages > all) pages = all;
    DR_CHECK(pages >= one, DR_ERR_ARGUMENT,
             "rollout: %lld cache pages, one episode of %d tokens may need %lld", (long long)pages,
             longest_of(p), (long long)one);
    DR_CHECK(pages <= INT32_MAX, DR_ERR_RANGE, "rollout: %lld cache pages are too many", (long long)pages);
    *out_pages = (int32_t)pages;
    return DR_OK;
}

dr_status dr_rollout_memory(const dr_rollout_parts *p, int64_t *out_cache, int64_t *out_passes) {
    int32_t pages = 0;
    DR_TRY(count_pages(p, &pages));
    *out_cache = dr_kv_memory(p->lm, pages);
    const int64_t rows = dr_lm_burst_rows(p->lm, p->max_live);
    *out_passes = dr_lm_decode_memory(p->lm, rows + p->prefill_tokens) +
                  rows * dr_lm_config_of(p->lm)->vocab * (int64_t)sizeof(float) +
                  dr_stops_memory(dr_lm_config_of(p->lm)->vocab);
    return DR_OK;
}

dr_status dr_rollout_create(const dr_rollout_parts *parts, dr_rollout **out_rollout) {
    DR_TRY(check_parts(parts));
    const dr_lm_config *lm = dr_lm_config_of(parts->lm);
    dr_rollout *r = NULL;
    dr_status status = DR_OK;
    DR_TRY(dr_alloc(&r, "rollout engine", 1, sizeof *r));
    r->parts = *parts;
    r->text_dim = dr_trm_text_encoder(parts->trm)->dim;
    r->vocab = lm->vocab;
    r->weight_version = dr_lm_weight_version(parts->lm);
    r->rules =
        (dr_episode_rules){parts->tokenizer, parts->prompt_template, parts->dataset, parts->protocol, {0}};
    dr_episode_rules_eos(&r->rules, lm->eos_id);
    r->rules.protocol.max_total_tokens = longest_of(parts);
    DR_TRY_GOTO(status, create_buffers(r), destroy_rollout);
    DR_TRY_GOTO(status, dr_stops_create(dr_lm_backend(parts->lm), &r->rules, r->vocab, &r->stops),
                destroy_rollout);
    DR_TRY_GOTO(status, count_pages(parts, &r->n_pages), destroy_rollout);
    DR_TRY_GOTO(status, dr_kv_create(parts->lm, r->n_pages, 2 * parts->max_live + 2, &r->kv),
                destroy_rollout);
    *out_rollout = r;
    return DR_OK;
destroy_rollout:
    dr_rollout_destroy(r);
    return status;
}

static void destroy_group(rollout_group *group) {
    if (!group) return;
    dr_free(group->prompt);
    dr_free(group);
}

void dr_rollout_destroy(dr_rollout *r) {
    if (!r) return;
    if (r->slots)
        for (int32_t i = 0; i < r->parts.max_live; i++) dr_episode_reset(&r->slots[i].episode);
    for (int32_t i = 0; i < r->n_groups; i++) destroy_group(r->groups[i]);
    for (int32_t i = 0; i < r->n_finished; i++) dr_trajectory_reset(&r->finished[r->first_finished + i]);
    dr_rollout_retrievals_destroy(r);
    void *blocks[] = {r->slots,  r->live,   r->spare,  r->chunks, r->rows,   r->sampling, r->keys,
                      r->states, r->limits, r->counts, r->drawn,  r->groups, r->finished};
    for (size_t i = 0; i < sizeof blocks / sizeof blocks[0]; i++) dr_free(blocks[i]);
    dr_episode_scratch_reset(&r->scratch);
    dr_backend *b = dr_lm_backend(r->parts.lm);
    b->ops->memory_destroy(b, r->logits);
    dr_stops_destroy(r->stops);
    dr_kv_destroy(r->kv);
    dr_free(r);
}

// ---- requests ----

static dr_status check_history(const dr_rollout *r, const dr_rollout_request *q) {
    int32_t n_items = r->parts.dataset->n_items, k = r->parts.protocol.k_retrieve;
    DR_CHECK(q->n_history >= 1 && q->history, DR_ERR_RANGE, "rollout: user %d has an empty history", q->user);
    for (int32_t i = 0; i < q->n_history; i++)
        DR_CHECK(q->history[i] >= 1 && q->history[i] <= n_items, DR_ERR_RANGE,
                 "rollout: item %d in the history of user %d, the data set has %d", q->history[i], q->user,
                 n_items);
    int32_t left = n_items;
    for (int32_t i = 0; i < q->n_history && r->parts.protocol.exclude_history; i++) {
        if (left - (q->n_history - i) >= k) break; // enough whether or not the rest repeats
        bool seen = false;
        for (int32_t j = 0; j < i && !seen; j++) seen = q->history[j] == q->history[i];
        left -= !seen;
    }
    DR_CHECK(left >= k, DR_ERR_RANGE,
             "rollout: %d items are left beside the history of user %d, a retrieval wants %d", left, q->user,
             k);
    return DR_OK;
}

static dr_status check_request(const dr_rollout *r, const dr_rollout_request *q) {
    DR_CHECK(q->n_samples >= 1 && q->first_sample >= 0 && q->first_sample <= MAX_SAMPLES - q->n_samples,
             DR_ERR_RANGE, "rollout: samples %d to %d, allowed are 0 to %d", q->first_sample,
             q->first_sample + q->n_samples - 1, MAX_SAMPLES - 1);
    DR_TRY(dr_sampling_check(&q->sampling));
    return check_history(r, q);
}

dr_status dr_rollout_submit(dr_rollout *r, const dr_rollout_request *request) {
    DR_TRY(check_request(r, request));
    rollout_group *group = NULL;
    if (r->n_groups == r->groups_capacity) {
        int32_t wider = r->groups_capacity ? 2 * r->groups_capacity : 64;
        DR_TRY(dr_grow(&r->groups, "request list", r->groups_capacity, wider, sizeof(rollout_group *)));
        r->groups_capacity = wider;
    }
    // Room for its trajectories now, so that finishing one cannot fail.
    if (r->first_finished > 0)
        memmove(r->finished, r->finished + r->first_finished, (size_t)r->n_finished * sizeof *r->finished);
    r->first_finished = 0;
    int32_t need = r->n_pending + request->n_samples;
    if (need > r->finished_capacity) {
        int32_t wider = 2 * r->finished_capacity > need ? 2 * r->finished_capacity : need;
        DR_TRY(
            dr_grow(&r->finished, "finished trajectories", r->finished_capacity, wider, sizeof *r->finished));
        r->finished_capacity = wider;
    }
    DR_TRY(dr_alloc(&group, "request", 1, sizeof *group));
    group->request = *request;
    group->seq = -1;
    r->groups[r->n_groups++] = group;
    r->n_pending += request->n_samples;
    return DR_OK;
}

bool dr_rollout_take(dr_rollout *r, dr_trajectory *out) {
    if (r->n_finished == 0) return false;
    *out = r->finished[r->first_finished++];
    r->n_finished--;
    r->n_pending--;
    if (r->n_finished == 0) r->first_finished = 0;
    return true;
}

int32_t dr_rollout_pending(const dr_rollout *r) {
    return r->n_pending;
}

void dr_rollout_stats_get(const dr_rollout *r, dr_rollout_stats *out_stats) {
    *out_stats = r->stats;
}

// ---- admission ----

static dr_status render(dr_rollout *r, rollout_group *group) {
    const dr_rollout_request *q = &group->request;
    const dr_protocol *p = &r->rules.protocol;
    if (group->n_prompt > 0) return DR_OK;
    DR_TRY(dr_template_prompt_ids(r->parts.prompt_template, r->parts.tokenizer, r->parts.dataset, q->history,
                                  q->n_history, p->k, p->k_retrieve, &r->scratch.rendering, &group->prompt,
                                  &group->n_prompt, &group->prompt_capacity));
    DR_CHECK(group->n_prompt < INT32_MAX / 2, DR_ERR_RANGE, "rollout: a prompt of %lld tokens",
             (long long)group->n_prompt);
    r->stats.prompt_tokens += group->n_prompt;
    return DR_OK;
}

// Whether one more episode of this group should start now: always with a pool for the worst case; with a
// smaller one, when its prompt and a page for everybody who is live fit beside what the waiting prompts still
// take.
static bool has_room(const dr_rollout *r, const rollout_group *group) {
    if (r->n_live == 0) return true;
    int64_t promised = r->n_live + 1;
    for (int32_t i = 0; i < r->n_groups; i++) {
        const rollout_group *other = r->groups[i];
        if (other->n_admitted == 0 && other != group) continue;
        int64_t done = other->seq < 0 ? 0 : dr_kv_length(r->kv, other->seq);
        promised += dr_rollout_pages(done, other->n_prompt - done);
    }
    return dr_kv_free_pages(r->kv) >= promised;
}

static void finish(dr_rollout *r, rollout_live *live) {
    if (live->seq >= 0) dr_kv_close(r->kv, live->seq);
    live->seq = -1;
    r->finished[r->first_finished + r->n_finished++] = live->episode.trajectory;
    memset(&live->episode.trajectory, 0, sizeof live->episode.trajectory);
    r->spare[r->parts.max_live - r->n_live] = live;
    r->n_live--;
}

static dr_status admit_one(dr_rollout *r, rollout_group *group) {
    const dr_rollout_request *q = &group->request;
    rollout_live *live = r->spare[r->parts.max_live - r->n_live - 1];
    dr_trajectory *t = &live->episode.trajectory;
    DR_TRY(dr_episode_begin(&live->episode, &r->rules, group->prompt, (int32_t)group->n_prompt));
    t->seed = q->seed;
    t->step = q->step;
    t->prompt = q->prompt;
    t->sample = (uint32_t)(q->first_sample + group->n_admitted);
    t->user = q->user;
    t->target = q->target;
    t->policy_version = r->weight_version;
    live->sampling = q->sampling;
    live->history = q->history;
    live->n_history = q->n_history;
    live->seq = -1;
    group->n_admitted++;
    r->live[r->n_live++] = live;
    if (live->episode.state == DR_EPISODE_DONE) { // the prompt alone is over the cap
        finish(r, live);
        return DR_OK;
    }
    live->group = group;
    group->n_waiting++;
    return DR_OK;
}

static dr_status admit(dr_rollout *r) {
    for (int32_t i = 0; i < r->n_groups; i++) {
        rollout_group *group = r->groups[i];
        while (group->n_admitted < group->request.n_samples) {
            if (r->n_live == r->parts.max_live) return DR_OK;
            DR_TRY(render(r, group));
            if (!has_room(r, group)) return DR_OK;
            DR_TRY(admit_one(r, group));
        }
    }
    return DR_OK;
}

// Forgets requests whose samples all have their own cache, and episodes that are done.
static void sweep(dr_rollout *r) {
    int32_t n = 0;
    for (int32_t i = 0; i < r->n_groups; i++) {
        rollout_group *group = r->groups[i];
        if (group->n_waiting > 0 || group->n_admitted < group->request.n_samples)
            r->groups[n++] = group;
        else
            destroy_group(group);
    }
    r->n_groups = n;
    int32_t n_live = r->n_live, kept = 0;
    for (int32_t i = 0; i < n_live; i++) {
        rollout_live *live = r->live[i];
        if (live->episode.state == DR_EPISODE_DONE)
            finish(r, live);
        else
            r->live[kept++] = live;
    }
}

// ---- one tick ----

// A cache made with other weights is worthless; prompts' caches kept between ticks are dropped, live ones are
// an error.
static dr_status check_weights(dr_rollout *r) {
    uint64_t version = dr_lm_weight_version(r->parts.lm);
    if (version == r->weight_version) return DR_OK;
    DR_CHECK(r->n_live == 0, DR_ERR_ARGUMENT, "rollout: the weights changed under %d live episodes",
             r->n_live);
    for (int32_t i = 0; i < r->n_groups; i++) {
        if (r->groups[i]->seq >= 0) dr_kv_close(r->kv, r->groups[i]->seq);
        r->groups[i]->seq = -1;
    }
    r->weight_version = version;
    return DR_OK;
}

// Takes in lists that are there and new episodes, and fills the batch. When nothing can run, it waits for a
// retrieval, or begins one where those under way have just ended and taken their episodes with them. An empty
// batch: nobody is live.
static dr_status next_batch(dr_rollout *r) {
    DR_TRY(dr_rollout_retrieve(r, false));
    for (;;) {
        sweep(r);
        DR_TRY(admit(r));
        DR_TRY(dr_rollout_batch(r));
        if (r->n_chunks > 0 || r->n_live == 0) return DR_OK;
        DR_TRY(dr_rollout_retrieve(r, true));
    }
}

dr_status dr_rollout_tick(dr_rollout *r) {
    DR_TRY(check_weights(r));
    DR_TRY(next_batch(r));
    if (r->n_live > 0) {
        DR_TRY(dr_rollout_burst(r));
        DR_TRY(dr_rollout_retrieve(r, false));
        r->stats.ticks++;
    }
    sweep(r);
    return DR_OK;
}
