// Which body of the compute seam works for a policy, and which device. The only file of launch that makes a
// CUDA backend.
#ifndef DR_LAUNCH_BACKEND_CHOICE_H
#define DR_LAUNCH_BACKEND_CHOICE_H

#include <stdbool.h>

#include "core/base/config.h"
#include "core/comm/collective.h"
#include "core/comm/device_binding.h"
#include "core/compute/backend.h"

// Rows of the options "backend" and "model.backend", in this order.
#define DR_BACKEND_CHOICES "cpu|cuda|auto"
typedef enum dr_backend_kind { DR_BACKEND_CPU, DR_BACKEND_CUDA, DR_BACKEND_AUTO } dr_backend_kind;

// Rows of the options "kernels" and "model.kernels", in this order.
#define DR_KERNEL_CHOICES "fast|reference"
// Those of "model.precision"; the precision of a row.
#define DR_TRAIN_PRECISIONS "fp32|bf16|bf16-loose"
dr_precision dr_train_precision(int row);

typedef struct dr_backend_choice {
    dr_backend_kind kind; // auto: CUDA where this build has it and there is a device, else the CPU
    dr_precision precision;
    int threads;                      // of the CPU body; 0: all
    bool may_share;                   // several workers may use one device
    bool no_graphs;                   // the passes of the decode loop are launched op by op on a device
    const char *option;               // that `kind` was read from; NULL: nothing is said of the choice
    bool is_default;                  // and nobody gave it a value
    const char *fast_option;          // what makes products fast on a device, "--precision bf16"
    const dr_device_binding *binding; // of this worker among all; NULL: it works alone, on device 0
    bool reference;                   // the simple kernels on a device; the processor has no others
} dr_backend_choice;

// What the option of that name, its precision's and "threads" say, for a command that works alone.
dr_backend_choice dr_backend_choice_of(const dr_config *options, const char *precision_option);

// The devices that this process may take; none where the processor works. DR_ERR_UNSUPPORTED: CUDA was asked
// for and this build or this machine has none, in words.
dr_status dr_backend_see(const dr_backend_choice *choice, dr_seen_devices *out);

// Opens the backend and says in one line which one it is, on which device, and why. DR_ERR_UNSUPPORTED as
// above; DR_ERR_ARGUMENT: another worker has this device too, and they may not share.
dr_status dr_backend_choose(const dr_backend_choice *choice, dr_backend **out_backend);

// Another backend where `first` is, on its device and with its threads, in fp32: its ops do not wait for
// those of the first.
dr_status dr_backend_choose_beside(const dr_backend_choice *choice, const dr_backend *first,
                                   dr_backend **out_backend);

// Workers of this node that share the memory of that backend, this one among them.
int dr_backend_sharers(const dr_backend_choice *choice, const dr_backend *backend);

// Bytes that dr_backend_collective will take of the backend's memory; 0: `host` serves.
int64_t dr_backend_collective_memory(const dr_backend_choice *choice, const dr_collective *host);
// Bytes to leave free beside a plan: what CUDA and NCCL take for themselves after the backend was made; 0 on
// the processor.
int64_t dr_backend_reserve(const dr_backend_choice *choice, const dr_backend *backend,
                           const dr_collective *learners);

// The learners' collective on their devices, through NCCL; *out NULL: `host` (the MPI body, borrowed) serves,
// and one line says why where devices were asked for. Learners that share a device go through host memory,
// unless each of them has been told by NCCL_HOSTID that it is a machine of its own, as tests on one device
// do. Called by all learners together. Destroyed before `host` and the backend.
dr_status dr_backend_collective(const dr_backend_choice *choice, dr_backend *backend, dr_collective *host,
                                dr_collective **out);

#endif
