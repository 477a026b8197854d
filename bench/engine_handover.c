// From learner to rollout on one rank: bytes of weights that move between an update and the first logits of
// the updated policy, counted at the compute seam, and what packing the weights again after an update moves
// within the backend's memory, and takes.
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "bench/engine_parts.h"
#include "core/base/alloc.h"
#include "core/base/clock.h"
#include "core/model/optimizer.h"

enum { TOKENS = 64, N_ROWS = TOKENS - 1 };

typedef struct handover {
    dr_lm *lm;
    dr_lm_workspace *workspace;
    dr_optimizer *optimizer;
    dr_kv_cache *kv; // of the rollout: made before the update, used after it
    int32_t seq, ids[TOKENS], rows[N_ROWS], bounds[2];
    float *gradient, *logits;      // [n_params], [vocab]: backend memory
    float *before, *after, *drawn; // [vocab] of the last token: packed before and after the update, cached
} handover;

// ---- what moves: copies of a backend, seen through its table ----

static struct {
    const dr_backend_ops *ops;
    const char *begin, *end;           // the parameters
    int64_t weights, others, reserved; // bytes copied of them, of anything else; memory made
} seen;

// ---- what is packed: products' weights, seen from their making on ----

enum { MOST_WEIGHTS = 1024 };
static struct {
    const dr_backend_ops *ops;
    const dr_weight *weights[MOST_WEIGHTS];
    int64_t values[MOST_WEIGHTS];
    int64_t n, n_others, packed; // weights known, packs of others, values packed
} packs;

static dr_status weight_create_seen(dr_backend *b, int64_t n_out, int64_t n_in, dr_weight **out) {
    DR_TRY(packs.ops->weight_create(b, n_out, n_in, out));
    if (packs.n < MOST_WEIGHTS) {
        packs.weights[packs.n] = *out;
        packs.values[packs.n++] = n_out * n_in;
    }
    return DR_OK;
}

static dr_status weight_pack_seen(dr_backend *b, dr_weight *w, const float *values) {
    int64_t i = 0;
    while (i < packs.n && packs.weights[i] != w) i++;
    if (i < packs.n)
        packs.packed += packs.values[i];
    else
        packs.n_others++;
    return packs.ops->weight_pack(b, w, values);
}

static dr_status lm_create_seen(dr_backend *b, const dr_lm_config *model, dr_lm **out) {
    dr_backend_ops table = *b->ops;
    packs.ops = b->ops;
    packs.n = packs.n_others = packs.packed = 0;
    table.weight_create = weight_create_seen;
    b->ops = &table;
    dr_status status = dr_lm_create(b, model, 1, out);
    b->ops = packs.ops;
    return status;
}

// Values that an update makes the backend pack again.
static dr_status pack_seen(dr_lm *lm, int64_t *out_values) {
    dr_backend *b = dr_lm_backend(lm);
    dr_backend_ops table = *b->ops;
    packs.ops = b->ops;
    packs.n_others = packs.packed = 0;
    table.weight_pack = weight_pack_seen;
    b->ops = &table;
    dr_status status = dr_lm_weights_changed(lm);
    b->ops = packs.ops;
    DR_TRY(status);
    DR_CHECK(packs.n_others == 0, DR_ERR_INTERNAL, "check: %lld weights are packed that nobody saw made",
             (long long)packs.n_others);
    *out_values = packs.packed;
    return DR_OK;
}

static void note(const void *one, const void *other, size_t bytes) {
    const char *sides[] = {one, other};
    bool is_weight = false;
    for (int i = 0; i < 2; i++) is_weight |= sides[i] && sides[i] + bytes > seen.begin && sides[i] < seen.end;
    *(is_weight ? &seen.weights : &seen.others) += (int64_t)bytes;
}

static void copy_seen(dr_backend *b, void *to, const void *from, size_t bytes) {
    note(to, from, bytes);
    seen.ops->copy(b, to, from, bytes);
}

static void copy_in_seen(dr_backend *b, void *to, const void *from, size_t bytes) {
    note(to, from, bytes);
    seen.ops->copy_in(b, to, from, bytes);
}

static void copy_out_seen(dr_backend *b, void *to, const void *from, size_t bytes) {
    note(to, from, bytes);
    seen.ops->copy_out(b, to, from, bytes);
}

static dr_status transfer_in_seen(dr_backend *b, dr_transfer *t, size_t from, void *to, size_t bytes) {
    note(to, NULL, bytes);
    return seen.ops->transfer_in(b, t, from, to, bytes);
}

