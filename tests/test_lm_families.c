// The model families against goldens of transformers: logits, gradients, ten losses, and folders that come
// back from loading and saving as they were. What a family may not ask of this engine is refused by name.
// labels: cpu
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/base/alloc.h"
#include "core/base/file.h"
#include "core/compute/cpu_internal.h"
#include "core/model/lm_internal.h"
#include "core/model/optimizer.h"
#include "core/store/safetensors_folder.h"
#include "tests/golden.h"

static dr_backend *backend;

static int setup(void **state) {
    (void)state;
    return dr_backend_cpu_create(DR_FP32, 1, &backend) == DR_OK ? 0 : -1;
}

static int teardown(void **state) {
    (void)state;
    dr_backend_cpu_destroy(backend);
    return 0;
}

// One sequence whose every position predicts the next id.
typedef struct sequence {
    int32_t ids[64], rows[64], cu[2];
    dr_pack pack;
} sequence;

static void sequence_make(sequence *s, const float *ids, int32_t n) {
    for (int32_t i = 0; i < n; i++) {
        s->ids[i] = (int32_t)ids[i];
        s->rows[i] = i;
    }
    s->cu[0] = 0;
    s->cu[1] = n;
    s->pack = (dr_pack){n, s->ids, s->cu, 1, n - 1, s->rows, s->ids + 1, NULL, NULL};
}

static void compare_gradients(const dr_lm *lm, const dr_safetensors *golden, const float *gradient) {
    const dr_lm_tensor *tensors;
    int32_t n = dr_lm_tensors(lm, &tensors);
    for (int32_t i = 0; i < n; i++) {
        char name[128];
        snprintf(name, sizeof name, "grad.%s", tensors[i].name);
        float *want = read_golden(golden, name, NULL);
        check_relative_error(name, gradient + tensors[i].offset, want, tensors[i].rows * tensors[i].cols,
                             1e-4);
        dr_free(want);
    }
}

static void compare_training(dr_lm *lm, dr_lm_workspace *w, const sequence *s, const float *losses) {
    dr_optimizer_settings settings = {0.9f, 0.95f, 1e-8f, 0.1f, 1.0f};
    dr_optimizer *optimizer = NULL;
    check_ok(dr_optimizer_create(lm, &settings, NULL, &optimizer));
    int64_t n = dr_lm_n_params(lm), rows = s->pack.n_rows;
    float *gradient = NULL, logprob[64], entropy[64], dlogprob[64];
    check_ok(dr_alloc(&gradient, "gradient", n, sizeof(float)));
    int64_t allocations = -1;
    for (int step = 0; step < 10; step++) {
        memset(gradient, 0, (size_t)n * sizeof(float));
        check_ok(dr_lm_forward(lm, w, &s->pack, 1.0f, logprob, entropy));
        float loss = 0;
        for (int64_t r = 0; r < rows; r++) {
            loss -= logprob[r] / (float)rows;
            dlogprob[r] = -1.0f / (float)rows;
        }
        check_close("training loss", &loss, &losses[step], 1, 1e-4, 1e-4);
        check_ok(dr_lm_backward(lm, w, &s->pack, 1.0f, dlogprob, gradient, NULL));
        double norm;
        check_ok(dr_optimizer_step(optimizer, gradient, 1e-2f, &norm));
        if (step == 1) allocations = dr_alloc_calls();
    }
    assert_int_equal(dr_alloc_calls(), allocations); // a training step allocates nothing
    gradient[3] = NAN;
    double norm = -1;
    check_error(dr_optimizer_step(optimizer, gradient, 1e-2f, &norm), DR_ERR_NUMERIC, "no update");
    assert_int_equal(dr_optimizer_updates(optimizer), 10);
    dr_free(gradient);
    dr_optimizer_destroy(optimizer);
}

