// Nothing above the compute seam touches backend memory: loading, sampling, training, updating, saving and
// rolling out on a backend whose memory is closed to the host give the bits of the plain one.
// labels: cpu
#include "tests/guarded_backend.h"

#include <string.h>

#include "core/base/file.h"
#include "core/episode/rollout.h"
#include "core/learn/checkpoint.h"
#include "core/learn/learner.h"
#include "core/learn/mismatch.h"
#include "core/rec/trm_train.h"
#include "tests/tiny_catalogue.h"
#include "tests/tiny_policy.h"
#include "tests/tiny_trm.h"

static dr_backend *plain;
static dr_backend guarded;

static int setup(void **state) {
    (void)state;
    if (dr_backend_cpu_create(DR_FP32, 2, &plain) != DR_OK) return -1;
    guarded = guarded_backend(plain);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    guarded_backend_close();
    dr_backend_cpu_destroy(plain);
    return 0;
}

static dr_mismatch_settings small_settings(const dr_lm *lm) {
    dr_mismatch_settings s = dr_mismatch_defaults(dr_lm_config_of(lm)->max_positions);
    s.tokens = 150;
    s.live = 5;
    s.longest_prompt = 20;
    s.longest_turn = s.longest_tool = 6;
    return s;
}

static void check_same_set(const dr_mismatch_set *got, const dr_mismatch_set *want) {
    assert_int_equal(got->n, want->n);
    for (int32_t i = 0; i < got->n; i++) {
        const dr_trajectory *x = &got->sequences[i], *y = &want->sequences[i];
        assert_int_equal(x->n_tokens, y->n_tokens);
        assert_memory_equal(x->ids, y->ids, (size_t)x->n_tokens * sizeof(int32_t));
        check_same_bits("log-probability", x->logprob, y->logprob, x->n_tokens);
        check_same_bits("log-probability, kept", x->logprob_kept, y->logprob_kept, x->n_tokens);
    }
}

// What one run on one backend leaves behind, on the host.
typedef struct outcome {
    dr_mismatch_set set;
    float *gradient, *weights, *first, *second;
    int64_t n;
} outcome;

static float *fetch(dr_backend *b, const float *memory, int64_t n) {
    float *host = NULL;
    check_ok(dr_alloc(&host, "on the host", n, sizeof *host));
    b->ops->copy_out(b, host, memory, (size_t)n * sizeof *host);
    return host;
}

static void learn(dr_backend *b, dr_lm *lm, dr_activations activations, outcome *out) {
    dr_learner *learner = NULL;
    dr_optimizer *optimizer = NULL;
    float *gradient = NULL;
    double norm = 0;
    dr_learn_item items[256];
    dr_learn_stats stats = {0};
    dr_optimizer_settings settings = {0.9f, 0.95f, 1e-8f, 0.1f, 1.0f};
    dr_loss_settings loss = {
        .kind = DR_LOSS_POLICY, .temperature = 1.0f, .clip_low = 0.2f, .clip_high = 0.28f};
    assert_true(out->set.n <= 256);
    for (int32_t i = 0; i < out->set.n; i++)
        items[i] = (dr_learn_item){&out->set.sequences[i], i % 2 ? 1.0f : -0.5f, 0.01f};
    check_ok(dr_memory_create(b, &gradient, "gradient", dr_lm_n_params(lm), sizeof(float)));
    check_ok(dr_learner_create(lm, NULL, 200, 100, activations, &learner));
    check_ok(dr_optimizer_create(lm, &settings, NULL, &optimizer));
    for (int step = 0; step < 2; step++) {
        b->ops->zero(b, gradient, (size_t)dr_lm_n_params(lm) * sizeof(float));
        check_ok(dr_learner_accumulate(learner, items, out->set.n, &loss, gradient, NULL, &stats));
        check_ok(dr_optimizer_step(optimizer, gradient, 1e-3f, &norm));
        if (step == 0) assert_true(stats.ratio == stats.tokens && stats.largest_gap == 0);
    }
    out->n = dr_lm_n_params(lm);
    out->gradient = fetch(b, gradient, out->n);
    out->weights = fetch(b, dr_lm_params(lm), out->n);
    out->first = fetch(b, dr_optimizer_first(optimizer), out->n);
    out->second = fetch(b, dr_optimizer_second(optimizer), out->n);
    // there and back through a checkpoint and a folder
    dr_checkpoint_file file;
    const char *dir = check_scratch_dir(), *folder = check_scratch_dir();
    dr_lm *again = NULL;
    check_ok(dr_checkpoint_write_part(lm, optimizer, dir, 0, 1, &file));
    dr_checkpoint_info info = {.step = 2, .updates = 2, .n_files = 1, .files = &file, .config_hash = "x"};
    check_ok(dr_checkpoint_commit(dr_lm_config_of(lm), dir, &info));
    dr_optimizer_restart(optimizer);
    check_ok(dr_lm_save(lm, folder, DR_SAVE_FP32));
    check_ok(dr_lm_load(b, folder, &again));
    float *loaded = fetch(b, dr_lm_params(again), out->n);
    check_same_bits("saved and loaded", loaded, out->weights, out->n);
    check_ok(dr_checkpoint_load(again, optimizer, dir));
    float *moments = fetch(b, dr_optimizer_second(optimizer), out->n);
    check_same_bits("restored", moments, out->second, out->n);
    dr_free(loaded);
    dr_free(moments);
    dr_lm_destroy(again);
    dr_optimizer_destroy(optimizer);
    dr_learner_destroy(learner);
    b->ops->memory_destroy(b, gradient);
}

