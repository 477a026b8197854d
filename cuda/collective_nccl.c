// The NCCL body of the collective seam: the hand-round of parts, its start and its end. The sum is in
// nccl_sum.c. Parts go to everyone as broadcasts of one group: they need not be equal, as an all-gather of
// NCCL's wants them.
#include "cuda/collective_nccl.h"
#include "cuda/nccl_group.h"

#ifdef DR_HAVE_NCCL

#include <stdlib.h>
#include <string.h>

#include "core/base/alloc.h"
#include "core/base/clock.h"
#include "core/base/log.h"
#include "cuda/cuda_internal.h"

static const double END_S = 10.0; // that destroy waits for other ranks

// ---- the other operations ----

static ncclResult_t queue_bytes(const dr_nccl_group *g, char *bytes, const dr_shard *parts,
                                cudaStream_t stream) {
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

static dr_status gather_parts(const dr_nccl_group *g, char *bytes, const dr_shard *parts, int64_t n) {
    dr_nccl_call k = dr_nccl_call_begin(g, "all-gather", n, "bytes");
    dr_cuda_state *state;
    DR_TRY(dr_cuda_enter(g->backend, &state));
    DR_TRY(dr_nccl_judge(g, &k, dr_nccl_settle(g, queue_bytes(g, bytes, parts, state->stream), k.end)));
    return dr_nccl_wait_for_stream(g, state->stream, &k);
}

static dr_status all_gather(dr_collective *c, void *bytes, const dr_shard *parts) {
    dr_nccl_group *g = c->state;
    int64_t n = 0;
    for (int r = 0; r < c->size; r++) n += parts[r].end - parts[r].begin;
    if (n == 0) return DR_OK;
    DR_TRY(dr_nccl_check_connected(g, "all-gather", n, "bytes"));
    DR_CHECK(g->sum.n == 0, DR_ERR_ARGUMENT,
             "learner %d of %d: all-gather while a sum of %lld values is under way", c->rank, c->size,
             (long long)g->sum.n);
    dr_status status = gather_parts(g, bytes, parts, n);
    if (status != DR_OK) dr_nccl_give_up(g);
    return status;
}

static dr_status all_gather_host(dr_collective *c, void *bytes, const dr_shard *parts) {
    dr_collective *host = ((dr_nccl_group *)c->state)->host;
    return host->ops->all_gather(host, bytes, parts);
}

static dr_status sum_double(dr_collective *c, double *values, int64_t n) {
    dr_collective *host = ((dr_nccl_group *)c->state)->host;
    return host->ops->allreduce_sum_double(host, values, n);
}

static dr_status alive(dr_collective *c) {
    dr_collective *host = ((dr_nccl_group *)c->state)->host;
    return host->ops->alive(host);
}

static dr_status heard(dr_collective *c, double *out_when) {
    dr_collective *host = ((dr_nccl_group *)c->state)->host;
    return host->ops->heard(host, out_when);
}

static dr_status broadcast(dr_collective *c, void *bytes, int64_t n_bytes, int root) {
    dr_collective *host = ((dr_nccl_group *)c->state)->host;
    return host->ops->broadcast(host, bytes, n_bytes, root);
}

// ---- start and end ----

// All that a rank does alone; what it returns is agreed on afterwards.
static dr_status prepare(dr_nccl_group *g) {
    dr_backend *b = g->backend;
    dr_cuda_state *state;
    DR_CHECK(strcmp(b->ops->name, "cuda") == 0, DR_ERR_UNSUPPORTED,
             "nccl: sums up in memory of a cuda backend; this one is %s", b->ops->name);
    const char *blocking = getenv("NCCL_COMM_BLOCKING"); // stands above the configuration that join gives
    DR_CHECK(!blocking || strcmp(blocking, "1") != 0, DR_ERR_ARGUMENT,
             "nccl: NCCL_COMM_BLOCKING=1 in the environment takes the deadlines from its calls: unset it");
    DR_TRY(dr_nccl_load(&g->nccl));
    DR_TRY(dr_cuda_enter(b, &state));
    DR_CUDA_TRY(DR_ERR_INTERNAL, cudaStreamCreateWithFlags(&g->stream, cudaStreamNonBlocking),
                "stream of device %d", state->device);
    DR_CUDA_TRY(DR_ERR_INTERNAL, cudaEventCreateWithFlags(&g->done, cudaEventDisableTiming),
                "event of device %d", state->device);
    DR_TRY(dr_nccl_sum_open(g));
    if (g->base.rank != 0) return DR_OK;
    dr_nccl_call k = dr_nccl_call_begin(g, "address", g->base.size, "ranks");
    return dr_nccl_judge(g, &k, g->nccl.get_unique_id(&g->id));
}

// DR_OK when prepare was DR_OK on all ranks, else an error on all of them: DR_ERR_UNSUPPORTED on all, or on
// none.
static dr_status agree(const dr_nccl_group *g, dr_status own) {
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

static dr_status join(dr_nccl_group *g) {
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    dr_cuda_state *state;
    config.blocking = 0;
    DR_TRY(g->host->ops->broadcast(g->host, &g->id, sizeof g->id, 0));
    DR_TRY(dr_cuda_enter(g->backend, &state)); // the communicator takes the thread's device
    dr_nccl_call k = dr_nccl_call_begin(g, "connection", g->base.size, "ranks");
    k.hint =
        "; two ranks on one device? NCCL refuses that: set ranks.share_devices, the sum then goes through "
        "host memory and MPI";
    ncclResult_t result = g->nccl.comm_init(&g->comm, g->base.size, g->id, g->base.rank, &config);
    dr_status status = dr_nccl_judge(g, &k, dr_nccl_settle(g, result, k.end));
    if (status == DR_OK) status = dr_nccl_greet(g, &k);
    if (status != DR_OK) dr_nccl_give_up(g);
    return status;
}

// An orderly end flushes what is under way and wants the other ranks; a rank that is gone costs END_S.
static void leave(dr_nccl_group *g) {
    dr_cuda_state *state;
    if (!g->comm) return;
    ncclResult_t result = ncclInternalError;
    double wait_s = g->base.deadline_s < END_S ? g->base.deadline_s : END_S;
    if (dr_cuda_enter(g->backend, &state) == DR_OK)
        result = dr_nccl_settle(g, g->nccl.comm_finalize(g->comm), dr_clock_seconds() + wait_s);
    if (result == ncclSuccess) {
        g->nccl.comm_destroy(g->comm);
        g->comm = NULL;
        return;
    }
    dr_warn("learner %d of %d: NCCL ends without the other ranks", g->base.rank, g->base.size);
    dr_nccl_give_up(g);
}

static void destroy(dr_collective *c) {
    dr_nccl_group *g = c->state;
    leave(g);
    dr_nccl_sum_close(g);
    if (g->done) cudaEventDestroy(g->done);
    if (g->stream) cudaStreamDestroy(g->stream);
    dr_free(g);
}

static const dr_collective_ops ops = {.reduce_scatter_sum = dr_nccl_reduce_scatter_sum,
                                      .reduce_scatter_begin = dr_nccl_reduce_scatter_begin,
                                      .all_gather = all_gather,
                                      .all_gather_host = all_gather_host,
                                      .allreduce_sum_double = sum_double,
                                      .alive = alive,
                                      .heard = heard,
                                      .broadcast = broadcast,
                                      .destroy = destroy};

dr_status dr_collective_nccl_create(dr_backend *backend, dr_collective *host,
                                    dr_collective **out_collective) {
    dr_nccl_group *g = NULL;
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

int64_t dr_collective_nccl_memory(int size) {
    (void)size;
    return 0;
}

dr_status dr_collective_nccl_create(dr_backend *backend, dr_collective *host,
                                    dr_collective **out_collective) {
    (void)backend, (void)host, (void)out_collective;
    return DR_FAIL(DR_ERR_UNSUPPORTED, "nccl: this build was made without nccl.h, of 2.14 or later");
}

#endif
