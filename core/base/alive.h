// Long work says that it goes on, piece by piece, to whoever answers for this thread: a role whose peers take
// silence for an end. Only the thread that works says so, so that work which hangs is silent. Other threads
// have no listener of their own, and nobody hears them.
#ifndef DR_CORE_BASE_ALIVE_H
#define DR_CORE_BASE_ALIVE_H

#include <stdbool.h>

#include "core/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct dr_alive_listener {
    dr_status (*hear)(void *context, bool is_waiting); // NULL: hears nothing
    void *context;
} dr_alive_listener;

// Who hears this thread from now on, borrowed; NULL: nobody, as at first. Returns who did before.
const dr_alive_listener *dr_alive_listen(const dr_alive_listener *listener);

// A piece of long work is done. Cheap enough for every MiB; errors are the listener's.
dr_status dr_alive_work(void);
// One look of a wait that ends by a deadline of its own: no hang, but no progress either.
dr_status dr_alive_wait(void);

// Seconds between signs of life where silence of deadline_s is taken for an end.
static inline double dr_alive_every(double deadline_s) {
    return deadline_s < 4 ? deadline_s / 4 : 1;
}

#ifdef __cplusplus
}
#endif
#endif
