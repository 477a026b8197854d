// Where figures go: a row each of the table on standard output, and a line each of a JSON file when wanted.
#ifndef DR_BENCH_REPORT_H
#define DR_BENCH_REPORT_H

#include <stdbool.h>

#include "core/compute/backend.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct bench_figure {
    const char *name; // "decode.b8.c512"
    const char *unit; // "tokens/s"
    double value;
    double ceiling;    // in the same unit; 0: none
    const char *bound; // what sets the ceiling: "memory", "compute", "GEMM"; NULL without one
    const char *note;  // for people; NULL: none
    double seconds;    // of one step, pass or call; 0: not said
    double mfu;        // share of the device's peak by its data sheet; 0: not said
    bool is_count;     // of bytes, say: may be 0
} bench_figure;

typedef struct bench_report bench_report;
// json_path NULL: table only. The heading names processor, threads, precision, oneDNN, the machine's load
// and, when it is not "", the device.
// kind: the backend's, as bench_backend_open takes it.
dr_status bench_report_open(const char *json_path, const dr_backend *backend, const char *kind,
                            const char *device, bench_report **out);
// What the figures that follow are of, for the JSON lines: "7b", or "7b/4" for a slice of so many layers
// (0: all of them).
void bench_report_model(bench_report *report, const char *shape, int n_layers);
// names: those of the only figures wanted beside the ceilings, with commas between; NULL: all. Borrowed.
void bench_report_only(bench_report *report, const char *names);
bool bench_report_is_limited(const bench_report *report);
bool bench_report_wants(const bench_report *report, const char *name);
// DR_ERR_ARGUMENT for a name of theirs that no figure had.
dr_status bench_report_complete(const bench_report *report);
// DR_ERR_NUMERIC for a value that is not a positive number: such a figure must not look measured. What is not
// wanted is left out.
dr_status bench_report_add(bench_report *report, const bench_figure *figure);
void bench_report_section(bench_report *report, const char *title);
// Flushes both; DR_ERR_IO when a line could not be written. NULL is fine.
dr_status bench_report_close(bench_report *report);

#ifdef __cplusplus
}
#endif
#endif
