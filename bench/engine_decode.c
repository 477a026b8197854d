// Decoding with the paged cache: the check against the training pass, and tokens per second by batch and
// context.
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "bench/engine_parts.h"
#include "core/base/alloc.h"
#include "core/base/clock.h"
#include "core/base/rng.h"

enum { STEPS = 8 };

// ---- sizes ----

void bench_lm_products(const dr_lm_config *c, int64_t T, int64_t n_logits,
                       bench_product out[BENCH_LM_PRODUCTS]) {
    int64_t D = c->hidden, A = (int64_t)c->n_heads * c->head_size, F = c->intermediate, L = c->n_layers;
    int64_t Q = A + 2 * (int64_t)c->n_kv_heads * c->head_size;
    bench_product products[BENCH_LM_PRODUCTS] = {
        {.m = T, .n = Q, .k = D, .count = L},
        {.m = T, .n = D, .k = A, .count = L - 1},
        {.m = T, .n = 2 * F, .k = D, .count = L - 1},
        {.m = T, .n = D, .k = F, .count = L - 1},
        {.m = n_logits, .n = D, .k = A, .count = 1}, // of the last layer only what the head reads
        {.m = n_logits, .n = 2 * F, .k = D, .count = 1},
        {.m = n_logits, .n = D, .k = F, .count = 1},
        {.m = n_logits, .n = c->vocab, .k = D, .count = 1}};
    for (int i = 0; i < BENCH_LM_PRODUCTS; i++) {
        products[i].trans_b = true; // weights are [n_out, n_in]
        out[i] = products[i];
    }
}

double bench_lm_weight_bytes(const dr_backend *backend, const dr_lm_config *c) {
    bench_product products[BENCH_LM_PRODUCTS];
    double values = 0;
    bench_lm_products(c, 1, 1, products);
    for (int i = 0; i < BENCH_LM_PRODUCTS; i++)
        values += (double)products[i].n * (double)products[i].k * (double)products[i].count;
    return values * (backend->precision == DR_BF16 ? 2 : 4);
}

double bench_kv_bytes(const dr_backend *backend, const dr_lm_config *c) {
    return 2.0 * c->n_layers * c->n_kv_heads * c->head_size * (double)dr_kv_bytes(backend);
}

double bench_attention_flops(const dr_lm_config *c, double context) {
    return 4.0 * c->n_layers * c->n_heads * c->head_size * context;
}

void bench_fill_ids(uint64_t stream, int32_t vocab, int64_t n, int32_t *out) {
    dr_rng rng = dr_rng_make(7, stream);
    for (int64_t i = 0; i < n; i++) out[i] = (int32_t)dr_rng_below(&rng, (uint32_t)vocab);
}

// ---- the check: cached logits are the training pass's ----

enum { CHECK_SEQS = 3, CHECK_LENGTH = 53, CHECK_PREFILL = 37, CHECK_CHUNK = 16 };

// logits [CHECK_SEQS, CHECK_LENGTH - CHECK_PREFILL, vocab]: prefill in chunks, then a token at a time.
static dr_status cached_logits(dr_lm *lm, const int32_t *ids, float *logits) {
    dr_kv_cache *kv = NULL;
    dr_lm_chunk chunks[CHECK_SEQS];
    int64_t V = dr_lm_config_of(lm)->vocab, n_last = CHECK_LENGTH - CHECK_PREFILL;
    float *rows = NULL;
    dr_backend *b = dr_lm_backend(lm);
    dr_status status;
    DR_TRY(dr_kv_create(lm, CHECK_SEQS * (CHECK_LENGTH / DR_KV_PAGE + 1), CHECK_SEQS, &kv));
    DR_TRY_GOTO(status, dr_memory_create(b, &rows, "logits", CHECK_SEQS * V, sizeof(float)), release);
    for (int s = 0; s < CHECK_SEQS; s++) DR_TRY_GOTO(status, dr_kv_open(kv, &chunks[s].seq), release);
    for (int32_t at = 0; at < CHECK_LENGTH;) {
        int32_t left = CHECK_PREFILL - at;
        int32_t n = left <= 0 ? 1 : left < CHECK_CHUNK ? left : CHECK_CHUNK;
        bool wanted = left <= 0;
        for (int s = 0; s < CHECK_SEQS; s++)
            chunks[s] = (dr_lm_chunk){chunks[s].seq, n, ids + s * CHECK_LENGTH + at, wanted};
        DR_TRY_GOTO(status, dr_lm_decode(lm, kv, chunks, CHECK_SEQS, rows), release);
        for (int s = 0; s < CHECK_SEQS && wanted; s++)
            b->ops->copy_out(b, logits + (s * n_last + at - CHECK_PREFILL) * V, rows + s * V,
                             (size_t)V * sizeof(float));
        at += n;
    }
release:
    if (rows) b->ops->memory_destroy(b, rows);
    dr_kv_destroy(kv);
    return status;
}

