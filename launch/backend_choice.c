// Choosing the body of the compute seam.
#include "launch/backend_choice.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "core/base/log.h"

// How the choice came about, for the line that tells it.
static void reason_of(const dr_backend_choice *choice, const char *found, char out[320]) {
    if (choice->kind == DR_BACKEND_AUTO)
        snprintf(out, 320, "%s is auto: %s", choice->option, found);
    else
        snprintf(out, 320, "%s %s", choice->is_default ? "the default of" : "asked for by", choice->option);
}

// What a look at this machine's devices found.
typedef struct sight {
    dr_seen_devices seen;            // those of use
    int32_t number[DR_SEEN_DEVICES]; // that the CUDA runtime has for each of them
    int32_t n_others;                // devices that are too old
    char reason[256];                // why none is of use, "" where one is
} sight;

#if DR_HAVE_CUDA_KERNELS
#include "cuda/backend_cuda.h"
#include "cuda/collective_nccl.h"
#include "cuda/device_probe.h"

// What graphs, kernels that are loaded at their first use and libraries take of a device, and NCCL's channels
// and kernels beside: allowances, not measured.
static const int64_t CUDA_RESERVE = (int64_t)512 << 20, NCCL_RESERVE = (int64_t)512 << 20;

static void see_devices(sight *out) {
    dr_device_probe probe = dr_device_probe_run();
    const dr_device_info *first = &probe.devices[0];
    snprintf(out->reason, sizeof out->reason, "%s", probe.reason);
    for (int i = 0; i < probe.n_devices && i < DR_PROBE_DEVICES; i++) {
        if (probe.devices[i].major < DR_LEAST_MAJOR) {
            out->n_others++;
        } else if (out->seen.n < DR_SEEN_DEVICES) {
            out->seen.bus_id[out->seen.n] = probe.devices[i].bus_id;
            out->number[out->seen.n++] = i;
        }
    }
    if (out->n_others > 0 && out->seen.n == 0)
        snprintf(out->reason, sizeof out->reason,
                 "no device of compute capability %d.0 or newer: device 0, %.127s, has %d.%d", DR_LEAST_MAJOR,
                 first->name, first->major, first->minor);
}

static int place_of(const dr_backend_choice *choice) {
    return choice->binding ? choice->binding->device : 0;
}

static int device_of(const dr_backend_choice *choice, const sight *found) {
    return found->number[place_of(choice)];
}

static dr_status open_beside(const dr_backend_choice *choice, const sight *found, dr_backend **out_backend) {
    return dr_backend_cuda_create(DR_FP32, device_of(choice, found), out_backend);
}

static void say_device(const dr_backend_choice *choice, const sight *found) {
    const dr_device_binding *binding = choice->binding;
    const dr_seen_devices *seen = &found->seen;
    char reason[320], name[20], pick[96] = "";
    if (!choice->option) return;
    dr_device_bus_name(seen->bus_id[place_of(choice)], name);
    reason_of(choice, "there is a device", reason);
    if (binding && binding->n_sharing > 1)
        snprintf(pick, sizeof pick, "shared by %d of the node's %d workers", binding->n_sharing,
                 binding->n_here);
    else if (seen->n == 1)
        snprintf(pick, sizeof pick, "the only one that is %s here",
                 found->n_others ? "new enough" : "visible");
    else if (binding)
        snprintf(pick, sizeof pick, "the first of %d that no other worker takes", seen->n);
    else
        snprintf(pick, sizeof pick, "the first of %d", seen->n);
    dr_info("backend: cuda, device %d at %s, %s%s; %s", device_of(choice, found), name, pick,
            choice->reference ? ", simple kernels" : "", reason);
    if (choice->precision == DR_FP32)
        dr_warn("fp32 on a device has the simple kernels only, which use no tensor cores; %s is the fast one",
                choice->fast_option);
}

