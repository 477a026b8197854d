// Attention, packed and cached: sequences or chunks of host memory become a plan of spans and tiles, which is
// sent to the device once for all layers of a pass, and the kernels run over it.
#include <math.h>
#include <string.h>

#include <cuda_runtime_api.h>

#include "core/base/alloc.h"
#include "cuda/cuda_internal.h"
#include "cuda/stage_plan.h"

static dr_status check_sizes(int32_t H, int32_t G, int32_t d) {
    DR_CHECK(G > 0 && H % G == 0 && d > 0 && d <= DR_CUDA_MAX_HEAD, DR_ERR_RANGE,
             "attention: %d query heads, %d key heads, head size %d (at most %d)", H, G, d, DR_CUDA_MAX_HEAD);
    return DR_OK;
}

dr_status dr_cuda_check_page(int32_t page_size) {
    DR_CHECK(page_size == DR_CUDA_PAGE, DR_ERR_UNSUPPORTED, "key/value pages of %d positions, expected %d",
             page_size, DR_CUDA_PAGE);
    return DR_OK;
}

// What a plan is made from: sequences of a packed batch, or chunks of a call on the cache. group 0: whoever
// asks needs no tiles, so that any group's plan will do.
typedef struct span_source {
    const dr_sequences *sequences; // or NULL
    const dr_attention_chunk *chunks;
    int32_t n, group;
    bool is_mma, is_wide; // with tiles for the tensor cores; of them, for wgmma too (sequences)
} span_source;

static dr_span span_at(const span_source *from, int32_t s, int32_t first_page) {
    return from->sequences ? dr_span_of_sequence(from->sequences, s)
                           : dr_span_of_chunk(&from->chunks[s], first_page);
}

static int32_t pages_of(const span_source *from, int32_t s) {
    return from->sequences ? 0 : (int32_t)dr_chunk_pages(&from->chunks[s]);
}

static dr_plan_layout layout_of(const span_source *from) {
    dr_plan_counts n = {0};
    for (int32_t s = 0; s < from->n; s++) {
        dr_span span = span_at(from, s, 0);
        dr_plan_count(&n, &span, pages_of(from, s), from->is_mma ? from->group : 0, !from->sequences,
                      from->is_wide);
    }
    return dr_plan_layout_of(&n, !from->sequences);
}

// Whether a plan says what `from` says: one comparison instead of a new plan in each layer of a pass.
static bool shows(const dr_cuda_image *image, const span_source *from) {
    const dr_span *spans = (const dr_span *)image->host;
    const int32_t *pages = (const int32_t *)(image->host + image->pages);
    int32_t first_page = 0;
    if (image->work.n_spans != from->n) return false;
    if (from->group != 0 &&
        (image->group != from->group || image->is_mma != from->is_mma || image->is_wide != from->is_wide))
        return false;
    for (int32_t s = 0; s < from->n; s++) {
        dr_span span = span_at(from, s, first_page);
        size_t bytes = (size_t)pages_of(from, s) * sizeof *pages;
        if (memcmp(&span, &spans[s], sizeof span) != 0) return false;
        if (bytes > 0 && memcmp(pages + first_page, from->chunks[s].pages, bytes) != 0) return false;
        first_page += pages_of(from, s);
    }
    return true;
}

static void write_spans(const span_source *from, dr_span *spans, int32_t *pages) {
    int32_t first_page = 0;
    for (int32_t s = 0; s < from->n; s++) {
        int32_t count = pages_of(from, s);
        spans[s] = span_at(from, s, first_page);
        if (count > 0) memcpy(pages + first_page, from->chunks[s].pages, (size_t)count * sizeof *pages);
        first_page += count;
    }
}

// Empty tiles up to a round number of them, and as round a number of places for the results of splits.
static void pad_tiles(dr_query_tile *tiles, dr_cuda_attention *work) {
    int64_t room = dr_plan_room(work->n_mma_query_tiles, true);
    for (int64_t t = work->n_mma_query_tiles; t < room; t++) tiles[t] = (dr_query_tile){0};
    work->n_mma_query_tiles = room;
    work->n_parts = dr_plan_room(work->n_parts, true);
}

