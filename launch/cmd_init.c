// `deeprec init`: a fresh small policy for a data set.
#include <stdio.h>

#include "core/learn/fresh.h"
#include "launch/cli.h"

static const dr_setting options[] = {
    DR_TEXT("dataset", NULL, "FILE", "prepared data set (.h5)"),
    DR_TEXT("out", NULL, "FOLDER", "Hugging Face folder to write"),
    DR_CHOICE("preset", "small", "tiny|small|base", "size: about 0.3, 5 and 18 million parameters"),
    DR_INT("vocab", "4096", 300, 262144, "ids", "vocabulary aimed at; a small catalogue gives fewer"),
    DR_TEXT("template", "compact", "NAME", "prompt template: compact, full, or a file"),
    DR_INT("seed", "1", 0, 9e15, "", "of the random weights"),
};

static dr_status init_command(const dr_cli *cli) {
    const dr_config *o = cli->options;
    dr_dataset *dataset = NULL;
    dr_template *prompt_template = NULL;
    char preset[64];
    int32_t vocab = 0;
    int64_t n_params = 0;
    dr_config_choice_name(o, "preset", preset);
    DR_TRY(dr_dataset_load(dr_config_string(o, "dataset"), &dataset));
    dr_status status = dr_template_load(dr_config_string(o, "template"), &prompt_template);
    if (status == DR_OK)
        status = dr_fresh_policy(preset, dataset, prompt_template, (int32_t)dr_config_int(o, "vocab"),
                                 (uint64_t)dr_config_int(o, "seed"), dr_config_string(o, "out"), &vocab,
                                 &n_params);
    if (status == DR_OK)
        printf("%s: %.2f million parameters, %d token ids\n", dr_config_string(o, "out"),
               (double)n_params / 1e6, vocab);
    dr_template_destroy(prompt_template);
    dr_dataset_destroy(dataset);
    return status;
}

const dr_command dr_command_init = {
    .name = "init",
    .summary = "makes a fresh small policy for a data set",
    .help = "Learns a byte-level BPE vocabulary on the catalogue, the prompt template and the teacher's "
            "phrases (the "
            "protocol's tags become single special tokens) and writes a model of the preset's size with "
            "random weights, into which a circuit is written that copies from the context, as a "
            "Hugging Face folder, which transformers opens as Qwen2.",
    .arguments = "",
    .options = options,
    .n_options = sizeof options / sizeof *options,
    .run = init_command,
};
