// The memory plan against what a worker's parts really take, the refusal, and what counts as free.
// labels: cpu
#include "tests/check.h"

#include <malloc.h>
#include <stdio.h>
#include <string.h>

#include "core/base/file.h"
#include "core/base/host_memory.h"
#include "core/base/log.h"
#include "core/compute/cpu_internal.h"
#include "core/learn/checkpoint.h"
#include "core/learn/learner.h"
#include "core/learn/memory_plan.h"
#include "core/model/lm_shard.h"
#include "core/model/optimizer.h"
#include "tests/tiny_rollout.h"

enum { SAMPLES = 6, MOST = TINY_USERS * SAMPLES, PACK = 1024 };

// ---- a worker's parts ----

static dr_lm_config policy_config(void) {
    dr_lm_config config;
    check_ok(dr_lm_preset("small", 4096, &config));
    return config;
}

static dr_rollout_parts parts_of(dr_lm *lm) {
    dr_rollout_parts parts = tiny_rollout_parts(lm);
    parts.protocol.max_total_tokens = 1000;
    return parts;
}

static dr_memory_plan plan_of(dr_backend *b, dr_activations activations, bool has_reference, int n_learners) {
    dr_lm_config config = policy_config();
    dr_lm *outline = NULL;
    dr_memory_plan plan;
    check_ok(dr_lm_outline(b, &config, &outline));
    dr_rollout_parts parts = parts_of(outline);
    dr_memory_needs needs = {.rollout = &parts,
                             .pack_tokens = PACK,
                             .activations = activations,
                             .has_reference = has_reference,
                             .n_samples = SAMPLES,
                             .n_learners = n_learners};
    check_ok(dr_memory_plan_make(&needs, &plan));
    dr_lm_destroy(outline);
    return plan;
}

typedef struct worker {
    dr_collective learners;
    dr_lm *lm, *reference;
    dr_optimizer *optimizer;
    dr_learner *learner;
    dr_rollout *rollout;
    float *gradient;
} worker;

// Learners that never come, and are not waited for: what this one takes does not depend on them.
static dr_status no_sum(dr_collective *c, float *values, int64_t n) {
    (void)c, (void)values, (void)n;
    return DR_OK;
}

static dr_status no_gather(dr_collective *c, void *bytes, const dr_shard *parts) {
    (void)c, (void)bytes, (void)parts;
    return DR_OK;
}

static const dr_collective_ops nobody = {
    .reduce_scatter_sum = no_sum, .all_gather = no_gather, .all_gather_host = no_gather};

// A folder with the policy, for learners that share it.
static const char *policy_folder(void) {
    static char dir[300];
    dr_lm_config config = policy_config();
    dr_lm *lm = NULL;
    snprintf(dir, sizeof dir, "%s", check_scratch_dir());
    check_ok(dr_lm_create(backend, &config, 3, &lm));
    check_ok(dr_lm_save(lm, dir, DR_SAVE_FP32));
    dr_lm_destroy(lm);
    return dir;
}

// dir: of the policy, where several learners share it.
static void worker_make(dr_backend *b, dr_activations activations, bool has_reference, int n_learners,
                        const char *dir, worker *w) {
    dr_lm_config config = policy_config();
    const dr_optimizer_settings settings = {0.9f, 0.95f, 1e-8f, 0.0f, 1.0f};
    w->learners = (dr_collective){.ops = &nobody, .size = n_learners};
    if (dir)
        check_ok(dr_lm_load_shard(b, dir, 0, n_learners, &w->lm));
    else
        check_ok(dr_lm_create(b, &config, 3, &w->lm));
    if (has_reference) { // as the worker has it
        const char *folder = dir ? dir : check_scratch_dir();
        if (!dir) check_ok(dr_lm_save(w->lm, folder, DR_SAVE_FP32));
        check_ok(dr_lm_load_frozen(b, folder, &w->reference));
    }
    dr_rollout_parts parts = parts_of(w->lm);
    check_ok(dr_optimizer_create(w->lm, &settings, &w->learners, &w->optimizer));
    check_ok(dr_learner_create(w->lm, w->reference, PACK, parts.protocol.max_total_tokens, activations,
                               &w->learner));
    check_ok(dr_memory_create(b, &w->gradient, "gradient", dr_lm_n_params(w->lm), sizeof(float)));
    check_ok(dr_rollout_create(&parts, &w->rollout));
}

