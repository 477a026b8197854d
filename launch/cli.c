// Matching, option reading and help. Nothing here ends the process: main.c returns what dr_cli_main returned.
#include "launch/cli.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "core/base/alloc.h"
#include "core/base/log.h"

enum { HELP_COLUMN = 28, WRAP_COLUMN = 100 };

static int usage_error; // set by dr_cli_usage, read once the command is back

static const dr_setting log_option = DR_CHOICE(
    "log", "info", "debug|info|warn|error", "lowest level of log lines (also by the environment's DR_LOG)");

dr_status dr_cli_usage(const dr_cli *cli, const char *format, ...) {
    va_list args;
    fflush(stdout);
    fprintf(stderr, "deeprec %s: ", cli->command->name);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fprintf(stderr, "\nTry 'deeprec %s --help'.\n", cli->command->name);
    usage_error = 1;
    return DR_ERR_ARGUMENT;
}

static int is_list(const dr_setting *option) {
    return dr_setting_is_list(option);
}

// ---- help ----

static void print_wrapped(const char *text, int indent, int column) {
    while (*text) {
        size_t word = strcspn(text, " \n");
        if (column + (int)word > WRAP_COLUMN && column > indent) {
            printf("\n%*s", indent, "");
            column = indent;
        }
        printf("%.*s", (int)word, text);
        column += (int)word;
        text += word;
        if (*text == '\n') {
            printf("\n%*s", text[1] ? indent : 0, "");
            column = indent;
            text++;
        } else if (*text == ' ') {
            printf(" ");
            column++;
            text++;
        }
    }
    printf("\n");
}

static void value_name(const dr_setting *option, char out[128]) {
    switch (option->type) {
    case DR_VALUE_BOOL:
        out[0] = '\0';
        return;
    case DR_VALUE_INT:
    case DR_VALUE_INT_LIST:
        snprintf(out, 128, " N");
        return;
    case DR_VALUE_FLOAT:
    case DR_VALUE_FLOAT_LIST:
        snprintf(out, 128, " X");
        return;
    case DR_VALUE_CHOICE:
        snprintf(out, 128, " %s", option->choices);
        return;
    default:
        snprintf(out, 128, " %s", option->unit && option->unit[0] ? option->unit : "TEXT");
        return;
    }
}

static void print_option(const dr_setting *option) {
    char value[128], expected[256], text[1024];
    value_name(option, value);
    int is_switch = option->type == DR_VALUE_BOOL;
    int starts_on = is_switch && option->fallback && strcmp(option->fallback, "true") == 0;
    int column = printf("  --%s%s%s  ", starts_on ? "no-" : "", option->key, value);
    if (column < HELP_COLUMN) column += printf("%*s", HELP_COLUMN - column, "");
    if (column > HELP_COLUMN) {
        printf("\n%*s", HELP_COLUMN, "");
        column = HELP_COLUMN;
    }
    int used = snprintf(text, sizeof text, "%s", option->help);
    int is_number = option->type == DR_VALUE_INT || option->type == DR_VALUE_FLOAT ||
                    option->type == DR_VALUE_INT_LIST || option->type == DR_VALUE_FLOAT_LIST;
    if (is_number && used < (int)sizeof text) {
        dr_setting_expected(option, expected);
        used += snprintf(text + used, sizeof text - (size_t)used, "; %s%s%s", expected,
                         option->unit && option->unit[0] ? ", " : "", option->unit ? option->unit : "");
    }
    if (used < (int)sizeof text) {
        if (!option->fallback)
            used += snprintf(text + used, sizeof text - (size_t)used, " (required)");
        else if (!is_switch && option->fallback[0])
            used += snprintf(text + used, sizeof text - (size_t)used, " (default %s)", option->fallback);
    }
    if (is_list(option) && used < (int)sizeof text)
        snprintf(text + used, sizeof text - (size_t)used, "; may be repeated");
    print_wrapped(text, HELP_COLUMN, column);
}

static void print_command_help(const dr_command *command) {
    printf("deeprec %s - %s\n\nUsage: deeprec %s [options]%s%s\n", command->name, command->summary,
           command->name, command->arguments[0] ? " " : "", command->arguments);
    if (command->help && command->help[0]) {
        printf("\n");
        print_wrapped(command->help, 0, 0);
    }
    printf("\nOptions:\n");
    for (int32_t i = 0; i < command->n_options; i++) print_option(&command->options[i]);
    print_option(&log_option);
    printf("  --help                    this text\n");
}

