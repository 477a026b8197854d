// Sampling: temperature 1, top-p 0.95, over a small and a large vocabulary, beside a decode step of the same
// model.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "bench/engine_parts.h"
#include "core/base/alloc.h"
#include "core/base/clock.h"
#include "core/base/rng.h"
#include "core/compute/backend.h"

enum { BATCH = 32, CONTEXT = 128, DRAWS_CHECKED = 64 };
static const dr_sampling nucleus = {.temperature = 1.0f, .top_p = 0.95f};

typedef struct drawer {
    dr_backend *backend;
    int32_t vocab;
    float *logits; // [BATCH, vocab], backend memory
    float *host;   // a copy, for the check
    dr_rng rng;
} drawer;

// Deviation 2.5: a flat distribution, a fifth of the ids in the nucleus. 5: a sharp one, as a trained
// policy's.
static void fill_logits(drawer *d, double deviation) {
    dr_rng rng = dr_rng_make(7, 5);
    int64_t n = (int64_t)BATCH * d->vocab;
    for (int64_t i = 0; i < n; i++) d->host[i] = (float)(deviation * dr_rng_normal(&rng));
    d->backend->ops->copy_in(d->backend, d->logits, d->host, (size_t)n * sizeof(float));
}

// ---- the check ----

typedef struct ranked {
    double p;
    int32_t id;
} ranked;

static int by_probability(const void *a, const void *b) {
    const ranked *x = a, *y = b;
    if (x->p != y->p) return x->p < y->p ? 1 : -1;
    return (x->id > y->id) - (x->id < y->id);
}

// Draws of one row against probabilities sorted in full: each token is within the nucleus, and both
// log-probabilities are those of the softmax and of the nucleus.
static dr_status check_row(drawer *d, int64_t row, ranked *sorted) {
    const float *logits = d->host + row * d->vocab;
    double total = 0, kept = 0;
    for (int32_t i = 0; i < d->vocab; i++) total += sorted[i].p = exp((double)logits[i]);
    for (int32_t i = 0; i < d->vocab; i++) sorted[i].id = i;
    qsort(sorted, (size_t)d->vocab, sizeof *sorted, by_probability);
    int32_t n_kept = 0;
    while (kept < nucleus.top_p * total) kept += sorted[n_kept++].p;
    double least = sorted[n_kept - 1].p;
    for (int i = 0; i < DRAWS_CHECKED; i++) {
        dr_sampled token;
        uint32_t bits = dr_rng_bits(&d->rng);
        DR_TRY(d->backend->ops->sample(d->backend, d->logits + row * d->vocab, 1, d->vocab, &nucleus, &bits,
                                       &token));
        double p = exp((double)logits[token.id]);
        DR_CHECK(p >= least * (1 - 1e-4) && fabs(token.logprob - log(p / total)) < 1e-4 &&
                     fabs(token.logprob_kept - log(p / kept)) < 1e-3,
                 DR_ERR_INTERNAL,
                 "check: token %d of probability %g (nucleus ends at %g), log-probabilities %g, %g", token.id,
                 p / total, least / total, (double)token.logprob, (double)token.logprob_kept);
    }
    return DR_OK;
}

static dr_status check_sampling(drawer *d) {
    ranked *sorted = NULL;
    dr_status status = DR_OK;
    DR_TRY(dr_alloc(&sorted, "sorted probabilities", d->vocab, sizeof *sorted));
    for (int64_t row = 0; row < 4 && status == DR_OK; row++) status = check_row(d, row, sorted);
    dr_free(sorted);
    return status;
}

// ---- figures ----

static dr_status draw_run(void *context, double *out_seconds) {
    drawer *d = context;
    dr_sampling settings[BATCH];
    uint32_t bits[BATCH];
    dr_sampled tokens[BATCH];
    for (int row = 0; row < BATCH; row++) {
        settings[row] = nucleus;
        bits[row] = dr_rng_bits(&d->rng);
    }
    double begun = dr_clock_seconds();
    DR_TRY(d->backend->ops->sample(d->backend, d->logits, BATCH, d->vocab, settings, bits, tokens));
    *out_seconds = (dr_clock_seconds() - begun) / BATCH;
    return DR_OK;
}

// Seconds of a decode step of the measured model, or of the small preset with this vocabulary, per token.
static dr_status decode_seconds(bench_engine *engine, int32_t vocab, double *out_seconds) {
    dr_lm_config config;
    dr_lm *lm = NULL;
    bench_decoder *decoder = NULL;
    dr_status status;
    DR_TRY(dr_lm_preset("small", vocab, &config));
    if (engine->is_large) config = engine->model;
    DR_TRY(dr_lm_create(engine->backend, &config, 1, &lm));
    DR_TRY_GOTO(status, bench_decoder_create(engine, lm, BATCH, CONTEXT, &decoder), release);
    DR_TRY_GOTO(status, bench_decoder_extend(decoder, CONTEXT), release);
    DR_TRY_GOTO(status, bench_decoder_step(decoder, BATCH, engine->seconds, out_seconds), release);
    *out_seconds /= BATCH;
release:
    bench_decoder_destroy(decoder);
    dr_lm_destroy(lm);
    return status;
}

// decode: seconds of decoding beside it, per token.
static dr_status draw_figure(bench_engine *engine, drawer *d, const char *kind, double deviation,
                             double decode) {
    char name[64], note[128];
    double seconds = 0, rate = 0, bytes = (double)d->vocab * sizeof(float);
    bench_figure figure = {.name = name, .unit = "tokens/s", .bound = "memory", .note = note};
    fill_logits(d, deviation);
    DR_TRY(check_sampling(d));
    DR_TRY(bench_read_rate(engine->ceilings, (size_t)bytes * BATCH, &rate));
    DR_TRY(bench_median(draw_run, d, engine->seconds, &seconds));
    figure.value = 1 / seconds;
    figure.ceiling = rate / bytes; // every logit read once
    snprintf(name, sizeof name, "sample.v%d.%s", d->vocab, kind);
    snprintf(note, sizeof note, "%.4g us a token, beside %.4g us of decoding at batch %d: %.0f%%",
             seconds * 1e6, decode * 1e6, BATCH, 100 * seconds / decode);
    return bench_report_add(engine->report, &figure);
}

static dr_status sample_figures(bench_engine *engine, int32_t vocab) {
    drawer d = {.backend = engine->backend, .vocab = vocab, .rng = dr_rng_make(7, 6)};
    double decode = 0;
    int64_t n = (int64_t)BATCH * vocab;
    DR_TRY(dr_memory_create(d.backend, &d.logits, "logits", n, sizeof(float)));
    dr_status status = dr_alloc(&d.host, "logits", n, sizeof(float));
    if (status == DR_OK) status = decode_seconds(engine, vocab, &decode);
    if (status == DR_OK) status = draw_figure(engine, &d, "flat", 2.5, decode);
    if (status == DR_OK) status = draw_figure(engine, &d, "sharp", 5, decode);
    dr_free(d.host);
    d.backend->ops->memory_destroy(d.backend, d.logits);
    return status;
}

dr_status bench_sample_figures(bench_engine *engine) {
    bench_report_section(engine->report, "Sampling: temperature 1, top-p 0.95, vocabulary v");
    if (!engine->is_large) DR_TRY(sample_figures(engine, BENCH_VOCAB));
    return sample_figures(engine, engine->is_large ? engine->model.vocab : 151936);
}
