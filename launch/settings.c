// Defaults are those of the method (DeepRec, arXiv 2505.16810) where it names one, sized down only where a
// small machine could not start otherwise (prompts, samples, token caps).
#include "launch/settings.h"

#include <stdio.h>

#include "launch/backend_choice.h"

// One stage's rows: what differs between the cold start and the recommendation-oriented stage.
#define STAGE_ROWS(stage, steps, format, invocation, diversity, hit, rank, similarity)                       \
    DR_INT(stage ".steps", steps, 0, 1000000, "steps", "optimisation steps of this stage; 0 leaves it out"), \
        DR_INT(stage ".prompts", "16", 1, 65536, "users", "prompts of one step"),                            \
        DR_INT(stage ".samples", "8", 1, 1024, "trajectories",                                               \
               "trajectories of one prompt: the group whose mean reward is the baseline"),                   \
        DR_INT(stage ".updates", "2", 1, 64, "updates",                                                      \
               "optimizer updates made from one step's trajectories"),                                       \
        DR_INT(stage ".pool", "0", 0, 1000000000, "users",                                                   \
               "training samples of this stage at most, gone through again and again; 0: all that fit"),     \
        DR_INT(stage ".difficulty_from", "1", 1, 100000000, "rank",                                          \
               "keep a training sample when the retrieval model alone ranks its target from here"),          \
        DR_INT(stage ".difficulty_to", "100", 0, 100000000, "rank", "… to here; 0: no filter"),              \
        DR_FLOAT(stage ".weight_format", format, -100, 100, "", "weight of the format reward"),              \
        DR_FLOAT(stage ".weight_invocation", invocation, -100, 100, "", "weight of the invocation reward"),  \
        DR_FLOAT(stage ".weight_diversity", diversity, -100, 100, "", "weight of the diversity reward"),     \
        DR_FLOAT(stage ".weight_hit", hit, -100, 100, "", "weight of the hit reward"),                       \
        DR_FLOAT(stage ".weight_rank", rank, -100, 100, "", "weight of the rank reward"),                    \
        DR_FLOAT(stage ".weight_similarity", similarity, -100, 100, "", "weight of the similarity reward")