// Loaded and saved, in one file and in shards of at most 9000 bytes: the same tensors by name, shape, type
// and value.
static void check_saved(const char *dir) {
    dr_lm *lm = NULL;
    check_ok(dr_lm_load(backend, dir, &lm));
    const char *one = check_scratch_dir(), *many = check_scratch_dir();
    check_ok(dr_lm_save(lm, one, DR_SAVE_AS_LOADED));
    check_ok(dr_lm_save_in_shards(lm, many, DR_SAVE_AS_LOADED, 9000));
    assert_true(dr_file_exists(check_path(one, "model.safetensors")));
    assert_false(dr_file_exists(check_path(many, "model.safetensors")));
    dr_lm_destroy(lm);
    const char *folders[] = {one, many};
    dr_safetensors_folder *before = NULL, *after = NULL;
    check_ok(dr_safetensors_folder_open(dir, &before));
    for (int f = 0; f < 2; f++) {
        check_ok(dr_safetensors_folder_open(folders[f], &after));
        assert_int_equal(dr_safetensors_folder_count(after), dr_safetensors_folder_count(before));
        for (int32_t i = 0; i < dr_safetensors_folder_count(before); i++) {
            const dr_safetensor *t = dr_safetensors_folder_at(before, i);
            float *want = NULL, *got = NULL;
            check_ok(dr_alloc(&want, "before", t->n_values, sizeof(float)));
            check_ok(dr_alloc(&got, "after", t->n_values, sizeof(float)));
            check_ok(dr_safetensors_folder_read(before, t->name, t->shape, t->n_dims, want));
            check_ok(dr_safetensors_folder_read(after, t->name, t->shape, t->n_dims, got));
            check_same_bits(t->name, got, want, t->n_values);
            assert_int_equal(dr_safetensors_folder_find(after, t->name)->dtype, t->dtype);
            dr_free(want);
            dr_free(got);
        }
        dr_safetensors_folder_close(after);
        dr_lm *again = NULL; // config.json says the same too
        check_ok(dr_lm_load(backend, folders[f], &again));
        check_ok(dr_lm_load(backend, dir, &lm));
        dr_lm_config a = *dr_lm_config_of(again), b = *dr_lm_config_of(lm);
        assert_string_equal(a.architecture, b.architecture);
        assert_memory_equal(&a.rope_llama3, &b.rope_llama3, sizeof a.rope_llama3);
        assert_true(a.rope_theta == b.rope_theta && a.head_size == b.head_size &&
                    a.tied_head == b.tied_head && a.max_positions == b.max_positions);
        dr_lm_destroy(again);
        dr_lm_destroy(lm);
    }
    dr_safetensors_folder_close(before);
}

// Layers run again in the backward pass: less memory, the same bits.
static void compare_recomputed(dr_lm *lm, const dr_pack *pack, const float *dlogprob, const float *logprob,
                               const float *gradient, int64_t kept_bytes) {
    dr_lm_workspace *w = NULL;
    float again[64], entropy[64], *got = NULL;
    check_ok(dr_lm_workspace_create(lm, 64, DR_RECOMPUTE, &w));
    assert_true(dr_lm_workspace_bytes(w) < kept_bytes);
    check_ok(dr_alloc(&got, "gradient", dr_lm_n_params(lm), sizeof(float)));
    check_ok(dr_lm_forward(lm, w, pack, 1.0f, again, entropy));
    check_same_bits("log-probabilities", again, logprob, pack->n_rows);
    check_ok(dr_lm_backward(lm, w, pack, 1.0f, dlogprob, got, NULL));
    check_same_bits("gradient with recomputation", got, gradient, dr_lm_n_params(lm));
    dr_free(got);
    dr_lm_workspace_destroy(w);
}

// What a backward pass tells of its gradient: values as they stood when they were named.
typedef struct told {
    const float *gradient;
    float *seen;
    int64_t from; // all from here on were named
    int calls, last;
} told;

static dr_status note(void *context, int64_t begin, int64_t end) {
    told *t = context;
    assert_true(begin >= 0 && begin < end && end == t->from);
    memcpy(t->seen + begin, t->gradient + begin, (size_t)(end - begin) * sizeof(float));
    t->from = begin;
    return ++t->calls == t->last ? DR_ERR_PEER : DR_OK;
}

