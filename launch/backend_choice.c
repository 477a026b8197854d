// Choosing the body of the compute seam.
#include "launch/backend_choice.h"

#include <string.h>

#include "core/base/log.h"

#if DR_HAVE_CUDA_KERNELS
#include "cuda/backend_cuda.h"
#include "cuda/collective_nccl.h"
#include "cuda/device_probe.h"

// reason: why no device can be used, "" otherwise.
static int count_devices(const char **out_reason) {
    static dr_device_probe probe;
    probe = dr_device_probe_run();
    *out_reason = probe.reason;
    return probe.n_devices;
}

static dr_status open_beside(const dr_backend_choice *choice, dr_backend **out_backend) {
    const char *reason;
    return dr_backend_cuda_create(DR_FP32, choice->worker % count_devices(&reason), out_backend);
}

static dr_status open_device(const dr_backend_choice *choice, int n_devices, dr_backend **out_backend) {
    int device = choice->worker % n_devices;
    DR_CHECK(choice->n_workers <= n_devices || choice->may_share, DR_ERR_ARGUMENT,
             "%d workers on a node with %d device%s: start fewer, or set ranks.share_devices",
             choice->n_workers, n_devices, n_devices == 1 ? "" : "s");
    dr_cuda_record_passes(!choice->no_graphs);
    DR_TRY(dr_backend_cuda_create(choice->precision, device, out_backend));
    dr_info("backend: cuda, device %d of %d%s", device, n_devices,
            choice->n_workers > n_devices ? ", shared with other workers" : "");
    return DR_OK;
}

static dr_status join_devices(const dr_backend_choice *choice, dr_backend *backend, dr_collective *host,
                              dr_collective **out) {
    const char *reason = "learners share devices";
    dr_status status = DR_ERR_UNSUPPORTED;
    if (!choice->may_share) {
        status = dr_collective_nccl_create(backend, host, out);
        reason = dr_last_error();
    }
    if (status == DR_ERR_UNSUPPORTED && host->rank == 0)
        dr_info("gradients: summed up through host memory and MPI: %s", reason);
    return status == DR_ERR_UNSUPPORTED ? DR_OK : status;
}
#else
static dr_status join_devices(const dr_backend_choice *choice, dr_backend *backend, dr_collective *host,
                              dr_collective **out) {
    (void)choice, (void)backend, (void)host, (void)out;
    return DR_OK; // no rank of such a build has a device
}

static int count_devices(const char **out_reason) {
    *out_reason = "this build has no CUDA kernels";
    return 0;
}

static dr_status open_device(const dr_backend_choice *choice, int n_devices, dr_backend **out_backend) {
    (void)choice, (void)out_backend;
    return DR_FAIL(DR_ERR_INTERNAL, "%d devices in a build without CUDA", n_devices);
}

static dr_status open_beside(const dr_backend_choice *choice, dr_backend **out_backend) {
    return open_device(choice, 0, out_backend);
}
#endif

static bool is_cuda(const dr_backend *backend) {
    return strcmp(backend->ops->name, "cuda") == 0;
}

dr_status dr_backend_choose(const dr_backend_choice *choice, dr_backend **out_backend) {
    const char *reason = "asked for";
    int n_devices = 0;
    if (choice->kind != DR_BACKEND_CPU) n_devices = count_devices(&reason);
    if (n_devices > 0) return open_device(choice, n_devices, out_backend);
    DR_CHECK(choice->kind != DR_BACKEND_CUDA, DR_ERR_UNSUPPORTED, "backend cuda: %s", reason);
    DR_TRY(dr_backend_cpu_create(choice->precision, choice->threads, out_backend));
    if (choice->kind == DR_BACKEND_AUTO) dr_info("backend: cpu, %s", reason);
    return DR_OK;
}

dr_status dr_backend_choose_beside(const dr_backend_choice *choice, const dr_backend *first,
                                   dr_backend **out_backend) {
    if (is_cuda(first)) return open_beside(choice, out_backend);
    return dr_backend_cpu_create(DR_FP32, choice->threads, out_backend);
}

int dr_backend_sharers(const dr_backend_choice *choice, const dr_backend *backend) {
    const char *reason;
    if (!is_cuda(backend)) return choice->n_workers;
    int n_devices = count_devices(&reason), n = 0;
    for (int w = choice->worker % n_devices; w < choice->n_workers; w += n_devices) n++;
    return n;
}

dr_status dr_backend_collective(const dr_backend_choice *choice, dr_backend *backend, dr_collective *host,
                                dr_collective **out) {
    *out = NULL;
    if (choice->kind == DR_BACKEND_CPU || !host || host->size == 1) return DR_OK;
    double n_devices = is_cuda(backend); // of all learners, so that none waits in vain
    DR_TRY(host->ops->allreduce_sum_double(host, &n_devices, 1));
    return n_devices == host->size ? join_devices(choice, backend, host, out) : DR_OK;
}
