// Thin over clock_gettime and nanosleep.
#include "core/base/clock.h"

#include <errno.h>
#include <stdio.h>
#include <time.h>

static double seconds_of(clockid_t id) {
    struct timespec now;
    clock_gettime(id, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

double dr_clock_seconds(void) {
    return seconds_of(CLOCK_MONOTONIC);
}

double dr_clock_cpu_seconds(void) {
    return seconds_of(CLOCK_PROCESS_CPUTIME_ID);
}

void dr_clock_sleep(double seconds) {
    if (!(seconds > 0)) return;
    if (seconds > 1e9) seconds = 1e9;
    struct timespec left = {.tv_sec = (time_t)seconds};
    left.tv_nsec = (long)((seconds - (double)left.tv_sec) * 1e9);
    while (nanosleep(&left, &left) != 0 && errno == EINTR) {
    }
}

void dr_clock_stamp(char out[32]) {
    time_t now = time(NULL);
    struct tm parts;
    localtime_r(&now, &parts);
    if (strftime(out, 32, "%Y-%m-%dT%H:%M:%S%z", &parts) == 0) out[0] = '\0';
}

void dr_clock_format(double seconds, char out[32]) {
    if (seconds < 0) seconds = 0;
    if (seconds > 3.6e8) seconds = 3.6e8;
    if (seconds < 99.95) {
        snprintf(out, 32, "%.1f s", seconds);
        return;
    }
    int64_t whole = (int64_t)(seconds + 0.5);
    if (whole < 3600)
        snprintf(out, 32, "%d min %02d s", (int)(whole / 60), (int)(whole % 60));
    else
        snprintf(out, 32, "%d h %02d min", (int)(whole / 3600), (int)(whole % 3600 / 60));
}