static dr_status check_own(const dr_backend_choice *choice, const dr_seen_devices *seen) {
    const dr_device_binding *binding = choice->binding;
    char name[20];
    if (!binding || binding->n_sharing < 2 || choice->may_share) return DR_OK;
    dr_device_bus_name(seen->bus_id[binding->device], name);
    return DR_FAIL(DR_ERR_ARGUMENT,
                   "%d workers on a node see %d device%s between them, and %d of them would use that at %s: "
                   "start fewer, show them others, or set ranks.share_devices",
                   binding->n_here, binding->n_devices_here, binding->n_devices_here == 1 ? "" : "s",
                   binding->n_sharing, name);
}

static dr_status open_device(const dr_backend_choice *choice, const sight *found, dr_backend **out_backend) {
    DR_TRY(check_own(choice, &found->seen));
    DR_CHECK(!choice->reference || !dr_is_loose(choice->precision), DR_ERR_ARGUMENT,
             "the simple kernels are exact: with kernels=reference the precision is fp32 or bf16");
    dr_cuda_record_passes(!choice->no_graphs);
    dr_cuda_reference_kernels(choice->reference);
    DR_TRY(dr_backend_cuda_create(choice->precision, device_of(choice, found), out_backend));
    say_device(choice, found);
    return DR_OK;
}

static int64_t nccl_memory(const dr_collective *host) {
    return dr_collective_nccl_memory(host->size);
}

static int64_t reserve_of(bool sums_on_devices) {
    return CUDA_RESERVE + (sums_on_devices ? NCCL_RESERVE : 0);
}

static dr_status join_devices(dr_backend *backend, dr_collective *host, dr_collective **out) {
    return dr_collective_nccl_create(backend, host, out);
}
#else
static void see_devices(sight *out) {
    snprintf(out->reason, sizeof out->reason, "this build has no CUDA kernels");
}

static dr_status open_device(const dr_backend_choice *choice, const sight *found, dr_backend **out_backend) {
    (void)choice, (void)out_backend;
    return DR_FAIL(DR_ERR_INTERNAL, "%d devices in a build without CUDA", found->seen.n);
}

static dr_status open_beside(const dr_backend_choice *choice, const sight *found, dr_backend **out_backend) {
    return open_device(choice, found, out_backend);
}

// No rank of such a build has a device.
static int64_t nccl_memory(const dr_collective *host) {
    (void)host;
    return 0;
}

static int64_t reserve_of(bool sums_on_devices) {
    (void)sums_on_devices;
    return 0;
}

static dr_status join_devices(dr_backend *backend, dr_collective *host, dr_collective **out) {
    (void)backend, (void)host, (void)out;
    return DR_FAIL(DR_ERR_UNSUPPORTED, "this build has no CUDA kernels");
}
#endif

static bool is_cuda(const dr_backend *backend) {
    return strcmp(backend->ops->name, "cuda") == 0;
}

dr_precision dr_train_precision(int row) {
    static const dr_precision rows[] = {DR_FP32, DR_BF16, DR_BF16_LOOSE};
    return rows[row];
}

dr_backend_choice dr_backend_choice_of(const dr_config *options, const char *precision_option) {
    static char fast_option[64];
    snprintf(fast_option, sizeof fast_option, "--%s bf16", precision_option);
    return (dr_backend_choice){
        .kind = (dr_backend_kind)dr_config_choice(options, "backend"), // rows in the enums' order
        .precision = (dr_precision)dr_config_choice(options, precision_option),
        .threads = (int)dr_config_int(options, "threads"),
        .option = "--backend",
        .is_default = !dr_config_is_given(options, "backend"),
        .fast_option = fast_option};
}

// What the collective library takes for a machine's name, where it is told one: 48 bits, so that doubles hold
// them.
static int64_t told_machine(void) {
    const char *name = getenv("NCCL_HOSTID");
    return name ? (int64_t)(XXH3_64bits(name, strlen(name)) >> 16) | 1 : 0;
}

