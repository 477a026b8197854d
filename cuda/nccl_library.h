// NCCL's functions, found in the library when a communicator is made and not when the program starts. Without
// nccl.h, of 2.14 or later, this header declares no more than versions, and DR_HAVE_NCCL is not defined.
#ifndef DR_CUDA_NCCL_LIBRARY_H
#define DR_CUDA_NCCL_LIBRARY_H

#include <stdint.h>

#include "core/base/status.h"

// 22809 for 2.28.9. built: of the header that this build uses, 0: it has none; found: of the library, 0:
// there is none.
void dr_nccl_versions(int32_t *out_built, int32_t *out_found);

#if defined(__has_include) && !defined(DR_WITHOUT_NCCL)
#if __has_include(<nccl.h>)
#include <nccl.h>
#if NCCL_VERSION_CODE >= NCCL_VERSION(2, 14, 0) // communicators that do not block
#define DR_HAVE_NCCL 1
#endif
#endif
#endif

#ifdef DR_HAVE_NCCL

// What is called of the library; only the types come from the header.
typedef struct dr_nccl_library {
    __typeof__(&ncclGetUniqueId) get_unique_id;
    __typeof__(&ncclCommInitRankConfig) comm_init;
    __typeof__(&ncclCommFinalize) comm_finalize;
    __typeof__(&ncclCommDestroy) comm_destroy;
    __typeof__(&ncclCommAbort) comm_abort;
    __typeof__(&ncclCommGetAsyncError) comm_state;
    __typeof__(&ncclGetErrorString) error_string;
    __typeof__(&ncclGetLastError) last_error;
    __typeof__(&ncclGroupStart) group_start;
    __typeof__(&ncclGroupEnd) group_end;
    __typeof__(&ncclSend) send;
    __typeof__(&ncclRecv) receive;
    __typeof__(&ncclBroadcast) broadcast;
} dr_nccl_library;

// The library stays open: its threads may outlive a communicator. DR_ERR_UNSUPPORTED, in words, where it or a
// function of it is not found.
dr_status dr_nccl_load(dr_nccl_library *out);

#endif
#endif
