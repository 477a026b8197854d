// The backend that is measured, and what measuring on one whose ops return early needs.
#ifndef DR_BENCH_DEVICE_H
#define DR_BENCH_DEVICE_H

#include <stdbool.h>

#include "core/compute/backend.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct bench_device {
    char name[128];    // of the device; "" for the processor
    double peak_flops; // dense bf16 products by the maker's data sheet (NVIDIA H100 SXM, H200: 989 TFLOP/s);
                       // 0: not known here
} bench_device;

// kind "cpu", or "cuda": device 0; "cuda-graphs": there with recorded passes; "cuda-wgmma": there with packed
// attention by wgmma in bf16, forward too; "cuda-reference": there with the simple kernels.
// DR_ERR_UNSUPPORTED, saying why, when this build or machine has no device.
bool bench_is_kind(const char *kind);
dr_status bench_backend_open(const char *kind, dr_precision precision, int n_threads,
                             dr_backend **out_backend, bench_device *out_device);
// The host can use the backend's memory: the processor is measured.
bool bench_is_cpu(const dr_backend *backend);

// Returns when everything queued is done. memory: four bytes of any backend memory or more. Fails when an op
// did.
dr_status bench_wait(dr_backend *b, const void *memory);

// Backend memory of n floats: mean + deviation · normal, from a block of a million draws, again and again.
dr_status bench_normal(dr_backend *b, int64_t n, double mean, double deviation, uint64_t stream,
                       float **out_memory);

#ifdef __cplusplus
}
#endif
#endif