static void worker_free(dr_backend *b, worker *w) {
    dr_rollout_destroy(w->rollout);
    b->ops->memory_destroy(b, w->gradient);
    dr_learner_destroy(w->learner);
    dr_optimizer_destroy(w->optimizer);
    dr_lm_destroy(w->reference);
    dr_lm_destroy(w->lm);
}

// One step: SAMPLES trajectories of each user, and an update from all of them.
static void worker_step(worker *w, bool has_reference) {
    dr_trajectory trajectories[MOST];
    dr_learn_item items[MOST];
    int n = 0;
    double norm = 0;
    for (int u = 0; u < TINY_USERS; u++) {
        dr_rollout_request request = tiny_rollout_request(u, 0, SAMPLES);
        request.sampling.top_p = 0.95f;
        check_ok(dr_rollout_submit(w->rollout, &request));
    }
    while (dr_rollout_pending(w->rollout) > 0) {
        check_ok(dr_rollout_tick(w->rollout));
        while (dr_rollout_take(w->rollout, &trajectories[n])) n++;
    }
    assert_int_equal(n, MOST);
    for (int i = 0; i < n; i++) items[i] = (dr_learn_item){&trajectories[i], i % 2 ? -1.0f : 1.0f, 0.01f};
    const dr_loss_settings loss = {.kind = DR_LOSS_POLICY,
                                   .temperature = 1.0f,
                                   .clip_low = 0.2f,
                                   .clip_high = 0.28f,
                                   .kl = has_reference ? DR_KL_K3 : DR_KL_OFF,
                                   .kl_weight = 0.1f};
    dr_learn_stats stats = {0};
    check_ok(dr_learner_accumulate(w->learner, items, n, &loss, w->gradient, NULL, &stats));
    assert_true(stats.run_tokens > PACK); // more than one micro-batch: the workspace is full
    check_ok(dr_optimizer_step(w->optimizer, w->gradient, 1e-5f, &norm));
    for (int i = 0; i < n; i++) dr_trajectory_reset(&trajectories[i]);
}

static double in_use(void) {
    struct mallinfo2 info = mallinfo2();
    return (double)info.uordblks + (double)info.hblkhd;
}

// What is planned is at least what is taken, and at most a third more: scratch is counted for the longest
// sequences and largest matrices that could meet.
static void compare(dr_precision precision, dr_activations activations, bool has_reference, int n_learners) {
    dr_backend *b = NULL;
    worker w = {0};
    const char *dir = n_learners > 1 ? policy_folder() : NULL;
    double before = in_use();
    check_ok(dr_backend_cpu_create(precision, 2, &b));
    dr_memory_plan plan = plan_of(b, activations, has_reference, n_learners);
    worker_make(b, activations, has_reference, n_learners, dir, &w);
    worker_step(&w, has_reference);
    double taken = in_use() - before, planned = (double)plan.bytes;
    print_message("%d learner%s: planned %.1f MB, taken %.1f MB\n", n_learners, n_learners > 1 ? "s" : "",
                  planned * 1e-6, taken * 1e-6);
    if (planned < taken) fail_msg("%.0f bytes were planned, %.0f are taken", planned, taken);
    if (planned > 4.0 / 3.0 * taken) fail_msg("%.0f bytes were planned, only %.0f are taken", planned, taken);
    worker_free(b, &w);
    dr_backend_cpu_destroy(b);
}

static void test_taken(void **state) {
    (void)state;
#if defined(__SANITIZE_ADDRESS__)
    skip(); // its allocator has other counters
#endif
    compare(DR_FP32, DR_KEEP_ACTIVATIONS, false, 1);
    compare(DR_FP32, DR_RECOMPUTE, true, 1);
    compare(DR_FP32, DR_RECOMPUTE, false, 3);
    dr_cpu_bf16_body(DR_BF16_LANES);
    compare(DR_BF16, DR_KEEP_ACTIVATIONS, false, 1);
    compare(DR_BF16, DR_RECOMPUTE, false, 2);
    dr_cpu_bf16_body(DR_BF16_LIBRARY);
    for (int n = 1; n <= 4; n *= 2) compare(DR_BF16, DR_RECOMPUTE, false, n);
    compare(DR_BF16, DR_RECOMPUTE, true, 1); // frozen: two bytes a weight
    dr_cpu_bf16_body(DR_BF16_CHOSEN);
}

