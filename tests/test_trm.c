// The retrieval model against PyTorch goldens of its equations, finite differences, and its own promises.
// labels: cpu
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/base/alloc.h"
#include "core/base/rng.h"
#include "core/rec/trm.h"
#include "core/rec/trm_train.h"
#include "core/store/safetensors.h"
#include "tests/golden.h"
#include "tests/tiny_catalogue.h"
#include "tests/tiny_trm.h"

enum { L = 20 };

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

typedef struct golden {
    dr_safetensors *file;
    dr_trm *trm;
    int32_t histories[6][L], targets[6];
    float *query;
    dr_trm_query queries[6];
} golden;

static void golden_open(golden *g) {
    const char *dir = check_golden("trm");
    check_ok(dr_safetensors_open(check_path(dir, "golden.safetensors"), &g->file));
    check_ok(dr_trm_load(backend, dir, &g->trm));
    float *history = read_golden(g->file, "history", NULL), *lengths = read_golden(g->file, "lengths", NULL);
    float *has = read_golden(g->file, "has", NULL), *targets = read_golden(g->file, "targets", NULL);
    g->query = read_golden(g->file, "query", NULL);
    for (int q = 0; q < 6; q++) {
        for (int l = 0; l < L; l++) g->histories[q][l] = (int32_t)history[q * L + l];
        g->targets[q] = (int32_t)targets[q];
        g->queries[q] =
            (dr_trm_query){g->histories[q], (int32_t)lengths[q], has[q] > 0 ? g->query + q * 24 : NULL};
    }
    dr_free(history);
    dr_free(lengths);
    dr_free(has);
    dr_free(targets);
}

static void golden_close(golden *g) {
    dr_free(g->query);
    dr_trm_destroy(g->trm);
    dr_safetensors_close(g->file);
}

static void test_scores_match(void **state) {
    (void)state;
    golden g;
    golden_open(&g);
    int64_t n = 0;
    float *want = read_golden(g.file, "scores", &n), got[6 * 31], alone[31];
    check_ok(dr_trm_score(g.trm, g.queries, 6, got));
    for (int q = 0; q < 6; q++) {
        assert_true(isinf(got[q * 31]) && got[q * 31] < 0);
        check_close("scores", got + q * 31 + 1, want + q * 31 + 1, 30, 2e-6, 1e-5);
        check_ok(dr_trm_score(g.trm, &g.queries[q], 1, alone)); // alone or in a batch: the same bits
        check_same_bits("score alone", alone + 1, got + q * 31 + 1, 30);
    }
    dr_free(want);
    golden_close(&g);
}

static void test_gradients_match(void **state) {
    (void)state;
    golden g;
    golden_open(&g);
    float *gradient = NULL, *want_loss = read_golden(g.file, "loss", NULL);
    check_ok(dr_alloc(&gradient, "gradient", dr_trm_n_params(g.trm), sizeof(float)));
    double loss = 0;
    check_ok(dr_trm_loss(g.trm, g.queries, g.targets, 6, &loss, gradient));
    float got = (float)loss;
    check_close("loss", &got, want_loss, 1, 0, 1e-5);
    int32_t compared = 0;
    for (int32_t i = 0; i < dr_safetensors_count(g.file); i++) {
        const char *name = dr_safetensors_at(g.file, i)->name;
        int64_t offset, count;
        if (strncmp(name, "grad.", 5) != 0) continue;
        assert_true(dr_trm_find_param(g.trm, name + 5, &offset, &count));
        float *want = read_golden(g.file, name, NULL);
        int64_t skip =
            strcmp(name, "grad.item_embedding.weight") == 0 ? 16 : 0; // padding is not trained here
        // key biases have no gradient in exact arithmetic
        if (strstr(name, "key.bias"))
            check_close(name, gradient + offset, want, count, 1e-5, 0);
        else
            check_relative_error(name, gradient + offset + skip, want + skip, count - skip, 2e-4);
        dr_free(want);
        compared++;
    }
    assert_true(compared > 40);
    dr_free(gradient);
    dr_free(want_loss);
    golden_close(&g);
}

