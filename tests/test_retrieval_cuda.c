// The retrieval model on the CUDA body against the CPU body: ops, scores, lists. No device: skipped.
// labels: gpu
// Also retrievals that are under way while the host goes on, and training.
#include "tests/cuda_check.h"

#include "core/learn/memory_plan.h"
#include "core/rec/trm_train.h"
#include "tests/retrieval_plan.h"
#include "tests/tiny_catalogue.h"
#include "tests/tiny_trm.h"

#ifndef DR_IS_EMULATED // its memory is counted to the byte
#define DR_IS_EMULATED 0
#endif

// ---- ops ----

// A fusion whose forward pass has been run. sizes: B, L, D
static dr_fusion fused(dr_backend *b, const int64_t *sizes) {
    int64_t B = sizes[0], L = sizes[1], D = sizes[2], K2 = 2 * (L / 2 + 1);
    dr_fusion f = {.B = B,
                   .L = L,
                   .D = D,
                   .dft = put(b, op_normal(K2 * L, 0, 0.3), K2 * L),
                   .inverse = put(b, op_normal(K2 * L, 0, 0.3), K2 * L),
                   .filter = put(b, op_normal(K2 * D, 0, 0.3), K2 * D),
                   .positions = put(b, op_normal(L * D, 0, 1), L * D),
                   .out = put_poison(b, B * L * D)};
    for (int i = 0; i < 2; i++) {
        f.x[i] = put(b, op_normal(B * L * D, 0, 1), B * L * D);
        f.gate[i] = put(b, op_normal(D, 0, 0.1), D);
        f.bias[i] = put(b, op_normal(1, 0, 1), 1);
        f.spectra[i] = put_poison(b, B * K2 * D);
        f.filtered[i] = put_poison(b, B * L * D);
        f.openness[i] = put_poison(b, B * L);
    }
    b->ops->fusion_forward(b, &f);
    return f;
}

static void run_fusion(dr_backend *b, const int64_t *sizes, results *r) {
    const dr_fusion f = fused(b, sizes);
    int64_t B = f.B, L = f.L, D = f.D, K2 = 2 * (L / 2 + 1);
    give(r, "fusion", b, f.out, B * L * D, gradient);
    for (int i = 0; i < 2; i++) {
        give(r, "spectrum", b, f.spectra[i], B * K2 * D, forward);
        give(r, "filtered", b, f.filtered[i], B * L * D, gradient);
        give(r, "gate", b, f.openness[i], B * L, gradient);
    }
}

static void run_fusion_backward(dr_backend *b, const int64_t *sizes, results *r) {
    const dr_fusion f = fused(b, sizes);
    int64_t B = f.B, L = f.L, D = f.D, K2 = 2 * (L / 2 + 1);
    const dr_fusion_gradient g = {.dout = put(b, op_normal(B * L * D, 0, 1), B * L * D),
                                  .dx = {put_poison(b, B * L * D), put_poison(b, B * L * D)},
                                  .dfilter = put(b, op_normal(K2 * D, 0, 1), K2 * D), // added to
                                  .dgate = {put(b, op_normal(D, 0, 1), D), put(b, op_normal(D, 0, 1), D)},
                                  .dbias = {put(b, op_normal(1, 0, 1), 1), put(b, op_normal(1, 0, 1), 1)},
                                  .dpositions = put(b, op_normal(L * D, 0, 1), L * D)};
    check_ok(b->ops->fusion_backward(b, &f, &g));
    give(r, "dfilter", b, g.dfilter, K2 * D, gradient);
    give(r, "dpositions", b, g.dpositions, L * D, gradient);
    for (int i = 0; i < 2; i++) {
        give(r, "dx", b, g.dx[i], B * L * D, gradient);
        give(r, "dgate", b, g.dgate[i], D, gradient);
        give(r, "dbias", b, g.dbias[i], 1, gradient);
    }
}

