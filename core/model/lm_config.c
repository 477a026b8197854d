// Presets, and config.json of Hugging Face folders. What this engine does not compute is refused by name,
// never guessed.
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/base/alloc.h"
#include "core/base/file.h"
#include "core/base/json.h"
#include "core/model/lm_internal.h"

dr_status dr_lm_preset(const char *name, int32_t vocab, dr_lm_config *out_config) {
    static const struct {
        const char *name;
        int32_t n_layers, hidden, n_heads, n_kv_heads, head_size, intermediate;
    } presets[] = {
        {"tiny", 2, 64, 4, 2, 16, 128}, {"small", 4, 256, 4, 2, 64, 1344}, {"base", 8, 384, 6, 2, 64, 1024}};
    for (size_t i = 0; i < sizeof presets / sizeof *presets; i++) {
        if (strcmp(presets[i].name, name) != 0) continue;
        dr_lm_config config = {.architecture = "Qwen2ForCausalLM",
                               .n_layers = presets[i].n_layers,
                               .hidden = presets[i].hidden,
                               .n_heads = presets[i].n_heads,
                               .n_kv_heads = presets[i].n_kv_heads,
                               .head_size = presets[i].head_size,
                               .intermediate = presets[i].intermediate,
                               .vocab = vocab,
                               .max_positions = 16384,
                               .rms_eps = 1e-6f,
                               .rope_theta = 1000000.0f,
                               .tied_head = true,
                               .qkv_bias = true,
                               .bos_id = -1,
                               .eos_id = -1,
                               .pad_id = -1};
        DR_TRY(dr_lm_config_check(&config, name));
        *out_config = config;
        return DR_OK;
    }
    return DR_FAIL(DR_ERR_ARGUMENT, "model preset \"%s\": expected tiny, small or base", name);
}

dr_status dr_lm_config_check(const dr_lm_config *c, const char *where) {
    DR_CHECK(c->n_layers > 0 && c->n_layers <= 1000 && c->hidden > 0 && c->hidden <= 1 << 20 &&
                 c->intermediate > 0 && c->intermediate <= 1 << 22 && c->vocab > 0 && c->vocab <= 1 << 24,
             DR_ERR_FORMAT, "%s: sizes out of range: %d layers, hidden %d, intermediate %d, vocabulary %d",
             where, c->n_layers, c->hidden, c->intermediate, c->vocab);
    DR_CHECK(c->n_heads > 0 && c->n_kv_heads > 0 && c->n_heads % c->n_kv_heads == 0 && c->n_heads <= 1024,
             DR_ERR_FORMAT, "%s: %d heads cannot share %d key/value heads", where, c->n_heads, c->n_kv_heads);
    DR_CHECK(c->head_size > 0 && c->head_size % 2 == 0 && c->head_size <= 256, DR_ERR_UNSUPPORTED,
             "%s: head size %d, expected an even number up to 256", where, c->head_size);
    DR_CHECK(c->rms_eps > 0 && c->rope_theta > 0 && isfinite(c->rope_theta), DR_ERR_FORMAT,
             "%s: rms_norm_eps %g and rope_theta %g must be positive", where, (double)c->rms_eps,
             (double)c->rope_theta);
    DR_CHECK(!(c->qk_norm && c->qkv_bias), DR_ERR_UNSUPPORTED,
             "%s: norms and biases of queries and keys together are not supported", where);
    const dr_rope_llama3 *r = &c->rope_llama3;
    DR_CHECK(r->factor == 0 || (r->factor >= 1 && r->low_freq_factor > 0 &&
                                r->high_freq_factor > r->low_freq_factor && r->original_positions > 0),
             DR_ERR_FORMAT,
             "%s: rope of type llama3: factor %g, low_freq_factor %g, high_freq_factor %g, %d original "
             "positions: expected a factor of at least 1, 0 < low < high, and positions",
             where, (double)r->factor, (double)r->low_freq_factor, (double)r->high_freq_factor,
             r->original_positions);
    return DR_OK;
}

static dr_status refuse_partial_rotary(json_t *object, const char *where) {
    double factor = 1.0;
    DR_TRY(dr_json_f64_or(object, where, "partial_rotary_factor", 0.0, 1e6, factor, &factor));
    DR_CHECK(factor == 1.0, DR_ERR_UNSUPPORTED, "%s: partial_rotary_factor %g is not supported (1)", where,
             factor);
    return DR_OK;
}

