// `deeprec eval`: policies beside their baselines on the same users, as a table and as JSON with every user's
// rank.
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "core/base/json.h"
#include "core/base/log.h"
#include "core/base/progress.h"
#include "core/eval/evaluate.h"
#include "launch/cli.h"
#include "launch/policy_parts.h"

enum { MAX_RANKERS = 16, N_BASELINES = 3 };

static const dr_setting options[] = {
    DR_POLICY_PARTS_OPTIONS,
    DR_TEXT_LIST("model", "[]", "FOLDER", "policy to evaluate; may be given several times"),
    DR_TEXT("out", "", "FILE", "JSON with the table and every user's rank"),
    DR_TEXT_LIST("against", "[]", "FILE",
                 "JSON of another run: paired differences of Recall@10 to its last policy"),
    DR_CHOICE("split", "test", "valid|test", "held-out item: the last one or the one before it"),
    DR_INT("stride", "1", 1, 1000000, "", "evaluate every n-th user; 1: all"),
    DR_FLOAT("temperature", "0", 0, 10, "", "0: greedy"),
    DR_FLOAT("top-p", "1", 1e-6, 1, "", "kept mass of the sampling distribution"),
    DR_INT("seed", "1", 0, 9e15, "", "of the bootstrap, and of sampling when the temperature is not 0"),
};

typedef struct eval_run {
    dr_policy_parts parts;
    dr_reward_context *rewards;
    dr_evaluate_options how;
    int32_t *users;
    dr_evaluation rankers[MAX_RANKERS];
    int32_t n_rankers;
} eval_run;

static void on_progress(void *context, int64_t done, int64_t total) {
    (void)total;
    dr_progress_update(context, done);
}

// "runs/x/policy_warmup/" → "policy_warmup".
static void short_name(const char *path, char out[64]) {
    size_t length = strlen(path);
    while (length > 1 && path[length - 1] == '/') length--;
    size_t begin = length;
    while (begin > 0 && path[begin - 1] != '/') begin--;
    snprintf(out, 64, "%.*s", (int)(length - begin), path + begin);
}

static dr_status evaluate_baselines(eval_run *run) {
    const dr_dataset *dataset = run->parts.dataset;
    DR_TRY(dr_evaluate_popularity(dataset, &run->how, &run->rankers[run->n_rankers]));
    run->n_rankers++;
    DR_TRY(dr_evaluate_transitions(dataset, &run->how, &run->rankers[run->n_rankers]));
    run->n_rankers++;
    DR_TRY(dr_evaluate_trm(run->parts.trm, dataset, &run->how, &run->rankers[run->n_rankers]));
    run->n_rankers++;
    return DR_OK;
}

static dr_status evaluate_model(eval_run *run, const char *dir) {
    char name[64];
    short_name(dir, name);
    DR_TRY(dr_policy_parts_model(&run->parts, dir));
    dr_rollout_parts parts = dr_policy_parts_rollout(&run->parts);
    dr_progress progress = dr_progress_start(name, "users", run->how.n_users);
    run->how.progress = on_progress;
    run->how.progress_context = &progress;
    DR_TRY(dr_evaluate_policy(&parts, run->rewards, &run->how, name, &run->rankers[run->n_rankers]));
    dr_progress_finish(&progress);
    run->n_rankers++;
    return DR_OK;
}

static void print_row(const dr_evaluation *e) {
    char text[32] = "";
    if (e->mean_sampled_tokens > 0)
        snprintf(text, sizeof text, "%8.1f%% %9.2f", 100 * e->valid_share, e->mean_retrievals);
    printf("%-18s %8.4f %8.4f %8.4f %8.4f %8.4f %8.4f %s\n", e->name, e->recall[0], e->recall[1],
           e->recall[2], e->ndcg[0], e->ndcg[1], e->mrr, text);
}

