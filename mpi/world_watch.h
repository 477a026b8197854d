// A deadline for calls of MPI that cannot be given one: MPI_Init, MPI_Finalize, and the creation and the end
// of communicators return when every process has come, or never.
#ifndef DR_MPI_WORLD_WATCH_H
#define DR_MPI_WORLD_WATCH_H

#include "core/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct dr_world_watch dr_world_watch;

// From here on a thread of its own sleeps until deadline_s have passed or the watch ends. Where they have
// passed it says in one line on standard error what was waited for, how long, and on which host and rank, and
// ends this process with 1, as a failure does: nothing else comes back from such a call, and the launcher
// then ends the others. It needs nothing of MPI and takes no signals.
// phase: static text, "MPI_Init". rank -1: not known yet, then the launcher's environment is asked. The
// caller ends *out_watch on the same thread. DR_ERR_MEMORY: no thread could be had; DR_ERR_IO: the system
// refused something else.
dr_status dr_world_watch_begin(double deadline_s, const char *phase, int rank, dr_world_watch **out_watch);

// The call has returned and the next one comes: it has the whole deadline for itself.
void dr_world_watch_next(dr_world_watch *watch, const char *phase, int rank);

// Nothing is waited for any more; returns when the thread has gone. NULL: nothing.
void dr_world_watch_end(dr_world_watch *watch);

#ifdef __cplusplus
}
#endif
#endif