// Logits that oneDNN makes for more rows than there are, of a vocabulary wider than all layers.
static void test_library_logits(void **state) {
    (void)state;
    enum { V = 100000, D = 64, BLOCK = 128 };
    dr_backend *b = NULL;
    dr_pass_shape shape = {
        .T = 512, .n_out = 4 * D, .n_in = D, .V = V, .n_draws = 40, .H = 1, .G = 1, .d = D};
    assert_true(dr_bf16_memory(&shape) >= 64 * V * (int64_t)sizeof(float));
    shape.n_draws = 0;
    assert_true(dr_bf16_memory(&shape) < 64 * V * (int64_t)sizeof(float));
    check_ok(dr_backend_cpu_create(DR_BF16, 1, &b));
    dr_cpu_state *own = dr_cpu_state_of(b); // a processor that does not multiply bf16 has no library there
    if (!own->bf16) check_ok(dr_bf16_create(1, &own->bf16));
    assert_true(b->ops->head_memory(b, BLOCK, V, D) >=
                BLOCK * V * (int64_t)(2 * sizeof(float) + sizeof(bf16)));
    dr_backend_cpu_destroy(b);
}

// Under bf16 gate and up take two bytes less a value, in each layer and once for their gradient, which shares
// its place with that of queries, keys and values.
static void test_gate_and_up(void **state) {
    (void)state;
    enum { T = 64 };
    static const dr_precision precisions[] = {DR_FP32, DR_BF16};
    dr_lm_config config = policy_config();
    int64_t values = 2 * T * (int64_t)config.intermediate, kept[2], decoding[2];
    int64_t wide = T * (int64_t)(config.n_heads + 2 * config.n_kv_heads) * config.head_size;
    for (int i = 0; i < 2; i++) {
        dr_backend *b = NULL;
        dr_lm *outline = NULL;
        check_ok(dr_backend_cpu_create(precisions[i], 1, &b));
        check_ok(dr_lm_outline(b, &config, &outline));
        kept[i] = dr_lm_workspace_memory(outline, T, DR_KEEP_ACTIVATIONS);
        decoding[i] = dr_lm_decode_memory(outline, T);
        dr_lm_destroy(outline);
        dr_backend_cpu_destroy(b);
    }
    assert_true(values >= 2 * wide); // so that the gradient of gate and up is the larger one in both
    assert_int_equal(kept[0] - kept[1], 2 * values * (config.n_layers + 1));
    assert_int_equal(decoding[0] - decoding[1], 2 * values + 2 * values / 4);
}

static int64_t part(const dr_memory_plan *plan, const char *name) {
    for (int i = 0; i < DR_MEMORY_PARTS; i++)
        if (strcmp(plan->parts[i].name, name) == 0) return plan->parts[i].bytes;
    fail_msg("the plan has no %s", name);
    return 0;
}

static void test_parts(void **state) {
    (void)state;
    dr_backend *b = NULL;
    dr_lm *lm = NULL;
    dr_lm_config config = policy_config();
    check_ok(dr_backend_cpu_create(DR_FP32, 1, &b));
    check_ok(dr_lm_outline(b, &config, &lm));
    int64_t n = dr_lm_n_params(lm), sum = 0;
    dr_memory_plan kept = plan_of(b, DR_KEEP_ACTIVATIONS, false, 1),
                   again = plan_of(b, DR_RECOMPUTE, true, 1);
    dr_memory_plan third = plan_of(b, DR_KEEP_ACTIVATIONS, false, 3);
    assert_int_equal(part(&kept, "weights"), 4 * n);
    assert_int_equal(part(&kept, "weights in bf16"), 0);
    assert_int_equal(part(&kept, "gradient"), 4 * n);
    assert_int_equal(part(&kept, "moments"), 8 * n);
    assert_int_equal(part(&kept, "frozen policy"), 0);
    assert_int_equal(part(&again, "frozen policy"), 4 * n);
    assert_int_equal(part(&third, "weights"), 4 * n); // fp32: the products read them
    assert_int_equal(part(&third, "moments"), 8 * dr_shard_of(n, 0, 3).end);
    assert_true(part(&again, "activations") < part(&kept, "activations"));
    for (int i = 0; i < DR_MEMORY_PARTS; i++) sum += kept.parts[i].bytes;
    assert_int_equal(sum, kept.bytes);
    assert_int_equal(kept.host, 0);
    dr_lm_destroy(lm);
    dr_backend_cpu_destroy(b);
}

