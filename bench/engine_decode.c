// Decoding with the paged cache: the check against the training pass, and tokens per second by batch and
// context, sequences on pages of their own or eight on a shared prefix.
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "bench/engine_parts.h"
#include "core/base/alloc.h"
#include "core/base/rng.h"

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

// Sequences start with CHECK_SHARED equal tokens.
enum { CHECK_SEQS = 3, CHECK_LENGTH = 53, CHECK_PREFILL = 37, CHECK_CHUNK = 16, CHECK_SHARED = 32 };

// The first sequence up to where they part, the others forked off it.
static dr_status open_shared(dr_lm *lm, dr_kv_cache *kv, const int32_t *ids, dr_lm_chunk *chunks) {
    DR_TRY(dr_kv_open(kv, &chunks[0].seq));
    chunks[0] = (dr_lm_chunk){chunks[0].seq, CHECK_SHARED, ids, false};
    DR_TRY(dr_lm_decode(lm, kv, chunks, 1, NULL));
    for (int s = 1; s < CHECK_SEQS; s++) DR_TRY(dr_kv_fork(kv, chunks[0].seq, &chunks[s].seq));
    return DR_OK;
}

// logits [CHECK_SEQS, CHECK_LENGTH - CHECK_PREFILL, vocab]: prefill in chunks, then a token at a time.
static dr_status cached_logits(dr_lm *lm, const int32_t *ids, bool is_shared, float *logits) {
    dr_kv_cache *kv = NULL;
    dr_lm_chunk chunks[CHECK_SEQS];
    int64_t V = dr_lm_config_of(lm)->vocab, n_last = CHECK_LENGTH - CHECK_PREFILL;
    float *rows = NULL;
    dr_backend *b = dr_lm_backend(lm);
    dr_status status;
    DR_TRY(dr_kv_create(lm, CHECK_SEQS * (CHECK_LENGTH / DR_KV_PAGE + 1), CHECK_SEQS, &kv));
    DR_TRY_GOTO(status, dr_memory_create(b, &rows, "logits", CHECK_SEQS * V, sizeof(float)), release);
    if (is_shared) DR_TRY_GOTO(status, open_shared(lm, kv, ids, chunks), release);
    for (int s = 0; s < CHECK_SEQS && !is_shared; s++)
        DR_TRY_GOTO(status, dr_kv_open(kv, &chunks[s].seq), release);
    for (int32_t at = is_shared ? CHECK_SHARED : 0; at < CHECK_LENGTH;) {
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
static dr_status compare_logits(bench_engine *engine, const char *what, const float *cached,
                                const float *packed, int64_t n) {
    double gap = 0, largest = 0;
    for (int64_t i = 0; i < n; i++) {
        gap = fmax(gap, fabs((double)cached[i] - packed[i]));
        largest = fmax(largest, fabs(packed[i]));
    }
    bool is_equal = engine->backend->precision == DR_FP32
                        ? memcmp(cached, packed, (size_t)n * sizeof(float)) == 0
                        : gap <= 0.03 * largest;
    DR_CHECK(is_equal && largest > 0 && isfinite(largest), DR_ERR_INTERNAL,
             "check: cached logits, %s, differ from the packed pass by %g, largest logit %g", what, gap,
             largest);
    return DR_OK;
}

static dr_status check_decode(bench_engine *engine, dr_lm *lm) {
    int64_t V = dr_lm_config_of(lm)->vocab, n = CHECK_SEQS * (CHECK_LENGTH - CHECK_PREFILL) * V;
    int32_t ids[CHECK_SEQS * CHECK_LENGTH];
    float *cached = NULL, *packed = NULL;
    dr_status status;
    bench_fill_ids(1, (int32_t)V, CHECK_SEQS * CHECK_LENGTH, ids);
    for (int s = 1; s < CHECK_SEQS; s++) memcpy(ids + s * CHECK_LENGTH, ids, CHECK_SHARED * sizeof *ids);
    DR_TRY_GOTO(status, dr_alloc(&cached, "cached logits", n, sizeof(float)), release);
    DR_TRY_GOTO(status, dr_alloc(&packed, "packed logits", n, sizeof(float)), release);
    DR_TRY_GOTO(status, packed_logits(lm, ids, packed), release);
    DR_TRY_GOTO(status, cached_logits(lm, ids, false, cached), release);
    DR_TRY_GOTO(status, compare_logits(engine, "pages of their own", cached, packed, n), release);
    DR_TRY_GOTO(status, cached_logits(lm, ids, true, cached), release);
    status = compare_logits(engine, "a shared prefix", cached, packed, n);
release:
    dr_free(cached);
    dr_free(packed);
    return status;
}

// ---- figures ----

// What a step of `batch` sequences at that context reads and computes at least, n_alike of them on pages that
// they share up to `shared` positions.
static bench_work step_work(const bench_engine *engine, const dr_lm_config *c, int32_t batch, double read,
                            int32_t n_alike, int32_t shared, bench_product *products) {
    bench_lm_products(c, batch, batch, products);
    double positions = batch * (read - shared) + (double)batch / n_alike * shared;
    return (bench_work){.bytes = bench_lm_weight_bytes(engine->backend, c) +
                                 positions * bench_kv_bytes(engine->backend, c),
                        .products = products,
                        .n_products = BENCH_LM_PRODUCTS,
                        .other_flops = batch * bench_attention_flops(c, read)};
}

static dr_status add_step(bench_engine *engine, const bench_work *work, int32_t batch, double seconds,
                          const char *name, const char *more) {
    char note[160];
    double least = 0, flops = bench_product_flops(work->products, work->n_products) + work->other_flops;
    bench_figure figure = {
        .name = name, .unit = "tokens/s", .note = note, .value = batch / seconds, .seconds = seconds};
    DR_TRY(bench_roofline(engine->ceilings, work, &least, &figure.bound));
    figure.ceiling = batch / least;
    snprintf(note, sizeof note, "%.3g ms a step, %.1f GFLOP/s, %.1f GB/s%s", seconds * 1e3,
             flops / seconds * 1e-9, work->bytes / seconds * 1e-9, more);
    return bench_report_add(engine->report, &figure);
}

static dr_status decode_figure(bench_engine *engine, bench_decoder *decoder, const dr_lm_config *c,
                               int32_t batch, int32_t context) {
    char name[64];
    double seconds = 0;
    bench_product products[BENCH_LM_PRODUCTS];
    snprintf(name, sizeof name, "decode.b%d.c%d", batch, context);
    if (!bench_report_wants(engine->report, name)) return DR_OK;
    DR_TRY(bench_decoder_step(decoder, batch, engine->seconds, &seconds));
    bench_work work = step_work(engine, c, batch, bench_positions_read(context), 1, 0, products);
    return add_step(engine, &work, batch, seconds, name, "");
}

// The decode loop with its draws, as rollouts run it.
static const struct {
    const char *name;
    dr_sampling sampling;
} drawn_ways[] = {{"sampled", {.temperature = 1.0f, .top_p = 1.0f}},
                  {"nucleus", {.temperature = 1.0f, .top_p = 0.95f}}};
enum { DRAWN_WAYS = sizeof drawn_ways / sizeof *drawn_ways };

static void name_drawn(int32_t batch, int32_t context, int way, char out[64]) {
    snprintf(out, 64, "decode.b%d.c%d.%s", batch, context, drawn_ways[way].name);
}

// When they are named, or at the table's longest context.
static dr_status drawn_figures(bench_engine *engine, bench_decoder *decoder, const dr_lm_config *c,
                               int32_t batch, int32_t context, bool is_last) {
    bench_product products[BENCH_LM_PRODUCTS];
    for (int way = 0; way < DRAWN_WAYS; way++) {
        char name[64], more[64];
        double seconds = 0, kept = 0;
        name_drawn(batch, context, way, name);
        if (bench_report_is_limited(engine->report) ? !bench_report_wants(engine->report, name) : !is_last)
            continue;
        DR_TRY(
            bench_decoder_burst(decoder, batch, drawn_ways[way].sampling, engine->seconds, &seconds, &kept));
        bench_work work = step_work(engine, c, batch, bench_positions_read(context), 1, 0, products);
        snprintf(more, sizeof more, "; drawn in bursts, %.0f ids kept a draw", kept);
        DR_TRY(add_step(engine, &work, batch, seconds, name, more));
    }
    return DR_OK;
}

// Samples of a prompt share its pages: ALIKE sequences, 1,536 of 4,096 positions.
enum { ALIKE = 8 };

static void name_shared(int32_t batch, int32_t context, char out[64]) {
    snprintf(out, 64, "decode.b%d.c%d.shared", batch, context);
}

// Once no other figure is wanted of the sequences at this context: they are opened again.
static dr_status shared_figure(bench_engine *engine, bench_decoder *decoder, const dr_lm_config *c,
                               int32_t batch, int32_t context) {
    int32_t shared = context / 8 * 3 / DR_KV_PAGE * DR_KV_PAGE;
    char name[64], more[64];
    double own = 0, seconds = 0;
    bench_product products[BENCH_LM_PRODUCTS];
    DR_TRY(bench_decoder_step(decoder, batch, engine->seconds, &own));
    DR_TRY(bench_decoder_share(decoder, batch, ALIKE, shared, context));
    DR_TRY(bench_decoder_step(decoder, batch, engine->seconds, &seconds));
    bench_work work = step_work(engine, c, batch, bench_positions_read(context), ALIKE, shared, products);
    name_shared(batch, context, name);
    snprintf(more, sizeof more, "; %d share %d positions, %.3f times own pages", ALIKE, shared,
             own / seconds);
    return add_step(engine, &work, batch, seconds, name, more);
}

// ---- which of them ----

static const int32_t contexts[] = {128, 512, 2048, 4096}, batches[] = {1, 8, 32, 128, 256};

typedef struct extent {
    int32_t n_batches, n_contexts; // of the tables, or what reaches all that are named
    int32_t batch, context;        // of the shared figure; 0: none
} extent;

static extent extent_of(const bench_engine *engine) {
    bool is_device = !bench_is_cpu(engine->backend), is_limited = bench_report_is_limited(engine->report);
    extent e = {0};
    char own[64], shared[64], drawn[64];
    if (!is_limited) {
        e.n_batches = is_device ? sized(5, 2) : engine->is_slow ? 3 : 4;
        e.n_contexts = is_device ? sized(4, 1) : 3;
        // shared on the processor only when named: filling them again takes long
        e.batch = is_device ? batches[e.n_batches - 1] : 0;
        e.context = is_device ? contexts[e.n_contexts - 1] : 0;
        return e;
    }
    for (int c = 0; c < 4; c++)
        for (int b = 0; b < 5; b++) {
            snprintf(own, sizeof own, "decode.b%d.c%d", batches[b], contexts[c]);
            name_shared(batches[b], contexts[c], shared);
            bool is_shared = batches[b] % ALIKE == 0 && bench_report_wants(engine->report, shared);
            bool is_drawn = false;
            for (int way = 0; way < DRAWN_WAYS; way++) {
                name_drawn(batches[b], contexts[c], way, drawn);
                is_drawn |= bench_report_wants(engine->report, drawn);
            }
            if (!is_shared && !is_drawn && !bench_report_wants(engine->report, own)) continue;
            if (b >= e.n_batches) e.n_batches = b + 1;
            if (c >= e.n_contexts) e.n_contexts = c + 1;
            if (is_shared) e.batch = batches[b], e.context = contexts[c];
        }
    return e;
}

dr_status bench_decode_figures(bench_engine *engine) {
    extent e = extent_of(engine);
    dr_lm *lm = NULL;
    bench_decoder *decoder = NULL;
    if (e.n_batches == 0) return DR_OK; // none is wanted
    DR_TRY(dr_lm_create(engine->backend, &engine->model, 1, &lm));
    const dr_lm_config *c = &engine->model;
    dr_status status;
    DR_TRY_GOTO(status, check_decode(engine, lm), release);
    DR_TRY_GOTO(
        status,
        bench_decoder_create(engine, lm, batches[e.n_batches - 1], contexts[e.n_contexts - 1], &decoder),
        release);
    bench_report_section(engine->report, "Decode: one token for each of b sequences at context c");
    for (int32_t i = 0; i < e.n_contexts; i++) {
        DR_TRY_GOTO(status, bench_decoder_extend(decoder, contexts[i]), release);
        for (int32_t b = 0; b < e.n_batches; b++) {
            DR_TRY_GOTO(status, decode_figure(engine, decoder, c, batches[b], contexts[i]), release);
            DR_TRY_GOTO(status,
                        drawn_figures(engine, decoder, c, batches[b], contexts[i], i == e.n_contexts - 1),
                        release);
        }
    }
    if (e.batch > 0) {
        DR_CHECK_GOTO(e.context == contexts[e.n_contexts - 1], status, DR_ERR_ARGUMENT, release,
                      "a shared prefix is measured at the longest context that is named, %d",
                      contexts[e.n_contexts - 1]);
        status = shared_figure(engine, decoder, c, e.batch, e.context);
    }
release:
    bench_decoder_destroy(decoder);
    dr_lm_destroy(lm);
    return status;
}
