// The decoder LM against finite differences and itself: cache and batch agree bit for bit; saved folders, and
// what is refused. Goldens: test_lm_families.c.
// labels: cpu
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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

static void use_architecture(dr_lm_config *config, const char *architecture) {
    snprintf(config->architecture, sizeof config->architecture, "%s", architecture);
    config->qkv_bias = strcmp(architecture, "Qwen2ForCausalLM") == 0;
    config->qk_norm = strcmp(architecture, "Qwen3ForCausalLM") == 0;
    if (config->qk_norm) config->head_size = 20; // not hidden / heads
}

static dr_lm *tiny_of(const char *architecture) {
    dr_lm_config config;
    dr_lm *lm = NULL;
    check_ok(dr_lm_preset("tiny", 97, &config));
    use_architecture(&config, architecture);
    check_ok(dr_lm_create(backend, &config, 5, &lm));
    float *p = dr_lm_params(lm);
    dr_rng rng = dr_rng_make(3, 1);
    for (int64_t i = 0; i < dr_lm_n_params(lm); i++) p[i] += 0.1f * (float)dr_rng_normal(&rng);
    check_ok(dr_lm_weights_changed(lm));
    return lm;
}

static dr_lm *tiny(void) {
    return tiny_of("Qwen2ForCausalLM");
}

