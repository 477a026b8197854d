// `deeprec sft`: warm-up of a policy on trajectories.
#include "core/base/log.h"
#include "core/learn/sft.h"
#include "launch/cli.h"
#include "launch/policy_memory.h"
#include "launch/policy_parts.h"

static const dr_setting options[] = {
    DR_POLICY_PARTS_OPTIONS,
    DR_TEXT("model", NULL, "FOLDER", "policy to start from"),
    DR_TEXT("out", NULL, "FOLDER", "folder of the trained policy"),
    DR_TEXT("trajectories", "", "FILE",
            "your own JSON lines {\"user\": id, \"completion\": text} in the teacher's place"),
    DR_INT("steps", "300", 1, 10000000, "updates", "optimizer updates"),
    DR_INT("batch-tokens", "8192", 64, 1e9, "tokens", "tokens of one update, about"),
    DR_INT("pack-tokens", "4096", 64, 1e9, "tokens", "tokens of one micro-batch"),
    DR_BOOL("recompute", "false", "run layers again for the gradient instead of keeping what they computed"),
    DR_FLOAT("rate", "0.002", 0, 1, "", "peak learning rate; cosine decay to a twentieth"),
    DR_INT("warmup", "20", 0, 1000000, "updates", "updates until the peak"),
    DR_FLOAT("weight-decay", "0", 0, 10, "", "decoupled weight decay"),
    DR_FLOAT("context-weight", "0", 0, 1, "",
             "weight of prompt and list tokens in the loss, going down to 0 over the run: fresh models learn "
             "to copy sooner"),
    DR_INT("seed", "1", 0, 9e15, "", "of the teacher and the order of users"),
};

typedef struct report {
    int64_t steps;
} report;

static void on_step(void *context, int64_t step, double loss, double entropy, double tokens_per_second) {
    const report *r = context;
    int64_t every = r->steps > 20 ? r->steps / 20 : 1;
    if (step == 1 || step % every == 0 || step == r->steps)
        dr_info("warm-up %lld/%lld: loss %.4f, entropy %.3f, %.0f tokens/s", (long long)step,
                (long long)r->steps, loss, entropy, tokens_per_second);
}

static dr_status run(const dr_config *o, dr_policy_parts *parts) {
    DR_TRY(dr_policy_parts_model(parts, dr_config_string(o, "model")));
    dr_rollout_parts rollout = dr_policy_parts_rollout(parts);
    report r = {dr_config_int(o, "steps")};
    dr_sft_options sft = dr_sft_defaults();
    sft.steps = r.steps;
    sft.batch_tokens = dr_config_int(o, "batch-tokens");
    sft.pack_tokens = dr_config_int(o, "pack-tokens");
    sft.activations = dr_config_bool(o, "recompute") ? DR_RECOMPUTE : DR_KEEP_ACTIVATIONS;
    sft.learning_rate = (float)dr_config_float(o, "rate");
    sft.warmup_steps = dr_config_int(o, "warmup");
    sft.weight_decay = (float)dr_config_float(o, "weight-decay");
    sft.context_weight = (float)dr_config_float(o, "context-weight");
    sft.seed = (uint64_t)dr_config_int(o, "seed");
    sft.trajectories = dr_config_string(o, "trajectories")[0] ? dr_config_string(o, "trajectories") : NULL;
    sft.on_step = on_step;
    sft.context = &r;
    DR_TRY(dr_sft_run(&rollout, &sft));
    DR_TRY(dr_tokenizer_save(parts->tokenizer, dr_config_string(o, "out")));
    return dr_lm_save(parts->lm, dr_config_string(o, "out"), DR_SAVE_FP32);
}

static dr_status plan_memory(const dr_config *o, const dr_policy_choice *choice,
                             const dr_policy_parts *parts) {
    const dr_rollout_parts rollout = dr_policy_parts_rollout(parts);
    const dr_memory_needs needs = {.rollout = &rollout,
                                   .pack_tokens = dr_config_int(o, "pack-tokens"),
                                   .activations =
                                       dr_config_bool(o, "recompute") ? DR_RECOMPUTE : DR_KEEP_ACTIVATIONS,
                                   .n_learners = 1,
                                   .reserve = dr_backend_reserve(&choice->backend, parts->backend, NULL),
                                   .is_warm_up = true};
    dr_memory_place place;
    DR_TRY(dr_policy_memory_place(choice, parts, &place));
    return dr_policy_memory_plan(choice, parts, dr_config_string(o, "model"), &needs, &place, "the warm-up");
}

static dr_status sft_command(const dr_cli *cli) {
    const dr_policy_choice choice = dr_policy_choice_of(cli->options, DR_POLICY_LEARNS);
    dr_policy_parts parts;
    DR_TRY(dr_policy_parts_data(&choice, &parts));
    dr_status status = dr_policy_parts_backends(&choice, &parts);
    if (status == DR_OK) status = plan_memory(cli->options, &choice, &parts);
    if (status == DR_OK) status = dr_policy_parts_retrieval(&choice, &parts);
    if (status == DR_OK) status = run(cli->options, &parts);
    dr_policy_parts_close(&parts);
    return status;
}

const dr_command dr_command_sft = {
    .name = "sft",
    .summary = "warm-up: supervised training on trajectories",
    .help = "A scripted teacher writes trajectories with the retrieval model's real lists, and the policy "
            "learns to write its "
            "part of them. With --trajectories your own completions take the teacher's place.",
    .arguments = "",
    .options = options,
    .n_options = sizeof options / sizeof *options,
    .run = sft_command,
};
