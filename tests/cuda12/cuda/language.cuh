// cuda/language.cuh for NVRTC, which has no host: launchers are device functions that nobody calls, whose
// launches make a kernel be compiled and hold its arguments against its parameters, and no more.
#ifndef DR_CUDA_LANGUAGE_CUH
#define DR_CUDA_LANGUAGE_CUH

#include <cuda_runtime.h>

#include "core/base/status.h"

template <typename... PARAMETERS> struct dr_launch {
    __device__ void operator()(PARAMETERS...) const {}
};

template <typename... PARAMETERS>
static __device__ dr_launch<PARAMETERS...> dr_launch_of(void (*)(PARAMETERS...), dim3, dim3, size_t,
                                                        cudaStream_t) {
    return dr_launch<PARAMETERS...>();
}

#define DR_CUDA_LAUNCH(kernel, ...) dr_launch_of(kernel, __VA_ARGS__)
#define DR_CUDA_SHARED(type, name) extern __shared__ __align__(128) type name[]

// Functions with a variable number of arguments are the host's.
#undef DR_FAIL
#define DR_FAIL(status, ...) (status)

// What launchers ask the runtime.
static __device__ cudaError_t dr_last_cuda_error() {
    return cudaSuccess;
}

template <typename KERNEL> static __device__ cudaError_t dr_set_attribute(KERNEL, cudaFuncAttribute, int) {
    return cudaSuccess;
}

static __device__ cudaError_t dr_entry_point(const char *, void **, unsigned long long,
                                             cudaDriverEntryPointQueryResult *) {
    return cudaSuccess;
}

#define cudaGetLastError dr_last_cuda_error
#define cudaGetErrorString(error) ""
#define cudaFuncSetAttribute dr_set_attribute
#define cudaGetDriverEntryPoint dr_entry_point
#define cudaGetDriverEntryPointByVersion(symbol, found, version, ...)                                        \
    dr_entry_point(symbol, found, __VA_ARGS__)

#endif