// The difference of two rows with its interval; "clear" when the interval leaves out zero.
static dr_status print_difference(const dr_evaluation *a, const dr_evaluation *b, const char *b_label,
                                  uint64_t seed) {
    dr_paired_difference d;
    DR_TRY(dr_evaluate_compare(a, b, seed, &d));
    printf("%s - %s: Recall@10 %+.4f [%+.4f, %+.4f], NDCG@10 %+.4f [%+.4f, %+.4f]\n", a->name, b_label,
           d.recall, d.recall_low, d.recall_high, d.ndcg, d.ndcg_low, d.ndcg_high);
    return DR_OK;
}

static dr_status print_table(const eval_run *run, uint64_t seed) {
    printf("\n%d users, full ranking over %d items\n", run->how.n_users, run->parts.dataset->n_items);
    printf("%-18s %8s %8s %8s %8s %8s %8s %9s %9s\n", "", "R@1", "R@5", "R@10", "N@5", "N@10", "MRR@10",
           "valid", "retrievals");
    for (int32_t i = 0; i < run->n_rankers; i++) print_row(&run->rankers[i]);
    printf("\npaired bootstrap over users, 95 %% interval\n");
    for (int32_t i = N_BASELINES; i < run->n_rankers; i++) {
        DR_TRY(print_difference(&run->rankers[i], &run->rankers[N_BASELINES - 1], "TRM alone", seed));
        if (i > N_BASELINES)
            DR_TRY(print_difference(&run->rankers[i], &run->rankers[N_BASELINES],
                                    run->rankers[N_BASELINES].name, seed));
    }
    return DR_OK;
}

static json_t *ranker_json(const dr_evaluation *e) {
    json_t *ranks = json_array();
    for (int32_t i = 0; i < e->n_users; i++) json_array_append_new(ranks, json_integer(e->rank[i]));
    return json_pack("{s:s, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:o}", "name", e->name,
                     "recall@1", e->recall[0], "recall@5", e->recall[1], "recall@10", e->recall[2], "ndcg@5",
                     e->ndcg[0], "ndcg@10", e->ndcg[1], "mrr@10", e->mrr, "valid_share", e->valid_share,
                     "mean_retrievals", e->mean_retrievals, "mean_sampled_tokens", e->mean_sampled_tokens,
                     "seconds", e->seconds, "rank", ranks);
}

static dr_status write_json(const eval_run *run, const char *split, const char *path) {
    json_t *users = json_array(), *rankers = json_array();
    for (int32_t i = 0; i < run->how.n_users; i++)
        json_array_append_new(users, json_string(run->parts.dataset->user_names[run->users[i]]));
    for (int32_t i = 0; i < run->n_rankers; i++)
        json_array_append_new(rankers, ranker_json(&run->rankers[i]));
    json_t *root = json_pack("{s:s, s:s, s:i, s:i, s:o, s:o}", "dataset", run->parts.dataset->name, "split",
                             split, "n_users", run->how.n_users, "n_items", run->parts.dataset->n_items,
                             "rankers", rankers, "users", users);
    DR_CHECK(root, DR_ERR_MEMORY, "cannot build %s", path);
    dr_status status = dr_json_save(root, path);
    json_decref(root);
    return status;
}

// The last ranker of another run's JSON, as an evaluation of the same users.
static dr_status read_other(const eval_run *run, const char *path, dr_evaluation *out) {
    json_t *root = NULL;
    DR_TRY(dr_json_load(path, &root));
    dr_evaluation other = {0};
    json_t *rankers = json_object_get(root, "rankers"), *last, *ranks;
    last = json_array_get(rankers, json_array_size(rankers) - 1);
    ranks = json_object_get(last, "rank");
    dr_status status;
    DR_CHECK_GOTO(json_is_array(ranks), status, DR_ERR_FORMAT, release_root, "%s: no rankers[].rank array",
                  path);
    DR_CHECK_GOTO((int32_t)json_array_size(ranks) == run->how.n_users, status, DR_ERR_FORMAT, release_root,
                  "%s: ranks of %zu users, this evaluation has %d", path, json_array_size(ranks),
                  run->how.n_users);
    DR_TRY_GOTO(status, dr_alloc(&other.rank, "ranks", run->how.n_users, sizeof *other.rank), release_root);
    for (int32_t i = 0; i < run->how.n_users; i++)
        other.rank[i] = (int32_t)json_integer_value(json_array_get(ranks, (size_t)i));
    other.n_users = run->how.n_users;
    const char *name = json_string_value(json_object_get(last, "name"));
    snprintf(other.name, sizeof other.name, "%s", name ? name : "other");
    *out = other;
release_root:
    json_decref(root);
    return status;
}