// sizes: B, L, H, d
static void run_padded(dr_backend *b, const int64_t *sizes, results *r) {
    int64_t B = sizes[0], L = sizes[1], H = sizes[2], d = sizes[3];
    int32_t *lengths = op_ids(B, (uint32_t)L);
    for (int64_t q = 0; q < B; q++) lengths[q]++;
    for (int last = 0; last < 2; last++) {
        int64_t Q = last ? 1 : L;
        dr_padded_attention a = {.B = B,
                                 .L = L,
                                 .H = (int32_t)H,
                                 .d = (int32_t)d,
                                 .last_only = last,
                                 .qkv = put(b, op_normal(B * L * 3 * H * d, 0, 1), B * L * 3 * H * d),
                                 .lengths = put_ids(b, lengths, B),
                                 .weights = put_poison(b, B * H * Q * L),
                                 .out = put_poison(b, B * Q * H * d)};
        float *dout = put(b, op_normal(B * Q * H * d, 0, 1), B * Q * H * d);
        float *dqkv = put_poison(b, B * L * 3 * H * d);
        b->ops->padded_attention(b, &a);
        b->ops->padded_attention_backward(b, &a, dout, dqkv);
        give(r, "attention", b, a.out, B * Q * H * d, forward);
        give(r, "weights", b, a.weights, B * H * Q * L, forward);
        give(r, "dqkv", b, dqkv, B * L * 3 * H * d, gradient);
    }
}

// sizes: T, E, D
static void run_rows(dr_backend *b, const int64_t *sizes, results *r) {
    int64_t T = sizes[0], E = sizes[1], D = sizes[2];
    float *gate = put(b, op_normal(T * E, 0, 1), T * E), *z = put(b, op_normal(T * E * D, 0, 1), T * E * D);
    float *y = put_poison(b, T * D), *unit = put_poison(b, T * D);
    b->ops->mixture_forward(b, gate, z, T, E, D, y);
    give(r, "mixture", b, y, T * D, forward);
    give(r, "its weights", b, gate, T * E, forward);
    b->ops->zero(b, z, (size_t)D * sizeof(float));
    b->ops->unit_rows(b, z, T, D, unit);
    give(r, "unit rows", b, unit, T * D, 0);
    int64_t places[] = {0, D - 1, (T - 1) * D, 0};
    b->ops->fill_places(b, y, put_bytes(b, places, sizeof places), 4, 7.0f);
    give(r, "filled", b, y, T * D, forward);
}

// sizes: columns
static void run_pooling(dr_backend *b, const int64_t *sizes, results *r) {
    enum { N = 5 };
    const int32_t ends[N + 1] = {0, 1, 1, 4, 40, 300};
    const dr_sequences all = {N, ends, NULL};
    int64_t D = sizes[0];
    float *x = put(b, op_normal(ends[N] * D, 0, 1), ends[N] * D), *out = put_poison(b, N * D);
    check_ok(b->ops->pool_rows(b, x, &all, DR_POOL_FIRST, D, out));
    give(r, "first rows", b, out, N * D, 0);
    check_ok(b->ops->pool_rows(b, x, &all, DR_POOL_MEAN, D, out));
    give(r, "means", b, out, N * D, 0);
}

// sizes: T, E, D
static void run_training_rows(dr_backend *b, const int64_t *sizes, results *r) {
    int64_t T = sizes[0], E = sizes[1], D = sizes[2], n = T * E;
    float *gate = put(b, op_normal(n, 0, 1), n), *spread = put(b, op_normal(n, 0, 3), n);
    float *noise = put(b, op_normal(n, 0, 1), n), *z = put(b, op_normal(n * D, 0, 1), n * D);
    float *dy = put(b, op_normal(T * D, 0, 1), T * D), *dx = put(b, op_normal(T * D, 0, 1), T * D);
    float *y = put_poison(b, T * D), *dz = put_poison(b, n * D), *dspread = put_poison(b, n);
    float *unit = put_poison(b, T * D), *lengths = put_poison(b, T);
    b->ops->noisy_gate_forward(b, noise, spread, n, gate);
    give(r, "noisy gate", b, gate, n, forward);
    b->ops->mixture_forward(b, gate, z, T, E, D, y);
    b->ops->mixture_backward(b, dy, gate, z, T, E, D, dz, gate);
    give(r, "dz", b, dz, n * D, gradient);
    give(r, "dgate", b, gate, n, gradient);
    b->ops->noisy_gate_backward(b, gate, noise, spread, n, dspread);
    give(r, "dspread", b, dspread, n, gradient);
    b->ops->zero(b, z, (size_t)D * sizeof(float)); // a row of zeros among them
    b->ops->normalize_rows_forward(b, z, T, D, unit, lengths);
    b->ops->normalize_rows_backward(b, dy, unit, lengths, T, D, dx);
    give(r, "unit", b, unit, T * D, forward);
    give(r, "lengths", b, lengths, T, forward);
    give(r, "dx", b, dx, T * D, gradient);
    for (int i = 0; i < 2; i++) { // 0: the same bits
        b->ops->dropout(b, dy, T * D, i ? 0.5f : 0.2f, 1234567u + (uint32_t)i, y);
        give(r, "dropout", b, y, T * D, 0);
    }
}

