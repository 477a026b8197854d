// A backend for tests whose memory the host cannot touch between ops, as it cannot touch a GPU's: the CPU
// body behind a table that opens one mapped region for the time of each op, closes it again, and fails when a
// pointer that should be backend memory is not, or one that should be the host's is. What runs on it runs on
// any backend.
#ifndef DR_TESTS_GUARDED_BACKEND_H
#define DR_TESTS_GUARDED_BACKEND_H

#include "tests/check.h"

#include <string.h>
#include <sys/mman.h>

#include "core/compute/backend.h"

enum { GUARD_PAGE = 4096 };
static const size_t GUARD_BYTES = (size_t)1 << 30; // address space; pages are taken as they are written

static dr_backend *guard_inner; // the CPU body
static char *guard_at;
static size_t guard_used;

static inline void guard_protect(int protection) {
    if (guard_used > 0) assert_int_equal(mprotect(guard_at, guard_used, protection), 0);
}

static inline bool guard_holds(const void *pointer) {
    const char *at = pointer;
    return at >= guard_at && at < guard_at + guard_used;
}

// What the ops of a cached pass named, so that a repeated pass can be seen to name the same.
enum { GUARD_PASSES = 256 };
typedef struct guard_pass {
    dr_cached_pass pass;
    uint64_t trace;
} guard_pass;
static guard_pass guard_passes[GUARD_PASSES];
static int guard_n_passes, guard_repeated;
static bool guard_is_tracing;
static uint64_t guard_trace;

// Within a burst nothing moves between host and backend memory, and its passes are those it began with.
static const dr_burst *guard_burst;
static int guard_burst_pass;
static bool guard_finishes_early; // of some rows the last draws are withheld, as a body may do
enum { GUARD_ROWS = 256 };
static int32_t guard_row_pages[GUARD_ROWS]; // that each row of the burst had before it

static inline void guard_note(uint64_t word) {
    guard_trace = (guard_trace ^ word) * 0x9E3779B97F4A7C15u;
    guard_trace ^= guard_trace >> 29;
}

static inline void guard_is(bool is_backend, const char *op, const char *name, const void *pointer) {
    if (pointer && guard_holds(pointer) != is_backend)
        fail_msg("%s: %s is %s memory", op, name, is_backend ? "host" : "backend");
    if (is_backend && guard_is_tracing) guard_note((uintptr_t)op), guard_note((uintptr_t)pointer);
}

// A pass can be repeated without its host code: nothing in it may move memory over or make any.
static inline void guard_not_in_pass(const char *op) {
    if (guard_is_tracing) fail_msg("%s within a cached pass", op);
}

static inline void guard_not_in_burst(const char *op) {
    if (guard_burst) fail_msg("%s within a burst", op);
}

static inline void guard_pass_of_burst(const dr_cached_pass *pass) {
    if (!guard_burst) return;
    assert_true(guard_burst_pass < guard_burst->n_steps - 1);
    const dr_cached_pass *want = &guard_burst->passes[guard_burst_pass++];
    assert_ptr_equal(pass->chunks, want->chunks);
    assert_int_equal(pass->n_chunks, want->n_chunks);
    assert_true(pass->n_chunks >= guard_burst->n_rows);
    assert_memory_equal(pass->places, want->places, sizeof want->places);
}

// Inside a wrapper: arguments of either kind. NULL passes.
#define OURS(pointer) guard_is(true, __func__, #pointer, (pointer))
#define HOSTS(pointer) guard_is(false, __func__, #pointer, (pointer))

// The inner op between opening and closing.
#define GUARDED(call)                                                                                        \
    do {                                                                                                     \
        guard_protect(PROT_READ | PROT_WRITE);                                                               \
        guard_inner->ops->call;                                                                              \
        guard_protect(PROT_NONE);                                                                            \
    } while (0)
#define GUARDED_STATUS(call)                                                                                 \
    do {                                                                                                     \
        guard_protect(PROT_READ | PROT_WRITE);                                                               \
        dr_status guarded_status_ = guard_inner->ops->call;                                                  \
        guard_protect(PROT_NONE);                                                                            \
        return guarded_status_;                                                                              \
    } while (0)