static dr_status packed_logits(dr_lm *lm, const int32_t *ids, float *logits) {
    dr_lm_workspace *workspace = NULL;
    int32_t bounds[CHECK_SEQS + 1], rows[CHECK_SEQS * CHECK_LENGTH], n_rows = 0;
    for (int s = 0; s <= CHECK_SEQS; s++) bounds[s] = s * CHECK_LENGTH;
    for (int s = 0; s < CHECK_SEQS; s++)
        for (int32_t t = CHECK_PREFILL; t < CHECK_LENGTH; t++) rows[n_rows++] = bounds[s] + t;
    dr_pack pack = {.n_tokens = CHECK_SEQS * CHECK_LENGTH,
                    .ids = ids,
                    .cu_seqlens = bounds,
                    .n_seqs = CHECK_SEQS,
                    .n_rows = n_rows,
                    .rows = rows};
    dr_backend *b = dr_lm_backend(lm);
    int64_t n = n_rows * (int64_t)dr_lm_config_of(lm)->vocab;
    float *memory = NULL;
    dr_status status;
    DR_TRY(dr_memory_create(b, &memory, "packed logits", n, sizeof *memory));
    DR_TRY_GOTO(status, dr_lm_workspace_create(lm, pack.n_tokens, DR_KEEP_ACTIVATIONS, &workspace), release);
    DR_TRY_GOTO(status, dr_lm_logits(lm, workspace, &pack, memory), release);
    b->ops->copy_out(b, logits, memory, (size_t)n * sizeof *memory);
release:
    dr_lm_workspace_destroy(workspace);
    b->ops->memory_destroy(b, memory);
    return status;
}

// Bit for bit in fp32; within 3 % of the largest logit in bf16.
static dr_status check_decode(bench_engine *engine, dr_lm *lm) {
    int64_t V = dr_lm_config_of(lm)->vocab, n = CHECK_SEQS * (CHECK_LENGTH - CHECK_PREFILL) * V;
    int32_t ids[CHECK_SEQS * CHECK_LENGTH];
    float *cached = NULL, *packed = NULL;
    double gap = 0, largest = 0;
    bench_fill_ids(1, (int32_t)V, CHECK_SEQS * CHECK_LENGTH, ids);
    dr_status status;
    DR_TRY_GOTO(status, dr_alloc(&cached, "cached logits", n, sizeof(float)), release);
    DR_TRY_GOTO(status, dr_alloc(&packed, "packed logits", n, sizeof(float)), release);
    DR_TRY_GOTO(status, cached_logits(lm, ids, cached), release);
    DR_TRY_GOTO(status, packed_logits(lm, ids, packed), release);
    for (int64_t i = 0; i < n; i++) {
        gap = fmax(gap, fabs((double)cached[i] - packed[i]));
        largest = fmax(largest, fabs(packed[i]));
    }
    bool is_equal = engine->backend->precision == DR_FP32
                        ? memcmp(cached, packed, (size_t)n * sizeof(float)) == 0
                        : gap <= 0.03 * largest;
    DR_CHECK_GOTO(is_equal && largest > 0 && isfinite(largest), status, DR_ERR_INTERNAL, release,
                  "check: cached logits differ from the packed pass by %g, largest logit %g", gap, largest);
release:
    dr_free(cached);
    dr_free(packed);
    return status;
}

// ---- decoding in step ----

struct bench_decoder {
    bench_engine *engine;
    dr_lm *lm, *filler;
    dr_kv_cache *kv;
    int32_t n_seqs, batch;
    int32_t *seqs;       // [n_seqs], at the context reached
    int32_t *ids;        // [n_seqs], one token each
    dr_lm_chunk *chunks; // [n_seqs]
    float *logits;       // [n_seqs, vocab], backend memory
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
    DR_TRY_GOTO(status, dr_memory_create(engine->backend, &d->logits, "logits", n_seqs * V, sizeof(float)),
                destroy);
    for (int32_t s = 0; s < n_seqs; s++) DR_TRY_GOTO(status, dr_kv_open(d->kv, &d->seqs[s]), destroy);
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
    if (d->logits) d->engine->backend->ops->memory_destroy(d->engine->backend, d->logits);
    dr_free(d);
}