// sizes: T, V
static void run_cross_entropy(dr_backend *b, const int64_t *sizes, results *r) {
    int64_t T = sizes[0], V = sizes[1];
    int32_t *targets = op_ids(T, (uint32_t)V - 1);
    float *logits = put(b, op_normal(T * V, 0, 0.3), T * V), *losses = op_array(T, sizeof(float));
    double *there = put_bytes(b, op_zeros(T), (size_t)T * sizeof(double)), *here = op_zeros(T);
    for (int64_t t = 0; t < T; t++) targets[t]++;
    b->ops->cross_entropy(b, logits, put_ids(b, targets, T), T, V, 1.0f / 0.07f, there);
    b->ops->copy_out(b, here, there, (size_t)T * sizeof(double));
    for (int64_t t = 0; t < T; t++) losses[t] = (float)here[t];
    give(r, "losses", op_one, losses, T, forward);
    give(r, "dlogits", b, logits, T * V, gradient);
}

static void test_ops(void **state) {
    (void)state;
    if (!cuda) skip();
    static const int64_t fusions[][3] = {{1, 2, 1}, {3, 10, 16}, {5, 20, 128}, {2, 64, 256}};
    static const int64_t padded[][4] = {{1, 2, 1, 1}, {3, 10, 2, 8}, {5, 20, 2, 64}, {2, 64, 3, 70}};
    static const int64_t columns[][2] = {{1, 2}, {5, 300}, {70, 33}, {3, 5000}};
    static const int64_t rows[][3] = {{1, 1, 1}, {3, 2, 33}, {70, 8, 128}, {2, 64, 300}};
    for (int i = 0; i < 4; i++) {
        compare(run_fusion, fusions[i], (uint64_t)(100 * i));
        compare(run_fusion_backward, fusions[i], (uint64_t)(4000 + 100 * i));
        compare(run_padded, padded[i], (uint64_t)(1000 + 100 * i));
        compare(run_training_rows, rows[i], (uint64_t)(5000 + 100 * i));
        compare(run_cross_entropy, columns[i], (uint64_t)(6000 + 100 * i));
        compare(run_rows, rows[i], (uint64_t)(2000 + 100 * i));
        compare(run_pooling, &rows[i][2], (uint64_t)(4000 + 100 * i));
        compare_on(cuda_bf16, run_padded, padded[i], (uint64_t)(3000 + 100 * i)); // fp32 there, too
    }
}

static void check_best(int64_t T, int64_t V, int32_t k, int kind) {
    float *scores = op_normal(T * V, 0, 1);
    for (int64_t i = 0; i < T * V; i++) {
        if (kind == 1) scores[i] = (float)(int)(2 * scores[i]) / 2; // many ties
        if (kind == 2 && i % 4) scores[i] = i % 8 < 4 ? -INFINITY : NAN;
    }
    dr_hit *want = op_array(T * k, sizeof *want), *got = op_array(T * k, sizeof *got);
    dr_hit *there = put_bytes(cuda, got, (size_t)(T * k) * sizeof *got);
    check_ok(op_one->ops->top_k(op_one, scores, T, V, k, want));
    check_ok(cuda->ops->top_k(cuda, put(cuda, scores, T * V), T, V, k, there));
    cuda->ops->copy_out(cuda, got, there, (size_t)(T * k) * sizeof *got);
    assert_memory_equal(got, want, (size_t)(T * k) * sizeof *got);
    free_all();
}

