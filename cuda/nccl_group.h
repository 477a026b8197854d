// Shared by the parts of the NCCL body of the collective: the group, waits with a deadline (nccl_wait.c) and
// the sum (nccl_sum.c). Without NCCL's header it declares nothing.
#ifndef DR_CUDA_NCCL_GROUP_H
#define DR_CUDA_NCCL_GROUP_H

#include "cuda/nccl_library.h"

#ifdef DR_HAVE_NCCL

#include <stdbool.h>
#include <stdint.h>

#include <cuda_runtime_api.h>

#include "core/comm/collective.h"
#include "core/compute/backend.h"

// Behind `made` on the backend's stream values from `from` on are final.
typedef struct dr_nccl_mark {
    cudaEvent_t made;
    int64_t from;
} dr_nccl_mark;

// One exchange that is on the stream of sums.
typedef struct dr_nccl_exchange {
    cudaEvent_t done;
    bool is_made; // when it was queued all values of this rank were there
} dr_nccl_exchange;

// The sum that is under way, and what all of them use. Exchanges are counted from 0 within a sum; `window` of
// them are under way at most, number i at i % window.
typedef struct dr_nccl_sum {
    float *gathered; // backend memory [size, chunk]: the own part of an exchange, as each rank has it
    float *words;    // backend memory [2 + window · size]: 0, 1, then what each rank said in an exchange
    float *said;     // [window, size] the latter in pinned memory
    dr_shard *parts; // [size] what goes to each rank in one exchange
    dr_nccl_exchange *exchanges; // [window]
    int window;
    dr_nccl_mark *marks; // [n_marks] of capacity, whose events stay
    int64_t n_marks, n_followed, capacity;

    float *values;
    int64_t n, final;          // n 0: none is under way; values from `final` on are final on this rank
    int64_t begin;             // values from here on are queued, owner by owner
    int64_t n_pieces;          // of each shard before `begin`, queued for all owners at once
    int64_t n_queued, n_ended; // exchanges
    int64_t together;          // the first one for all owners at once; INT64_MAX: not known yet
    bool is_made;              // all values of this rank are there
} dr_nccl_sum;

typedef struct dr_nccl_group {
    dr_collective base; // base.state is this group
    dr_backend *backend;
    dr_collective *host;
    dr_nccl_library nccl;
    ncclUniqueId id;     // of rank 0, until it was broadcast
    ncclComm_t comm;     // NULL: not connected yet, or given up
    cudaStream_t stream; // of sums, beside the backend's
    cudaEvent_t done;    // on the stream that is waited for
    dr_nccl_sum sum;
} dr_nccl_group;

// ---- waits and errors ----

// One operation under way, for its deadline and its errors.
typedef struct dr_nccl_call {
    char what[64];    // "sum of 12 values"
    const char *hint; // behind the text of an invalid usage; "" for none
    double end;       // of the wait under way, in dr_clock_seconds
} dr_nccl_call;

dr_nccl_call dr_nccl_call_begin(const dr_nccl_group *g, const char *what, int64_t n, const char *unit);

// What becomes of a call that returned `result`; ncclInProgress when it is still under way at `end`.
ncclResult_t dr_nccl_settle(const dr_nccl_group *g, ncclResult_t result, double end);
// The error of a call that ended with `result`, ncclInProgress: did not end. The library's last words say
// more than the text of the code.
dr_status dr_nccl_judge(const dr_nccl_group *g, const dr_nccl_call *k, ncclResult_t result);

// Whether the work before an event that was recorded is done; does not wait.
dr_status dr_nccl_is_done(const dr_nccl_group *g, cudaEvent_t event, const dr_nccl_call *k, bool *out_done);
// Until it is, or the deadline or an error of NCCL has come. The deadline moves on while another rank says
// that it works on its part; the next wait of the call has its own.
dr_status dr_nccl_wait_for_event(const dr_nccl_group *g, cudaEvent_t event, dr_nccl_call *k);
// Until a stream of the device has done all that is on it so far. Also returns what ops of the backend had no
// status for.
dr_status dr_nccl_wait_for_stream(const dr_nccl_group *g, cudaStream_t stream, dr_nccl_call *k);

// Ends what NCCL has on the streams, and the sum that is under way. The communicator is gone whatever abort
// returns.
void dr_nccl_give_up(dr_nccl_group *g);
dr_status dr_nccl_check_connected(const dr_nccl_group *g, const char *what, int64_t n, const char *unit);

// ---- the sum ----

// Memory and events, before there is a communicator; dr_nccl_sum_close may follow whatever it returned.
dr_status dr_nccl_sum_open(dr_nccl_group *g);
void dr_nccl_sum_close(dr_nccl_group *g);
// One value from each rank to each, and one addition: connections are made at the first exchange and the
// kernel of the addition is loaded at its first use, both of which would keep the beginning of a sum waiting
// for other ranks.
dr_status dr_nccl_greet(dr_nccl_group *g, dr_nccl_call *k);

// Those of dr_collective_ops.
dr_status dr_nccl_reduce_scatter_begin(dr_collective *c, float *values, int64_t n, int64_t from);
dr_status dr_nccl_reduce_scatter_sum(dr_collective *c, float *values, int64_t n);
void dr_nccl_sum_end(dr_nccl_group *g); // it is under way no more, whatever became of it

#endif
#endif
