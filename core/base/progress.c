// Draws with one write a line, so that several ranks do not mix inside a line.
#include "core/base/progress.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "core/base/clock.h"
#include "core/base/log.h"

enum { BAR_CELLS = 24 };

dr_progress dr_progress_start(const char *label, const char *unit, int64_t total) {
    dr_progress progress = {.label = label, .unit = unit, .total = total > 0 ? total : 0};
    progress.started = progress.drawn = dr_clock_seconds();
    progress.is_terminal = isatty(STDERR_FILENO);
    return progress;
}

static void amount_text(const dr_progress *progress, int64_t amount, char out[48]) {
    if (strcmp(progress->unit, "bytes") == 0)
        snprintf(out, 48, "%.1f MB", (double)amount / 1e6);
    else
        snprintf(out, 48, "%lld %s", (long long)amount, progress->unit);
}

static void write_line(const char *text, size_t length) {
    ssize_t ignored = write(STDERR_FILENO, text, length);
    (void)ignored;
}

static void draw_bar(const dr_progress *progress, double elapsed) {
    char line[320], bar[BAR_CELLS + 1], amount[48], left[32] = "";
    amount_text(progress, progress->done, amount);
    int length;
    if (progress->total > 0) {
        double share = (double)progress->done / (double)progress->total;
        share = share > 1 ? 1 : share;
        for (int i = 0; i < BAR_CELLS; i++) bar[i] = i < (int)(share * BAR_CELLS) ? '#' : '.';
        bar[BAR_CELLS] = '\0';
        if (share > 0.01) dr_clock_format(elapsed * (1 - share) / share, left);
        length = snprintf(line, sizeof line, "\r%s [%s] %3d %% %s%s%s%s%s\033[K", progress->label, bar,
                          (int)(share * 100), amount, left[0] ? ", left " : "", left,
                          progress->note[0] ? ", " : "", progress->note);
    } else {
        length = snprintf(line, sizeof line, "\r%s: %s%s%s\033[K", progress->label, amount,
                          progress->note[0] ? ", " : "", progress->note);
    }
    if (length > 0) write_line(line, (size_t)length < sizeof line ? (size_t)length : sizeof line - 1);
}

static void plain_line(const dr_progress *progress, double elapsed, const char *what) {
    char amount[48], time_text[32];
    amount_text(progress, progress->done, amount);
    dr_clock_format(elapsed, time_text);
    dr_info("%s: %s%s in %s%s%s", progress->label, what, amount, time_text, progress->note[0] ? ", " : "",
            progress->note);
}

void dr_progress_update(dr_progress *progress, int64_t done) {
    progress->done = done;
    double now = dr_clock_seconds(), elapsed = now - progress->started;
    if (progress->is_terminal) {
        if (now - progress->drawn < 0.1) return;
        progress->drawn = now;
        draw_bar(progress, elapsed);
        return;
    }
    char percent[16] = "";
    if (progress->total > 0) {
        int32_t tenth = (int32_t)((double)done / (double)progress->total * 10);
        // Fast loops stay quiet: at most one plain line a second.
        if (tenth <= progress->tenth || tenth >= 10 || now - progress->drawn < 1.0) return;
        progress->tenth = tenth;
        snprintf(percent, sizeof percent, "%d %%, ", tenth * 10);
    } else if (now - progress->drawn < 10.0) {
        return;
    }
    progress->drawn = now;
    plain_line(progress, elapsed, percent);
}

void dr_progress_note(dr_progress *progress, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(progress->note, sizeof progress->note, format, args);
    va_end(args);
}

void dr_progress_finish(dr_progress *progress) {
    double elapsed = dr_clock_seconds() - progress->started;
    if (progress->is_terminal) write_line("\r\033[K", 4);
    if (progress->is_terminal || elapsed >= 0.5) plain_line(progress, elapsed, "done, ");
}
