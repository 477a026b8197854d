// A bf16 policy whose learners share its fp32 weights out, on 2, 3 and 4 ranks: the bits of one that keeps
// them whole, when it is loaded, after each step, from a checkpoint and in the folder written from that.
// labels: cpu ranks
#include "tests/check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/alloc.h"
#include "core/base/file.h"
#include "core/base/log.h"
#include "core/base/rng.h"
#include "core/compute/cpu_internal.h"
#include "core/learn/checkpoint.h"
#include "core/model/lm_shard.h"
#include "core/model/optimizer.h"
#include "mpi/world.h"
#include "tests/guarded_backend.h"
#include "tests/mpi_launch.h"

enum { MOST = 4, LENGTH = 20, VOCAB = 301 };
static dr_world world;
static dr_collective *group;
static const dr_optimizer_settings settings = {0.9f, 0.95f, 1e-8f, 0.1f, 1.0f};

// ---- models in a folder that all ranks see ----

typedef enum kind { TIED, WITH_HEAD, SMALL, N_KINDS } kind; // small: the last shards are empty

static dr_lm_config config_of(kind which) {
    dr_lm_config config;
    check_ok(dr_lm_preset("tiny", VOCAB, &config));
    if (which == WITH_HEAD) {
        snprintf(config.architecture, sizeof config.architecture, "Qwen3ForCausalLM");
        config.tied_head = config.qkv_bias = false;
        config.qk_norm = true;
    }
    if (which == SMALL) {
        config.vocab = 41;
        config.hidden = 16;
        config.n_heads = 2;
        config.n_kv_heads = 1;
        config.head_size = 8;
        config.intermediate = 24;
    }
    return config;
}

static void meet(void) {
    double one = 1;
    check_ok(group->ops->allreduce_sum_double(group, &one, 1));
}

// Rank 0's folder, of `which` in values that no bf16 holds, norms and biases included.
static void shared_dir(char out[300]) {
    if (group->rank == 0) snprintf(out, 300, "%s", check_scratch_dir());
    check_ok(group->ops->broadcast(group, out, 300, 0));
}

static void write_model(kind which, char dir[300]) {
    shared_dir(dir);
    if (group->rank == 0) {
        dr_backend *b = NULL;
        dr_lm *lm = NULL;
        const dr_lm_config config = config_of(which);
        check_ok(dr_backend_cpu_create(DR_FP32, 1, &b));
        check_ok(dr_lm_create(b, &config, 3, &lm));
        dr_rng rng = dr_rng_make(7, 1);
        for (int64_t i = 0; i < dr_lm_n_params(lm); i++)
            dr_lm_params(lm)[i] += 0.05f * (float)dr_rng_normal(&rng);
        check_ok(dr_lm_save(lm, dir, DR_SAVE_FP32));
        dr_lm_destroy(lm);
        dr_backend_cpu_destroy(b);
    }
    meet();
}

// ---- what a model computes ----

typedef struct results {
    int64_t n_logits, n_params;
    float *logits, *gradient, logprob[LENGTH], entropy[LENGTH];
} results;

static void results_free(results *r) {
    dr_free(r->logits);
    dr_free(r->gradient);
}

static float *fetch(dr_backend *b, const float *memory, int64_t n) {
    float *values = NULL;
    check_ok(dr_alloc(&values, "test array", n, sizeof *values));
    b->ops->copy_out(b, values, memory, (size_t)n * sizeof *values);
    return values;
}

