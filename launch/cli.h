// The command line: finds the sub-command, reads its options by its table, prints help made from that table,
// and turns the command's status into an exit code. A command is one file launch/cmd_NAME.c (cmd_trm_train.c
// for "trm train") that defines `const dr_command dr_command_NAME`; the build lists the files, so adding one
// adds the command.
#ifndef DR_LAUNCH_CLI_H
#define DR_LAUNCH_CLI_H

#include <stdint.h>

#include "core/base/config.h"
#include "core/base/setting.h"
#include "core/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { DR_EXIT_OK = 0, DR_EXIT_FAILURE = 1, DR_EXIT_USAGE = 2, DR_EXIT_INTERRUPTED = 75 };

struct dr_cli;

// All text is static. Options are rows with keys without dashes: "--key VALUE" or "--key=VALUE"; a bool is
// "--key" or
// "--no-key"; a list option may be repeated (numbers also split at commas, text never). A NULL fallback makes
// an option required; optional text has the fallback "".
typedef struct dr_command {
    const char *name;      // "doctor", "trm train"
    const char *summary;   // one line
    const char *help;      // paragraphs under the usage line; may be ""
    const char *arguments; // as the usage line shows them: "CONFIG.yaml", "FILE [FILE ...]", or ""
    int32_t min_args;      // positional arguments
    int32_t max_args;      // -1: any number
    const dr_setting *options;
    int32_t n_options;
    // DR_OK ends with 0, DR_ERR_INTERRUPTED with 75, what dr_cli_usage returned with 2, anything else with 1.
    dr_status (*run)(const struct dr_cli *cli);
} dr_command;

// What a command gets. Values by dr_config_int(cli->options, "key") and so on.
typedef struct dr_cli {
    const dr_command *command;
    const dr_config *options;
    int32_t n_args;
    const char *const *args; // [n_args], borrowed
    int argc;                // the whole command line, for run.json and MPI
    char **argv;
} dr_cli;

// Prints "deeprec NAME: text" and where the help is; the command returns what this returns, the process ends
// with 2.
dr_status dr_cli_usage(const dr_cli *cli, const char *format, ...) __attribute__((format(printf, 2, 3)));

// Runs the command line and returns the exit code. `commands` ends with NULL.
int dr_cli_main(const dr_command *const *commands, int argc, char **argv);

#ifdef __cplusplus
}
#endif
#endif
