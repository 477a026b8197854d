// The NCCL body of the collective seam: a sum goes chunk by chunk to the rank that owns it, which copies and
// adds in rank order, on a stream of its own. NCCL's own sum would be faster, but its order depends on
// topology and size. What may begin early goes from the end of the values to their start, one owner at a
// time; the rest goes to all owners at once, which is faster. An all-gather is broadcasts of one group: the
// ranks' parts need not be equal, as NCCL's own wants them.
//
// Order. A sum of n values over `size` ranks is one sequence of exchanges, the same on every rank whatever
// was final when: the early chunks, as many as an empty stream has room for, then the rest. Between begin and
// sum a rank may be held up by the device at any call that waits for all of its work: memory that is given
// back, a kernel that is loaded at its first use. Such a wait is for exchanges that this rank has queued, and
// so are all waits within a sum; none is for another rank to come to some place. So of the ranks that wait
// the one that has queued fewest exchanges goes on: all the others have queued these too. For that, nothing
// here may wait for the other ranks through `host` while a sum is under way.
#include "cuda/collective_nccl.h"
#include "cuda/nccl_library.h"

#ifdef DR_HAVE_NCCL

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include <cuda_runtime_api.h>

#include "core/base/alive.h"
#include "core/base/alloc.h"
#include "core/base/clock.h"
#include "core/base/log.h"
#include "cuda/cuda_internal.h"

#ifndef DR_NCCL_CHUNK // a build on an emulated device has smaller ones
#define DR_NCCL_CHUNK (4 << 20)
#endif
enum {
    CHUNK = DR_NCCL_CHUNK,    // values of one rank that are added at a time, at most
    MOST_GATHERED = 64 << 20, // values of all ranks in scratch, at most
    MOST_QUEUED = 256         // ops on a stream before it has to be empty: a full one blocks the next launch
};

static const double POLL_S = 50e-6;
static const double END_S = 10.0; // that destroy waits for other ranks

typedef struct group {
    dr_collective base; // base.state is this group
    dr_backend *backend;
    dr_collective *host;
    dr_nccl_library nccl;
    ncclUniqueId id;     // of rank 0, until it was broadcast
    ncclComm_t comm;     // NULL: not connected yet, or given up
    float *gathered;     // backend memory [size, chunk]
    cudaStream_t stream; // of sums, beside the backend's
    cudaEvent_t made;    // on the backend's stream: what was final then is there
    cudaEvent_t done;    // on the stream that is waited for
    dr_shard *parts;     // [size] what goes to each rank in one exchange
    float *values;       // of the sum under way
    int64_t n, final;    // n 0: none; values from `final` on are final on this rank
    int64_t queued;      // values from here on are on the stream
    int n_ops;           // on it since it was empty, as it is when a sum begins
} group;

// One operation under way, for its deadline and its errors.
typedef struct call {
    char what[64];    // "sum of 12 values"
    const char *hint; // behind the text of an invalid usage; "" for none
    double end;       // of the wait under way, in dr_clock_seconds
} call;