// Fills host memory and points `work` at what will be its copies on the device.
static void write_plan(const span_source *from, const dr_plan_layout *at, char *host, char *device,
                       dr_cuda_attention *work) {
    int32_t n = from->n, group = from->group ? from->group : 1, *pages = (int32_t *)(host + at->pages);
    dr_span *spans = (dr_span *)host;
    int64_t *query_tiles = (int64_t *)(host + at->query_tiles),
            *key_tiles = (int64_t *)(host + at->key_tiles), *rows = (int64_t *)(host + at->rows);
    write_spans(from, spans, pages);
    query_tiles[0] = key_tiles[0] = rows[0] = 0;
    for (int32_t s = 0; s < n; s++) {
        query_tiles[s + 1] = query_tiles[s] + dr_span_query_tiles(&spans[s], group);
        key_tiles[s + 1] = key_tiles[s] + dr_span_key_tiles(&spans[s]);
        rows[s + 1] = rows[s] + spans[s].n_rows;
    }
    *work = (dr_cuda_attention){.spans = (const dr_span *)device,
                                .query_tiles = (const int64_t *)(device + at->query_tiles),
                                .key_tiles = (const int64_t *)(device + at->key_tiles),
                                .rows = (const int64_t *)(device + at->rows),
                                .pages = from->sequences ? NULL : (const int32_t *)(device + at->pages),
                                .n_query_tiles = query_tiles[n],
                                .n_key_tiles = key_tiles[n],
                                .n_rows = rows[n],
                                .n_spans = n,
                                .queries = (const dr_query *)(device + at->queries),
                                .mma_query_tiles = (const dr_query_tile *)(device + at->mma_query_tiles),
                                .mma_key_tiles = (const dr_key_tile *)(device + at->mma_key_tiles),
                                .wide_query_tiles = (const dr_query_tile *)(device + at->wide_query_tiles),
                                .wide_key_tiles = (const dr_key_tile *)(device + at->wide_key_tiles)};
    if (!from->is_mma) return;
    dr_query *queries = (dr_query *)(host + at->queries);
    work->n_queries = rows[n];
    work->n_parts = dr_plan_queries(spans, n, group, !from->sequences, queries);
    work->n_mma_query_tiles = dr_plan_query_tiles(spans, n, group, rows, from->sequences ? NULL : pages,
                                                  queries, (dr_query_tile *)(host + at->mma_query_tiles));
    if (!from->sequences) pad_tiles((dr_query_tile *)(host + at->mma_query_tiles), work);
    if (from->sequences)
        work->n_mma_key_tiles =
            dr_plan_key_tiles(spans, n, DR_CUDA_MMA_KEYS, (dr_key_tile *)(host + at->mma_key_tiles));
    if (!from->is_wide) return;
    work->n_wide_query_tiles =
        dr_plan_wide_tiles(spans, n, group, rows, (dr_query_tile *)(host + at->wide_query_tiles));
    work->n_wide_key_tiles =
        dr_plan_key_tiles(spans, n, DR_WGMMA_KEYS, (dr_key_tile *)(host + at->wide_key_tiles));
}

static dr_cuda_image image_of(const span_source *from, const dr_plan_layout *at, char *host, char *device) {
    dr_cuda_image image = {.host = host,
                           .bytes = at->bytes,
                           .queries = at->queries,
                           .pages = at->pages,
                           .group = from->group,
                           .is_mma = from->is_mma,
                           .is_wide = from->is_wide};
    write_plan(from, at, host, device, &image.work);
    return image;
}

static dr_status send_plan(dr_cuda_state *state, dr_cuda_plan *plan, const span_source *from) {
    dr_plan_layout at = layout_of(from);
    plan->is_sent = false;
    if (!from->sequences) state->later.n = 0; // the stage may move, and then they point to where it was
    DR_TRY(dr_cuda_stage_reserve(state, &plan->stage, at.bytes));
    plan->now = image_of(from, &at, plan->stage.host, plan->stage.device);
    DR_TRY(dr_cuda_stage_send(state, &plan->stage, at.bytes));
    plan->is_sent = true;
    return DR_OK;
}

