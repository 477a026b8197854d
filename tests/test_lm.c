// The decoder LM against PyTorch goldens, finite differences, and itself: cache and batch agree bit for bit.
// labels: cpu
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/alloc.h"
#include "core/base/file.h"
#include "core/base/rng.h"
#include "core/model/lm.h"
#include "core/model/optimizer.h"
#include "core/store/safetensors.h"
#include "tests/check.h"

static dr_backend *backend;

static int setup(void **state) {
    (void)state;
    return dr_backend_cpu_create(DR_FP32, 2, &backend) == DR_OK ? 0 : -1;
}

static int teardown(void **state) {
    (void)state;
    dr_backend_cpu_destroy(backend);
    return 0;
}

static float *read_golden(const dr_safetensors *file, const char *name, int64_t *out_n) {
    const dr_safetensor *t = dr_safetensors_find(file, name);
    if (!t) fail_msg("golden %s is missing", name);
    float *values = NULL;
    check_ok(dr_alloc(&values, "golden", t->n_values, sizeof(float)));
    check_ok(dr_safetensors_read(file, name, t->shape, t->n_dims, values));
    if (out_n) *out_n = t->n_values;
    return values;
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
    s->pack = (dr_pack){n, s->ids, s->cu, 1, n - 1, s->rows, s->ids + 1};
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
    check_ok(dr_optimizer_create(lm, &settings, &optimizer));
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
        check_ok(dr_lm_backward(lm, w, &s->pack, 1.0f, dlogprob, gradient));
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

static void check_family(const char *name) {
    const char *dir = check_path(DR_GOLDEN_DIR, name);
    dr_safetensors *golden = NULL;
    dr_lm *lm = NULL;
    dr_lm_workspace *w = NULL;
    check_ok(dr_safetensors_open(check_path(dir, "golden.safetensors"), &golden));
    check_ok(dr_lm_load(backend, dir, &lm));
    check_ok(dr_lm_workspace_create(lm, 64, &w));
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
    check_ok(dr_lm_backward(lm, w, &s.pack, 1.0f, dlogprob, gradient));
    compare_gradients(lm, golden, gradient);
    compare_training(lm, w, &s, losses);
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

static void test_qwen2_golden(void **state) {
    (void)state;
    check_family("lm_qwen2");
}

static void test_llama_golden(void **state) {
    (void)state;
    check_family("lm_llama");
}

static dr_lm *tiny(void) {
    dr_lm_config config;
    dr_lm *lm = NULL;
    check_ok(dr_lm_preset("tiny", 97, &config));
    check_ok(dr_lm_create(backend, &config, 5, &lm));
    float *p = dr_lm_params(lm);
    dr_rng rng = dr_rng_make(3, 1);
    for (int64_t i = 0; i < dr_lm_n_params(lm); i++) p[i] += 0.1f * (float)dr_rng_normal(&rng);
    check_ok(dr_lm_weights_changed(lm));
    return lm;
}

// Two packed sequences, a temperature, an uneven weighting of rows: directional derivatives of Σ weight ·
// logprob.
static void test_finite_differences(void **state) {
    (void)state;
    dr_lm *lm = tiny();
    dr_lm_workspace *w = NULL;
    check_ok(dr_lm_workspace_create(lm, 64, &w));
    int32_t ids[40], cu[3] = {0, 17, 40}, rows[] = {3, 9, 16, 20, 21, 38}, targets[] = {1, 96, 50, 3, 3, 7};
    float weight[] = {0.5f, -1.0f, 2.0f, 0.1f, 1.0f, -0.7f};
    for (int i = 0; i < 40; i++) ids[i] = (i * 31 + 7) % 97;
    dr_pack pack = {40, ids, cu, 2, 6, rows, targets};
    int64_t n = dr_lm_n_params(lm);
    float *gradient = NULL, *direction = NULL, *kept = NULL, logprob[6], entropy[6];
    check_ok(dr_alloc(&gradient, "gradient", n, sizeof(float)));
    check_ok(dr_alloc(&direction, "direction", n, sizeof(float)));
    check_ok(dr_alloc(&kept, "kept", n, sizeof(float)));
    check_ok(dr_lm_forward(lm, w, &pack, 0.8f, logprob, entropy));
    check_ok(dr_lm_backward(lm, w, &pack, 0.8f, weight, gradient));
    float *p = dr_lm_params(lm);
    memcpy(kept, p, (size_t)n * sizeof(float));
    for (int trial = 0; trial < 4; trial++) {
        dr_rng rng = dr_rng_make(11, (uint64_t)trial);
        double want = 0, value[2];
        for (int64_t i = 0; i < n; i++) {
            direction[i] = (float)dr_rng_normal(&rng);
            want += (double)direction[i] * gradient[i];
        }
        for (int side = 0; side < 2; side++) {
            for (int64_t i = 0; i < n; i++) p[i] = kept[i] + (side ? -1.0f : 1.0f) * 2e-4f * direction[i];
            check_ok(dr_lm_weights_changed(lm));
            check_ok(dr_lm_forward(lm, w, &pack, 0.8f, logprob, entropy));
            value[side] = 0;
            for (int r = 0; r < 6; r++) value[side] += (double)weight[r] * logprob[r];
        }
        float got = (float)((value[0] - value[1]) / 4e-4), expected = (float)want;
        check_close("directional derivative", &got, &expected, 1, 0.02 * fabs(want) + 0.02, 0);
    }
    dr_free(gradient);
    dr_free(direction);
    dr_free(kept);
    dr_lm_workspace_destroy(w);
    dr_lm_destroy(lm);
}

static void reference_logits(dr_lm *lm, const int32_t *ids, int32_t n, float *out) {
    dr_lm_workspace *w = NULL;
    check_ok(dr_lm_workspace_create(lm, n, &w));
    int32_t cu[2] = {0, n}, *rows = NULL;
    check_ok(dr_alloc(&rows, "rows", n, sizeof *rows));
    for (int32_t i = 0; i < n; i++) rows[i] = i;
    dr_pack pack = {n, ids, cu, 1, n, rows, rows};
    check_ok(dr_lm_logits(lm, w, &pack, out));
    dr_free(rows);
    dr_lm_workspace_destroy(w);
}

static void test_cache_agrees_bit_for_bit(void **state) {
    (void)state;
    enum { N = 75, V = 97 };
    dr_lm *lm = tiny();
    int32_t ids[N], other[40];
    for (int i = 0; i < N; i++) ids[i] = (i * 17 + 3) % V;
    for (int i = 0; i < 40; i++) other[i] = (i * 5 + 1) % V;
    float *want = NULL, logits[3 * V];
    check_ok(dr_alloc(&want, "logits", N * V, sizeof(float)));
    reference_logits(lm, ids, N, want);
    dr_kv_cache *kv = NULL;
    check_ok(dr_kv_create(lm, 64, 8, &kv));
    int32_t one = -1, fork = -1, stranger = -1;
    check_ok(dr_kv_open(kv, &one));
    check_ok(dr_kv_open(kv, &stranger));
    // a chunked prefill beside a stranger's, then a fork in the middle of a page, then one by one beside each
    // other
    dr_lm_chunk prefill[2] = {{one, 21, ids, true}, {stranger, 9, other, true}};
    check_ok(dr_lm_decode(lm, kv, prefill, 2, logits));
    check_same_bits("prefill", logits, want + 20 * V, V);
    check_ok(dr_kv_fork(kv, one, &fork));
    dr_lm_chunk rest = {fork, 30, ids + 21, true};
    check_ok(dr_lm_decode(lm, kv, &rest, 1, logits));
    check_same_bits("forked chunk", logits, want + 50 * V, V);
    for (int i = 21; i < N; i++) {
        dr_lm_chunk step[3] = {
            {stranger, 1, other + i % 40, true}, {one, 1, ids + i, true}, {fork, 1, ids + i % N, false}};
        check_ok(dr_lm_decode(lm, kv, step, 3, logits));
        check_same_bits("decode", logits + V, want + i * V, V);
    }
    assert_int_equal(dr_kv_length(kv, one), N);
    dr_kv_close(kv, one);
    dr_kv_close(kv, fork);
    dr_kv_close(kv, stranger);
    assert_int_equal(dr_kv_free_pages(kv), 64);
    dr_free(want);
    dr_kv_destroy(kv);
    dr_lm_destroy(lm);
}

static void test_short_of_pages_changes_nothing(void **state) {
    (void)state;
    dr_lm *lm = tiny();
    dr_kv_cache *kv = NULL;
    check_ok(dr_kv_create(lm, 2, 2, &kv));
    int32_t seq = -1, ids[40] = {0};
    float logits[97];
    check_ok(dr_kv_open(kv, &seq));
    dr_lm_chunk chunk = {seq, 33, ids, true};
    check_error(dr_lm_decode(lm, kv, &chunk, 1, logits), DR_ERR_MEMORY, "3 pages needed, 2 free");
    assert_int_equal(dr_kv_free_pages(kv), 2);
    chunk.n = 32;
    check_ok(dr_lm_decode(lm, kv, &chunk, 1, logits));
    ids[0] = 97;
    chunk.n = 1;
    check_error(dr_lm_decode(lm, kv, &chunk, 1, logits), DR_ERR_RANGE, "outside the vocabulary");
    dr_kv_destroy(kv);
    dr_lm_destroy(lm);
}

static void test_save_and_load(void **state) {
    (void)state;
    dr_lm *lm = tiny(), *again = NULL;
    const char *dir = check_scratch_dir();
    dr_lm_set_special_ids(lm, -1, 5, 6);
    check_ok(dr_lm_save(lm, dir));
    check_ok(dr_lm_load(backend, dir, &again));
    check_same_bits("weights", dr_lm_params(again), dr_lm_params(lm), dr_lm_n_params(lm));
    assert_int_equal(dr_lm_config_of(again)->eos_id, 5);
    assert_int_equal(dr_lm_config_of(again)->bos_id, -1);
    dr_lm_destroy(again);
    dr_lm_destroy(lm);
}

static void check_refused(const char *config, const char *text) {
    const char *dir = check_scratch_dir();
    dr_lm *lm = NULL;
    check_write_file(check_path(dir, "config.json"), config, strlen(config));
    dr_status status = dr_lm_load(backend, dir, &lm);
    assert_int_not_equal(status, DR_OK);
    check_error(status, status, text);
    assert_null(lm);
}

static void test_bad_folders(void **state) {
    (void)state;
    dr_lm *lm = NULL;
    check_error(dr_lm_load(backend, "/nonexistent/model", &lm), DR_ERR_IO, "/nonexistent/model/config.json");
    check_refused("{\"architectures\": [\"GPT2LMHeadModel\"]}", "GPT2LMHeadModel");
    check_refused("{\"architectures\": [\"Qwen2ForCausalLM\"], \"num_hidden_layers\": \"two\"}",
                  "num_hidden_layers");
    check_refused("{\"architectures\": [\"LlamaForCausalLM\"], \"num_hidden_layers\": 1", "config.json");
    check_refused("{\"architectures\": [\"LlamaForCausalLM\"], \"num_hidden_layers\": 1, \"hidden_size\": 8, "
                  "\"num_attention_heads\": 3, \"num_key_value_heads\": 2, \"intermediate_size\": 8, "
                  "\"vocab_size\": 9, "
                  "\"head_dim\": 4}",
                  "3 heads cannot share 2");
    check_refused("{\"architectures\": [\"LlamaForCausalLM\"], \"num_hidden_layers\": 1, \"hidden_size\": 8, "
                  "\"num_attention_heads\": 2, \"intermediate_size\": 8, \"vocab_size\": 9, "
                  "\"rope_scaling\": {\"rope_type\": \"yarn\"}}",
                  "yarn");
    // a shape that does not follow from config.json
    lm = tiny();
    const char *dir = check_scratch_dir();
    check_ok(dr_lm_save(lm, dir));
    size_t length;
    char *text = check_read_file(check_path(dir, "config.json"), &length),
         *at = strstr(text, "\"vocab_size\"");
    assert_non_null(at);
    at = strstr(at, "97");
    memcpy(at, "98", 2);
    check_write_file(check_path(dir, "config.json"), text, length);
    dr_lm *broken = NULL;
    check_error(dr_lm_load(backend, dir, &broken), DR_ERR_FORMAT, "has shape [97, 64], expected [98, 64]");
    free(text);
    dr_lm_destroy(lm);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_qwen2_golden),
        cmocka_unit_test(test_llama_golden),
        cmocka_unit_test(test_finite_differences),
        cmocka_unit_test(test_cache_agrees_bit_for_bit),
        cmocka_unit_test(test_short_of_pages_changes_nothing),
        cmocka_unit_test(test_save_and_load),
        cmocka_unit_test(test_bad_folders),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