static dr_status transfer_out_seen(dr_backend *b, dr_transfer *t, size_t to, const void *from, size_t bytes) {
    note(from, NULL, bytes);
    return seen.ops->transfer_out(b, t, to, from, bytes);
}

static dr_status memory_create_seen(dr_backend *b, const char *label, size_t bytes, void **out) {
    seen.reserved += (int64_t)bytes;
    return seen.ops->memory_create(b, label, bytes, out);
}

// The rollout's first pass on the updated weights, with everything that it copies counted.
static dr_status decode_seen(dr_backend *b, handover *h) {
    const char *params = (const char *)dr_lm_params(h->lm);
    dr_backend_ops table = *b->ops;
    seen.ops = b->ops;
    seen.begin = params;
    seen.end = params + (size_t)dr_lm_n_params(h->lm) * sizeof(float);
    seen.weights = seen.others = seen.reserved = 0;
    table.copy = copy_seen;
    table.copy_in = copy_in_seen;
    table.copy_out = copy_out_seen;
    table.transfer_in = transfer_in_seen;
    table.transfer_out = transfer_out_seen;
    table.memory_create = memory_create_seen;
    dr_lm_chunk chunk = {h->seq, TOKENS, h->ids, true};
    b->ops = &table;
    dr_status status = dr_lm_decode(h->lm, h->kv, &chunk, 1, h->logits);
    b->ops = seen.ops;
    DR_TRY(status);
    b->ops->copy_out(b, h->drawn, h->logits, (size_t)dr_lm_config_of(h->lm)->vocab * sizeof(float));
    return DR_OK;
}

// ---- the update ----

static dr_status packed_logits(dr_backend *b, handover *h, float *out) {
    int32_t last = TOKENS - 1;
    dr_pack pack = {
        .n_tokens = TOKENS, .ids = h->ids, .cu_seqlens = h->bounds, .n_seqs = 1, .n_rows = 1, .rows = &last};
    DR_TRY(dr_lm_logits(h->lm, h->workspace, &pack, h->logits));
    b->ops->copy_out(b, out, h->logits, (size_t)dr_lm_config_of(h->lm)->vocab * sizeof *out);
    return DR_OK;
}

static dr_status update(handover *h) {
    float logprob[N_ROWS], entropy[N_ROWS], slope[N_ROWS];
    double norm = 0;
    for (int32_t r = 0; r < N_ROWS; r++) {
        h->rows[r] = r;
        slope[r] = -1.0f / N_ROWS;
    }
    dr_pack pack = {.n_tokens = TOKENS,
                    .ids = h->ids,
                    .cu_seqlens = h->bounds,
                    .n_seqs = 1,
                    .n_rows = N_ROWS,
                    .rows = h->rows,
                    .targets = h->ids + 1};
    DR_TRY(dr_lm_forward(h->lm, h->workspace, &pack, 1.0f, logprob, entropy));
    DR_TRY(dr_lm_backward(h->lm, h->workspace, &pack, 1.0f, slope, h->gradient, NULL));
    return dr_optimizer_step(h->optimizer, h->gradient, 1e-3f, &norm);
}

// The rollout sees the updated weights: its logits are those of the training pass after the update, bit for
// bit in fp32, and not those before it.
static dr_status check_logits(const bench_engine *engine, const handover *h) {
    double gap = 0, moved = 0, largest = 0;
    for (int32_t i = 0; i < engine->model.vocab; i++) {
        gap = fmax(gap, fabs((double)h->drawn[i] - h->after[i]));
        moved = fmax(moved, fabs((double)h->after[i] - h->before[i]));
        largest = fmax(largest, fabs(h->after[i]));
    }
    double limit = engine->backend->precision == DR_FP32 ? 0 : 0.03 * largest;
    DR_CHECK(gap <= limit && moved > 2 * limit && isfinite(largest), DR_ERR_INTERNAL,
             "check: logits of the rollout differ from the training pass's by %g, an update moves them by %g",
             gap, moved);
    return DR_OK;
}

