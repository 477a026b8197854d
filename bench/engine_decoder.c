// Sequences that decode in step, on pages of their own or on those of shared prefixes.
#include <math.h>

#include "bench/engine_parts.h"
#include "core/base/alloc.h"
#include "core/base/clock.h"
#include "core/base/rng.h"

enum { STEPS = sized(8, 2) };

struct bench_decoder {
    bench_engine *engine;
    dr_lm *lm, *filler;
    dr_kv_cache *kv;
    int32_t n_seqs, n_open, batch;
    int32_t *seqs;       // [n_seqs], n_open of them at the context reached
    int32_t *ids;        // [n_seqs], one token each
    dr_lm_chunk *chunks; // [n_seqs]
    float *logits;       // [n_seqs, vocab], backend memory
    // of a burst
    dr_sampling *sampling; // [n_seqs]
    dr_draw_key *keys;     // [n_seqs]
    int32_t *limits, *counts;
    dr_sampled *drawn; // [STEPS, n_seqs]
};

// Filling 128 sequences of 2,048 positions with the real model would take minutes and serve nothing: what a
// page holds does not change how long it takes to read. dr_lm_decode takes layers from its model and pages
// from its cache, so a model of one tiny layer moves the sequences on; the rest of the pages keeps the zeros
// that were written when the cache was made.
static dr_status create_filler(dr_backend *backend, dr_lm **out) {
    dr_lm_config tiny;
    DR_TRY(dr_lm_preset("tiny", 64, &tiny));
    tiny.n_layers = tiny.n_heads = tiny.n_kv_heads = 1;
    tiny.head_size = 2;
    tiny.hidden = tiny.intermediate = 16;
    return dr_lm_create(backend, &tiny, 3, out);
}

dr_status bench_decoder_create(bench_engine *engine, dr_lm *lm, int32_t n_seqs, int32_t longest,
                               bench_decoder **out) {
    bench_decoder *d = NULL;
    dr_status status;
    int64_t V = dr_lm_config_of(lm)->vocab;
    int32_t pages = n_seqs * (longest / DR_KV_PAGE + 2);
    DR_TRY(dr_alloc(&d, "decoder", 1, sizeof *d));
    d->engine = engine;
    d->lm = lm;
    d->n_seqs = n_seqs;
    DR_TRY_GOTO(status, create_filler(engine->backend, &d->filler), destroy);
    DR_TRY_GOTO(status, dr_kv_create(lm, pages, 2 * n_seqs, &d->kv), destroy);
    DR_TRY_GOTO(status, dr_alloc(&d->seqs, "sequences", n_seqs, sizeof *d->seqs), destroy);
    DR_TRY_GOTO(status, dr_alloc(&d->ids, "ids", n_seqs, sizeof *d->ids), destroy);
    DR_TRY_GOTO(status, dr_alloc(&d->chunks, "chunks", n_seqs, sizeof *d->chunks), destroy);
    DR_TRY_GOTO(status, dr_alloc(&d->sampling, "draws", n_seqs, sizeof *d->sampling), destroy);
    DR_TRY_GOTO(status, dr_alloc(&d->keys, "draws", n_seqs, sizeof *d->keys), destroy);
    DR_TRY_GOTO(status, dr_alloc(&d->limits, "draws", n_seqs, sizeof *d->limits), destroy);
    DR_TRY_GOTO(status, dr_alloc(&d->counts, "draws", n_seqs, sizeof *d->counts), destroy);
    DR_TRY_GOTO(status, dr_alloc(&d->drawn, "draws", (int64_t)STEPS * n_seqs, sizeof *d->drawn), destroy);
    DR_TRY_GOTO(status, dr_memory_create(engine->backend, &d->logits, "logits", n_seqs * V, sizeof(float)),
                destroy);
    for (; d->n_open < n_seqs; d->n_open++)
        DR_TRY_GOTO(status, dr_kv_open(d->kv, &d->seqs[d->n_open]), destroy);
    bench_fill_ids(2, (int32_t)V, n_seqs, d->ids);
    *out = d;
    return DR_OK;
destroy:
    bench_decoder_destroy(d);
    return status;
}

void bench_decoder_destroy(bench_decoder *d) {
    if (!d) return;
    dr_kv_destroy(d->kv);
    dr_lm_destroy(d->filler);
    dr_free(d->seqs);
    dr_free(d->ids);
    dr_free(d->chunks);
    dr_free(d->sampling);
    dr_free(d->keys);
    dr_free(d->limits);
    dr_free(d->counts);
    dr_free(d->drawn);
    if (d->logits) d->engine->backend->ops->memory_destroy(d->engine->backend, d->logits);
    dr_free(d);
}

dr_status bench_decoder_extend(bench_decoder *d, int32_t context) {
    enum { MOST = 512 };
    static const int32_t zeros[MOST];
    DR_CHECK(context % DR_KV_PAGE == 0, DR_ERR_ARGUMENT, "a context of %d is not whole pages", context);
    for (int32_t s = 0; s < d->n_open; s++)
        for (int32_t left; (left = context - dr_kv_length(d->kv, d->seqs[s])) > 0;) {
            dr_lm_chunk chunk = {d->seqs[s], left < MOST ? left : MOST, zeros, false};
            DR_TRY(dr_lm_decode(d->filler, d->kv, &chunk, 1, NULL));
        }
    return DR_OK;
}

