// `deeprec export`: a Hugging Face folder from a checkpoint.
#include <stdio.h>

#include "core/base/log.h"
#include "core/learn/checkpoint.h"
#include "core/text/tokenizer.h"
#include "launch/cli.h"

static const dr_setting options[] = {
    DR_TEXT("checkpoint", NULL, "FOLDER", "checkpoints/step_N of a run"),
    DR_TEXT("model", NULL, "FOLDER", "policy that the run started from: its config.json and tokenizer"),
    DR_TEXT("out", NULL, "FOLDER", "folder to write"),
    DR_CHOICE("dtype", "fp32", "fp32|model",
              "type of the weights: fp32, or each tensor's in the model folder, rounded"),
};

static dr_status export_command(const dr_cli *cli) {
    const char *model = dr_config_string(cli->options, "model"), *out = dr_config_string(cli->options, "out");
    dr_backend *backend = NULL;
    dr_lm *lm = NULL;
    dr_tokenizer *tokenizer = NULL;
    DR_TRY(dr_backend_cpu_create(DR_FP32, 0, &backend));
    dr_status status = dr_lm_load(backend, model, &lm);
    if (status == DR_OK) status = dr_tokenizer_load(model, &tokenizer);
    if (status == DR_OK) status = dr_checkpoint_load(lm, NULL, dr_config_string(cli->options, "checkpoint"));
    if (status == DR_OK) status = dr_tokenizer_save(tokenizer, out);
    if (status == DR_OK)
        status = dr_lm_save(
            lm, out, (dr_save_type)dr_config_choice(cli->options, "dtype")); // rows in the enum's order
    if (status == DR_OK) dr_info("%s written", out);
    dr_tokenizer_destroy(tokenizer);
    dr_lm_destroy(lm);
    dr_backend_cpu_destroy(backend);
    return status;
}

const dr_command dr_command_export = {
    .name = "export",
    .summary = "writes a checkpoint as a Hugging Face folder",
    .help = "The folder opens in transformers. The checkpoint's digests are checked first.",
    .arguments = "",
    .options = options,
    .n_options = sizeof options / sizeof *options,
    .run = export_command,
};