// In bf16 several learners share the fp32 weights out; a frozen policy stays whole.
static void test_shares(void **state) {
    (void)state;
    dr_backend *b = NULL;
    dr_lm *lm = NULL;
    dr_lm_config config = policy_config();
    check_ok(dr_backend_cpu_create(DR_BF16, 1, &b));
    check_ok(dr_lm_outline(b, &config, &lm));
    int64_t n = dr_lm_n_params(lm);
    for (int n_learners = 2; n_learners <= 8; n_learners *= 2) {
        dr_memory_plan plan = plan_of(b, DR_RECOMPUTE, true, n_learners);
        int64_t share = 4 * dr_shard_of(n, 0, n_learners).end, weights = part(&plan, "weights");
        assert_true(weights > share && weights < share + 2 * n); // what is on its way comes to it
        const int64_t beside = part(&plan, "frozen policy") - part(&plan, "weights in bf16");
        assert_true(beside > 0 && beside < n / 100); // the vectors
    }
    dr_lm_destroy(lm);
    dr_backend_cpu_destroy(b);
}

// ---- beside a backend whose memory is not the host's ----

static dr_backend *inner; // the CPU body, behind a backend that shows the host nothing
static double of_backend,
    most; // bytes of its memory; the most of the host's at any copy since `most` was set

static void look(void) {
    double now = in_use() - of_backend;
    most = now > most ? now : most;
}

static dr_status closed_memory_create(dr_backend *b, const char *label, size_t bytes, void **out_memory) {
    (void)b;
    double before = in_use();
    dr_status status = inner->ops->memory_create(inner, label, bytes, out_memory);
    of_backend += in_use() - before;
    return status;
}

static void closed_memory_destroy(dr_backend *b, void *memory) {
    (void)b;
    double before = in_use();
    inner->ops->memory_destroy(inner, memory);
    of_backend += in_use() - before;
}

static void closed_copy_in(dr_backend *b, void *to_backend, const void *from_host, size_t bytes) {
    (void)b;
    look();
    inner->ops->copy_in(inner, to_backend, from_host, bytes);
}

static void closed_copy_out(dr_backend *b, void *to_host, const void *from_backend, size_t bytes) {
    (void)b;
    look();
    inner->ops->copy_out(inner, to_host, from_backend, bytes);
}

static void *closed_host_view(dr_backend *b, void *memory) {
    (void)b, (void)memory;
    return NULL;
}

enum { ON_HOST = 3000000 }; // what the ops keep there

static int64_t closed_pass_memory(dr_backend *b, const dr_pass_shape *shape, int64_t *out_host) {
    (void)b;
    int64_t bytes = inner->ops->pass_memory(inner, shape, out_host);
    *out_host += ON_HOST;
    return bytes;
}

static dr_backend closed_backend(void) {
    static dr_backend_ops ops;
    ops = *inner->ops;
    ops.memory_create = closed_memory_create;
    ops.memory_destroy = closed_memory_destroy;
    ops.copy_in = closed_copy_in;
    ops.copy_out = closed_copy_out;
    ops.host_view = closed_host_view;
    ops.pass_memory = closed_pass_memory;
    dr_backend b = *inner;
    b.ops = &ops;
    return b;
}

// What the host took at most since `before`, in the copies between it and the backend.
static double since(double before) {
    double taken = most - before;
    most = 0;
    return taken;
}

