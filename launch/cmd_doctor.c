// deeprec doctor: what this binary was built with and what this machine offers. Each part ends in a verdict;
// the exit code is 1 when something would stop a training run.
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <omp.h>

#include "core/base/alloc.h"
#include "core/base/file.h"
#include "core/compute/dnnl_version.h"
#include "core/store/h5_version.h"
#include "launch/cli.h"
#include "mpi/mpi_version.h"
#if DR_HAVE_CUDA
#include "cuda/device_probe.h"
#endif

typedef struct doctor {
    int n_problems, n_notes;
    int has_amx, has_bf16, has_avx2;
    int n_devices;
} doctor;

static void line(const char *name, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void line(const char *name, const char *format, ...) {
    va_list args;
    printf("  %-18s ", name);
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    printf("\n");
}

static void verdict(doctor *d, int is_problem, const char *format, ...) __attribute__((format(printf, 3, 4)));

static void verdict(doctor *d, int is_problem, const char *format, ...) {
    va_list args;
    printf("  %s ", is_problem < 0 ? "ok:     " : is_problem ? "PROBLEM:" : "note:   ");
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    printf("\n");
    if (is_problem > 0) d->n_problems++;
    if (is_problem == 0) d->n_notes++;
}

enum { FINE = -1, NOTE = 0, PROBLEM = 1 };

static void build_part(doctor *d) {
    printf("build\n");
    line("version", "deeprec %s", DR_VERSION);
    line("type", "%s", DR_BUILD_TYPE);
    line("compiler", "%s %s", DR_COMPILER, __VERSION__);
#if defined(__SANITIZE_ADDRESS__)
    line("sanitizers", "address, undefined behaviour");
#endif
    line("OpenMP", "%d", _OPENMP);
    line("CUDA", "%s", DR_HAVE_CUDA ? "built in" : "left out");
    if (strcmp(DR_BUILD_TYPE, "Release") != 0)
        verdict(d, NOTE, "not a Release build: several times slower");
    else
        verdict(d, FINE, "Release build");
}

// Whole word in a blank-separated list that ends with the line.
static int has_flag(const char *flags, const char *name) {
    size_t length = strlen(name);
    while (flags && *flags && *flags != '\n') {
        flags += strspn(flags, " \t:");
        size_t word = strcspn(flags, " \t\n");
        if (word == length && memcmp(flags, name, length) == 0) return 1;
        flags += word;
    }
    return 0;
}

// Value of the first "name : value" line, or NULL.
static const char *field(const char *text, const char *name) {
    size_t length = strlen(name);
    for (const char *at = text; at && *at; at = strchr(at, '\n') ? strchr(at, '\n') + 1 : NULL)
        if (strncmp(at, name, length) == 0 && strchr("\t :", at[length])) {
            const char *colon = strchr(at, ':');
            return colon ? colon + 1 + strspn(colon + 1, " \t") : NULL;
        }
    return NULL;
}

// First number of a small system file, -1 when it is missing or says "max".
static int64_t number_in_file(const char *path) {
    dr_buf text = {0};
    int64_t value = -1;
    if (dr_file_exists(path) && dr_file_read(path, 1 << 20, &text) == DR_OK && text.length &&
        text.data[0] != 'm')
        value = strtoll(text.data, NULL, 10);
    dr_buf_reset(&text);
    return value;
}

static void cpu_part(doctor *d) {
    dr_buf info = {0};
    struct utsname name;
    printf("processor\n");
    if (dr_file_exists("/proc/cpuinfo")) dr_file_read("/proc/cpuinfo", 0, &info);
    const char *model = info.length ? field(info.data, "model name") : NULL;
    const char *flags = info.length ? field(info.data, "flags") : NULL;
    if (uname(&name) == 0) line("system", "%s %s %s", name.sysname, name.release, name.machine);
    line("model", "%.*s", model ? (int)strcspn(model, "\n") : 7, model ? model : "unknown");
    line("cores", "%ld online, %d OpenMP threads", sysconf(_SC_NPROCESSORS_ONLN), omp_get_max_threads());
    d->has_avx2 = has_flag(flags, "avx2") && has_flag(flags, "fma");
    d->has_bf16 = has_flag(flags, "avx512_bf16");
    d->has_amx = has_flag(flags, "amx_bf16");
    line("features", "AVX2 %s, AVX-512 %s, BF16 %s, AMX %s", d->has_avx2 ? "yes" : "no",
         has_flag(flags, "avx512f") ? "yes" : "no", d->has_bf16 ? "yes" : "no", d->has_amx ? "yes" : "no");
    dr_buf_reset(&info);
    if (d->has_amx)
        verdict(d, FINE, "bf16 matrix products run on AMX");
    else if (d->has_avx2)
        verdict(d, FINE, "fp32 vector units");
    else
        verdict(d, NOTE, "no AVX2: correct but slow");
}

static void memory_part(doctor *d) {
    enum { NEEDED_MB = 1500 };
    dr_buf info = {0};
    struct rlimit limit;
    printf("memory and disk\n");
    if (dr_file_exists("/proc/meminfo")) dr_file_read("/proc/meminfo", 0, &info);
    const char *total = info.length ? field(info.data, "MemTotal") : NULL;
    const char *free_now = info.length ? field(info.data, "MemAvailable") : NULL;
    int64_t total_mb = total ? strtoll(total, NULL, 10) / 1024 : -1;
    int64_t free_mb = free_now ? strtoll(free_now, NULL, 10) / 1024 : -1;
    dr_buf_reset(&info);
    int64_t group_limit = number_in_file("/sys/fs/cgroup/memory.max");
    line("memory", "%lld MB, %lld MB available", (long long)total_mb, (long long)free_mb);
    if (group_limit > 0) line("memory limit", "%lld MB (control group)", (long long)(group_limit >> 20));
    if (getrlimit(RLIMIT_MEMLOCK, &limit) == 0) {
        if (limit.rlim_cur == RLIM_INFINITY)
            line("locked memory", "unlimited");
        else
            line("locked memory", "%lld KB (pinned buffers and fast networks want unlimited)",
                 (long long)(limit.rlim_cur >> 10));
    }
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) line("open files", "%lld", (long long)limit.rlim_cur);
    if (free_mb >= 0 && free_mb < NEEDED_MB)
        verdict(d, PROBLEM, "under %d MB available; the smallest job needs that much", NEEDED_MB);
    else
        verdict(d, FINE, "enough memory for the quick start");
}