static const dr_cuda_image *later_image(const dr_cuda_state *state, const span_source *from) {
    for (int32_t i = 0; !from->sequences && i < state->later.n; i++)
        if (shows(&state->later.images[i], from)) return &state->later.images[i];
    return NULL;
}

// Where a plan of the burst stands on the device until it is moved.
static char *device_of(const dr_cuda_state *state, const dr_cuda_image *image) {
    return state->later.stage.device + (image->host - state->later.stage.host);
}

// From the burst's plans to the fixed place that kernels, recorded ones too, read.
static dr_status move_plan(dr_cuda_state *state, const dr_cuda_image *image) {
    dr_cuda_plan *plan = &state->cached;
    const char *from = device_of(state, image);
    plan->is_sent = false;
    DR_CUDA_TRY(DR_ERR_INTERNAL,
                cudaMemcpyAsync(plan->stage.device, from, (size_t)image->bytes, cudaMemcpyDeviceToDevice,
                                state->stream),
                "plan of a pass, %lld bytes", (long long)image->bytes);
    plan->now = *image;
    plan->is_sent = true;
    return DR_OK;
}

// The spans, tiles and pages of a call, in device memory; the caller adds what they are read from.
static dr_status planned(dr_cuda_state *state, const span_source *from, dr_cuda_attention *out_work) {
    dr_cuda_plan *plan = from->sequences ? &state->packed : &state->cached;
    if (!plan->is_sent || !shows(&plan->now, from)) {
        const dr_cuda_image *later = later_image(state, from);
        DR_TRY(later ? move_plan(state, later) : send_plan(state, plan, from));
    }
    *out_work = plan->now.work;
    return DR_OK;
}

static bool takes_mma(const dr_backend *b, int32_t H, int32_t G, int32_t d) {
    const dr_cuda_state *state = b->state;
    return dr_rounds_to_bf16(b->precision) && !state->is_reference && dr_mma_takes(H / G, d);
}

// One plan serves a pass and its gradient.
static bool is_wide(const dr_cuda_state *state, int32_t H, int32_t G, int32_t d) {
    return (state->wgmma_forward || state->wgmma_backward) && dr_wgmma_takes(H / G, d);
}

static dr_status planned_sequences(dr_backend *b, dr_cuda_state *state, const dr_sequences *sequences,
                                   int32_t H, int32_t G, int32_t d, dr_cuda_attention *out_work) {
    span_source from = {sequences, NULL, sequences->n, H / G, takes_mma(b, H, G, d), is_wide(state, H, G, d)};
    return planned(state, &from, out_work);
}

// What the plan does not say. kv_stride means nothing where keys stand in pages.
static void describe(dr_cuda_attention *a, const float *q, const void *k, const void *v, int64_t q_stride,
                     int64_t kv_stride, int32_t H, int32_t G, int32_t d) {
    a->q = q;
    a->k = k;
    a->v = v;
    a->q_stride = q_stride;
    a->kv_stride = kv_stride;
    a->H = H;
    a->G = G;
    a->d = d;
    a->scale = 1.0f / sqrtf((float)d);
}

// Rows of one operand in scratch, as bf16, behind those that are there already.
static dr_status round_rows(dr_cuda_state *state, const float *values, int64_t stride, int64_t T,
                            int64_t width, uint16_t **next, const uint16_t **out_rows) {
    *out_rows = *next;
    *next += T * width;
    return dr_cuda_round_rows(values, stride, T, width, *next - T * width, state->stream);
}

// A packed batch's keys and values as bf16 [T, G, d], once for all tiles that read them: most rows are read
// many times, and what is bf16 in memory can be copied to shared memory without passing through registers.
static dr_status round_keys(dr_cuda_state *state, int64_t T, dr_cuda_attention *a, uint16_t **next) {
    const uint16_t *k, *v;
    DR_TRY(round_rows(state, a->k, a->kv_stride, T, (int64_t)a->G * a->d, next, &k));
    DR_TRY(round_rows(state, a->v, a->kv_stride, T, (int64_t)a->G * a->d, next, &v));
    a->k = k;
    a->v = v;
    return DR_OK;
}