static double now_on_host(void) {
    most = 0;
    return in_use() - of_backend;
}

// Loading, saving, a checkpoint and its return, with the copies that they make for the host.
static void test_host_copies(void **state) {
    (void)state;
#if defined(__SANITIZE_ADDRESS__)
    skip();
#endif
    const char *dir = check_scratch_dir();
    char *checkpoint = NULL;
    const dr_optimizer_settings settings = {0.9f, 0.95f, 1e-8f, 0.0f, 1.0f};
    const dr_lm_config config = policy_config();
    dr_checkpoint_info info = {.step = 1, .n_files = 1};
    dr_lm *lm = NULL, *again = NULL;
    dr_optimizer *optimizer = NULL;
    check_ok(dr_backend_cpu_create(DR_FP32, 1, &inner));
    dr_backend b = closed_backend();
    dr_memory_plan plan = plan_of(&b, DR_KEEP_ACTIVATIONS, false, 1);
    double planned = (double)part(&plan, "copy of weights on the host");
    check_ok(dr_lm_create(&b, &config, 3, &lm));
    check_ok(dr_optimizer_create(lm, &settings, NULL, &optimizer));
    check_ok(dr_checkpoint_dir(dir, 1, &checkpoint));
    double before = now_on_host();
    check_ok(dr_lm_save(lm, dir, DR_SAVE_FP32));
    double saved = since(before);
    check_ok(dr_lm_load(&b, dir, &again));
    double loaded = since(before);
    check_ok(dr_alloc(&info.files, "checkpoint files", 1, sizeof *info.files));
    check_ok(dr_checkpoint_write_part(lm, optimizer, checkpoint, 0, 1, &info.files[0]));
    double written = since(before);
    check_ok(dr_checkpoint_commit(&config, checkpoint, &info));
    check_ok(dr_checkpoint_load(lm, optimizer, checkpoint));
    double read = since(before);
    print_message("planned %.1f MB; save %.1f, load %.1f, checkpoint %.1f, its return %.1f MB\n",
                  planned * 1e-6, saved * 1e-6, loaded * 1e-6, written * 1e-6, read * 1e-6);
    const double taken[] = {saved, loaded, written, read}, slack = 4 << 20; // whole huge pages, HDF5's own
    for (size_t i = 0; i < sizeof taken / sizeof *taken; i++)
        assert_true(taken[i] > 0 && taken[i] <= planned + slack);
    assert_true(saved >= 0.75 * planned);
    assert_int_equal(part(&plan, "scratch of operations on the host"), ON_HOST);
    assert_int_equal(plan.host, part(&plan, "copy of weights on the host") +
                                    part(&plan, "retrievals on the host") + ON_HOST);
    dr_checkpoint_info_reset(&info);
    dr_free(checkpoint);
    dr_optimizer_destroy(optimizer);
    dr_lm_destroy(again);
    dr_lm_destroy(lm);
    dr_backend_cpu_destroy(inner);
}

