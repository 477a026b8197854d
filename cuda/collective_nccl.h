// The NCCL body of the collective seam: gradients are summed up and weights handed round in device memory.
// Run on emulated devices only: no machine with two devices has seen it yet.
#ifndef DR_CUDA_COLLECTIVE_NCCL_H
#define DR_CUDA_COLLECTIVE_NCCL_H

#include "core/comm/collective.h"
#include "core/compute/backend.h"

#ifdef __cplusplus
extern "C" {
#endif

// A collective over the group of `host` (the MPI body), one device a rank; rank, size and deadline_s are
// host's. Called by all ranks of the group together, also by those whose backend is not CUDA: whether all of
// them can is agreed on through host before any of them waits for another one. *out_collective is the
// caller's, written on success only. backend and host are borrowed and must outlive it.
//   reduce_scatter_sum, all_gather: values and bytes are memory of `backend`, DEVICE memory, where the alone
//   and MPI bodies take host memory. They go behind what is on the backend's stream and return when the
//   result is there. Rank order and single fp32 additions: the bits of the MPI body, but for the payload of a
//   NaN. The deadline is that of each wait: the work that was on the stream before it and the wait for ranks
//   that come later included; it moves on while another rank says that it works. After a failure `values` are
//   lost and the communicator is given up: every later call of these is DR_ERR_PEER. reduce_scatter_begin:
//   final is what the work on the backend's stream so far makes so. Chunks of it go on a stream of their own,
//   behind that work and beside what follows; 256 / (size + 5) of them are under way at most, and each begin
//   queues as many more as have ended. From begin to sum, and within a sum, memory of all CUDA backends of
//   the process that is given back (memory_destroy, scratch that grows) stays taken until the sum has ended
//   or was given up: giving it back would wait for the other ranks, without a deadline. A kernel that is
//   loaded at its first use meanwhile may wait so. all_gather_host, allreduce_sum_double and broadcast:
//   host's, on host memory.
// Takes size · chunk floats of backend memory once, for begun sums and others; a chunk is 4 Mi values, less
// from 17 ranks on: 256 MiB at most, and 2 KiB for what ranks tell each other. The library, libnccl.so.2, is
// looked for here and not when the program starts; it stays loaded. Errors of create: DR_ERR_UNSUPPORTED, in
// words and on every rank, when the backend of a rank is not CUDA, a rank cannot load the library or this
// build has no nccl.h (the caller may go on with host alone); DR_ERR_PEER, another rank could not prepare;
// DR_ERR_MEMORY; and those of the three. Errors of the three, each naming rank, operation and count:
// DR_ERR_TIMEOUT, deadline_s passed; DR_ERR_PEER, a rank is gone; DR_ERR_IO, a system call of NCCL's failed;
// DR_ERR_ARGUMENT, NCCL calls it invalid usage, at creation above all two ranks on one device;
// DR_ERR_INTERNAL, other errors of NCCL and CUDA. destroy, before host's and the backend's, waits up to 10 s
// for the other ranks, then aborts.
dr_status dr_collective_nccl_create(dr_backend *backend, dr_collective *host, dr_collective **out_collective);

// Bytes of backend memory that one of `size` ranks takes, before any is made; NCCL's own are beside.
int64_t dr_collective_nccl_memory(int size);

#ifdef __cplusplus
}
#endif
#endif
