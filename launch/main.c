// The list of sub-commands, made by the build from launch/cmd_*.c, and the only place that ends the process.
// MPI is not touched here: a command that needs it starts it itself.
#include <stddef.h>
#include <stdlib.h>
#include <unistd.h>

#include "launch/cli.h"

#define DR_COMMAND(symbol) extern const dr_command symbol;
#include "command_list.inc"
#undef DR_COMMAND

static const dr_command *const commands[] = {
#define DR_COMMAND(symbol) &symbol,
#include "command_list.inc"
#undef DR_COMMAND
    NULL};

// Threads that wait must leave the cores to other ranks: with OpenMP's usual spinning two processes on two
// cores slow each other tenfold. The runtime reads its settings before main, so the program starts itself
// again, once.
static void wait_politely(char **argv) {
    if (getenv("OMP_WAIT_POLICY") || getenv("GOMP_SPINCOUNT")) return;
    if (setenv("OMP_WAIT_POLICY", "passive", 1) != 0 || setenv("GOMP_SPINCOUNT", "3000", 1) != 0) return;
    char path[4096];
    ssize_t length = readlink("/proc/self/exe", path, sizeof path - 1);
    if (length <= 0) return;
    path[length] = '\0';
    execv(path, argv); // comes back only where that is not possible: then it runs on, only slower
}

int main(int argc, char **argv) {
    wait_politely(argv);
    return dr_cli_main(commands, argc, argv);
}