// Retrievals of a rollout with requests of long histories, all of which are left out.
static void test_retrievals(void **state) {
    (void)state;
#if defined(__SANITIZE_ADDRESS__)
    skip();
#endif
    enum { N = 300, LONGEST = 200, K = 4 };
    static int32_t history[LONGEST];
    static dr_trm_query queries[N];
    static dr_hit best[N * K];
    dr_trm *own = NULL;
    dr_trm_retrieval *retrievals[2] = {NULL, NULL};
    const dr_hit *hits = NULL;
    int64_t host = 0, shared = 0;
    check_ok(tiny_trm(backend, &data, &own));
    for (int i = 0; i < LONGEST; i++) history[i] = 1 + i % 9;
    for (int i = 0; i < N; i++) queries[i] = (dr_trm_query){.history = history, .n_history = LONGEST};
    dr_trm_retrieval_memory(own, N, K, LONGEST, &host, &shared);
    check_ok(dr_trm_top_k(trm, queries, N, K, true, best)); // the backend has its scratch
    double before = in_use();
    for (int i = 0; i < 2; i++) check_ok(dr_trm_retrieval_create(own, N, K, &retrievals[i]));
    for (int i = 0; i < 2; i++) check_ok(dr_trm_retrieval_begin(retrievals[i], queries, NULL, N, true));
    for (int i = 0; i < 2; i++) check_ok(dr_trm_retrieval_finish(retrievals[i], 10, &hits));
    double taken = in_use() - before, planned = (double)(2 * host + shared);
    print_message("planned %.0f bytes, taken %.0f\n", planned, taken);
    assert_true(taken <= planned + 4096 && taken >= 0.75 * planned); // 4096: what malloc adds
    for (int i = 0; i < 2; i++) dr_trm_retrieval_destroy(retrievals[i]);
    dr_trm_destroy(own);
    // a plan has them where they live
    dr_backend *b = NULL;
    check_ok(dr_backend_cpu_create(DR_FP32, 1, &b));
    dr_memory_plan open = plan_of(b, DR_KEEP_ACTIVATIONS, false, 1);
    inner = b;
    dr_backend behind = closed_backend();
    dr_memory_plan closed = plan_of(&behind, DR_KEEP_ACTIVATIONS, false, 1);
    assert_int_equal(part(&open, "retrievals on the host"), 0);
    assert_int_equal(part(&closed, "retrievals") + part(&closed, "retrievals on the host"),
                     part(&open, "retrievals"));
    assert_true(part(&closed, "retrievals") > 0 && part(&closed, "retrievals on the host") > 0);
    dr_backend_cpu_destroy(b);
}

// A retrieval model's folder says what loading it takes, and what its retrievals will.
static void test_retrieval_outline(void **state) {
    (void)state;
#if defined(__SANITIZE_ADDRESS__)
    skip();
#endif
    const char *dir = check_scratch_dir();
    const int32_t history[] = {1, 2, 3};
    const dr_trm_query query = {.history = history, .n_history = 3};
    dr_hit best[1];
    dr_backend *b = NULL;
    dr_trm *outline = NULL, *loaded = NULL;
    dr_trm_memory planned, behind;
    int64_t sizes[4];
    check_ok(dr_trm_save(trm, dir));
    check_ok(dr_backend_cpu_create(DR_FP32, 1, &b));
    check_ok(dr_trm_outline_of(b, dir, "", &outline, &planned));
    dr_trm_retrieval_memory(outline, 30, 4, 9, &sizes[0], &sizes[1]);
    assert_int_equal(dr_trm_config_of(outline)->n_items, data.n_items);
    dr_trm_destroy(outline);
    double before = in_use();
    check_ok(dr_trm_load(b, dir, &loaded));
    check_ok(dr_trm_top_k(loaded, &query, 1, 1, true, best));
    double taken = in_use() - before;
    dr_trm_retrieval_memory(loaded, 30, 4, 9, &sizes[2], &sizes[3]);
    assert_memory_equal(&sizes[0], &sizes[2], 2 * sizeof sizes[0]);
    print_message("planned %lld bytes, taken %.0f\n", (long long)planned.backend, taken);
    assert_int_equal(planned.host, 0);
    assert_true(taken <= (double)planned.backend && taken >= 0.5 * (double)planned.backend);
    inner = b; // apart from the host's memory: each byte in one of the two
    dr_backend closed = closed_backend();
    check_ok(dr_trm_outline_of(&closed, dir, "", &outline, &behind));
    assert_true(behind.host > 0 && behind.backend < planned.backend);
    assert_true(behind.host + behind.backend >= planned.backend);
    dr_trm_destroy(outline);
    dr_trm_destroy(loaded);
    dr_backend_cpu_destroy(b);
}

