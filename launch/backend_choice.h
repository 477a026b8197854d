// Which body of the compute seam works for a policy, and which device. The only file of launch that makes a
// CUDA backend.
#ifndef DR_LAUNCH_BACKEND_CHOICE_H
#define DR_LAUNCH_BACKEND_CHOICE_H

#include <stdbool.h>

#include "core/comm/collective.h"
#include "core/compute/backend.h"

// Rows of the options "backend" and "model.backend", in this order.
#define DR_BACKEND_CHOICES "cpu|cuda|auto"
typedef enum dr_backend_kind { DR_BACKEND_CPU, DR_BACKEND_CUDA, DR_BACKEND_AUTO } dr_backend_kind;

typedef struct dr_backend_choice {
    dr_backend_kind kind; // auto: CUDA where this build has it and there is a device, else the CPU
    dr_precision precision;
    int threads;    // of the CPU body; 0: all
    int worker;     // of this process among the workers of its node, from 0: the number of its device
    int n_workers;  // on this node, at least 1
    bool may_share; // several workers may use one device
    bool no_graphs; // the passes of the decode loop are launched op by op on a device
} dr_backend_choice;

// Opens the backend and says in one line which one it is and why. DR_ERR_UNSUPPORTED: CUDA was asked for and
// this build or this machine has none, in words; DR_ERR_ARGUMENT: more workers than devices, and they may not
// share.
dr_status dr_backend_choose(const dr_backend_choice *choice, dr_backend **out_backend);

// Another backend where `first` is, on its device and with its threads, in fp32: its ops do not wait for
// those of the first.
dr_status dr_backend_choose_beside(const dr_backend_choice *choice, const dr_backend *first,
                                   dr_backend **out_backend);

// Workers of this node that share the memory of that backend, this one among them.
int dr_backend_sharers(const dr_backend_choice *choice, const dr_backend *backend);

// The learners' collective on their devices, through NCCL; *out NULL: `host` (the MPI body, borrowed) serves,
// and one line says why where devices were asked for. Called by all learners together. Destroyed before
// `host` and the backend.
dr_status dr_backend_collective(const dr_backend_choice *choice, dr_backend *backend, dr_collective *host,
                                dr_collective **out);

#endif
