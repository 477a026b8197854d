// The table and the JSON lines.
#include "bench/report.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/alloc.h"
#include "core/base/clock.h"
#include "core/compute/dnnl_version.h"

struct bench_report {
    FILE *json; // NULL: not wanted
    int n_threads;
    const char *precision;
    char kind[16], model[32];         // of the backend; "" before it is said
    char processor[128], device[128]; // device "": the processor's figures
    const char *only;                 // names with commas between; NULL: all
    uint64_t came;                    // a bit for each name of `only` that a figure had
};

// "AMD EPYC, family 25 model 1": some virtual machines hide the model's name, the numbers stay.
static void read_processor(char *out, size_t size) {
    char line[256], name[96] = "unknown processor", family[16] = "", model[16] = "";
    FILE *file = fopen("/proc/cpuinfo", "r");
    while (file && fgets(line, sizeof line, file)) {
        char *value = strchr(line, ':');
        if (!value || value[1] == '\0') continue;
        value += 2;
        value[strcspn(value, "\n")] = '\0';
        if (strncmp(line, "model name", 10) == 0) snprintf(name, sizeof name, "%.90s", value);
        if (strncmp(line, "cpu family", 10) == 0) snprintf(family, sizeof family, "%.15s", value);
        if (strncmp(line, "model\t", 6) == 0) snprintf(model, sizeof model, "%.15s", value);
        if (line[0] == '\n') break;
    }
    if (file) fclose(file);
    if (family[0])
        snprintf(out, size, "%s, family %s model %s", name, family, model);
    else
        snprintf(out, size, "%s", name);
}

static double load_average(void) {
    double load = NAN;
    return getloadavg(&load, 1) == 1 ? load : NAN;
}

static void print_heading(const bench_report *r) {
    char stamp[32], library[160];
    const char *policy = getenv("OMP_WAIT_POLICY"), *spins = getenv("GOMP_SPINCOUNT");
    dr_clock_stamp(stamp);
    dr_dnnl_version(library, sizeof library);
    printf("%s; %s; %d of %d threads; load before the start %.2f\n", stamp, r->processor, r->n_threads,
           omp_get_num_procs(), load_average());
    if (r->device[0]) printf("device %s\n", r->device);
    printf("precision %s; oneDNN %s; OMP_WAIT_POLICY %s, GOMP_SPINCOUNT %s\n", r->precision, library,
           policy ? policy : "not set", spins ? spins : "not set");
}

dr_status bench_report_open(const char *json_path, const dr_backend *backend, const char *kind,
                            const char *device, bench_report **out) {
    bench_report *r = NULL;
    DR_TRY(dr_alloc(&r, "report", 1, sizeof *r));
    r->n_threads = backend->n_threads;
    r->precision = backend->precision == DR_BF16 ? "bf16" : "fp32";
    snprintf(r->kind, sizeof r->kind, "%s", kind);
    snprintf(r->device, sizeof r->device, "%s", device);
    read_processor(r->processor, sizeof r->processor);
    if (json_path) {
        r->json = fopen(json_path, "w");
        if (!r->json) {
            dr_free(r);
            return DR_FAIL(DR_ERR_IO, "%s: cannot write: %s", json_path, strerror(errno));
        }
    }
    print_heading(r);
    *out = r;
    return DR_OK;
}

void bench_report_model(bench_report *r, const char *shape, int n_layers) {
    if (n_layers > 0)
        snprintf(r->model, sizeof r->model, "%s/%d", shape, n_layers);
    else
        snprintf(r->model, sizeof r->model, "%s", shape);
}

void bench_report_only(bench_report *r, const char *names) {
    r->only = names;
}

bool bench_report_is_limited(const bench_report *r) {
    return r->only != NULL;
}

enum { MOST_NAMES = 64 };

// Place of a name among those wanted; -1: not there.
static int place_of(const bench_report *r, const char *name) {
    size_t length = strlen(name);
    const char *at = r->only;
    for (int i = 0; at && i < MOST_NAMES; i++) {
        size_t n = strcspn(at, ",");
        if (n == length && memcmp(at, name, n) == 0) return i;
        at = at[n] ? at + n + 1 : NULL;
    }
    return -1;
}