static dr_status reserve_rounded(dr_cuda_state *state, int64_t elements, uint16_t **out_memory) {
    DR_TRY(dr_cuda_reserve(state, &state->rounded, "attention's operands in bf16",
                           elements * (int64_t)sizeof(uint16_t)));
    *out_memory = state->rounded.data;
    return DR_OK;
}

static dr_status attention_forward(dr_backend *b, const float *q, const float *k, const float *v,
                                   int64_t q_stride, int64_t kv_stride, const dr_sequences *sequences,
                                   int32_t H, int32_t G, int32_t d, float *out, float *lse) {
    dr_cuda_state *state;
    dr_cuda_attention a;
    uint16_t *next;
    int64_t T = sequences->cu_seqlens[sequences->n];
    DR_TRY(check_sizes(H, G, d));
    DR_TRY(dr_cuda_enter(b, &state));
    DR_TRY(planned_sequences(b, state, sequences, H, G, d, &a));
    describe(&a, q, k, v, q_stride, kv_stride, H, G, d);
    if (!takes_mma(b, H, G, d))
        return dr_cuda_attention_forward("attention_forward", &a, out, lse, state->stream);
    DR_TRY(reserve_rounded(state, T * 2 * G * d, &next));
    DR_TRY(round_keys(state, T, &a, &next));
    if (state->wgmma_forward && dr_wgmma_takes(H / G, d))
        return dr_cuda_attention_wgmma_forward(&a, out, lse, state->stream);
    return dr_cuda_attention_bf16_forward("attention_forward", &a, out, lse, state->stream);
}

static dr_status attention_backward(dr_backend *b, const float *dout, const float *q, const float *k,
                                    const float *v, const float *out, const float *lse, int64_t q_stride,
                                    int64_t kv_stride, const dr_sequences *sequences, int32_t H, int32_t G,
                                    int32_t d, float *dq, float *dk, float *dv) {
    dr_cuda_state *state;
    dr_cuda_attention a;
    uint16_t *next;
    const uint16_t *q_rounded, *dout_rounded;
    int64_t T = sequences->cu_seqlens[sequences->n];
    DR_TRY(check_sizes(H, G, d));
    DR_TRY(dr_cuda_enter(b, &state));
    DR_TRY(dr_cuda_reserve(state, &state->partials, "attention's delta", T * H * (int64_t)sizeof(float)));
    float *delta = state->partials.data;
    DR_TRY(planned_sequences(b, state, sequences, H, G, d, &a));
    describe(&a, q, k, v, q_stride, kv_stride, H, G, d);
    DR_TRY(dr_cuda_attention_delta(dout, out, T * H, d, delta, state->stream));
    if (!takes_mma(b, H, G, d))
        return dr_cuda_attention_backward(&a, dout, lse, delta, dq, dk, dv, state->stream);
    DR_TRY(reserve_rounded(state, T * 2 * (H + G) * d, &next));
    DR_TRY(round_keys(state, T, &a, &next));
    DR_TRY(round_rows(state, q, q_stride, T, (int64_t)H * d, &next, &q_rounded));
    DR_TRY(round_rows(state, dout, (int64_t)H * d, T, (int64_t)H * d, &next, &dout_rounded));
    if (state->wgmma_backward && dr_wgmma_takes(H / G, d))
        return dr_cuda_attention_wgmma_backward(&a, q_rounded, dout_rounded, lse, delta, dq, dk, dv,
                                                state->stream);
    return dr_cuda_attention_bf16_backward(&a, q_rounded, dout_rounded, lse, delta, dq, dk, dv,
                                           state->stream);
}

static dr_status attention_bidirectional(dr_backend *b, const float *q, const float *k, const float *v,
                                         int64_t q_stride, int64_t kv_stride, const dr_sequences *sequences,
                                         int32_t H, int32_t G, int32_t d, float *out) {
    dr_cuda_state *state;
    dr_cuda_attention a;
    DR_TRY(check_sizes(H, G, d));
    DR_CHECK(!sequences->prefix, DR_ERR_UNSUPPORTED, "attention in both directions: sequences with prefixes");
    span_source from = {.sequences = sequences, .n = sequences->n, .group = H / G};
    DR_TRY(dr_cuda_enter(b, &state));
    DR_TRY(planned(state, &from, &a));
    describe(&a, q, k, v, q_stride, kv_stride, H, G, d);
    a.both_ways = true;
    return dr_cuda_attention_forward("attention_bidirectional", &a, out, NULL, state->stream);
}