// Never used again once given back, so that a use after destroy is seen.
static dr_status g_memory_create(dr_backend *b, const char *label, size_t bytes, void **out_memory) {
    (void)b, (void)label;
    guard_not_in_pass(__func__), guard_not_in_burst(__func__);
    size_t whole = (bytes + GUARD_PAGE) / GUARD_PAGE * GUARD_PAGE;
    assert_true(guard_used + whole <= GUARD_BYTES);
    *out_memory = guard_at + guard_used;
    guard_used += whole;
    return DR_OK;
}

static void g_memory_destroy(dr_backend *b, void *memory) {
    (void)b;
    OURS(memory);
}

static void g_copy_in(dr_backend *b, void *to_backend, const void *from_host, size_t bytes) {
    (void)b;
    guard_not_in_pass(__func__), guard_not_in_burst(__func__);
    if (bytes > 0) OURS(to_backend), HOSTS(from_host);
    GUARDED(copy_in(guard_inner, to_backend, from_host, bytes));
}

static void g_copy_out(dr_backend *b, void *to_host, const void *from_backend, size_t bytes) {
    (void)b;
    guard_not_in_pass(__func__), guard_not_in_burst(__func__);
    if (bytes > 0) HOSTS(to_host), OURS(from_backend);
    GUARDED(copy_out(guard_inner, to_host, from_backend, bytes));
}

static void g_copy(dr_backend *b, void *to_backend, const void *from_backend, size_t bytes) {
    (void)b;
    OURS(to_backend), OURS(from_backend);
    GUARDED(copy(guard_inner, to_backend, from_backend, bytes));
}

static void g_zero(dr_backend *b, void *memory, size_t bytes) {
    (void)b;
    OURS(memory);
    GUARDED(zero(guard_inner, memory, bytes));
}

static void *g_host_view(dr_backend *b, void *memory) {
    (void)b;
    OURS(memory);
    return NULL;
}

static dr_status g_transfer_create(dr_backend *b, const char *label, size_t bytes,
                                   dr_transfer **out_transfer) {
    (void)b;
    guard_not_in_pass(__func__);
    return guard_inner->ops->transfer_create(guard_inner, label, bytes, out_transfer);
}

static void g_transfer_destroy(dr_backend *b, dr_transfer *transfer) {
    (void)b;
    guard_inner->ops->transfer_destroy(guard_inner, transfer);
}

static dr_status g_transfer_in(dr_backend *b, dr_transfer *transfer, size_t from, void *to_backend,
                               size_t bytes) {
    (void)b;
    guard_not_in_pass(__func__);
    assert_true(from + bytes <= transfer->bytes);
    OURS(to_backend), HOSTS(transfer->host);
    GUARDED_STATUS(transfer_in(guard_inner, transfer, from, to_backend, bytes));
}

static dr_status g_transfer_out(dr_backend *b, dr_transfer *transfer, size_t to, const void *from_backend,
                                size_t bytes) {
    (void)b;
    guard_not_in_pass(__func__);
    assert_true(to + bytes <= transfer->bytes);
    OURS(from_backend), HOSTS(transfer->host);
    GUARDED_STATUS(transfer_out(guard_inner, transfer, to, from_backend, bytes));
}

static dr_status g_transfer_done(dr_backend *b, dr_transfer *transfer, bool *out_done) {
    (void)b;
    return guard_inner->ops->transfer_done(guard_inner, transfer, out_done);
}

static dr_status g_memory_free(dr_backend *b, int64_t *out_free, int64_t *out_total) {
    (void)b;
    HOSTS(out_free), HOSTS(out_total);
    *out_free = (int64_t)(GUARD_BYTES - guard_used);
    *out_total = (int64_t)GUARD_BYTES;
    return DR_OK;
}

static int64_t g_pass_memory(dr_backend *b, const dr_pass_shape *shape, int64_t *out_host) {
    (void)b;
    HOSTS(out_host);
    return guard_inner->ops->pass_memory(guard_inner, shape, out_host);
}

