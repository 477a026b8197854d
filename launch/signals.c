// The handler only sets a flag; the coordinator looks at it between steps.
#include "launch/signals.h"

#include <stddef.h>

static volatile sig_atomic_t requested;

static void on_signal(int number) {
    (void)number;
    requested = 1;
}

const volatile sig_atomic_t *dr_signals_watch(void) {
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    static const int watched[] = {SIGUSR1, SIGTERM, SIGINT};
    for (size_t i = 0; i < sizeof watched / sizeof *watched; i++) sigaction(watched[i], &action, NULL);
    return &requested;
}