// Here because it reads the spans that attention sends.
static dr_status pool_rows(dr_backend *b, const float *x, const dr_sequences *sequences, dr_pooling pooling,
                           int64_t D, float *out) {
    dr_cuda_state *state;
    dr_cuda_attention a;
    span_source from = {.sequences = sequences, .n = sequences->n};
    DR_TRY(dr_cuda_enter(b, &state));
    DR_TRY(planned(state, &from, &a));
    return dr_cuda_pool_rows(x, a.spans, sequences->n, pooling, D, out, state->stream);
}

static void kv_round(dr_backend *b, float *k, float *v, int64_t kv_stride, int64_t T, int32_t G, int32_t d) {
    dr_cuda_state *state;
    if (!dr_rounds_to_bf16(b->precision)) return;
    dr_status status = dr_cuda_enter(b, &state);
    if (status == DR_OK) status = dr_cuda_kv_round(k, v, kv_stride, T, (int64_t)G * d, state->stream);
    dr_cuda_keep(b->state, status);
}

static dr_status store(dr_backend *b, const float *k, const float *v, int64_t kv_stride,
                       const dr_attention_chunk *chunks, int32_t n_chunks, int32_t page_size, int32_t G,
                       int32_t d, void *k_cache, void *v_cache) {
    dr_cuda_state *state;
    dr_cuda_attention a;
    span_source from = {.chunks = chunks, .n = n_chunks};
    DR_TRY(check_sizes(G, G, d));
    DR_TRY(dr_cuda_check_page(page_size));
    DR_TRY(dr_cuda_enter(b, &state));
    DR_TRY(planned(state, &from, &a));
    describe(&a, NULL, k, v, 0, kv_stride, G, G, d);
    a.is_bf16 = dr_rounds_to_bf16(b->precision);
    return dr_cuda_kv_store(&a, k_cache, v_cache, state->stream);
}

static void kv_store(dr_backend *b, const float *k, const float *v, int64_t kv_stride,
                     const dr_attention_chunk *chunks, int32_t n_chunks, int32_t page_size, int32_t G,
                     int32_t d, void *k_cache, void *v_cache) {
    dr_cuda_keep(b->state, store(b, k, v, kv_stride, chunks, n_chunks, page_size, G, d, k_cache, v_cache));
}

// Room for what splits of keys give: sums of values, then maxima and sums of exponentials.
static dr_status reserve_parts(dr_cuda_state *state, dr_cuda_attention *a) {
    int64_t rows = a->n_parts * a->H;
    DR_TRY(dr_cuda_reserve(state, &state->partials, "attention's splits",
                           rows * (a->d + 2) * (int64_t)sizeof(float)));
    a->part_sums = state->partials.data;
    a->part_stats = a->part_sums + rows * a->d;
    return DR_OK;
}

static dr_status attention_cached(dr_backend *b, const float *q, int64_t q_stride, const void *k_cache,
                                  const void *v_cache, const dr_attention_chunk *chunks, int32_t n_chunks,
                                  int32_t page_size, int32_t H, int32_t G, int32_t d, float *out) {
    dr_cuda_state *state;
    dr_cuda_attention a;
    DR_TRY(check_sizes(H, G, d));
    DR_TRY(dr_cuda_check_page(page_size));
    span_source from = {.chunks = chunks, .n = n_chunks, .group = H / G, .is_mma = takes_mma(b, H, G, d)};
    DR_TRY(dr_cuda_enter(b, &state));
    DR_TRY(planned(state, &from, &a));
    describe(&a, q, k_cache, v_cache, q_stride, 0, H, G, d);
    a.is_bf16 = dr_rounds_to_bf16(b->precision);
    if (!from.is_mma) return dr_cuda_attention_forward("attention_cached", &a, out, NULL, state->stream);
    DR_TRY(reserve_parts(state, &a));
    return dr_cuda_attention_bf16_forward("attention_cached", &a, out, NULL, state->stream);
}

