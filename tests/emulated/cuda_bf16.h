// bfloat16 for the kernels on an emulated device.
#ifndef DR_TESTS_EMULATED_CUDA_BF16_H
#define DR_TESTS_EMULATED_CUDA_BF16_H

#include "tests/emulated/cuda_runtime.h"

struct __nv_bfloat16 {
    uint16_t bits;
};
struct __align__(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
};

static inline __nv_bfloat16 __float2bfloat16_rn(float value) { // to nearest, ties to even
    uint32_t bits = __float_as_uint(value);
    if (value != value) return {0x7FFF};
    return {(uint16_t)((bits + 0x7FFFu + (bits >> 16 & 1)) >> 16)};
}

static inline float __bfloat162float(__nv_bfloat16 value) {
    return __uint_as_float((uint32_t)value.bits << 16);
}

static inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
    return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)};
}

static inline uint16_t __bfloat16_as_ushort(__nv_bfloat16 value) {
    return value.bits;
}

static inline __nv_bfloat16 __ushort_as_bfloat16(uint16_t bits) {
    return {bits};
}

#endif
