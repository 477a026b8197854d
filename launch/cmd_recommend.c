// deeprec recommend: one user's whole trajectory, readable on a terminal.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/episode/rollout.h"
#include "core/reward/reward.h"
#include "core/text/normalize.h"
#include "launch/cli.h"
#include "launch/policy_parts.h"

static const dr_setting options[] = {
    DR_TEXT("model", NULL, "FOLDER", "policy (Hugging Face folder)"),
    DR_TEXT("user", NULL, "ID", "the user, as the source names it"),
    DR_CHOICE("split", "test", "test|valid|train", "which item is held back as the target"),
    DR_FLOAT("temperature", "0", 0, 10, "", "sampling temperature; 0: greedy"),
    DR_FLOAT("top-p", "1", 0.01, 1, "", "nucleus of the sampling distribution"),
    DR_INT("seed", "1", 0, 9007199254740992.0, "", "seed, when sampling"),
    DR_POLICY_PARTS_OPTIONS,
};

typedef struct session {
    dr_policy_parts parts;
    const dr_dataset *dataset;
    dr_reward_context *rewards;
    dr_example example;
    const char *bold, *dim, *blue, *green, *red, *off; // escape sequences, or "" when not on a terminal
} session;

// ---- preparing ----

static dr_status find_user(const dr_cli *cli, session *s) {
    static const dr_split splits[] = {DR_SPLIT_TEST, DR_SPLIT_VALID, DR_SPLIT_TRAIN};
    const char *name = dr_config_string(cli->options, "user");
    int32_t user = dr_dataset_find_user(s->dataset, name);
    DR_CHECK(user >= 0, DR_ERR_ARGUMENT, "user %s is not in the data set (it has %d, the first is %s)", name,
             s->dataset->n_users, s->dataset->n_users > 0 ? s->dataset->user_names[0] : "-");
    DR_CHECK(
        dr_dataset_example(s->dataset, user, splits[dr_config_choice(cli->options, "split")], &s->example),
        DR_ERR_ARGUMENT, "user %s has too few items for this split", name);
    return DR_OK;
}

static void choose_colors(session *s) {
    bool color = isatty(STDOUT_FILENO) && !getenv("NO_COLOR");
    s->bold = color ? "\x1b[1m" : "";
    s->dim = color ? "\x1b[2m" : "";
    s->blue = color ? "\x1b[34m" : "";
    s->green = color ? "\x1b[32m" : "";
    s->red = color ? "\x1b[31m" : "";
    s->off = color ? "\x1b[0m" : "";
}

static dr_status roll(const dr_cli *cli, const session *s, dr_trajectory *out) {
    dr_rollout_parts parts = dr_policy_parts_rollout(&s->parts);
    dr_rollout_request request = {.seed = (uint64_t)dr_config_int(cli->options, "seed"),
                                  .n_samples = 1,
                                  .user = s->example.user,
                                  .target = s->example.target,
                                  .history = s->example.history,
                                  .n_history = s->example.n_history,
                                  .sampling = {(float)dr_config_float(cli->options, "temperature"),
                                               (float)dr_config_float(cli->options, "top-p")}};
    dr_rollout *rollout = NULL;
    parts.max_live = 1;
    DR_TRY(dr_rollout_create(&parts, &rollout));
    dr_status status = dr_rollout_submit(rollout, &request);
    bool done = false;
    while (status == DR_OK && !done) {
        status = dr_rollout_tick(rollout);
        done = dr_rollout_take(rollout, out);
    }
    dr_rollout_destroy(rollout);
    return status;
}

// ---- showing ----

