// What a sentence encoder's folder says of itself: config.json, and beside it what sentence-transformers
// reads (https://sbert.net). What would change an embedding and is not done here is refused by its key.
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/base/file.h"
#include "core/base/json.h"
#include "core/model/sentence_encoder_internal.h"

enum { MOST_LAYERS = 1024, MOST_HEAD = 256, MOST_POSITIONS = 1 << 20 };

// dir/name as JSON; NULL when there is no such file. out_path: for error texts.
static dr_status load_if_there(const char *dir, const char *name, char **out_path, json_t **out_root) {
    DR_TRY(dr_path_join(out_path, dir, name));
    *out_root = NULL;
    return dr_file_exists(*out_path) ? dr_json_load(*out_path, out_root) : DR_OK;
}

typedef dr_status read_file(const json_t *root, const char *path, void *out);

// Hands dir/name to `read`; nothing when there is no such file and it need not be there.
static dr_status read_one(const char *dir, const char *name, bool is_needed, read_file *read, void *out) {
    char *path = NULL;
    json_t *root = NULL;
    dr_status status = load_if_there(dir, name, &path, &root);
    if (status == DR_OK && !root && is_needed)
        status = DR_FAIL(DR_ERR_FORMAT, "%s: there is no such file, and a sentence encoder needs it", path);
    if (status == DR_OK && root) status = read(root, path, out);
    json_decref(root);
    dr_free(path);
    return status;
}

static dr_status read_size(const json_t *root, const char *path, const char *key, int64_t most,
                           int32_t *out) {
    int64_t value = 0;
    DR_TRY(dr_json_i64(root, path, key, 1, most, &value));
    *out = (int32_t)value;
    return DR_OK;
}

// A key whose value, where it is said, must be this one.
static dr_status demand(const json_t *root, const char *path, const char *key, const char *expected) {
    const char *found = NULL;
    DR_TRY(dr_json_string_or(root, path, key, expected, &found));
    DR_CHECK(strcmp(found, expected) == 0, DR_ERR_UNSUPPORTED, "%s: %s is \"%s\", only \"%s\" is supported",
             path, key, found, expected);
    return DR_OK;
}

// config.json
static dr_status read_sizes(const json_t *root, const char *path, sentence_config *c) {
    const char *type = NULL;
    double eps = 0;
    int is_decoder = 0;
    DR_TRY(dr_json_string(root, path, "model_type", &type));
    DR_CHECK(strcmp(type, "bert") == 0, DR_ERR_UNSUPPORTED,
             "%s: model_type is \"%s\", a sentence encoder's must be \"bert\"", path, type);
    DR_TRY(demand(root, path, "hidden_act", "gelu"));
    DR_TRY(demand(root, path, "position_embedding_type", "absolute"));
    DR_TRY(dr_json_bool_or(root, path, "is_decoder", 0, &is_decoder));
    DR_CHECK(!is_decoder, DR_ERR_UNSUPPORTED, "%s: is_decoder: a sentence encoder looks both ways", path);
    DR_TRY(read_size(root, path, "vocab_size", 1 << 28, &c->vocab));
    DR_TRY(read_size(root, path, "hidden_size", 65536, &c->hidden));
    DR_TRY(read_size(root, path, "num_hidden_layers", MOST_LAYERS, &c->n_layers));
    DR_TRY(read_size(root, path, "num_attention_heads", 65536, &c->n_heads));
    DR_TRY(read_size(root, path, "intermediate_size", 1 << 20, &c->inner));
    DR_TRY(read_size(root, path, "max_position_embeddings", MOST_POSITIONS, &c->n_positions));
    DR_TRY(read_size(root, path, "type_vocab_size", 65536, &c->n_types));
    DR_TRY(dr_json_f64_or(root, path, "layer_norm_eps", 1e-30, 1, 1e-12, &eps));
    DR_CHECK(c->hidden % c->n_heads == 0 && c->hidden / c->n_heads <= MOST_HEAD, DR_ERR_FORMAT,
             "%s: hidden_size %d, %d heads: expected heads of equal size, at most %d", path, c->hidden,
             c->n_heads, MOST_HEAD);
    c->eps = (float)eps;
    c->max_tokens = c->n_positions;
    return DR_OK;
}

static dr_status read_config(const json_t *root, const char *path, void *out) {
    return read_sizes(root, path, out);
}

// ---- beside it ----

static bool is_listed(const char *name, const char *const *list, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (strcmp(name, list[i]) == 0) return true;
    return false;
}

