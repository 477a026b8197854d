// Bodies of mismatch.h.
#include "core/learn/mismatch.h"

#include <math.h>
#include <string.h>

#include "core/base/alloc.h"
#include "core/base/clock.h"
#include "core/base/rng.h"
#include "core/learn/micro_batch.h"

enum {
    STREAM_SAMPLE = 0x6d697301,
    STREAM_TRAIN,
    STREAM_REPLAY,
    MAX_TURNS = 1 << 12,
    MOST_KEPT_IDS = 1 << 25
};

dr_mismatch_settings dr_mismatch_defaults(int32_t max_positions) {
    int32_t most = max_positions < 512 ? max_positions : 512;
    return (dr_mismatch_settings){.tokens = 100000,
                                  .live = 24,
                                  .samples = 3,
                                  .longest_prompt = most / 4,
                                  .turns = 3,
                                  .longest_turn = most / 8,
                                  .longest_tool = most / 16,
                                  .pack_tokens = 4 * most,
                                  .sampling = {.temperature = 1.0f, .top_p = 0.95f},
                                  .seed = 1};
}

void dr_mismatch_set_reset(dr_mismatch_set *set) {
    for (int32_t i = 0; i < set->n; i++) dr_trajectory_reset(&set->sequences[i]);
    dr_free(set->sequences);
    *set = (dr_mismatch_set){0};
}

static int32_t longest_sequence(const dr_mismatch_settings *s) {
    return s->longest_prompt + s->turns * (s->longest_turn + s->longest_tool);
}

static float temperature_of(const dr_mismatch_settings *s) {
    return s->sampling.temperature == 0 ? 1.0f : s->sampling.temperature;
}

// ---- sampling ----

// A sequence that is being written: its first `cached` tokens are in the cache, the rest is to be run.
typedef struct live_sequence {
    int32_t kv_seq, index, cached;
    uint32_t turn;
    int32_t left_in_turn;
} live_sequence;

typedef struct sampling_run {
    dr_lm *lm;
    const dr_mismatch_settings *settings;
    dr_mismatch_set *set;
    dr_rng rng;
    dr_kv_cache *kv;
    live_sequence *live; // [settings->live]
    int32_t n_live;
    int32_t *prompt; // [longest_prompt], of the group whose samples start now
    int32_t *tool;   // [longest_tool]
    double begun;
    int32_t prompt_n, prompt_seq, prompt_cached, n_started;
    uint32_t n_prompts;
    dr_lm_chunk *chunks; // [settings->live + 1]
    int32_t *row_of;     // [settings->live] chunk's live sequence, of those with logits
    float *logits;
    dr_sampling *sampling; // [settings->live], as bits and drawn
    uint32_t *bits;
    dr_sampled *drawn;
} sampling_run;

static int32_t up_to(dr_rng *rng, int32_t most) {
    return 1 + (int32_t)dr_rng_below(rng, (uint32_t)most);
}

static void random_ids(sampling_run *r, int32_t *ids, int32_t n) {
    uint32_t vocab = (uint32_t)dr_lm_config_of(r->lm)->vocab;
    for (int32_t i = 0; i < n; i++) ids[i] = (int32_t)dr_rng_below(&r->rng, vocab);
}

static dr_status start_prompt(sampling_run *r) {
    r->prompt_n = 1 + up_to(&r->rng, r->settings->longest_prompt - 1);
    random_ids(r, r->prompt, r->prompt_n);
    r->prompt_cached = r->n_started = 0;
    return dr_kv_open(r->kv, &r->prompt_seq);
}

static dr_status new_sequence(sampling_run *r, int32_t *out_index) {
    dr_mismatch_set *set = r->set;
    if (set->n == set->capacity) {
        int32_t capacity = 2 * set->capacity + 64;
        DR_TRY(dr_grow(&set->sequences, "sequences", set->capacity, capacity, sizeof *set->sequences));
        set->capacity = capacity;
    }
    *out_index = set->n;
    dr_trajectory *t = &set->sequences[set->n++];
    *t = (dr_trajectory){.seed = r->settings->seed, .prompt = r->n_prompts, .sample = (uint32_t)r->n_started};
    return dr_trajectory_append(t, r->prompt, r->prompt_n, DR_FROM_PROMPT, 0, NULL, NULL);
}

