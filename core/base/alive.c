// The listener of each thread.
#include "core/base/alive.h"

#include <stddef.h>

static _Thread_local const dr_alive_listener *heard_by;

const dr_alive_listener *dr_alive_listen(const dr_alive_listener *listener) {
    const dr_alive_listener *before = heard_by;
    heard_by = listener;
    return before;
}

static dr_status say(bool is_waiting) {
    return heard_by && heard_by->hear ? heard_by->hear(heard_by->context, is_waiting) : DR_OK;
}

dr_status dr_alive_work(void) {
    return say(false);
}

dr_status dr_alive_wait(void) {
    return say(true);
}