// What a warm-up takes is a part of what a worker does; a retrieval model to come and a reserve are parts.
static void test_needs(void **state) {
    (void)state;
    dr_backend *b = NULL;
    dr_lm *outline = NULL;
    dr_memory_plan whole, more, warm;
    dr_lm_config config = policy_config();
    const dr_trm_memory retrieval = {.backend = 5000000, .host = 7000000};
    check_ok(dr_backend_cpu_create(DR_FP32, 1, &b));
    check_ok(dr_lm_outline(b, &config, &outline));
    dr_rollout_parts parts = parts_of(outline);
    dr_memory_needs needs = {.rollout = &parts, .pack_tokens = PACK, .n_samples = SAMPLES, .n_learners = 1};
    check_ok(dr_memory_plan_make(&needs, &whole));
    needs.retrieval = &retrieval;
    needs.reserve = 3000000;
    check_ok(dr_memory_plan_make(&needs, &more));
    assert_int_equal(more.bytes - whole.bytes, 8000000);
    assert_int_equal(more.host - whole.host, 7000000);
    assert_int_equal(part(&more, "retrieval model"), 5000000);
    assert_int_equal(part(&more, "reserve for the device's libraries"), 3000000);
    needs.is_warm_up = true;
    check_ok(dr_memory_plan_make(&needs, &warm));
    assert_true(warm.bytes < more.bytes);
    assert_int_equal(part(&warm, "keys and values") + part(&warm, "decoding") + part(&warm, "retrievals"), 0);
    assert_int_equal(part(&warm, "gradient"), part(&more, "gradient"));
    assert_non_null(strstr(warm.advice, "Smaller pack-tokens"));
    dr_lm_destroy(outline);
    dr_backend_cpu_destroy(b);
}

static void test_refusal(void **state) {
    (void)state;
    dr_memory_plan plan = {.parts = {{.name = "weights", .bytes = 70000000},
                                     {.name = "gradient", .bytes = 30000000},
                                     {.name = "copy", .on_host = true}},
                           .bytes = 100000000,
                           .advice = "Smaller batches take less"};
    for (int i = 3; i < DR_MEMORY_PARTS; i++) plan.parts[i].name = "nothing";
    check_ok(dr_memory_plan_check(&plan, &(dr_memory_place){.free = 100000000, .n_workers = 1}));
    check_ok(dr_memory_plan_check(&plan, &(dr_memory_place){.free = 400000000, .n_workers = 4}));
    dr_log_set_level(DR_LOG_ERROR + 1);
    dr_memory_place place = {.free = 99999999, .total = 500000000, .n_workers = 1, .n_on_host = 1};
    check_error(dr_memory_plan_check(&plan, &place), DR_ERR_MEMORY,
                "weights 70.0, gradient 30.0, in all 100.0 MB; free are 100.0 of 500.0 MB. Smaller batches "
                "take less");
    place.free = 399000000;
    place.n_workers = 4;
    check_error(dr_memory_plan_check(&plan, &place), DR_ERR_MEMORY,
                "in all 100.0 MB, of 4 workers here 400.0 MB; free are 399.0 of 500.0 MB");
    // of the device there is enough, of the host there is not
    plan.host = plan.parts[2].bytes = 60000000;
    place = (dr_memory_place){
        .free = 400000000, .total = 500000000, .n_workers = 2, .host_free = 240000000, .n_on_host = 4};
    check_ok(dr_memory_plan_check(&plan, &place));
    place.host_free--;
    check_error(
        dr_memory_plan_check(&plan, &place), DR_ERR_MEMORY,
        "of 2 workers here 200.0 MB; free are 400.0 of 500.0 MB; copy 60.0, in all 60.0 MB, of 4 workers "
        "here 240.0 MB; free are 240.0 MB");
    dr_log_set_level(DR_LOG_INFO);
}

// ---- what is free ----

static void put(const char *root, const char *folder, const char *name, const char *text) {
    char *dir = NULL;
    check_ok(dr_path_join(&dir, root, folder));
    check_ok(dr_dir_make(dir));
    check_write_file(check_path(dir, name), text, strlen(text));
    dr_free(dir);
}

static const char *machine(const char *groups) {
    const char *root = check_scratch_dir();
    put(root, "proc", "meminfo", "MemTotal:  8000 kB\nMemFree:  10 kB\nMemAvailable:   5000 kB\n");
    if (groups) put(root, "proc/self", "cgroup", groups);
    return root;
}

static void check_memory(const char *root, int64_t want_free, int64_t want_total) {
    int64_t free = -1, total = -1;
    check_ok(dr_host_memory_under(root, &free, &total));
    assert_int_equal(free, want_free);
    assert_int_equal(total, want_total);
}