// Samples of a prompt that is in the cache up to its last token.
static dr_status start_samples(sampling_run *r) {
    while (r->prompt_seq >= 0 && r->prompt_cached == r->prompt_n - 1 && r->n_live < r->settings->live) {
        live_sequence *l = &r->live[r->n_live];
        *l = (live_sequence){.cached = r->prompt_cached,
                             .left_in_turn = up_to(&r->rng, r->settings->longest_turn)};
        DR_TRY(dr_kv_fork(r->kv, r->prompt_seq, &l->kv_seq));
        r->n_live++;
        DR_TRY(new_sequence(r, &l->index));
        if (++r->n_started < r->settings->samples) continue;
        dr_kv_close(r->kv, r->prompt_seq);
        r->prompt_seq = -1;
        r->n_prompts++;
    }
    return DR_OK;
}

// What this tick runs: a piece of the prompt, and a piece of what each sequence has to run. Returns the
// chunks.
static int32_t collect(sampling_run *r, int32_t *out_rows) {
    int32_t n = 0, rows = 0;
    if (r->prompt_seq >= 0 && r->prompt_cached < r->prompt_n - 1) {
        int32_t piece = up_to(&r->rng, r->prompt_n - 1 - r->prompt_cached);
        r->chunks[n++] = (dr_lm_chunk){r->prompt_seq, piece, r->prompt + r->prompt_cached, false};
        r->prompt_cached += piece;
    }
    for (int32_t i = 0; i < r->n_live; i++) {
        live_sequence *l = &r->live[i];
        const dr_trajectory *s = &r->set->sequences[l->index];
        int32_t piece = up_to(&r->rng, s->n_tokens - l->cached);
        bool whole = l->cached + piece == s->n_tokens;
        r->chunks[n++] = (dr_lm_chunk){l->kv_seq, piece, s->ids + l->cached, whole};
        l->cached += piece;
        if (whole) r->row_of[rows++] = i;
    }
    *out_rows = rows;
    return n;
}

static uint32_t bits_of_row(const sampling_run *r, int32_t row) {
    const live_sequence *l = &r->live[r->row_of[row]];
    const dr_trajectory *s = &r->set->sequences[l->index];
    return dr_draw(&(dr_draw_key){.seed = r->settings->seed,
                                  .prompt = s->prompt,
                                  .sample = s->sample,
                                  .turn = l->turn,
                                  .position = (uint32_t)s->n_tokens});
}

static dr_status append_row(sampling_run *r, int32_t row) {
    const dr_mismatch_settings *settings = r->settings;
    live_sequence *l = &r->live[r->row_of[row]];
    dr_mismatch_set *set = r->set;
    dr_trajectory *s = &set->sequences[l->index];
    dr_sampled token = r->drawn[row];
    if (set->n_kept_ids + token.kept.n > MOST_KEPT_IDS) token.kept.n = 0;
    set->n_kept += token.kept.n > 0;
    set->n_kept_ids += token.kept.n;
    DR_TRY(dr_trajectory_append_sampled(s, &token, (uint16_t)l->turn));
    if (set->n_sampled++ == 0) set->first_s = dr_clock_seconds() - r->begun;
    if (--l->left_in_turn > 0) return DR_OK;
    if (++l->turn < (uint32_t)settings->turns) { // a tool result, then the next turn
        int32_t n_tool = up_to(&r->rng, settings->longest_tool);
        random_ids(r, r->tool, n_tool);
        DR_TRY(dr_trajectory_append(s, r->tool, n_tool, DR_FROM_TOOL, (uint16_t)l->turn, NULL, NULL));
        l->left_in_turn = up_to(&r->rng, settings->longest_turn);
    }
    return DR_OK;
}

static void sweep(sampling_run *r) {
    int32_t kept = 0;
    for (int32_t i = 0; i < r->n_live; i++) {
        if (r->live[i].left_in_turn > 0) {
            r->live[kept++] = r->live[i];
            continue;
        }
        dr_kv_close(r->kv, r->live[i].kv_seq);
        r->set->n_tokens += r->set->sequences[r->live[i].index].n_tokens;
    }
    r->n_live = kept;
}

