// The instructions of compute capability 9.0 (sm_90a) that the attention kernels need and C++ has no words for,
// one thin function each: wgmma, tensor copies, barriers in shared memory, named barriers. A warpgroup is four
// warps; wgmma works behind its back on registers and shared memory until it is waited for.
#ifndef DR_CUDA_WGMMA_CUH
#define DR_CUDA_WGMMA_CUH

#include <cuda.h>

#include "cuda/tensor_core.cuh"
#include "cuda/wgmma_index.h"

// ---- products ----

#define DR_SUMS_4(c, i) "+f"(c[(i)]), "+f"(c[(i) + 1]), "+f"(c[(i) + 2]), "+f"(c[(i) + 3])
#define DR_SUMS_16(c, i) DR_SUMS_4(c, i), DR_SUMS_4(c, (i) + 4), DR_SUMS_4(c, (i) + 8), DR_SUMS_4(c, (i) + 12)

// What this thread wrote to registers, and where it stands in shared memory's order, comes before the products
// that follow.
static __device__ __forceinline__ void dr_wgmma_begin() {
    asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
}

static __device__ __forceinline__ void dr_wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}

// Values that a product works on stay where they are up to here, and are read from here on.
template <int N> static __device__ __forceinline__ void dr_wgmma_keep(float (&values)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(values[i])::"memory");
}

template <int N> static __device__ __forceinline__ void dr_wgmma_keep(uint32_t (&values)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+r"(values[i])::"memory");
}

// Until all groups but the PENDING newest are done.
template <int PENDING> static __device__ __forceinline__ void dr_wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(PENDING) : "memory");
}

// c [64, n] (+)= a [64, 16] times b [n, 16], transposed; both in shared memory, products along their columns.
// Without add c is written only.
static __device__ __forceinline__ void dr_wgmma(float (&c)[32], uint64_t a, uint64_t b, bool add) {
    asm volatile(
        "{\n.reg .pred add;\nsetp.ne.b32 add, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
        "%32, %33, add, 1, 1, 0, 0;\n}\n"
        : DR_SUMS_16(c, 0), DR_SUMS_16(c, 16)
        : "l"(a), "l"(b), "r"((int)add));
}

static __device__ __forceinline__ void dr_wgmma(float (&c)[64], uint64_t a, uint64_t b, bool add) {
    asm volatile(
        "{\n.reg .pred add;\nsetp.ne.b32 add, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
        "%64, %65, add, 1, 1, 0, 0;\n}\n"
        : DR_SUMS_16(c, 0), DR_SUMS_16(c, 16), DR_SUMS_16(c, 32), DR_SUMS_16(c, 48)
        : "l"(a), "l"(b), "r"((int)add));
}

// c [64, n] += a [64, 16], four registers, times b [16, n] in shared memory, products along its rows.
static __device__ __forceinline__ void dr_wgmma_weigh(float (&c)[32], const uint32_t *a, uint64_t b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
        "{%32, %33, %34, %35}, %36, 1, 1, 1, 1;\n"
        : DR_SUMS_16(c, 0), DR_SUMS_16(c, 16)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

static __device__ __forceinline__ void dr_wgmma_weigh(float (&c)[64], const uint32_t *a, uint64_t b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
        "{%64, %65, %66, %67}, %68, 1, 1, 1, 1;\n"
        : DR_SUMS_16(c, 0), DR_SUMS_16(c, 16), DR_SUMS_16(c, 32), DR_SUMS_16(c, 48)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

// ---- barriers in shared memory ----

static __device__ __forceinline__ void dr_barrier_init(uint32_t barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Barriers that were set up are seen by tensor copies too.
static __device__ __forceinline__ void dr_barrier_publish() {
    asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
}

static __device__ __forceinline__ void dr_barrier_arrive(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(barrier) : "memory");
}

// Arrives, and has the barrier wait for this many bytes of tensor copies as well.
static __device__ __forceinline__ void dr_barrier_expect(uint32_t barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(barrier), "r"(bytes)
                 : "memory");
}

// Arrives when this thread's asynchronous copies so far are there.
static __device__ __forceinline__ void dr_barrier_arrive_copied(uint32_t barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];\n" ::"r"(barrier) : "memory");
}

// Whether the phase of this parity is over, now or within a time that the device sets.
static __device__ __forceinline__ bool dr_barrier_is_over(uint32_t barrier, uint32_t parity) {
    uint32_t is_over;
    asm volatile("{\n.reg .pred over;\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 over, [%1], %2;\n"
                 "selp.u32 %0, 1, 0, over;\n}\n"
                 : "=r"(is_over)
                 : "r"(barrier), "r"(parity)
                 : "memory");
    return is_over != 0;
}

// The last 32 bits of the device's clock in nanoseconds, for differences of up to 4 s: with all 64 the kernels
// spill.
static __device__ __forceinline__ uint32_t dr_device_nanoseconds() {
    uint32_t now;
    asm volatile("mov.u32 %0, %%globaltimer_lo;\n" : "=r"(now));
    return now;
}

// Until the phase of this parity is over; a barrier that was just set up is behind its phase of parity 1. A
// wait of more than 60 s is a fault of the kernel: it then ends as one, and a later op reports it. By the
// clock, as how long a try takes is the device's choice, but in periods with a try in each: while a debugger or
// another process has the device the clock runs on, and such a gap counts as one period however long it is.
static __device__ __forceinline__ void dr_barrier_wait(uint32_t barrier, uint32_t parity) {
    const uint32_t period = 100000000u, most = 600;
    if (dr_barrier_is_over(barrier, parity)) return;
    uint32_t begun = dr_device_nanoseconds(), n = 0;
#pragma unroll 1
    while (n < most) {
        if (dr_barrier_is_over(barrier, parity)) return;
        if (dr_device_nanoseconds() - begun < period) continue;
        begun = dr_device_nanoseconds();
        n++;
    }
    __trap();
}

// The same by all threads of a warp, which go on together: what multiplies wants them so.
static __device__ __forceinline__ void dr_barrier_wait_warp(uint32_t barrier, uint32_t parity) {
    dr_barrier_wait(barrier, parity);
    __syncwarp();
}

// ---- named barriers of some of a block's threads: 0 is __syncthreads' ----

static __device__ __forceinline__ void dr_named_wait(int barrier, int threads) {
    asm volatile("bar.sync %0, %1;\n" ::"r"(barrier), "r"(threads) : "memory");
}

static __device__ __forceinline__ void dr_named_arrive(int barrier, int threads) {
    asm volatile("bar.arrive %0, %1;\n" ::"r"(barrier), "r"(threads) : "memory");
}

// ---- copies, registers ----

// A box of a tensor [rows, heads, columns] from (row, head, column) on; zeros behind the tensor's end.
static __device__ __forceinline__ void dr_tensor_copy(uint32_t to, const CUtensorMap *map, uint32_t barrier,
                                                      int32_t column, int32_t head, int32_t row) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4, %5}], [%2];\n" ::"r"(to),
                 "l"((uint64_t)map), "r"(barrier), "r"(column), "r"(head), "r"(row)
                 : "memory");
}

// What this thread wrote to shared memory is seen by products and tensor copies behind the next barrier.
static __device__ __forceinline__ void dr_publish_shared() {
    asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}

// The warpgroup's registers a thread: fewer for the one that copies, more for those that multiply.
template <int N> static __device__ __forceinline__ void dr_registers_fewer() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(N));
}

template <int N> static __device__ __forceinline__ void dr_registers_more() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(N));
}

#endif