// Logits of the cache and the gradient of a packed pass.
static results compute(dr_lm *lm) {
    dr_backend *b = dr_lm_backend(lm);
    results r = {.n_params = dr_lm_n_params(lm), .n_logits = dr_lm_config_of(lm)->vocab};
    int32_t ids[LENGTH + 1], rows[LENGTH], bounds[] = {0, LENGTH}, seq = 0;
    float dlogprob[LENGTH], *logits = NULL, *gradient = NULL;
    dr_lm_workspace *workspace = NULL;
    dr_kv_cache *kv = NULL;
    for (int i = 0; i <= LENGTH; i++) ids[i] = (i * i * 7 + 3) % dr_lm_config_of(lm)->vocab;
    for (int i = 0; i < LENGTH; i++) {
        rows[i] = i;
        dlogprob[i] = 1.0f / (float)(i + 3);
    }
    const dr_pack pack = {LENGTH, ids, bounds, 1, LENGTH, rows, ids + 1, NULL, NULL};
    check_ok(dr_memory_create(b, &logits, "logits", r.n_logits, sizeof *logits));
    check_ok(dr_memory_create(b, &gradient, "gradient", r.n_params, sizeof *gradient));
    check_ok(dr_lm_workspace_create(lm, LENGTH, DR_KEEP_ACTIVATIONS, &workspace));
    check_ok(dr_lm_forward(lm, workspace, &pack, 1.0f, r.logprob, r.entropy));
    check_ok(dr_lm_backward(lm, workspace, &pack, 1.0f, dlogprob, gradient, NULL));
    check_ok(dr_kv_create(lm, 4, 1, &kv));
    check_ok(dr_kv_open(kv, &seq));
    const dr_lm_chunk chunk = {seq, LENGTH, ids, true};
    check_ok(dr_lm_decode(lm, kv, &chunk, 1, logits));
    r.logits = fetch(b, logits, r.n_logits);
    r.gradient = fetch(b, gradient, r.n_params);
    dr_kv_destroy(kv);
    dr_lm_workspace_destroy(workspace);
    b->ops->memory_destroy(b, logits);
    b->ops->memory_destroy(b, gradient);
    return r;
}

static void check_same_results(dr_lm *got, dr_lm *want) {
    results a = compute(got), b = compute(want);
    check_same_bits("logits", a.logits, b.logits, b.n_logits);
    check_same_bits("log-probabilities", a.logprob, b.logprob, LENGTH);
    check_same_bits("entropies", a.entropy, b.entropy, LENGTH);
    check_same_bits("gradient", a.gradient, b.gradient, b.n_params);
    results_free(&a);
    results_free(&b);
}

static void check_same_master(dr_lm *got, dr_lm *want) {
    int64_t n = dr_lm_n_params(want);
    dr_shard own = dr_shard_of(n, group->rank, group->size);
    float *values = fetch(dr_lm_backend(got), dr_lm_master(got, own), own.end - own.begin),
          *all = fetch(dr_lm_backend(want), dr_lm_params(want), n);
    check_same_bits("fp32 weights of the shard", values, all + own.begin, own.end - own.begin);
    dr_free(values);
    dr_free(all);
}

// ---- steps ----

// The gradient of a rank, or with rank < 0 the sum of all.
static void fill_gradient(dr_backend *b, float *memory, int64_t n, int step, int rank) {
    float *values = NULL, *sum = NULL;
    check_ok(dr_alloc(&values, "test array", n, sizeof *values));
    check_ok(dr_alloc(&sum, "test array", n, sizeof *sum));
    for (int r = rank < 0 ? 0 : rank; r < (rank < 0 ? group->size : rank + 1); r++) {
        dr_rng rng = dr_rng_make((uint64_t)step, (uint64_t)r);
        for (int64_t i = 0; i < n; i++) values[i] = (float)dr_rng_normal(&rng);
        for (int64_t i = 0; i < n; i++) sum[i] = r == 0 || rank >= 0 ? values[i] : sum[i] + values[i];
    }
    b->ops->copy_in(b, memory, sum, (size_t)n * sizeof *sum);
    dr_free(values);
    dr_free(sum);
}

static void step_both(dr_lm *shard, dr_optimizer *shared, dr_lm *whole, dr_optimizer *alone, int step) {
    dr_backend *b = dr_lm_backend(shard), *w = dr_lm_backend(whole);
    int64_t n = dr_lm_n_params(whole);
    float *own = NULL, *sum = NULL;
    double norm[2] = {-1, -2};
    check_ok(dr_memory_create(b, &own, "gradient", n, sizeof *own));
    check_ok(dr_memory_create(w, &sum, "gradient", n, sizeof *sum));
    fill_gradient(b, own, n, step, group->rank);
    fill_gradient(w, sum, n, step, -1);
    check_ok(dr_optimizer_step(alone, sum, 0.01f, &norm[0]));
    check_ok(dr_optimizer_reduce(shared, own));
    uint64_t version = dr_lm_weight_version(shard);
    check_ok(dr_optimizer_step(shared, own, 0.01f, &norm[1]));
    assert_true(dr_lm_weight_version(shard) > version);
    assert_memory_equal(&norm[0], &norm[1], sizeof *norm);
    b->ops->memory_destroy(b, own);
    w->ops->memory_destroy(w, sum);
}

