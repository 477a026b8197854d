// The retrieval model's ops as calls of their kernels, and transfers: pinned host memory with an event behind
// its last copy.
#include <cuda_runtime_api.h>

#include "core/base/alloc.h"
#include "core/base/log.h"
#include "cuda/cuda_internal.h"
#include "cuda/held_memory.h"

// ---- transfers ----

// That copies which nobody waits for any more have to end. Then they are given up: whoever waited for them
// with a deadline has found that they do not end.
static const double END_S = 10.0;

// What the device may still write to is left to the end of the process.
static void transfer_free(dr_cuda_state *state, dr_transfer *transfer) {
    if (dr_cuda_is_given_up()) return;
    cudaSetDevice(state->device);
    if (transfer->state && !dr_cuda_wait_for(transfer->state, END_S)) {
        dr_warn("cuda: a transfer of %zu bytes has not ended within %.0f s; device %d is given up",
                transfer->bytes, END_S, state->device);
        dr_cuda_give_up();
        return;
    }
    if (transfer->state) cudaEventDestroy(transfer->state);
    cudaGetLastError(); // clears what this reported: it was reported before, or nobody needs it
    dr_cuda_free_host(state->device, transfer->host);
    dr_free(transfer);
}

static dr_status transfer_fill(dr_transfer *transfer, const char *label, size_t bytes) {
    cudaEvent_t event = NULL;
    void *host = NULL;
    DR_CUDA_TRY(DR_ERR_INTERNAL, cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "%s: event",
                label);
    transfer->state = event;
    DR_CUDA_TRY(DR_ERR_MEMORY, cudaMallocHost(&host, bytes ? bytes : 1), "%s: %zu bytes, pinned", label,
                bytes);
    transfer->host = host;
    transfer->bytes = bytes;
    return DR_OK;
}

static dr_status transfer_create(dr_backend *b, const char *label, size_t bytes, dr_transfer **out_transfer) {
    dr_cuda_state *state;
    dr_transfer *transfer = NULL;
    DR_TRY(dr_cuda_enter(b, &state));
    DR_TRY(dr_alloc(&transfer, label, 1, sizeof *transfer));
    dr_status status = transfer_fill(transfer, label, bytes);
    if (status == DR_OK)
        *out_transfer = transfer;
    else
        transfer_free(state, transfer);
    return status;
}

static void transfer_destroy(dr_backend *b, dr_transfer *transfer) {
    if (transfer) transfer_free(b->state, transfer);
}

static dr_status copy_and_mark(dr_backend *b, dr_transfer *transfer, void *to, const void *from, size_t bytes,
                               enum cudaMemcpyKind kind) {
    dr_cuda_state *state;
    DR_TRY(dr_cuda_enter(b, &state));
    if (bytes == 0) return DR_OK;
    DR_CUDA_TRY(DR_ERR_INTERNAL, cudaMemcpyAsync(to, from, bytes, kind, state->stream),
                "transfer of %zu bytes", bytes);
    DR_CUDA_TRY(DR_ERR_INTERNAL, cudaEventRecord(transfer->state, state->stream), "transfer of %zu bytes",
                bytes);
    return DR_OK;
}

static dr_status transfer_in(dr_backend *b, dr_transfer *transfer, size_t from, void *to_backend,
                             size_t bytes) {
    return copy_and_mark(b, transfer, to_backend, transfer->host + from, bytes, cudaMemcpyHostToDevice);
}

static dr_status transfer_out(dr_backend *b, dr_transfer *transfer, size_t to, const void *from_backend,
                              size_t bytes) {
    return copy_and_mark(b, transfer, transfer->host + to, from_backend, bytes, cudaMemcpyDeviceToHost);
}

static dr_status transfer_done(dr_backend *b, dr_transfer *transfer, bool *out_done) {
    dr_cuda_state *state;
    DR_TRY(dr_cuda_enter(b, &state));
    cudaError_t answer = cudaEventQuery(transfer->state);
    *out_done = answer == cudaSuccess;
    if (answer == cudaErrorNotReady) answer = cudaSuccess;
    cudaGetLastError(); // "not ready" is noted as an error, too
    DR_CUDA_TRY(DR_ERR_INTERNAL, answer, "transfer of %zu bytes", transfer->bytes);
    return DR_OK;
}

// ---- kernels ----

static void fusion_forward(dr_backend *b, const dr_fusion *fusion) {
    dr_cuda_state *state;
    if (dr_cuda_enter(b, &state) != DR_OK) return;
    dr_cuda_keep(state, dr_cuda_fusion(fusion, state->stream));
}

static void padded_attention(dr_backend *b, const dr_padded_attention *attention) {
    dr_cuda_state *state;
    if (dr_cuda_enter(b, &state) != DR_OK) return;
    dr_cuda_keep(state, dr_cuda_padded_attention(attention, state->stream));
}

static void mixture_forward(dr_backend *b, float *gate, const float *z, int64_t T, int64_t E, int64_t D,
                            float *y) {
    dr_cuda_state *state;
    if (dr_cuda_enter(b, &state) != DR_OK) return;
    dr_cuda_keep(state, dr_cuda_mixture(gate, z, T, E, D, y, state->stream));
}

static void unit_rows(dr_backend *b, const float *x, int64_t T, int64_t D, float *out) {
    dr_cuda_state *state;
    if (dr_cuda_enter(b, &state) != DR_OK) return;
    dr_cuda_keep(state, dr_cuda_unit_rows(x, T, D, out, state->stream));
}

static void fill_places(dr_backend *b, float *x, const int64_t *places, int64_t n, float value) {
    dr_cuda_state *state;
    if (dr_cuda_enter(b, &state) != DR_OK) return;
    dr_cuda_keep(state, dr_cuda_fill_places(x, places, n, value, state->stream));
}

static dr_status top_k(dr_backend *b, const float *scores, int64_t T, int64_t V, int32_t k, dr_hit *out) {
    dr_cuda_state *state;
    DR_CHECK(k >= 1 && k <= DR_TOP_MOST && V <= INT32_MAX, DR_ERR_RANGE,
             "top_k: %d of %lld columns, at most %d", k, (long long)V, DR_TOP_MOST);
    DR_TRY(dr_cuda_enter(b, &state));
    return dr_cuda_top_k(scores, T, V, k, out, state->stream);
}

void dr_cuda_fill_retrieval(dr_backend_ops *ops) {
    ops->transfer_create = transfer_create;
    ops->transfer_destroy = transfer_destroy;
    ops->transfer_in = transfer_in;
    ops->transfer_out = transfer_out;
    ops->transfer_done = transfer_done;
    ops->fusion_forward = fusion_forward;
    ops->padded_attention = padded_attention;
    ops->mixture_forward = mixture_forward;
    ops->unit_rows = unit_rows;
    ops->fill_places = fill_places;
    ops->top_k = top_k;
}
