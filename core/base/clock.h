// Monotonic time in seconds and a sleep that survives signals. Wall-clock time is for people: see
// dr_clock_stamp.
#ifndef DR_CORE_BASE_CLOCK_H
#define DR_CORE_BASE_CLOCK_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// Seconds since an arbitrary start; never goes back. For durations and deadlines.
double dr_clock_seconds(void);

// Seconds of processor time this process has used, all threads together.
double dr_clock_cpu_seconds(void);

// Sleeps at least `seconds` (<= 0: returns at once). A signal does not shorten it.
void dr_clock_sleep(double seconds);

// Local date and time, "2024-05-31T14:03:59+0200", into out (NUL-terminated).
void dr_clock_stamp(char out[32]);

// A duration for people: "8.2 s", "3 min 05 s", "2 h 14 min", into out.
void dr_clock_format(double seconds, char out[32]);

#ifdef __cplusplus
}
#endif
#endif
