// What the kernel files share: the check behind each launch, the size of a grid, and sums over a block in one
// fixed order.
#ifndef DR_CUDA_LAUNCH_CUH
#define DR_CUDA_LAUNCH_CUH

#include "cuda/kernels.h"
#include "cuda/language.cuh"

// Behind every launch; the text names op and sizes as printf does.
#define DR_CUDA_LAUNCHED(format, ...)                                                                        \
    do {                                                                                                     \
        cudaError_t dr_error_ = cudaGetLastError();                                                          \
        DR_CHECK(dr_error_ == cudaSuccess, DR_ERR_INTERNAL, "cuda " format ": %s", __VA_ARGS__,              \
                 cudaGetErrorString(dr_error_));                                                             \
    } while (0)

// Blocks of `size` that n items need, as the first dimension of a grid.
static inline dr_status dr_cuda_grid(const char *op, int64_t n, int64_t size, unsigned int *out_blocks) {
    int64_t blocks = dr_ceil_div(n, size);
    DR_CHECK(blocks <= INT32_MAX, DR_ERR_RANGE, "cuda %s: %lld blocks are more than a grid holds", op,
             (long long)blocks);
    *out_blocks = (unsigned int)blocks;
    return DR_OK;
}

// Lets a kernel have more shared memory than every kernel may have unasked.
template <typename KERNEL>
static dr_status dr_cuda_allow_shared(const char *op, KERNEL kernel, size_t bytes, int32_t d) {
    cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    if (error != cudaSuccess) {
        cudaGetLastError(); // clears it
        return DR_FAIL(
            DR_ERR_UNSUPPORTED,
            "cuda %s: heads of %d need %zu bytes of shared memory a block, which this device refuses: %s", op,
            d, bytes, cudaGetErrorString(error));
    }
    return DR_OK;
}

// Number of this thread in the whole grid.
static __device__ __forceinline__ int64_t dr_cuda_item() {
    return (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
}

// Sum and maximum over the 32 lanes of a warp, the same bits in every lane.
template <typename T> static __device__ __forceinline__ T dr_warp_sum(T value) {
    for (int width = 16; width > 0; width /= 2) value += __shfl_xor_sync(0xffffffffu, value, width);
    return value;
}

static __device__ __forceinline__ float dr_warp_max(float value) {
    for (int width = 16; width > 0; width /= 2)
        value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, width));
    return value;
}

// The same over a block of THREADS: warps first, then their sums in order. Every thread must call it.
template <int THREADS, typename T> static __device__ __forceinline__ T dr_block_sum(T value) {
    __shared__ T parts[THREADS / 32];
    value = dr_warp_sum(value);
    __syncthreads(); // parts may still be read from the last call
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
    __syncthreads();
    T sum = parts[0];
    for (int i = 1; i < THREADS / 32; i++) sum += parts[i];
    return sum;
}

template <int THREADS> static __device__ __forceinline__ float dr_block_max(float value) {
    __shared__ float parts[THREADS / 32];
    value = dr_warp_max(value);
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
    __syncthreads();
    float most = parts[0];
    for (int i = 1; i < THREADS / 32; i++) most = fmaxf(most, parts[i]);
    return most;
}

// Sum of the values of the threads before this one; *out_total: of all. Every thread must call it.
template <int THREADS, typename T>
static __device__ __forceinline__ T dr_block_before(T value, T *out_total) {
    __shared__ T parts[THREADS / 32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    T through = value;
    for (int width = 1; width < 32; width *= 2) {
        T other = __shfl_up_sync(0xffffffffu, through, width);
        if (lane >= width) through += other;
    }
    __syncthreads(); // parts may still be read from the last call
    if (lane == 31) parts[warp] = through;
    __syncthreads();
    T before = through - value, total = 0;
    for (int i = 0; i < THREADS / 32; i++) {
        if (i < warp) before += parts[i];
        total += parts[i];
    }
    *out_total = total;
    return before;
}

#endif