static dr_status g_weight_create(dr_backend *b, int64_t n_out, int64_t n_in, dr_weight **out_weight) {
    (void)b;
    GUARDED_STATUS(weight_create(guard_inner, n_out, n_in, out_weight));
}

static void g_weight_destroy(dr_backend *b, dr_weight *w) {
    (void)b;
    GUARDED(weight_destroy(guard_inner, w));
}

static int64_t g_weight_memory(dr_backend *b, int64_t n_out, int64_t n_in) {
    (void)b;
    return guard_inner->ops->weight_memory(guard_inner, n_out, n_in);
}

static dr_status g_weight_pack(dr_backend *b, dr_weight *w, const float *values) {
    (void)b;
    OURS(values);
    GUARDED_STATUS(weight_pack(guard_inner, w, values));
}

static dr_status g_weight_round(dr_backend *b, const float *values, int64_t n, uint16_t *rounded) {
    (void)b;
    OURS(values), OURS(rounded);
    GUARDED_STATUS(weight_round(guard_inner, values, n, rounded));
}

static dr_status g_weight_take(dr_backend *b, dr_weight *w, int64_t first, int64_t n,
                               const uint16_t *rounded) {
    (void)b;
    OURS(rounded);
    GUARDED_STATUS(weight_take(guard_inner, w, first, n, rounded));
}

static dr_status g_weight_rows(dr_backend *b, const dr_weight *w, const int32_t *ids, int64_t T, float *out) {
    (void)b;
    OURS(ids), OURS(out);
    GUARDED_STATUS(weight_rows(guard_inner, w, ids, T, out));
}

static dr_status g_linear_forward(dr_backend *b, const dr_weight *w, const float *x, int64_t T,
                                  const float *bias, float *y) {
    (void)b;
    OURS(x), OURS(bias), OURS(y);
    GUARDED_STATUS(linear_forward(guard_inner, w, x, T, bias, y));
}

static dr_status g_linear_backward(dr_backend *b, const dr_weight *w, const float *x, const float *dy,
                                   int64_t T, float *dx, bool accumulate, float *dw, float *dbias) {
    (void)b;
    OURS(x), OURS(dy), OURS(dx), OURS(dw), OURS(dbias);
    GUARDED_STATUS(linear_backward(guard_inner, w, x, dy, T, dx, accumulate, dw, dbias));
}

static dr_status g_gate_up_forward(dr_backend *b, const dr_weight *w, const float *x, int64_t T,
                                   void *gate_up) {
    (void)b;
    OURS(x), OURS(gate_up);
    GUARDED_STATUS(gate_up_forward(guard_inner, w, x, T, gate_up));
}

static dr_status g_gate_up_backward(dr_backend *b, const dr_weight *w, const float *x, const void *dgate_up,
                                    int64_t T, float *dx, float *dw) {
    (void)b;
    OURS(x), OURS(dgate_up), OURS(dx), OURS(dw);
    GUARDED_STATUS(gate_up_backward(guard_inner, w, x, dgate_up, T, dx, dw));
}

static dr_status g_swiglu_linear_forward(dr_backend *b, const dr_weight *w, const void *gate_up, int64_t T,
                                         float *y) {
    (void)b;
    OURS(gate_up), OURS(y);
    GUARDED_STATUS(swiglu_linear_forward(guard_inner, w, gate_up, T, y));
}

static dr_status g_swiglu_linear_backward(dr_backend *b, const dr_weight *w, const void *gate_up,
                                          const float *dy, int64_t T, void *dgate_up, float *dw) {
    (void)b;
    OURS(gate_up), OURS(dy), OURS(dgate_up), OURS(dw);
    GUARDED_STATUS(swiglu_linear_backward(guard_inner, w, gate_up, dy, T, dgate_up, dw));
}

static dr_status g_gemm(dr_backend *b, bool trans_a, bool trans_b, int64_t m, int64_t n, int64_t k,
                        float alpha, const float *a, const float *b_matrix, float beta, float *c) {
    (void)b;
    OURS(a), OURS(b_matrix), OURS(c);
    GUARDED_STATUS(gemm(guard_inner, trans_a, trans_b, m, n, k, alpha, a, b_matrix, beta, c));
}

