// The MPI body of the collective seam, polled with a deadline. A sum goes piece by piece to the ranks that
// own it, each of which adds in rank order; shards then go from their owners to everyone. Each rank sends and
// receives (size - 1) / size of the values for either. Pieces of a shard go from its end to its beginning, as
// soon as they are final: the streams to different owners do not wait for each other.
#include <mpi.h>
#include <string.h>

#include "core/base/alive.h"
#include "core/base/alloc.h"
#include "core/base/clock.h"
#include "core/base/log.h"
#include "mpi/mpi_check.h"
#include "mpi/world.h"
#include "mpi/world_watch.h"

enum {
    PIECE = 1 << 18,         // values of one message of a sum, at most
    WINDOW = 8,              // such messages under way from one rank to another, at most
    MOST_RECEIVED = 1 << 24, // values under way to one rank, at most
    WHOLE_PIECE = 1 << 26,   // bytes of one message where nothing is added
    SUM_TAG = 1,
    ALIVE_TAG = 2
};

// A sum that is under way; pieces are counted from a shard's end, slot k % WINDOW is piece k's.
typedef struct sum {
    float *values;
    int64_t n, final;      // n 0: none; values from `final` on are final on this rank
    int64_t asked, added;  // pieces of the own shard: asked for, summed up
    int64_t *sent, *taken; // [size] pieces of each shard: sent to its owner, and arrived there
    MPI_Request *sends;    // [size, WINDOW]
    MPI_Request *receives; // [WINDOW, size]
} sum;

typedef struct group {
    MPI_Comm comm;
    char *gathered; // [WINDOW, size] pieces of floats; its first [size] also half as long ones of doubles
    int64_t piece;  // floats
    sum sum;
    MPI_Request *requests; // [2 * size]
    int n_requests;
    MPI_Request *signs; // [size] of the last sign of work to each rank
    double told, heard; // when this rank last said so, and was told so by another
} group;

static int64_t piece_of(int size) {
    int64_t most = MOST_RECEIVED / WINDOW / size;
    return most < PIECE ? most : PIECE;
}

static void rest(int spins) {
    if (spins > 20) dr_clock_sleep(spins > 200 ? 0.001 : 0.00005);
}

// ---- signs of work: empty messages ----

static dr_status alive(dr_collective *c) {
    group *g = c->state;
    double now = dr_clock_seconds();
    if (now - g->told < dr_alive_every(c->deadline_s)) return DR_OK;
    g->told = now;
    for (int r = 0; r < c->size; r++) {
        int is_sent = 0;
        if (r == c->rank) continue;
        DR_MPI(MPI_Test(&g->signs[r], &is_sent, MPI_STATUS_IGNORE));
        if (is_sent) DR_MPI(MPI_Isend(NULL, 0, MPI_BYTE, r, ALIVE_TAG, g->comm, &g->signs[r]));
    }
    return DR_OK;
}

static dr_status heard(dr_collective *c, double *out_when) {
    group *g = c->state;
    for (;;) {
        int is_there = 0;
        MPI_Status sign;
        DR_MPI(MPI_Iprobe(MPI_ANY_SOURCE, ALIVE_TAG, g->comm, &is_there, &sign));
        if (!is_there) break;
        DR_MPI(MPI_Recv(NULL, 0, MPI_BYTE, sign.MPI_SOURCE, ALIVE_TAG, g->comm, MPI_STATUS_IGNORE));
        g->heard = dr_clock_seconds();
    }
    *out_when = g->heard;
    return DR_OK;
}

// One look of a wait whose deadline is *end: that moves on where another rank works on what is waited for.
static dr_status look(dr_collective *c, double *end, bool *out_late) {
    double when = 0;
    DR_TRY(dr_alive_wait());
    DR_TRY(heard(c, &when));
    if (when + c->deadline_s > *end) *end = when + c->deadline_s;
    *out_late = dr_clock_seconds() >= *end;
    return DR_OK;
}

static dr_status wait_for(dr_collective *c, int n_requests, MPI_Request *requests, const char *what,
                          int64_t n, const char *unit) {
    double end = dr_clock_seconds() + c->deadline_s;
    for (int spins = 0;; spins++) {
        int done = 0;
        bool is_late = false;
        DR_MPI(MPI_Testall(n_requests, requests, &done, MPI_STATUSES_IGNORE));
        if (done) return DR_OK;
        DR_TRY(look(c, &end, &is_late));
        DR_CHECK(!is_late, DR_ERR_TIMEOUT, "learner %d of %d: %s of %lld %s did not finish within %.0f s",
                 c->rank, c->size, what, (long long)n, unit, c->deadline_s);
        rest(spins);
    }
}

