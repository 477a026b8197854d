// deeprec reward: scores given completions with the rewards of training, so that anyone can check them.
#include <stdio.h>
#include <string.h>

#include <jansson.h>

#include "core/base/file.h"
#include "core/base/log.h"
#include "core/model/text_encoders.h"
#include "core/reward/reward.h"
#include "core/text/normalize.h"
#include "launch/cli.h"
#include "launch/settings.h"

static const dr_setting options[] = {
    DR_TEXT("dataset", NULL, "FILE", "prepared data set (.h5)"),
    DR_CHOICE("stage", "rec", "cold|rec",
              "whose weights make the total: cold start or recommendation-oriented"),
    DR_TEXT("input", NULL, "FILE", "JSON lines, each {\"user\": …, \"completion\": \"…\"}"),
    DR_TEXT("trm", "", "FOLDER", "retrieval model: its item vectors take part in the similarity"),
    DR_TEXT("text-encoder", "", "FOLDER",
            "sentence encoder: the retrieval model's, where it is not where it was in training, or without "
            "one what encodes texts in the place of hashed-ngram"),
    DR_CHOICE("split", "test", "test|valid|train", "whose target a completion should hit"),
    DR_TEXT("template", "full", "NAME",
            "prompt template whose phrases must not be copied: full, compact, or a file"),
    DR_TEXT("config", "", "FILE", "training configuration to take weights and scales from"),
    DR_TEXT_LIST("set", "", "KEY=VALUE",
                 "overrides one setting of it, such as protocol.k or stage2.weight_hit"),
};

typedef struct scorer {
    const dr_dataset *dataset;
    dr_reward_context *context;
    dr_reward_settings settings;
    dr_split split;
    const char *path;
    int64_t line, n_good, n_bad, n_valid, n_repaired;
    double sums[DR_REWARD_PARTS], total;
} scorer;

// ---- settings ----

static dr_reward_settings settings_from(const dr_config *config, dr_stage stage) {
    dr_reward_settings s = dr_reward_defaults(stage);
    for (int32_t i = 0; i < DR_REWARD_PARTS; i++) {
        char key[64];
        snprintf(key, sizeof key, "stage%d.weight_%s", stage == DR_STAGE_COLD ? 1 : 2, dr_reward_names[i]);
        s.weight[i] = (float)dr_config_float(config, key);
    }
    s.k = (int32_t)dr_config_int(config, "protocol.k");
    s.forbid_cjk = dr_config_bool(config, "reward.forbid_cjk") != 0;
    s.invocation_step = (float)dr_config_float(config, "reward.invocation_step");
    s.invocation_cap = (int32_t)dr_config_int(config, "reward.invocation_cap");
    s.diversity_scale = (float)dr_config_float(config, "reward.diversity_scale");
    s.rank_step = (float)dr_config_float(config, "reward.rank_step");
    s.similarity_scale = (float)dr_config_float(config, "reward.similarity_scale");
    return s;
}

static dr_status read_settings(const dr_cli *cli, dr_reward_settings *out) {
    const char *path = dr_config_string(cli->options, "config");
    int32_t n = dr_config_count(cli->options, "set");
    const char **overrides = NULL;
    dr_config *config = NULL;
    DR_TRY(dr_alloc(&overrides, "overrides", n, sizeof *overrides));
    for (int32_t i = 0; i < n; i++) overrides[i] = dr_config_string_at(cli->options, "set", i);
    dr_status status = dr_settings_read(path[0] ? path : NULL, overrides, n, 0, &config);
    dr_free(overrides);
    if (status == DR_OK) *out = settings_from(config, (dr_stage)dr_config_choice(cli->options, "stage"));
    dr_config_destroy(config);
    return status;
}

// ---- one line ----

// A copy with every byte that is no UTF-8 replaced by U+FFFD; out stays empty when there is none.
static dr_status repair(const char *text, size_t length, dr_buf *out) {
    if (dr_utf8_valid(text, length)) return DR_OK;
    for (size_t at = 0; at < length;) DR_TRY(dr_utf8_append(out, dr_utf8_next(text, length, &at)));
    return DR_OK;
}

// A user or item as the source names it: JSON text, or a whole number. False: neither.
static bool name_of(const json_t *value, char out[256]) {
    if (json_is_integer(value))
        snprintf(out, 256, "%lld", (long long)json_integer_value(value));
    else if (json_is_string(value))
        snprintf(out, 256, "%s", json_string_value(value));
    else
        return false;
    return true;
}

// Item by title or by the source's id; 0 when unknown.
static int32_t find_item(const scorer *s, const json_t *value) {
    char name[256];
    if (!name_of(value, name)) return 0;
    int32_t item = json_is_string(value) ? dr_reward_context_find(s->context, json_string_value(value)) : 0;
    for (int32_t i = 1; i <= s->dataset->n_items && item == 0; i++)
        if (strcmp(s->dataset->item_names[i], name) == 0) item = i;
    return item;
}

