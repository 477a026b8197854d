// The collective seam, for the learner group only. Bodies: alone (one rank), MPI, NCCL. Every call
// has a deadline.
#ifndef DR_CORE_COMM_COLLECTIVE_H
#define DR_CORE_COMM_COLLECTIVE_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

// Values begin … end - 1 of an array that every rank has: those of one rank.
typedef struct dr_shard {
    int64_t begin, end;
} dr_shard;
enum { DR_SHARD_MULTIPLE = 4096 };
// n values in `size` equal shards that follow each other, rounded up to a multiple of DR_SHARD_MULTIPLE; the
// last ones may be shorter, or empty.
dr_shard dr_shard_of(int64_t n, int rank, int size);
// The rank whose shard holds value `at` of n.
int dr_shard_owner(int64_t n, int64_t at, int size);
// Piece k of a shard that is cut into pieces of `most` values from its end to its beginning, where the last
// one may be shorter; empty behind that.
dr_shard dr_shard_piece(dr_shard whole, int64_t k, int64_t most);

typedef struct dr_collective dr_collective;

typedef struct dr_collective_ops {
    // Element-wise sum over the group in rank order (rank 0 + rank 1 + …), the same bits in every run and
    // however it was begun. In place: values [n] get the sum within dr_shard_of(n, rank, size), and stay as
    // they are outside.
    dr_status (*reduce_scatter_sum)(dr_collective *collective, float *values, int64_t n);
    // Begins that sum while its values are still being made: those from `begin` on are final on this rank,
    // and whole pieces of them go to their owners. `begin` falls from call to call. Waits for no other rank;
    // ranks need not begin alike, or at all. Until reduce_scatter_sum of the same values, which every rank
    // calls, values from `begin` on are neither read nor written, and nothing else is called but this.
    // DR_ERR_ARGUMENT: other values than those under way, or a `begin` that rises.
    dr_status (*reduce_scatter_begin)(dr_collective *collective, float *values, int64_t n, int64_t begin);
    // Bytes parts[r].begin … parts[r].end - 1 of `bytes` from rank r to every other rank, in place. parts
    // [size] are the same on every rank, apart from each other, and may be empty.
    dr_status (*all_gather)(dr_collective *collective, void *bytes, const dr_shard *parts);
    // The same in host memory, wherever sums are.
    dr_status (*all_gather_host)(dr_collective *collective, void *bytes, const dr_shard *parts);
    // The sum in rank order on every rank, in place. Host memory.
    dr_status (*allreduce_sum_double)(dr_collective *collective, double *values, int64_t n);
    // This rank works on what the next operation waits for: the others' waits have their deadline from when
    // they hear it. Waits for nobody, and says so no oftener than dr_alive_every(deadline_s).
    dr_status (*alive)(dr_collective *collective);
    // When another rank was last heard to say so, in dr_clock_seconds; 0: never.
    dr_status (*heard)(dr_collective *collective, double *out_when);
    // Host memory.
    dr_status (*broadcast)(dr_collective *collective, void *bytes, int64_t n_bytes, int root);
    void (*destroy)(dr_collective *collective);
} dr_collective_ops;

struct dr_collective {
    const dr_collective_ops *ops;
    int rank, size;    // in the group
    double deadline_s; // of a wait, from its begin, its last progress or another rank's last sign of work,
                       // whatever comes last; DR_ERR_TIMEOUT names rank, operation and count when it passes
    bool takes_backend_memory; // what sums and all_gather work on is memory of the learners' backend, not the
                               // host's
    int64_t memory;            // bytes of its own buffers
    void *state;
};

dr_status dr_collective_alone_create(dr_collective **out_collective);

#ifdef __cplusplus
}
#endif
#endif