static dr_status tick(sampling_run *r, bool may_start) {
    dr_backend *b = dr_lm_backend(r->lm);
    int32_t rows = 0;
    if (r->prompt_seq < 0 && may_start && r->n_live < r->settings->live) DR_TRY(start_prompt(r));
    DR_TRY(start_samples(r));
    int32_t n = collect(r, &rows);
    if (n == 0) return DR_OK;
    DR_TRY(dr_lm_decode(r->lm, r->kv, r->chunks, n, r->logits));
    for (int32_t row = 0; row < rows; row++) {
        r->sampling[row] = r->settings->sampling;
        r->bits[row] = bits_of_row(r, row);
    }
    DR_TRY(b->ops->sample(b, r->logits, rows, dr_lm_config_of(r->lm)->vocab, r->sampling, r->bits, r->drawn));
    for (int32_t row = 0; row < rows; row++) DR_TRY(append_row(r, row));
    sweep(r);
    return DR_OK;
}

static dr_status check_settings(dr_lm *lm, const dr_mismatch_settings *s) {
    bool sensible = s->tokens > 0 && s->live > 0 && s->samples > 0 && s->samples < 1 << 16 &&
                    s->longest_prompt >= 2 && s->turns > 0 && s->turns <= MAX_TURNS && s->longest_turn > 0 &&
                    s->longest_tool > 0 && s->pack_tokens > 0;
    DR_CHECK(sensible, DR_ERR_ARGUMENT, "verify: counts and lengths must be positive, a prompt at least 2");
    int64_t most = dr_lm_config_of(lm)->max_positions;
    int64_t longest = s->longest_prompt + (int64_t)s->turns * ((int64_t)s->longest_turn + s->longest_tool);
    DR_CHECK(longest <= most, DR_ERR_ARGUMENT,
             "verify: sequences of up to %lld tokens, the model has %lld positions", (long long)longest,
             (long long)most);
    return DR_OK;
}

static dr_status allocate(sampling_run *r) {
    const dr_mismatch_settings *s = r->settings;
    int64_t live = s->live, vocab = dr_lm_config_of(r->lm)->vocab;
    int64_t pages = (live + 1) * (longest_sequence(s) / DR_KV_PAGE + 2);
    DR_CHECK(pages <= INT32_MAX, DR_ERR_ARGUMENT, "verify: %lld pages of the cache", (long long)pages);
    DR_TRY(dr_kv_create(r->lm, (int32_t)pages, s->live + 1, &r->kv));
    DR_TRY(dr_alloc(&r->live, "live sequences", live, sizeof *r->live));
    DR_TRY(dr_alloc(&r->prompt, "prompt", s->longest_prompt, sizeof *r->prompt));
    DR_TRY(dr_alloc(&r->tool, "tool result", s->longest_tool, sizeof *r->tool));
    DR_TRY(dr_alloc(&r->chunks, "chunks", live + 1, sizeof *r->chunks));
    DR_TRY(dr_alloc(&r->row_of, "rows", live, sizeof *r->row_of));
    DR_TRY(dr_alloc(&r->sampling, "draws", live, sizeof *r->sampling));
    DR_TRY(dr_alloc(&r->bits, "draws", live, sizeof *r->bits));
    DR_TRY(dr_alloc(&r->drawn, "draws", live, sizeof *r->drawn));
    return dr_memory_create(dr_lm_backend(r->lm), &r->logits, "logits of a tick", live * vocab,
                            sizeof *r->logits);
}

dr_status dr_mismatch_sample(dr_lm *lm, const dr_mismatch_settings *settings, dr_mismatch_set *out_set) {
    dr_mismatch_set set = {0};
    sampling_run r = {.lm = lm, .settings = settings, .set = &set, .prompt_seq = -1};
    r.rng = dr_rng_make(settings->seed, STREAM_SAMPLE);
    DR_TRY(check_settings(lm, settings));
    r.begun = dr_clock_seconds();
    dr_status status = allocate(&r);
    bool may_start = true;
    while (status == DR_OK && (may_start || r.n_live > 0 || r.prompt_seq >= 0)) {
        may_start = set.n_sampled < settings->tokens;
        status = tick(&r, may_start);
    }
    set.seconds = dr_clock_seconds() - r.begun;
    dr_kv_destroy(r.kv);
    dr_lm_backend(lm)->ops->memory_destroy(dr_lm_backend(lm), r.logits);
    void *owned[] = {r.live, r.prompt, r.tool, r.chunks, r.row_of, r.sampling, r.bits, r.drawn};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) dr_free(owned[i]);
    if (status != DR_OK) {
        dr_mismatch_set_reset(&set);
        return status;
    }
    *out_set = set;
    return DR_OK;
}

