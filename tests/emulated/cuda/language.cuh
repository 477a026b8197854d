// cuda/language.cuh for an emulated device.
#ifndef DR_CUDA_LANGUAGE_CUH
#define DR_CUDA_LANGUAGE_CUH

#include <cuda_runtime.h>

#include "tests/emulated/runtime.h"

#define DR_CUDA_LAUNCH(kernel, ...) emulated::launcher(#kernel, kernel, __VA_ARGS__)

#define DR_CUDA_SHARED(type, name)                                                                           \
    static type(&name)[emulated::SHARED_BYTES / sizeof(type)] =                                              \
        reinterpret_cast<type(&)[emulated::SHARED_BYTES / sizeof(type)]>(emulated::shared)

#endif