static void test_best_of_rows(void **state) {
    (void)state;
    if (!cuda) skip();
    static const int64_t shapes[][3] = {
        {1, 1, 1}, {7, 40, 12}, {3, 5000, 20}, {2, 700, 1000}, {2, 70000, 1024}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int kind = 0; kind < 3; kind++)
            check_best(shapes[i][0], shapes[i][1], (int32_t)shapes[i][2], kind);
}

// ---- the model ----

enum { TEXTS = TINY_USERS, LISTS = 6 };

// Requests of all users, most with a preference text.
static void fill_queries(const dr_dataset *data, const dr_trm *trm, float texts[TEXTS][TINY_TEXT],
                         dr_trm_query *queries) {
    static const char *const words[TEXTS - 1] = {"old war films", "space", "love stories with music"};
    const dr_text_encoder *encoder = dr_trm_text_encoder(trm);
    check_ok(encoder->ops->encode(encoder, words, TEXTS - 1, texts[0]));
    for (int q = 0; q < TEXTS; q++) {
        dr_example e;
        assert_true(dr_dataset_example(data, q, DR_SPLIT_TEST, &e));
        queries[q] = (dr_trm_query){e.history, e.n_history, q < TEXTS - 1 ? texts[q] : NULL};
    }
}

static void test_model(void **state) {
    (void)state;
    if (!cuda) skip();
    dr_dataset data = tiny_catalogue();
    dr_backend *backends[2] = {op_one, cuda};
    dr_trm *trm[2];
    dr_trm_query queries[TEXTS];
    float texts[TEXTS][TINY_TEXT] = {{0}}, scores[2][TEXTS * (TINY_ITEMS + 1)];
    dr_hit hits[TEXTS * LISTS];
    for (int i = 0; i < 2; i++) {
        check_ok(tiny_trm(backends[i], &data, &trm[i]));
        if (i == 0) fill_queries(&data, trm[0], texts, queries);
        check_ok(dr_trm_score(trm[i], queries, TEXTS, scores[i]));
    }
    for (int q = 0; q < TEXTS; q++) {
        int64_t at = (int64_t)q * (TINY_ITEMS + 1);
        assert_true(scores[1][at] == -INFINITY);
        check_close("scores", scores[1] + at + 1, scores[0] + at + 1, TINY_ITEMS, 1e-5, 1e-5);
    }
    check_same_bits("text vectors", dr_trm_text_vectors(trm[1]), dr_trm_text_vectors(trm[0]),
                    (int64_t)(TINY_ITEMS + 1) * TINY_TEXT);
    check_same_bits("item vectors", dr_trm_item_vectors(trm[1]), dr_trm_item_vectors(trm[0]),
                    (int64_t)(TINY_ITEMS + 1) * TINY_HIDDEN);
    // two under way at a time: the lists of the calls that wait, one by one
    dr_trm_retrieval *under_way[2];
    check_ok(dr_trm_top_k(trm[1], queries, TEXTS, LISTS, true, hits));
    for (int i = 0; i < 2; i++) check_ok(dr_trm_retrieval_create(trm[1], TEXTS, LISTS, &under_way[i]));
    for (int round = 0; round < 20; round++) {
        const dr_hit *got[2] = {NULL, NULL};
        int n = 1 + round % TEXTS;
        check_ok(dr_trm_retrieval_begin(under_way[0], queries, NULL, n, true));
        check_ok(dr_trm_retrieval_begin(under_way[1], queries + TEXTS - n, NULL, n, true));
        for (int i = 0; i < 2; i++) check_ok(dr_trm_retrieval_finish(under_way[i], 30, &got[i]));
        assert_memory_equal(got[0], hits, (size_t)(n * LISTS) * sizeof *hits);
        assert_memory_equal(got[1], hits + (TEXTS - n) * LISTS, (size_t)(n * LISTS) * sizeof *hits);
    }
    check_ok(dr_trm_retrieval_begin(under_way[0], queries, NULL, TEXTS, true));
    for (int i = 0; i < 2; i++) dr_trm_retrieval_destroy(under_way[i]); // one of them at work
    for (int i = 0; i < 2; i++) dr_trm_destroy(trm[i]);
    tiny_catalogue_reset(&data);
}

