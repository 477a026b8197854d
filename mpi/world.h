// MPI start and end, and the MPI bodies of the two seams. The only place that may abort a job.
#ifndef DR_MPI_WORLD_H
#define DR_MPI_WORLD_H

#include "core/comm/channel.h"
#include "core/comm/collective.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct dr_world {
    int rank, size; // processes
    int local_size; // of them on this node
    int node;       // the lowest rank there: names the node
} dr_world;

// Tags of MPI_COMM_WORLD: the meeting's, and the first of the channels'.
enum { DR_MEET_TAG = 0, DR_FIRST_CHANNEL_TAG = 1 };

// True when a launcher (mpirun, srun) started this process as one of several.
int dr_world_is_launched(void);
// The rank that the launcher's environment says this process will have, before MPI_Init; -1: it says none.
int dr_world_launched_rank(void);
// MPI_Init with errors returned, then a short silence: Open MPI's TCP start races with early messages. Where
// a process of the job never comes, neither MPI_Init nor what follows it returns: after deadline_s of either
// this process says so and ends with 1 (world_watch.h).
dr_status dr_world_init(int *argc, char ***argv, double deadline_s, dr_world *out_world);
// Waits, asleep between looks, until every process of the job has come here: at the start, before any role
// has a deadline. DR_ERR_TIMEOUT after deadline_s: rank 0 names the ranks that have not come, the others rank
// 0 where it has not; only the end of the job is left then.
dr_status dr_world_meet(const dr_world *world, double deadline_s);
// MPI_Finalize. Where a process of the job does not come to it within deadline_s, this one says so and ends
// with 1 (world_watch.h).
void dr_world_finalize(double deadline_s);
// Ends every process of the job with `code`; one line must have been logged before.
void dr_world_abort(int code) __attribute__((noreturn));

// Endpoints over processes: endpoint e lives on process process_of[e] (borrowed until the channels are
// destroyed). Creates the channels of the endpoints that live here: out_channels[e], NULL for the others.
// DR_ERR_RANGE where MPI has too few tags for all pairs of endpoints.
dr_status dr_channel_mpi_create(const int *process_of, int n_endpoints, dr_channel **out_channels);

// Collective over the listed processes (ascending), created by all processes of the job together; *out is
// NULL on the others. Where one of them does not come to this within deadline_s, the others say so and end
// with 1 (world_watch.h). Sums run in rank order: the same bits on every rank and in every run. What is begun
// of one moves on in each call of reduce_scatter_begin; up to 8 messages of 1 MiB at most may be under way
// from one rank to another, for which it takes 8 MiB a rank of the group, 64 MiB at most. The DR_ERR_TIMEOUT
// of a sum names the rank that is waited for; its messages stay under way, so that only the end of the job is
// left. Signs of work are empty messages of each rank to each other one, which a wait takes up.
dr_status dr_collective_mpi_create(const int *processes, int n, double deadline_s, dr_collective **out);

#ifdef __cplusplus
}
#endif
#endif