// Every value is named once, from the end to the start, and stays as it was then; an error ends the pass.
static void check_told(dr_lm *lm, const dr_pack *pack, const float *dlogprob, dr_activations activations) {
    dr_lm_workspace *w = NULL;
    float logprob[64], entropy[64], *got = NULL, *seen = NULL;
    int64_t n = dr_lm_n_params(lm);
    int32_t layers = dr_lm_config_of(lm)->n_layers;
    check_ok(dr_lm_workspace_create(lm, 64, activations, &w));
    check_ok(dr_alloc(&got, "gradient", n, sizeof(float)));
    check_ok(dr_alloc(&seen, "gradient as told", n, sizeof(float)));
    told t = {.gradient = got, .seen = seen, .from = n};
    const dr_gradient_ready ready = {note, &t};
    check_ok(dr_lm_forward(lm, w, pack, 1.0f, logprob, entropy));
    check_ok(dr_lm_backward(lm, w, pack, 1.0f, dlogprob, got, &ready));
    assert_true(t.from == 0 && t.calls == 2 + 2 * layers); // in parts: two a layer, what is above and below
    check_same_bits("gradient as told", seen, got, n);
    t = (told){.gradient = got, .seen = seen, .from = n, .last = 3};
    assert_int_equal(dr_lm_backward(lm, w, pack, 1.0f, dlogprob, got, &ready), DR_ERR_PEER);
    assert_true(t.calls == 3 && t.from > 0);
    dr_free(got);
    dr_free(seen);
    dr_lm_workspace_destroy(w);
}

// Logits of the packed pass, and of the cache with its last token decoded alone.
static void run_both_passes(dr_lm *lm, const sequence *s, int32_t n, float *out) {
    int32_t vocab = dr_lm_config_of(lm)->vocab, seq = -1;
    dr_lm_workspace *w = NULL;
    dr_kv_cache *kv = NULL;
    dr_pack all = s->pack;
    all.n_rows = n;
    check_ok(dr_lm_workspace_create(lm, 64, DR_KEEP_ACTIVATIONS, &w));
    check_ok(dr_lm_logits(lm, w, &all, out));
    check_ok(dr_kv_create(lm, 8, 1, &kv));
    check_ok(dr_kv_open(kv, &seq));
    dr_lm_chunk head = {seq, n - 1, s->pack.ids, false}, tail = {seq, 1, s->pack.ids + n - 1, true};
    check_ok(dr_lm_decode(lm, kv, &head, 1, NULL));
    check_ok(dr_lm_decode(lm, kv, &tail, 1, out + (int64_t)n * vocab));
    check_same_bits("decoded", out + (int64_t)n * vocab, out + (int64_t)(n - 1) * vocab, vocab);
    dr_kv_destroy(kv);
    dr_lm_workspace_destroy(w);
}

// In bf16, a model without its fp32 values gives the bits of one with them, and says what it can't do.
static void check_frozen(const char *dir, const sequence *s, int32_t n) {
    dr_backend *rounded = NULL;
    dr_lm *whole = NULL, *frozen = NULL;
    dr_lm_workspace *w = NULL;
    check_ok(dr_backend_cpu_create(DR_BF16, 2, &rounded));
    check_ok(dr_lm_load(rounded, dir, &whole));
    check_ok(dr_lm_load_frozen(rounded, dir, &frozen));
    int64_t n_logits = (int64_t)(n + 1) * dr_lm_config_of(whole)->vocab;
    float *want = NULL, *got = NULL, none = 0;
    check_ok(dr_alloc(&want, "logits", n_logits, sizeof(float)));
    check_ok(dr_alloc(&got, "logits", n_logits, sizeof(float)));
    run_both_passes(whole, s, n, want);
    run_both_passes(frozen, s, n, got);
    check_same_bits("frozen logits", got, want, n_logits);
    assert_int_equal(dr_lm_n_params(frozen), dr_lm_n_params(whole));
    assert_non_null(dr_lm_params(whole));
    assert_null(dr_lm_params(frozen));
    check_ok(dr_lm_workspace_create(frozen, 64, DR_KEEP_ACTIVATIONS, &w));
    dr_optimizer_settings settings = {0.9f, 0.95f, 1e-8f, 0.1f, 1.0f};
    dr_optimizer *none_made = NULL;
    check_error(dr_optimizer_create(frozen, &settings, NULL, &none_made), DR_ERR_UNSUPPORTED, "fp32 weights");
    check_error(dr_lm_start_copying(frozen, 1), DR_ERR_UNSUPPORTED, "for reading");
    check_error(dr_lm_weights_changed(frozen), DR_ERR_UNSUPPORTED, "for reading");
    check_error(dr_lm_backward(frozen, w, &s->pack, 1.0f, &none, &none, NULL), DR_ERR_UNSUPPORTED,
                "for reading");
    check_error(dr_lm_save(frozen, check_scratch_dir(), DR_SAVE_AS_LOADED), DR_ERR_UNSUPPORTED, "rounded");
    dr_free(want);
    dr_free(got);
    dr_lm_workspace_destroy(w);
    dr_lm_destroy(whole);
    dr_lm_destroy(frozen);
    dr_backend_cpu_destroy(rounded);
}