// What is wrong with the line goes to `problem`; "" when it can be scored.
static void find_target(const scorer *s, json_t *line, int32_t *out_target, char problem[320]) {
    json_t *user = json_object_get(line, "user"), *target = json_object_get(line, "target");
    char name[256];
    dr_example example;
    problem[0] = '\0';
    if (target) {
        *out_target = find_item(s, target);
        if (*out_target == 0)
            snprintf(problem, 320, "\"target\": no item of the data set has that title or id");
        return;
    }
    if (!name_of(user, name)) {
        snprintf(problem, 320, "\"user\": expected the source's user id (text or a whole number)");
        return;
    }
    int32_t u = dr_dataset_find_user(s->dataset, name);
    if (u < 0)
        snprintf(problem, 320, "user %s is not in the data set", name);
    else if (!dr_dataset_example(s->dataset, u, s->split, &example))
        snprintf(problem, 320, "user %s has too few items for this split", name);
    else
        *out_target = example.target;
}

static json_t *text_value(const char *text) {
    dr_buf repaired = {0};
    json_t *value = json_string(text);
    if (!value && repair(text, strlen(text), &repaired) == DR_OK && repaired.data)
        value = json_string(repaired.data);
    dr_buf_reset(&repaired);
    return value ? value : json_string("");
}

static void print_line(json_t *object) {
    json_dumpf(object, stdout, JSON_COMPACT | JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(7));
    putchar('\n');
    json_decref(object);
}

static void print_bad(scorer *s, const char *problem) {
    enum { SHOWN = 20 };
    json_t *out = json_object();
    s->n_bad++;
    if (s->n_bad <= SHOWN) dr_warn("%s:%lld: %s", s->path, (long long)s->line, problem);
    json_object_set_new(out, "line", json_integer(s->line));
    json_object_set_new(out, "error", text_value(problem));
    print_line(out);
}

static void print_result(const scorer *s, const json_t *line, int32_t target, const dr_reward_result *r) {
    json_t *out = json_object(), *user = json_object_get(line, "user"), *items = json_array();
    json_object_set_new(out, "line", json_integer(s->line));
    if (user) json_object_set(out, "user", user);
    json_object_set_new(out, "target", text_value(s->dataset->titles[target]));
    for (int32_t i = 0; i < DR_REWARD_PARTS; i++)
        json_object_set_new(out, dr_reward_names[i], json_real((double)r->parts[i]));
    json_object_set_new(out, "total", json_real((double)r->total));
    json_object_set_new(out, "valid", json_boolean(r->valid));
    json_object_set_new(out, "reason", text_value(r->reason));
    json_object_set_new(out, "retrievals", json_integer(r->n_retrievals));
    json_object_set_new(out, "lines", json_integer(r->n_lines));
    json_object_set_new(out, "hit_position", json_integer(r->hit_position));
    for (int32_t i = 0; i < r->n_lines; i++) json_array_append_new(items, json_integer(r->items[i]));
    json_object_set_new(out, "items", items);
    print_line(out);
}

static dr_status score_object(scorer *s, json_t *line) {
    json_t *text = json_object_get(line, "completion");
    int32_t target = 0;
    char problem[320];
    dr_completion completion = {0};
    dr_reward_result result;
    find_target(s, line, &target, problem);
    if (!json_is_string(text) && problem[0] == '\0')
        snprintf(problem, sizeof problem, "\"completion\": expected text");
    if (problem[0]) {
        print_bad(s, problem);
        return DR_OK;
    }
    dr_status status =
        dr_completion_from_text(json_string_value(text), json_string_length(text), &completion);
    if (status == DR_OK)
        status = dr_reward_score(s->context, &s->settings, &completion, target, NULL, 0, 0, &result);
    dr_completion_reset(&completion);
    DR_TRY(status);
    for (int32_t i = 0; i < DR_REWARD_PARTS; i++) s->sums[i] += (double)result.parts[i];
    s->total += (double)result.total;
    s->n_good++;
    s->n_valid += result.valid;
    print_result(s, line, target, &result);
    return DR_OK;
}

static dr_status score_line(scorer *s, const char *text, size_t length) {
    dr_buf repaired = {0};
    json_error_t error;
    DR_TRY(repair(text, length, &repaired));
    if (repaired.data) {
        s->n_repaired++;
        dr_warn("%s:%lld: bytes that are no UTF-8 are read as U+FFFD", s->path, (long long)s->line);
        text = repaired.data;
        length = repaired.length;
    }
    dr_status status = DR_OK;
    json_t *line = json_loadb(text, length, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &error);
    if (line && json_is_object(line)) {
        status = score_object(s, line);
    } else {
        char problem[320];
        if (line)
            snprintf(problem, sizeof problem, "expected an object {\"user\": …, \"completion\": …}");
        else
            snprintf(problem, sizeof problem, "column %d: %s", error.column, error.text);
        print_bad(s, problem);
    }
    json_decref(line);
    dr_buf_reset(&repaired);
    return status;
}

// ---- the file ----

