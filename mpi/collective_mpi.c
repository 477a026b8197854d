// The MPI body of the collective seam: an all-gather in pieces and a sum in rank order, polled with a
// deadline.
#include <mpi.h>
#include <string.h>

#include "core/base/alloc.h"
#include "core/base/clock.h"
#include "mpi/mpi_check.h"
#include "mpi/world.h"

enum { PIECE = 1 << 18 }; // values of one piece

typedef struct group {
    MPI_Comm comm;
    char *gathered; // size * PIECE * 8 bytes
} group;

static dr_status wait_for(dr_collective *c, MPI_Request *request, const char *what, int64_t n) {
    double start = dr_clock_seconds();
    for (int spins = 0;; spins++) {
        int done = 0;
        DR_MPI(MPI_Test(request, &done, MPI_STATUS_IGNORE));
        if (done) return DR_OK;
        DR_CHECK(dr_clock_seconds() - start < c->deadline_s, DR_ERR_TIMEOUT,
                 "learner %d of %d: %s of %lld values did not finish within %.0f s", c->rank, c->size, what,
                 (long long)n, c->deadline_s);
        if (spins > 20) dr_clock_sleep(spins > 200 ? 0.001 : 0.00005);
    }
}

static dr_status gather(dr_collective *c, const void *piece, int64_t bytes, const char *what, int64_t n) {
    group *g = c->state;
    MPI_Request request;
    DR_MPI(MPI_Iallgather(piece, (int)bytes, MPI_BYTE, g->gathered, (int)bytes, MPI_BYTE, g->comm, &request));
    return wait_for(c, &request, what, n);
}

static dr_status sum_float(dr_collective *c, float *values, int64_t n) {
    const float *all = (const float *)(const void *)((group *)c->state)->gathered;
    for (int64_t at = 0; at < n; at += PIECE) {
        int64_t count = n - at < PIECE ? n - at : PIECE;
        DR_TRY(gather(c, values + at, count * (int64_t)sizeof(float), "sum", n));
        memcpy(values + at, all, (size_t)count * sizeof(float));
        for (int r = 1; r < c->size; r++)
            for (int64_t i = 0; i < count; i++) values[at + i] += all[r * count + i];
    }
    return DR_OK;
}

static dr_status sum_double(dr_collective *c, double *values, int64_t n) {
    const double *all = (const double *)(const void *)((group *)c->state)->gathered;
    for (int64_t at = 0; at < n; at += PIECE) {
        int64_t count = n - at < PIECE ? n - at : PIECE;
        DR_TRY(gather(c, values + at, count * (int64_t)sizeof(double), "sum", n));
        memcpy(values + at, all, (size_t)count * sizeof(double));
        for (int r = 1; r < c->size; r++)
            for (int64_t i = 0; i < count; i++) values[at + i] += all[r * count + i];
    }
    return DR_OK;
}

static dr_status broadcast(dr_collective *c, void *bytes, int64_t n_bytes, int root) {
    group *g = c->state;
    for (int64_t at = 0; at < n_bytes; at += 1 << 28) {
        int64_t count = n_bytes - at < 1 << 28 ? n_bytes - at : 1 << 28;
        MPI_Request request;
        DR_MPI(MPI_Ibcast((char *)bytes + at, (int)count, MPI_BYTE, root, g->comm, &request));
        DR_TRY(wait_for(c, &request, "broadcast", n_bytes));
    }
    return DR_OK;
}

static void destroy(dr_collective *c) {
    group *g = c->state;
    MPI_Comm_free(&g->comm);
    dr_free(g->gathered);
    dr_free(g);
    dr_free(c);
}

static const dr_collective_ops ops = {sum_float, sum_double, broadcast, destroy};

dr_status dr_collective_mpi_create(const int *processes, int n, double deadline_s, dr_collective **out) {
    int rank = 0, member = 0;
    DR_MPI(MPI_Comm_rank(MPI_COMM_WORLD, &rank));
    for (int i = 0; i < n; i++) member |= processes[i] == rank;
    MPI_Comm comm;
    DR_MPI(MPI_Comm_split(MPI_COMM_WORLD, member ? 1 : MPI_UNDEFINED, rank, &comm));
    *out = NULL;
    if (!member) return DR_OK;
    MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN);
    dr_collective *c = NULL;
    group *g = NULL;
    DR_TRY(dr_alloc(&c, "collective", 1, sizeof *c));
    DR_TRY(dr_alloc(&g, "collective", 1, sizeof *g));
    g->comm = comm;
    *c = (dr_collective){.ops = &ops, .size = n, .deadline_s = deadline_s, .state = g};
    DR_MPI(MPI_Comm_rank(comm, &c->rank));
    DR_TRY(dr_alloc(&g->gathered, "collective pieces", (int64_t)n * PIECE, sizeof(double)));
    *out = c;
    return DR_OK;
}