// DR_OK without a device: the processor works, out->reason says why.
static dr_status look(const dr_backend_choice *choice, sight *out) {
    *out = (sight){.seen = {.told_machine = told_machine()}};
    if (choice->kind == DR_BACKEND_CPU) return DR_OK;
    see_devices(out);
    DR_CHECK(out->seen.n > 0 || choice->kind != DR_BACKEND_CUDA, DR_ERR_UNSUPPORTED, "backend cuda: %s",
             out->reason);
    return DR_OK;
}

dr_status dr_backend_see(const dr_backend_choice *choice, dr_seen_devices *out) {
    sight found;
    int32_t node = out->node;
    DR_TRY(look(choice, &found));
    *out = found.seen;
    out->node = node;
    return DR_OK;
}

dr_status dr_backend_choose(const dr_backend_choice *choice, dr_backend **out_backend) {
    sight found;
    char reason[320];
    DR_TRY(look(choice, &found));
    if (found.seen.n > 0) return open_device(choice, &found, out_backend);
    DR_TRY(dr_backend_cpu_create(choice->precision, choice->threads, out_backend));
    if (!choice->option) return DR_OK;
    reason_of(choice, found.reason, reason);
    dr_info("backend: cpu, %d thread%s; %s", (*out_backend)->n_threads,
            (*out_backend)->n_threads == 1 ? "" : "s", reason);
    return DR_OK;
}

dr_status dr_backend_choose_beside(const dr_backend_choice *choice, const dr_backend *first,
                                   dr_backend **out_backend) {
    sight found;
    if (is_cuda(first)) {
        DR_TRY(look(choice, &found));
        return open_beside(choice, &found, out_backend);
    }
    return dr_backend_cpu_create(DR_FP32, choice->threads, out_backend);
}

int dr_backend_sharers(const dr_backend_choice *choice, const dr_backend *backend) {
    if (!choice->binding) return 1;
    return is_cuda(backend) ? choice->binding->n_sharing : choice->binding->n_here;
}

// All learners answer alike, so that none waits in vain. NCCL refuses two ranks on one device, unless it is
// told that they are on two machines.
static bool sums_on_devices(const dr_backend_choice *choice, const dr_collective *host) {
    const dr_device_binding *binding = choice->binding;
    return binding && host && host->size > 1 && binding->n_without == 0 && binding->n_clashing == 0;
}

int64_t dr_backend_collective_memory(const dr_backend_choice *choice, const dr_collective *host) {
    return sums_on_devices(choice, host) ? nccl_memory(host) : 0;
}

int64_t dr_backend_reserve(const dr_backend_choice *choice, const dr_backend *backend,
                           const dr_collective *learners) {
    return is_cuda(backend) ? reserve_of(sums_on_devices(choice, learners)) : 0;
}

dr_status dr_backend_collective(const dr_backend_choice *choice, dr_backend *backend, dr_collective *host,
                                dr_collective **out) {
    const dr_device_binding *binding = choice->binding;
    char counts[96] = "";
    *out = NULL;
    if (!host || host->size == 1 || !binding || binding->n_without == host->size) return DR_OK;
    if (sums_on_devices(choice, host)) {
        dr_status status = join_devices(backend, host, out);
        if (host->rank == 0 && status == DR_OK) dr_info("gradients: summed up through NCCL");
        if (status != DR_ERR_UNSUPPORTED) return status;
    } else if (binding->n_without > 0) {
        snprintf(counts, sizeof counts, "%d of %d learners have no device", binding->n_without, host->size);
    } else if (binding->n_shared > 0) {
        snprintf(counts, sizeof counts, "%d of %d learners share devices", binding->n_shared, host->size);
    } else {
        snprintf(counts, sizeof counts, "NCCL_HOSTID makes one device of those of %d of %d learners",
                 binding->n_clashing, host->size);
    }
    if (host->rank == 0)
        dr_info("gradients: summed up through host memory and MPI: %s", counts[0] ? counts : dr_last_error());
    return DR_OK;
}