const dr_setting dr_train_settings[] = {
    DR_FREE_STRING("run.dir", NULL, "folder that gets everything this run writes"),
    DR_INT("run.seed", "1", 0, 9007199254740992.0, "", "seed of every random draw"),
    DR_FREE_INT("run.threads", "0", 0, 1024, "threads",
                "OpenMP threads of each rank; 0: cores shared evenly"),
    DR_FREE_FLOAT(
        "run.deadline", "60", 1, 86400, "s",
        "a rank that is silent for so long ends the run. Long work is not silent: it says that it goes "
        "on after each layer of a micro-batch, each matrix or 16 MiB that are read, written or "
        "checked, and learners wait for one that does. What has to be done within it is the longest "
        "such piece: a layer or the loss head of one micro-batch, on a device all of it (learn.pack_tokens), "
        "a pass of the "
        "decode loop, a retrieval, an exchange between learners that does not move on"),
    DR_FREE_FLOAT("run.start_deadline", "1800", 1, 86400, "s",
                  "ranks wait so long for each other at the start: in MPI_Init, then while data and weights "
                  "are loaded; and at the end, in MPI_Finalize"),
    DR_FREE_INT("run.stop_after", "0", 0, 1000000, "steps",
                "save a checkpoint and end with 75 after so many steps of this start; 0: go on to the end"),

    DR_FREE_STRING("data.dataset", NULL, "prepared data set (.h5), made by deeprec prepare"),

    DR_FREE_STRING("model.policy", NULL, "folder of the policy to start from (Hugging Face layout)"),
    DR_FREE_STRING("model.trm", NULL, "folder of the trained retrieval model"),
    DR_FREE_STRING("model.text_encoder", "",
                   "folder of its sentence encoder, where that is not where it was in its training"),
    DR_CHOICE(
        "model.precision", "fp32", DR_TRAIN_PRECISIONS,
        "matrix products of the policy; sums are fp32 in all. bf16-loose: on a device products and "
        "attention add in any order, so that log-probabilities recorded in rollouts are not bit for bit "
        "those of training and the ratio is only about 1 at first (ratio_mean); elsewhere it is bf16"),
    DR_CHOICE("model.kernels", "fast", DR_KERNEL_CHOICES,
              "on a device; reference: the simple kernels, to find which one a wrong result comes from"),
    DR_CHOICE("model.backend", "cpu", DR_BACKEND_CHOICES,
              "what computes the policy; auto: cuda where this build has it and there is a device"),

    DR_CHOICE("ranks.placement", "colocated", "colocated",
              "colocated: each worker both rolls out and learns"),
    DR_INT("ranks.reward_shards", "1", 1, 1024, "ranks", "ranks that compute rewards, under mpirun"),
    DR_BOOL("ranks.share_devices", "false", "several workers of a node may use one device"),

    DR_INT("protocol.k", "10", 1, 64, "items", "length of the final list"),
    DR_INT("protocol.k_retrieve", "20", 1, 1000, "items", "items of one retrieval"),
    DR_INT("protocol.max_retrievals", "8", 1, 1000, "retrievals", "retrievals of one trajectory at most"),
    DR_INT("protocol.max_turn_tokens", "2048", 1, 1000000, "tokens", "new tokens of one turn at most"),
    DR_INT("protocol.max_total_tokens", "16384", 16, 10000000, "tokens",
           "prompt, tool and new tokens in all"),
    DR_BOOL("protocol.exclude_history", "true", "retrieval leaves out items of the history"),
    DR_STRING("protocol.template", "compact", "prompt template: full, compact, or a file"),
    DR_STRING("protocol.chat", "off",
              "chat form of the prompt: off, auto (the policy folder's own), or a file"),

    DR_FLOAT("rollout.temperature", "1", 0, 10, "", "sampling temperature; 0: greedy"),
    DR_FLOAT("rollout.top_p", "0.95", 0, 1, "",
             "nucleus of the sampling distribution; 1: the whole vocabulary"),
    DR_INT("rollout.max_live", "32", 1, 65536, "episodes", "episodes that one worker decodes together"),
    DR_INT("rollout.prefill_tokens", "1024", 16, 10000000, "tokens", "prefill budget of one tick"),
    DR_INT("rollout.burst", "0", 0, 64, "tokens",
           "tokens that an episode may draw before the host looks at them; 0: 1 on the processor, 8 on a "
           "device. Trajectories do not depend on it"),
    DR_BOOL("rollout.graphs", "true",
            "a device runs passes of the decode loop that come again as CUDA graphs, one launch each"),

    DR_CHOICE("learn.advantage", "reinforce++", "reinforce++|grpo|rloo",
              "reinforce++: group mean as baseline, normalised over the batch's tokens; grpo: normalised in "
              "the group; "
              "rloo: mean of the others in the group"),
    DR_FLOAT("learn.clip_low", "0.2", 0, 1, "", "lower clip of the probability ratio"),
    DR_FLOAT("learn.clip_high", "0.28", 0, 10, "", "upper clip of the probability ratio"),
    DR_CHOICE("learn.loss_mean", "trajectory", "trajectory|packed_pair",
              "trajectory: mean over a trajectory's sampled tokens, then over trajectories; packed_pair: "
              "mean over the "
              "sampled tokens of pairs, as the original does"),
    DR_CHOICE("learn.kl", "off", "off|k1|k3", "penalty against the frozen policy that the stage began with"),
    DR_FLOAT("learn.kl_weight", "0.001", 0, 100, "", "weight of that penalty"),
    DR_FLOAT("learn.rate", "1e-6", 0, 1, "", "learning rate"),
    DR_CHOICE("learn.schedule", "constant", "constant|linear|cosine",
              "how the rate goes on after the warm-up, until the stage ends"),
    DR_INT("learn.warmup", "0", 0, 1000000, "updates",
           "updates of a stage until the rate is reached, linearly"),
    DR_FLOAT("learn.rate_end", "0", 0, 1, "", "share of the rate at the end of linear and cosine"),
    DR_FLOAT("learn.beta1", "0.9", 0, 0.999999, "", "AdamW: decay of the first moment"),
    DR_FLOAT("learn.beta2", "0.95", 0, 0.999999, "", "AdamW: decay of the second moment"),
    DR_FLOAT("learn.epsilon", "1e-8", 1e-30, 1, "", "AdamW: added to the root of the second moment"),
    DR_FLOAT("learn.weight_decay", "0", 0, 10, "", "AdamW: decoupled weight decay"),
    DR_FLOAT("learn.gradient_clip", "1", 0, 1e9, "", "largest global gradient norm; 0: not clipped"),
    DR_INT("learn.pack_tokens", "4096", 16, 10000000, "tokens", "token budget of one packed micro-batch"),
    DR_BOOL(
        "learn.recompute", "false",
        "keep the input of each layer only and run layers again for the gradient: less memory, more time"),

    DR_BOOL("reward.forbid_cjk", "true", "CJK characters outside item lists break the format"),
    DR_FLOAT("reward.invocation_step", "0.5", 0, 100, "",
             "invocation reward of each retrieval after the first"),
    DR_INT("reward.invocation_cap", "3", 1, 100, "retrievals", "retrievals that count for it"),
    DR_FLOAT("reward.diversity_scale", "0.2", 0, 100, "", "diversity reward of preferences at right angles"),
    DR_FLOAT("reward.rank_step", "0.2", 0, 100, "", "rank reward of each place won"),
    DR_FLOAT("reward.similarity_scale", "10", 0, 1000, "", "similarity reward of a list of the target alone"),

    STAGE_ROWS("stage1", "20", "1", "1", "1", "0", "0", "0"),
    STAGE_ROWS("stage2", "80", "1", "0", "0", "1", "1", "1"),

    DR_FREE_INT("checkpoint.every", "10", 0, 1000000, "steps",
                "steps between checkpoints; 0: only at the end of a stage"),
    DR_FREE_INT("checkpoint.keep", "2", 1, 1000, "checkpoints", "newest checkpoints that are kept"),
    DR_FREE_BOOL("output.trajectories", "true", "keep every trajectory in the run folder"),
    DR_FREE_BOOL("output.tensorboard", "true", "write TensorBoard event files beside metrics.jsonl"),
};
const int32_t dr_train_settings_count = (int32_t)(sizeof dr_train_settings / sizeof dr_train_settings[0]);

