// Checkpoints of a tiny learner whose state is a function of the step.
#ifndef DR_TESTS_TINY_CHECKPOINT_H
#define DR_TESTS_TINY_CHECKPOINT_H

#include "tests/check.h"

#include <stdbool.h>
#include <stdio.h>

#include "core/base/file.h"
#include "core/base/log.h"
#include "core/base/rng.h"
#include "core/learn/checkpoint.h"

static dr_backend *backend;

static inline int setup(void **state) {
    (void)state;
    return dr_backend_cpu_create(DR_FP32, 1, &backend) == DR_OK ? 0 : -1;
}

static inline int teardown(void **state) {
    (void)state;
    dr_backend_cpu_destroy(backend);
    return 0;
}

static inline void quiet(void) {
    dr_log_set_level(DR_LOG_ERROR + 1);
}

static inline int loud(void **state) {
    (void)state;
    dr_log_set_level(DR_LOG_INFO);
    return 0;
}

// ---- a small model with moments ----

typedef struct learner_state {
    dr_lm *lm;
    dr_optimizer *optimizer;
    int64_t n;
    dr_shard shard;
} learner_state;

static inline dr_lm_config small_config(void) {
    dr_lm_config config;
    check_ok(dr_lm_preset("tiny", 61, &config));
    config.hidden = 16;
    config.n_heads = 2;
    config.n_kv_heads = 1;
    config.head_size = 8;
    config.intermediate = 24;
    return config;
}

// Learner `rank` of `size`.
static inline learner_state state_make_part(uint64_t seed, int rank, int size) {
    learner_state s = {0};
    dr_collective place = {.rank = rank, .size = size}; // nothing is summed up here
    dr_optimizer_settings settings = {0.9f, 0.95f, 1e-8f, 0.1f, 1.0f};
    dr_lm_config config = small_config();
    check_ok(dr_lm_create(backend, &config, seed, &s.lm));
    check_ok(dr_optimizer_create(s.lm, &settings, &place, &s.optimizer));
    s.n = dr_lm_n_params(s.lm);
    s.shard = dr_optimizer_shard(s.optimizer);
    return s;
}

static inline learner_state state_make(uint64_t seed) {
    return state_make_part(seed, 0, 1);
}

static inline void state_free(learner_state *s) {
    dr_optimizer_destroy(s->optimizer);
    dr_lm_destroy(s->lm);
}

// Other weights and moments of every tensor, a function of `step`.
static inline void state_advance(learner_state *s, int64_t step) {
    dr_rng rng = dr_rng_make(61, (uint64_t)step);
    for (int64_t i = 0; i < s->n; i++) {
        dr_lm_params(s->lm)[i] = (float)dr_rng_normal(&rng);
        float first = (float)dr_rng_normal(&rng) * 1e-20f;
        float second = (float)dr_rng_normal(&rng) * 1e-41f; // not a normal number
        if (i < s->shard.begin || i >= s->shard.end) continue;
        dr_optimizer_first(s->optimizer)[i - s->shard.begin] = first;
        dr_optimizer_second(s->optimizer)[i - s->shard.begin] = second;
    }
    dr_optimizer_set_updates(s->optimizer, 10 * step, 3 * step);
    check_ok(dr_lm_weights_changed(s->lm));
}

static inline void check_same_state(const char *name, const learner_state *got, int64_t step) {
    learner_state want = state_make(1);
    state_advance(&want, step);
    check_same_bits(name, dr_lm_params(got->lm), dr_lm_params(want.lm), want.n);
    int64_t begin = got->shard.begin, own = got->shard.end - begin;
    check_same_bits(name, dr_optimizer_first(got->optimizer), dr_optimizer_first(want.optimizer) + begin,
                    own);
    check_same_bits(name, dr_optimizer_second(got->optimizer), dr_optimizer_second(want.optimizer) + begin,
                    own);
    assert_int_equal(dr_optimizer_updates(got->optimizer), 10 * step);
    assert_int_equal(dr_optimizer_age(got->optimizer), 3 * step);
    state_free(&want);
}

static inline char *dir_of(const char *run, int64_t step) {
    char *dir = NULL;
    check_ok(dr_checkpoint_dir(run, step, &dir));
    return dir;
}

// The state of `step` by n_parts learners; the status of whatever fails first.
static inline dr_status save(const char *run, int64_t step, int32_t n_parts) {
    dr_checkpoint_file files[4];
    dr_checkpoint_info info = {.step = step, .updates = 10 * step, .n_files = n_parts, .files = files};
    dr_lm_config config = small_config();
    char *dir = dir_of(run, step);
    dr_status status = DR_OK;
    snprintf(info.config_hash, sizeof info.config_hash, "hash-%d", (int)step);
    for (int32_t part = n_parts - 1; part >= 0 && status == DR_OK; part--) { // in any order
        learner_state s = state_make_part(1, part, n_parts);
        state_advance(&s, step);
        status = dr_checkpoint_write_part(s.lm, s.optimizer, dir, part, n_parts, &files[part]);
        state_free(&s);
    }
    if (status == DR_OK) status = dr_checkpoint_commit(&config, dir, &info);
    dr_free(dir);
    return status;
}

static inline void save_ok(const char *run, int64_t step, int32_t n_parts) {
    check_ok(save(run, step, n_parts));
}

static inline void check_found(const char *run, int64_t want) {
    int64_t step = -77;
    check_ok(dr_checkpoint_find(run, &step));
    if (step != want) fail_msg("found step %lld, expected %lld", (long long)step, (long long)want);
}

// Learner `rank` of `size` loads it, whoever wrote it.
static inline void check_loads_as(const char *run, int64_t step, int rank, int size) {
    learner_state fresh = state_make_part(9, rank, size);
    char *dir = dir_of(run, step);
    uint64_t version = dr_lm_weight_version(fresh.lm);
    check_ok(dr_checkpoint_load(fresh.lm, fresh.optimizer, dir));
    check_same_state("loaded", &fresh, step);
    assert_true(dr_lm_weight_version(fresh.lm) > version);
    state_free(&fresh);
    dr_free(dir);
}

static inline void check_loads(const char *run, int64_t step) {
    check_loads_as(run, step, 0, 1);
}

static inline char *file_of(const char *run, int64_t step, const char *name) {
    char *dir = dir_of(run, step), *path = NULL;
    check_ok(dr_path_join(&path, dir, name));
    dr_free(dir);
    return path;
}

static inline bool has_file(const char *run, int64_t step, const char *name) {
    char *path = file_of(run, step, name);
    bool there = dr_file_exists(path);
    dr_free(path);
    return there;
}

#define checkpoint_test(function) cmocka_unit_test_teardown(function, loud)

#endif
