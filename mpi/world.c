// Start, end and abort.
#include "mpi/world.h"

#include <limits.h>
#include <mpi.h>
#include <stdlib.h>
#include <unistd.h>

#include "core/base/alloc.h"
#include "core/base/clock.h"
#include "core/base/log.h"
#include "mpi/mpi_check.h"
#include "mpi/world_watch.h"

int dr_world_is_launched(void) {
    static const char *const marks[] = {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "SLURM_STEP_NUM_TASKS"};
    for (int i = 0; i < 2; i++)
        if (getenv(marks[i])) return 1;
    const char *tasks = getenv(marks[2]);
    return tasks && atoi(tasks) > 1;
}

int dr_world_launched_rank(void) {
    static const char *const names[] = {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "SLURM_PROCID"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const char *text = getenv(names[i]);
        char *end = NULL;
        long rank = text ? strtol(text, &end, 10) : -1;
        if (text && end != text && *end == '\0' && rank >= 0 && rank <= INT_MAX) return (int)rank;
    }
    return -1;
}

dr_status dr_mpi_check(int code, const char *call) {
    if (code == MPI_SUCCESS) return DR_OK;
    char text[MPI_MAX_ERROR_STRING];
    int length = 0;
    MPI_Error_string(code, text, &length);
    return DR_FAIL(DR_ERR_PEER, "%s: %.*s", call, length, text);
}

static dr_status init_watched(int *argc, char ***argv, dr_world_watch *watch, dr_world *out_world) {
    int provided = 0;
    DR_MPI(MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided));
    DR_CHECK(provided >= MPI_THREAD_FUNNELED, DR_ERR_UNSUPPORTED, "MPI grants thread level %d, %d is needed",
             provided, MPI_THREAD_FUNNELED);
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    dr_world world;
    DR_MPI(MPI_Comm_rank(MPI_COMM_WORLD, &world.rank));
    DR_MPI(MPI_Comm_size(MPI_COMM_WORLD, &world.size));
    MPI_Comm node;
    dr_world_watch_next(watch, "making the communicator of each node", world.rank);
    DR_MPI(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node));
    DR_MPI(MPI_Comm_size(node, &world.local_size));
    world.node = world.rank; // of rank 0 there, which is the lowest
    DR_MPI(MPI_Bcast(&world.node, 1, MPI_INT, 0, node));
    DR_MPI(MPI_Comm_free(&node));
    *out_world = world;
    return DR_OK;
}

dr_status dr_world_init(int *argc, char ***argv, double deadline_s, dr_world *out_world) {
    dr_world_watch *watch = NULL;
    DR_TRY(dr_world_watch_begin(deadline_s, "MPI_Init", -1, &watch));
    dr_status status = init_watched(argc, argv, watch, out_world);
    dr_world_watch_end(watch);
    if (status == DR_OK) dr_clock_sleep(0.2);
    return status;
}

// ---- the meeting ----

// Messages are empty: each rank says to rank 0 that it is here, and rank 0 answers at once, that it is here,
// and again when all are.
enum { MOST_NAMED = 16 };
static const double MEET_PAUSE_S = 0.002, MEET_GRACE_S = 2;

static dr_status say(int rank, MPI_Request *out_request) {
    return dr_mpi_check(MPI_Isend(NULL, 0, MPI_BYTE, rank, DR_MEET_TAG, MPI_COMM_WORLD, out_request),
                        "MPI_Isend");
}

static dr_status listen_to(int rank, MPI_Request *out_request) {
    return dr_mpi_check(MPI_Irecv(NULL, 0, MPI_BYTE, rank, DR_MEET_TAG, MPI_COMM_WORLD, out_request),
                        "MPI_Irecv");
}

static dr_status refuse_missing(const MPI_Request *arrivals, int size, double deadline_s) {
    dr_buf names = {0};
    int n = 0;
    dr_status status = DR_OK;
    for (int r = 1; r < size && status == DR_OK; r++) {
        if (arrivals[r] == MPI_REQUEST_NULL || ++n > MOST_NAMED) continue;
        status = dr_buf_printf(&names, "%s%d", n > 1 ? ", " : "", r);
    }
    if (status == DR_OK && n > MOST_NAMED) status = dr_buf_printf(&names, " and %d more", n - MOST_NAMED);
    if (status == DR_OK)
        status = DR_FAIL(DR_ERR_TIMEOUT, "start: within %g s %d of %d ranks have not come: %s", deadline_s, n,
                         size, names.data);
    dr_buf_reset(&names);
    return status;
}

