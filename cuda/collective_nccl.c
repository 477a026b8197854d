// The NCCL body of the collective seam: a sum goes chunk by chunk to the rank that owns it, which copies and
// adds in rank order on the backend's stream. NCCL's own sum would be faster, but its order depends on
// topology and size. Shards go to everyone as broadcasts of one group: they need not be equal, as an
// all-gather of NCCL's wants them.
#include "cuda/collective_nccl.h"

#if defined(__has_include)
#if __has_include(<nccl.h>)
#include <nccl.h>
#if NCCL_VERSION_CODE >= NCCL_VERSION(2, 14, 0) // communicators that do not block
#define HAVE_NCCL 1
#endif
#endif
#endif

#ifdef HAVE_NCCL

#include <dlfcn.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include <cuda_runtime_api.h>

#include "core/base/alloc.h"
#include "core/base/clock.h"
#include "core/base/log.h"
#include "cuda/cuda_internal.h"

enum {
    CHUNK = 4 << 20,          // values of one rank that are added at a time, at most
    MOST_GATHERED = 64 << 20, // values of all ranks in scratch, at most
    MOST_QUEUED = 256 // ops on the stream before it is waited for: a full stream blocks the next launch
};

static const double POLL_S = 50e-6;
static const double END_S = 10.0; // that destroy waits for other ranks

// What is called of the library; only the types come from the header.
typedef struct library {
    __typeof__(&ncclGetUniqueId) get_unique_id;
    __typeof__(&ncclCommInitRankConfig) comm_init;
    __typeof__(&ncclCommFinalize) comm_finalize;
    __typeof__(&ncclCommDestroy) comm_destroy;
    __typeof__(&ncclCommAbort) comm_abort;
    __typeof__(&ncclCommGetAsyncError) comm_state;
    __typeof__(&ncclGetErrorString) error_string;
    __typeof__(&ncclGetLastError) last_error;
    __typeof__(&ncclGroupStart) group_start;
    __typeof__(&ncclGroupEnd) group_end;
    __typeof__(&ncclSend) send;
    __typeof__(&ncclRecv) receive;
    __typeof__(&ncclBroadcast) broadcast;
} library;

typedef struct group {
    dr_collective base; // base.state is this group
    dr_backend *backend;
    dr_collective *host;
    library nccl;
    ncclUniqueId id; // of rank 0, until it was broadcast
    ncclComm_t comm; // NULL: not connected yet, or given up
    float *gathered; // backend memory [size, chunk]
    cudaEvent_t done;
} group;

// One operation under way, for its deadline and its errors.
typedef struct call {
    char what[64];    // "sum of 12 values"
    const char *hint; // behind the text of an invalid usage; "" for none
    double end;       // in dr_clock_seconds
} call;

static call begin(const group *g, const char *what, int64_t n, const char *unit) {
    call k = {.hint = "", .end = dr_clock_seconds() + g->base.deadline_s};
    snprintf(k.what, sizeof k.what, "%s of %lld %s", what, (long long)n, unit);
    return k;
}

// ---- the library ----

static dr_status find(void *handle, const char *name, void *out_function) {
    void *symbol = dlsym(handle, name);
    DR_CHECK(symbol, DR_ERR_UNSUPPORTED, "nccl: the library has no %s; 2.14 or later is expected", name);
    memcpy(out_function, &symbol, sizeof symbol);
    return DR_OK;
}

// The library stays open: its threads may outlive a communicator.
static dr_status load(library *out) {
    static const char *const names[] = {"libnccl.so.2", "libnccl.so", "/usr/local/cuda/lib64/libnccl.so.2"};
    void *handle = NULL;
    char reason[256] = "";
    for (int i = 0; i < 3 && !handle; i++) {
        handle = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
        const char *error = handle ? NULL : dlerror();
        if (error && i == 0) snprintf(reason, sizeof reason, "%s", error);
    }
    DR_CHECK(handle, DR_ERR_UNSUPPORTED, "nccl: the library cannot be loaded: %s", reason);
    DR_TRY(find(handle, "ncclGetUniqueId", &out->get_unique_id));
    DR_TRY(find(handle, "ncclCommInitRankConfig", &out->comm_init));
    DR_TRY(find(handle, "ncclCommFinalize", &out->comm_finalize));
    DR_TRY(find(handle, "ncclCommDestroy", &out->comm_destroy));
    DR_TRY(find(handle, "ncclCommAbort", &out->comm_abort));
    DR_TRY(find(handle, "ncclCommGetAsyncError", &out->comm_state));
    DR_TRY(find(handle, "ncclGetErrorString", &out->error_string));
    DR_TRY(find(handle, "ncclGetLastError", &out->last_error));
    DR_TRY(find(handle, "ncclGroupStart", &out->group_start));
    DR_TRY(find(handle, "ncclGroupEnd", &out->group_end));
    DR_TRY(find(handle, "ncclSend", &out->send));
    DR_TRY(find(handle, "ncclRecv", &out->receive));
    return find(handle, "ncclBroadcast", &out->broadcast);
}

