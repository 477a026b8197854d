// Formats a whole line first and writes it in one call, so that lines of several ranks do not mix.
#include "core/base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static int log_level = -1;
static char log_role[16];
static int log_rank;

static int level_from_environment(void) {
    static const char *const names[] = {"debug", "info", "warn", "error"};
    const char *wanted = getenv("DR_LOG");
    for (int i = 0; wanted && i < 4; i++)
        if (strcmp(wanted, names[i]) == 0) return i;
    return DR_LOG_INFO;
}

void dr_log_set_level(dr_log_level level) {
    log_level = (int)level;
}

void dr_log_set_identity(const char *role, int rank) {
    snprintf(log_role, sizeof log_role, "%s", role);
    log_rank = rank;
}

void dr_log(dr_log_level level, const char *format, ...) {
    static const char *const tags[] = {"debug", "info ", "warn ", "error"};
    if (log_level < 0) log_level = level_from_environment();
    if ((int)level < log_level) return;
    char line[4096];
    struct timespec now;
    struct tm parts;
    clock_gettime(CLOCK_REALTIME, &now);
    localtime_r(&now.tv_sec, &parts);
    size_t used = strftime(line, sizeof line, "%H:%M:%S", &parts);
    used += (size_t)snprintf(line + used, sizeof line - used, " %s ", tags[level]);
    if (log_role[0])
        used += (size_t)snprintf(line + used, sizeof line - used, "[%s %d] ", log_role, log_rank);
    va_list args;
    va_start(args, format);
    int wrote = vsnprintf(line + used, sizeof line - used - 1, format, args);
    va_end(args);
    if (wrote > 0) used += (size_t)wrote;
    if (used > sizeof line - 2) used = sizeof line - 2;
    line[used++] = '\n';
    ssize_t ignored = write(STDERR_FILENO, line, used);
    (void)ignored;
}