static dr_status read_llama3(json_t *rope, const char *where, dr_rope_llama3 *out) {
    static const char *const keys[] = {"factor", "low_freq_factor", "high_freq_factor"};
    float *const values[] = {&out->factor, &out->low_freq_factor, &out->high_freq_factor};
    for (int i = 0; i < 3; i++) {
        double number = 0;
        DR_TRY(dr_json_f64(rope, where, keys[i], 1e-6, 1e6, &number));
        *values[i] = (float)number;
    }
    int64_t positions = 0;
    DR_TRY(dr_json_i64(rope, where, "original_max_position_embeddings", 1, 1 << 30, &positions));
    out->original_positions = (int32_t)positions;
    return DR_OK;
}

// One set of parameters for all layers, or nothing that this program computes.
static dr_status refuse_nested_rope(json_t *rope, const char *where, const char *place) {
    const char *key;
    json_t *value;
    json_object_foreach(rope, key, value)
        DR_CHECK(!json_is_object(value), DR_ERR_UNSUPPORTED,
                 "%s: %s: own values for \"%s\" are not supported", where, place, key);
    return DR_OK;
}

// rope_theta stands at the top (older) or inside rope_parameters (newer folders).
static dr_status read_rope(json_t *root, const char *where, dr_lm_config *c) {
    double theta = 10000.0;
    DR_TRY(dr_json_f64_or(root, where, "rope_theta", 1.0, 1e12, theta, &theta));
    static const char *const places[] = {"rope_scaling", "rope_parameters"};
    for (int i = 0; i < 2; i++) {
        json_t *rope = json_object_get(root, places[i]);
        if (!rope || json_is_null(rope)) continue;
        DR_CHECK(json_is_object(rope), DR_ERR_FORMAT, "%s: %s: expected an object or null, found %s", where,
                 places[i], dr_json_type_name(rope));
        const char *type = "default";
        DR_TRY(dr_json_string_or(rope, where, json_object_get(rope, "rope_type") ? "rope_type" : "type", type,
                                 &type));
        DR_TRY(refuse_nested_rope(rope, where, places[i]));
        DR_CHECK(strcmp(type, "default") == 0 || strcmp(type, "llama3") == 0, DR_ERR_UNSUPPORTED,
                 "%s: %s of type \"%s\" is not supported (default, llama3)", where, places[i], type);
        if (strcmp(type, "llama3") == 0) DR_TRY(read_llama3(rope, where, &c->rope_llama3));
        DR_TRY(dr_json_f64_or(rope, where, "rope_theta", 1.0, 1e12, theta, &theta));
        DR_TRY(refuse_partial_rotary(rope, where));
    }
    DR_TRY(refuse_partial_rotary(root, where));
    c->rope_theta = (float)theta;
    return DR_OK;
}

// What each family's configuration means when it is silent; head_dim 0: hidden / heads.
typedef struct family {
    const char *architecture, *model_type;
    int32_t max_positions, head_dim;
    bool qkv_bias, qk_norm;
} family;
static const family families[] = {{"Qwen2ForCausalLM", "qwen2", 32768, 0, true, false},
                                  {"Qwen3ForCausalLM", "qwen3", 32768, 128, false, true},
                                  {"LlamaForCausalLM", "llama", 2048, 0, false, false},
                                  {"MistralForCausalLM", "mistral", 131072, 0, false, false}};

static const family *family_of(const char *architecture) {
    for (size_t i = 0; i < sizeof families / sizeof *families; i++)
        if (strcmp(families[i].architecture, architecture) == 0) return &families[i];
    return NULL;
}

// Attention over a window, wherever a family writes it. Mistral's default is a window, so it must say null.
static dr_status refuse_windows(json_t *root, const char *where, const dr_lm_config *c) {
    int windowed = 0;
    DR_TRY(dr_json_bool_or(root, where, "use_sliding_window", 0, &windowed));
    DR_CHECK(!windowed, DR_ERR_UNSUPPORTED, "%s: use_sliding_window is not supported", where);
    if (strcmp(c->architecture, "MistralForCausalLM") == 0)
        DR_CHECK(json_is_null(json_object_get(root, "sliding_window")), DR_ERR_UNSUPPORTED,
                 "%s: sliding_window: expected null (attention over a window is not supported), found %s",
                 where, dr_json_type_name(json_object_get(root, "sliding_window")));
    size_t i;
    json_t *kind;
    json_array_foreach(json_object_get(root, "layer_types"), i, kind) {
        const char *name = json_string_value(kind);
        DR_CHECK(name && strcmp(name, "full_attention") == 0, DR_ERR_UNSUPPORTED,
                 "%s: layer_types: layer %zu is \"%s\", only \"full_attention\" is supported", where, i,
                 name ? name : dr_json_type_name(kind));
    }
    return DR_OK;
}

