// The list of sub-commands, made by the build from launch/cmd_*.c, and the only place that ends the process.
// MPI is not touched here: a command that needs it starts it itself.
#include <stddef.h>

#include "launch/cli.h"

#define DR_COMMAND(symbol) extern const dr_command symbol;
#include "command_list.inc"
#undef DR_COMMAND

static const dr_command *const commands[] = {
#define DR_COMMAND(symbol) &symbol,
#include "command_list.inc"
#undef DR_COMMAND
    NULL};

int main(int argc, char **argv) {
    return dr_cli_main(commands, argc, argv);
}