static void g_rmsnorm_forward(dr_backend *b, const float *x, const float *w, int64_t T, int64_t D, float eps,
                              float *y, float *inv_rms) {
    (void)b;
    OURS(x), OURS(w), OURS(y), OURS(inv_rms);
    GUARDED(rmsnorm_forward(guard_inner, x, w, T, D, eps, y, inv_rms));
}

static void g_rmsnorm_residual_forward(dr_backend *b, const float *residual, const float *w, int64_t T,
                                       int64_t D, float eps, float *x, float *y, float *inv_rms) {
    (void)b;
    OURS(residual), OURS(w), OURS(x), OURS(y), OURS(inv_rms);
    GUARDED(rmsnorm_residual_forward(guard_inner, residual, w, T, D, eps, x, y, inv_rms));
}

static void g_rmsnorm_backward(dr_backend *b, const float *dy, const float *x, const float *w,
                               const float *inv_rms, int64_t T, int64_t D, float *dx, float *dw) {
    (void)b;
    OURS(dy), OURS(x), OURS(w), OURS(inv_rms), OURS(dx), OURS(dw);
    GUARDED(rmsnorm_backward(guard_inner, dy, x, w, inv_rms, T, D, dx, dw));
}

static void g_head_norm_forward(dr_backend *b, float *x, const float *w, int64_t T, int64_t n_heads,
                                int64_t d, int64_t stride, float eps, float *kept, float *inv_rms) {
    (void)b;
    OURS(x), OURS(w), OURS(kept), OURS(inv_rms);
    GUARDED(head_norm_forward(guard_inner, x, w, T, n_heads, d, stride, eps, kept, inv_rms));
}

static void g_head_norm_backward(dr_backend *b, float *dx, const float *kept, const float *w,
                                 const float *inv_rms, int64_t T, int64_t n_heads, int64_t d, int64_t stride,
                                 float *dw) {
    (void)b;
    OURS(dx), OURS(kept), OURS(w), OURS(inv_rms), OURS(dw);
    GUARDED(head_norm_backward(guard_inner, dx, kept, w, inv_rms, T, n_heads, d, stride, dw));
}

static void g_layernorm_forward(dr_backend *b, const float *x, const float *w, const float *bias, int64_t T,
                                int64_t D, float eps, float *y, float *mean, float *inv_std) {
    (void)b;
    OURS(x), OURS(w), OURS(bias), OURS(y), OURS(mean), OURS(inv_std);
    GUARDED(layernorm_forward(guard_inner, x, w, bias, T, D, eps, y, mean, inv_std));
}

static void g_layernorm_backward(dr_backend *b, const float *dy, const float *x, const float *w,
                                 const float *mean, const float *inv_std, int64_t T, int64_t D, float *dx,
                                 float *dw, float *dbias) {
    (void)b;
    OURS(dy), OURS(x), OURS(w), OURS(mean), OURS(inv_std), OURS(dx), OURS(dw), OURS(dbias);
    GUARDED(layernorm_backward(guard_inner, dy, x, w, mean, inv_std, T, D, dx, dw, dbias));
}

static void g_rope(dr_backend *b, float *x, const int32_t *positions, const float *inv_freq, int64_t T,
                   int64_t n_heads, int64_t d, int64_t stride, int direction) {
    (void)b;
    OURS(x), OURS(positions), OURS(inv_freq);
    GUARDED(rope(guard_inner, x, positions, inv_freq, T, n_heads, d, stride, direction));
}

static void g_gelu_forward(dr_backend *b, const float *x, int64_t n, float *y) {
    (void)b;
    OURS(x), OURS(y);
    GUARDED(gelu_forward(guard_inner, x, n, y));
}

static void g_gelu_backward(dr_backend *b, const float *dy, const float *x, int64_t n, float *dx) {
    (void)b;
    OURS(dy), OURS(x), OURS(dx);
    GUARDED(gelu_backward(guard_inner, dy, x, n, dx));
}

