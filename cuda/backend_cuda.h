// The CUDA body of core/compute/backend.h: the same table of operations on one NVIDIA device. Needs no driver
// and no device to be linked or to start: what is missing is reported by dr_backend_cuda_create.
#ifndef DR_CUDA_BACKEND_CUDA_H
#define DR_CUDA_BACKEND_CUDA_H

#include "core/compute/backend.h"

#ifdef __cplusplus
extern "C" {
#endif

// A backend on device `device` (0 … number of devices - 1), owned by the caller; *out_backend is written on
// success only. Its ops run one after another on one stream of its own and, but for copy_out, sample,
// burst_end and sums_of_squares, return before the device is done.
//   A transfer's host memory is pinned, and its copies are part of the same order; copy_in from memory that
//   is not may wait for the ops before it. Ops of two backends run beside each other, also on one device.
//   Backend memory is what memory_create gives: device memory. Every pointer of the table is to it, ids,
//   positions and targets too, except dr_sequences, dr_kept (the sets and their ids), dr_attention_chunk (the
//   chunks and their pages), all of a draw but its logits, all of dr_burst but the stop table's arrays, and
//   the structs of the retrieval model's ops,
//   which are host memory, read before the op returns. weight_pack borrows `values` as backend.h says; in
//   bf16 they may be given to memory_destroy or overwritten by copy_in at once: both come after the rounding.
//   copy_in: from_host may be changed on return, but is not to be pinned memory. memory_destroy and
//   weight_destroy wait for the ops that are under way, transfer_destroy for its copies, 10 s at most: then a
//   warning says so, and no backend of the process waits for a device or gives memory back any more, so that
//   a run whose retrieval passed its deadline can end.
// DR_BF16 multiplies by weights whose sizes are multiples of 8 through cuBLASLt where that can be loaded, by
// others with the own kernels; both are row-exact, their bits differ.
// Errors of create: DR_ERR_ARGUMENT, no such device or none at all, in words; DR_ERR_UNSUPPORTED, a device
// below compute capability 8.0, or a loose precision where cuBLASLt cannot be loaded; DR_ERR_MEMORY,
// DR_ERR_INTERNAL.
// Errors of ops: DR_ERR_MEMORY for a scratch buffer, DR_ERR_INTERNAL for what CUDA reports, DR_ERR_RANGE and
// DR_ERR_UNSUPPORTED as in the CPU body. An op that returns no status keeps its failure, and every later op
// that returns one returns it; copy_out then fills its target with NaNs, and so does sums_of_squares. A fault
// inside a kernel is reported by a later op, not by the one that caused it.
dr_status dr_backend_cuda_create(dr_precision precision, int device, dr_backend **out_backend);

// Backends made while it is set run the decode loop's passes as CUDA graphs (passes.c). Off at first. Where
// the device does not take a recording, a warning says so and passes are launched op by op from then on.
void dr_cuda_record_passes(bool record);
int64_t dr_cuda_recordings_made(const dr_backend *backend); // graphs since it was made, for tests

// Tests only: bf16 backends made from now on multiply with the own kernels (true), or again through the
// library where there is one.
void dr_cuda_own_products_only(bool own);

// Backends made while it is set take the simple way of everything that has a fast one: own products, and
// attention.cu's attention in bf16 too, whose rows are as exact as the fast ones' (other bits). To find which
// of them a wrong result comes from. They are of an exact precision: create refuses the loose ones.
void dr_cuda_reference_kernels(bool reference);

// Where backends of DR_BF16 attend over packed sequences with wgmma, on a device of compute capability 9.0.
// In the gradient, which no cache has to agree with; in the forward pass it adds in another order than
// attention over the cache, so that only backends of DR_BF16_LOOSE have it there, too. Tests and benchmarks
// ask for the other two.
typedef enum dr_cuda_wgmma { DR_WGMMA_GRADIENT, DR_WGMMA_NOWHERE, DR_WGMMA_BOTH } dr_cuda_wgmma;
void dr_cuda_wgmma_in_bf16(dr_cuda_wgmma use); // of backends made from now on; at first in the gradient

// Waits for what is under way, then frees the backend. Memory and weights must have been destroyed before.
// NULL is fine.
void dr_backend_cuda_destroy(dr_backend *backend);

#ifdef __cplusplus
}
#endif
#endif
