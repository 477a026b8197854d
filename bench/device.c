// Opening, waiting, filling.
#include "bench/device.h"

#include <stdio.h>
#include <string.h>

#include "core/base/alloc.h"
#include "core/base/rng.h"

#if DR_HAVE_CUDA_KERNELS
#include "cuda/backend_cuda.h"
#include "cuda/device_probe.h"
#include "cuda/kernels.h"

// What a kind asks of a device beside being one.
static dr_status set_up(const char *kind, const dr_device_probe *probe) {
    bool wgmma = strcmp(kind, "cuda-wgmma") == 0;
    DR_CHECK(
        !wgmma || (dr_cuda_wgmma_is_built() && probe->devices[0].major == 9 && probe->devices[0].minor == 0),
        DR_ERR_UNSUPPORTED, "backend %s: %s has compute capability %d.%d, expected 9.0 and a build for it",
        kind, probe->devices[0].name, probe->devices[0].major, probe->devices[0].minor);
    dr_cuda_record_passes(strcmp(kind, "cuda-graphs") == 0);
    dr_cuda_wgmma_in_bf16(wgmma ? DR_WGMMA_BOTH : DR_WGMMA_GRADIENT);
    dr_cuda_reference_kernels(strcmp(kind, "cuda-reference") == 0);
    return DR_OK;
}

static dr_status open_device(const char *kind, dr_precision precision, dr_backend **out_backend,
                             bench_device *out) {
    dr_device_probe probe = dr_device_probe_run();
    DR_CHECK(probe.n_devices > 0, DR_ERR_UNSUPPORTED, "backend cuda: %s", probe.reason);
    const char *name = probe.devices[0].name;
    snprintf(out->name, sizeof out->name, "%s", name);
    bool is_sxm = strstr(name, "PCIe") == NULL && strstr(name, "NVL") == NULL; // the others are clocked lower
    if (is_sxm && (strstr(name, "H100") || strstr(name, "H200"))) out->peak_flops = 989e12;
    DR_TRY(set_up(kind, &probe));
    return dr_backend_cuda_create(precision, 0, out_backend);
}
#else
static dr_status open_device(const char *kind, dr_precision precision, dr_backend **out_backend,
                             bench_device *out) {
    (void)kind, (void)precision, (void)out_backend, (void)out;
    return DR_FAIL(DR_ERR_UNSUPPORTED, "backend cuda: this build has no CUDA kernels");
}
#endif

bool bench_is_kind(const char *kind) {
    static const char *const kinds[] = {"cpu", "cuda", "cuda-graphs", "cuda-wgmma", "cuda-reference"};
    size_t i = 0;
    while (i < sizeof kinds / sizeof *kinds && strcmp(kinds[i], kind) != 0) i++;
    return i < sizeof kinds / sizeof *kinds;
}

dr_status bench_backend_open(const char *kind, dr_precision precision, int n_threads,
                             dr_backend **out_backend, bench_device *out_device) {
    *out_device = (bench_device){0};
    if (strcmp(kind, "cpu") == 0) return dr_backend_cpu_create(precision, n_threads, out_backend);
    DR_CHECK(bench_is_kind(kind), DR_ERR_ARGUMENT,
             "backend %s: expected cpu, cuda, cuda-graphs, cuda-wgmma or cuda-reference", kind);
    return open_device(kind, precision, out_backend, out_device);
}

bool bench_is_cpu(const dr_backend *backend) {
    return strcmp(backend->ops->name, "cpu") == 0;
}

dr_status bench_wait(dr_backend *b, const void *memory) {
    uint32_t word = 0;
    void *probe = NULL;
    b->ops->copy_out(b, &word, memory, sizeof word);
    if (word != UINT32_MAX) return DR_OK;                          // what copy_out leaves after a failure
    DR_TRY(b->ops->memory_create(b, "word", sizeof word, &probe)); // returns what an op without status kept
    b->ops->memory_destroy(b, probe);
    return DR_OK;
}

dr_status bench_normal(dr_backend *b, int64_t n, double mean, double deviation, uint64_t stream,
                       float **out_memory) {
    enum { BLOCK = 1000003 }; // no multiple of a row's length
    int64_t block = n < BLOCK ? n : BLOCK;
    float *values = NULL, *memory = NULL;
    dr_rng rng = dr_rng_make(23, stream);
    DR_TRY(dr_alloc(&values, "values", block, sizeof *values));
    for (int64_t i = 0; i < block; i++) values[i] = (float)(mean + deviation * dr_rng_normal(&rng));
    dr_status status = dr_memory_create(b, &memory, "values", n, sizeof *memory);
    for (int64_t at = 0; at < n && status == DR_OK; at += block)
        b->ops->copy_in(b, memory + at, values, (size_t)(n - at < block ? n - at : block) * sizeof *values);
    dr_free(values);
    if (status == DR_OK) *out_memory = memory;
    return status;
}