static dr_status create(bench_engine *engine, handover *h) {
    static const dr_optimizer_settings settings = {
        .beta1 = 0.9f, .beta2 = 0.95f, .epsilon = 1e-8f, .weight_decay = 0.01f, .clip_norm = 1.0f};
    dr_backend *b = engine->backend;
    int64_t V = engine->model.vocab;
    bench_fill_ids(8, engine->model.vocab, TOKENS, h->ids);
    h->bounds[1] = TOKENS;
    DR_TRY(lm_create_seen(b, &engine->model, &h->lm));
    DR_TRY(dr_lm_workspace_create(h->lm, TOKENS, DR_KEEP_ACTIVATIONS, &h->workspace));
    DR_TRY(dr_optimizer_create(h->lm, &settings, NULL, &h->optimizer));
    DR_TRY(dr_memory_create(b, &h->gradient, "gradient", dr_lm_n_params(h->lm), sizeof(float)));
    DR_TRY(dr_memory_create(b, &h->logits, "logits", V, sizeof(float)));
    DR_TRY(dr_kv_create(h->lm, TOKENS / DR_KV_PAGE, 1, &h->kv));
    DR_TRY(dr_kv_open(h->kv, &h->seq));
    float **hosts[] = {&h->before, &h->after, &h->drawn};
    for (int i = 0; i < 3; i++) DR_TRY(dr_alloc(hosts[i], "logits", V, sizeof(float)));
    return DR_OK;
}

static void release(dr_backend *b, handover *h) {
    dr_free(h->before);
    dr_free(h->after);
    dr_free(h->drawn);
    dr_kv_destroy(h->kv);
    if (h->logits) b->ops->memory_destroy(b, h->logits);
    if (h->gradient) b->ops->memory_destroy(b, h->gradient);
    dr_optimizer_destroy(h->optimizer);
    dr_lm_workspace_destroy(h->workspace);
    dr_lm_destroy(h->lm);
}

// ---- figures ----

static dr_status pack_run(void *context, double *out_seconds) {
    handover *h = context;
    double begun = dr_clock_seconds();
    DR_TRY(dr_lm_weights_changed(h->lm));
    DR_TRY(bench_wait(dr_lm_backend(h->lm), h->gradient));
    *out_seconds = dr_clock_seconds() - begun;
    return DR_OK;
}

// In bf16 each update ends by rounding the matrices: 4 bytes read and 2 written a value, all within the
// backend's memory.
static dr_status pack_figures(bench_engine *engine, handover *h) {
    enum { READ = sizeof(float), WRITTEN = sizeof(uint16_t) };
    int64_t values = 0;
    double seconds = 0, least = 0;
    char text[96];
    DR_TRY(pack_seen(h->lm, &values));
    DR_TRY(bench_median(pack_run, h, engine->seconds, &seconds));
    bench_work work = {.bytes = (READ + WRITTEN) * (double)values};
    bench_figure moved = {.name = "handover.packed",
                          .unit = "bytes",
                          .value = work.bytes,
                          .is_count = true,
                          .seconds = seconds,
                          .note = text},
                 rate = {.name = "handover.rounding",
                         .unit = "GB/s",
                         .note = "matrices to bf16, after each update",
                         .seconds = seconds,
                         .value = work.bytes / seconds * 1e-9};
    DR_TRY(bench_roofline(engine->ceilings, &work, &least, &rate.bound));
    rate.ceiling = work.bytes / least * 1e-9;
    snprintf(text, sizeof text, "after each update, %d read and %d written of each of %lld values", READ,
             WRITTEN, (long long)values);
    DR_TRY(bench_report_add(engine->report, &moved));
    return bench_report_add(engine->report, &rate);
}

static dr_status add_figures(bench_engine *engine, handover *h) {
    dr_backend *b = engine->backend;
    char text[160];
    DR_TRY(packed_logits(b, h, h->before));
    DR_TRY(update(h));
    DR_TRY(decode_seen(b, h));
    DR_TRY(packed_logits(b, h, h->after));
    DR_TRY(check_logits(engine, h));
    bench_report_section(engine->report,
                         "Hand-over: from an update to the first logits of the updated policy");
    snprintf(text, sizeof text, "of %.0f MB of weights; ids and the like %lld bytes, new memory %lld bytes",
             4e-6 * (double)dr_lm_n_params(h->lm), (long long)seen.others, (long long)seen.reserved);
    bench_figure figure = {.name = "handover.bytes",
                           .unit = "bytes",
                           .value = (double)seen.weights,
                           .is_count = true,
                           .note = text};
    DR_TRY(bench_report_add(engine->report, &figure));
    return b->precision == DR_BF16 ? pack_figures(engine, h) : DR_OK;
}

dr_status bench_handover_figures(bench_engine *engine) {
    handover h = {0};
    dr_status status = create(engine, &h);
    if (status == DR_OK) status = add_figures(engine, &h);
    release(engine->backend, &h);
    return status;
}
