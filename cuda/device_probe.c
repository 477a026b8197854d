// cudaGetDeviceCount leaves the count unset when it fails, so its return code decides, never the count alone.
#include "cuda/device_probe.h"

#include <stdio.h>

#include <cuda_runtime_api.h>

#include "cuda/cuda_internal.h"
#include "cuda/nccl_library.h"

void dr_device_bus_name(int64_t bus_id, char out[20]) {
    snprintf(out, 20, "%04x:%02x:%02x.0", (unsigned)(bus_id >> 16), (unsigned)(bus_id >> 8 & 0xFF),
             (unsigned)(bus_id & 0xFF));
}

static void describe(int index, dr_device_info *out) {
    struct cudaDeviceProp properties;
    out->bus_id = -1 - index;
    if (cudaGetDeviceProperties(&properties, index) != cudaSuccess) {
        snprintf(out->name, sizeof out->name, "device %d cannot be asked: %s", index,
                 cudaGetErrorString(cudaGetLastError()));
        return;
    }
    snprintf(out->name, sizeof out->name, "%.127s", properties.name);
    out->major = properties.major;
    out->minor = properties.minor;
    out->n_processors = properties.multiProcessorCount;
    out->total_bytes = (int64_t)properties.totalGlobalMem;
    out->bus_id = (int64_t)properties.pciDomainID << 16 | (int64_t)properties.pciBusID << 8 |
                  (int64_t)properties.pciDeviceID;
}

dr_device_probe dr_device_probe_run(void) {
    dr_device_probe probe = {0};
    int value = 0;
    if (cudaRuntimeGetVersion(&value) == cudaSuccess) probe.runtime_version = value;
    value = 0;
    if (cudaDriverGetVersion(&value) == cudaSuccess) probe.driver_version = value;
    probe.runtime_built = CUDART_VERSION;
    int count = 0;
    cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess) {
        cudaGetLastError(); // clears it
        if (probe.driver_version == 0)
            snprintf(probe.reason, sizeof probe.reason, "no NVIDIA driver on this machine");
        else
            snprintf(probe.reason, sizeof probe.reason, "%.250s", cudaGetErrorString(error));
        return probe;
    }
    probe.n_devices = count;
    if (count == 0) snprintf(probe.reason, sizeof probe.reason, "the driver reports no device");
    for (int i = 0; i < count && i < DR_PROBE_DEVICES; i++) describe(i, &probe.devices[i]);
    return probe;
}

dr_library_probe dr_library_probe_run(void) {
    dr_library_probe probe;
    dr_nccl_versions(&probe.nccl_built, &probe.nccl_found);
    dr_cuda_lt_versions(&probe.lt_built, &probe.lt_found);
    return probe;
}
