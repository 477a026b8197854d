// Progress of a long loop on standard error: a bar that redraws itself on a terminal, a plain line about
// every tenth of the way otherwise. Plain data: no allocation, safe to leave unfinished.
#ifndef DR_CORE_BASE_PROGRESS_H
#define DR_CORE_BASE_PROGRESS_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct dr_progress {
    const char *label; // borrowed: "reading ratings"
    const char *unit;  // borrowed: "rows"; "bytes" prints MB
    int64_t total;     // 0: unknown, then a line comes every 10 s (terminal: a counter)
    int64_t done;
    double started, drawn; // monotonic seconds
    int32_t tenth;         // last tenth printed as a plain line
    int32_t is_terminal;
    char note[48]; // shown at the end of the line, "" for none
} dr_progress;

// Starts; whether standard error is a terminal is looked up here. Nothing is printed yet.
dr_progress dr_progress_start(const char *label, const char *unit, int64_t total);

// Sets how far the loop is; cheap enough to call on every row (looks at the clock, prints at most ten times a
// second).
void dr_progress_update(dr_progress *progress, int64_t done);

// A short text beside the bar, such as "loss 3.21" (cut to 47 bytes). printf format.
void dr_progress_note(dr_progress *progress, const char *format, ...) __attribute__((format(printf, 2, 3)));

// Closes the bar with a last line: how much in how long. Nothing for a loop that was shorter than 0.5 s on no
// terminal.
void dr_progress_finish(dr_progress *progress);

#ifdef __cplusplus
}
#endif
#endif