static void check_family(const char *name) {
    const char *dir = check_golden(name);
    dr_safetensors *golden = NULL;
    dr_lm *lm = NULL;
    dr_lm_workspace *w = NULL;
    check_ok(dr_safetensors_open(check_path(dir, "golden.safetensors"), &golden));
    check_ok(dr_lm_load(backend, dir, &lm));
    check_ok(dr_lm_workspace_create(lm, 64, DR_KEEP_ACTIVATIONS, &w));
    int64_t n_ids = 0, n_logits = 0;
    float *ids = read_golden(golden, "ids", &n_ids), *logits = read_golden(golden, "logits", &n_logits);
    float *loss = read_golden(golden, "loss", NULL), *losses = read_golden(golden, "losses", NULL),
          *got = NULL;
    sequence s;
    sequence_make(&s, ids, (int32_t)n_ids);

    check_ok(dr_alloc(&got, "logits", n_logits, sizeof(float)));
    dr_pack all = s.pack;
    all.n_rows = n_ids;
    check_ok(dr_lm_logits(lm, w, &all, got));
    float largest = 0;
    for (int64_t i = 0; i < n_logits; i++) largest = fmaxf(largest, fabsf(logits[i]));
    check_close("logits", got, logits, n_logits, 1e-4 * largest, 0);

    float logprob[64], entropy[64], dlogprob[64], mean = 0, *gradient = NULL;
    check_ok(dr_alloc(&gradient, "gradient", dr_lm_n_params(lm), sizeof(float)));
    check_ok(dr_lm_forward(lm, w, &s.pack, 1.0f, logprob, entropy));
    for (int64_t r = 0; r < s.pack.n_rows; r++) {
        mean -= logprob[r] / (float)s.pack.n_rows;
        dlogprob[r] = -1.0f / (float)s.pack.n_rows;
    }
    check_close("loss", &mean, loss, 1, 0, 1e-5);
    check_ok(dr_lm_backward(lm, w, &s.pack, 1.0f, dlogprob, gradient, NULL));
    compare_gradients(lm, golden, gradient);
    compare_recomputed(lm, &s.pack, dlogprob, logprob, gradient, dr_lm_workspace_bytes(w));
    check_told(lm, &s.pack, dlogprob, DR_KEEP_ACTIVATIONS);
    check_told(lm, &s.pack, dlogprob, DR_RECOMPUTE);
    compare_training(lm, w, &s, losses);
    check_saved(dir);
    for (dr_bf16_body body = DR_BF16_LANES; body <= DR_BF16_LIBRARY; body++) {
        dr_cpu_bf16_body(body);
        check_frozen(dir, &s, (int32_t)n_ids);
    }
    dr_cpu_bf16_body(DR_BF16_CHOSEN);
    dr_free(gradient);
    dr_free(got);
    dr_free(ids);
    dr_free(logits);
    dr_free(loss);
    dr_free(losses);
    dr_lm_workspace_destroy(w);
    dr_lm_destroy(lm);
    dr_safetensors_close(golden);
}

static void test_qwen2(void **state) {
    (void)state;
    check_family("lm_qwen2");
}

static void test_qwen3(void **state) {
    (void)state;
    check_family("lm_qwen3");
}

static void test_llama(void **state) {
    (void)state;
    check_family("lm_llama");
}

static void test_llama31(void **state) {
    (void)state;
    check_family("lm_llama31");
}

static void test_mistral(void **state) {
    (void)state;
    check_family("lm_mistral");
}

static void test_sharded(void **state) {
    (void)state;
    check_family("lm_sharded");
}

static void test_bf16(void **state) {
    (void)state;
    check_family("lm_bf16");
}

