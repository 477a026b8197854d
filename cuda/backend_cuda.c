// The CUDA body of backend.h: creation, memory, scratch, stages. The ops live in files by family.
#include "cuda/backend_cuda.h"

#include <string.h>

#include <cuda_runtime_api.h>

#include "core/base/alloc.h"
#include "core/base/clock.h"
#include "core/base/log.h"
#include "cuda/cuda_internal.h"
#include "cuda/device_probe.h"
#include "cuda/draw_index.h"
#include "cuda/held_memory.h"
#include "cuda/stage_plan.h"

static bool is_given_up; // for all backends: giving memory back waits for all work of a device

void dr_cuda_give_up(void) {
    is_given_up = true;
}

bool dr_cuda_is_given_up(void) {
    return is_given_up;
}

bool dr_cuda_wait_for(cudaEvent_t event, double deadline_s) {
    static const double pause_s = 100e-6;
    double end = dr_clock_seconds() + deadline_s;
    while (cudaEventQuery(event) == cudaErrorNotReady) {
        cudaGetLastError(); // clears it: the next launch would take "not ready" for its own
        if (dr_clock_seconds() >= end) return false;
        dr_clock_sleep(pause_s);
    }
    return true;
}

dr_status dr_cuda_enter(dr_backend *b, dr_cuda_state **out_state) {
    dr_cuda_state *state = b->state;
    if (state->failed != DR_OK) return state->failed;
    if (is_given_up) return DR_ERR_TIMEOUT; // told when it was
    DR_CUDA_TRY(DR_ERR_INTERNAL, cudaSetDevice(state->device), "device %d", state->device);
    *out_state = state;
    return DR_OK;
}

void dr_cuda_keep(dr_cuda_state *state, dr_status status) {
    if (state->failed == DR_OK) state->failed = status;
}

// ---- memory ----

static dr_status memory_create(dr_backend *b, const char *label, size_t bytes, void **out_memory) {
    dr_cuda_state *state;
    void *memory = NULL;
    DR_TRY(dr_cuda_enter(b, &state));
    DR_CUDA_TRY(DR_ERR_MEMORY, cudaMalloc(&memory, bytes ? bytes : 1), "%s: %zu bytes", label, bytes);
    cudaError_t error = cudaMemsetAsync(memory, 0, bytes, state->stream);
    if (error != cudaSuccess) {
        dr_cuda_free(state->device, memory);
        return DR_FAIL(DR_ERR_INTERNAL, "cuda %s: %zu bytes cannot be zeroed: %s", label, bytes,
                       cudaGetErrorString(error));
    }
    *out_memory = memory;
    return DR_OK;
}

// Frees also after a failure: whoever cleans up has no other way to give memory back.
static void release(dr_cuda_state *state, void *memory) {
    if (!memory || is_given_up) return;
    cudaSetDevice(state->device);
    cudaStreamSynchronize(state->stream);
    dr_cuda_forget_recordings(state); // any of them may name it
    cudaGetLastError(); // clears what these reported: it was reported before, or nobody needs it
    dr_cuda_free(state->device, memory);
}

static void memory_destroy(dr_backend *b, void *memory) {
    release(b->state, memory);
}

static dr_status send(dr_cuda_state *state, void *to_backend, const void *from_host, size_t bytes) {
    DR_CUDA_TRY(DR_ERR_INTERNAL,
                cudaMemcpyAsync(to_backend, from_host, bytes, cudaMemcpyHostToDevice, state->stream),
                "copy_in of %zu bytes", bytes);
    // elsewhere the driver has read pageable memory when it comes back
    if (state->reads_host_late)
        DR_CUDA_TRY(DR_ERR_INTERNAL, cudaStreamSynchronize(state->stream), "copy_in of %zu bytes", bytes);
    return DR_OK;
}

static void copy_in(dr_backend *b, void *to_backend, const void *from_host, size_t bytes) {
    dr_cuda_state *state;
    if (bytes == 0 || dr_cuda_enter(b, &state) != DR_OK) return;
    dr_cuda_keep(state, send(state, to_backend, from_host, bytes));
}