static void disk_line(doctor *d, const char *name, const char *path, int64_t needed_mb, const char *what) {
    struct statvfs fs;
    if (statvfs(path, &fs) != 0) {
        verdict(d, PROBLEM, "%s (%s) cannot be looked at", name, path);
        return;
    }
    int64_t free_mb = (int64_t)((double)fs.f_bavail * (double)fs.f_frsize / 1048576.0);
    line(name, "%lld MB free in %s", (long long)free_mb, path);
    if (access(path, W_OK) != 0)
        verdict(d, NOTE, "%s cannot be written by this user", path);
    else if (free_mb < needed_mb)
        verdict(d, PROBLEM, "%s needs %lld MB free in %s", what, (long long)needed_mb, path);
}

static void disk_part(doctor *d) {
    const char *temp = getenv("TMPDIR");
    disk_line(d, "this folder", ".", 500, "a run folder");
    disk_line(d, "temporary", temp && temp[0] ? temp : "/tmp", 100, "scratch space");
    if (dr_dir_exists("/dev/shm")) disk_line(d, "shared memory", "/dev/shm", 32, "MPI on one machine");
}

static void library_part(doctor *d) {
    char text[256];
    printf("libraries found at run time\n");
    dr_dnnl_version(text, sizeof text);
    line("oneDNN", "%s", text);
    dr_h5_version(text, sizeof text);
    line("HDF5", "%s (built against %s)", text, DR_HDF5_BUILT);
    int matches = strncmp(text, DR_HDF5_BUILT, strcspn(DR_HDF5_BUILT, "-")) == 0;
    dr_mpi_version(text, sizeof text);
    line("MPI", "%s", text);
    if (matches)
        verdict(d, FINE, "all there");
    else
        verdict(d, NOTE, "HDF5 differs from the one this was built against: rebuild if files cannot be read");
}