static void test_finite_differences(void **state) {
    (void)state;
    golden g;
    golden_open(&g);
    int64_t n = dr_trm_n_params(g.trm);
    float *gradient = NULL, *scratch = NULL, *kept = NULL, *p = dr_trm_params(g.trm);
    check_ok(dr_alloc(&gradient, "gradient", n, sizeof(float)));
    check_ok(dr_alloc(&scratch, "scratch", n, sizeof(float)));
    check_ok(dr_alloc(&kept, "kept", n, sizeof(float)));
    double loss = 0, side[2];
    check_ok(dr_trm_loss(g.trm, g.queries, g.targets, 6, &loss, gradient));
    memcpy(kept, p, (size_t)n * sizeof(float));
    int64_t offset, count;
    // parameters that are read straight from the flat buffer (no packing in between)
    static const char *const names[] = {"item_embedding.weight", "complex_weight", "item_gating.weight",
                                        "OutLayerNorm.weight", "position_embedding.weight"};
    for (int i = 0; i < 5; i++) {
        assert_true(dr_trm_find_param(g.trm, names[i], &offset, &count));
        dr_rng rng = dr_rng_make(9, (uint64_t)i);
        double want = 0;
        for (int64_t j = 16; j < count || j == 16; j++) {
            if (j >= count) break;
            scratch[j] = (float)dr_rng_normal(&rng);
            want += (double)scratch[j] * gradient[offset + j];
        }
        for (int s = 0; s < 2; s++) {
            memcpy(p, kept, (size_t)n * sizeof(float));
            for (int64_t j = 16; j < count; j++) p[offset + j] += (s ? -1.0f : 1.0f) * 1e-3f * scratch[j];
            float *ignored = NULL;
            check_ok(dr_alloc(&ignored, "ignored", n, sizeof(float)));
            check_ok(dr_trm_loss(g.trm, g.queries, g.targets, 6, &side[s], ignored));
            dr_free(ignored);
        }
        float got = (float)((side[0] - side[1]) / 2e-3), expected = (float)want;
        check_close(names[i], &got, &expected, 1, 2e-2, 3e-2);
    }
    dr_free(gradient);
    dr_free(scratch);
    dr_free(kept);
    golden_close(&g);
}

static void test_top_k(void **state) {
    (void)state;
    golden g;
    golden_open(&g);
    dr_hit hits[30];
    float scores[31];
    check_ok(dr_trm_score(g.trm, &g.queries[0], 1, scores));
    check_ok(dr_trm_top_k(g.trm, &g.queries[0], 1, 30, false, hits));
    for (int i = 0; i < 30; i++) {
        assert_true(hits[i].score == scores[hits[i].item]);
        if (i > 0)
            assert_true(hits[i - 1].score > hits[i].score ||
                        (hits[i - 1].score == hits[i].score && hits[i - 1].item < hits[i].item));
    }
    check_ok(dr_trm_top_k(g.trm, &g.queries[0], 1, 5, true, hits));
    for (int i = 0; i < 5; i++)
        for (int l = 0; l < g.queries[0].n_history; l++)
            assert_int_not_equal(hits[i].item, g.histories[0][l]);
    check_error(dr_trm_top_k(g.trm, &g.queries[0], 1, 30, true, hits), DR_ERR_RANGE, "remain");
    check_error(dr_trm_top_k(g.trm, &g.queries[0], 1, 31, false, hits), DR_ERR_RANGE, "top 31 of 30");
    dr_trm_query bad = {g.histories[0], 0, NULL};
    check_error(dr_trm_score(g.trm, &bad, 1, scores), DR_ERR_RANGE, "empty history");
    int32_t wrong[] = {31};
    bad = (dr_trm_query){wrong, 1, NULL};
    check_error(dr_trm_score(g.trm, &bad, 1, scores), DR_ERR_RANGE, "names item 31");
    golden_close(&g);
}