// ---- the sum ----

static bool is_empty(dr_shard part) {
    return part.begin == part.end;
}

// Piece k of rank r's shard of the sum under way.
static dr_shard part_of(const dr_collective *c, int r, int64_t k) {
    const group *g = c->state;
    return dr_shard_piece(dr_shard_of(g->sum.n, r, c->size), k, g->piece);
}

// Where what rank r sends of a piece stands.
static float *received(const dr_collective *c, int64_t k, int r) {
    const group *g = c->state;
    return (float *)(void *)g->gathered + (k % WINDOW * c->size + r) * g->piece;
}

// Sends what is final to the owner of shard r, as far as the window lets it.
static dr_status advance_sends(dr_collective *c, int r, bool *moved) {
    group *g = c->state;
    sum *s = &g->sum;
    for (; s->taken[r] < s->sent[r]; s->taken[r]++, *moved = true) {
        int done = 0;
        DR_MPI(MPI_Test(&s->sends[r * WINDOW + s->taken[r] % WINDOW], &done, MPI_STATUS_IGNORE));
        if (!done) break;
    }
    for (; s->sent[r] - s->taken[r] < WINDOW; s->sent[r]++, *moved = true) {
        dr_shard part = part_of(c, r, s->sent[r]);
        if (is_empty(part) || part.begin < s->final) break;
        DR_MPI(MPI_Isend(s->values + part.begin, (int)(part.end - part.begin), MPI_FLOAT, r, SUM_TAG, g->comm,
                         &s->sends[r * WINDOW + s->sent[r] % WINDOW]));
    }
    return DR_OK;
}

static dr_status ask(dr_collective *c, bool *moved) {
    group *g = c->state;
    sum *s = &g->sum;
    for (; s->asked - s->added < WINDOW; s->asked++, *moved = true) {
        dr_shard part = part_of(c, c->rank, s->asked);
        if (is_empty(part)) break;
        for (int r = 0; r < c->size; r++)
            if (r != c->rank)
                DR_MPI(MPI_Irecv(received(c, s->asked, r), (int)(part.end - part.begin), MPI_FLOAT, r,
                                 SUM_TAG, g->comm, &s->receives[s->asked % WINDOW * c->size + r]));
    }
    return DR_OK;
}

// The own values of a piece become the sum: rank 0's, rank 1's, … added in turn.
static void add_piece(const dr_collective *c, int64_t k, float *own, int64_t count) {
    enum { BLOCK = 1024 };
    float total[BLOCK];
    for (int64_t at = 0; at < count; at += BLOCK) {
        int64_t n = count - at < BLOCK ? count - at : BLOCK;
        for (int r = 0; r < c->size; r++) {
            const float *part = (r == c->rank ? own : received(c, k, r)) + at;
            if (r == 0)
                memcpy(total, part, (size_t)n * sizeof *total);
            else
                for (int64_t i = 0; i < n; i++) total[i] += part[i];
        }
        memcpy(own + at, total, (size_t)n * sizeof *total);
    }
}

static dr_status advance_own(dr_collective *c, bool *moved) {
    group *g = c->state;
    sum *s = &g->sum;
    for (;; s->added++, *moved = true) {
        int done = 0;
        DR_TRY(ask(c, moved));
        dr_shard part = part_of(c, c->rank, s->added);
        if (is_empty(part) || part.begin < s->final) return DR_OK;
        DR_MPI(MPI_Testall(c->size, &s->receives[s->added % WINDOW * c->size], &done, MPI_STATUSES_IGNORE));
        if (!done) return DR_OK;
        add_piece(c, s->added, s->values + part.begin, part.end - part.begin);
    }
}

static dr_status advance(dr_collective *c, bool *moved) {
    *moved = false;
    for (int r = 0; r < c->size; r++)
        if (r != c->rank) DR_TRY(advance_sends(c, r, moved));
    return advance_own(c, moved);
}

static bool is_summed(const dr_collective *c) {
    const sum *s = &((const group *)c->state)->sum;
    for (int r = 0; r < c->size; r++)
        if (r != c->rank && !is_empty(part_of(c, r, s->taken[r]))) return false;
    return is_empty(part_of(c, c->rank, s->added));
}