// A checkpoint of the shards: loaded whole, loaded as each learner of another number, and as a folder.
static void check_checkpoint(dr_lm *shard, dr_optimizer *optimizer, dr_lm *whole, const char *model) {
    char run[300], *dir = NULL;
    dr_checkpoint_file own, files[MOST];
    const dr_lm_config *config = dr_lm_config_of(whole);
    dr_backend *b = dr_lm_backend(whole);
    dr_lm *again = NULL;
    shared_dir(run);
    check_ok(dr_checkpoint_dir(run, 5, &dir));
    check_ok(dr_checkpoint_write_part(shard, optimizer, dir, group->rank, group->size, &own));
    memset(files, 0, sizeof files);
    files[group->rank] = own;
    for (int r = 0; r < group->size; r++) check_ok(group->ops->broadcast(group, &files[r], sizeof own, r));
    dr_checkpoint_info info = {.step = 5, .n_files = group->size, .files = files};
    if (group->rank == 0) check_ok(dr_checkpoint_commit(config, dir, &info));
    meet();
    check_ok(dr_lm_load(b, model, &again));
    check_ok(dr_checkpoint_load(again, NULL, dir));
    check_same_bits("loaded whole", dr_lm_params(again), dr_lm_params(whole), dr_lm_n_params(whole));
    dr_lm_destroy(again);
    for (int size = 2; size <= 5; size += 3) {
        int rank = group->rank % size;
        dr_collective place = {.rank = rank, .size = size}; // nothing is summed up here
        dr_optimizer *other = NULL;
        check_ok(dr_lm_load_shard(b, model, rank, size, &again));
        check_ok(dr_optimizer_create(again, &settings, &place, &other));
        check_ok(dr_checkpoint_load(again, other, dir));
        dr_shard part = dr_shard_of(dr_lm_n_params(again), rank, size);
        check_same_bits("loaded as a shard", dr_lm_master(again, part), dr_lm_params(whole) + part.begin,
                        part.end - part.begin);
        check_same_results(again, whole);
        dr_optimizer_destroy(other);
        dr_lm_destroy(again);
    }
    const char *saved = check_scratch_dir(), *exported = check_scratch_dir();
    size_t lengths[2] = {0, 0};
    check_ok(dr_lm_save(whole, saved, DR_SAVE_FP32));
    check_ok(dr_checkpoint_export(shard, dir, exported));
    char *bytes[] = {check_read_file(check_path(saved, "model.safetensors"), &lengths[0]),
                     check_read_file(check_path(exported, "model.safetensors"), &lengths[1])};
    assert_int_equal(lengths[0], lengths[1]);
    assert_memory_equal(bytes[0], bytes[1], lengths[0]);
    free(bytes[0]);
    free(bytes[1]);
    dr_free(dir);
    meet(); // rank 0 has the folder
}

// b: of the shard; whole models are on the processor's plain body.
static void check_steps(dr_backend *b, kind which, bool with_checkpoint) {
    char dir[300];
    dr_backend *plain = NULL;
    dr_lm *shard = NULL, *whole = NULL;
    dr_optimizer *shared = NULL, *alone = NULL;
    write_model(which, dir);
    check_ok(dr_backend_cpu_create(DR_BF16, 1, &plain));
    check_ok(dr_lm_load(plain, dir, &whole));
    check_ok(dr_lm_load_shard(b, dir, group->rank, group->size, &shard));
    assert_null(dr_lm_params(shard));
    check_same_results(shard, whole);
    check_same_master(shard, whole);
    check_ok(dr_optimizer_create(whole, &settings, NULL, &alone));
    check_ok(dr_optimizer_create(shard, &settings, group, &shared));
    for (int step = 0; step < 3; step++) {
        step_both(shard, shared, whole, alone, step);
        check_same_master(shard, whole);
        check_same_results(shard, whole);
    }
    if (with_checkpoint) check_checkpoint(shard, shared, whole, dir);
    dr_optimizer_destroy(alone);
    dr_optimizer_destroy(shared);
    dr_lm_destroy(whole);
    dr_lm_destroy(shard);
    dr_backend_cpu_destroy(plain);
    meet();
}