// Two packed sequences, a temperature, an uneven weighting of rows: directional derivatives of Σ weight ·
// logprob.
static void differentiate(const char *architecture) {
    dr_lm *lm = tiny_of(architecture);
    dr_lm_workspace *w = NULL;
    check_ok(dr_lm_workspace_create(lm, 64, DR_KEEP_ACTIVATIONS, &w));
    int32_t ids[40], cu[3] = {0, 17, 40}, rows[] = {3, 9, 16, 20, 21, 38}, targets[] = {1, 96, 50, 3, 3, 7};
    float weight[] = {0.5f, -1.0f, 2.0f, 0.1f, 1.0f, -0.7f};
    for (int i = 0; i < 40; i++) ids[i] = (i * 31 + 7) % 97;
    dr_pack pack = {40, ids, cu, 2, 6, rows, targets, NULL, NULL};
    int64_t n = dr_lm_n_params(lm);
    float *gradient = NULL, *direction = NULL, *kept = NULL, logprob[6], entropy[6];
    check_ok(dr_alloc(&gradient, "gradient", n, sizeof(float)));
    check_ok(dr_alloc(&direction, "direction", n, sizeof(float)));
    check_ok(dr_alloc(&kept, "kept", n, sizeof(float)));
    check_ok(dr_lm_forward(lm, w, &pack, 0.8f, logprob, entropy));
    check_ok(dr_lm_backward(lm, w, &pack, 0.8f, weight, gradient, NULL));
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

static void test_finite_differences(void **state) {
    (void)state;
    differentiate("Qwen2ForCausalLM");
    differentiate("Qwen3ForCausalLM");
}

static void reference_logits(dr_lm *lm, const int32_t *ids, int32_t n, float *out) {
    dr_lm_workspace *w = NULL;
    check_ok(dr_lm_workspace_create(lm, n, DR_KEEP_ACTIVATIONS, &w));
    int32_t cu[2] = {0, n}, *rows = NULL;
    check_ok(dr_alloc(&rows, "rows", n, sizeof *rows));
    for (int32_t i = 0; i < n; i++) rows[i] = i;
    dr_pack pack = {n, ids, cu, 1, n, rows, rows, NULL, NULL};
    check_ok(dr_lm_logits(lm, w, &pack, out));
    dr_free(rows);
    dr_lm_workspace_destroy(w);
}

static void check_cache(const char *architecture) {
    enum { N = 75, V = 97 };
    dr_lm *lm = tiny_of(architecture);
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
    // the logits of every row of a chunk
    int32_t whole = -1;
    float *rows = NULL;
    check_ok(dr_alloc(&rows, "logits", N * V, sizeof(float)));
    check_ok(dr_kv_open(kv, &whole));
    check_ok(dr_lm_decode_rows(lm, kv, whole, ids, 33, rows));
    check_ok(dr_lm_decode_rows(lm, kv, whole, ids + 33, N - 33, rows + 33 * V));
    check_same_bits("all rows", rows, want, N * V);
    check_error(dr_lm_decode_rows(lm, kv, whole, ids, 0, rows), DR_ERR_ARGUMENT, "no tokens");
    dr_kv_close(kv, whole);
    dr_free(rows);
    dr_kv_close(kv, one);
    dr_kv_close(kv, fork);
    dr_kv_close(kv, stranger);
    assert_int_equal(dr_kv_free_pages(kv), 64);
    dr_free(want);
    dr_kv_destroy(kv);
    dr_lm_destroy(lm);
}

static void test_cache_agrees_bit_for_bit(void **state) {
    (void)state;
    check_cache("Qwen2ForCausalLM");
    check_cache("Qwen3ForCausalLM");
    check_cache("LlamaForCausalLM");
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

// Bit equality also where the products are rounded to bf16.
static void test_cache_agrees_in_bf16(void **state) {
    (void)state;
    dr_backend *kept = backend;
    check_ok(dr_backend_cpu_create(DR_BF16, 2, &backend));
    test_cache_agrees_bit_for_bit(state);
    dr_backend_cpu_destroy(backend);
    backend = kept;
}

static void test_forks_share_pages(void **state) {
    (void)state;
    dr_lm *lm = tiny();
    dr_kv_cache *kv = NULL;
    check_ok(dr_kv_create(lm, 8, 3, &kv));
    int32_t first = -1, second = -1, third = -1, fourth = -1, ids[40] = {0};
    float logits[3 * 97];
    check_ok(dr_kv_open(kv, &first));
    dr_lm_chunk chunk = {first, 32, ids, true};
    check_ok(dr_lm_decode(lm, kv, &chunk, 1, logits));
    assert_int_equal(dr_kv_free_pages(kv), 6);
    check_ok(dr_kv_fork(kv, first, &second)); // two full pages: nothing to copy
    assert_int_equal(dr_kv_free_pages(kv), 6);
    chunk = (dr_lm_chunk){second, 3, ids, false};
    check_ok(dr_lm_decode(lm, kv, &chunk, 1, NULL));
    assert_int_equal(dr_kv_free_pages(kv), 5);
    check_ok(dr_kv_fork(kv, second, &third)); // shares two, copies the partial third
    assert_int_equal(dr_kv_free_pages(kv), 4);
    check_error(dr_kv_fork(kv, first, &fourth), DR_ERR_RANGE, "all 3 sequences are in use");
    assert_int_equal(fourth, -1);
    dr_kv_close(kv, first); // its pages live on in the others
    assert_int_equal(dr_kv_free_pages(kv), 4);
    dr_kv_close(kv, second);
    assert_int_equal(dr_kv_free_pages(kv), 5);
    assert_int_equal(dr_kv_length(kv, third), 35);
    // a fork without a free page for the partial one changes nothing
    check_ok(dr_kv_open(kv, &first));
    chunk = (dr_lm_chunk){first, 40, ids, false};
    check_ok(dr_lm_decode(lm, kv, &chunk, 1, NULL));
    check_ok(dr_kv_open(kv, &second));
    for (int i = 0; i < 2; i++) {
        chunk = (dr_lm_chunk){second, 16, ids, false};
        check_ok(dr_lm_decode(lm, kv, &chunk, 1, NULL));
    }
    assert_int_equal(dr_kv_free_pages(kv), 0);
    dr_kv_close(kv, second);
    check_ok(dr_kv_open(kv, &second));
    chunk = (dr_lm_chunk){second, 32, ids, false};
    check_ok(dr_lm_decode(lm, kv, &chunk, 1, NULL));
    dr_kv_close(kv, third); // room for a sequence, and three pages
    chunk = (dr_lm_chunk){second, 33, ids, false};
    check_ok(dr_lm_decode(lm, kv, &chunk, 1, NULL));
    check_error(dr_kv_fork(kv, first, &fourth), DR_ERR_MEMORY, "no free page for a fork");
    check_error(
        dr_lm_decode(lm, kv, (dr_lm_chunk[]){{first, 1, ids, false}, {first, 1, ids, false}}, 2, NULL),
        DR_ERR_ARGUMENT, "stands in two chunks");
    // decoding in the room there is allocates nothing
    dr_lm_chunk both[2] = {{first, 1, ids, true}, {second, 1, ids, true}};
    check_ok(dr_lm_decode(lm, kv, both, 2, logits));
    int64_t allocations = dr_alloc_calls();
    for (int i = 0; i < 6; i++) check_ok(dr_lm_decode(lm, kv, both, 2, logits));
    assert_int_equal(dr_alloc_calls(), allocations);
    dr_kv_destroy(kv);
    dr_lm_destroy(lm);
}

// Heads that are much wider than the model and its intermediate size: what is gathered behind attention fits.
static void test_wide_heads(void **state) {
    (void)state;
    enum { N = 9, VOCAB = 97 };
    static const int32_t sizes[][2] = {{2, 1}, {16, 16}}; // hidden, intermediate
    for (int i = 0; i < 2; i++) {
        dr_lm_config config;
        dr_lm *lm = NULL;
        dr_kv_cache *kv = NULL;
        dr_lm_workspace *w = NULL;
        int32_t ids[2 * N], cu[3] = {0, N, 2 * N}, rows[2] = {N - 1, 2 * N - 1};
        float want[2 * VOCAB], got[2 * VOCAB];
        check_ok(dr_lm_preset("tiny", VOCAB, &config));
        config.hidden = sizes[i][0];
        config.intermediate = sizes[i][1];
        config.n_heads = 64;
        config.n_kv_heads = 1;
        config.head_size = 64;
        check_ok(dr_lm_create(backend, &config, 5, &lm));
        for (int32_t k = 0; k < 2 * N; k++) ids[k] = (7 * k + i) % VOCAB;
        dr_pack pack = {2 * N, ids, cu, 2, 2, rows, NULL, NULL, NULL};
        check_ok(dr_lm_workspace_create(lm, 2 * N, DR_KEEP_ACTIVATIONS, &w));
        check_ok(dr_lm_logits(lm, w, &pack, want));
        check_ok(dr_kv_create(lm, 4, 2, &kv));
        dr_lm_chunk chunks[2] = {{.n = N - 1, .ids = ids}, {.n = N - 1, .ids = ids + N}};
        for (int s = 0; s < 2; s++) check_ok(dr_kv_open(kv, &chunks[s].seq));
        check_ok(dr_lm_decode(lm, kv, chunks, 2, NULL));
        for (int s = 0; s < 2; s++) chunks[s] = (dr_lm_chunk){chunks[s].seq, 1, ids + s * N + N - 1, true};
        check_ok(dr_lm_decode(lm, kv, chunks, 2, got));
        check_same_bits("logits of wide heads", got, want, 2 * VOCAB);
        dr_kv_destroy(kv);
        dr_lm_workspace_destroy(w);
        dr_lm_destroy(lm);
    }
}

// A trajectory that is much longer than the loss's rows, with the memory of one layer.
static void test_long_trajectory(void **state) {
    (void)state;
    enum { N = 2048, ROWS = 64 };
    dr_lm_config config;
    dr_lm *lm = NULL;
    dr_lm_workspace *w = NULL, *kept = NULL;
    int32_t *ids = NULL, rows[ROWS], cu[2] = {0, N};
    float *gradient = NULL, *want = NULL, logprob[ROWS], entropy[ROWS], slope[ROWS];
    check_ok(dr_lm_preset("tiny", 97, &config));
    config.max_positions = N;
    config.n_layers = 4;
    check_ok(dr_lm_create(backend, &config, 5, &lm));
    check_ok(dr_alloc(&ids, "ids", N + 1, sizeof *ids));
    check_ok(dr_alloc(&gradient, "gradient", dr_lm_n_params(lm), sizeof *gradient));
    check_ok(dr_alloc(&want, "gradient", dr_lm_n_params(lm), sizeof *want));
    dr_rng rng = dr_rng_make(9, 9);
    for (int32_t i = 0; i <= N; i++) ids[i] = (int32_t)dr_rng_below(&rng, 97);
    for (int32_t r = 0; r < ROWS; r++) {
        rows[r] = N - ROWS + r;
        slope[r] = 1.0f;
    }
    dr_pack pack = {N, ids, cu, 1, ROWS, rows, ids + 1 + N - ROWS, NULL, NULL};
    check_ok(dr_lm_workspace_create(lm, N, DR_RECOMPUTE, &w));
    check_ok(dr_lm_workspace_create(lm, N, DR_KEEP_ACTIVATIONS, &kept));
    assert_true(2 * dr_lm_workspace_bytes(w) < dr_lm_workspace_bytes(kept));
    check_ok(dr_lm_forward(lm, w, &pack, 1.0f, logprob, entropy));
    check_ok(dr_lm_backward(lm, w, &pack, 1.0f, slope, gradient, NULL));
    check_ok(dr_lm_forward(lm, kept, &pack, 1.0f, logprob, entropy));
    check_ok(dr_lm_backward(lm, kept, &pack, 1.0f, slope, want, NULL));
    check_same_bits("gradient", gradient, want, dr_lm_n_params(lm));
    double norm = sqrt(dr_sum_of_squares(backend, gradient, dr_lm_n_params(lm)));
    assert_true(isfinite(norm) && norm > 0.1);
    dr_free(ids);
    dr_free(gradient);
    dr_free(want);
    dr_lm_workspace_destroy(w);
    dr_lm_workspace_destroy(kept);
    dr_lm_destroy(lm);
}

static void test_bad_packs(void **state) {
    (void)state;
    dr_lm_config config;
    dr_lm *lm = NULL;
    dr_lm_workspace *w = NULL;
    check_ok(dr_lm_preset("tiny", 97, &config));
    config.max_positions = 6;
    check_ok(dr_lm_create(backend, &config, 5, &lm));
    check_error(dr_lm_workspace_create(lm, 0, DR_KEEP_ACTIVATIONS, &w), DR_ERR_ARGUMENT, "0 tokens");
    check_ok(dr_lm_workspace_create(lm, 8, DR_KEEP_ACTIVATIONS, &w));
    int32_t ids[9] = {0}, cu[3] = {0, 5, 8}, rows[1] = {7}, targets[1] = {96};
    float logprob[1] = {-7}, entropy[1];
    dr_pack pack = {8, ids, cu, 2, 1, rows, targets, NULL, NULL};
    check_ok(dr_lm_forward(lm, w, &pack, 1.0f, logprob, entropy));
    check_error(dr_lm_forward(lm, w, &pack, 0.0f, logprob, entropy), DR_ERR_ARGUMENT, "temperature 0");
    targets[0] = 97;
    check_error(dr_lm_forward(lm, w, &pack, 1.0f, logprob, entropy), DR_ERR_RANGE, "target 0 is 97");
    targets[0] = 0;
    rows[0] = 8;
    check_error(dr_lm_forward(lm, w, &pack, 1.0f, logprob, entropy), DR_ERR_RANGE, "reads position 8 of 8");
    rows[0] = 0;
    ids[3] = -1;
    check_error(dr_lm_forward(lm, w, &pack, 1.0f, logprob, entropy), DR_ERR_RANGE, "token 3 is -1");
    ids[3] = 0;
    cu[1] = 7;
    check_error(dr_lm_forward(lm, w, &pack, 1.0f, logprob, entropy), DR_ERR_RANGE, "sequence 0 has 7 tokens");
    cu[1] = 9;
    check_error(dr_lm_forward(lm, w, &pack, 1.0f, logprob, entropy), DR_ERR_RANGE, "sequence 0 has 9 tokens");
    cu[1] = -1;
    check_error(dr_lm_forward(lm, w, &pack, 1.0f, logprob, entropy), DR_ERR_RANGE,
                "sequence 0 has -1 tokens");
    cu[1] = 5;
    cu[2] = 9;
    check_error(dr_lm_forward(lm, w, &pack, 1.0f, logprob, entropy), DR_ERR_RANGE, "do not cover");
    pack.n_tokens = 9;
    check_error(dr_lm_forward(lm, w, &pack, 1.0f, logprob, entropy), DR_ERR_RANGE, "the workspace holds 8");
    // a prefix stands right before those that go on from it, and has none itself
    const int32_t thirds[] = {0, 3, 5, 8};
    static const int32_t bad[][3] = {{0, -1, -1}, {-1, 1, -1}, {-1, -2, -1},
                                     {-1, 0, 1},  {-1, -1, 0}, {-1, 3, 0}};
    pack = (dr_pack){8, ids, thirds, 3, 1, rows, targets, NULL, NULL};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        pack.prefix = bad[i];
        check_error(dr_lm_forward(lm, w, &pack, 1.0f, logprob, entropy), DR_ERR_RANGE,
                    "goes on from sequence");
    }
    const int32_t good[] = {-1, 0, 0}, long_one[] = {0, 4, 5, 8};
    pack.prefix = good;
    check_ok(dr_lm_forward(lm, w, &pack, 1.0f, logprob, entropy));
    // a kept set rises, inside the vocabulary, and has its target
    static const int32_t sets[][2] = {{5, 5}, {9, 4}, {-1, 0}, {0, 97}, {1, 2}};
    static const char *const errors[] = {"is 5, after 5", "is 4, after 9", "is -1, after -1",
                                         "is 97, after 0", "target 0, 0, is not in its kept set of 2 ids"};
    for (int i = 0; i < 5; i++) {
        const dr_kept kept = {sets[i], 2};
        pack.kept = &kept;
        check_error(dr_lm_forward(lm, w, &pack, 1.0f, logprob, entropy), DR_ERR_RANGE, errors[i]);
    }
    static const int32_t target_alone[] = {0};
    const dr_kept kept = {target_alone, 1};
    pack.kept = &kept;
    check_ok(dr_lm_forward(lm, w, &pack, 1.0f, logprob, entropy));
    assert_true(logprob[0] <= 0 && logprob[0] > -1e-6f);
    pack.cu_seqlens = long_one; // 4 + 3 tokens
    check_error(dr_lm_forward(lm, w, &pack, 1.0f, logprob, entropy), DR_ERR_RANGE, "sequence 2 has 7 tokens");
    dr_lm_workspace_destroy(w);
    dr_lm_destroy(lm);
}

static void test_schedules(void **state) {
    (void)state;
    dr_schedule s = {DR_SCHEDULE_LINEAR, 2.0f, 0.1f, 3, 13};
    float got[] = {dr_schedule_rate(&s, 0), dr_schedule_rate(&s, 2),  dr_schedule_rate(&s, 3),
                   dr_schedule_rate(&s, 8), dr_schedule_rate(&s, 13), dr_schedule_rate(&s, 99)};
    const float want[] = {0.5f, 1.5f, 2.0f, 1.1f, 0.2f, 0.2f};
    check_close("linear", got, want, 6, 1e-6, 0);
    s.kind = DR_SCHEDULE_COSINE;
    float cosine[] = {dr_schedule_rate(&s, 3), dr_schedule_rate(&s, 8), dr_schedule_rate(&s, 13)};
    const float want_cosine[] = {2.0f, 1.1f, 0.2f};
    check_close("cosine", cosine, want_cosine, 3, 1e-6, 0);
    s.kind = DR_SCHEDULE_CONSTANT;
    float constant[] = {dr_schedule_rate(&s, 1), dr_schedule_rate(&s, 50)};
    const float want_constant[] = {1.0f, 2.0f};
    check_close("constant", constant, want_constant, 2, 1e-6, 0);
}

// ids and our logits beside a saved folder, for tests/golden/check_roundtrip.py.
static void write_logits(dr_lm *lm, const char *dir) {
    enum { N = 29 };
    int32_t ids[N], vocab = dr_lm_config_of(lm)->vocab;
    float values[N], *logits = NULL;
    for (int i = 0; i < N; i++) values[i] = (float)(ids[i] = (i * i * 7 + 3) % vocab);
    check_ok(dr_alloc(&logits, "logits", (int64_t)N * vocab, sizeof(float)));
    reference_logits(lm, ids, N, logits);
    dr_safetensor_source sources[] = {{"ids", 1, {N}, values, DR_DTYPE_F32, NULL},
                                      {"logits", 2, {N, vocab}, logits, DR_DTYPE_F32, NULL}};
    check_ok(dr_safetensors_write(check_path(dir, "check.safetensors"), sources, 2));
    dr_free(logits);
}

static void save_and_load(const char *architecture, const char *root) {
    dr_lm_config config;
    dr_lm *lm = NULL, *again = NULL;
    check_ok(dr_lm_preset("tiny", 97, &config));
    use_architecture(&config, architecture);
    config.tied_head = config.qkv_bias;
    if (strcmp(architecture, "LlamaForCausalLM") == 0)
        config.rope_llama3 = (dr_rope_llama3){4.0f, 1.0f, 4.0f, 64};
    config.rope_theta = 50000; // not what anyone takes by default
    config.rms_eps = 1e-5f;
    config.head_size = 24;
    check_ok(dr_lm_create(backend, &config, 5, &lm));
    float *p = dr_lm_params(lm);
    dr_rng rng = dr_rng_make(3, 1);
    for (int64_t i = 0; i < dr_lm_n_params(lm); i++) p[i] += 0.1f * (float)dr_rng_normal(&rng);
    check_ok(dr_lm_weights_changed(lm));
    dr_lm_set_special_ids(lm, -1, 5, 6);
    const char *dir = check_path(root, architecture);
    check_ok(dr_lm_save(lm, dir, DR_SAVE_FP32));
    write_logits(lm, dir);
    check_ok(dr_lm_load(backend, dir, &again));
    check_same_bits("weights", dr_lm_params(again), dr_lm_params(lm), dr_lm_n_params(lm));
    const dr_lm_config *c = dr_lm_config_of(again);
    assert_string_equal(c->architecture, architecture);
    assert_int_equal(c->eos_id, 5);
    assert_int_equal(c->bos_id, -1);
    assert_memory_equal(&c->rope_llama3, &config.rope_llama3, sizeof config.rope_llama3);
    assert_true(c->rope_theta == 50000 && c->rms_eps == 1e-5f && c->head_size == 24);
    assert_true(dr_file_exists(check_path(dir, "generation_config.json")));
    dr_lm_destroy(again);
    dr_lm_destroy(lm);
}

static void test_save_and_load(void **state) {
    (void)state;
    const char *root = getenv("DR_ROUNDTRIP_DIR");
    if (!root) root = check_scratch_dir();
    save_and_load("Qwen2ForCausalLM", root);
    save_and_load("Qwen3ForCausalLM", root);
    save_and_load("LlamaForCausalLM", root);
    save_and_load("MistralForCausalLM", root);
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
#define SIZES                                                                                                \
    "\"num_hidden_layers\": 1, \"hidden_size\": 8, \"num_attention_heads\": 2, \"intermediate_size\": 8, "   \
    "\"vocab_size\": 9, "
    check_refused("[]", "architectures");
    check_refused("{\"architectures\": [\"LlamaForCausalLM\"], " SIZES
                  "\"rope_parameters\": {\"rope_type\": \"llama3\", \"factor\": 8.0}}",
                  "'low_freq_factor' is missing");
    check_refused("{\"architectures\": [\"LlamaForCausalLM\"], " SIZES "\"partial_rotary_factor\": 0.5}",
                  "partial_rotary_factor 0.5");
    check_refused("{\"architectures\": [\"LlamaForCausalLM\"], " SIZES "\"attention_bias\": true}",
                  "attention_bias is not supported");
    check_refused("{\"architectures\": [\"LlamaForCausalLM\"], " SIZES "\"mlp_bias\": true}",
                  "mlp_bias is not supported");
    check_refused("{\"architectures\": [\"LlamaForCausalLM\"], " SIZES "\"hidden_act\": \"gelu\"}",
                  "hidden_act \"gelu\"");
    check_refused("{\"architectures\": [\"LlamaForCausalLM\"], " SIZES "\"head_dim\": 3}", "head size 3");
    check_refused("{\"architectures\": [\"LlamaForCausalLM\"], " SIZES "\"rms_norm_eps\": 0}",
                  "'rms_norm_eps': expected a number");
    check_refused("{\"architectures\": [\"LlamaForCausalLM\"], " SIZES "\"eos_token_id\": \"</s>\"}",
                  "eos_token_id: expected a token id, found a string");
    check_refused("{\"architectures\": [\"Qwen2ForCausalLM\"], " SIZES "\"use_sliding_window\": true}",
                  "use_sliding_window");
    check_refused("{\"architectures\": [\"Qwen2ForCausalLM\"], " SIZES
                  "\"layer_types\": [\"full_attention\", \"sliding_attention\"]}",
                  "layer 1 is \"sliding_attention\"");
    check_refused("{\"architectures\": [\"MistralForCausalLM\"], " SIZES "\"rope_theta\": 1e4}",
                  "sliding_window: expected null");
    check_refused("{\"architectures\": [\"MistralForCausalLM\"], " SIZES "\"sliding_window\": 4096}",
                  "sliding_window: expected null");
    // sizes that no file backs are refused before memory is taken
    const char *huge = "{\"architectures\": [\"LlamaForCausalLM\"], \"num_hidden_layers\": 900, "
                       "\"hidden_size\": 1000000, \"num_attention_heads\": 1000, \"head_dim\": 128, "
                       "\"intermediate_size\": 4000000, \"vocab_size\": 16000000}";
    const char *dir = check_scratch_dir();
    float value = 1;
    dr_safetensor_source source = {"model.embed_tokens.weight", 1, {1}, &value, DR_DTYPE_F32, NULL};
    check_write_file(check_path(dir, "config.json"), huge, strlen(huge));
    check_ok(dr_safetensors_write(check_path(dir, "model.safetensors"), &source, 1));
    check_error(dr_lm_load(backend, dir, &lm), DR_ERR_FORMAT, "has shape [1], expected [16000000, 1000000]");
    check_error(dr_lm_preset("huge", 97, &(dr_lm_config){0}), DR_ERR_ARGUMENT, "tiny, small or base");
}

// The weights of `lm`, less the last `n_less` tensors, and one more of the given name.
static void write_weights(dr_lm *lm, const char *path, int32_t n_less, const char *extra) {
    const dr_lm_tensor *tensors;
    int32_t n = dr_lm_tensors(lm, &tensors) - n_less;
    dr_safetensor_source sources[40] = {0};
    assert_true(n < 40);
    for (int32_t i = 0; i < n; i++) {
        bool vector = tensors[i].rows == 1;
        sources[i] = (dr_safetensor_source){
            tensors[i].name, vector ? 1 : 2, {0}, dr_lm_params(lm) + tensors[i].offset, DR_DTYPE_F32, NULL};
        sources[i].shape[0] = vector ? tensors[i].cols : tensors[i].rows;
        sources[i].shape[1] = tensors[i].cols;
    }
    if (extra) sources[n++] = (dr_safetensor_source){extra, 1, {1}, dr_lm_params(lm), DR_DTYPE_F32, NULL};
    check_ok(dr_safetensors_write(path, sources, n));
}

static void test_bad_weights(void **state) {
    (void)state;
    dr_lm *lm = tiny(), *broken = NULL;
    const char *dir = check_scratch_dir();
    char path[400];
    check_ok(dr_lm_save(lm, dir, DR_SAVE_FP32));
    snprintf(path, sizeof path, "%s", check_path(dir, "model.safetensors"));
    write_weights(lm, path, 0, NULL); // what the writer below makes is fine when nothing is wrong
    check_ok(dr_lm_load(backend, dir, &broken));
    dr_lm_destroy(broken);
    broken = NULL;
    write_weights(lm, path, 0, "lm_head.weight"); // some files carry the tied head too
    check_ok(dr_lm_load(backend, dir, &broken));
    dr_lm_destroy(broken);
    broken = NULL;
    write_weights(lm, path, 1, NULL);
    check_error(dr_lm_load(backend, dir, &broken), DR_ERR_FORMAT, "tensor model.norm.weight is missing");
    write_weights(lm, path, 0, "model.layers.2.mlp.up_proj.weight");
    check_error(dr_lm_load(backend, dir, &broken), DR_ERR_UNSUPPORTED,
                "tensor model.layers.2.mlp.up_proj.weight has no place in a Qwen2ForCausalLM");
    dr_lm_params(lm)[97 * 64 + 2] = NAN;
    write_weights(lm, path, 0, NULL);
    check_error(dr_lm_load(backend, dir, &broken), DR_ERR_NUMERIC,
                "tensor model.layers.0.input_layernorm.weight: value 2 is");
    unlink(path);
    check_error(dr_lm_load(backend, dir, &broken), DR_ERR_IO, "model.safetensors: cannot open");
    check_write_file(check_path(dir, "model.safetensors.index.json"), "{}", 2);
    check_error(dr_lm_load(backend, dir, &broken), DR_ERR_FORMAT, "'weight_map' is missing");
    unlink(check_path(dir, "model.safetensors.index.json"));
    // a shape that does not follow from config.json
    dr_lm_params(lm)[97 * 64 + 2] = 1;
    check_ok(dr_lm_save(lm, dir, DR_SAVE_FP32));
    size_t length;
    char *text = check_read_file(check_path(dir, "config.json"), &length),
         *at = strstr(text, "\"vocab_size\"");
    assert_non_null(at);
    at = strstr(at, "97");
    memcpy(at, "98", 2);
    check_write_file(check_path(dir, "config.json"), text, length);
    check_error(dr_lm_load(backend, dir, &broken), DR_ERR_FORMAT, "has shape [97, 64], expected [98, 64]");
    assert_null(broken);
    free(text);
    dr_lm_destroy(lm);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_finite_differences),
        cmocka_unit_test(test_cache_agrees_bit_for_bit),
        cmocka_unit_test(test_cache_agrees_in_bf16),
        cmocka_unit_test(test_short_of_pages_changes_nothing),
        cmocka_unit_test(test_forks_share_pages),
        cmocka_unit_test(test_wide_heads),
        cmocka_unit_test(test_long_trajectory),
        cmocka_unit_test(test_bad_packs),
        cmocka_unit_test(test_schedules),
        cmocka_unit_test(test_save_and_load),
        cmocka_unit_test(test_bad_folders),
        cmocka_unit_test(test_bad_weights),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