static outcome run_family(dr_backend *b, const char *family, dr_activations activations) {
    outcome out = {0};
    dr_lm *lm = NULL;
    dr_mismatch m;
    check_ok(dr_lm_load(b, check_golden(family), &lm));
    dr_mismatch_settings s = small_settings(lm);
    check_ok(dr_mismatch_sample(lm, &s, &out.set));
    check_ok(dr_mismatch_train(lm, &s, &out.set, true, &m));
    assert_true(m.tokens > 0 && m.different == 0);
    check_ok(dr_mismatch_replay(lm, &s, &out.set, 2, 7, &m));
    assert_true(m.tokens > 0 && m.different == 0);
    learn(b, lm, activations, &out);
    dr_lm_destroy(lm);
    return out;
}

static void outcome_reset(outcome *o) {
    dr_mismatch_set_reset(&o->set);
    dr_free(o->gradient);
    dr_free(o->weights);
    dr_free(o->first);
    dr_free(o->second);
}

static void test_families(void **state) {
    (void)state;
    static const char *const families[] = {"lm_qwen2", "lm_qwen3", "lm_llama31"};
    for (int i = 0; i < 3; i++) {
        dr_activations activations = i == 1 ? DR_RECOMPUTE : DR_KEEP_ACTIVATIONS;
        outcome want = run_family(plain, families[i], activations),
                got = run_family(&guarded, families[i], activations);
        check_same_set(&got.set, &want.set);
        check_same_bits("gradient", got.gradient, want.gradient, want.n);
        check_same_bits("weights", got.weights, want.weights, want.n);
        check_same_bits("first moments", got.first, want.first, want.n);
        check_same_bits("second moments", got.second, want.second, want.n);
        outcome_reset(&want);
        outcome_reset(&got);
    }
}

static void test_fresh_weights(void **state) {
    (void)state;
    dr_lm_config config;
    dr_backend *backends[2] = {plain, &guarded};
    float *weights[2];
    int64_t n = 0;
    check_ok(dr_lm_preset("tiny", 61, &config));
    for (int i = 0; i < 2; i++) {
        dr_lm *lm = NULL;
        check_ok(dr_lm_create(backends[i], &config, 3, &lm));
        check_ok(dr_lm_start_copying(lm, 4));
        n = dr_lm_n_params(lm);
        weights[i] = fetch(backends[i], dr_lm_params(lm), n);
        dr_lm_destroy(lm);
    }
    check_same_bits("fresh weights", weights[1], weights[0], n);
    dr_free(weights[0]);
    dr_free(weights[1]);
}