static dr_status compare_others(const eval_run *run, const dr_config *values, uint64_t seed) {
    for (int32_t i = 0; i < dr_config_count(values, "against"); i++) {
        const char *path = dr_config_string_at(values, "against", i);
        dr_evaluation other;
        DR_TRY(read_other(run, path, &other));
        char label[400];
        snprintf(label, sizeof label, "%s of %s", other.name, path);
        dr_status status = print_difference(&run->rankers[run->n_rankers - 1], &other, label, seed);
        dr_evaluation_reset(&other);
        DR_TRY(status);
    }
    return DR_OK;
}

static dr_status evaluate(const dr_cli *cli, eval_run *run) {
    const dr_config *values = cli->options;
    char split[64];
    dr_config_choice_name(values, "split", split);
    run->how.split = strcmp(split, "test") == 0 ? DR_SPLIT_TEST : DR_SPLIT_VALID;
    run->how.seed = (uint64_t)dr_config_int(values, "seed");
    run->how.sampling = (dr_sampling){.temperature = (float)dr_config_float(values, "temperature"),
                                      .top_p = (float)dr_config_float(values, "top-p")};
    DR_TRY(dr_evaluate_users(run->parts.dataset, run->how.split, (int32_t)dr_config_int(values, "stride"),
                             &run->users, &run->how.n_users));
    run->how.users = run->users;
    DR_TRY(dr_reward_context_create(run->parts.dataset, run->parts.trm, NULL, run->parts.prompt_template,
                                    &run->rewards));
    DR_TRY(evaluate_baselines(run));
    for (int32_t i = 0; i < dr_config_count(values, "model"); i++)
        DR_TRY(evaluate_model(run, dr_config_string_at(values, "model", i)));
    DR_TRY(print_table(run, run->how.seed));
    if (dr_config_string(values, "out")[0]) DR_TRY(write_json(run, split, dr_config_string(values, "out")));
    return compare_others(run, values, run->how.seed);
}

static dr_status eval_command(const dr_cli *cli) {
    if (dr_config_count(cli->options, "model") > MAX_RANKERS - N_BASELINES)
        return dr_cli_usage(cli, "at most %d --model folders", MAX_RANKERS - N_BASELINES);
    eval_run run = {0};
    DR_TRY(dr_policy_parts_open(cli->options, DR_POLICY_ANSWERS, &run.parts));
    dr_status status = evaluate(cli, &run);
    for (int32_t i = 0; i < run.n_rankers; i++) dr_evaluation_reset(&run.rankers[i]);
    dr_reward_context_destroy(run.rewards);
    dr_free(run.users);
    dr_policy_parts_close(&run.parts);
    return status;
}

const dr_command dr_command_eval = {
    .name = "eval",
    .summary = "Recall, NDCG and MRR of policies beside their baselines",
    .help = "Runs one greedy trajectory for every user of the split and looks for the held-out item in the "
            "answer, "
            "ranked among all items. An answer that breaks the format scores 0. Popularity, last-item "
            "transitions and "
            "the retrieval model alone are scored on the same users, items of the history left out.",
    .arguments = "",
    .options = options,
    .n_options = sizeof options / sizeof *options,
    .run = eval_command,
};