static void g_add(dr_backend *b, const float *x, int64_t n, float *y) {
    (void)b;
    OURS(x), OURS(y);
    GUARDED(add(guard_inner, x, n, y));
}

static void g_embedding_forward(dr_backend *b, const float *table, const int32_t *ids, int64_t T, int64_t D,
                                float *out) {
    (void)b;
    OURS(table), OURS(ids), OURS(out);
    GUARDED(embedding_forward(guard_inner, table, ids, T, D, out));
}

static void g_embedding_backward(dr_backend *b, const float *dout, const int32_t *ids, int64_t T, int64_t D,
                                 float *dtable) {
    (void)b;
    OURS(dout), OURS(ids), OURS(dtable);
    GUARDED(embedding_backward(guard_inner, dout, ids, T, D, dtable));
}

static dr_status g_attention_forward(dr_backend *b, const float *q, const float *k, const float *v,
                                     int64_t q_stride, int64_t kv_stride, const dr_sequences *sequences,
                                     int32_t H, int32_t G, int32_t d, float *out, float *lse) {
    (void)b;
    OURS(q), OURS(k), OURS(v), OURS(out), OURS(lse);
    HOSTS(sequences), HOSTS(sequences->cu_seqlens), HOSTS(sequences->prefix);
    GUARDED_STATUS(
        attention_forward(guard_inner, q, k, v, q_stride, kv_stride, sequences, H, G, d, out, lse));
}

static dr_status g_attention_bidirectional(dr_backend *b, const float *q, const float *k, const float *v,
                                           int64_t q_stride, int64_t kv_stride, const dr_sequences *sequences,
                                           int32_t H, int32_t G, int32_t d, float *out) {
    (void)b;
    OURS(q), OURS(k), OURS(v), HOSTS(sequences->cu_seqlens), OURS(out);
    GUARDED_STATUS(
        attention_bidirectional(guard_inner, q, k, v, q_stride, kv_stride, sequences, H, G, d, out));
}

static dr_status g_attention_backward(dr_backend *b, const float *dout, const float *q, const float *k,
                                      const float *v, const float *out, const float *lse, int64_t q_stride,
                                      int64_t kv_stride, const dr_sequences *sequences, int32_t H, int32_t G,
                                      int32_t d, float *dq, float *dk, float *dv) {
    (void)b;
    OURS(dout), OURS(q), OURS(k), OURS(v), OURS(out), OURS(lse), OURS(dq), OURS(dk), OURS(dv);
    HOSTS(sequences), HOSTS(sequences->cu_seqlens), HOSTS(sequences->prefix);
    GUARDED_STATUS(attention_backward(guard_inner, dout, q, k, v, out, lse, q_stride, kv_stride, sequences, H,
                                      G, d, dq, dk, dv));
}

static void g_kv_round(dr_backend *b, float *k, float *v, int64_t kv_stride, int64_t T, int32_t G,
                       int32_t d) {
    (void)b;
    OURS(k), OURS(v);
    GUARDED(kv_round(guard_inner, k, v, kv_stride, T, G, d));
}

static void g_kv_store(dr_backend *b, const float *k, const float *v, int64_t kv_stride,
                       const dr_attention_chunk *chunks, int32_t n_chunks, int32_t page_size, int32_t G,
                       int32_t d, void *k_cache, void *v_cache) {
    (void)b;
    OURS(k), OURS(v), OURS(k_cache), OURS(v_cache);
    HOSTS(chunks);
    GUARDED(kv_store(guard_inner, k, v, kv_stride, chunks, n_chunks, page_size, G, d, k_cache, v_cache));
}

static dr_status g_attention_cached(dr_backend *b, const float *q, int64_t q_stride, const void *k_cache,
                                    const void *v_cache, const dr_attention_chunk *chunks, int32_t n_chunks,
                                    int32_t page_size, int32_t H, int32_t G, int32_t d, float *out) {
    (void)b;
    OURS(q), OURS(k_cache), OURS(v_cache), OURS(out);
    HOSTS(chunks);
    for (int32_t c = 0; c < n_chunks; c++) HOSTS(chunks[c].pages);
    GUARDED_STATUS(attention_cached(guard_inner, q, q_stride, k_cache, v_cache, chunks, n_chunks, page_size,
                                    H, G, d, out));
}