// Refuses keys that nobody here knows.
static dr_status check_keys(const json_t *root, const char *path, const char *const *known, size_t n) {
    const char *key;
    json_t *value;
    DR_CHECK(json_is_object(root), DR_ERR_FORMAT, "%s: expected an object, found %s", path,
             dr_json_type_name(root));
    json_object_foreach((json_t *)(uintptr_t)root, key, value)
        DR_CHECK(json_is_null(value) || is_listed(key, known, n), DR_ERR_UNSUPPORTED,
                 "%s: %s is not supported", path, key);
    return DR_OK;
}

// Refuses values, of keys that may be there, which say something.
static dr_status check_empty(const json_t *root, const char *path, const char *const *keys, size_t n) {
    for (size_t i = 0; i < n; i++) {
        const json_t *value = json_object_get(root, keys[i]);
        bool is_empty =
            !value || json_is_null(value) || (json_is_object(value) && json_object_size(value) == 0);
        DR_CHECK(is_empty, DR_ERR_UNSUPPORTED, "%s: %s is not supported", path, keys[i]);
    }
    return DR_OK;
}

// How a newer transformer module says that its output is the last layer's rows.
static dr_status check_modality(const json_t *root, const char *path) {
    json_t *modalities = json_object_get(root, "modality_config"), *text = NULL;
    DR_TRY(demand(root, path, "transformer_task", "feature-extraction"));
    DR_TRY(demand(root, path, "module_output_name", "token_embeddings"));
    if (!modalities || json_is_null(modalities)) return DR_OK;
    DR_TRY(dr_json_object(root, path, "modality_config", &modalities));
    DR_TRY(dr_json_object(modalities, path, "text", &text));
    DR_TRY(demand(text, path, "method", "forward"));
    return demand(text, path, "method_output_name", "last_hidden_state");
}

// sentence_bert_config.json
static dr_status read_transformer(const json_t *root, const char *path, void *out) {
    static const char *const known[] = {
        "max_seq_length",    "do_lower_case", "transformer_task", "modality_config", "module_output_name",
        "unpad_inputs",      "model_args",    "model_kwargs",     "tokenizer_args",  "processor_kwargs",
        "processing_kwargs", "config_args",   "config_kwargs"};
    static const char *const empty[] = {"model_args",       "model_kwargs",      "tokenizer_args",
                                        "processor_kwargs", "processing_kwargs", "config_args",
                                        "config_kwargs"};
    sentence_config *c = out;
    int64_t most = c->max_tokens;
    int lowers = 0, unpads = 0;
    DR_TRY(check_keys(root, path, known, sizeof known / sizeof *known));
    DR_TRY(check_empty(root, path, empty, sizeof empty / sizeof *empty));
    DR_TRY(check_modality(root, path));
    DR_TRY(dr_json_bool_or(root, path, "unpad_inputs", 0, &unpads)); // the same rows either way
    DR_TRY(dr_json_bool_or(root, path, "do_lower_case", 0, &lowers));
    DR_TRY(dr_json_i64_or(root, path, "max_seq_length", 1, INT32_MAX, 0, &most));
    c->lowers = lowers;
    c->says_max_tokens = most > 0;
    if (most > 0 && most < c->max_tokens) c->max_tokens = (int32_t)most;
    return DR_OK;
}

// tokenizer_config.json: its limit counts where sentence_bert_config.json has none. A number of thirty digits
// stands there for no limit.
static dr_status read_tokenizer_limit(const char *dir, sentence_config *c) {
    char *path = NULL;
    json_t *root = NULL;
    double most = c->max_tokens;
    DR_TRY(dr_path_join(&path, dir, "tokenizer_config.json"));
    dr_status status = dr_file_exists(path) ? dr_json_load_reals(path, &root) : DR_OK;
    if (status == DR_OK && root)
        status = dr_json_f64_or(root, path, "model_max_length", 1, HUGE_VAL, most, &most);
    if (status == DR_OK && most < c->max_tokens) c->max_tokens = (int32_t)most;
    json_decref(root);
    dr_free(path);
    return status;
}

// The way to pool by its name.
static dr_status name_pooling(const char *path, const char *key, const char *way, dr_pooling *out) {
    bool is_first = strcmp(way, "cls") == 0;
    DR_CHECK(is_first || strcmp(way, "mean") == 0, DR_ERR_UNSUPPORTED,
             "%s: %s is \"%s\", supported are \"cls\" and \"mean\"", path, key, way);
    *out = is_first ? DR_POOL_FIRST : DR_POOL_MEAN;
    return DR_OK;
}