static dr_status score_file(scorer *s) {
    dr_buf file = {0};
    dr_status status = dr_file_read(s->path, 0, &file);
    for (size_t at = 0; at < file.length && status == DR_OK;) {
        const char *line = file.data + at, *end = memchr(line, '\n', file.length - at);
        size_t length = end ? (size_t)(end - line) : file.length - at;
        at += length + 1;
        s->line++;
        if (length > 0 && line[length - 1] == '\r') length--;
        if (strspn(line, " \t") >= length) continue;
        status = score_line(s, line, length);
    }
    dr_buf_reset(&file);
    return status;
}

static void print_summary(const scorer *s) {
    double n = s->n_good > 0 ? (double)s->n_good : 1.0;
    fflush(stdout);
    fprintf(stderr, "%lld completions: %.1f %% valid, mean total %.4f", (long long)s->n_good,
            100.0 * (double)s->n_valid / n, s->total / n);
    for (int32_t i = 0; i < DR_REWARD_PARTS; i++)
        fprintf(stderr, ", %s %.4f", dr_reward_names[i], s->sums[i] / n);
    fprintf(stderr, "\n");
}

static dr_status score_all(const dr_cli *cli, const dr_dataset *dataset, dr_trm *trm,
                           const dr_text_encoder *encoder, const dr_template *prompt_template) {
    static const dr_split splits[] = {DR_SPLIT_TEST, DR_SPLIT_VALID, DR_SPLIT_TRAIN};
    scorer s = {.dataset = dataset,
                .split = splits[dr_config_choice(cli->options, "split")],
                .path = dr_config_string(cli->options, "input")};
    DR_TRY(read_settings(cli, &s.settings));
    DR_TRY(dr_reward_context_create(dataset, trm, encoder, prompt_template, &s.context));
    dr_status status = score_file(&s);
    dr_reward_context_destroy(s.context);
    DR_TRY(status);
    print_summary(&s);
    DR_CHECK(s.n_bad == 0, DR_ERR_FORMAT, "%s: %lld of %lld lines could not be scored", s.path,
             (long long)s.n_bad, (long long)(s.n_bad + s.n_good));
    return DR_OK;
}

// The retrieval model and, where that has no encoder for texts, one of the command's own.
static dr_status open_texts(const dr_config *o, dr_backend *backend, dr_trm **trm,
                            dr_text_encoder **encoder) {
    const char *trm_dir = dr_config_string(o, "trm"), *folder = dr_config_string(o, "text-encoder");
    dr_text_encoder_choice choice = {.name = folder[0] ? folder : "hashed-ngram",
                                     .dim = 1024,
                                     .max_tokens = 256,
                                     .query_instruction = DR_QUERY_INSTRUCTION_AUTO};
    if (trm_dir[0]) DR_TRY(dr_trm_load_with(backend, trm_dir, folder, trm));
    if (*trm && dr_trm_text_encoder(*trm)) return DR_OK;
    return dr_text_encoder_open(backend, &choice, encoder);
}

static dr_status run(const dr_cli *cli) {
    dr_dataset *dataset = NULL;
    dr_backend *backend = NULL;
    dr_trm *trm = NULL;
    dr_text_encoder *encoder = NULL;
    dr_template *prompt_template = NULL;
    dr_status status = dr_template_load(dr_config_string(cli->options, "template"), &prompt_template);
    if (status == DR_OK) status = dr_dataset_load(dr_config_string(cli->options, "dataset"), &dataset);
    if (status == DR_OK) status = dr_backend_cpu_create(DR_FP32, 0, &backend);
    if (status == DR_OK) status = open_texts(cli->options, backend, &trm, &encoder);
    if (status == DR_OK) status = score_all(cli, dataset, trm, encoder, prompt_template);
    dr_trm_destroy(trm);
    dr_text_encoder_destroy(encoder);
    dr_backend_cpu_destroy(backend);
    dr_template_destroy(prompt_template);
    dr_dataset_destroy(dataset);
    return status;
}

const dr_command dr_command_reward = {
    .name = "reward",
    .summary = "scores given completions with the rewards of training",
    .help = "Prints one JSON line for each input line: all six parts, the stage's total, whether the format "
            "holds and, if not, the first rule that is broken.\n"
            "A line is {\"user\": U, \"completion\": \"…\"} with the source's user id as text or number; the "
            "target "
            "is the user's item of the split. \"target\": a title or the source's item id names another one "
            "and makes "
            "the user optional. A completion begins inside the thought that the prompt opened. An item list "
            "counts as "
            "the retrieval model's only directly after a preference.\n"
            "Without --trm the similarity compares text vectors alone. Bytes that are no UTF-8 are read as "
            "U+FFFD and "
            "reported. A line that cannot be scored is named by file and line, gives {\"line\": n, "
            "\"error\": …}, and "
            "makes the command fail at the end.",
    .arguments = "",
    .options = options,
    .n_options = sizeof options / sizeof options[0],
    .run = run,
};
