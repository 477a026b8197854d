// Signals that ask for an orderly end: the running step is finished, a checkpoint is written, the process
// ends with 75.
#ifndef DR_LAUNCH_SIGNALS_H
#define DR_LAUNCH_SIGNALS_H

#include <signal.h>

// Watches SIGUSR1, SIGTERM and SIGINT; the flag turns 1 with the first of them.
const volatile sig_atomic_t *dr_signals_watch(void);

#endif