// Newer files: pooling_mode, a name or a list of them.
static dr_status read_pooling_mode(const json_t *mode, const char *path, dr_pooling *out) {
    DR_CHECK(!json_is_array(mode) || json_array_size(mode) == 1, DR_ERR_UNSUPPORTED,
             "%s: pooling_mode: %zu ways to pool, expected one", path, json_array_size(mode));
    if (json_is_array(mode)) mode = json_array_get(mode, 0);
    DR_CHECK(json_is_string(mode), DR_ERR_FORMAT, "%s: pooling_mode: expected a string, found %s", path,
             dr_json_type_name(mode));
    return name_pooling(path, "pooling_mode", json_string_value(mode), out);
}

// Older ones: a key a way, exactly one of them true.
static dr_status read_pooling_keys(const json_t *root, const char *path, dr_pooling *out) {
    static const char *const ways[] = {
        "pooling_mode_cls_token",           "pooling_mode_mean_tokens",
        "pooling_mode_max_tokens",          "pooling_mode_mean_sqrt_len_tokens",
        "pooling_mode_weightedmean_tokens", "pooling_mode_lasttoken"};
    const char *only = NULL;
    int n = 0;
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        int is_used = 0;
        DR_TRY(dr_json_bool_or(root, path, ways[i], 0, &is_used));
        if (is_used) only = ways[i];
        n += is_used;
    }
    DR_CHECK(n == 1 && (only == ways[0] || only == ways[1]), DR_ERR_UNSUPPORTED,
             "%s: %d ways to pool%s%s, expected %s or %s alone", path, n, n == 1 ? ": " : "",
             n == 1 ? only : "", ways[0], ways[1]);
    *out = only == ways[0] ? DR_POOL_FIRST : DR_POOL_MEAN;
    return DR_OK;
}

// config.json of the pooling module
static dr_status read_pooling(const json_t *root, const char *path, void *out) {
    static const char *const known[] = {"word_embedding_dimension",
                                        "embedding_dimension",
                                        "pooling_mode",
                                        "pooling_mode_cls_token",
                                        "pooling_mode_mean_tokens",
                                        "pooling_mode_max_tokens",
                                        "pooling_mode_mean_sqrt_len_tokens",
                                        "pooling_mode_weightedmean_tokens",
                                        "pooling_mode_lasttoken",
                                        "include_prompt"};
    sentence_config *c = out;
    const json_t *mode = json_object_get(root, "pooling_mode");
    int has_prompt = 1;
    DR_TRY(check_keys(root, path, known, sizeof known / sizeof *known));
    for (int i = 0; i < 2; i++) {
        int64_t width = 0;
        DR_TRY(dr_json_i64_or(root, path, known[i], 1, INT32_MAX, c->hidden, &width));
        DR_CHECK(width == c->hidden, DR_ERR_FORMAT, "%s: %s is %lld, hidden_size of config.json %d", path,
                 known[i], (long long)width, c->hidden);
    }
    DR_TRY(dr_json_bool_or(root, path, "include_prompt", 1, &has_prompt));
    DR_CHECK(has_prompt, DR_ERR_UNSUPPORTED,
             "%s: include_prompt is false: pooling without the instruction's rows is not supported", path);
    bool is_named = mode && !json_is_null(mode);
    return is_named ? read_pooling_mode(mode, path, &c->pooling) : read_pooling_keys(root, path, &c->pooling);
}

// config.json of the normalising module
static dr_status check_normalize(const json_t *root, const char *path, void *out) {
    static const char *const known[] = {"module_input_name", "module_output_name"};
    (void)out;
    DR_TRY(check_keys(root, path, known, 2));
    for (int i = 0; i < 2; i++) DR_TRY(demand(root, path, known[i], "sentence_embedding"));
    return DR_OK;
}

// ---- modules.json ----

typedef struct module_list {
    const char *dir;
    sentence_config *config;
    bool is_there;
} module_list;

// "sentence_transformers.models.Pooling" is "Pooling"; another library's is not.
static const char *own_name(const char *type) {
    static const char library[] = "sentence_transformers.";
    const char *dot = strrchr(type, '.');
    return strncmp(type, library, sizeof library - 1) == 0 ? dot + 1 : "";
}