// Text that others wrote, safe for a terminal: bytes that are no UTF-8 and control characters become U+FFFD.
static void show_text(const char *text, size_t length, const char *indent) {
    bool line_begins = true;
    for (size_t at = 0; at < length;) {
        size_t from = at;
        uint32_t code = dr_utf8_next(text, length, &at);
        if (code == '\n') {
            putchar('\n');
            line_begins = true;
            continue;
        }
        if (line_begins) printf("%s", indent);
        line_begins = false;
        bool control = code < ' ' || code == 0x7f || (code >= 0x80 && code < 0xa0);
        if (code == '\t')
            putchar(' ');
        else if (control || code == 0xfffd)
            printf("\xEF\xBF\xBD");
        else
            printf("%.*s", (int)(at - from), text + from);
    }
}

static void show_string(const char *text) {
    show_text(text, strlen(text), "");
}

// Trimmed at both ends; nothing when blank.
static void show_thought(const session *s, const char *text, size_t length) {
    while (length > 0 && strchr(" \t\r\n", text[0])) text++, length--;
    while (length > 0 && strchr(" \t\r\n", text[length - 1])) length--;
    if (length == 0) return;
    printf("\n%s", s->dim);
    show_text(text, length, "  ");
    printf("%s\n", s->off);
}

static void show_item(const session *s, int number, int32_t item, const char *end) {
    bool is_target = item == s->example.target;
    printf("  %3d. %s", number, is_target ? s->green : "");
    show_string(s->dataset->titles[item]);
    printf("%s%s", is_target ? s->off : "", end);
}

static void show_history(const session *s) {
    int32_t n = s->example.n_history, shown = dr_template_max_history(s->parts.prompt_template);
    if (shown > n) shown = n;
    printf("%sUser ", s->bold);
    show_string(s->dataset->user_names[s->example.user]);
    printf("%s, %d items, the last %d:\n", s->off, n, shown);
    for (int32_t i = n - shown; i < n; i++) {
        show_item(s, i - (n - shown) + 1, s->example.history[i], "");
        printf("  %s", s->dim);
        show_string(s->dataset->categories[s->example.history[i]]);
        printf("%s\n", s->off);
    }
    printf("%sHeld back:%s ", s->bold, s->off);
    show_string(s->dataset->titles[s->example.target]);
    printf("  %s", s->dim);
    show_string(s->dataset->categories[s->example.target]);
    printf("%s\n", s->off);
}

static dr_status show_retrieval(const session *s, const dr_turn *turn) {
    float *scores = NULL;
    dr_trm_query query = {s->example.history, s->example.n_history, turn->embedding};
    DR_TRY(dr_alloc(&scores, "scores", (int64_t)s->dataset->n_items + 1, sizeof *scores));
    dr_status status = dr_trm_score(s->parts.trm, &query, 1, scores);
    if (status == DR_OK) {
        printf("\n  %sAsks for:%s %s", s->bold, s->off, s->blue);
        show_string(turn->preference);
        printf("%s\n", s->off);
        for (int32_t i = 0; i < turn->n_items; i++) {
            show_item(s, i + 1, turn->items[i], "");
            printf("  %s%.3f%s%s\n", s->dim, (double)scores[turn->items[i]], s->off,
                   turn->items[i] == s->example.target ? "  <- the one held back" : "");
        }
    }
    dr_free(scores);
    return status;
}

static const char *stop_text(dr_stop stop) {
    static const char *const texts[] = {[DR_STOP_NONE] = "still running",
                                        [DR_STOP_ANSWER] = "the answer is complete",
                                        [DR_STOP_EOS] = "the model ended the text",
                                        [DR_STOP_EMPTY_QUERY] = "a preference without text",
                                        [DR_STOP_TURN_CAP] = "too many tokens in one turn",
                                        [DR_STOP_RETRIEVAL_CAP] = "too many retrievals",
                                        [DR_STOP_TOTAL_CAP] = "too many tokens in all"};
    return texts[stop];
}