static void test_free_without_limits(void **state) {
    (void)state;
    check_memory(machine(NULL), 5000 * 1024, 8000 * 1024);
    check_memory(machine("0::/not/mounted/here\n4:memory:/nor/here\nnonsense\n"), 5000 * 1024, 8000 * 1024);
    const char *root = machine("0::/a\n");
    put(root, "sys/fs/cgroup/a", "memory.max", "max\n");
    put(root, "sys/fs/cgroup/a", "memory.current", "1000\n");
    check_memory(root, 5000 * 1024, 8000 * 1024);
}

static void test_free_in_groups(void **state) {
    (void)state;
    const char *root = machine("0::/a/b\n");
    put(root, "sys/fs/cgroup/a/b", "memory.max", "3000000\n");
    put(root, "sys/fs/cgroup/a/b", "memory.current", "2000000\n");
    put(root, "sys/fs/cgroup/a/b", "memory.stat", "anon 1\ninactive_file 500000\nfile 9\n");
    check_memory(root, 1500000, 3000000);
    put(root, "sys/fs/cgroup/a", "memory.max", "4000000\n"); // above it, and with less left
    put(root, "sys/fs/cgroup/a", "memory.current", "3900000\n");
    check_memory(root, 100000, 3000000);
    put(root, "sys/fs/cgroup/a", "memory.current", "4100000\n"); // over its limit
    check_memory(root, 0, 3000000);
    root = machine("9:name=systemd:/x\n4:cpu,memory:/job\n");
    put(root, "sys/fs/cgroup/memory/job", "memory.limit_in_bytes", "2000000\n");
    put(root, "sys/fs/cgroup/memory/job", "memory.usage_in_bytes", "700000\n");
    put(root, "sys/fs/cgroup/memory/job", "memory.stat", "inactive_file 1\ntotal_inactive_file 200000\n");
    put(root, "sys/fs/cgroup/memory", "memory.limit_in_bytes", "9223372036854771712\n");
    put(root, "sys/fs/cgroup/memory", "memory.usage_in_bytes", "900000\n");
    check_memory(root, 1500000, 2000000);
}

static void test_cache(void **state) {
    static const struct {
        const char *text;
        int64_t bytes;
    } cases[] = {{"32768K\n", 32 << 20}, {"0K\n", 0}, {"32768\n", 0}, {"12M\n", 0}, {"-4K\n", 0}, {"", 0}};
    (void)state;
    assert_int_equal(dr_host_cache_under(check_scratch_dir()), 0);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *root = check_scratch_dir();
        put(root, "sys/devices/system/cpu/cpu0/cache/index3", "size", cases[i].text);
        assert_int_equal(dr_host_cache_under(root), cases[i].bytes);
    }
}

static void test_free_here(void **state) {
    (void)state;
    int64_t free = -1, total = -1;
    dr_log_set_level(DR_LOG_ERROR + 1);
    check_error(dr_host_memory_under(check_scratch_dir(), &free, &total), DR_ERR_IO, "proc/meminfo");
    const char *root = check_scratch_dir();
    put(root, "proc", "meminfo", "MemTotal:  8000 kB\n");
    check_error(dr_host_memory_under(root, &free, &total), DR_ERR_FORMAT, "MemAvailable");
    dr_log_set_level(DR_LOG_INFO);
    assert_int_equal(free, -1);
    check_ok(backend->ops->memory_free(backend, &free, &total));
    assert_true(free >= 0 && total > 0 && free <= total);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_taken),
        cmocka_unit_test(test_parts),
        cmocka_unit_test(test_gate_and_up),
        cmocka_unit_test(test_library_logits),
        cmocka_unit_test(test_shares),
        cmocka_unit_test(test_host_copies),
        cmocka_unit_test(test_retrievals),
        cmocka_unit_test(test_refusal),
        cmocka_unit_test(test_free_without_limits),
        cmocka_unit_test(test_free_in_groups),
        cmocka_unit_test(test_cache),
        cmocka_unit_test(test_free_here),
        cmocka_unit_test(test_retrieval_outline),
        cmocka_unit_test(test_needs),
    };
    return cmocka_run_group_tests(tests, tiny_rollout_setup, tiny_rollout_teardown);
}
