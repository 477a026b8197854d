// Evaluation of a policy: the rollout engine runs one trajectory a user, the reward room's parser reads the
// answer.
#include "core/eval/evaluate.h"

#include "core/base/alloc.h"
#include "core/base/clock.h"
#include "core/eval/evaluate_internal.h"

enum { ANSWER_ITEMS = 64 };

// Submits users in order, a window ahead of what is finished, so that memory does not grow with the user
// count.
typedef struct policy_run {
    const dr_rollout_parts *parts;
    const dr_reward_context *rewards;
    const dr_evaluate_options *options;
    dr_reward_settings format;
    dr_rollout *rollout;
    dr_evaluation *evaluation;
    int64_t n_valid, n_retrievals, n_sampled;
    int32_t n_submitted, n_done;
} policy_run;

static dr_status submit_some(policy_run *run) {
    int32_t window = 2 * run->parts->max_live;
    while (run->n_submitted < run->options->n_users && dr_rollout_pending(run->rollout) < window) {
        int32_t user = run->options->users[run->n_submitted];
        dr_example example;
        DR_CHECK(dr_dataset_example(run->parts->dataset, user, run->options->split, &example), DR_ERR_RANGE,
                 "evaluation: user %d has no target in this split", user);
        dr_rollout_request request = {.seed = run->options->seed,
                                      .prompt = (uint32_t)run->n_submitted,
                                      .n_samples = 1,
                                      .user = user,
                                      .target = example.target,
                                      .history = example.history,
                                      .n_history = example.n_history,
                                      .sampling = run->options->sampling};
        DR_TRY(dr_rollout_submit(run->rollout, &request));
        run->n_submitted++;
    }
    return DR_OK;
}

// Notes where the target stands in one finished trajectory's answer.
static dr_status note_trajectory(policy_run *run, const dr_trajectory *trajectory) {
    dr_completion completion = {0};
    dr_reward_result result;
    dr_status status;
    DR_TRY_GOTO(status, dr_completion_from_trajectory(run->parts->tokenizer, trajectory, &completion),
                reset_completion);
    DR_TRY_GOTO(
        status,
        dr_reward_score(run->rewards, &run->format, &completion, trajectory->target, NULL, 0, 0, &result),
        reset_completion);
    int32_t rank = -1;
    if (result.valid) {
        int32_t items[ANSWER_ITEMS];
        int32_t n = dr_answer_items(run->rewards, &completion, items, ANSWER_ITEMS);
        for (int32_t i = 0; i < n && rank < 0; i++)
            if (items[i] == trajectory->target) rank = i;
        run->n_valid++;
    }
    run->evaluation->rank[trajectory->prompt] = rank;
    run->n_retrievals += trajectory->n_turns;
    run->n_sampled += dr_trajectory_sampled_count(trajectory);
    run->n_done++;
reset_completion:
    dr_completion_reset(&completion);
    return status;
}

static dr_status run_all(policy_run *run) {
    const dr_evaluate_options *options = run->options;
    while (run->n_done < options->n_users) {
        DR_TRY(submit_some(run));
        DR_TRY(dr_rollout_tick(run->rollout));
        dr_trajectory trajectory = {0};
        while (dr_rollout_take(run->rollout, &trajectory)) {
            dr_status status = note_trajectory(run, &trajectory);
            dr_trajectory_reset(&trajectory);
            DR_TRY(status);
            if (options->progress)
                options->progress(options->progress_context, run->n_done, options->n_users);
        }
    }
    return DR_OK;
}

dr_status dr_evaluate_policy(const dr_rollout_parts *parts, const dr_reward_context *rewards,
                             const dr_evaluate_options *options, const char *name, dr_evaluation *out) {
    dr_evaluation evaluation;
    DR_TRY(dr_evaluation_begin(name, options->n_users, &evaluation));
    policy_run run = {.parts = parts,
                      .rewards = rewards,
                      .options = options,
                      .format = dr_reward_defaults(DR_STAGE_REC),
                      .evaluation = &evaluation};
    run.format.k = parts->protocol.k;
    double start = dr_clock_seconds();
    dr_status status;
    DR_TRY_GOTO(status, dr_rollout_create(parts, &run.rollout), free_ranks);
    status = run_all(&run);
    dr_rollout_destroy(run.rollout);
    if (status != DR_OK) goto free_ranks;

    double n = options->n_users > 0 ? options->n_users : 1;
    evaluation.valid_share = (double)run.n_valid / n;
    evaluation.mean_retrievals = (double)run.n_retrievals / n;
    evaluation.mean_sampled_tokens = (double)run.n_sampled / n;
    evaluation.seconds = dr_clock_seconds() - start;
    dr_evaluation_finish(&evaluation);
    *out = evaluation;
    return DR_OK;

free_ranks:
    dr_evaluation_reset(&evaluation);
    return status;
}