// Preferences that are encoded by a sentence encoder on the device, in several passes, for retrievals that
// follow each other without a wait: embeddings and lists of those that are encoded first.
static void test_encoder(void **state) {
    (void)state;
    if (!cuda) skip();
    enum { MANY = 40, DIM = 24 }; // of some 70 tokens: more than one pass takes
    static const char *const words[] = {"old war films", "space", "", "love stories with music"};
    static char long_texts[MANY][512];
    static const char *preferences[MANY];
    static float texts[MANY][DIM];
    static dr_trm_query queries[MANY], plain[MANY];
    static dr_hit want[MANY * LISTS];
    dr_dataset data = tiny_catalogue();
    dr_trm_train_options o = dr_trm_train_defaults();
    dr_trm *trm = NULL;
    dr_trm_retrieval *under_way[2];
    o.config.hidden = TINY_HIDDEN;
    o.config.inner = TINY_INNER;
    o.config.n_experts = TINY_EXPERTS;
    o.batch = 8;
    o.max_epochs = 1;
    snprintf(o.config.text_encoder, sizeof o.config.text_encoder, "%s", check_golden("sentence_bert"));
    check_ok(dr_trm_train(cuda, &data, &o, &trm));
    for (int i = 0; i < MANY; i++) {
        dr_example e;
        assert_true(dr_dataset_example(&data, i % TINY_USERS, DR_SPLIT_TEST, &e));
        for (int j = 0; j < 7; j++) strcat(long_texts[i], words[(i + j) % 4]);
        preferences[i] = long_texts[i];
        plain[i] = (dr_trm_query){e.history, e.n_history, NULL};
        queries[i] = (dr_trm_query){e.history, e.n_history, texts[i]};
    }
    check_ok(dr_text_encode_queries(dr_trm_text_encoder(trm), preferences, MANY, texts[0]));
    check_ok(dr_trm_top_k(trm, queries, MANY, LISTS, true, want));
    for (int i = 0; i < 2; i++) check_ok(dr_trm_retrieval_create(trm, MANY, LISTS, &under_way[i]));
    for (int round = 0; round < 3; round++) {
        int n = round == 0 ? MANY : 2 + round;
        for (int i = 0; i < 2; i++) {
            int first = i ? MANY - n : 0;
            check_ok(dr_trm_retrieval_begin(under_way[i], plain + first, preferences + first, n, true));
        }
        for (int i = 0; i < 2; i++) {
            int first = i ? MANY - n : 0;
            const dr_hit *got = NULL;
            check_ok(dr_trm_retrieval_finish(under_way[i], 250, &got));
            check_same_bits("embeddings", dr_trm_retrieval_embeddings(under_way[i]), texts[first],
                            (int64_t)n * DIM);
            assert_memory_equal(got, want + (int64_t)first * LISTS, (size_t)(n * LISTS) * sizeof *got);
        }
    }
    check_ok(dr_trm_retrieval_begin(under_way[0], plain, preferences, 2, true));
    for (int i = 0; i < 2; i++) dr_trm_retrieval_destroy(under_way[i]); // one of them at work
    dr_trm_destroy(trm);
    tiny_catalogue_reset(&data);
}