// A small data set in which item i is followed by i + 1 within its half; categories name the half.
static dr_dataset *ring(void) {
    enum { ITEMS = 24, USERS = 60, LENGTH = 9 };
    dr_dataset *d = NULL;
    char text[64];
    check_ok(dr_alloc(&d, "data set", 1, sizeof *d));
    d->n_items = ITEMS;
    d->n_users = USERS;
    check_ok(dr_alloc(&d->titles, "titles", ITEMS + 1, sizeof(char *)));
    check_ok(dr_alloc(&d->categories, "categories", ITEMS + 1, sizeof(char *)));
    check_ok(dr_alloc(&d->item_names, "names", ITEMS + 1, sizeof(char *)));
    check_ok(dr_alloc(&d->user_names, "users", USERS, sizeof(char *)));
    check_ok(dr_alloc(&d->offsets, "offsets", USERS + 1, sizeof *d->offsets));
    check_ok(dr_alloc(&d->sequence, "sequence", USERS * LENGTH, sizeof *d->sequence));
    for (int i = 0; i <= ITEMS; i++) {
        snprintf(text, sizeof text, i ? "Title %d" : "", i);
        check_ok(dr_strdup(&d->titles[i], text));
        check_ok(dr_strdup(&d->categories[i], i == 0 ? "" : i <= ITEMS / 2 ? "Drama" : "Comedy"));
        check_ok(dr_strdup(&d->item_names[i], text));
    }
    for (int u = 0; u < USERS; u++) {
        snprintf(text, sizeof text, "%d", u);
        check_ok(dr_strdup(&d->user_names[u], text));
        d->offsets[u + 1] = (u + 1) * LENGTH;
        int half = u % 2 * (ITEMS / 2);
        for (int i = 0; i < LENGTH; i++) d->sequence[u * LENGTH + i] = half + (u / 2 + i) % (ITEMS / 2) + 1;
    }
    check_ok(dr_strdup(&d->name, "ring"));
    check_ok(dr_strdup(&d->source, "test"));
    return d;
}

static void note_epoch(void *context, int32_t epoch, double loss, double recall, double ndcg, double seconds,
                       bool best) {
    double *last = context;
    if (epoch == 1) last[0] = loss;
    last[1] = loss;
    last[2] = recall;
    (void)ndcg;
    (void)seconds;
    (void)best;
}

static void test_training_learns_and_repeats(void **state) {
    (void)state;
    dr_dataset *d = ring();
    double seen[3] = {0};
    dr_trm_train_options o = dr_trm_train_defaults();
    o.config.hidden = 32;
    o.config.text_dim = 64;
    o.config.inner = 64;
    o.config.n_experts = 2;
    o.config.dropout = 0.1f;
    o.batch = 64;
    o.max_epochs = 25;
    o.learning_rate = 5e-3f;
    o.on_epoch = note_epoch;
    o.context = seen;
    dr_trm *a = NULL, *b = NULL, *c = NULL;
    check_ok(dr_trm_train(backend, d, &o, &a));
    check_ok(dr_trm_train(backend, d, &o, &b));
    assert_true(seen[1] < 0.8 * seen[0]);
    assert_true(seen[2] > 0.8);
    check_same_bits("weights of two runs", dr_trm_params(a), dr_trm_params(b), dr_trm_n_params(a));
    // the text matters: with the other half's category, more of that half ranks high
    dr_example e;
    assert_true(dr_dataset_example(d, 0, DR_SPLIT_TEST, &e));
    float drama[64], comedy[64];
    const char *texts[] = {"Drama", "Comedy"};
    const dr_text_encoder *encoder = dr_trm_text_encoder(a);
    check_ok(encoder->ops->encode(encoder, &texts[0], 1, drama));
    check_ok(encoder->ops->encode(encoder, &texts[1], 1, comedy));
    dr_trm_query queries[2] = {{e.history, e.n_history, drama}, {e.history, e.n_history, comedy}};
    dr_hit hits[20];
    check_ok(dr_trm_top_k(a, queries, 2, 10, false, hits));
    int in_comedy[2] = {0};
    for (int i = 0; i < 20; i++) in_comedy[i / 10] += hits[i].item > 12;
    assert_true(in_comedy[1] > in_comedy[0]);

    const char *dir = check_scratch_dir();
    check_ok(dr_trm_save(a, dir));
    check_ok(dr_trm_load(backend, dir, &c));
    float x[2 * 25], y[2 * 25];
    check_ok(dr_trm_score(a, queries, 2, x));
    check_ok(dr_trm_score(c, queries, 2, y));
    check_same_bits("scores after loading", x + 1, y + 1, 24);
    dr_trm_destroy(a);
    dr_trm_destroy(b);
    dr_trm_destroy(c);
    dr_dataset_destroy(d);
}