// Behind the deadline of a sum: names whom it still waits for. DR_OK: all is there now, and only to be added.
static dr_status check_late(dr_collective *c) {
    const sum *s = &((group *)c->state)->sum;
    dr_shard part = part_of(c, c->rank, s->added);
    const char *what = "sent";
    int late = -1;
    for (int r = 0; r < c->size && late < 0 && !is_empty(part); r++) {
        int done = 0;
        DR_MPI(MPI_Test(&s->receives[s->added % WINDOW * c->size + r], &done, MPI_STATUS_IGNORE));
        if (!done) late = r;
    }
    for (int r = 0; r < c->size && late < 0 && is_empty(part); r++) {
        if (r == c->rank || is_empty(part_of(c, r, s->taken[r]))) continue;
        part = part_of(c, r, s->taken[r]);
        what = "taken";
        late = r;
    }
    DR_CHECK(
        late < 0, DR_ERR_TIMEOUT,
        "learner %d of %d: sum of %lld values did not finish within %.0f s: learner %d has not %s values "
        "%lld to %lld",
        c->rank, c->size, (long long)s->n, c->deadline_s, late, what, (long long)part.begin,
        (long long)part.end - 1);
    return DR_OK;
}

static dr_status reduce_scatter_begin(dr_collective *c, float *values, int64_t n, int64_t begin) {
    sum *s = &((group *)c->state)->sum;
    bool is_first = s->n == 0, moved = n > 0;
    bool fits = is_first ? begin <= n : n == s->n && values == s->values && begin <= s->final;
    DR_CHECK(fits && begin >= 0, DR_ERR_ARGUMENT,
             "learner %d of %d: sum of %lld values from %lld on, under way is one of %lld from %lld on",
             c->rank, c->size, (long long)n, (long long)begin, (long long)s->n, (long long)s->final);
    if (is_first) {
        s->values = values;
        s->n = n;
        s->asked = s->added = 0;
        memset(s->sent, 0, (size_t)c->size * sizeof *s->sent);
        memset(s->taken, 0, (size_t)c->size * sizeof *s->taken);
    }
    s->final = begin;
    while (moved) DR_TRY(advance(c, &moved));
    return DR_OK;
}

static dr_status reduce_scatter_sum(dr_collective *c, float *values, int64_t n) {
    double end = dr_clock_seconds() + c->deadline_s;
    DR_TRY(reduce_scatter_begin(c, values, n, 0));
    for (int spins = 0; n > 0 && !is_summed(c); spins++) {
        bool moved = false, is_late = false;
        DR_TRY(advance(c, &moved));
        if (moved) {
            spins = 0;
            end = dr_clock_seconds() + c->deadline_s;
        }
        DR_TRY(look(c, &end, &is_late));
        if (is_late) DR_TRY(check_late(c));
        rest(spins);
    }
    ((group *)c->state)->sum.n = 0;
    return DR_OK;
}

// ---- the other operations ----

// They use the sum's memory, or would mix with its messages.
static dr_status check_idle(const dr_collective *c, const char *what) {
    const sum *s = &((const group *)c->state)->sum;
    DR_CHECK(s->n == 0, DR_ERR_ARGUMENT, "learner %d of %d: %s while a sum of %lld values is under way",
             c->rank, c->size, what, (long long)s->n);
    return DR_OK;
}

static dr_status exchange_parts(dr_collective *c, char *bytes, const dr_shard *parts, int64_t k, int64_t n) {
    group *g = c->state;
    dr_shard own = dr_shard_piece(parts[c->rank], k, WHOLE_PIECE);
    g->n_requests = 0;
    for (int r = 0; r < c->size; r++) {
        dr_shard theirs = dr_shard_piece(parts[r], k, WHOLE_PIECE);
        if (r == c->rank) continue;
        if (!is_empty(theirs))
            DR_MPI(MPI_Irecv(bytes + theirs.begin, (int)(theirs.end - theirs.begin), MPI_BYTE, r, 0, g->comm,
                             &g->requests[g->n_requests++]));
        if (!is_empty(own))
            DR_MPI(MPI_Isend(bytes + own.begin, (int)(own.end - own.begin), MPI_BYTE, r, 0, g->comm,
                             &g->requests[g->n_requests++]));
    }
    return wait_for(c, g->n_requests, g->requests, "all-gather", n, "bytes");
}

static dr_status all_gather(dr_collective *c, void *bytes, const dr_shard *parts) {
    int64_t longest = 0, n = 0;
    DR_TRY(check_idle(c, "all-gather"));
    for (int r = 0; r < c->size; r++) {
        int64_t length = parts[r].end - parts[r].begin;
        longest = length > longest ? length : longest;
        n += length;
    }
    for (int64_t k = 0; k * WHOLE_PIECE < longest; k++) DR_TRY(exchange_parts(c, bytes, parts, k, n));
    return DR_OK;
}

