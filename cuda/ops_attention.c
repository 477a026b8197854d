// Attention, packed and cached: sequences or chunks of host memory become spans, are sent to the device in
// one stage, and the kernels run over them.
#include <math.h>
#include <string.h>

#include "cuda/cuda_internal.h"

static dr_status check_sizes(int32_t H, int32_t G, int32_t d) {
    DR_CHECK(G > 0 && H % G == 0 && d > 0 && d <= DR_CUDA_MAX_HEAD, DR_ERR_RANGE,
             "attention: %d query heads, %d key heads, head size %d (at most %d)", H, G, d, DR_CUDA_MAX_HEAD);
    return DR_OK;
}

static dr_status check_page(int32_t page_size) {
    DR_CHECK(page_size == DR_CUDA_PAGE, DR_ERR_UNSUPPORTED, "key/value pages of %d positions, expected %d",
             page_size, DR_CUDA_PAGE);
    return DR_OK;
}

// Places, in a stage, of what describes n spans: the same offsets on host and device.
typedef struct span_layout {
    int64_t query_tiles, key_tiles, rows, pages, bytes; // the spans themselves stand at 0
} span_layout;

static span_layout layout_of(int32_t n, int64_t n_pages) {
    int64_t starts = (n + 1) * (int64_t)sizeof(int64_t);
    span_layout at;
    at.query_tiles = n * (int64_t)sizeof(dr_span);
    at.key_tiles = at.query_tiles + starts;
    at.rows = at.key_tiles + starts;
    at.pages = at.rows + starts;
    at.bytes = at.pages + n_pages * (int64_t)sizeof(int32_t);
    return at;
}

// The spans stand in the stage: counts their tiles, sends all and points `a` at the copies.
static dr_status send_spans(dr_cuda_state *state, dr_cuda_stage *stage, const span_layout *at, int32_t n,
                            dr_cuda_attention *a) {
    const dr_span *spans = (const dr_span *)stage->host;
    int64_t *query_tiles = (int64_t *)(stage->host + at->query_tiles),
            *key_tiles = (int64_t *)(stage->host + at->key_tiles),
            *rows = (int64_t *)(stage->host + at->rows);
    query_tiles[0] = key_tiles[0] = rows[0] = 0;
    for (int32_t s = 0; s < n; s++) {
        query_tiles[s + 1] = query_tiles[s] + dr_span_query_tiles(&spans[s], a->H / a->G);
        key_tiles[s + 1] = key_tiles[s] + dr_span_key_tiles(&spans[s]);
        rows[s + 1] = rows[s] + spans[s].n_rows;
    }
    a->n_spans = n;
    a->n_query_tiles = query_tiles[n];
    a->n_key_tiles = key_tiles[n];
    a->n_rows = rows[n];
    a->spans = (const dr_span *)stage->device;
    a->query_tiles = (const int64_t *)(stage->device + at->query_tiles);
    a->key_tiles = (const int64_t *)(stage->device + at->key_tiles);
    a->rows = (const int64_t *)(stage->device + at->rows);
    return dr_cuda_stage_send(state, stage, at->bytes);
}

static dr_status send_sequences(dr_cuda_state *state, const dr_sequences *sequences, dr_cuda_attention *a) {
    span_layout at = layout_of(sequences->n, 0);
    dr_cuda_stage *stage;
    DR_TRY(dr_cuda_stage_open(state, at.bytes, &stage));
    dr_span *spans = (dr_span *)stage->host;
    for (int32_t s = 0; s < sequences->n; s++) spans[s] = dr_span_of_sequence(sequences, s);
    return send_spans(state, stage, &at, sequences->n, a);
}

static dr_status send_chunks(dr_cuda_state *state, const dr_attention_chunk *chunks, int32_t n,
                             dr_cuda_attention *a) {
    int64_t n_pages = 0;
    for (int32_t c = 0; c < n; c++) n_pages += dr_chunk_pages(&chunks[c]);
    span_layout at = layout_of(n, n_pages);
    dr_cuda_stage *stage;
    DR_TRY(dr_cuda_stage_open(state, at.bytes, &stage));
    dr_span *spans = (dr_span *)stage->host;
    int32_t *pages = (int32_t *)(stage->host + at.pages), first_page = 0;
    for (int32_t c = 0; c < n; c++) {
        int32_t count = (int32_t)dr_chunk_pages(&chunks[c]);
        spans[c] = dr_span_of_chunk(&chunks[c], first_page);
        if (count > 0) memcpy(pages + first_page, chunks[c].pages, (size_t)count * sizeof *pages);
        first_page += count;
    }
    a->pages = (const int32_t *)(stage->device + at.pages);
    return send_spans(state, stage, &at, n, a);
}