static void show_answer(const session *s, const dr_completion *c, const dr_reward_result *r, dr_stop stop) {
    enum { MOST = 64 };
    dr_answer_line lines[MOST];
    int32_t n = 0;
    printf("\n%sRecommendation%s (%s)\n", s->bold, s->off, stop_text(stop));
    if (!dr_answer_find(c, lines, MOST, &n)) printf("  %snone%s\n", s->red, s->off);
    for (int32_t i = 0; i < n && i < MOST; i++) {
        bool is_target = r->items[i] == s->example.target;
        printf("  %3d. %s", i + 1, is_target ? s->green : "");
        show_text(lines[i].text, lines[i].length, "");
        printf("%s%s\n", is_target ? s->off : "",
               is_target           ? "  <- the one held back"
               : r->items[i] == 0  ? "  (not in the catalogue)"
               : r->items[i] == -1 ? "  (repeated)"
                                   : "");
    }
    if (r->valid)
        printf("\n%sFormat holds.%s", s->green, s->off);
    else
        printf("\n%sFormat broken: %s.%s", s->red, r->reason, s->off);
    for (int32_t i = 0; i < DR_REWARD_PARTS; i++)
        printf("  %s %.3f", dr_reward_names[i], (double)r->parts[i]);
    printf("\n");
}

// The thoughts of a policy's segment: up to its preference or its answer.
static void show_segment(const session *s, const dr_segment *segment) {
    size_t at = 0, begin = segment->length;
    dr_tag tag;
    while ((tag = dr_tag_next(segment->text, segment->length, &at, &begin)) != DR_TAG_NONE)
        if (tag == DR_TAG_AT_PREFERENCE || tag == DR_TAG_AT_THINK_END || tag == DR_TAG_AT_ANSWER) break;
    show_thought(s, segment->text, tag == DR_TAG_NONE ? segment->length : begin);
}

static dr_status show(const session *s, const dr_trajectory *t) {
    dr_completion c = {0};
    dr_reward_result result;
    dr_reward_settings settings = dr_reward_defaults(DR_STAGE_REC);
    int32_t turn = 0;
    settings.k = s->parts.protocol.k;
    dr_status status = dr_completion_from_trajectory(s->parts.tokenizer, t, &c);
    if (status == DR_OK)
        status = dr_reward_score(s->rewards, &settings, &c, s->example.target, NULL, 0, 0, &result);
    if (status == DR_OK) show_history(s);
    for (int32_t i = 0; i < c.n_segments && status == DR_OK; i++) {
        if (!c.segments[i].from_tool)
            show_segment(s, &c.segments[i]);
        else if (turn < t->n_turns)
            status = show_retrieval(s, &t->turns[turn++]);
    }
    if (status == DR_OK) show_answer(s, &c, &result, t->stop);
    dr_completion_reset(&c);
    return status;
}

// With the parts open.
static dr_status recommend(const dr_cli *cli, session *s) {
    dr_trajectory trajectory = {0};
    s->dataset = s->parts.dataset;
    choose_colors(s);
    DR_TRY(find_user(cli, s));
    DR_TRY(dr_policy_parts_model(&s->parts, dr_config_string(cli->options, "model")));
    DR_TRY(dr_reward_context_create(s->dataset, s->parts.trm, NULL, s->parts.prompt_template, &s->rewards));
    dr_status status = roll(cli, s, &trajectory);
    if (status == DR_OK) status = show(s, &trajectory);
    dr_trajectory_reset(&trajectory);
    dr_reward_context_destroy(s->rewards);
    return status;
}

static dr_status run(const dr_cli *cli) {
    session s = {0};
    DR_TRY(dr_policy_parts_open(cli->options, DR_POLICY_ANSWERS, &s.parts));
    dr_status status = recommend(cli, &s);
    dr_policy_parts_close(&s.parts);
    return status;
}

const dr_command dr_command_recommend = {
    .name = "recommend",
    .summary = "shows one user's whole trajectory: thoughts, retrievals, the final list",
    .help = "Decodes greedily unless --temperature says otherwise. The item that was held back is marked "
            "wherever it "
            "appears. The number beside a retrieved item is the retrieval model's score for it. Protocol and "
            "template must be those that the policy was trained with.",
    .arguments = "",
    .options = options,
    .n_options = sizeof options / sizeof options[0],
    .run = run,
};
