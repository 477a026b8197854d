// The CPU body of backend.h: creation, memory, scratch. The ops live in files by family.
#include <omp.h>
#include <unistd.h>

#include "core/base/alloc.h"
#include "core/base/host_memory.h"
#include "core/compute/cpu_internal.h"

// The threads zero it together: what takes time is the system's giving of pages, and each may ask for its
// own.
static dr_status memory_create(dr_backend *b, const char *label, size_t bytes, void **out_memory) {
    enum { PIECE = 1 << 20 };
    DR_CHECK(bytes <= INT64_MAX, DR_ERR_RANGE, "%s: %zu bytes do not fit in memory", label, bytes);
    char *memory = NULL;
    DR_TRY(dr_alloc_unset(&memory, label, (int64_t)bytes, 1));
#pragma omp parallel for num_threads(b->n_threads) schedule(static) if (b->n_threads > 1 && bytes > 4 * PIECE)
    for (size_t at = 0; at < bytes; at += PIECE)
        memset(memory + at, 0, bytes - at < PIECE ? bytes - at : PIECE);
    *out_memory = memory;
    return DR_OK;
}

static void memory_destroy(dr_backend *b, void *memory) {
    (void)b;
    dr_free(memory);
}

static void copy(dr_backend *b, void *to, const void *from, size_t bytes) {
    (void)b;
    if (bytes) memcpy(to, from, bytes);
}

static void zero(dr_backend *b, void *memory, size_t bytes) {
    (void)b;
    if (bytes) memset(memory, 0, bytes);
}

static void *host_view(dr_backend *b, void *memory) {
    (void)b;
    return memory;
}

static dr_status transfer_create(dr_backend *b, const char *label, size_t bytes, dr_transfer **out_transfer) {
    dr_transfer *transfer = NULL;
    (void)b;
    DR_CHECK(bytes <= INT64_MAX, DR_ERR_RANGE, "%s: %zu bytes do not fit in memory", label, bytes);
    DR_TRY(dr_alloc(&transfer, label, 1, sizeof *transfer));
    dr_status status = dr_alloc(&transfer->host, label, (int64_t)bytes, 1);
    transfer->bytes = bytes;
    if (status == DR_OK)
        *out_transfer = transfer;
    else
        dr_free(transfer);
    return status;
}

static void transfer_destroy(dr_backend *b, dr_transfer *transfer) {
    (void)b;
    if (transfer) dr_free(transfer->host);
    dr_free(transfer);
}

static dr_status transfer_in(dr_backend *b, dr_transfer *transfer, size_t from, void *to_backend,
                             size_t bytes) {
    copy(b, to_backend, transfer->host + from, bytes);
    return DR_OK;
}

static dr_status transfer_out(dr_backend *b, dr_transfer *transfer, size_t to, const void *from_backend,
                              size_t bytes) {
    copy(b, transfer->host + to, from_backend, bytes);
    return DR_OK;
}

static dr_status transfer_done(dr_backend *b, dr_transfer *transfer, bool *out_done) {
    (void)b, (void)transfer;
    *out_done = true;
    return DR_OK;
}

static dr_status memory_free(dr_backend *b, int64_t *out_free, int64_t *out_total) {
    (void)b;
    return dr_host_memory(out_free, out_total);
}

static int64_t larger(int64_t a, int64_t b) {
    return a > b ? a : b;
}

static int64_t depth_of(int64_t deepest) {
    return deepest < DR_DEPTH ? deepest : DR_DEPTH;
}

// What is rounded to bf16.
static int64_t rounded_memory(const dr_backend *b, const dr_pass_shape *s) {
    const dr_cpu_state *state = b->state;
    if (!dr_rounds_to_bf16(b->precision)) return 0;
    return state->bf16 ? dr_bf16_memory(s) : dr_bf16_lanes_rounded(b, s);
}

// Of a retrieval model or a sentence encoder.
static int64_t plain_floats(const dr_backend *b, const dr_pass_shape *s) {
    int64_t shared = 0, thread = larger(dr_cpu_weight_floats(s), DR_PANEL * s->n_in);
    if (s->H > 0) thread = larger(thread, dr_cpu_both_ways_floats(s));
    if (s->n_requests > 0)
        shared =
            larger(dr_panels_floats(depth_of(larger(s->n_out, s->T)), s->n_in),
                   larger(dr_panels_floats(depth_of(s->n_columns), s->n_scores), dr_cpu_fusion_floats(s)));
    return shared + thread * b->n_threads;
}

// Of each scratch the largest that any op asks for, a quarter more as it grows (dr_scratch_reserve).
static int64_t pass_memory(dr_backend *b, const dr_pass_shape *s, int64_t *out_host) {
    *out_host = 0;
    if (s->is_plain) {
        int64_t plain = plain_floats(b, s) * (int64_t)sizeof(float) + rounded_memory(b, s);
        return plain + plain / 4;
    }
    int64_t depth = depth_of(larger(s->n_out, s->T));
    int64_t shared = larger(dr_panels_floats(depth, s->n_in), dr_cpu_prefix_floats(s));
    int64_t attention = larger(dr_cpu_attention_floats(s), dr_cpu_cached_floats(s));
    int64_t thread = larger(larger(attention, dr_cpu_weight_floats(s)),
                            larger(dr_cpu_draw_floats(s), DR_PANEL * s->n_in)); // a panel: bf16 in lanes
    int64_t bytes = (shared + thread * b->n_threads + dr_cpu_turns_floats(s)) * (int64_t)sizeof(float);
    bytes += dr_cpu_operand_memory(b, s) + dr_cpu_singles_memory(b, s);
    return bytes + bytes / 4;
}