static dr_status g_cached_pass(dr_backend *b, const dr_cached_pass *pass, dr_pass_ops *ops, void *context) {
    HOSTS(pass), HOSTS(pass->chunks);
    for (int32_t c = 0; c < pass->n_chunks; c++) assert_int_equal(pass->chunks[c].n_new, 1);
    assert_false(guard_is_tracing);
    guard_pass_of_burst(pass);
    guard_is_tracing = true;
    guard_trace = 0;
    dr_status status = ops(context, b, 0, pass->n_chunks);
    guard_is_tracing = false;
    for (int i = 0; i < guard_n_passes; i++) {
        const dr_cached_pass *before = &guard_passes[i].pass;
        if (before->n_chunks != pass->n_chunks || before->group != pass->group ||
            memcmp(before->places, pass->places, sizeof pass->places) != 0)
            continue;
        guard_repeated++;
        if (guard_passes[i].trace != guard_trace) fail_msg("a repeated pass names other memory");
        return status;
    }
    assert_true(guard_n_passes < GUARD_PASSES);
    guard_passes[guard_n_passes++] = (guard_pass){*pass, guard_trace};
    return status;
}

// Idle rows behind all but few numbers of rows, as a device that repeats passes has them.
static int32_t g_pass_rows(dr_backend *b, int32_t n_rows) {
    (void)b;
    return n_rows < 2 ? n_rows : (n_rows + 3) / 4 * 4;
}

static dr_status g_sample(dr_backend *b, const float *logits, int64_t T, int64_t V,
                          const dr_sampling *settings, const uint32_t *bits, dr_sampled *out) {
    (void)b;
    OURS(logits);
    HOSTS(settings), HOSTS(bits), HOSTS(out);
    GUARDED_STATUS(sample(guard_inner, logits, T, V, settings, bits, out));
}

static inline void guard_pool(const dr_burst_pages *pages, int64_t n_rows) {
    assert_true(n_rows <= GUARD_ROWS);
    HOSTS(pages->pool), HOSTS(pages->lists), HOSTS(pages->counts), HOSTS(pages->chunks);
    memcpy(guard_row_pages, pages->counts, (size_t)n_rows * sizeof *pages->counts);
}

// What rows took are the pool's first pages, each once.
static inline void guard_taken(const dr_burst_pages *pages, int64_t n_rows) {
    int32_t n_taken = 0;
    for (int64_t r = 0; r < n_rows; r++) n_taken += pages->counts[r] - guard_row_pages[r];
    assert_in_range(n_taken, 0, pages->n_pool);
    for (int32_t i = 0; i < n_taken; i++) {
        int n = 0;
        for (int64_t r = 0; r < n_rows; r++)
            for (int32_t k = guard_row_pages[r]; k < pages->counts[r]; k++)
                n += pages->lists[r][k] == pages->pool[i];
        assert_int_equal(n, 1);
    }
}

static dr_status g_burst_begin(dr_backend *b, const dr_burst *burst) {
    (void)b;
    HOSTS(burst->settings), HOSTS(burst->keys), HOSTS(burst->limits), HOSTS(burst->ids);
    HOSTS(burst->positions), HOSTS(burst->states), HOSTS(burst->passes), HOSTS(burst->stops);
    if (burst->stops) OURS(burst->stops->next), OURS(burst->stops->first_byte), OURS(burst->stops->bytes);
    if (burst->pages) guard_pool(burst->pages, burst->n_rows);
    guard_burst = burst;
    guard_burst_pass = 0;
    GUARDED_STATUS(burst_begin(guard_inner, burst));
}

static dr_status g_burst_draw(dr_backend *b, const float *logits, int32_t *ids, int32_t *positions) {
    (void)b;
    guard_not_in_pass(__func__);
    OURS(logits), OURS(ids), OURS(positions);
    guard_protect(PROT_READ | PROT_WRITE);
    dr_status status = guard_inner->ops->burst_draw(guard_inner, logits, ids, positions);
    guard_protect(PROT_NONE);
    if (status != DR_OK) guard_burst = NULL;
    return status;
}