static void test_steps(void **state) {
    (void)state;
    dr_backend *b = NULL;
    dr_cpu_bf16_body(DR_BF16_LIBRARY);
    check_ok(dr_backend_cpu_create(DR_BF16, 1, &b));
    for (kind which = TIED; which < N_KINDS; which++) check_steps(b, which, true);
    dr_backend_cpu_destroy(b);
    dr_cpu_bf16_body(DR_BF16_CHOSEN);
}

static void test_steps_in_lanes(void **state) {
    (void)state;
    dr_backend *b = NULL;
    dr_cpu_bf16_body(DR_BF16_LANES);
    check_ok(dr_backend_cpu_create(DR_BF16, 2, &b));
    check_steps(b, WITH_HEAD, false);
    dr_backend_cpu_destroy(b);
    dr_cpu_bf16_body(DR_BF16_CHOSEN);
}

// Where the host cannot touch the backend's memory.
static void test_steps_behind_a_guard(void **state) {
    (void)state;
    dr_backend *inner = NULL;
    check_ok(dr_backend_cpu_create(DR_BF16, 1, &inner));
    dr_backend guarded = guarded_backend(inner);
    check_steps(&guarded, TIED, false);
    guarded_backend_close();
    dr_backend_cpu_destroy(inner);
}

// ---- what is not there ----

static void test_refused(void **state) {
    (void)state;
    char dir[300];
    dr_backend *b = NULL, *plain = NULL;
    dr_lm *shard = NULL, *whole = NULL;
    dr_optimizer *optimizer = NULL;
    dr_shard parts[MOST + 1];
    const float value = 1;
    write_model(TIED, dir);
    check_ok(dr_backend_cpu_create(DR_BF16, 1, &b));
    check_ok(dr_backend_cpu_create(DR_FP32, 1, &plain));
    check_ok(dr_lm_load_shard(b, dir, group->rank, group->size, &shard));
    int64_t n = dr_lm_n_params(shard);
    dr_collective other = *group, alone = {.size = 1};
    other.size++;
    dr_log_set_level(DR_LOG_ERROR + 1);
    check_error(dr_lm_share(shard, &other, parts), DR_ERR_ARGUMENT, "shares weights that were loaded as");
    check_error(dr_optimizer_create(shard, &settings, &alone, &optimizer), DR_ERR_UNSUPPORTED,
                "fp32 weights");
    check_error(dr_optimizer_create(shard, &settings, NULL, &optimizer), DR_ERR_UNSUPPORTED, "fp32 weights");
    check_error(dr_lm_save(shard, check_scratch_dir(), DR_SAVE_FP32), DR_ERR_UNSUPPORTED, "learner's share");
    check_error(dr_lm_start_copying(shard, 1), DR_ERR_UNSUPPORTED, "in shards");
    check_error(dr_lm_put(shard, n, 1, &value), DR_ERR_RANGE, "parameters");
    dr_log_set_level(DR_LOG_INFO);
    assert_null(dr_lm_master(shard, (dr_shard){0, n}));
    dr_lm_destroy(shard);
    // in fp32, and alone, nothing is shared out
    check_ok(dr_lm_load_shard(plain, dir, group->rank, group->size, &whole));
    assert_non_null(dr_lm_params(whole));
    dr_lm_destroy(whole);
    check_ok(dr_lm_load_shard(b, dir, 0, 1, &whole));
    assert_non_null(dr_lm_params(whole));
    dr_lm_destroy(whole);
    dr_backend_cpu_destroy(b);
    dr_backend_cpu_destroy(plain);
    meet();
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_steps),
        cmocka_unit_test(test_steps_in_lanes),
        cmocka_unit_test(test_steps_behind_a_guard),
        cmocka_unit_test(test_refused),
    };
    static const int processes[MOST] = {0, 1, 2, 3};
    if (!dr_world_is_launched()) return mpi_launch(argv[0], MOST);
    check_ok(dr_world_init(&argc, &argv, 60, &world));
    check_ok(dr_collective_mpi_create(processes, world.size, 60.0, &group));
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    if (failed) dr_world_abort(1);
    group->ops->destroy(group);
    dr_world_finalize(60);
    return 0;
}