// ---- waiting and errors ----

static dr_status status_of(ncclResult_t result) {
    switch (result) {
    case ncclRemoteError:
        return DR_ERR_PEER;
    case ncclSystemError:
        return DR_ERR_IO;
    case ncclInvalidUsage:
        return DR_ERR_ARGUMENT;
    default:
        return DR_ERR_INTERNAL;
    }
}

static ncclResult_t comm_state(const group *g) {
    ncclResult_t result = ncclSuccess;
    ncclResult_t asked = g->nccl.comm_state(g->comm, &result);
    return asked == ncclSuccess ? result : asked;
}

// What becomes of a call that returned `result`; ncclInProgress when it is still under way at `end`.
static ncclResult_t settle(const group *g, ncclResult_t result, double end) {
    while (result == ncclInProgress && dr_clock_seconds() < end) {
        dr_clock_sleep(POLL_S);
        result = comm_state(g);
    }
    return result;
}

// The error of a call that ended with `result`, ncclInProgress: did not end. The library's last words say
// more than the text of the code.
static dr_status judge(const group *g, const call *k, ncclResult_t result) {
    const dr_collective *c = &g->base;
    if (result == ncclSuccess) return DR_OK;
    DR_CHECK(result != ncclInProgress, DR_ERR_TIMEOUT,
             "learner %d of %d: NCCL %s did not finish within %.0f s", c->rank, c->size, k->what,
             c->deadline_s);
    const char *last = g->nccl.last_error(g->comm);
    bool has_last = last && last[0];
    return DR_FAIL(status_of(result), "learner %d of %d: NCCL %s: %s%s%s%s", c->rank, c->size, k->what,
                   g->nccl.error_string(result), has_last ? ": " : "", has_last ? last : "",
                   result == ncclInvalidUsage ? k->hint : "");
}

// Waits until the stream has done all that is on it so far. Its first line also returns what copy and add had
// no status for.
static dr_status wait_for_stream(const group *g, const call *k) {
    dr_cuda_state *state;
    DR_TRY(dr_cuda_enter(g->backend, &state));
    DR_CUDA_TRY(DR_ERR_INTERNAL, cudaEventRecord(g->done, state->stream), "NCCL %s", k->what);
    for (;;) {
        cudaError_t error = cudaEventQuery(g->done);
        if (error == cudaSuccess) return DR_OK;
        cudaGetLastError(); // clears it: the next launch would take "not ready" for its own
        DR_CHECK(error == cudaErrorNotReady, DR_ERR_INTERNAL, "learner %d of %d: NCCL %s: cuda: %s",
                 g->base.rank, g->base.size, k->what, cudaGetErrorString(error));
        ncclResult_t result = comm_state(g);
        bool is_well = result == ncclSuccess || result == ncclInProgress;
        if (!is_well) return judge(g, k, result);
        if (dr_clock_seconds() >= k->end) return judge(g, k, ncclInProgress);
        dr_clock_sleep(POLL_S);
    }
}

// Also ends what NCCL has on the stream. The communicator is gone whatever abort returns.
static void give_up(group *g) {
    if (g->comm) g->nccl.comm_abort(g->comm);
    g->comm = NULL;
}

// ---- the operations ----

static int64_t chunk_of(int size) { // values; a multiple of 16 bytes
    int64_t most = MOST_GATHERED / size / 4 * 4;
    return most < CHUNK ? most : CHUNK;
}

// Values at … at + chunk - 1 of a rank's shard; empty behind its end.
static dr_shard chunk_at(const group *g, int64_t n, int rank, int64_t at) {
    dr_shard whole = dr_shard_of(n, rank, g->base.size);
    int64_t begin = whole.begin + at, end = begin + chunk_of(g->base.size);
    return (dr_shard){begin < whole.end ? begin : whole.end, end < whole.end ? end : whole.end};
}

static ncclResult_t queue_chunk(const group *g, const float *values, int64_t n, int64_t at,
                                cudaStream_t stream) {
    dr_shard own = chunk_at(g, n, g->base.rank, at);
    int64_t count = own.end - own.begin;
    ncclResult_t result = g->nccl.group_start();
    for (int r = 0; r < g->base.size && result == ncclSuccess; r++) {
        dr_shard theirs = chunk_at(g, n, r, at);
        if (r == g->base.rank) continue;
        if (theirs.begin < theirs.end)
            result = g->nccl.send(values + theirs.begin, (size_t)(theirs.end - theirs.begin), ncclFloat32, r,
                                  g->comm, stream);
        if (count > 0 && (result == ncclSuccess || result == ncclInProgress))
            result = g->nccl.receive(g->gathered + r * count, (size_t)count, ncclFloat32, r, g->comm, stream);
        if (result == ncclInProgress) result = ncclSuccess; // the group's end settles what is under way
    }
    ncclResult_t ended = g->nccl.group_end();
    return result == ncclSuccess ? ended : result;
}