static void print_overview(const dr_command *const *commands, const char *prefix) {
    printf(
        "deeprec %s: trains language models to recommend by calling a retrieval model over several turns\n\n"
        "Usage: deeprec COMMAND [options] [arguments]\n\nCommands:\n",
        DR_VERSION);
    for (; *commands; commands++)
        if (!prefix || strncmp((*commands)->name, prefix, strlen(prefix)) == 0)
            printf("  %-16s %s\n", (*commands)->name, (*commands)->summary);
    printf("\n'deeprec COMMAND --help' explains one command; 'deeprec doctor' checks this machine.\n"
           "Exit codes: 0 done, 1 failed, 2 wrong command line, 75 interrupted (run again to continue).\n");
}

// ---- reading options ----

typedef struct parse {
    dr_cli cli;
    dr_config *options;
    const char **args;
    int wants_help;
} parse;

static const dr_setting *find_option(const dr_command *command, const char *name) {
    int32_t at = dr_setting_find(command->options, command->n_options, name);
    if (at >= 0) return &command->options[at];
    return strcmp(name, log_option.key) == 0 ? &log_option : NULL;
}

static dr_status unknown_option(const parse *p, const char *name) {
    const char *names[66];
    int32_t n = 0;
    for (; n < p->cli.command->n_options && n < 64; n++) names[n] = p->cli.command->options[n].key;
    names[n++] = log_option.key;
    names[n++] = "help";
    return dr_cli_usage(&p->cli, "unknown option --%s; the nearest known one is --%s", name,
                        dr_nearest_name(name, names, n));
}

static dr_status set_log_level(const parse *p, const char *value) {
    dr_scalar scalar = {0};
    if (dr_scalar_read(&log_option, "command line", value, &scalar) != DR_OK)
        return dr_cli_usage(&p->cli, "--log takes %s", log_option.choices);
    dr_log_set_level((dr_log_level)scalar.integer);
    return DR_OK;
}

static dr_status store_value(parse *p, const dr_setting *option, const char *value) {
    if (option == &log_option) return set_log_level(p, value);
    dr_status status;
    if (option->type == DR_VALUE_STRING_LIST || (is_list(option) && !strchr(value, ',') && value[0] != '['))
        status = dr_config_append(p->options, "command line", option->key, value);
    else
        status = dr_config_set(p->options, "command line", option->key, value);
    return status == DR_OK ? DR_OK : dr_cli_usage(&p->cli, "--%s has a wrong value", option->key);
}

// One argument that begins with "--"; *at is moved past a value in the next argument.
static dr_status read_option(parse *p, int *at) {
    char name[64];
    const char *text = p->cli.argv[*at] + 2, *equals = strchr(text, '='), *value = equals ? equals + 1 : NULL;
    snprintf(name, sizeof name, "%.*s", (int)(equals ? (size_t)(equals - text) : strlen(text)), text);
    if (strcmp(name, "help") == 0) {
        p->wants_help = 1;
        return DR_OK;
    }
    const dr_setting *option = find_option(p->cli.command, name);
    if (!option && strncmp(name, "no-", 3) == 0 && !value) {
        option = find_option(p->cli.command, name + 3);
        if (option && option->type == DR_VALUE_BOOL) return store_value(p, option, "false");
        option = NULL;
    }
    if (!option) return unknown_option(p, name);
    if (option->type == DR_VALUE_BOOL) return store_value(p, option, value ? value : "true");
    if (!value) {
        if (*at + 1 >= p->cli.argc) return dr_cli_usage(&p->cli, "--%s needs a value", name);
        value = p->cli.argv[++*at];
        if (strncmp(value, "--", 2) == 0)
            return dr_cli_usage(&p->cli, "--%s needs a value, found %s (write --%s=%s if meant)", name, value,
                                name, value);
    }
    return store_value(p, option, value);
}

static dr_status read_command_line(parse *p, int first) {
    int only_arguments = 0;
    for (int at = first; at < p->cli.argc && !p->wants_help; at++) {
        const char *text = p->cli.argv[at];
        if (only_arguments || text[0] != '-' || text[1] == '\0')
            p->args[p->cli.n_args++] = text;
        else if (strcmp(text, "--") == 0)
            only_arguments = 1;
        else if (strcmp(text, "-h") == 0)
            p->wants_help = 1;
        else if (text[1] != '-')
            return dr_cli_usage(&p->cli, "unknown option %s (options have two dashes)", text);
        else
            DR_TRY(read_option(p, &at));
    }
    if (p->wants_help) return DR_OK;
    const dr_command *command = p->cli.command;
    if (p->cli.n_args < command->min_args)
        return dr_cli_usage(&p->cli, "expected %s",
                            command->arguments[0] ? command->arguments : "no arguments");
    if (command->max_args >= 0 && p->cli.n_args > command->max_args)
        return dr_cli_usage(&p->cli, "unexpected argument '%s'; expected %s", p->args[command->max_args],
                            command->arguments[0] ? command->arguments : "none");
    char where[96];
    snprintf(where, sizeof where, "deeprec %s", command->name);
    if (dr_config_complete(p->options, where) != DR_OK)
        return dr_cli_usage(&p->cli, "a required option is missing");
    return DR_OK;
}