static span_source source_of(const dr_backend *b, const dr_cached_pass *pass) {
    return (span_source){.chunks = pass->chunks,
                         .n = pass->n_chunks,
                         .group = pass->group,
                         .is_mma = takes_mma(b, pass->group, 1, pass->head_size)};
}

// With the plan sent before, no op of the pass sends anything.
static dr_status run_pass(dr_backend *b, const dr_cached_pass *pass, dr_pass_ops *ops, void *context) {
    dr_cuda_state *state = b->state;
    dr_cuda_attention plan;
    span_source from = source_of(b, pass);
    if (!state->records) return ops(context, b, 0, pass->n_chunks);
    DR_TRY(planned(state, &from, &plan));
    return dr_cuda_run_pass(b, pass, &plan, ops, context);
}

static dr_status cached_pass(dr_backend *b, const dr_cached_pass *pass, dr_pass_ops *ops, void *context) {
    dr_cuda_state *state;
    DR_TRY(dr_cuda_enter(b, &state));
    dr_status status = run_pass(b, pass, ops, context);
    if (status != DR_OK) dr_cuda_end_burst(state); // it may have been one of a burst's
    return status;
}

// ---- bursts ----

// The fixed place must hold the largest of them from now on: kernels and recordings know it by its address.
static dr_status reserve_fixed(dr_cuda_state *state, int64_t bytes) {
    dr_cuda_plan *plan = &state->cached;
    if (bytes > plan->stage.bytes) {
        plan->is_sent = false;
        DR_TRY(dr_cuda_stage_reserve(state, &plan->stage, bytes));
    }
    return DR_OK;
}

void dr_cuda_end_burst(dr_cuda_state *state) {
    state->burst.burst = NULL;
    state->later.n = 0;
    if (state->cached.is_sent && state->cached.now.host != state->cached.stage.host)
        state->cached.is_sent = false;
}

dr_cuda_plan_rows dr_cuda_plan_rows_of(const dr_cuda_state *state, int32_t i) {
    if (i >= state->later.n) return (dr_cuda_plan_rows){0};
    const dr_cuda_image *image = &state->later.images[i];
    char *device = device_of(state, image);
    return (dr_cuda_plan_rows){.spans = (dr_span *)device,
                               .queries = image->is_mma ? (dr_query *)(device + image->queries) : NULL,
                               .pages = (int32_t *)(device + image->pages)};
}

dr_status dr_cuda_plan_passes(dr_backend *b, const dr_cached_pass *passes, int32_t n_passes) {
    dr_cuda_state *state = b->state;
    dr_cuda_later_plans *later = &state->later;
    int64_t bytes = 0, most = 0;
    for (int32_t i = 0; i < n_passes; i++) {
        span_source from = source_of(b, &passes[i]);
        dr_plan_layout at = layout_of(&from);
        bytes += dr_plan_stride(&at);
        if (at.bytes > most) most = at.bytes;
    }
    DR_TRY(reserve_fixed(state, most));
    if (n_passes == 0) return DR_OK;
    if (n_passes > later->capacity) {
        DR_TRY(dr_grow(&later->images, "plans of a burst", later->capacity, n_passes, sizeof *later->images));
        later->capacity = n_passes;
    }
    DR_TRY(dr_cuda_stage_reserve(state, &later->stage, bytes));
    char *host = later->stage.host;
    for (int32_t i = 0; i < n_passes; i++) {
        span_source from = source_of(b, &passes[i]);
        dr_plan_layout at = layout_of(&from);
        later->images[i] = image_of(&from, &at, host, state->cached.stage.device);
        host += dr_plan_stride(&at);
    }
    DR_TRY(dr_cuda_stage_send(state, &later->stage, bytes));
    later->n = n_passes;
    return DR_OK;
}

void dr_cuda_fill_attention(dr_backend_ops *ops) {
    ops->attention_forward = attention_forward;
    ops->attention_backward = attention_backward;
    ops->attention_bidirectional = attention_bidirectional;
    ops->pool_rows = pool_rows;
    ops->kv_round = kv_round;
    ops->kv_store = kv_store;
    ops->attention_cached = attention_cached;
    ops->cached_pass = cached_pass;
    ops->pass_rows = dr_cuda_pass_rows;
}
