// Waits of the NCCL collective: each ends by a deadline, and its error says what was waited for.
#include "cuda/nccl_group.h"

#ifdef DR_HAVE_NCCL

#include <stdio.h>

#include "core/base/alive.h"
#include "core/base/clock.h"
#include "core/base/log.h"
#include "cuda/cuda_internal.h"

static const double POLL_S = 50e-6;

dr_nccl_call dr_nccl_call_begin(const dr_nccl_group *g, const char *what, int64_t n, const char *unit) {
    dr_nccl_call k = {.hint = "", .end = dr_clock_seconds() + g->base.deadline_s};
    snprintf(k.what, sizeof k.what, "%s of %lld %s", what, (long long)n, unit);
    return k;
}

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

static ncclResult_t comm_state(const dr_nccl_group *g) {
    ncclResult_t result = ncclSuccess;
    ncclResult_t asked = g->nccl.comm_state(g->comm, &result);
    return asked == ncclSuccess ? result : asked;
}

ncclResult_t dr_nccl_settle(const dr_nccl_group *g, ncclResult_t result, double end) {
    while (result == ncclInProgress && dr_clock_seconds() < end) {
        dr_clock_sleep(POLL_S);
        result = comm_state(g);
    }
    return result;
}

dr_status dr_nccl_judge(const dr_nccl_group *g, const dr_nccl_call *k, ncclResult_t result) {
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

dr_status dr_nccl_is_done(const dr_nccl_group *g, cudaEvent_t event, const dr_nccl_call *k, bool *out_done) {
    cudaError_t error = cudaEventQuery(event);
    *out_done = error == cudaSuccess;
    if (error == cudaSuccess) return DR_OK;
    cudaGetLastError(); // clears it: the next launch would take "not ready" for its own
    DR_CHECK(error == cudaErrorNotReady, DR_ERR_INTERNAL, "learner %d of %d: NCCL %s: cuda: %s", g->base.rank,
             g->base.size, k->what, cudaGetErrorString(error));
    return DR_OK;
}

// One look of a wait: its end moves on where another rank works on what is waited for.
static dr_status look(const dr_nccl_group *g, dr_nccl_call *k, bool *out_late) {
    double heard = 0;
    DR_TRY(dr_alive_wait());
    DR_TRY(g->host->ops->heard(g->host, &heard));
    if (heard + g->base.deadline_s > k->end) k->end = heard + g->base.deadline_s;
    *out_late = dr_clock_seconds() >= k->end;
    return DR_OK;
}

dr_status dr_nccl_wait_for_event(const dr_nccl_group *g, cudaEvent_t event, dr_nccl_call *k) {
    for (;;) {
        bool is_done = false, is_late = false;
        DR_TRY(dr_nccl_is_done(g, event, k, &is_done));
        if (is_done) k->end = dr_clock_seconds() + g->base.deadline_s;
        if (is_done) return DR_OK;
        ncclResult_t result = comm_state(g);
        bool is_well = result == ncclSuccess || result == ncclInProgress;
        if (!is_well) return dr_nccl_judge(g, k, result);
        DR_TRY(look(g, k, &is_late));
        if (is_late) return dr_nccl_judge(g, k, ncclInProgress);
        dr_clock_sleep(POLL_S);
    }
}

dr_status dr_nccl_wait_for_stream(const dr_nccl_group *g, cudaStream_t stream, dr_nccl_call *k) {
    dr_cuda_state *state;
    DR_TRY(dr_cuda_enter(g->backend, &state));
    DR_CUDA_TRY(DR_ERR_INTERNAL, cudaEventRecord(g->done, stream), "NCCL %s", k->what);
    return dr_nccl_wait_for_event(g, g->done, k);
}

void dr_nccl_give_up(dr_nccl_group *g) {
    if (g->comm) g->nccl.comm_abort(g->comm);
    g->comm = NULL;
    dr_nccl_sum_end(g);
}

dr_status dr_nccl_check_connected(const dr_nccl_group *g, const char *what, int64_t n, const char *unit) {
    DR_CHECK(g->comm, DR_ERR_PEER, "learner %d of %d: NCCL %s of %lld %s: given up after a failure",
             g->base.rank, g->base.size, what, (long long)n, unit);
    return DR_OK;
}

#endif
