// The MPI body of the collective seam, polled with a deadline. A sum goes piece by piece to the rank that
// owns it, which adds in rank order; shards then go from their owners to everyone. Each rank sends and
// receives (size - 1) / size of the values for either.
#include <mpi.h>
#include <string.h>

#include "core/base/alloc.h"
#include "core/base/clock.h"
#include "mpi/mpi_check.h"
#include "mpi/world.h"

enum {
    PIECE = 1 << 18,         // values of one rank that are added at a time, at most
    MOST_GATHERED = 1 << 22, // values of all ranks, at most
    WHOLE_PIECE = 1 << 24    // values of one message where nothing is added
};

typedef struct group {
    MPI_Comm comm;
    char *gathered;        // [size] pieces of floats, or half as long ones of doubles
    int64_t piece;         // floats
    MPI_Request *requests; // [2 * size]
    int n_requests;
} group;

static int64_t piece_of(int size) {
    int64_t most = MOST_GATHERED / size;
    return most < PIECE ? most : PIECE;
}

static dr_status wait_for(dr_collective *c, int n_requests, MPI_Request *requests, const char *what,
                          int64_t n) {
    double start = dr_clock_seconds();
    for (int spins = 0;; spins++) {
        int done = 0;
        DR_MPI(MPI_Testall(n_requests, requests, &done, MPI_STATUSES_IGNORE));
        if (done) return DR_OK;
        DR_CHECK(dr_clock_seconds() - start < c->deadline_s, DR_ERR_TIMEOUT,
                 "learner %d of %d: %s of %lld values did not finish within %.0f s", c->rank, c->size, what,
                 (long long)n, c->deadline_s);
        if (spins > 20) dr_clock_sleep(spins > 200 ? 0.001 : 0.00005);
    }
}

// Values at … at + piece - 1 of a rank's shard; empty behind its end.
static dr_shard piece_at(dr_shard whole, int64_t at, int64_t piece) {
    int64_t begin = whole.begin + at, end = begin + piece;
    return (dr_shard){begin < whole.end ? begin : whole.end, end < whole.end ? end : whole.end};
}

static dr_status send(group *g, const float *values, dr_shard part, int to) {
    if (part.begin == part.end) return DR_OK;
    DR_MPI(MPI_Isend(values + part.begin, (int)(part.end - part.begin), MPI_FLOAT, to, 0, g->comm,
                     &g->requests[g->n_requests++]));
    return DR_OK;
}

static dr_status receive(group *g, float *to, int64_t count, int from) {
    if (count == 0) return DR_OK;
    DR_MPI(MPI_Irecv(to, (int)count, MPI_FLOAT, from, 0, g->comm, &g->requests[g->n_requests++]));
    return DR_OK;
}

// One piece of every rank's shard goes to its owner; own gets the sum.
static dr_status sum_piece(dr_collective *c, float *values, int64_t n, int64_t at) {
    group *g = c->state;
    float *all = (float *)(void *)g->gathered;
    dr_shard own = piece_at(dr_shard_of(n, c->rank, c->size), at, g->piece);
    int64_t count = own.end - own.begin;
    g->n_requests = 0;
    for (int r = 0; r < c->size; r++)
        if (r != c->rank) DR_TRY(receive(g, all + r * count, count, r));
    for (int r = 0; r < c->size; r++)
        if (r != c->rank) DR_TRY(send(g, values, piece_at(dr_shard_of(n, r, c->size), at, g->piece), r));
    DR_TRY(wait_for(c, g->n_requests, g->requests, "sum", n));
    float *sum = values + own.begin;
    memcpy(all + c->rank * count, sum, (size_t)count * sizeof(float));
    memcpy(sum, all, (size_t)count * sizeof(float));
    for (int r = 1; r < c->size; r++)
        for (int64_t i = 0; i < count; i++) sum[i] += all[r * count + i];
    return DR_OK;
}

static dr_status reduce_scatter_sum(dr_collective *c, float *values, int64_t n) {
    int64_t longest = dr_shard_of(n, 0, c->size).end, piece = ((group *)c->state)->piece;
    for (int64_t at = 0; at < longest; at += piece) DR_TRY(sum_piece(c, values, n, at));
    return DR_OK;
}

static dr_status all_gather(dr_collective *c, float *values, int64_t n) {
    group *g = c->state;
    int64_t longest = dr_shard_of(n, 0, c->size).end;
    for (int64_t at = 0; at < longest; at += WHOLE_PIECE) {
        dr_shard own = piece_at(dr_shard_of(n, c->rank, c->size), at, WHOLE_PIECE);
        g->n_requests = 0;
        for (int r = 0; r < c->size; r++) {
            dr_shard theirs = piece_at(dr_shard_of(n, r, c->size), at, WHOLE_PIECE);
            if (r == c->rank) continue;
            DR_TRY(receive(g, values + theirs.begin, theirs.end - theirs.begin, r));
            DR_TRY(send(g, values, own, r));
        }
        DR_TRY(wait_for(c, g->n_requests, g->requests, "all-gather", n));
    }
    return DR_OK;
}

static dr_status sum_double(dr_collective *c, double *values, int64_t n) {
    group *g = c->state;
    const double *all = (const double *)(const void *)g->gathered;
    int64_t piece = g->piece / 2;
    for (int64_t at = 0; at < n; at += piece) {
        int64_t count = n - at < piece ? n - at : piece;
        MPI_Request request;
        DR_MPI(MPI_Iallgather(values + at, (int)count, MPI_DOUBLE, g->gathered, (int)count, MPI_DOUBLE,
                              g->comm, &request));
        DR_TRY(wait_for(c, 1, &request, "sum", n));
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
        DR_TRY(wait_for(c, 1, &request, "broadcast", n_bytes));
    }
    return DR_OK;
}

static void destroy(dr_collective *c) {
    group *g = c->state;
    MPI_Comm_free(&g->comm);
    dr_free(g->gathered);
    dr_free(g->requests);
    dr_free(g);
    dr_free(c);
}

static const dr_collective_ops ops = {reduce_scatter_sum, all_gather, sum_double, broadcast, destroy};

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
    g->piece = piece_of(n);
    c->memory = n * g->piece * (int64_t)sizeof(float);
    DR_TRY(dr_alloc(&g->gathered, "collective pieces", n * g->piece, sizeof(float)));
    DR_TRY(dr_alloc(&g->requests, "collective requests", 2 * (int64_t)n, sizeof *g->requests));
    *out = c;
    return DR_OK;
}