#if DR_HAVE_CUDA
static void version_text(int32_t version, char out[16]) {
    snprintf(out, 16, "%d.%d", version / 1000, version % 1000 / 10);
}

// What the build knows of an optional library beside what this machine has of it.
static void library_line(const char *name, int32_t built, int32_t found, const char *header) {
    char with[64], here[32] = "not found";
    snprintf(with, sizeof with, "without it, for there was no %s", header);
    if (built > 0)
        snprintf(with, sizeof with, "with %d.%d.%d", built / 10000, built / 100 % 100, built % 100);
    if (found > 0)
        snprintf(here, sizeof here, "found %d.%d.%d", found / 10000, found / 100 % 100, found % 100);
    line(name, "built %s; %s", with, here);
}

static void device_part(doctor *d) {
    dr_device_probe probe = dr_device_probe_run();
    dr_library_probe libraries = dr_library_probe_run();
    char text[32], bus[20];
    printf("devices\n");
    char built[16], found[16];
    version_text(probe.runtime_built, built);
    version_text(probe.runtime_version, found);
    line("CUDA runtime", "built with %s; found %s, part of this binary", built, found);
    version_text(probe.driver_version, found);
    line("driver", "built for CUDA %s; %s%s", built, probe.driver_version ? "found for CUDA " : "not found",
         probe.driver_version ? found : "");
    library_line("NCCL", libraries.nccl_built, libraries.nccl_found, "nccl.h of 2.14 or later");
    library_line("cuBLASLt", libraries.lt_built, libraries.lt_found, "cublasLt.h");
    d->n_devices = probe.n_devices;
    for (int i = 0; i < probe.n_devices && i < DR_PROBE_DEVICES; i++) {
        const dr_device_info *device = &probe.devices[i];
        snprintf(text, sizeof text, "device %d", i);
        dr_device_bus_name(device->bus_id, bus);
        line(text, "%s at %s, compute capability %d.%d, %d processors, %lld MB", device->name, bus,
             device->major, device->minor, device->n_processors, (long long)(device->total_bytes >> 20));
    }
    if (probe.n_devices > 0)
        verdict(d, FINE, "%d device%s", probe.n_devices, probe.n_devices == 1 ? "" : "s");
    else
        verdict(d, FINE, "no device: %s; the CPU does the work", probe.reason);
}
#else
static void device_part(doctor *d) {
    (void)d;
    printf("devices\n");
    verdict(d, FINE, "no device: this binary was built without CUDA; the CPU does the work");
}
#endif

static dr_status run(const dr_cli *cli) {
    (void)cli;
    doctor d = {0};
    build_part(&d);
    cpu_part(&d);
    memory_part(&d);
    disk_part(&d);
    library_part(&d);
    device_part(&d);
    printf("verdict: %s (%d problem%s, %d note%s)\n",
           d.n_problems ? "not ready, see the lines marked PROBLEM" : "ready to train on this machine",
           d.n_problems, d.n_problems == 1 ? "" : "s", d.n_notes, d.n_notes == 1 ? "" : "s");
    return d.n_problems ? DR_FAIL(DR_ERR_UNSUPPORTED, "%d problem(s) found", d.n_problems) : DR_OK;
}

const dr_command dr_command_doctor = {
    .name = "doctor",
    .summary = "shows what this binary was built with and what this machine offers",
    .help = "Prints build options, processor features, memory and disk, the versions of oneDNN, HDF5 and MPI "
            "found at "
            "run time, and the devices. Ends with 1 when something would stop a training run.",
    .arguments = "",
    .run = run,
};
