// The kernels' language for a C++ compiler, on an emulated device: what CUDA adds to C++, as far as the
// kernels use it. Arithmetic whose rounding CUDA's names fix is plain here, in a build without contraction;
// the mathematical functions are the host's.
#ifndef DR_TESTS_EMULATED_CUDA_RUNTIME_H
#define DR_TESTS_EMULATED_CUDA_RUNTIME_H

#include "tests/emulated/cuda_runtime_api.h"

#ifdef __cplusplus // host code in C has the calls alone

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "tests/emulated/block.h"

#define __host__
#define __device__
#define __global__
#define __grid_constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
// One block runs at a time, so that a static array is its own. Those of one section are made unwritten for
// each block; with AddressSanitizer, which leaves such a section alone, their borders are watched instead.
#ifdef __SANITIZE_ADDRESS__
#define __shared__ static
#else
#define __shared__ static __attribute__((section("emulated_shared")))
#endif

#define threadIdx (emulated::thread)
#define blockIdx (emulated::block)
#define blockDim (emulated::block_size)
#define gridDim (emulated::grid_size)

// ---- vectors ----

struct __align__(8) float2 {
    float x, y;
};
struct __align__(16) float4 {
    float x, y, z, w;
};
struct __align__(16) uint4 {
    unsigned int x, y, z, w;
};

static inline float2 make_float2(float x, float y) {
    return {x, y};
}
static inline float4 make_float4(float x, float y, float z, float w) {
    return {x, y, z, w};
}
static inline uint4 make_uint4(unsigned int x, unsigned int y, unsigned int z, unsigned int w) {
    return {x, y, z, w};
}

// ---- what threads do together ----

enum : uint32_t { DR_EMULATED_WARP = 0xFFFFFFFFu };

static inline void __syncthreads() {
    emulated::barrier_wait(0, (int)(blockDim.x * blockDim.y * blockDim.z), false);
}

static inline int __syncthreads_or(int value) {
    return emulated::barrier_wait(0, (int)(blockDim.x * blockDim.y * blockDim.z), value != 0);
}

static inline void __syncwarp(uint32_t mask = DR_EMULATED_WARP) {
    emulated::exchange("__syncwarp", mask, NULL, 0);
}

template <typename T> static inline T emulated_lane(const emulated::exchanged *all, int lane) {
    T value;
    memcpy(&value, all[lane], sizeof value);
    return value;
}

// A lane that is not there gives what no kernel may use: its own bytes, 0xFF.
template <typename T> static inline T __shfl_sync(uint32_t mask, T value, int lane) {
    return emulated_lane<T>(emulated::exchange("__shfl_sync", mask, &value, sizeof value),
                            lane % emulated::WARP);
}

template <typename T> static inline T __shfl_xor_sync(uint32_t mask, T value, int with) {
    int lane = emulated::thread_number() % emulated::WARP;
    return emulated_lane<T>(emulated::exchange("__shfl_xor_sync", mask, &value, sizeof value), lane ^ with);
}

template <typename T> static inline T __shfl_up_sync(uint32_t mask, T value, int by) {
    int lane = emulated::thread_number() % emulated::WARP;
    const emulated::exchanged *all = emulated::exchange("__shfl_up_sync", mask, &value, sizeof value);
    return lane < by ? value : emulated_lane<T>(all, lane - by);
}

static inline uint32_t __ballot_sync(uint32_t mask, int value) {
    const emulated::exchanged *all = emulated::exchange("__ballot_sync", mask, &value, sizeof value);
    uint32_t votes = 0;
    for (int lane = 0; lane < emulated::WARP; lane++)
        if (mask >> lane & 1 && emulated_lane<int>(all, lane)) votes |= 1u << lane;
    return votes;
}

static inline int __reduce_max_sync(uint32_t mask, int value) {
    const emulated::exchanged *all = emulated::exchange("__reduce_max_sync", mask, &value, sizeof value);
    int most = value;
    for (int lane = 0; lane < emulated::WARP; lane++)
        if (mask >> lane & 1 && emulated_lane<int>(all, lane) > most) most = emulated_lane<int>(all, lane);
    return most;
}

template <typename T> static inline T atomicAdd(T *at, T value) {
    T before = *at;
    *at = before + value;
    return before;
}

[[noreturn]] static inline void __trap() {
    emulated::fault("__trap");
}

// ---- arithmetic ----

template <typename T> static inline T min(T a, T b) {
    return b < a ? b : a;
}
template <typename T> static inline T max(T a, T b) {
    return a < b ? b : a;
}

static inline float __fadd_rn(float a, float b) {
    return a + b;
}
static inline float __fsub_rn(float a, float b) {
    return a - b;
}
static inline float __fmul_rn(float a, float b) {
    return a * b;
}
static inline float __fdiv_rn(float a, float b) {
    return a / b;
}
static inline double __dadd_rn(double a, double b) {
    return a + b;
}
static inline double __dsub_rn(double a, double b) {
    return a - b;
}
static inline double __dmul_rn(double a, double b) {
    return a * b;
}
static inline double __ddiv_rn(double a, double b) {
    return a / b;
}
static inline double __dsqrt_rn(double a) {
    return sqrt(a);
}
static inline double __fma_rn(double a, double b, double c) {
    return fma(a, b, c);
}
static inline float __double2float_rn(double a) {
    return (float)a;
}

static inline uint32_t __float_as_uint(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}
static inline float __uint_as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
static inline int __popc(unsigned int bits) {
    return __builtin_popcount(bits);
}
static inline int __ffs(int bits) {
    return __builtin_ffs(bits);
}

#endif
#endif