// The module at place `at`: a transformer in the folder itself, pooling, and perhaps a normalisation.
static dr_status read_module(const module_list *list, const json_t *module, const char *path, size_t at) {
    static const char *const names[] = {"Transformer", "Pooling", "Normalize"};
    const char *type = NULL, *place = NULL;
    char *file = NULL;
    DR_TRY(dr_json_string(module, path, "type", &type));
    DR_TRY(dr_json_string(module, path, "path", &place));
    DR_CHECK(at < 3 && strcmp(own_name(type), names[at]) == 0, DR_ERR_UNSUPPORTED,
             "%s: module %zu is %s; supported are Transformer, Pooling and Normalize of "
             "sentence_transformers in this order",
             path, at, type);
    DR_CHECK(at > 0 || place[0] == '\0', DR_ERR_UNSUPPORTED,
             "%s: path of the Transformer is \"%s\", only \"\" is supported", path, place);
    if (at == 0) return DR_OK;
    DR_TRY(dr_path_join(&file, place, "config.json"));
    dr_status status =
        read_one(list->dir, file, at == 1, at == 1 ? read_pooling : check_normalize, list->config);
    dr_free(file);
    return status;
}

static dr_status read_modules(const json_t *root, const char *path, void *out) {
    module_list *list = out;
    const json_t *module;
    size_t at;
    DR_CHECK(json_is_array(root), DR_ERR_FORMAT, "%s: expected an array of modules, found %s", path,
             dr_json_type_name(root));
    json_array_foreach(root, at, module) DR_TRY(read_module(list, module, path, at));
    DR_CHECK(json_array_size(root) >= 2, DR_ERR_UNSUPPORTED,
             "%s: %zu modules, expected a Transformer and Pooling", path, json_array_size(root));
    list->is_there = true;
    return DR_OK;
}

// ---- config_sentence_transformers.json ----

typedef struct instruction {
    const char *fallback;
    char *text; // owned
} instruction;

// Items are encoded as they are: prompts of theirs are refused.
static dr_status check_prompts(const json_t *root, const json_t *prompts, const char *path) {
    static const char *const of_items[] = {"document", "passage", "corpus"};
    const char *by_default = NULL, *text = NULL;
    for (int i = 0; i < 3; i++) {
        DR_TRY(dr_json_string_or(prompts, path, of_items[i], "", &text));
        DR_CHECK(text[0] == '\0', DR_ERR_UNSUPPORTED,
                 "%s: prompts.%s is \"%s\": items with a prompt are not supported", path, of_items[i], text);
    }
    DR_TRY(dr_json_string_or(root, path, "default_prompt_name", "", &by_default));
    DR_TRY(dr_json_string_or(prompts, path, by_default, "", &text));
    DR_CHECK(text[0] == '\0', DR_ERR_UNSUPPORTED,
             "%s: default_prompt_name is \"%s\": a prompt of all texts is not supported", path, by_default);
    return DR_OK;
}

// prompts.query, else what fits the way of pooling.
static dr_status read_instruction(const json_t *root, const char *path, void *out) {
    static const char *const empty[] = {"truncate_dim"};
    instruction *i = out;
    const char *text = i->fallback;
    json_t *prompts = json_object_get(root, "prompts");
    DR_TRY(demand(root, path, "model_type", "SentenceTransformer"));
    DR_TRY(check_empty(root, path, empty, 1));
    if (prompts && !json_is_null(prompts)) {
        DR_TRY(dr_json_object(root, path, "prompts", &prompts));
        DR_TRY(dr_json_string_or(prompts, path, "query", i->fallback, &text));
        DR_TRY(check_prompts(root, prompts, path));
    }
    return dr_strdup(&i->text, text);
}

dr_status dr_sentence_config_read(const char *dir, sentence_config *out, char **out_instruction) {
    module_list modules = {.dir = dir, .config = out};
    DR_TRY(read_one(dir, "config.json", true, read_config, out));
    DR_TRY(read_one(dir, "sentence_bert_config.json", false, read_transformer, out));
    if (!out->says_max_tokens) DR_TRY(read_tokenizer_limit(dir, out));
    DR_TRY(read_one(dir, "modules.json", false, read_modules, &modules));
    if (!modules.is_there) DR_TRY(read_one(dir, "1_Pooling/config.json", false, read_pooling, out));
    instruction of_queries = {.fallback = out->pooling == DR_POOL_FIRST
                                              ? "Represent this sentence for searching relevant passages: "
                                              : ""};
    DR_TRY(read_one(dir, "config_sentence_transformers.json", false, read_instruction, &of_queries));
    *out_instruction = of_queries.text;
    return of_queries.text ? DR_OK : dr_strdup(out_instruction, of_queries.fallback);
}
