// Start, end and abort.
#include "mpi/world.h"

#include <mpi.h>
#include <stdlib.h>
#include <unistd.h>

#include "core/base/clock.h"
#include "mpi/mpi_check.h"

int dr_world_is_launched(void) {
    static const char *const marks[] = {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "SLURM_STEP_NUM_TASKS"};
    for (int i = 0; i < 2; i++)
        if (getenv(marks[i])) return 1;
    const char *tasks = getenv(marks[2]);
    return tasks && atoi(tasks) > 1;
}

dr_status dr_mpi_check(int code, const char *call) {
    if (code == MPI_SUCCESS) return DR_OK;
    char text[MPI_MAX_ERROR_STRING];
    int length = 0;
    MPI_Error_string(code, text, &length);
    return DR_FAIL(DR_ERR_PEER, "%s: %.*s", call, length, text);
}

dr_status dr_world_init(int *argc, char ***argv, dr_world *out_world) {
    int provided = 0;
    DR_MPI(MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided));
    DR_CHECK(provided >= MPI_THREAD_FUNNELED, DR_ERR_UNSUPPORTED, "MPI grants thread level %d, %d is needed",
             provided, MPI_THREAD_FUNNELED);
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    dr_world world;
    DR_MPI(MPI_Comm_rank(MPI_COMM_WORLD, &world.rank));
    DR_MPI(MPI_Comm_size(MPI_COMM_WORLD, &world.size));
    MPI_Comm node;
    DR_MPI(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node));
    DR_MPI(MPI_Comm_rank(node, &world.local_rank));
    DR_MPI(MPI_Comm_size(node, &world.local_size));
    DR_MPI(MPI_Comm_free(&node));
    dr_clock_sleep(0.2);
    *out_world = world;
    return DR_OK;
}

dr_status dr_world_meet(void) {
    MPI_Request request;
    DR_MPI(MPI_Ibarrier(MPI_COMM_WORLD, &request));
    for (int all_here = 0;;) {
        DR_MPI(MPI_Test(&request, &all_here, MPI_STATUS_IGNORE));
        if (all_here) return DR_OK;
        dr_clock_sleep(0.001);
    }
}

void dr_world_finalize(void) {
    MPI_Finalize();
}

void dr_world_abort(int code) {
    MPI_Abort(MPI_COMM_WORLD, code);
    _exit(code);
}
