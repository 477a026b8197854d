// What the CUDA runtime says about this machine, as plain data. Needs no driver, no device and no toolkit at
// run time: the runtime library is linked statically and its answers are tested one by one.
#ifndef DR_CUDA_DEVICE_PROBE_H
#define DR_CUDA_DEVICE_PROBE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// DR_LEAST_MAJOR: compute capability of the oldest devices of use, bf16 on the tensor cores.
enum { DR_PROBE_DEVICES = 16, DR_LEAST_MAJOR = 8 };

typedef struct dr_device_info {
    char name[128];
    int32_t major, minor; // compute capability; 0.0 of one that cannot be asked
    int32_t n_processors; // streaming multiprocessors
    int64_t total_bytes;
    int64_t bus_id; // domain << 16 | bus << 8 | device; -1 - number of a device that cannot be asked
} dr_device_info;

// "0000:3b:00.0", as nvidia-smi has it.
void dr_device_bus_name(int64_t bus_id, char out[20]);

typedef struct dr_device_probe {
    int32_t runtime_built;   // of the toolkit's headers; 13000 for 13.0
    int32_t runtime_version; // of the runtime that is linked
    int32_t driver_version;  // newest runtime the driver supports, 0 without a driver
    int32_t n_devices;       // may be more than DR_PROBE_DEVICES; only so many are described
    dr_device_info devices[DR_PROBE_DEVICES];
    char reason[256]; // why there is no device to use; "" when there is one
} dr_device_probe;

// Never fails: what cannot be had is 0 or "", and `reason` says why. Creates no context on any device.
dr_device_probe dr_device_probe_run(void);

// Libraries that are opened when they are needed: opened here and closed again, which takes a while.
typedef struct dr_library_probe {
    int32_t nccl_built, nccl_found; // dr_nccl_versions
    int32_t lt_built, lt_found;     // dr_cuda_lt_versions
} dr_library_probe;
dr_library_probe dr_library_probe_run(void);

#ifdef __cplusplus
}
#endif
#endif