dr_status bench_decoder_share(bench_decoder *d, int32_t batch, int32_t n_alike, int32_t shared,
                              int32_t context) {
    DR_CHECK(batch <= d->n_seqs && batch % n_alike == 0 && shared <= context, DR_ERR_ARGUMENT,
             "%d of %d sequences, %d on each prefix of %d of %d positions", batch, d->n_seqs, n_alike, shared,
             context);
    while (d->n_open > 0) dr_kv_close(d->kv, d->seqs[--d->n_open]);
    for (; d->n_open < batch / n_alike; d->n_open++) DR_TRY(dr_kv_open(d->kv, &d->seqs[d->n_open]));
    DR_TRY(bench_decoder_extend(d, shared));
    for (int32_t s = batch - 1; s > 0; s--) { // from the last on: prefixes stand at the front until then
        int32_t prefix = d->seqs[s / n_alike];
        if (s % n_alike == 0)
            d->seqs[s] = prefix;
        else
            DR_TRY(dr_kv_fork(d->kv, prefix, &d->seqs[s]));
    }
    d->n_open = batch;
    return bench_decoder_extend(d, context);
}

static dr_status fork_all(bench_decoder *d) {
    for (int32_t s = 0; s < d->batch; s++) {
        d->chunks[s] = (dr_lm_chunk){.n = 1, .ids = &d->ids[s], .want_logits = true};
        DR_TRY(dr_kv_fork(d->kv, d->seqs[s], &d->chunks[s].seq));
    }
    return DR_OK;
}

// Forks whole pages, decodes a few steps and drops the forks, so that the context stays.
static dr_status decode_run(void *context, double *out_seconds) {
    bench_decoder *d = context;
    DR_TRY(fork_all(d));
    double begun = dr_clock_seconds();
    for (int i = 0; i < STEPS; i++) DR_TRY(dr_lm_decode(d->lm, d->kv, d->chunks, d->batch, d->logits));
    DR_TRY(bench_wait(d->engine->backend, d->logits));
    *out_seconds = (dr_clock_seconds() - begun) / STEPS;
    for (int32_t s = 0; s < d->batch; s++) dr_kv_close(d->kv, d->chunks[s].seq);
    return DR_OK;
}

static int64_t count_drawn(const bench_decoder *d) {
    int64_t n = 0;
    for (int32_t r = 0; r < d->batch; r++) n += d->counts[r];
    return n;
}

static dr_status burst_run(void *context, double *out_seconds) {
    bench_decoder *d = context;
    dr_lm_drawn drawn = {.tokens = d->drawn, .counts = d->counts};
    const dr_lm_burst burst = {.chunks = d->chunks,
                               .n_chunks = d->batch,
                               .n_steps = STEPS,
                               .sampling = d->sampling,
                               .keys = d->keys,
                               .limits = d->limits,
                               .logits = d->logits};
    DR_TRY(fork_all(d));
    double begun = dr_clock_seconds();
    DR_TRY(dr_lm_decode_burst(d->lm, d->kv, &burst, &drawn)); // its end has waited for all draws
    *out_seconds = (dr_clock_seconds() - begun) * d->batch / (double)count_drawn(d);
    for (int32_t s = 0; s < d->batch; s++) dr_kv_close(d->kv, d->chunks[s].seq);
    return DR_OK;
}

// What was drawn last: tokens of the vocabulary, with log-probabilities.
static dr_status check_drawn(const bench_decoder *d, double *out_kept) {
    const int32_t vocab = dr_lm_config_of(d->lm)->vocab;
    int64_t kept = 0;
    for (int32_t r = 0; r < d->batch; r++)
        for (int32_t step = 0; step < d->counts[r]; step++) {
            const dr_sampled *token = &d->drawn[(int64_t)step * d->batch + r];
            kept += token->kept.n;
            DR_CHECK(token->id >= 0 && token->id < vocab && token->logprob <= 0 && isfinite(token->logprob),
                     DR_ERR_INTERNAL, "check: row %d drew id %d of %d in step %d, log-probability %g", r,
                     token->id, vocab, step, (double)token->logprob);
        }
    *out_kept = (double)kept / (double)count_drawn(d);
    return DR_OK;
}

dr_status bench_decoder_burst(bench_decoder *d, int32_t batch, dr_sampling sampling, double seconds,
                              double *out_seconds, double *out_kept) {
    d->batch = batch;
    for (int32_t r = 0; r < batch; r++) {
        d->sampling[r] = sampling;
        d->limits[r] = STEPS;
        d->keys[r] = (dr_draw_key){.seed = 7, .sample = (uint32_t)r};
    }
    DR_TRY(bench_median(burst_run, d, seconds, out_seconds));
    return check_drawn(d, out_kept);
}

dr_status bench_decoder_step(bench_decoder *d, int32_t batch, double seconds, double *out_seconds) {
    d->batch = batch;
    DR_TRY(bench_median(decode_run, d, seconds, out_seconds));
    int64_t n = (int64_t)batch * dr_lm_config_of(d->lm)->vocab, i = 0;
    float *logits = NULL;
    DR_TRY(dr_host_open(d->engine->backend, d->logits, n, DR_HOST_READS, &logits));
    while (i < n && isfinite(logits[i])) i++;
    double wrong = i < n ? logits[i] : 0;
    dr_host_close(d->engine->backend, d->logits, n, DR_HOST_READS, logits);
    DR_CHECK(i == n, DR_ERR_INTERNAL, "check: logit %lld of a step is %g", (long long)i, wrong);
    return DR_OK;
}
double bench_positions_read(int32_t context) {
    return context + 0.5 * (STEPS + 1);
}