// The frequencies' three cases at Llama 3.1's own numbers: short waves stay, long ones are divided by 8.
static void test_llama3_frequencies(void **state) {
    (void)state;
    dr_lm_config config;
    check_ok(dr_lm_preset("tiny", 97, &config));
    snprintf(config.architecture, sizeof config.architecture, "LlamaForCausalLM");
    config.qkv_bias = false;
    config.head_size = 128;
    config.rope_theta = 500000;
    float plain[64], stretched[64];
    dr_lm_rope_frequencies(&config, plain);
    config.rope_llama3 = (dr_rope_llama3){8.0f, 1.0f, 4.0f, 8192};
    dr_lm_rope_frequencies(&config, stretched);
    int kept = 0, divided = 0;
    for (int i = 0; i < 64; i++) {
        double f = pow(500000.0, -i / 64.0), wave = 2 * 3.14159265358979 / f, want;
        double share = (8192 / wave - 1) / 3;
        assert_true(fabs(plain[i] / f - 1) < 1e-6);
        want = wave < 2048 ? f : wave > 8192 ? f / 8 : (1 - share) * f / 8 + share * f;
        assert_true(fabs(stretched[i] / want - 1) < 2e-6);
        kept += wave < 2048;
        divided += wave > 8192;
    }
    assert_int_equal(kept, 29);
    assert_int_equal(divided, 29);
}

static void check_refused(const char *config, const char *text) {
    const char *dir = check_scratch_dir();
    dr_lm *lm = NULL;
    check_write_file(check_path(dir, "config.json"), config, strlen(config));
    dr_status status = dr_lm_load(backend, dir, &lm);
    assert_int_not_equal(status, DR_OK);
    check_error(status, status, text);
    assert_null(lm);
    if (!strstr(dr_last_error(), dir)) fail_msg("the error \"%s\" does not name %s", dr_last_error(), dir);
}

#define CONFIG(architecture, more)                                                                           \
    "{\"architectures\": [\"" architecture "ForCausalLM\"], \"num_hidden_layers\": 1, \"hidden_size\": 8, "  \
    "\"num_attention_heads\": 2, \"intermediate_size\": 8, \"vocab_size\": 9, " more "}"
#define LLAMA3(low, high, positions)                                                                         \
    "\"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8.0, \"low_freq_factor\": " low               \
    ", \"high_freq_factor\": " high ", \"original_max_position_embeddings\": " positions "}"

static void test_refused_by_name(void **state) {
    (void)state;
    check_refused(CONFIG("Qwen3Moe", "\"x\": 1"), "architecture \"Qwen3MoeForCausalLM\" is not supported");
    check_refused(CONFIG("Mixtral", "\"x\": 1"), "architecture \"MixtralForCausalLM\"");
    check_refused(CONFIG("Qwen3", "\"num_experts\": 128"), "num_experts 128: mixtures of experts");
    check_refused(CONFIG("Qwen3", "\"attention_bias\": true"), "attention_bias is not supported");
    check_refused(CONFIG("Qwen3", "\"use_sliding_window\": true"), "use_sliding_window is not supported");
    check_refused(CONFIG("Mistral", "\"sliding_window\": 4096"), "sliding_window: expected null");
    check_refused(CONFIG("Llama", "\"quantization_config\": {\"quant_method\": \"gptq\", \"bits\": 4}"),
                  "quantised weights (gptq) are not supported");
    check_refused(CONFIG("Llama", "\"rope_scaling\": {\"type\": \"linear\", \"factor\": 2.0}"),
                  "rope_scaling of type \"linear\" is not supported (default, llama3)");
    check_refused(CONFIG("Qwen2", "\"rope_parameters\": {\"rope_type\": \"yarn\", \"factor\": 4.0}"),
                  "rope_parameters of type \"yarn\"");
    check_refused(CONFIG("Qwen3", "\"rope_parameters\": {\"full_attention\": {\"rope_type\": \"default\"}}"),
                  "own values for \"full_attention\"");
    check_refused(CONFIG("Llama", LLAMA3("4.0", "4.0", "64")), "low_freq_factor 4, high_freq_factor 4");
    check_refused(CONFIG("Llama", LLAMA3("1.0", "4.0", "64.5")), "original_max_position_embeddings");
    check_refused(CONFIG("Llama", LLAMA3("-1.0", "4.0", "64")), "low_freq_factor");
    // silent about head_dim: 128 in this family
    check_refused(CONFIG("Qwen3", "\"x\": 1"), "model.safetensors: cannot open");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_qwen2),
        cmocka_unit_test(test_qwen3),
        cmocka_unit_test(test_llama),
        cmocka_unit_test(test_llama31),
        cmocka_unit_test(test_mistral),
        cmocka_unit_test(test_sharded),
        cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_llama3_frequencies),
        cmocka_unit_test(test_refused_by_name),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