// One chunk of every rank's shard goes to its owner, and the sum of the own one is put on the stream; waits
// only for NCCL to have queued its part, before which nothing else may go on that stream.
static dr_status sum_chunk(const group *g, float *values, int64_t n, int64_t at, const call *k) {
    dr_backend *b = g->backend;
    dr_cuda_state *state;
    dr_shard own = chunk_at(g, n, g->base.rank, at);
    int64_t count = own.end - own.begin;
    size_t bytes = (size_t)count * sizeof(float);
    DR_TRY(dr_cuda_enter(b, &state));
    DR_TRY(judge(g, k, settle(g, queue_chunk(g, values, n, at, state->stream), k->end)));
    b->ops->copy(b, g->gathered + g->base.rank * count, values + own.begin, bytes);
    b->ops->copy(b, values + own.begin, g->gathered, bytes);
    for (int r = 1; r < g->base.size; r++) b->ops->add(b, g->gathered + r * count, count, values + own.begin);
    return DR_OK;
}

static dr_status sum_chunks(const group *g, float *values, int64_t n) {
    const int64_t longest = dr_shard_of(n, 0, g->base.size).end, chunk = chunk_of(g->base.size);
    const call k = begin(g, "sum", n, "values");
    int queued = 0;
    for (int64_t at = 0; at < longest; at += chunk) {
        DR_TRY(sum_chunk(g, values, n, at, &k));
        queued += g->base.size + 2; // the exchange, two copies, an add for each other rank
        if (queued < MOST_QUEUED) continue;
        DR_TRY(wait_for_stream(g, &k));
        queued = 0;
    }
    return wait_for_stream(g, &k);
}

static ncclResult_t queue_shards(const group *g, float *values, int64_t n, cudaStream_t stream) {
    ncclResult_t result = g->nccl.group_start();
    for (int r = 0; r < g->base.size && result == ncclSuccess; r++) {
        dr_shard shard = dr_shard_of(n, r, g->base.size);
        if (shard.begin == shard.end) continue;
        result = g->nccl.broadcast(values + shard.begin, values + shard.begin,
                                   (size_t)(shard.end - shard.begin), ncclFloat32, r, g->comm, stream);
        if (result == ncclInProgress) result = ncclSuccess; // the group's end settles what is under way
    }
    ncclResult_t ended = g->nccl.group_end();
    return result == ncclSuccess ? ended : result;
}

static dr_status gather_shards(const group *g, float *values, int64_t n) {
    const call k = begin(g, "all-gather", n, "values");
    dr_cuda_state *state;
    DR_TRY(dr_cuda_enter(g->backend, &state));
    DR_TRY(judge(g, &k, settle(g, queue_shards(g, values, n, state->stream), k.end)));
    return wait_for_stream(g, &k);
}

static dr_status run(dr_collective *c, dr_status (*operation)(const group *, float *, int64_t),
                     const char *what, float *values, int64_t n) {
    group *g = c->state;
    if (n <= 0) return DR_OK;
    DR_CHECK(g->comm, DR_ERR_PEER, "learner %d of %d: NCCL %s of %lld values: given up after a failure",
             c->rank, c->size, what, (long long)n);
    dr_status status = operation(g, values, n);
    if (status != DR_OK) give_up(g);
    return status;
}

static dr_status reduce_scatter_sum(dr_collective *c, float *values, int64_t n) {
    return run(c, sum_chunks, "sum", values, n);
}

static dr_status all_gather(dr_collective *c, float *values, int64_t n) {
    return run(c, gather_shards, "all-gather", values, n);
}

static dr_status sum_double(dr_collective *c, double *values, int64_t n) {
    dr_collective *host = ((group *)c->state)->host;
    return host->ops->allreduce_sum_double(host, values, n);
}

static dr_status broadcast(dr_collective *c, void *bytes, int64_t n_bytes, int root) {
    dr_collective *host = ((group *)c->state)->host;
    return host->ops->broadcast(host, bytes, n_bytes, root);
}

// ---- start and end ----