static dr_status fetch(dr_backend *b, void *to_host, const void *from_backend, size_t bytes) {
    dr_cuda_state *state;
    DR_TRY(dr_cuda_enter(b, &state));
    DR_CUDA_TRY(DR_ERR_INTERNAL,
                cudaMemcpyAsync(to_host, from_backend, bytes, cudaMemcpyDeviceToHost, state->stream),
                "copy_out of %zu bytes", bytes);
    DR_CUDA_TRY(DR_ERR_INTERNAL, cudaStreamSynchronize(state->stream), "copy_out of %zu bytes", bytes);
    return DR_OK;
}

static void copy_out(dr_backend *b, void *to_host, const void *from_backend, size_t bytes) {
    if (bytes == 0) return;
    dr_status status = fetch(b, to_host, from_backend, bytes);
    if (status == DR_OK) return;
    memset(to_host, 0xFF, bytes); // NaNs: never what stood there before
    dr_cuda_keep(b->state, status);
}

static dr_status copy_within(dr_backend *b, void *to, const void *from, size_t bytes) {
    dr_cuda_state *state;
    DR_TRY(dr_cuda_enter(b, &state));
    DR_CUDA_TRY(DR_ERR_INTERNAL, cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, state->stream),
                "copy of %zu bytes", bytes);
    return DR_OK;
}

static void copy(dr_backend *b, void *to_backend, const void *from_backend, size_t bytes) {
    if (bytes) dr_cuda_keep(b->state, copy_within(b, to_backend, from_backend, bytes));
}

static dr_status fill_zero(dr_backend *b, void *memory, size_t bytes) {
    dr_cuda_state *state;
    DR_TRY(dr_cuda_enter(b, &state));
    DR_CUDA_TRY(DR_ERR_INTERNAL, cudaMemsetAsync(memory, 0, bytes, state->stream), "zeroing of %zu bytes",
                bytes);
    return DR_OK;
}

static void zero(dr_backend *b, void *memory, size_t bytes) {
    if (bytes) dr_cuda_keep(b->state, fill_zero(b, memory, bytes));
}

static void *host_view(dr_backend *b, void *memory) {
    (void)b, (void)memory;
    return NULL;
}

static dr_status memory_free(dr_backend *b, int64_t *out_free, int64_t *out_total) {
    dr_cuda_state *state = b->state;
    size_t left = 0, total = 0;
    DR_TRY(dr_cuda_enter(b, &state));
    DR_CUDA_TRY(DR_ERR_INTERNAL, cudaMemGetInfo(&left, &total), "memory of device %d", state->device);
    *out_free = (int64_t)left;
    *out_total = (int64_t)total;
    return DR_OK;
}

// ---- scratch and stages ----

static const double STAGE_S = 600; // that the work in front of a stage's copy has to end: a training pass

static int64_t larger(int64_t a, int64_t b) {
    return a > b ? a : b;
}

// Operands of passes: silu(gate) · up, of a pass over the cache too, which may have more rows than one of
// training, and the gradient there; in bf16 also the gradient that a layer's both products read (that of gate
// and up is the caller's), attention's, and rows of x, forward and backward, where the library multiplies.
static int64_t operand_memory(const dr_backend *b, const dr_pass_shape *s) {
    const dr_cuda_state *state = b->state;
    int64_t most = larger(s->T, s->n_cached),
            gradient = s->is_plain ? 0 : s->T * s->n_in * (int64_t)sizeof(float),
            of_library = state->lt ? s->n_in : 0;
    if (!dr_rounds_to_bf16(b->precision))
        return s->is_plain ? 0 : most * s->n_in * (int64_t)sizeof(float) + gradient;
    int64_t attention = !s->is_plain && dr_mma_takes(s->H / s->G, s->d) ? 2 * (s->H + s->G) * s->d : 0;
    return (most * (s->n_in + of_library) + s->T * (attention + of_library + s->n_dy)) *
               (int64_t)sizeof(uint16_t) +
           gradient;
}

