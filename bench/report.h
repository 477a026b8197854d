// Where figures go: a row each of the table on standard output, and a line each of a JSON file when wanted.
#ifndef DR_BENCH_REPORT_H
#define DR_BENCH_REPORT_H

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
} bench_figure;

typedef struct bench_report bench_report;
// json_path NULL: table only. The heading names processor, threads, precision, oneDNN, the machine's load
// and, when it is not "", the device.
dr_status bench_report_open(const char *json_path, const dr_backend *backend, const char *device,
                            bench_report **out);
// DR_ERR_NUMERIC for a value that is not a positive number: such a figure must not look measured.
dr_status bench_report_add(bench_report *report, const bench_figure *figure);
void bench_report_section(bench_report *report, const char *title);
// Flushes both; DR_ERR_IO when a line could not be written. NULL is fine.
dr_status bench_report_close(bench_report *report);

#ifdef __cplusplus
}
#endif
#endif
