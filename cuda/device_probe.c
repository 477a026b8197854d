// cudaGetDeviceCount leaves the count unset when it fails, so its return code decides, never the count alone.
#include "cuda/device_probe.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include <cuda_runtime_api.h>

// NCCL is optional at run time: asked by name, closed again.
static int32_t nccl_version(void) {
    static const char *const names[] = {"libnccl.so.2", "libnccl.so", "/usr/local/cuda/lib64/libnccl.so.2"};
    int version = 0;
    for (int i = 0; i < 3 && version == 0; i++) {
        void *library = dlopen(names[i], RTLD_LAZY | RTLD_LOCAL);
        if (!library) continue;
        int (*get_version)(int *) = NULL;
        void *symbol = dlsym(library, "ncclGetVersion");
        memcpy(&get_version, &symbol, sizeof symbol);
        if (!get_version || get_version(&version) != 0) version = 0;
        dlclose(library);
    }
    return version;
}

static void describe(int index, dr_device_info *out) {
    struct cudaDeviceProp properties;
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
}

dr_device_probe dr_device_probe_run(void) {
    dr_device_probe probe = {0};
    int value = 0;
    if (cudaRuntimeGetVersion(&value) == cudaSuccess) probe.runtime_version = value;
    value = 0;
    if (cudaDriverGetVersion(&value) == cudaSuccess) probe.driver_version = value;
    probe.nccl_version = nccl_version();
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