// Sums; draws with their scratch and kept sets, those of a step and those of a burst; operands; and the
// stages of plans and bursts. The loss head counts its own (head_memory): kept sets are the most that goes
// through the others.
static int64_t pass_memory(dr_backend *b, const dr_pass_shape *s, int64_t *out_host) {
    int64_t ids = s->n_draws * s->V + dr_burst_listed_ids(s->n_draws, s->V),
            n_drawn = s->n_draws * larger(s->n_steps, 1);
    *out_host = dr_passes_on_host(s);
    return (dr_partials_floats(s) + ids) * (int64_t)sizeof(float) + n_drawn * (int64_t)sizeof(dr_cuda_drawn) +
           dr_draw_bytes(s->n_draws, s->V) + operand_memory(b, s) + dr_stages_memory(s);
}

dr_status dr_cuda_reserve(dr_cuda_state *state, dr_cuda_buffer *buffer, const char *label, int64_t bytes) {
    if (bytes <= buffer->bytes) return DR_OK;
    dr_cuda_release(state, buffer);
    DR_CUDA_TRY(DR_ERR_MEMORY, cudaMalloc(&buffer->data, (size_t)bytes), "%s: %lld bytes", label,
                (long long)bytes);
    buffer->bytes = bytes;
    return DR_OK;
}

void dr_cuda_release(dr_cuda_state *state, dr_cuda_buffer *buffer) {
    release(state, buffer->data);
    *buffer = (dr_cuda_buffer){0};
}

static void stage_free(dr_cuda_state *state, dr_cuda_stage *stage) {
    release(state, stage->device);
    dr_cuda_free_host(state->device, stage->host);
    stage->host = stage->device = NULL;
    stage->bytes = 0;
}

static dr_status stage_grow(dr_cuda_state *state, dr_cuda_stage *stage, int64_t bytes) {
    void *host = NULL, *device = NULL;
    size_t capacity = (size_t)dr_cuda_stage_capacity(bytes);
    stage_free(state, stage);
    DR_CUDA_TRY(DR_ERR_MEMORY, cudaMallocHost(&host, capacity), "descriptors: %zu bytes, pinned", capacity);
    stage->host = host;
    DR_CUDA_TRY(DR_ERR_MEMORY, cudaMalloc(&device, capacity), "descriptors: %zu bytes", capacity);
    stage->device = device;
    stage->bytes = (int64_t)capacity;
    return DR_OK;
}

dr_status dr_cuda_stage_reserve(dr_cuda_state *state, dr_cuda_stage *stage, int64_t bytes) {
    if (!dr_cuda_wait_for(stage->sent, STAGE_S)) {
        dr_cuda_give_up(); // giving memory back would wait, too
        return DR_FAIL(DR_ERR_TIMEOUT,
                       "cuda device %d: descriptors were not copied within %.0f s; it is given up",
                       state->device, STAGE_S);
    }
    DR_CUDA_TRY(DR_ERR_INTERNAL, cudaEventQuery(stage->sent), "descriptors of %lld bytes", (long long)bytes);
    if (bytes > stage->bytes) DR_TRY(stage_grow(state, stage, bytes));
    return DR_OK;
}

dr_status dr_cuda_stage_open(dr_cuda_state *state, int64_t bytes, dr_cuda_stage **out_stage) {
    dr_cuda_stage *stage = &state->stages[state->next_stage];
    state->next_stage = (state->next_stage + 1) % DR_CUDA_STAGES;
    DR_TRY(dr_cuda_stage_reserve(state, stage, bytes));
    *out_stage = stage;
    return DR_OK;
}

dr_status dr_cuda_stage_send(dr_cuda_state *state, dr_cuda_stage *stage, int64_t bytes) {
    DR_CUDA_TRY(
        DR_ERR_INTERNAL,
        cudaMemcpyAsync(stage->device, stage->host, (size_t)bytes, cudaMemcpyHostToDevice, state->stream),
        "descriptors of %lld bytes", (long long)bytes);
    DR_CUDA_TRY(DR_ERR_INTERNAL, cudaEventRecord(stage->sent, state->stream), "descriptors of %lld bytes",
                (long long)bytes);
    return DR_OK;
}

