// Error record per thread and the one place that may abort the process.
#include "core/base/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/base/log.h"

static _Thread_local char last_error[2048];

dr_status dr_fail(dr_status status, const char *file, int line, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(last_error, sizeof last_error, format, args);
    va_end(args);
    dr_log(DR_LOG_ERROR, "%s: %s", dr_status_name(status), last_error);
    dr_debug("  raised at %s:%d", file, line);
    return status;
}

const char *dr_last_error(void) {
    return last_error;
}

const char *dr_status_name(dr_status status) {
    switch (status) {
    case DR_OK:
        return "ok";
    case DR_ERR_ARGUMENT:
        return "bad argument";
    case DR_ERR_IO:
        return "input/output error";
    case DR_ERR_FORMAT:
        return "format error";
    case DR_ERR_RANGE:
        return "out of range";
    case DR_ERR_MEMORY:
        return "out of memory";
    case DR_ERR_UNSUPPORTED:
        return "not supported";
    case DR_ERR_TIMEOUT:
        return "deadline passed";
    case DR_ERR_PEER:
        return "peer failure";
    case DR_ERR_NUMERIC:
        return "not a finite number";
    case DR_ERR_INTERRUPTED:
        return "interrupted";
    case DR_ERR_INTERNAL:
        return "internal error";
    }
    return "unknown status";
}

void dr_assert_failed(const char *expression, const char *file, int line) {
    dr_log(DR_LOG_ERROR, "assertion failed: %s (%s:%d)", expression, file, line);
    abort();
}