bool bench_report_wants(const bench_report *r, const char *name) {
    return !r->only || place_of(r, name) >= 0;
}

dr_status bench_report_complete(const bench_report *r) {
    const char *at = r->only;
    for (int i = 0; at && i < MOST_NAMES; i++) {
        size_t n = strcspn(at, ",");
        DR_CHECK(r->came >> i & 1, DR_ERR_ARGUMENT, "no figure is called %.*s", (int)n, at);
        at = at[n] ? at + n + 1 : NULL;
    }
    DR_CHECK(!at, DR_ERR_ARGUMENT, "more than %d figures are named: %s", MOST_NAMES, at);
    return DR_OK;
}

void bench_report_section(bench_report *r, const char *title) {
    (void)r;
    printf("\n%s\n  %-34s %12s %-10s %12s %6s  %s\n", title, "figure", "value", "unit", "ceiling", "share",
           "");
    fflush(stdout);
}

// Four digits, whatever the size.
static void format_number(double value, char out[16]) {
    double size = fabs(value);
    snprintf(out, 16, "%.*f",
             size >= 1000  ? 0
             : size >= 100 ? 1
             : size >= 10  ? 2
             : size >= 0.1 ? 3
             : size > 0    ? 5
                           : 0,
             value);
}

static json_t *real_or_null(double value) {
    return value > 0 ? json_real(value) : json_null();
}

static dr_status write_json(bench_report *r, const bench_figure *f) {
    json_t *line = json_pack(
        "{s:s, s:s?, s:f, s:s, s:o, s:o, s:s?, s:o, s:o, s:s, s:i, s:s, s:s, s:s?, s:s?}", "name", f->name,
        "model", r->model[0] ? r->model : NULL, "value", f->value, "unit", f->unit, "ceiling",
        real_or_null(f->ceiling), "share", real_or_null(f->ceiling > 0 ? f->value / f->ceiling : 0), "bound",
        f->bound, "seconds", real_or_null(f->seconds), "mfu", real_or_null(f->mfu), "backend", r->kind,
        "threads", r->n_threads, "precision", r->precision, "processor", r->processor, "device",
        r->device[0] ? r->device : NULL, "note", f->note);
    DR_CHECK(line, DR_ERR_MEMORY, "report: cannot build the line of %s", f->name);
    bool failed = json_dumpf(line, r->json, JSON_COMPACT | JSON_REAL_PRECISION(6)) != 0;
    failed = fputc('\n', r->json) == EOF || failed;
    failed = fflush(r->json) != 0 || failed; // a run that is ended later keeps its figures
    json_decref(line);
    DR_CHECK(!failed, DR_ERR_IO, "report: cannot write: %s", strerror(errno));
    return DR_OK;
}

dr_status bench_report_add(bench_report *r, const bench_figure *f) {
    char value[16], ceiling[16] = "", share[16] = "";
    int place = place_of(r, f->name);
    if (r->only && place < 0 && strncmp(f->name, "ceiling.", 8) != 0) return DR_OK;
    if (place >= 0) r->came |= UINT64_C(1) << place;
    DR_CHECK(isfinite(f->value) && (f->value > 0 || (f->is_count && f->value == 0)) && isfinite(f->ceiling),
             DR_ERR_NUMERIC, "figure %s is %g of %g", f->name, f->value, f->ceiling);
    format_number(f->value, value);
    if (f->ceiling > 0) {
        format_number(f->ceiling, ceiling);
        snprintf(share, sizeof share, "%.0f%%", 100 * f->value / f->ceiling);
    }
    printf("  %-34s %12s %-10s %12s %6s  %s%s%s\n", f->name, value, f->unit, ceiling, share,
           f->bound ? f->bound : "", f->bound && f->note ? "; " : "", f->note ? f->note : "");
    fflush(stdout);
    return r->json ? write_json(r, f) : DR_OK;
}

dr_status bench_report_close(bench_report *r) {
    if (!r) return DR_OK;
    bool failed = fflush(stdout) != 0;
    if (r->json) failed = fclose(r->json) != 0 || failed;
    dr_free(r);
    DR_CHECK(!failed, DR_ERR_IO, "report: cannot write: %s", strerror(errno));
    return DR_OK;
}