static dr_status sum_double(dr_collective *c, double *values, int64_t n) {
    group *g = c->state;
    const double *all = (const double *)(const void *)g->gathered;
    int64_t piece = g->piece / 2;
    DR_TRY(check_idle(c, "sum of doubles"));
    for (int64_t at = 0; at < n; at += piece) {
        int64_t count = n - at < piece ? n - at : piece;
        MPI_Request request;
        DR_MPI(MPI_Iallgather(values + at, (int)count, MPI_DOUBLE, g->gathered, (int)count, MPI_DOUBLE,
                              g->comm, &request));
        DR_TRY(wait_for(c, 1, &request, "sum", n, "values"));
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
        DR_TRY(wait_for(c, 1, &request, "broadcast", n_bytes, "bytes"));
    }
    return DR_OK;
}

static void free_communicator(dr_collective *c, group *g) {
    dr_world_watch *watch = NULL;
    int rank = -1;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    if (dr_world_watch_begin(c->deadline_s, "giving up the communicator of the learners", rank, &watch) !=
        DR_OK)
        dr_warn("the end of the learners' communicator has no deadline"); // why is in the log already
    MPI_Comm_free(&g->comm);
    dr_world_watch_end(watch);
}

// Empty messages have no memory that would have to stay.
static void drop_signs(dr_collective *c) {
    group *g = c->state;
    double when = 0;
    heard(c, &when);
    for (int r = 0; g->signs && r < c->size; r++)
        if (g->signs[r] != MPI_REQUEST_NULL) MPI_Request_free(&g->signs[r]);
    dr_free(g->signs);
}

static void destroy(dr_collective *c) {
    group *g = c->state;
    drop_signs(c);
    if (g->sum.n == 0) dr_free(g->gathered); // else what is still on its way would write to it
    dr_free(g->sum.sent);
    dr_free(g->sum.taken);
    dr_free(g->sum.sends);
    dr_free(g->sum.receives);
    dr_free(g->requests);
    free_communicator(c, g);
    dr_free(g);
    dr_free(c);
}

static const dr_collective_ops ops = {.reduce_scatter_sum = reduce_scatter_sum,
                                      .reduce_scatter_begin = reduce_scatter_begin,
                                      .all_gather = all_gather,
                                      .all_gather_host = all_gather,
                                      .allreduce_sum_double = sum_double,
                                      .alive = alive,
                                      .heard = heard,
                                      .broadcast = broadcast,
                                      .destroy = destroy};

static dr_status allocate(group *g, int size) {
    int64_t window = (int64_t)WINDOW * size;
    g->piece = piece_of(size);
    DR_TRY(dr_alloc(&g->gathered, "collective pieces", window * g->piece, sizeof(float)));
    DR_TRY(dr_alloc(&g->sum.sent, "pieces sent", size, sizeof *g->sum.sent));
    DR_TRY(dr_alloc(&g->sum.taken, "pieces taken", size, sizeof *g->sum.taken));
    DR_TRY(dr_alloc(&g->sum.sends, "collective requests", window, sizeof *g->sum.sends));
    DR_TRY(dr_alloc(&g->sum.receives, "collective requests", window, sizeof *g->sum.receives));
    for (int64_t i = 0; i < window; i++) g->sum.receives[i] = MPI_REQUEST_NULL; // a rank's own stay so
    DR_TRY(dr_alloc(&g->signs, "collective requests", size, sizeof *g->signs));
    for (int r = 0; r < size; r++) g->signs[r] = MPI_REQUEST_NULL;
    return dr_alloc(&g->requests, "collective requests", 2 * (int64_t)size, sizeof *g->requests);
}

// MPI_COMM_NULL for those who are no members; all processes come here.
static dr_status split_world(int member, int rank, double deadline_s, MPI_Comm *out_comm) {
    dr_world_watch *watch = NULL;
    DR_TRY(dr_world_watch_begin(deadline_s, "making the communicator of the learners", rank, &watch));
    dr_status status = dr_mpi_check(
        MPI_Comm_split(MPI_COMM_WORLD, member ? 1 : MPI_UNDEFINED, rank, out_comm), "MPI_Comm_split");
    dr_world_watch_end(watch);
    return status;
}

dr_status dr_collective_mpi_create(const int *processes, int n, double deadline_s, dr_collective **out) {
    int rank = 0, member = 0;
    DR_MPI(MPI_Comm_rank(MPI_COMM_WORLD, &rank));
    for (int i = 0; i < n; i++) member |= processes[i] == rank;
    MPI_Comm comm;
    DR_TRY(split_world(member, rank, deadline_s, &comm));
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
    DR_TRY(allocate(g, n));
    c->memory = WINDOW * n * g->piece * (int64_t)sizeof(float);
    *out = c;
    return DR_OK;
}