// All that a rank does alone; what it returns is agreed on afterwards.
static dr_status prepare(group *g) {
    dr_backend *b = g->backend;
    dr_cuda_state *state;
    void *gathered = NULL;
    DR_CHECK(strcmp(b->ops->name, "cuda") == 0, DR_ERR_UNSUPPORTED,
             "nccl: sums up in memory of a cuda backend; this one is %s", b->ops->name);
    DR_TRY(load(&g->nccl));
    DR_TRY(dr_cuda_enter(b, &state));
    DR_CUDA_TRY(DR_ERR_INTERNAL, cudaEventCreateWithFlags(&g->done, cudaEventDisableTiming),
                "event of device %d", state->device);
    size_t bytes = (size_t)chunk_of(g->base.size) * (size_t)g->base.size * sizeof(float);
    DR_TRY(b->ops->memory_create(b, "NCCL chunks", bytes, &gathered));
    g->gathered = gathered;
    g->base.memory = (int64_t)bytes;
    if (g->base.rank != 0) return DR_OK;
    call k = begin(g, "address", g->base.size, "ranks");
    return judge(g, &k, g->nccl.get_unique_id(&g->id));
}

// DR_OK when prepare was DR_OK on all ranks, else an error on all of them: DR_ERR_UNSUPPORTED on all, or on
// none.
static dr_status agree(const group *g, dr_status own) {
    const dr_collective *c = &g->base;
    bool is_unsupported = own == DR_ERR_UNSUPPORTED;
    double failed[2] = {is_unsupported, own != DR_OK && !is_unsupported};
    DR_TRY(g->host->ops->allreduce_sum_double(g->host, failed, 2));
    if (own != DR_OK && !is_unsupported) return own;
    DR_CHECK(failed[1] == 0.0, DR_ERR_PEER, "learner %d of %d: %.0f of %d ranks could not prepare NCCL",
             c->rank, c->size, failed[1], c->size);
    if (is_unsupported) return own;
    DR_CHECK(failed[0] == 0.0, DR_ERR_UNSUPPORTED, "learner %d of %d: %.0f of %d ranks cannot use NCCL",
             c->rank, c->size, failed[0], c->size);
    return DR_OK;
}

static dr_status join(group *g) {
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    dr_cuda_state *state;
    config.blocking = 0;
    DR_TRY(g->host->ops->broadcast(g->host, &g->id, sizeof g->id, 0));
    DR_TRY(dr_cuda_enter(g->backend, &state)); // the communicator takes the thread's device
    call k = begin(g, "connection", g->base.size, "ranks");
    k.hint =
        "; two ranks on one device? NCCL refuses that: set ranks.share_devices, the sum then goes through "
        "host memory and MPI";
    ncclResult_t result = g->nccl.comm_init(&g->comm, g->base.size, g->id, g->base.rank, &config);
    dr_status status = judge(g, &k, settle(g, result, k.end));
    if (status != DR_OK) give_up(g);
    return status;
}

// An orderly end flushes what is under way and wants the other ranks; a rank that is gone costs END_S.
static void leave(group *g) {
    dr_cuda_state *state;
    if (!g->comm) return;
    ncclResult_t result = ncclInternalError;
    double wait_s = g->base.deadline_s < END_S ? g->base.deadline_s : END_S;
    if (dr_cuda_enter(g->backend, &state) == DR_OK)
        result = settle(g, g->nccl.comm_finalize(g->comm), dr_clock_seconds() + wait_s);
    if (result == ncclSuccess) {
        g->nccl.comm_destroy(g->comm);
        g->comm = NULL;
        return;
    }
    dr_warn("learner %d of %d: NCCL ends without the other ranks", g->base.rank, g->base.size);
    give_up(g);
}

static void destroy(dr_collective *c) {
    group *g = c->state;
    leave(g);
    if (g->gathered) g->backend->ops->memory_destroy(g->backend, g->gathered);
    if (g->done) cudaEventDestroy(g->done);
    dr_free(g);
}

static const dr_collective_ops ops = {reduce_scatter_sum, all_gather, sum_double, broadcast, destroy};

dr_status dr_collective_nccl_create(dr_backend *backend, dr_collective *host,
                                    dr_collective **out_collective) {
    group *g = NULL;
    DR_TRY(dr_alloc(&g, "NCCL collective", 1, sizeof *g));
    g->base.ops = &ops;
    g->base.takes_backend_memory = true;
    g->base.rank = host->rank;
    g->base.size = host->size;
    g->base.deadline_s = host->deadline_s;
    g->base.state = g;
    g->backend = backend;
    g->host = host;
    dr_status status = agree(g, prepare(g));
    if (status == DR_OK) status = join(g);
    if (status != DR_OK) {
        destroy(&g->base);
        return status;
    }
    *out_collective = &g->base;
    return DR_OK;
}

#else

dr_status dr_collective_nccl_create(dr_backend *backend, dr_collective *host,
                                    dr_collective **out_collective) {
    (void)backend, (void)host, (void)out_collective;
    return DR_FAIL(DR_ERR_UNSUPPORTED, "nccl: this build was made without nccl.h, of 2.14 or later");
}

#endif