// Answers those who have come since the last look.
static dr_status answer_arrivals(MPI_Request *arrivals, MPI_Request *answers, int size, int *n_here) {
    for (int r = 1; r < size; r++) {
        int is_here = 0;
        if (arrivals[r] == MPI_REQUEST_NULL) continue;
        DR_MPI(MPI_Test(&arrivals[r], &is_here, MPI_STATUS_IGNORE));
        if (!is_here) continue;
        DR_TRY(say(r, &answers[r]));
        ++*n_here;
    }
    return DR_OK;
}

// requests [3 * size], all null: arrivals, and both answers.
static dr_status gather_all(MPI_Request *requests, int size, double deadline_s) {
    MPI_Request *answers = requests + size;
    double end = dr_clock_seconds() + deadline_s;
    int n_here = 1, is_sent = 0;
    for (int r = 1; r < size; r++) DR_TRY(listen_to(r, &requests[r]));
    for (;;) {
        DR_TRY(answer_arrivals(requests, answers, size, &n_here));
        if (n_here == size) break;
        if (dr_clock_seconds() >= end) return refuse_missing(requests, size, deadline_s);
        dr_clock_sleep(MEET_PAUSE_S);
    }
    for (int r = 1; r < size; r++) DR_TRY(say(r, &answers[size + r]));
    for (;;) {
        DR_MPI(MPI_Testall(2 * size, answers, &is_sent, MPI_STATUSES_IGNORE));
        if (is_sent) return DR_OK;
        DR_CHECK(dr_clock_seconds() < end, DR_ERR_TIMEOUT,
                 "start: rank 0's answers are not taken within %g s", deadline_s);
        dr_clock_sleep(MEET_PAUSE_S);
    }
}

// Rank 0's next answer.
static dr_status wait_for_answer(double deadline_s, const char *what) {
    MPI_Request request;
    double end = dr_clock_seconds() + deadline_s;
    DR_TRY(listen_to(0, &request));
    for (;;) {
        int is_here = 0;
        DR_MPI(MPI_Test(&request, &is_here, MPI_STATUS_IGNORE));
        if (is_here) return DR_OK;
        DR_CHECK(dr_clock_seconds() < end, DR_ERR_TIMEOUT, "start: within %g s rank 0 has not %s", deadline_s,
                 what);
        dr_clock_sleep(MEET_PAUSE_S);
    }
}

dr_status dr_world_meet(const dr_world *world, double deadline_s) {
    MPI_Request *requests = NULL, arrival;
    if (world->rank > 0) {
        DR_TRY(say(0, &arrival));
        DR_TRY(wait_for_answer(deadline_s, "come"));
        // rank 0 came before it answered: its wait ends before this one, so that it names who is missing
        DR_TRY(wait_for_answer(deadline_s + MEET_GRACE_S, "said that all have come"));
        return dr_mpi_check(MPI_Wait(&arrival, MPI_STATUS_IGNORE), "MPI_Wait"); // was taken long ago
    }
    DR_TRY(dr_alloc(&requests, "arrivals", 3 * (int64_t)world->size, sizeof *requests));
    for (int i = 0; i < 3 * world->size; i++) requests[i] = MPI_REQUEST_NULL;
    dr_status status = gather_all(requests, world->size, deadline_s);
    dr_free(requests);
    return status;
}

void dr_world_finalize(double deadline_s) {
    dr_world_watch *watch = NULL;
    int rank = -1;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    if (dr_world_watch_begin(deadline_s, "MPI_Finalize", rank, &watch) != DR_OK)
        dr_warn("the end of this process has no deadline"); // why is in the log already
    MPI_Finalize();
    dr_world_watch_end(watch);
}

void dr_world_abort(int code) {
    MPI_Abort(MPI_COMM_WORLD, code);
    _exit(code);
}