// Quantised weights and mixtures of experts, should a file of another kind bear a known architecture's name.
static dr_status refuse_other_weights(json_t *root, const char *where) {
    json_t *quantization = json_object_get(root, "quantization_config");
    const char *method = json_string_value(json_object_get(quantization, "quant_method"));
    DR_CHECK(!quantization || json_is_null(quantization), DR_ERR_UNSUPPORTED,
             "%s: quantization_config: quantised weights (%s) are not supported", where,
             method ? method : "no quant_method");
    static const char *const experts[] = {"num_experts", "num_local_experts", "n_routed_experts"};
    for (int i = 0; i < 3; i++) {
        int64_t n = 0;
        DR_TRY(dr_json_i64_or(root, where, experts[i], 0, 1 << 20, 0, &n));
        DR_CHECK(n == 0, DR_ERR_UNSUPPORTED, "%s: %s %lld: mixtures of experts are not supported", where,
                 experts[i], (long long)n);
    }
    return DR_OK;
}

static dr_status read_architecture(json_t *root, const char *where, dr_lm_config *c) {
    json_t *list = json_object_get(root, "architectures");
    const char *name = json_string_value(json_array_get(list, 0));
    DR_CHECK(name, DR_ERR_FORMAT, "%s: architectures: expected a list with one name", where);
    const family *kind = family_of(name);
    DR_CHECK(
        kind, DR_ERR_UNSUPPORTED,
        "%s: architecture \"%s\" is not supported (Qwen2ForCausalLM, Qwen3ForCausalLM, LlamaForCausalLM, "
        "MistralForCausalLM)",
        where, name);
    snprintf(c->architecture, sizeof c->architecture, "%s", name);
    c->qkv_bias = kind->qkv_bias;
    c->qk_norm = kind->qk_norm;
    const char *activation = "silu";
    DR_TRY(dr_json_string_or(root, where, "hidden_act", activation, &activation));
    DR_CHECK(strcmp(activation, "silu") == 0, DR_ERR_UNSUPPORTED,
             "%s: hidden_act \"%s\" is not supported (silu)", where, activation);
    int mlp_bias = 0, attention_bias = 0;
    DR_TRY(dr_json_bool_or(root, where, "mlp_bias", 0, &mlp_bias));
    if (!c->qkv_bias) DR_TRY(dr_json_bool_or(root, where, "attention_bias", 0, &attention_bias));
    DR_CHECK(!mlp_bias && !attention_bias, DR_ERR_UNSUPPORTED, "%s: %s is not supported", where,
             mlp_bias ? "mlp_bias" : "attention_bias");
    DR_TRY(refuse_other_weights(root, where));
    return refuse_windows(root, where, c);
}

// eos_token_id may be one number or a list: the first one counts.
static dr_status read_token_id(json_t *root, const char *where, const char *key, int32_t *out) {
    json_t *value = json_object_get(root, key);
    if (json_is_array(value)) value = json_array_get(value, 0);
    *out = -1;
    if (!value || json_is_null(value)) return DR_OK;
    DR_CHECK(json_is_integer(value) && json_integer_value(value) >= 0 && json_integer_value(value) < 1 << 24,
             DR_ERR_FORMAT, "%s: %s: expected a token id, found %s", where, key, dr_json_type_name(value));
    *out = (int32_t)json_integer_value(value);
    return DR_OK;
}

static dr_status read_sizes(json_t *root, const char *where, dr_lm_config *c) {
    static const char *const keys[] = {"num_hidden_layers", "hidden_size", "num_attention_heads",
                                       "intermediate_size", "vocab_size"};
    int32_t *const values[] = {&c->n_layers, &c->hidden, &c->n_heads, &c->intermediate, &c->vocab};
    int64_t number = 0;
    for (int i = 0; i < 5; i++) {
        DR_TRY(dr_json_i64(root, where, keys[i], 1, 1 << 24, &number));
        *values[i] = (int32_t)number;
    }
    DR_TRY(dr_json_i64_or(root, where, "num_key_value_heads", 1, 1 << 20, c->n_heads, &number));
    c->n_kv_heads = (int32_t)number;
    json_t *head_dim = json_object_get(root, "head_dim");
    const family *kind = family_of(c->architecture);
    number = kind->head_dim ? kind->head_dim : c->hidden / c->n_heads;
    if (head_dim && !json_is_null(head_dim))
        DR_TRY(dr_json_i64(root, where, "head_dim", 1, 1 << 20, &number));
    c->head_size = (int32_t)number;
    DR_TRY(dr_json_i64_or(root, where, "max_position_embeddings", 1, 1 << 30, kind->max_positions, &number));
    c->max_positions = (int32_t)number;
    double eps = 1e-6;
    DR_TRY(dr_json_f64_or(root, where, "rms_norm_eps", 1e-20, 1.0, eps, &eps));
    c->rms_eps = (float)eps;
    int tied = 0;
    DR_TRY(dr_json_bool_or(root, where, "tie_word_embeddings", 0, &tied));
    c->tied_head = tied;
    return DR_OK;
}

