// The instructions of the bf16 attention kernels that C++ has no words for, one thin function each: PTX of
// compute capability 8.0 and newer. Fragments are those of mma.m16n8k16; lane 4 · i + j holds columns 2j and
// 2j + 1 of row i, and of row i + 8.
#ifndef DR_CUDA_TENSOR_CORE_CUH
#define DR_CUDA_TENSOR_CORE_CUH

#include <cuda_bf16.h>
#include <stdint.h>

// c [16, 8] += a [16, 16] b [16, 8], bf16 in, fp32 sums.
static __device__ __forceinline__ void dr_mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                              uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

static __device__ __forceinline__ uint32_t dr_shared_address(const void *shared) {
    return (uint32_t)__cvta_generic_to_shared(shared);
}

// Four matrices of 8 x 8 bf16: lane 8 · m + i names row i of matrix m, 16 bytes of shared memory.
static __device__ __forceinline__ void dr_ldmatrix(uint32_t (&to)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(dr_shared_address(row))
                 : "memory");
}

// The same, each matrix transposed.
static __device__ __forceinline__ void dr_ldmatrix_transposed(uint32_t (&to)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(dr_shared_address(row))
                 : "memory");
}

// 16 bytes, or 4, from device memory to shared memory behind the thread's back; zeros, and nothing is read,
// where the source is not there.
static __device__ __forceinline__ void dr_copy_async_16(void *shared, const void *from, bool is_there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(dr_shared_address(shared)),
                 "l"(from), "r"(is_there ? 16 : 0)
                 : "memory");
}

static __device__ __forceinline__ void dr_copy_async_4(void *shared, const void *from, bool is_there) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;\n" ::"r"(dr_shared_address(shared)), "l"(from),
                 "r"(is_there ? 4 : 0)
                 : "memory");
}

// Ends a group of copies; waits until all of this thread's groups but the PENDING newest are there.
static __device__ __forceinline__ void dr_copy_async_commit() {
    asm volatile("cp.async.commit_group;\n" ::: "memory");
}

template <int PENDING> static __device__ __forceinline__ void dr_copy_async_wait() {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(PENDING) : "memory");
}

#define DR_LOG2_E 1.44269504088896341f

// 2^x; 1 for 0 and 0 for -inf, exactly.
static __device__ __forceinline__ float dr_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
    return y;
}

// Two values, rounded to nearest even, in one register: `low` stands first in memory.
static __device__ __forceinline__ uint32_t dr_pack_bf16(float low, float high) {
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

// The same in all four lanes that hold a row.
static __device__ __forceinline__ float dr_row_max(float value) {
    value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 1));
    return fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 2));
}

static __device__ __forceinline__ float dr_row_sum(float value) {
    value += __shfl_xor_sync(0xffffffffu, value, 1);
    return value + __shfl_xor_sync(0xffffffffu, value, 2);
}

#endif
