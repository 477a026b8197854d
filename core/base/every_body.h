// What is computed by the same code on the host and, by other bodies of the compute seam, on a device.
#ifndef DR_CORE_BASE_EVERY_BODY_H
#define DR_CORE_BASE_EVERY_BODY_H

#ifdef __CUDACC__
#define DR_EVERY_BODY static __host__ __device__ __forceinline__
#else
#define DR_EVERY_BODY static inline
#endif

#endif
