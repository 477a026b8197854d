// Passes of the decode loop as CUDA graphs. The first pass for its places runs plainly and lets scratch grow,
// the second is recorded, and from then on a pass is one launch: what changes from one to the next (ids,
// positions, spans, pages) is read from device memory that the host wrote before. Passes of bursts come in
// few numbers of rows, with idle ones, so that few are recorded.
#include <string.h>

#include <cuda_runtime_api.h>

#include "core/base/log.h"
#include "cuda/backend_cuda.h"
#include "cuda/cuda_internal.h"

// Everything that a launch of the pass is made from, weights and scratch aside: scratch that grows, and
// weights that go, end all recordings.
static bool is_of(const dr_cuda_recording *r, const dr_cached_pass *pass, const dr_cuda_attention *plan) {
    return r->used > 0 && r->pass.n_chunks == pass->n_chunks && r->pass.group == pass->group &&
           r->pass.head_size == pass->head_size &&
           memcmp(r->pass.places, pass->places, sizeof pass->places) == 0 && r->spans == plan->spans &&
           r->pages == plan->pages && r->n_tiles == plan->n_mma_query_tiles && r->n_parts == plan->n_parts;
}

static void forget(dr_cuda_recording *r) {
    if (r->exec) cudaGraphExecDestroy(r->exec);
    *r = (dr_cuda_recording){0};
}

void dr_cuda_forget_recordings(dr_cuda_state *state) {
    for (int i = 0; i < DR_CUDA_RECORDINGS; i++) forget(&state->recordings[i]);
}

static dr_cuda_recording *find(dr_cuda_state *state, const dr_cached_pass *pass,
                               const dr_cuda_attention *plan) {
    for (int i = 0; i < DR_CUDA_RECORDINGS; i++)
        if (is_of(&state->recordings[i], pass, plan)) return &state->recordings[i];
    return NULL;
}

// In the place of the one that was used longest ago.
static dr_status remember(dr_cuda_state *state, const dr_cached_pass *pass, const dr_cuda_attention *plan) {
    dr_cuda_recording *r = &state->recordings[0];
    for (int i = 1; i < DR_CUDA_RECORDINGS; i++)
        if (state->recordings[i].used < r->used) r = &state->recordings[i];
    if (r->exec) // it may be under way
        DR_CUDA_TRY(DR_ERR_INTERNAL, cudaStreamSynchronize(state->stream), "pass of %d rows", pass->n_chunks);
    forget(r);
    *r = (dr_cuda_recording){.pass = *pass,
                             .spans = plan->spans,
                             .pages = plan->pages,
                             .n_tiles = plan->n_mma_query_tiles,
                             .n_parts = plan->n_parts,
                             .used = state->n_passes};
    r->pass.chunks = NULL;
    return DR_OK;
}

// What `ops` queues goes into a graph and not to the device.
static dr_status record(dr_backend *b, dr_cuda_recording *r, dr_pass_ops *ops, void *context) {
    dr_cuda_state *state = b->state;
    cudaGraph_t graph = NULL;
    int32_t n = r->pass.n_chunks;
    DR_CUDA_TRY(DR_ERR_INTERNAL, cudaStreamBeginCapture(state->stream, cudaStreamCaptureModeThreadLocal),
                "recording of a pass of %d rows", n);
    dr_status status = ops(context, b, 0, n);
    cudaError_t error = cudaStreamEndCapture(state->stream, &graph); // whatever became of the ops
    cudaGetLastError(); // clears what a broken recording leaves: the next launch would take it for its own
    if (status == DR_OK) status = state->failed;
    if (status == DR_OK && error == cudaSuccess) error = cudaGraphInstantiate(&r->exec, graph, 0);
    if (graph) cudaGraphDestroy(graph);
    DR_TRY(status);
    DR_CUDA_TRY(DR_ERR_INTERNAL, error, "recording of a pass of %d rows", n);
    state->n_recorded++;
    return DR_OK;
}

int32_t dr_cuda_pass_rows(dr_backend *b, int32_t n_rows) {
    const dr_cuda_state *state = b->state;
    return state->records ? dr_pass_bucket(n_rows) : n_rows;
}

int64_t dr_cuda_recordings_made(const dr_backend *b) {
    const dr_cuda_state *state = b->state;
    return state->n_recorded;
}

dr_status dr_cuda_run_pass(dr_backend *b, const dr_cached_pass *pass, const dr_cuda_attention *plan,
                           dr_pass_ops *ops, void *context) {
    dr_cuda_state *state = b->state;
    state->n_passes++;
    dr_cuda_recording *r = find(state, pass, plan);
    if (!r) {
        DR_TRY(remember(state, pass, plan));
        return ops(context, b, 0, pass->n_chunks);
    }
    r->used = state->n_passes;
    if (!r->exec) {
        dr_status status = record(b, r, ops, context);
        if (status != DR_OK) {
            forget(r);
            state->failed = DR_OK; // nothing has run: what fails without a recording does so below
            dr_warn("cuda: passes are launched op by op from now on: %s", dr_last_error());
            state->records = false;
            return ops(context, b, 0, pass->n_chunks);
        }
    }
    DR_CUDA_TRY(DR_ERR_INTERNAL, cudaGraphLaunch(r->exec, state->stream), "pass of %d rows", pass->n_chunks);
    return DR_OK;
}