// All but the sequences or chunks, which are sent. kv_stride means nothing where keys stand in pages.
static dr_cuda_attention described(const float *q, const void *k, const void *v, int64_t q_stride,
                                   int64_t kv_stride, int32_t H, int32_t G, int32_t d) {
    return (dr_cuda_attention){.q = q,
                               .k = k,
                               .v = v,
                               .q_stride = q_stride,
                               .kv_stride = kv_stride,
                               .H = H,
                               .G = G,
                               .d = d,
                               .scale = 1.0f / sqrtf((float)d)};
}

static dr_status attention_forward(dr_backend *b, const float *q, const float *k, const float *v,
                                   int64_t q_stride, int64_t kv_stride, const dr_sequences *sequences,
                                   int32_t H, int32_t G, int32_t d, float *out, float *lse) {
    dr_cuda_state *state;
    dr_cuda_attention a = described(q, k, v, q_stride, kv_stride, H, G, d);
    DR_TRY(check_sizes(H, G, d));
    DR_TRY(dr_cuda_enter(b, &state));
    DR_TRY(send_sequences(state, sequences, &a));
    return dr_cuda_attention_forward("attention_forward", &a, out, lse, state->stream);
}

static dr_status attention_backward(dr_backend *b, const float *dout, const float *q, const float *k,
                                    const float *v, const float *out, const float *lse, int64_t q_stride,
                                    int64_t kv_stride, const dr_sequences *sequences, int32_t H, int32_t G,
                                    int32_t d, float *dq, float *dk, float *dv) {
    dr_cuda_state *state;
    int64_t T = sequences->cu_seqlens[sequences->n];
    dr_cuda_attention a = described(q, k, v, q_stride, kv_stride, H, G, d);
    DR_TRY(check_sizes(H, G, d));
    DR_TRY(dr_cuda_enter(b, &state));
    DR_TRY(dr_cuda_reserve(state, &state->partials, "attention's delta", T * H * (int64_t)sizeof(float)));
    DR_TRY(send_sequences(state, sequences, &a));
    return dr_cuda_attention_backward(&a, T, dout, out, lse, state->partials.data, dq, dk, dv, state->stream);
}

static void kv_round(dr_backend *b, float *k, float *v, int64_t kv_stride, int64_t T, int32_t G, int32_t d) {
    dr_cuda_state *state;
    if (!dr_rounds_to_bf16(b->precision)) return;
    dr_status status = dr_cuda_enter(b, &state);
    if (status == DR_OK) status = dr_cuda_kv_round(k, v, kv_stride, T, (int64_t)G * d, state->stream);
    dr_cuda_keep(b->state, status);
}

static dr_status store(dr_backend *b, const dr_attention_chunk *chunks, int32_t n_chunks, int32_t page_size,
                       dr_cuda_attention *a, void *k_cache, void *v_cache) {
    dr_cuda_state *state;
    DR_TRY(check_sizes(a->H, a->G, a->d));
    DR_TRY(check_page(page_size));
    DR_TRY(dr_cuda_enter(b, &state));
    DR_TRY(send_chunks(state, chunks, n_chunks, a));
    return dr_cuda_kv_store(a, k_cache, v_cache, state->stream);
}

static void kv_store(dr_backend *b, const float *k, const float *v, int64_t kv_stride,
                     const dr_attention_chunk *chunks, int32_t n_chunks, int32_t page_size, int32_t G,
                     int32_t d, void *k_cache, void *v_cache) {
    dr_cuda_attention a = {.k = k, .v = v, .kv_stride = kv_stride, .H = G, .G = G, .d = d};
    a.is_bf16 = dr_rounds_to_bf16(b->precision);
    dr_cuda_keep(b->state, store(b, chunks, n_chunks, page_size, &a, k_cache, v_cache));
}

static dr_status attention_cached(dr_backend *b, const float *q, int64_t q_stride, const void *k_cache,
                                  const void *v_cache, const dr_attention_chunk *chunks, int32_t n_chunks,
                                  int32_t page_size, int32_t H, int32_t G, int32_t d, float *out) {
    dr_cuda_state *state;
    dr_cuda_attention a = described(q, k_cache, v_cache, q_stride, 0, H, G, d);
    a.is_bf16 = dr_rounds_to_bf16(b->precision);
    DR_TRY(check_sizes(H, G, d));
    DR_TRY(check_page(page_size));
    DR_TRY(dr_cuda_enter(b, &state));
    DR_TRY(send_chunks(state, chunks, n_chunks, &a));
    return dr_cuda_attention_forward("attention_cached", &a, out, NULL, state->stream);
}

static dr_status cached_pass(dr_backend *b, const dr_cached_pass *pass, dr_pass_ops *ops, void *context) {
    (void)b, (void)pass;
    return ops(context);
}

void dr_cuda_fill_attention(dr_backend_ops *ops) {
    ops->attention_forward = attention_forward;
    ops->attention_backward = attention_backward;
    ops->kv_round = kv_round;
    ops->kv_store = kv_store;
    ops->attention_cached = attention_cached;
    ops->cached_pass = cached_pass;
}