// ---- comparison ----

static void compare(dr_mismatch *out, int32_t sequence, int32_t position, float got, float want) {
    out->tokens++;
    if (memcmp(&got, &want, sizeof got) == 0) return;
    if (out->different++ == 0) {
        out->sequence = sequence;
        out->position = position;
    }
    float gap = fabsf(got - want);
    if (!(gap <= out->largest)) out->largest = gap; // a NaN shows
}

typedef struct training_pass {
    dr_micro_batch batch;
    dr_lm_workspace *workspace;
    bool over_kept;
    float *logprob, *entropy; // of the loss rows
} training_pass;

static void pass_free(training_pass *p) {
    dr_micro_batch_reset(&p->batch);
    dr_lm_workspace_destroy(p->workspace);
    dr_free(p->logprob);
    dr_free(p->entropy);
}

static dr_status pass_allocate(training_pass *p, dr_lm *lm, int64_t tokens) {
    DR_TRY(dr_micro_batch_create(tokens, &p->batch));
    DR_TRY(dr_lm_workspace_create(lm, tokens, DR_KEEP_ACTIVATIONS, &p->workspace));
    DR_TRY(dr_alloc(&p->logprob, "training pass", tokens, sizeof *p->logprob));
    return dr_alloc(&p->entropy, "training pass", tokens, sizeof *p->entropy);
}

static bool is_compared(const void *pass, const dr_trajectory *t, int32_t i) {
    const training_pass *p = pass;
    return t->provenance[i] == DR_FROM_POLICY && (!p->over_kept || dr_trajectory_kept(t, i).n > 0);
}

static bool pass_add(training_pass *p, const dr_trajectory *t, int32_t index) {
    const dr_loss_rows rows = {is_compared, p, p->over_kept, true};
    return dr_micro_batch_add(&p->batch, t, index, &rows, p->batch.max_tokens);
}

static dr_status pass_run(training_pass *p, dr_lm *lm, float temperature, const dr_mismatch_set *set,
                          dr_mismatch *out) {
    if (p->batch.pack.n_rows > 0)
        DR_TRY(dr_lm_forward(lm, p->workspace, &p->batch.pack, temperature, p->logprob, p->entropy));
    for (int64_t r = 0; r < p->batch.pack.n_rows; r++) {
        int32_t index = p->batch.number_of[r];
        float recorded = dr_micro_batch_recorded(&p->batch, &set->sequences[index], r);
        compare(out, index, p->batch.token_of[r], p->logprob[r], recorded);
    }
    dr_micro_batch_clear(&p->batch);
    return DR_OK;
}

// The sequences in another order; those of one prompt stay together, as a learner packs them, but for every
// third prompt, whose sequences are strewn.
static dr_status training_order(const dr_mismatch_settings *settings, const dr_mismatch_set *set,
                                int32_t **out_order) {
    int32_t *order = NULL, *places = NULL, n_groups = 0, at = 0;
    DR_TRY(dr_alloc(&order, "order", set->n + 1, sizeof *order));
    dr_status status = dr_alloc(&places, "order", 2 * set->n + 2, sizeof *places);
    if (status != DR_OK) {
        dr_free(order);
        return status;
    }
    dr_rng rng = dr_rng_make(settings->seed, STREAM_TRAIN);
    for (int32_t first = 0, group = 0; first < set->n; first += settings->samples, group++) {
        bool is_strewn = group % 3 == 2; // one place for the group, or one for each of its sequences
        for (int32_t i = first; i < first + settings->samples && i < set->n;
             i += is_strewn ? 1 : settings->samples)
            places[n_groups++] = is_strewn ? -1 - i : i;
    }
    dr_rng_shuffle(&rng, places, n_groups);
    for (int32_t g = 0; g < n_groups; g++) {
        int32_t first = places[g] < 0 ? -1 - places[g] : places[g], n = places[g] < 0 ? 1 : settings->samples;
        for (int32_t i = first; i < first + n && i < set->n; i++) order[at++] = i;
    }
    dr_free(places);
    *out_order = order;
    return DR_OK;
}