// ---- creation ----

static dr_status check_device(int device) {
    int count = 0, major = 0;
    DR_CUDA_TRY(DR_ERR_ARGUMENT, cudaGetDeviceCount(&count), "device %d", device);
    DR_CHECK(device >= 0 && device < count, DR_ERR_ARGUMENT, "cuda device %d: this machine has %d", device,
             count);
    DR_CUDA_TRY(DR_ERR_INTERNAL, cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
                "device %d", device);
    DR_CHECK(major >= DR_LEAST_MAJOR, DR_ERR_UNSUPPORTED,
             "cuda device %d has compute capability %d, expected %d or more", device, major, DR_LEAST_MAJOR);
    return DR_OK;
}

static dr_status stage_create(dr_cuda_state *state, dr_cuda_stage *stage) {
    DR_CUDA_TRY(DR_ERR_INTERNAL, cudaEventCreateWithFlags(&stage->sent, cudaEventDisableTiming),
                "event of device %d", state->device);
    return DR_OK;
}

static void stage_destroy(dr_cuda_state *state, dr_cuda_stage *stage) {
    stage_free(state, stage);
    if (stage->sent) cudaEventDestroy(stage->sent);
}

static dr_status state_open(dr_cuda_state *state) {
    DR_CUDA_TRY(DR_ERR_INTERNAL, cudaSetDevice(state->device), "device %d", state->device);
    DR_CUDA_TRY(DR_ERR_INTERNAL, cudaStreamCreateWithFlags(&state->stream, cudaStreamNonBlocking),
                "stream of device %d", state->device);
    DR_CUDA_TRY(DR_ERR_INTERNAL,
                cudaDeviceGetAttribute(&state->reads_host_late,
                                       cudaDevAttrPageableMemoryAccessUsesHostPageTables, state->device),
                "device %d", state->device);
    for (int i = 0; i < DR_CUDA_STAGES; i++) DR_TRY(stage_create(state, &state->stages[i]));
    DR_TRY(stage_create(state, &state->packed.stage));
    DR_TRY(stage_create(state, &state->cached.stage));
    DR_TRY(stage_create(state, &state->later.stage));
    return stage_create(state, &state->burst.stage);
}

static bool own_products_only, record_passes, reference_kernels;
static dr_cuda_wgmma wgmma_in_bf16 = DR_WGMMA_GRADIENT;

void dr_cuda_record_passes(bool record) {
    record_passes = record;
}

void dr_cuda_own_products_only(bool own) {
    own_products_only = own;
}

void dr_cuda_reference_kernels(bool reference) {
    reference_kernels = reference;
}

void dr_cuda_wgmma_in_bf16(dr_cuda_wgmma use) {
    wgmma_in_bf16 = use;
}

// The kernels with wgmma hold code for compute capability 9.0 alone.
static dr_status wgmma_open(dr_cuda_state *state, dr_precision precision) {
    int major = 0, minor = 0;
    DR_CUDA_TRY(DR_ERR_INTERNAL,
                cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, state->device), "device %d",
                state->device);
    DR_CUDA_TRY(DR_ERR_INTERNAL,
                cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, state->device), "device %d",
                state->device);
    bool is_there = dr_cuda_wgmma_is_built() && major == 9 && minor == 0 && !state->is_reference;
    state->wgmma_forward =
        is_there && (precision == DR_BF16_LOOSE || (precision == DR_BF16 && wgmma_in_bf16 == DR_WGMMA_BOTH));
    state->wgmma_backward = is_there && (precision == DR_BF16_LOOSE ||
                                         (precision == DR_BF16 && wgmma_in_bf16 != DR_WGMMA_NOWHERE));
    return DR_OK;
}