dr_status dr_lm_config_read(const char *dir, dr_lm_config *out) {
    char *path = NULL;
    json_t *root = NULL;
    dr_lm_config config = {0};
    DR_TRY(dr_path_join(&path, dir, "config.json"));
    dr_status status;
    DR_TRY_GOTO(status, dr_json_load(path, &root), free_path);
    DR_TRY_GOTO(status, read_architecture(root, path, &config), release_root);
    DR_TRY_GOTO(status, read_sizes(root, path, &config), release_root);
    DR_TRY_GOTO(status, read_rope(root, path, &config), release_root);
    DR_TRY_GOTO(status, read_token_id(root, path, "bos_token_id", &config.bos_id), release_root);
    DR_TRY_GOTO(status, read_token_id(root, path, "eos_token_id", &config.eos_id), release_root);
    DR_TRY_GOTO(status, read_token_id(root, path, "pad_token_id", &config.pad_id), release_root);
    DR_TRY_GOTO(status, dr_lm_config_check(&config, path), release_root);
    *out = config;
release_root:
    json_decref(root);
free_path:
    dr_free(path);
    return status;
}

static void set_ids(json_t *root, const dr_lm_config *c) {
    const struct {
        const char *key;
        int32_t id;
    } ids[] = {{"bos_token_id", c->bos_id}, {"eos_token_id", c->eos_id}, {"pad_token_id", c->pad_id}};
    for (int i = 0; i < 3; i++)
        json_object_set_new(root, ids[i].key, ids[i].id < 0 ? json_null() : json_integer(ids[i].id));
}

// Under each name that readers know: the older one has rope_theta beside it, the newer one inside.
static void set_rope(json_t *root, const dr_lm_config *c) {
    const dr_rope_llama3 *r = &c->rope_llama3;
    json_t *rope = json_pack("{s:s, s:f}", "rope_type", r->factor > 0 ? "llama3" : "default", "rope_theta",
                             (double)c->rope_theta);
    if (rope && r->factor > 0) {
        json_object_set_new(rope, "factor", json_real((double)r->factor));
        json_object_set_new(rope, "low_freq_factor", json_real((double)r->low_freq_factor));
        json_object_set_new(rope, "high_freq_factor", json_real((double)r->high_freq_factor));
        json_object_set_new(rope, "original_max_position_embeddings", json_integer(r->original_positions));
        json_t *older = json_copy(rope);
        json_object_del(older, "rope_theta");
        json_object_set_new(root, "rope_scaling", older);
    }
    json_object_set_new(root, "rope_parameters", rope);
}

dr_status dr_lm_config_write(const dr_lm_config *c, dr_dtype dtype, const char *dir) {
    static const char *const dtypes[] = {"float32", "bfloat16", "float16"};
    const family *kind = family_of(c->architecture);
    DR_CHECK(kind, DR_ERR_ARGUMENT, "architecture \"%s\" is unknown", c->architecture);
    const char *type = kind->model_type;
    // rope_theta in both places: older readers know one, newer ones the other
    json_t *root = json_pack(
        "{s:[s], s:s, s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:f, s:f, s:b, s:s}", "architectures",
        c->architecture, "model_type", type, "hidden_act", "silu", "num_hidden_layers", c->n_layers,
        "hidden_size", c->hidden, "num_attention_heads", c->n_heads, "num_key_value_heads", c->n_kv_heads,
        "head_dim", c->head_size, "intermediate_size", c->intermediate, "vocab_size", c->vocab,
        "max_position_embeddings", c->max_positions, "rms_norm_eps", (double)c->rms_eps, "rope_theta",
        (double)c->rope_theta, "tie_word_embeddings", c->tied_head, "torch_dtype", dtypes[dtype]);
    if (root) {
        set_ids(root, c);
        set_rope(root, c);
        if (strncmp(type, "qwen", 4) == 0) json_object_set_new(root, "use_sliding_window", json_false());
        if (strcmp(type, "qwen3") == 0) json_object_set_new(root, "attention_bias", json_false());
        if (strcmp(type, "mistral") == 0) json_object_set_new(root, "sliding_window", json_null());
        if (strcmp(type, "llama") == 0) {
            json_object_set_new(root, "attention_bias", json_false());
            json_object_set_new(root, "mlp_bias", json_false());
        }
    }
    DR_TRY(dr_json_save_in(root, dir, "config.json"));
    root = json_object();
    if (root) {
        json_object_set_new(root, "_from_model_config", json_true());
        set_ids(root, c);
    }
    return dr_json_save_in(root, dir, "generation_config.json");
}
