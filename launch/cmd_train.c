// `deeprec train`: two-stage reinforcement learning.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/clock.h"
#include "core/base/file.h"
#include "core/base/json.h"
#include "core/base/log.h"
#include "launch/cli.h"
#include "launch/settings.h"
#include "launch/signals.h"
#include "launch/wiring.h"
#include "mpi/world.h"

static const dr_setting options[] = {
    DR_TEXT_LIST("set", "[]", "KEY=VALUE", "overrides one setting of the configuration; may be repeated"),
    DR_BOOL("resume", "false",
            "continue from the newest usable checkpoint in run.dir, or start when there is none"),
    DR_BOOL("plan", "false", "say what memory each worker will take and what is free, and stop there"),
};

// config.yaml (what is in force) and run.json (what ran) in the run folder; rank 0 writes them.
static dr_status describe_run(const dr_cli *cli, const dr_config *config, const char *hash) {
    const char *dir = dr_config_string(config, "run.dir");
    if (dr_world_launched_rank() > 0) return DR_OK;
    dr_buf yaml = {0};
    char *path = NULL, stamp[32];
    json_t *words = json_array();
    for (int i = 0; i < cli->argc; i++) json_array_append_new(words, json_string(cli->argv[i]));
    dr_clock_stamp(stamp);
    json_t *root = json_pack("{s:s, s:s, s:s, s:o}", "program", "deeprec " DR_VERSION, "started", stamp,
                             "config_hash", hash, "command", words);
    dr_status status = dr_dir_make(dir);
    if (status == DR_OK) status = dr_config_dump(config, &yaml);
    if (status == DR_OK) status = dr_path_join(&path, dir, "config.yaml");
    if (status == DR_OK) status = dr_file_replace(path, yaml.data, yaml.length);
    dr_free(path);
    path = NULL;
    if (status == DR_OK) status = dr_path_join(&path, dir, "run.json");
    if (status == DR_OK) status = dr_json_save(root, path);
    dr_free(path);
    dr_buf_reset(&yaml);
    json_decref(root);
    return status;
}

static dr_status train(const dr_cli *cli, const dr_config *config) {
    char hash[24];
    uint64_t value = 0;
    dr_run_settings settings;
    int interrupted = 0;
    DR_TRY(dr_config_hash(config, &value));
    snprintf(hash, sizeof hash, "%016llx", (unsigned long long)value);
    dr_wiring_settings(config, hash, &settings);
    settings.resume = dr_config_bool(cli->options, "resume");
    settings.stop_requested = dr_signals_watch();
    bool is_plan = dr_config_bool(cli->options, "plan");
    if (!is_plan) DR_TRY(describe_run(cli, config, hash));
    DR_TRY(dr_wiring_run(cli, config, &settings, is_plan, &interrupted));
    if (interrupted) dr_info("stopped early with a checkpoint; --resume goes on");
    return interrupted ? DR_ERR_INTERRUPTED : DR_OK;
}

static dr_status train_command(const dr_cli *cli) {
    dr_config *config = NULL;
    const char *overrides[256];
    int32_t n = dr_config_count(cli->options, "set");
    if (n > 256) return dr_cli_usage(cli, "at most 256 --set");
    for (int32_t i = 0; i < n; i++) overrides[i] = dr_config_string_at(cli->options, "set", i);
    DR_TRY(dr_settings_read(cli->args[0], overrides, n, 1, &config));
    dr_status status = train(cli, config);
    dr_config_destroy(config);
    return status;
}

const dr_command dr_command_train = {
    .name = "train",
    .summary = "two-stage reinforcement learning of a policy",
    .help = "Alone it plays all roles in one process; under mpirun or srun rank 0 coordinates, the next "
            "ranks score, the others roll "
            "out and learn. `deeprec config --reference` explains every setting. USR1 or TERM: the running "
            "step is finished, a "
            "checkpoint is written, and the program ends with 75.",
    .arguments = "CONFIG.yaml",
    .min_args = 1,
    .max_args = 1,
    .options = options,
    .n_options = sizeof options / sizeof *options,
    .run = train_command,
};