static void test_bad_folders(void **state) {
    (void)state;
    dr_trm *trm = NULL;
    const char *dir = check_scratch_dir();
    check_error(dr_trm_load(backend, dir, &trm), DR_ERR_IO, "model.safetensors");
    float one = 1;
    dr_safetensor_source source = {.name = "other", .n_dims = 1, .shape = {1}, .data = &one};
    check_ok(dr_safetensors_write(check_path(dir, "model.safetensors"), &source, 1));
    check_error(dr_trm_load(backend, dir, &trm), DR_ERR_FORMAT, "not a retrieval model");
    assert_null(trm);
}

// A retrieval of more requests than one pass takes is cut into passes; each request gets what it gets alone.
static void test_many_requests(void **state) {
    (void)state;
    enum { N = 300, K = 7, LONGEST = 15 };
    static const int64_t counts[] = {1, 127, 128, 129, 256, 257, N};
    static int32_t histories[N][LONGEST];
    static float texts[N][TINY_TEXT];
    static dr_trm_query queries[N];
    static dr_hit want[N * K];
    dr_dataset data = tiny_catalogue();
    dr_trm *trm = NULL;
    dr_trm_retrieval *retrieval = NULL;
    check_ok(tiny_trm(backend, &data, &trm));
    dr_rng rng = dr_rng_make(3, 5);
    for (int i = 0; i < N; i++) {
        int32_t n = 1 + (int32_t)dr_rng_below(&rng, LONGEST);
        for (int32_t j = 0; j < n; j++) histories[i][j] = 1 + (int32_t)dr_rng_below(&rng, TINY_ITEMS);
        for (int j = 0; j < TINY_TEXT; j++) texts[i][j] = (float)dr_rng_normal(&rng);
        queries[i] = (dr_trm_query){histories[i], n, i % 3 ? texts[i] : NULL};
    }
    check_ok(dr_trm_retrieval_create(trm, N, K, &retrieval));
    for (int exclude = 0; exclude < 2; exclude++) {
        for (int i = 0; i < N; i++) check_ok(dr_trm_top_k(trm, queries + i, 1, K, exclude, want + i * K));
        for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
            const dr_hit *got = NULL;
            check_ok(dr_trm_retrieval_begin(retrieval, queries, NULL, counts[c], exclude));
            check_error(dr_trm_retrieval_begin(retrieval, queries, NULL, 1, exclude), DR_ERR_ARGUMENT,
                        "under way");
            check_ok(dr_trm_retrieval_finish(retrieval, 5, &got));
            assert_memory_equal(got, want, (size_t)(counts[c] * K) * sizeof *got);
        }
    }
    dr_trm_retrieval_destroy(retrieval);
    dr_trm_destroy(trm);
    tiny_catalogue_reset(&data);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_scores_match),       cmocka_unit_test(test_gradients_match),
        cmocka_unit_test(test_finite_differences), cmocka_unit_test(test_top_k),
        cmocka_unit_test(test_many_requests),      cmocka_unit_test(test_training_learns_and_repeats),
        cmocka_unit_test(test_bad_folders),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