static dr_status g_burst_end(dr_backend *b, dr_sampled *out, int32_t *counts, dr_burst_room *out_room) {
    (void)b;
    HOSTS(out), HOSTS(counts), HOSTS(out_room);
    assert_int_equal(guard_burst_pass, guard_burst->n_steps - 1);
    const int64_t n_rows = guard_burst->n_rows;
    const dr_burst_pages *pages = guard_burst->pages;
    guard_burst = NULL;
    guard_protect(PROT_READ | PROT_WRITE);
    dr_status status = guard_inner->ops->burst_end(guard_inner, out, counts, out_room);
    guard_protect(PROT_NONE);
    if (pages && status == DR_OK) guard_taken(pages, n_rows);
    for (int64_t r = 0; guard_finishes_early && r < n_rows; r++)
        if (counts[r] > 1 && r % 2 == counts[r] % 2) counts[r] = 1 + counts[r] / 2;
    return status;
}

static void g_softmax_stats(dr_backend *b, const float *logits, int64_t T, int64_t V, float temperature,
                            float *lse, float *entropy) {
    (void)b;
    OURS(logits), OURS(lse), OURS(entropy);
    GUARDED(softmax_stats(guard_inner, logits, T, V, temperature, lse, entropy));
}

static void g_kept_lse(dr_backend *b, const float *logits, int64_t T, int64_t V, float temperature,
                       const dr_kept *kept, float *lse) {
    (void)b;
    OURS(logits), OURS(lse);
    HOSTS(kept);
    GUARDED(kept_lse(guard_inner, logits, T, V, temperature, kept, lse));
}

static dr_status g_head_forward(dr_backend *b, const dr_weight *w, const float *h, const int32_t *targets,
                                const dr_kept *kept, int64_t T, float temperature, float *logprob,
                                float *entropy, float *lse) {
    (void)b;
    OURS(h), OURS(targets), OURS(logprob), OURS(entropy), OURS(lse);
    HOSTS(kept);
    GUARDED_STATUS(head_forward(guard_inner, w, h, targets, kept, T, temperature, logprob, entropy, lse));
}

static int64_t g_head_memory(dr_backend *b, int64_t T, int64_t V, int64_t D) {
    (void)b;
    return guard_inner->ops->head_memory(guard_inner, T, V, D);
}

static dr_status g_head_backward(dr_backend *b, const dr_weight *w, const float *h, const int32_t *targets,
                                 const dr_kept *kept, int64_t T, float temperature, const float *lse,
                                 const float *dlogprob, float *dh, float *dw) {
    (void)b;
    OURS(h), OURS(targets), OURS(lse), OURS(dlogprob), OURS(dh), OURS(dw);
    HOSTS(kept);
    GUARDED_STATUS(head_backward(guard_inner, w, h, targets, kept, T, temperature, lse, dlogprob, dh, dw));
}

#include "tests/guarded_retrieval.h" // with what stands above

static void g_adamw(dr_backend *b, float *weights, const float *gradient, float *m, float *v, int64_t n,
                    float gradient_scale, const dr_adamw_settings *settings) {
    (void)b;
    OURS(weights), OURS(gradient), OURS(m), OURS(v);
    HOSTS(settings);
    GUARDED(adamw(guard_inner, weights, gradient, m, v, n, gradient_scale, settings));
}

static void g_sums_of_squares(dr_backend *b, const float *x, int64_t n, double *out) {
    (void)b;
    OURS(x);
    HOSTS(out);
    GUARDED(sums_of_squares(guard_inner, x, n, out));
}