// Loss and gradient of a batch, and what an epoch makes of fresh weights: masks, noise and batches are the
// same on both.
static void test_training(void **state) {
    (void)state;
    if (!cuda) skip();
    dr_dataset data = tiny_catalogue();
    dr_backend *backends[2] = {op_one, cuda};
    float texts[TEXTS][TINY_TEXT] = {{0}}, *gradients[2], *weights[2];
    int32_t targets[TEXTS];
    double losses[2];
    int64_t n_loaded = 0, n = 0; // parameters of the loaded model, of the trained one
    dr_trm_train_options o = dr_trm_train_defaults();
    o.config.hidden = TINY_HIDDEN;
    o.config.text_dim = TINY_TEXT;
    o.config.max_history = TINY_HISTORY;
    o.config.inner = TINY_INNER;
    o.config.n_experts = TINY_EXPERTS;
    o.batch = 8;
    o.max_epochs = 1;
    for (int q = 0; q < TEXTS; q++) targets[q] = 1 + q;
    for (int i = 0; i < 2; i++) {
        dr_trm *trm = NULL, *trained = NULL;
        dr_trm_query queries[TEXTS];
        check_ok(tiny_trm(backends[i], &data, &trm));
        fill_queries(&data, trm, texts, queries);
        n_loaded = dr_trm_n_params(trm);
        float *there = put_poison(backends[i], n_loaded);
        check_ok(dr_trm_loss(trm, queries, targets, TEXTS, &losses[i], there));
        gradients[i] = get(backends[i], there, n_loaded);
        check_ok(dr_trm_train(backends[i], &data, &o, &trained));
        n = dr_trm_n_params(trained);
        weights[i] = get(backends[i], dr_trm_params(trained), n);
        dr_trm_destroy(trained);
        dr_trm_destroy(trm);
    }
    assert_true(fabs(losses[1] - losses[0]) < 1e-5 * losses[0]);
    op_close("gradient", gradients[1], op_double(gradients[0], n_loaded), n_loaded, 1e-8);
    // AdamW's first steps are of the rate's size whatever the gradient's is: small ones may turn round
    op_close("weights after an epoch", weights[1], op_double(weights[0], n), n, 1e-5);
    tiny_catalogue_reset(&data);
}

#if DR_HAVE_CUDA_KERNELS
// What a training says that it will take of the device, against what it takes; another plan than the device's
// allocations is only held where these are exact, on the emulated one.
static double in_use(void *context) {
    int64_t left = 0, total = 0;
    dr_backend *b = context;
    check_ok(b->ops->memory_free(b, &left, &total));
    return (double)(total - left);
}

static void check_plan(const char *what, dr_precision precision, const dr_trm_train_options *o) {
    dr_dataset data = plan_catalogue();
    dr_backend *b = NULL;
    dr_memory_plan plan, pinned;
    check_ok(dr_backend_cuda_create(precision, 0, &b));
    check_ok(dr_memory_plan_make_retrieval(b, &data, o, 0, &plan));
    double taken = plan_taken(b, &data, *o, in_use, b), planned = (double)plan.bytes;
    print_message("%s: planned %.2f MB, taken %.2f MB, of the host %.2f MB\n", what, planned * 1e-6,
                  taken * 1e-6, (double)plan.host * 1e-6);
    assert_true(plan.host > 0);
    if (DR_IS_EMULATED && planned < taken)
        fail_msg("%.0f bytes were planned, %.0f are taken", planned, taken);
    if (DR_IS_EMULATED && planned > 4.0 / 3.0 * taken)
        fail_msg("%.0f bytes were planned, only %.0f are taken", planned, taken);
    // no room, on the device or on the host
    dr_memory_place place = {
        .free = plan.bytes, .total = plan.bytes, .n_workers = 1, .host_free = plan.host, .n_on_host = 1};
    check_ok(dr_memory_plan_check(&plan, &place));
    pinned = plan;
    pinned.host++;
    check_error(dr_memory_plan_check(&pinned, &place), DR_ERR_MEMORY, "A smaller batch");
    place.free--;
    check_error(dr_memory_plan_check(&plan, &place), DR_ERR_MEMORY, "A smaller batch");
    dr_backend_cuda_destroy(b);
    plan_catalogue_reset(&data);
}
#endif

static void test_plan(void **state) {
    (void)state;
    if (!cuda) skip();
#if DR_HAVE_CUDA_KERNELS
    dr_trm_train_options o = plan_options();
    check_plan("hashed", DR_FP32, &o);
    check_plan("hashed, bf16", DR_BF16, &o);
    plan_encoder(&o);
    check_plan("sentence encoder", DR_FP32, &o);
#endif
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cuda_test(test_ops),     cuda_test(test_best_of_rows), cuda_test(test_model),
        cuda_test(test_encoder), cuda_test(test_training),     cuda_test(test_plan),
    };
    cuda_run(tests);
}
