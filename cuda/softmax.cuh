// What the kernels over a row of logits share (head.cu, sample.cu). p is a probability in units of the row's
// largest one; masses are sums of p rounded to multiples of 2^-32, exact in a double up to 2^21 ids, so that
// the order of adding, that of shared memory's atomics too, changes no bit (core/compute/softmax_cpu.c).
#ifndef DR_CUDA_SOFTMAX_CUH
#define DR_CUDA_SOFTMAX_CUH

#include "cuda/draw_index.h"
#include "cuda/launch.cuh"

// Of a row's block: a chain of sums each, in the order that draws have too.
enum { DR_SOFTMAX_THREADS = DR_DRAW_CHAINS };

static __device__ __forceinline__ double dr_mass_of(float p) {
    return __dsub_rn(__dadd_rn((double)p, 0x1.8p20), 0x1.8p20); // whose last bit is 2^-32
}

// log p; clear of -inf, so that p log p is 0 where p is.
static __device__ __forceinline__ float dr_exponent_of(float z, float top, float inv_temperature) {
    float x = __fmul_rn(z - top, inv_temperature);
    return x < -88.0f ? -88.0f : x;
}

static __device__ __forceinline__ float dr_lse_of(float top, float inv_temperature, float total) {
    return fmaf(top, inv_temperature, logf(total));
}

// The arithmetic of dr_logprob_of, operation by operation.
static __device__ __forceinline__ float dr_device_logprob(float z, float inv_temperature, float lse) {
    float value = fmaf(z, inv_temperature, -lse);
    return value > 0.0f ? 0.0f : value;
}

typedef struct dr_row_stats {
    float top, total, lse, entropy; // total in units of the top's
} dr_row_stats;

// The same in every thread of the block.
static __device__ __forceinline__ dr_row_stats dr_row_softmax(const float *z, int64_t V,
                                                              float inv_temperature) {
    float top = -INFINITY, total = 0.0f, weighted = 0.0f;
    for (int64_t j = threadIdx.x; j < V; j += DR_SOFTMAX_THREADS) top = fmaxf(top, z[j]);
    top = dr_block_max<DR_SOFTMAX_THREADS>(top);
    for (int64_t j = threadIdx.x; j < V; j += DR_SOFTMAX_THREADS) {
        float x = dr_exponent_of(z[j], top, inv_temperature), p = expf(x);
        total = __fadd_rn(total, p); // not into what expf ends with: sample.cu adds p in the same order
        weighted = fmaf(p, x, weighted);
    }
    total = dr_block_sum<DR_SOFTMAX_THREADS>(total);
    weighted = dr_block_sum<DR_SOFTMAX_THREADS>(weighted);
    dr_row_stats stats;
    stats.top = top;
    stats.total = total;
    stats.lse = dr_lse_of(top, inv_temperature, total);
    stats.entropy = logf(total) - weighted / total;
    return stats;
}

#endif