static dr_status check_stage(const dr_config *config, const char *where, const char *stage) {
    char key[64], other[64];
    snprintf(key, sizeof key, "%s.prompts", stage);
    snprintf(other, sizeof other, "%s.samples", stage);
    int64_t trajectories = dr_config_int(config, key) * dr_config_int(config, other);
    snprintf(key, sizeof key, "%s.updates", stage);
    DR_CHECK(dr_config_int(config, key) <= trajectories, DR_ERR_ARGUMENT,
             "%s: '%s' is %lld, more than the %lld trajectories of a step", where, key,
             (long long)dr_config_int(config, key), (long long)trajectories);
    snprintf(other, sizeof other, "%s.samples", stage);
    DR_CHECK(dr_config_int(config, other) >= 2, DR_ERR_ARGUMENT,
             "%s: '%s' is 1: a group of one has no baseline, its advantage is always 0", where, other);
    snprintf(key, sizeof key, "%s.difficulty_from", stage);
    snprintf(other, sizeof other, "%s.difficulty_to", stage);
    int64_t to = dr_config_int(config, other);
    DR_CHECK(to == 0 || dr_config_int(config, key) <= to, DR_ERR_ARGUMENT,
             "%s: '%s' is %lld, beyond '%s' which is %lld", where, key, (long long)dr_config_int(config, key),
             other, (long long)to);
    return DR_OK;
}

// What no row can say by itself.
static dr_status check_together(const dr_config *config, const char *where) {
    DR_CHECK(dr_config_float(config, "rollout.top_p") > 0, DR_ERR_ARGUMENT,
             "%s: 'rollout.top_p': expected a number above 0, found 0", where);
    DR_CHECK(dr_config_int(config, "protocol.k") <= dr_config_int(config, "protocol.k_retrieve") *
                                                        dr_config_int(config, "protocol.max_retrievals"),
             DR_ERR_ARGUMENT, "%s: 'protocol.k' is more than all retrievals together can give", where);
    DR_CHECK(dr_config_int(config, "stage1.steps") + dr_config_int(config, "stage2.steps") > 0,
             DR_ERR_ARGUMENT, "%s: 'stage1.steps' and 'stage2.steps' are both 0: nothing to do", where);
    DR_TRY(check_stage(config, where, "stage1"));
    return check_stage(config, where, "stage2");
}

dr_status dr_settings_read(const char *path, const char *const *overrides, int32_t n_overrides, int needs_all,
                           dr_config **out_config) {
    dr_config *config = NULL;
    dr_status status = DR_OK;
    const char *where = path ? path : "settings";
    DR_TRY(dr_config_create(dr_train_settings, dr_train_settings_count, &config));
    if (path) DR_TRY_GOTO(status, dr_config_load(config, path), destroy_config);
    for (int32_t i = 0; i < n_overrides; i++)
        DR_TRY_GOTO(status, dr_config_override(config, overrides[i]), destroy_config);
    if (needs_all) DR_TRY_GOTO(status, dr_config_complete(config, where), destroy_config);
    DR_TRY_GOTO(status, check_together(config, where), destroy_config);
    *out_config = config;
    return DR_OK;

destroy_config:
    dr_config_destroy(config);
    return status;
}