static call begin(const group *g, const char *what, int64_t n, const char *unit) {
    call k = {.hint = "", .end = dr_clock_seconds() + g->base.deadline_s};
    snprintf(k.what, sizeof k.what, "%s of %lld %s", what, (long long)n, unit);
    return k;
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

// One look of a wait: its end moves on where another rank works on what is waited for.
static dr_status look(const group *g, call *k, bool *out_late) {
    double heard = 0;
    DR_TRY(dr_alive_wait());
    DR_TRY(g->host->ops->heard(g->host, &heard));
    if (heard + g->base.deadline_s > k->end) k->end = heard + g->base.deadline_s;
    *out_late = dr_clock_seconds() >= k->end;
    return DR_OK;
}

// Waits until a stream of the device has done all that is on it so far; the next wait of the call has its own
// deadline. Its first line also returns what ops of the backend had no status for.
static dr_status wait_for_stream(const group *g, cudaStream_t stream, call *k) {
    dr_cuda_state *state;
    DR_TRY(dr_cuda_enter(g->backend, &state));
    DR_CUDA_TRY(DR_ERR_INTERNAL, cudaEventRecord(g->done, stream), "NCCL %s", k->what);
    for (;;) {
        bool is_late = false;
        cudaError_t error = cudaEventQuery(g->done);
        if (error == cudaSuccess) k->end = dr_clock_seconds() + g->base.deadline_s;
        if (error == cudaSuccess) return DR_OK;
        cudaGetLastError(); // clears it: the next launch would take "not ready" for its own
        DR_CHECK(error == cudaErrorNotReady, DR_ERR_INTERNAL, "learner %d of %d: NCCL %s: cuda: %s",
                 g->base.rank, g->base.size, k->what, cudaGetErrorString(error));
        ncclResult_t result = comm_state(g);
        bool is_well = result == ncclSuccess || result == ncclInProgress;
        if (!is_well) return judge(g, k, result);
        DR_TRY(look(g, k, &is_late));
        if (is_late) return judge(g, k, ncclInProgress);
        dr_clock_sleep(POLL_S);
    }
}

// Also ends what NCCL has on the streams. The communicator is gone whatever abort returns.
static void give_up(group *g) {
    if (g->comm) g->nccl.comm_abort(g->comm);
    g->comm = NULL;
    g->n = 0;
}

static dr_status check_connected(const group *g, const char *what, int64_t n, const char *unit) {
    DR_CHECK(g->comm, DR_ERR_PEER, "learner %d of %d: NCCL %s of %lld %s: given up after a failure",
             g->base.rank, g->base.size, what, (long long)n, unit);
    return DR_OK;
}

// ---- the sum ----

static int64_t chunk_of(int size) { // values; a multiple of 16 bytes
    int64_t most = MOST_GATHERED / size / 4 * 4;
    return most < CHUNK ? most : CHUNK;
}

// g->parts of `values` to the other ranks, and theirs of the own one into g->gathered, as long ones in turn.
static ncclResult_t queue_parts(const group *g, const float *values) {
    int64_t own = g->parts[g->base.rank].end - g->parts[g->base.rank].begin;
    ncclResult_t result = g->nccl.group_start();
    for (int r = 0; r < g->base.size && result == ncclSuccess; r++) {
        dr_shard theirs = g->parts[r];
        if (r == g->base.rank) continue;
        if (theirs.begin < theirs.end)
            result = g->nccl.send(values + theirs.begin, (size_t)(theirs.end - theirs.begin), ncclFloat32, r,
                                  g->comm, g->stream);
        if (own > 0 && (result == ncclSuccess || result == ncclInProgress))
            result = g->nccl.receive(g->gathered + r * own, (size_t)own, ncclFloat32, r, g->comm, g->stream);
        if (result == ncclInProgress) result = ncclSuccess; // the group's end settles what is under way
    }
    ncclResult_t ended = g->nccl.group_end();
    return result == ncclSuccess ? ended : result;
}

static dr_status copy_on_device(const group *g, float *to, const float *from, int64_t count, const call *k) {
    DR_CUDA_TRY(DR_ERR_INTERNAL,
                cudaMemcpyAsync(to, from, (size_t)count * sizeof *to, cudaMemcpyDeviceToDevice, g->stream),
                "NCCL %s", k->what);
    return DR_OK;
}

// g->parts go to their owners, and the sum of the own one is put on the stream; waits only for NCCL to have
// queued its part, before which nothing else may go on that stream.
static dr_status sum_parts(group *g, const call *k) {
    dr_shard own = g->parts[g->base.rank];
    int64_t count = own.end - own.begin;
    float *sum = g->values + own.begin;
    DR_TRY(judge(g, k, settle(g, queue_parts(g, g->values), k->end)));
    g->n_ops += g->base.size + 2; // the exchange, two copies, an add for each other rank
    if (count == 0) return DR_OK;
    DR_TRY(copy_on_device(g, g->gathered + g->base.rank * count, sum, count, k));
    DR_TRY(copy_on_device(g, sum, g->gathered, count, k));
    for (int r = 1; r < g->base.size; r++)
        DR_TRY(dr_cuda_add(g->gathered + r * count, count, sum, g->stream));
    return DR_OK;
}

static bool is_full(const group *g) {
    return g->n_ops > 0 && g->n_ops + g->base.size + 2 > MOST_QUEUED;
}

static dr_status make_room(group *g, call *k) {
    if (!is_full(g)) return DR_OK;
    DR_TRY(wait_for_stream(g, g->stream, k));
    g->n_ops = 0;
    return DR_OK;
}

// What is on the backend's stream comes before all that goes on the sums' stream from now on.
static dr_status follow_backend(const group *g, const call *k) {
    dr_cuda_state *state;
    DR_TRY(dr_cuda_enter(g->backend, &state));
    DR_CUDA_TRY(DR_ERR_INTERNAL, cudaEventRecord(g->made, state->stream), "NCCL %s", k->what);
    DR_CUDA_TRY(DR_ERR_INTERNAL, cudaStreamWaitEvent(g->stream, g->made, 0), "NCCL %s", k->what);
    return DR_OK;
}

// The next chunk of what is begun early: the last one of the values that are not queued, of one shard.
static dr_shard next_chunk(const group *g, int *out_owner) {
    *out_owner = dr_shard_owner(g->n, g->queued - 1, g->base.size);
    dr_shard left = {dr_shard_of(g->n, *out_owner, g->base.size).begin, g->queued};
    return dr_shard_piece(left, 0, chunk_of(g->base.size));
}

// Queues early chunks while they begin at `limit` or behind, up to as many as an empty stream has room for,
// also when it has done some of them: how many there are depends on n and size alone.
static dr_status queue_early(group *g, int64_t limit, const call *k) {
    while (g->queued > limit && !is_full(g)) {
        int owner = 0;
        dr_shard chunk = next_chunk(g, &owner);
        if (chunk.begin < limit) break;
        for (int r = 0; r < g->base.size; r++) g->parts[r] = r == owner ? chunk : (dr_shard){0, 0};
        DR_TRY(sum_parts(g, k));
        g->queued = chunk.begin;
    }
    return DR_OK;
}

// Values before the early ones: a chunk of every shard at a time.
static dr_status queue_rest(group *g, call *k) {
    const int64_t end = g->queued, first = dr_shard_of(g->n, 0, g->base.size).end;
    const int64_t longest = end < first ? end : first, chunk = chunk_of(g->base.size);
    for (int64_t i = 0; i * chunk < longest; i++) {
        for (int r = 0; r < g->base.size; r++) {
            dr_shard left = dr_shard_of(g->n, r, g->base.size);
            if (left.end > end) left.end = end > left.begin ? end : left.begin;
            g->parts[r] = dr_shard_piece(left, i, chunk);
        }
        DR_TRY(make_room(g, k));
        DR_TRY(sum_parts(g, k));
    }
    g->queued = 0;
    return DR_OK;
}

static dr_status finish_sum(group *g) {
    call k = begin(g, "sum", g->n, "values");
    DR_TRY(follow_backend(g, &k));
    DR_TRY(queue_early(g, 0, &k));
    DR_TRY(queue_rest(g, &k));
    DR_TRY(wait_for_stream(g, g->stream, &k));
    g->n_ops = 0;
    g->n = 0;
    return DR_OK;
}

// A sum of these values, which is under way or begins here, is final from `from` on.
static dr_status note_final(group *g, float *values, int64_t n, int64_t from) {
    DR_TRY(check_connected(g, "sum", n, "values"));
    bool is_first = g->n == 0;
    bool fits = is_first ? from <= n : n == g->n && values == g->values && from <= g->final;
    DR_CHECK(fits && from >= 0, DR_ERR_ARGUMENT,
             "learner %d of %d: NCCL sum of %lld values from %lld on, under way is one of %lld from %lld on",
             g->base.rank, g->base.size, (long long)n, (long long)from, (long long)g->n, (long long)g->final);
    if (is_first) {
        g->values = values;
        g->n = g->queued = n;
    }
    g->final = from;
    return DR_OK;
}

static dr_status begin_sum(group *g) {
    const call k = begin(g, "sum", g->n, "values");
    if (is_full(g)) return DR_OK; // all that goes early is on the stream
    DR_TRY(follow_backend(g, &k));
    return queue_early(g, g->final, &k);
}

static dr_status reduce_scatter_begin(dr_collective *c, float *values, int64_t n, int64_t from) {
    group *g = c->state;
    if (n <= 0) return DR_OK;
    DR_TRY(note_final(g, values, n, from));
    dr_status status = begin_sum(g);
    if (status != DR_OK) give_up(g);
    return status;
}

static dr_status reduce_scatter_sum(dr_collective *c, float *values, int64_t n) {
    group *g = c->state;
    if (n <= 0) return DR_OK;
    DR_TRY(note_final(g, values, n, 0));
    dr_status status = finish_sum(g);
    if (status != DR_OK) give_up(g);
    return status;
}

// ---- the other operations ----

static ncclResult_t queue_bytes(const group *g, char *bytes, const dr_shard *parts, cudaStream_t stream) {
    ncclResult_t result = g->nccl.group_start();
    for (int r = 0; r < g->base.size && result == ncclSuccess; r++) {
        char *part = bytes + parts[r].begin;
        if (parts[r].begin == parts[r].end) continue;
        result = g->nccl.broadcast(part, part, (size_t)(parts[r].end - parts[r].begin), ncclUint8, r, g->comm,
                                   stream);
        if (result == ncclInProgress) result = ncclSuccess; // the group's end settles what is under way
    }
    ncclResult_t ended = g->nccl.group_end();
    return result == ncclSuccess ? ended : result;
}

static dr_status gather_parts(const group *g, char *bytes, const dr_shard *parts, int64_t n) {
    call k = begin(g, "all-gather", n, "bytes");
    dr_cuda_state *state;
    DR_TRY(dr_cuda_enter(g->backend, &state));
    DR_TRY(judge(g, &k, settle(g, queue_bytes(g, bytes, parts, state->stream), k.end)));
    return wait_for_stream(g, state->stream, &k);
}

static dr_status all_gather(dr_collective *c, void *bytes, const dr_shard *parts) {
    group *g = c->state;
    int64_t n = 0;
    for (int r = 0; r < c->size; r++) n += parts[r].end - parts[r].begin;
    if (n == 0) return DR_OK;
    DR_TRY(check_connected(g, "all-gather", n, "bytes"));
    DR_CHECK(g->n == 0, DR_ERR_ARGUMENT,
             "learner %d of %d: all-gather while a sum of %lld values is under way", c->rank, c->size,
             (long long)g->n);
    dr_status status = gather_parts(g, bytes, parts, n);
    if (status != DR_OK) give_up(g);
    return status;
}

static dr_status all_gather_host(dr_collective *c, void *bytes, const dr_shard *parts) {
    dr_collective *host = ((group *)c->state)->host;
    return host->ops->all_gather(host, bytes, parts);
}

static dr_status sum_double(dr_collective *c, double *values, int64_t n) {
    dr_collective *host = ((group *)c->state)->host;
    return host->ops->allreduce_sum_double(host, values, n);
}

static dr_status alive(dr_collective *c) {
    dr_collective *host = ((group *)c->state)->host;
    return host->ops->alive(host);
}

static dr_status heard(dr_collective *c, double *out_when) {
    dr_collective *host = ((group *)c->state)->host;
    return host->ops->heard(host, out_when);
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
    DR_TRY(dr_nccl_load(&g->nccl));
    DR_TRY(dr_cuda_enter(b, &state));
    DR_TRY(dr_alloc(&g->parts, "NCCL parts", g->base.size, sizeof *g->parts));
    DR_CUDA_TRY(DR_ERR_INTERNAL, cudaStreamCreateWithFlags(&g->stream, cudaStreamNonBlocking),
                "stream of device %d", state->device);
    DR_CUDA_TRY(DR_ERR_INTERNAL, cudaEventCreateWithFlags(&g->made, cudaEventDisableTiming),
                "event of device %d", state->device);
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

// One value from each rank to each, and one addition: connections are made at the first exchange and the
// kernel of the addition is loaded at its first use, both of which would keep the beginning of a sum waiting
// for other ranks.
static dr_status greet(group *g, call *k) {
    for (int r = 0; r < g->base.size; r++) g->parts[r] = (dr_shard){g->base.size + r, g->base.size + r + 1};
    DR_TRY(judge(g, k, settle(g, queue_parts(g, g->gathered), k->end)));
    DR_TRY(dr_cuda_add(g->gathered + g->base.size, 1, g->gathered, g->stream));
    return wait_for_stream(g, g->stream, k);
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
    if (status == DR_OK) status = greet(g, &k);
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
    if (g->made) cudaEventDestroy(g->made);
    if (g->done) cudaEventDestroy(g->done);
    if (g->stream) cudaStreamDestroy(g->stream);
    dr_free(g->parts);
    dr_free(g);
}

static const dr_collective_ops ops = {.reduce_scatter_sum = reduce_scatter_sum,
                                      .reduce_scatter_begin = reduce_scatter_begin,
                                      .all_gather = all_gather,
                                      .all_gather_host = all_gather_host,
                                      .allreduce_sum_double = sum_double,
                                      .alive = alive,
                                      .heard = heard,
                                      .broadcast = broadcast,
                                      .destroy = destroy};

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