dr_status bench_decoder_extend(bench_decoder *d, int32_t context) {
    enum { MOST = 512 };
    static const int32_t zeros[MOST];
    DR_CHECK(context % DR_KV_PAGE == 0, DR_ERR_ARGUMENT, "a context of %d is not whole pages", context);
    for (int32_t s = 0; s < d->n_seqs; s++)
        for (int32_t left; (left = context - dr_kv_length(d->kv, d->seqs[s])) > 0;) {
            dr_lm_chunk chunk = {d->seqs[s], left < MOST ? left : MOST, zeros, false};
            DR_TRY(dr_lm_decode(d->filler, d->kv, &chunk, 1, NULL));
        }
    return DR_OK;
}

// Forks whole pages, decodes a few steps and drops the forks, so that the context stays.
static dr_status decode_run(void *context, double *out_seconds) {
    bench_decoder *d = context;
    for (int32_t s = 0; s < d->batch; s++) {
        d->chunks[s] = (dr_lm_chunk){.n = 1, .ids = &d->ids[s], .want_logits = true};
        DR_TRY(dr_kv_fork(d->kv, d->seqs[s], &d->chunks[s].seq));
    }
    double begun = dr_clock_seconds();
    for (int i = 0; i < STEPS; i++) DR_TRY(dr_lm_decode(d->lm, d->kv, d->chunks, d->batch, d->logits));
    DR_TRY(bench_wait(d->engine->backend, d->logits));
    *out_seconds = (dr_clock_seconds() - begun) / STEPS;
    for (int32_t s = 0; s < d->batch; s++) dr_kv_close(d->kv, d->chunks[s].seq);
    return DR_OK;
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

// ---- figures ----

static dr_status decode_figure(bench_engine *engine, bench_decoder *decoder, int32_t batch, int32_t context) {
    const dr_lm_config *c = dr_lm_config_of(decoder->lm);
    char name[64], note[96];
    double seconds = 0, least = 0, read = context + 0.5 * (STEPS + 1); // positions looked at, on average
    bench_product products[BENCH_LM_PRODUCTS];
    bench_lm_products(c, batch, batch, products);
    bench_work work = {.bytes = bench_lm_weight_bytes(engine->backend, c) +
                                batch * read * bench_kv_bytes(engine->backend, c),
                       .products = products,
                       .n_products = BENCH_LM_PRODUCTS,
                       .other_flops = batch * bench_attention_flops(c, read)};
    bench_figure figure = {.name = name, .unit = "tokens/s", .note = note};
    DR_TRY(bench_roofline(engine->ceilings, &work, &least, &figure.bound));
    DR_TRY(bench_decoder_step(decoder, batch, engine->seconds, &seconds));
    figure.value = batch / seconds;
    figure.ceiling = batch / least;
    double flops = bench_product_flops(products, BENCH_LM_PRODUCTS) + work.other_flops;
    snprintf(name, sizeof name, "decode.b%d.c%d", batch, context);
    snprintf(note, sizeof note, "%.3g ms a step, %.1f GFLOP/s, %.1f GB/s", seconds * 1e3,
             flops / seconds * 1e-9, work.bytes / seconds * 1e-9);
    return bench_report_add(engine->report, &figure);
}

dr_status bench_decode_figures(bench_engine *engine) {
    static const int32_t contexts[] = {128, 512, 2048, 4096}, batches[] = {1, 8, 32, 128, 256};
    bool is_device = !bench_is_cpu(engine->backend);
    int32_t n_batches = is_device ? 5 : engine->is_slow ? 3 : 4, most = batches[n_batches - 1];
    int32_t n_contexts = is_device ? 4 : 3;
    dr_lm *lm = NULL;
    bench_decoder *decoder = NULL;
    DR_TRY(dr_lm_create(engine->backend, &engine->model, 1, &lm));
    dr_status status;
    DR_TRY_GOTO(status, check_decode(engine, lm), release);
    DR_TRY_GOTO(status, bench_decoder_create(engine, lm, most, contexts[n_contexts - 1], &decoder), release);
    bench_report_section(engine->report, "Decode: one token for each of b sequences at context c");
    for (int32_t c = 0; c < n_contexts; c++) {
        DR_TRY_GOTO(status, bench_decoder_extend(decoder, contexts[c]), release);
        for (int32_t b = 0; b < n_batches; b++)
            DR_TRY_GOTO(status, decode_figure(engine, decoder, batches[b], contexts[c]), release);
    }
release:
    bench_decoder_destroy(decoder);
    dr_lm_destroy(lm);
    return status;
}