// inner: an fp32 CPU backend, borrowed.
static inline dr_backend guarded_backend(dr_backend *inner) {
    static const dr_backend_ops ops = {.name = "guarded",
                                       .memory_create = g_memory_create,
                                       .memory_destroy = g_memory_destroy,
                                       .copy_in = g_copy_in,
                                       .copy_out = g_copy_out,
                                       .copy = g_copy,
                                       .zero = g_zero,
                                       .host_view = g_host_view,
                                       .transfer_create = g_transfer_create,
                                       .transfer_destroy = g_transfer_destroy,
                                       .transfer_in = g_transfer_in,
                                       .transfer_out = g_transfer_out,
                                       .transfer_done = g_transfer_done,
                                       .memory_free = g_memory_free,
                                       .pass_memory = g_pass_memory,
                                       .weight_create = g_weight_create,
                                       .weight_destroy = g_weight_destroy,
                                       .weight_memory = g_weight_memory,
                                       .weight_pack = g_weight_pack,
                                       .weight_round = g_weight_round,
                                       .weight_take = g_weight_take,
                                       .weight_rows = g_weight_rows,
                                       .linear_forward = g_linear_forward,
                                       .linear_backward = g_linear_backward,
                                       .gate_up_forward = g_gate_up_forward,
                                       .gate_up_backward = g_gate_up_backward,
                                       .swiglu_linear_forward = g_swiglu_linear_forward,
                                       .swiglu_linear_backward = g_swiglu_linear_backward,
                                       .gemm = g_gemm,
                                       .rmsnorm_forward = g_rmsnorm_forward,
                                       .rmsnorm_residual_forward = g_rmsnorm_residual_forward,
                                       .rmsnorm_backward = g_rmsnorm_backward,
                                       .head_norm_forward = g_head_norm_forward,
                                       .head_norm_backward = g_head_norm_backward,
                                       .layernorm_forward = g_layernorm_forward,
                                       .layernorm_backward = g_layernorm_backward,
                                       .rope = g_rope,
                                       .gelu_forward = g_gelu_forward,
                                       .gelu_backward = g_gelu_backward,
                                       .add = g_add,
                                       .embedding_forward = g_embedding_forward,
                                       .embedding_backward = g_embedding_backward,
                                       .attention_forward = g_attention_forward,
                                       .attention_backward = g_attention_backward,
                                       .attention_bidirectional = g_attention_bidirectional,
                                       .kv_round = g_kv_round,
                                       .kv_store = g_kv_store,
                                       .attention_cached = g_attention_cached,
                                       .cached_pass = g_cached_pass,
                                       .pass_rows = g_pass_rows,
                                       .sample = g_sample,
                                       .burst_begin = g_burst_begin,
                                       .burst_draw = g_burst_draw,
                                       .burst_end = g_burst_end,
                                       .softmax_stats = g_softmax_stats,
                                       .kept_lse = g_kept_lse,
                                       .head_forward = g_head_forward,
                                       .head_memory = g_head_memory,
                                       .head_backward = g_head_backward,
                                       .fusion_forward = g_fusion_forward,
                                       .padded_attention = g_padded_attention,
                                       .mixture_forward = g_mixture_forward,
                                       .pool_rows = g_pool_rows,
                                       .unit_rows = g_unit_rows,
                                       .fill_places = g_fill_places,
                                       .top_k = g_top_k,
                                       .dropout = g_dropout,
                                       .fusion_backward = g_fusion_backward,
                                       .padded_attention_backward = g_padded_attention_backward,
                                       .mixture_backward = g_mixture_backward,
                                       .noisy_gate_forward = g_noisy_gate_forward,
                                       .noisy_gate_backward = g_noisy_gate_backward,
                                       .normalize_rows_forward = g_normalize_rows_forward,
                                       .normalize_rows_backward = g_normalize_rows_backward,
                                       .cross_entropy = g_cross_entropy,
                                       .adamw = g_adamw,
                                       .sums_of_squares = g_sums_of_squares};
    guard_inner = inner;
    guard_used = 0;
    guard_at = mmap(NULL, GUARD_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    assert_true(guard_at != MAP_FAILED);
    return (dr_backend){.ops = &ops, .precision = inner->precision, .n_threads = inner->n_threads};
}

static inline void guarded_backend_close(void) {
    munmap(guard_at, GUARD_BYTES);
    guard_at = NULL;
    guard_used = 0;
}

#endif