// Scores, lists and host vectors of the retrieval model, and the model as it is saved.
static void test_retrieval(void **state) {
    (void)state;
    enum { QUERIES = TINY_USERS, K = 7 };
    dr_dataset data = tiny_catalogue();
    dr_backend *backends[2] = {plain, &guarded};
    dr_trm *trm[2];
    dr_hit hits[2][QUERIES * K];
    float *scores[2], *saved[2], texts[QUERIES][TINY_TEXT] = {{0}};
    dr_trm_query queries[QUERIES];
    int64_t N = data.n_items + 1;
    const char *words[] = {"old war films", "space", "love stories with music"};
    for (int i = 0; i < 2; i++) {
        check_ok(tiny_trm(backends[i], &data, &trm[i]));
        check_ok(dr_alloc(&scores[i], "scores", QUERIES * N, sizeof(float)));
    }
    const dr_text_encoder *encoder = dr_trm_text_encoder(trm[0]);
    check_ok(encoder->ops->encode(encoder, words, 3, texts[0]));
    for (int q = 0; q < QUERIES; q++) {
        dr_example e;
        assert_true(dr_dataset_example(&data, q, DR_SPLIT_TEST, &e));
        queries[q] = (dr_trm_query){e.history, e.n_history, q < 3 ? texts[q] : NULL};
    }
    for (int i = 0; i < 2; i++) {
        const char *dir = check_scratch_dir();
        dr_trm *again = NULL;
        check_ok(dr_trm_score(trm[i], queries, QUERIES, scores[i]));
        check_ok(dr_trm_top_k(trm[i], queries, QUERIES, K, true, hits[i]));
        check_ok(dr_trm_save(trm[i], dir));
        check_ok(dr_trm_load(plain, dir, &again));
        check_ok(dr_alloc(&saved[i], "scores", QUERIES * N, sizeof(float)));
        check_ok(dr_trm_score(again, queries, QUERIES, saved[i]));
        dr_trm_destroy(again);
    }
    check_same_bits("scores", scores[1], scores[0], QUERIES * N);
    check_same_bits("scores of the saved model", saved[1], scores[0], QUERIES * N);
    assert_memory_equal(hits[1], hits[0], sizeof hits[0]);
    check_same_bits("item vectors", dr_trm_item_vectors(trm[1]), dr_trm_item_vectors(trm[0]),
                    N * TINY_HIDDEN);
    check_same_bits("text vectors", dr_trm_text_vectors(trm[1]), dr_trm_text_vectors(trm[0]), N * TINY_TEXT);
    for (int i = 0; i < 2; i++) {
        dr_trm_destroy(trm[i]);
        dr_free(scores[i]);
        dr_free(saved[i]);
    }
    tiny_catalogue_reset(&data);
}

// Training of the retrieval model, with dropout, noise and preference texts.
static void test_retrieval_training(void **state) {
    (void)state;
    dr_dataset data = tiny_catalogue();
    dr_backend *backends[2] = {plain, &guarded};
    dr_trm_train_options o = dr_trm_train_defaults();
    float *weights[2], *first[2];
    int64_t n = 0;
    o.config.hidden = TINY_HIDDEN;
    o.config.text_dim = TINY_TEXT;
    o.config.max_history = TINY_HISTORY;
    o.config.inner = TINY_INNER;
    o.config.n_experts = TINY_EXPERTS;
    o.batch = 8; // of 20 samples: a smaller one at the end
    for (int i = 0; i < 2; i++) {
        for (o.max_epochs = 1; o.max_epochs <= 3; o.max_epochs += 2) {
            dr_trm *trm = NULL;
            check_ok(dr_trm_train(backends[i], &data, &o, &trm));
            n = dr_trm_n_params(trm);
            *(o.max_epochs == 1 ? &first[i] : &weights[i]) = fetch(backends[i], dr_trm_params(trm), n);
            dr_trm_destroy(trm);
        }
    }
    check_same_bits("weights after an epoch", first[1], first[0], n);
    check_same_bits("weights of the best of three", weights[1], weights[0], n);
    for (int i = 0; i < 2; i++) {
        dr_free(weights[i]);
        dr_free(first[i]);
    }
    tiny_catalogue_reset(&data);
}

