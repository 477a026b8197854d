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

typedef struct dr_collective dr_collective;

typedef struct dr_collective_ops {
    // Element-wise sum over the group in rank order (rank 0 + rank 1 + …), the same bits on every rank and
    // every run. In place.
    dr_status (*allreduce_sum)(dr_collective *collective, float *values, int64_t n);
    dr_status (*allreduce_sum_double)(dr_collective *collective, double *values, int64_t n);
    dr_status (*broadcast)(dr_collective *collective, void *bytes, int64_t n_bytes, int root);
    void (*destroy)(dr_collective *collective);
} dr_collective_ops;

struct dr_collective {
    const dr_collective_ops *ops;
    int rank, size;            // in the group
    double deadline_s;         // of one call; DR_ERR_TIMEOUT names rank, operation and count when it passes
    bool takes_backend_memory; // allreduce_sum's values are memory of the learners' backend, not the host's
    void *state;
};

dr_status dr_collective_alone_create(dr_collective **out_collective);

#ifdef __cplusplus
}
#endif
#endif
