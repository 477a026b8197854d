// One thread a watch, asleep on a condition with the monotonic clock.
#include "mpi/world_watch.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "core/base/alloc.h"
#include "core/base/clock.h"
#include "mpi/world.h"

struct dr_world_watch {
    pthread_t thread;
    pthread_mutex_t lock; // of all below
    pthread_cond_t changed;
    double deadline_s, begun; // of the phase
    const char *phase;
    int rank; // -1: not known
    bool is_over;
};

static struct timespec at(double seconds) {
    struct timespec time = {.tv_sec = (time_t)seconds};
    time.tv_nsec = (long)((seconds - (double)time.tv_sec) * 1e9);
    return time;
}

static void give_up(const dr_world_watch *w) __attribute__((noreturn));
static void give_up(const dr_world_watch *w) {
    char host[256] = "", rank[16] = "unknown";
    const int known = w->rank >= 0 ? w->rank : dr_world_launched_rank();
    if (gethostname(host, sizeof host - 1) != 0 || !host[0]) snprintf(host, sizeof host, "of unknown name");
    if (known >= 0) snprintf(rank, sizeof rank, "%d", known);
    (void)DR_FAIL(
        DR_ERR_TIMEOUT,
        "mpi: %s has not ended after %.1f s (at most %g s) on host %s, rank %s: not every rank has "
        "come to it. Look for a node that is down or out of reach, a rank that ended or hangs before "
        "this point, and whether the launcher started all of them",
        w->phase, dr_clock_seconds() - w->begun, w->deadline_s, host, rank);
    _exit(EXIT_FAILURE);
}

static void *keep_watch(void *argument) {
    dr_world_watch *w = argument;
    pthread_mutex_lock(&w->lock);
    while (!w->is_over) {
        struct timespec end = at(w->begun + w->deadline_s); // looked up anew after each change
        int code = pthread_cond_timedwait(&w->changed, &w->lock, &end);
        if (code == ETIMEDOUT && !w->is_over && dr_clock_seconds() >= w->begun + w->deadline_s) give_up(w);
    }
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

// Deadlines go by the clock that nobody sets.
static int make_condition(pthread_cond_t *out) {
    pthread_condattr_t attributes;
    int code = pthread_condattr_init(&attributes);
    if (code != 0) return code;
    code = pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    if (code == 0) code = pthread_cond_init(out, &attributes);
    pthread_condattr_destroy(&attributes);
    return code;
}

// Signals stay with the thread that asks for them.
static int start_thread(dr_world_watch *w) {
    sigset_t all, before;
    sigfillset(&all);
    int code = pthread_sigmask(SIG_SETMASK, &all, &before);
    if (code != 0) return code;
    code = pthread_create(&w->thread, NULL, keep_watch, w);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return code;
}

dr_status dr_world_watch_begin(double deadline_s, const char *phase, int rank, dr_world_watch **out_watch) {
    dr_world_watch *w = NULL;
    DR_TRY(dr_alloc(&w, "watch of a call", 1, sizeof *w));
    w->lock = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
    w->deadline_s = deadline_s;
    w->begun = dr_clock_seconds();
    w->phase = phase;
    w->rank = rank;
    int code = make_condition(&w->changed);
    if (code == 0 && (code = start_thread(w)) != 0) pthread_cond_destroy(&w->changed);
    if (code != 0) {
        dr_free(w);
        return DR_FAIL(code == EAGAIN ? DR_ERR_MEMORY : DR_ERR_IO, "mpi: no thread to watch %s: error %d",
                       phase, code);
    }
    *out_watch = w;
    return DR_OK;
}

void dr_world_watch_next(dr_world_watch *w, const char *phase, int rank) {
    pthread_mutex_lock(&w->lock);
    w->phase = phase;
    w->rank = rank;
    w->begun = dr_clock_seconds();
    pthread_cond_signal(&w->changed);
    pthread_mutex_unlock(&w->lock);
}

void dr_world_watch_end(dr_world_watch *w) {
    if (!w) return;
    pthread_mutex_lock(&w->lock);
    w->is_over = true;
    pthread_cond_signal(&w->changed);
    pthread_mutex_unlock(&w->lock);
    pthread_join(w->thread, NULL);
    pthread_cond_destroy(&w->changed);
    pthread_mutex_destroy(&w->lock);
    dr_free(w);
}
