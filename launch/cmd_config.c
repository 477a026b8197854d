// deeprec config: the effective settings of a training run, checked, without running it; or the reference of
// all of them.
#include <stdio.h>

#include "launch/cli.h"
#include "launch/settings.h"

static const dr_setting options[] = {
    DR_TEXT_LIST("set", "", "KEY=VALUE", "overrides one setting"),
    DR_BOOL("reference", "false", "prints what every setting means, as Markdown"),
    DR_BOOL("complete", "false", "also fails when a setting without a default is missing"),
    DR_BOOL("hash", "false", "prints only the hash of the settings that affect results"),
};

static dr_status print_buf(dr_buf *text, dr_status status) {
    if (status == DR_OK) fwrite(text->data, 1, text->length, stdout);
    dr_buf_reset(text);
    return status;
}

static dr_status print_config(const dr_cli *cli, const dr_config *config) {
    dr_buf text = {0};
    if (!dr_config_bool(cli->options, "hash")) return print_buf(&text, dr_config_dump(config, &text));
    uint64_t hash = 0;
    DR_TRY(dr_config_hash(config, &hash));
    printf("%016llx\n", (unsigned long long)hash);
    return DR_OK;
}

static dr_status run(const dr_cli *cli) {
    if (dr_config_bool(cli->options, "reference")) {
        if (cli->n_args) return dr_cli_usage(cli, "--reference takes no file");
        dr_buf text = {0};
        return print_buf(&text, dr_settings_reference(dr_train_settings, dr_train_settings_count, &text));
    }
    int32_t n = dr_config_count(cli->options, "set");
    const char **overrides = NULL;
    DR_TRY(dr_alloc(&overrides, "overrides", n, sizeof *overrides));
    for (int32_t i = 0; i < n; i++) overrides[i] = dr_config_string_at(cli->options, "set", i);
    dr_config *config = NULL;
    dr_status status = dr_settings_read(cli->n_args ? cli->args[0] : NULL, overrides, n,
                                        dr_config_bool(cli->options, "complete"), &config);
    dr_free(overrides);
    if (status == DR_OK) status = print_config(cli, config);
    dr_config_destroy(config);
    return status;
}

const dr_command dr_command_config = {
    .name = "config",
    .summary = "checks a training configuration and prints every setting that would hold",
    .help = "Reads the file and the overrides as 'deeprec train' would, and prints the result as YAML that "
            "can be read "
            "again. Without a file: the defaults.",
    .arguments = "[CONFIG.yaml]",
    .max_args = 1,
    .options = options,
    .n_options = sizeof options / sizeof options[0],
    .run = run,
};
