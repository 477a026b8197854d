// What of the kernels' language only nvcc reads, as macros: with other ones for them, the kernels are C++.
#ifndef DR_CUDA_LANGUAGE_CUH
#define DR_CUDA_LANGUAGE_CUH

#include <cuda_runtime.h>

// DR_CUDA_LAUNCH(kernel, blocks, threads, bytes of dynamic shared memory, stream)(arguments).
#define DR_CUDA_LAUNCH(kernel, ...) kernel<<<__VA_ARGS__>>>

// The block's dynamic shared memory as an array.
#define DR_CUDA_SHARED(type, name) extern __shared__ __align__(128) type name[]

#endif