// Trajectories of a policy from a folder.
static void roll(dr_backend *b, const char *folder, const dr_rollout_parts *parts, dr_buf *out) {
    dr_rollout_parts own = *parts;
    dr_rollout *rollout = NULL;
    dr_trajectory t = {0};
    check_ok(dr_lm_load(b, folder, &own.lm));
    check_ok(dr_rollout_create(&own, &rollout));
    for (int32_t user = 0; user < TINY_USERS; user++) {
        dr_example e;
        assert_true(dr_dataset_example(parts->dataset, user, DR_SPLIT_TEST, &e));
        dr_rollout_request request = {.seed = 3,
                                      .prompt = (uint32_t)user,
                                      .n_samples = 3,
                                      .user = user,
                                      .target = e.target,
                                      .history = e.history,
                                      .n_history = e.n_history,
                                      .sampling = {1.0f, user % 2 ? 0.9f : 1.0f}};
        check_ok(dr_rollout_submit(rollout, &request));
    }
    for (int ticks = 0; dr_rollout_pending(rollout) > 0; ticks++) {
        assert_true(ticks < 100000);
        check_ok(dr_rollout_tick(rollout));
        while (dr_rollout_take(rollout, &t)) {
            check_ok(dr_trajectory_encode(&t, out));
            dr_trajectory_reset(&t);
        }
    }
    dr_rollout_destroy(rollout);
    dr_lm_destroy(own.lm);
}

static void test_rollout(void **state) {
    (void)state;
    dr_dataset data = tiny_catalogue();
    dr_tokenizer *tokenizer = NULL;
    dr_lm *lm = NULL;
    dr_trm *trm = NULL, *guarded_trm = NULL;
    dr_template *compact = NULL;
    dr_buf want = {0}, got = {0};
    check_ok(tiny_tokenizer(&tokenizer));
    check_ok(tiny_policy(plain, tokenizer, &lm));
    check_ok(tiny_trm(plain, &data, &trm));
    check_ok(tiny_trm(&guarded, &data, &guarded_trm));
    check_ok(dr_template_load("compact", &compact));
    const char *folder = check_scratch_dir();
    check_ok(dr_lm_save(lm, folder, DR_SAVE_FP32));
    dr_rollout_parts parts = {.tokenizer = tokenizer,
                              .trm = trm,
                              .dataset = &data,
                              .prompt_template = compact,
                              .protocol = tiny_protocol,
                              .max_live = 8,
                              .prefill_tokens = 64};
    for (parts.burst = 1; parts.burst <= 6; parts.burst += 5) { // trajectories come in an order of their own
        parts.trm = trm;
        parts.kv_pages = parts.burst > 1 ? tiny_protocol.max_total_tokens / DR_KV_PAGE + 3 : 0; // or few
        roll(plain, folder, &parts, &want);
        int repeated = guard_repeated;
        parts.trm = guarded_trm;
        roll(&guarded, folder, &parts, &got);
        assert_true(guard_repeated > repeated + 20); // decoding is the same passes again and again
        assert_int_equal(got.length, want.length);
        assert_true(want.length > 1000);
        assert_memory_equal(got.data, want.data, want.length);
        dr_buf_reset(&want);
        dr_buf_reset(&got);
    }
    dr_template_destroy(compact);
    dr_trm_destroy(trm);
    dr_trm_destroy(guarded_trm);
    dr_lm_destroy(lm);
    dr_tokenizer_destroy(tokenizer);
    tiny_catalogue_reset(&data);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_families),  cmocka_unit_test(test_fresh_weights),
        cmocka_unit_test(test_retrieval), cmocka_unit_test(test_retrieval_training),
        cmocka_unit_test(test_rollout),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