static int exit_code(dr_status status) {
    if (usage_error) return DR_EXIT_USAGE;
    if (status == DR_ERR_INTERRUPTED) return DR_EXIT_INTERRUPTED;
    return status == DR_OK ? DR_EXIT_OK : DR_EXIT_FAILURE;
}

// Output that could not be written is a failure, however well the command went.
static dr_status flush_output(void) {
    if (fflush(stdout) != 0 || ferror(stdout))
        return DR_FAIL(DR_ERR_IO, "standard output: cannot write: %s", strerror(errno));
    return DR_OK;
}

static int run_command(const dr_command *command, int first, int argc, char **argv) {
    parse p = {.cli = {.command = command, .argc = argc, .argv = argv}};
    dr_status status = dr_config_create(command->options, command->n_options, &p.options);
    if (status == DR_OK) status = dr_alloc(&p.args, "arguments", argc, sizeof *p.args);
    p.cli.options = p.options;
    p.cli.args = p.args;
    if (status == DR_OK) status = read_command_line(&p, first);
    if (status == DR_OK && p.wants_help)
        print_command_help(command);
    else if (status == DR_OK)
        status = command->run(&p.cli);
    dr_status flushed = flush_output();
    dr_free(p.args);
    dr_config_destroy(p.options);
    return exit_code(status == DR_OK ? flushed : status);
}

// ---- finding the command ----

// How many arguments from argv[1] spell the name ("trm train": two), 0 if they do not.
static int words_matched(const char *name, int argc, char **argv) {
    int words = 0;
    while (*name) {
        size_t length = strcspn(name, " ");
        if (words + 1 >= argc || strlen(argv[words + 1]) != length ||
            memcmp(argv[words + 1], name, length) != 0)
            return 0;
        words++;
        name += length + (name[length] == ' ');
    }
    return words;
}

// The nearest name, compared with the first one or two words given.
static int unknown_command(const dr_command *const *commands, int argc, char **argv) {
    char one[64], two[130];
    snprintf(one, sizeof one, "%s", argv[1]);
    snprintf(two, sizeof two, "%s %.60s", one, argc > 2 && argv[2][0] != '-' ? argv[2] : "");
    const char *names[128];
    int32_t n = 0;
    for (; commands[n] && n < 128; n++) names[n] = commands[n]->name;
    const char *nearest = dr_nearest_name(one, names, n);
    for (int32_t i = 0; i < n; i++)
        if (strncmp(names[i], one, strlen(one)) == 0) nearest = dr_nearest_name(two, names, n);
    fprintf(stderr, "deeprec: unknown command '%s'; the nearest known one is '%s'\nTry 'deeprec --help'.\n",
            one, nearest ? nearest : "(there is none)");
    return DR_EXIT_USAGE;
}

static int is_word(const char *text, const char *a, const char *b) {
    return strcmp(text, a) == 0 || strcmp(text, b) == 0;
}

int dr_cli_main(const dr_command *const *commands, int argc, char **argv) {
    usage_error = 0;
    if (argc < 2) {
        print_overview(commands, NULL);
        return DR_EXIT_USAGE;
    }
    if (is_word(argv[1], "--version", "version")) {
        printf("deeprec %s\n", DR_VERSION);
        return exit_code(flush_output());
    }
    int is_help = is_word(argv[1], "--help", "-h") || strcmp(argv[1], "help") == 0;
    int skip = is_help && argc > 2; // "help NAME"
    const dr_command *best = NULL;
    int best_words = 0;
    for (int i = 0; commands[i]; i++) {
        int words = words_matched(commands[i]->name, argc - skip, argv + skip);
        if (words > best_words) {
            best = commands[i];
            best_words = words;
        }
    }
    if (best && is_help) {
        print_command_help(best);
        return exit_code(flush_output());
    }
    if (best) return run_command(best, best_words + 1, argc, argv);
    if (is_help && !skip) {
        print_overview(commands, NULL);
        return exit_code(flush_output());
    }
    char prefix[64];
    snprintf(prefix, sizeof prefix, "%.60s ", argv[1 + skip]);
    for (int i = 0; commands[i]; i++) {
        if (strncmp(commands[i]->name, prefix, strlen(prefix)) != 0) continue;
        if (argc - skip > 2 && argv[2 + skip][0] != '-') break; // "trm tran": a wrong second word
        print_overview(commands, prefix);
        return argc - skip > 2 || is_help ? exit_code(flush_output()) : DR_EXIT_USAGE;
    }
    return unknown_command(commands, argc - skip, argv + skip);
}