dr_status dr_mismatch_train(dr_lm *lm, const dr_mismatch_settings *settings, const dr_mismatch_set *set,
                            bool over_kept, dr_mismatch *out) {
    int64_t budget = settings->pack_tokens, longest = longest_sequence(settings);
    if (budget < longest) budget = longest;
    training_pass p = {.over_kept = over_kept};
    int32_t *order = NULL;
    *out = (dr_mismatch){.sequence = -1, .position = -1};
    dr_status status = pass_allocate(&p, lm, budget);
    if (status == DR_OK) status = training_order(settings, set, &order);
    double begun = dr_clock_seconds();
    for (int32_t i = 0; i < set->n && status == DR_OK; i++) {
        if (pass_add(&p, &set->sequences[order[i]], order[i])) continue;
        status = pass_run(&p, lm, temperature_of(settings), set, out);
        if (status == DR_OK && !pass_add(&p, &set->sequences[order[i]], order[i]))
            status = DR_FAIL(DR_ERR_RANGE, "verify: sequence %d of %d tokens does not fit", order[i],
                             set->sequences[order[i]].n_tokens);
    }
    if (status == DR_OK) status = pass_run(&p, lm, temperature_of(settings), set, out);
    out->seconds = dr_clock_seconds() - begun;
    dr_free(order);
    pass_free(&p);
    return status;
}

// One sequence in an empty cache.
static dr_status replay_one(dr_lm *lm, const dr_mismatch_settings *settings, dr_kv_cache *kv, dr_rng *rng,
                            int32_t longest_piece, const dr_trajectory *s, int32_t index, float *logits,
                            dr_mismatch *out) {
    dr_backend *b = dr_lm_backend(lm);
    int64_t vocab = dr_lm_config_of(lm)->vocab;
    float *lse = logits + longest_piece * vocab, *entropy = lse + longest_piece, *host = NULL;
    int64_t n = longest_piece * (vocab + 2);
    int32_t seq = -1;
    DR_TRY(dr_kv_open(kv, &seq));
    dr_status status = DR_OK;
    for (int32_t at = 0, piece; at < s->n_tokens - 1 && status == DR_OK; at += piece) {
        piece = up_to(rng, longest_piece);
        if (piece > s->n_tokens - 1 - at) piece = s->n_tokens - 1 - at;
        status = dr_lm_decode_rows(lm, kv, seq, s->ids + at, piece, logits);
        if (status != DR_OK) break;
        b->ops->softmax_stats(b, logits, piece, vocab, temperature_of(settings), lse, entropy);
        status = dr_host_open(b, logits, n, DR_HOST_READS, &host);
        for (int32_t i = 0; i < piece && status == DR_OK; i++) {
            int32_t p = at + i + 1;
            if (s->provenance[p] != DR_FROM_POLICY) continue;
            float logit = host[i * vocab + s->ids[p]], of_row = host[longest_piece * vocab + i];
            compare(out, index, p, dr_logprob_of(logit, temperature_of(settings), of_row), s->logprob[p]);
        }
        dr_host_close(b, logits, n, DR_HOST_READS, host);
    }
    dr_kv_close(kv, seq);
    return status;
}

dr_status dr_mismatch_replay(dr_lm *lm, const dr_mismatch_settings *settings, const dr_mismatch_set *set,
                             int32_t stride, int32_t longest_piece, dr_mismatch *out) {
    int64_t vocab = dr_lm_config_of(lm)->vocab;
    dr_kv_cache *kv = NULL;
    float *logits = NULL;
    dr_rng rng = dr_rng_make(settings->seed, STREAM_REPLAY);
    *out = (dr_mismatch){.sequence = -1, .position = -1};
    DR_CHECK(stride > 0 && longest_piece > 0, DR_ERR_ARGUMENT, "verify: stride %d, pieces of up to %d",
             stride, longest_piece);
    DR_TRY(dr_kv_create(lm, longest_sequence(settings) / DR_KV_PAGE + 1, 1, &kv));
    dr_backend *b = dr_lm_backend(lm);
    dr_status status =
        dr_memory_create(b, &logits, "logits of a piece", longest_piece * (vocab + 2), sizeof *logits);
    double begun = dr_clock_seconds();
    for (int32_t i = 0; i < set->n && status == DR_OK; i += stride)
        status = replay_one(lm, settings, kv, &rng, longest_piece, &set->sequences[i], i, logits, out);
    out->seconds = dr_clock_seconds() - begun;
    b->ops->memory_destroy(b, logits);
    dr_kv_destroy(kv);
    return status;
}