// fp32's products are the own kernels' alone: no library adds in their order.
static dr_status products_open(dr_cuda_state *state, dr_precision precision) {
    const char *reason = "they were asked for";
    if (precision == DR_FP32) return DR_OK;
    if (!own_products_only && !state->is_reference) DR_TRY(dr_cuda_lt_open(state, precision, &reason));
    if (state->lt) return DR_OK;
    DR_CHECK(!dr_is_loose(precision), DR_ERR_UNSUPPORTED,
             "cuda: products that sum in any order are cuBLASLt's, expected and not found: %s", reason);
    dr_info("cuda: own kernels for bf16 products, not cuBLASLt's: %s", reason);
    return DR_OK;
}

static void state_close(dr_cuda_state *state) {
    dr_cuda_lt_close(state);
    dr_cuda_release(state, &state->partials);
    dr_cuda_release(state, &state->logits);
    dr_cuda_release(state, &state->draw_scratch);
    dr_cuda_release(state, &state->kept_ids);
    dr_cuda_release(state, &state->drawn);
    dr_cuda_release(state, &state->burst.list);
    dr_cuda_release(state, &state->rounded);
    dr_cuda_release(state, &state->gated);
    dr_cuda_release(state, &state->dgated);
    dr_cuda_release(state, &state->dy);
    dr_free(state->kept_host);
    dr_free(state->drawn_host);
    for (int i = 0; i < DR_CUDA_STAGES; i++) stage_destroy(state, &state->stages[i]);
    stage_destroy(state, &state->packed.stage);
    stage_destroy(state, &state->cached.stage);
    stage_destroy(state, &state->later.stage);
    stage_destroy(state, &state->burst.stage);
    dr_free(state->later.images);
    dr_free(state->burst.rows_host);
    if (state->stream) cudaStreamDestroy(state->stream);
    dr_free(state);
}

static const dr_backend_ops *table(void) {
    static dr_backend_ops ops;
    ops.name = "cuda";
    ops.destroy = dr_backend_cuda_destroy;
    ops.memory_create = memory_create;
    ops.memory_destroy = memory_destroy;
    ops.copy_in = copy_in;
    ops.copy_out = copy_out;
    ops.copy = copy;
    ops.zero = zero;
    ops.host_view = host_view;
    ops.memory_free = memory_free;
    ops.pass_memory = pass_memory;
    dr_cuda_fill_linear(&ops);
    dr_cuda_fill_rows(&ops);
    dr_cuda_fill_attention(&ops);
    dr_cuda_fill_head(&ops);
    dr_cuda_fill_sample(&ops);
    dr_cuda_fill_burst(&ops);
    dr_cuda_fill_retrieval(&ops);
    dr_cuda_fill_retrieval_backward(&ops);
    return &ops;
}

dr_status dr_backend_cuda_create(dr_precision precision, int device, dr_backend **out_backend) {
    dr_backend *backend = NULL;
    dr_cuda_state *state = NULL;
    dr_status status;
    DR_TRY(check_device(device));
    DR_TRY(dr_alloc(&backend, "cuda backend", 1, sizeof *backend));
    DR_TRY_GOTO(status, dr_alloc(&state, "cuda backend state", 1, sizeof *state), free_backend);
    state->device = device;
    state->records = record_passes;
    state->is_reference = reference_kernels;
    DR_TRY_GOTO(status, state_open(state), close_state);
    DR_TRY_GOTO(status, products_open(state, precision), close_state);
    DR_TRY_GOTO(status, wgmma_open(state, precision), close_state);
    *backend = (dr_backend){.ops = table(), .precision = precision, .n_threads = 1, .state = state};
    *out_backend = backend;
    return DR_OK;

close_state:
    state_close(state);
free_backend:
    dr_free(backend);
    return status;
}

void dr_backend_cuda_destroy(dr_backend *backend) {
    if (!backend || is_given_up) return;
    dr_cuda_state *state = backend->state;
    cudaSetDevice(state->device);
    cudaStreamSynchronize(state->stream);
    state_close(state);
    dr_free(backend);
}