// silu(gate) · up of a chunk, and what is rounded.
int64_t dr_cpu_operand_memory(const dr_backend *b, const dr_pass_shape *s) {
    return dr_rows_chunk(b, s->T) * s->n_in * (int64_t)sizeof(float) + rounded_memory(b, s);
}

dr_status dr_scratch_reserve(dr_scratch *scratch, int64_t count) {
    if (count <= scratch->count) return DR_OK;
    float *bigger = NULL;
    DR_TRY(dr_alloc(&bigger, "compute scratch", count + count / 4, sizeof(float)));
    dr_free(scratch->data);
    scratch->data = bigger;
    scratch->count = count + count / 4;
    return DR_OK;
}

static bool narrow_only;
static dr_bf16_body bf16_body;

void dr_cpu_narrow_only(bool narrow) {
    narrow_only = narrow;
}

void dr_cpu_bf16_body(dr_bf16_body body) {
    bf16_body = body;
}

bool dr_cpu_is_wide(void) {
#if defined(__x86_64__)
    return !narrow_only && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl"); // x86-64-v4, by a name that every compiler takes
#else
    return false;
#endif
}

bool dr_cpu_has_amx(void) {
#if defined(__x86_64__)
    unsigned int eax = 7, ebx, ecx = 0, edx;
    __asm__ volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
    return (edx >> 22 & 1) && (edx >> 24 & 1); // AMX-BF16, AMX-TILE
#else
    return false;
#endif
}

bool dr_cpu_has_bf16(void) {
#if defined(__x86_64__)
    unsigned int eax = 7, ebx, ecx = 1, edx;
    __asm__ volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
    return (eax >> 5 & 1) || dr_cpu_has_amx(); // AVX512-BF16
#else
    return false;
#endif
}

enum { LIKELY_CACHE = 8 << 20 };

// AVX512-BF16 alone gives the library no more than fp32's speed, and less on few rows, which it takes in
// sixteens.
static bool takes_library(void) {
    return bf16_body == DR_BF16_LIBRARY ? dr_cpu_has_bf16() : bf16_body == DR_BF16_CHOSEN && dr_cpu_has_amx();
}

dr_status dr_backend_cpu_create(dr_precision precision, int n_threads, dr_backend **out_backend) {
    static dr_backend_ops ops;
    DR_CHECK(n_threads >= 0 && n_threads <= DR_MAX_THREADS, DR_ERR_ARGUMENT,
             "threads: expected 0 to %d, found %d", DR_MAX_THREADS, n_threads);
    if (precision == DR_BF16_LOOSE) precision = DR_BF16; // its one way to multiply them
    ops.name = "cpu";
    ops.destroy = dr_backend_cpu_destroy;
    ops.memory_create = memory_create;
    ops.memory_destroy = memory_destroy;
    ops.copy_in = copy;
    ops.copy_out = copy;
    ops.copy = copy;
    ops.zero = zero;
    ops.host_view = host_view;
    ops.transfer_create = transfer_create;
    ops.transfer_destroy = transfer_destroy;
    ops.transfer_in = transfer_in;
    ops.transfer_out = transfer_out;
    ops.transfer_done = transfer_done;
    ops.memory_free = memory_free;
    ops.pass_memory = pass_memory;
    dr_cpu_fill_linear(&ops);
    dr_cpu_fill_norm(&ops);
    dr_cpu_fill_elementwise(&ops);
    dr_cpu_fill_attention(&ops);
    dr_cpu_fill_head(&ops);
    dr_cpu_fill_softmax(&ops);
    dr_cpu_fill_passes(&ops);
    dr_cpu_fill_burst(&ops);
    dr_cpu_fill_retrieval(&ops);
    dr_cpu_fill_retrieval_backward(&ops);

    dr_backend *backend = NULL;
    dr_cpu_state *state = NULL;
    DR_TRY(dr_alloc(&backend, "cpu backend", 1, sizeof *backend));
    dr_status status;
    DR_TRY_GOTO(status, dr_alloc(&state, "cpu backend state", 1, sizeof *state), free_backend);
    int threads = n_threads ? n_threads : omp_get_max_threads();
    if (threads > DR_MAX_THREADS) threads = DR_MAX_THREADS;
    if (precision == DR_BF16 && takes_library())
        DR_TRY_GOTO(status, dr_bf16_create(threads, &state->bf16), free_state);
    state->cache = dr_host_cache();
    if (state->cache == 0) state->cache = LIKELY_CACHE;
    *backend = (dr_backend){.ops = &ops, .precision = precision, .n_threads = threads, .state = state};
    *out_backend = backend;
    return DR_OK;

free_state:
    dr_free(state);
free_backend:
    dr_free(backend);
    return status;
}

void dr_backend_cpu_destroy(dr_backend *backend) {
    if (!backend) return;
    dr_cpu_state *state = backend->state;
    dr_cpu_singles_destroy(backend);
    dr_bf16_destroy(state->bf16);
    dr_free(state->shared.data);
    dr_free(state->head.data);
    for (int i = 0; i < 2; i++) dr_free(state->operands[i].data);
    dr_free(state->gated.data);
    dr_free(state->turns.values.data);
    dr_free(state->turns.frequencies.data);
    for (int i = 0; i < DR_MAX_THREADS; i++) dr_free(state->thread[i].data);
    for (int64_t t = 0; t < state->n_kept; t++) dr_free(state->kept[t].data);
    dr_free(state->kept);
    dr_free(state->burst_rows);
    dr_free(state->burst_drawn);
    dr_free(state->burst_bits);
    dr_free(state);
    dr_free(backend);
}
