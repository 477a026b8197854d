// The learners' sum of gradients begun during the backward pass, on 2, 3 and 4 ranks with unequal numbers of
// micro-batches: the bits of the sum made afterwards, also where the host cannot touch the backend's memory.
// labels: cpu ranks
#include "tests/check.h"

#include <mpi.h>
#include <string.h>

#include "core/base/rng.h"
#include "core/learn/learner.h"
#include "core/model/optimizer.h"
#include "mpi/world.h"
#include "tests/guarded_backend.h"
#include "tests/mpi_launch.h"

enum { MOST = 4, N_ITEMS = 9, VOCAB = 8192, LONGEST = 40, PACK = 32 };
static const float temperature = 0.8f;
static dr_world world;
static dr_collective *group;
static dr_backend *plain, guarded;
static dr_trajectory trajectories[N_ITEMS];
static dr_learn_item items[N_ITEMS];
static int64_t sent_bytes; // by this rank, to others

// The profiling interface of MPI: every send of the program comes through here.
int MPI_Isend(const void *bytes, int count, MPI_Datatype type, int to, int tag, MPI_Comm comm,
              MPI_Request *request) {
    int size = 0;
    PMPI_Type_size(type, &size);
    sent_bytes += (int64_t)count * size;
    return PMPI_Isend(bytes, count, type, to, tag, comm, request);
}

static int setup(void **state) {
    (void)state;
    if (dr_backend_cpu_create(DR_FP32, 1, &plain) != DR_OK) return -1;
    guarded = guarded_backend(plain);
    for (int i = 0; i < N_ITEMS; i++) {
        dr_rng rng = dr_rng_make(61, (uint64_t)i);
        for (int k = 0; k < 10 + 2 * i; k++) {
            dr_sampled token = {.id = (int32_t)dr_rng_below(&rng, VOCAB), .logprob = -9.5f};
            check_ok(k < 4
                         ? dr_trajectory_append(&trajectories[i], &token.id, 1, DR_FROM_PROMPT, 0, NULL, NULL)
                         : dr_trajectory_append_sampled(&trajectories[i], &token, 0));
        }
        items[i] = (dr_learn_item){&trajectories[i], i % 2 ? 1.0f : -1.5f, 0.02f};
    }
    return 0;
}

static int teardown(void **state) {
    (void)state;
    for (int i = 0; i < N_ITEMS; i++) dr_trajectory_reset(&trajectories[i]);
    guarded_backend_close();
    dr_backend_cpu_destroy(plain);
    return 0;
}

// One learner of the test and what it is told of.
typedef struct learner {
    dr_backend *backend;
    dr_lm *lm;
    dr_learner *learner;
    dr_optimizer *optimizer;
    float *gradient, *seen, *part, *want; // [n]: backend memory, then of the host
    int64_t n, from, sent_at_first;       // all values from `from` on were named
    int calls;
    bool sends;
} learner;

static learner make_learner(dr_backend *backend, bool tied, dr_activations activations) {
    static const dr_optimizer_settings settings = {0.9f, 0.95f, 1e-8f, 0.1f, 1.0f};
    learner l = {.backend = backend};
    dr_lm_config config;
    check_ok(dr_lm_preset("tiny", VOCAB, &config));
    config.tied_head = tied;
    check_ok(dr_lm_create(backend, &config, 3, &l.lm));
    check_ok(dr_learner_create(l.lm, NULL, PACK, LONGEST, activations, &l.learner));
    check_ok(dr_optimizer_create(l.lm, &settings, group, &l.optimizer));
    l.n = dr_lm_n_params(l.lm);
    check_ok(dr_memory_create(backend, &l.gradient, "gradient", l.n, sizeof(float)));
    float **arrays[] = {&l.seen, &l.part, &l.want};
    for (int i = 0; i < 3; i++) check_ok(dr_alloc(arrays[i], "test array", l.n, sizeof(float)));
    return l;
}

static void drop_learner(learner *l) {
    float *arrays[] = {l->seen, l->part, l->want};
    for (int i = 0; i < 3; i++) dr_free(arrays[i]);
    dr_optimizer_destroy(l->optimizer);
    dr_learner_destroy(l->learner);
    l->backend->ops->memory_destroy(l->backend, l->gradient);
    dr_lm_destroy(l->lm);
}

static dr_status note(void *context, int64_t begin, int64_t end) {
    learner *l = context;
    assert_true(begin < end && end == l->from);
    l->from = begin;
    if (!l->sends)
        l->backend->ops->copy_out(l->backend, l->seen + begin, l->gradient + begin,
                                  (size_t)(end - begin) * sizeof(float));
    else
        check_ok(dr_optimizer_reduce_begin(l->optimizer, l->gradient, begin));
    if (l->calls++ == 0) l->sent_at_first = sent_bytes;
    return DR_OK;
}

// The gradient of items first … first + n - 1.
static void accumulate(learner *l, int first, int n, const dr_gradient_ready *ready) {
    const dr_loss_settings loss = {
        .kind = DR_LOSS_POLICY, .temperature = temperature, .clip_low = 0.2f, .clip_high = 0.28f};
    dr_learn_stats stats = {0};
    l->backend->ops->zero(l->backend, l->gradient, (size_t)l->n * sizeof(float));
    l->from = l->n;
    l->calls = 0;
    check_ok(dr_learner_accumulate(l->learner, items + first, n, &loss, l->gradient, ready, &stats));
}

static void fetch(const learner *l, float *host) {
    l->backend->ops->copy_out(l->backend, host, l->gradient, (size_t)l->n * sizeof(float));
}

// The first n of three kinds of learner.
static void on_each(int n, void (*check)(learner *l)) {
    const struct {
        dr_backend *backend;
        bool tied;
        dr_activations activations;
    } kinds[] = {
        {plain, false, DR_KEEP_ACTIVATIONS}, {plain, true, DR_RECOMPUTE}, {&guarded, false, DR_RECOMPUTE}};
    for (int i = 0; i < n; i++) {
        learner l = make_learner(kinds[i].backend, kinds[i].tied, kinds[i].activations);
        check(&l);
        drop_learner(&l);
    }
}

// Only the last micro-batch of a call names values: what was named is the sum over all micro-batches.
static void check_told(learner *l) {
    const dr_gradient_ready ready = {note, l};
    l->sends = false;
    accumulate(l, 0, N_ITEMS, NULL);
    fetch(l, l->want);
    accumulate(l, 0, N_ITEMS, &ready);
    fetch(l, l->part);
    assert_true(l->from == 0 && l->calls > 2);
    check_same_bits("gradient", l->part, l->want, l->n);
    check_same_bits("gradient as told", l->seen, l->want, l->n);
    accumulate(l, 0, 0, &ready); // nothing is trained on, nobody is told
    items[0].token_weight = 0;
    accumulate(l, 0, 1, &ready);
    items[0].token_weight = 0.02f;
    assert_true(l->from == l->n && l->calls == 0);
}

static void test_told(void **state) {
    (void)state;
    on_each(2, check_told);
}

// Items of each rank: none, several micro-batches, one, one. A rank's place in this table is turned.
static const int first_of[MOST] = {0, 0, 6, 8}, n_of[MOST] = {0, 6, 2, 1};

static void check_sum(learner *l) {
    const dr_gradient_ready ready = {note, l};
    dr_shard own = dr_optimizer_shard(l->optimizer);
    int64_t bytes_to_others = (l->n - (own.end - own.begin)) * (int64_t)sizeof(float);
    assert_true(own.begin < own.end);
    for (int turn = 0; turn < 2; turn++) {
        for (int r = 0; r < group->size; r++) { // as each of them computes it, in rank order
            int row = (r + turn) % MOST;
            accumulate(l, first_of[row], n_of[row], NULL);
            fetch(l, l->part);
            for (int64_t i = 0; i < l->n; i++) l->want[i] = r ? l->want[i] + l->part[i] : l->part[i];
        }
        int row = (group->rank + turn) % MOST;
        bool has_items = n_of[row] > 0, has_next_owner = group->rank + 1 < group->size;
        l->sends = true;
        sent_bytes = l->sent_at_first = 0;
        accumulate(l, first_of[row], n_of[row], &ready);
        assert_true((sent_bytes > 0) == has_items);
        if (has_items && has_next_owner && !dr_lm_config_of(l->lm)->tied_head)
            assert_true(l->sent_at_first > 0); // the head's part, before the layers have theirs
        check_ok(dr_optimizer_reduce(l->optimizer, l->gradient));
        assert_int_equal(sent_bytes, bytes_to_others);
        fetch(l, l->part);
        check_same_bits("sum", l->part + own.begin, l->want + own.begin, own.end - own.begin);
    }
}

static void test_sum(void **state) {
    (void)state;
    on_each(3, check_sum);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_told), cmocka_unit_test(test_sum)};
    static const int processes[MOST] = {0, 1, 2, 3};
    if (!dr_world_is_launched()) return mpi_launch(argv[0], MOST);
    check_ok(dr_world_init(&argc, &argv, 60, &world));
    check_ok(dr_collective_mpi_create(processes, world.size, 60.0, &group));
    int failed = cmocka_run_group_tests(tests, setup, teardown);
    if (failed) dr_world_abort(1);
    group->ops->destroy(group);
    dr_world_finalize(60);
    return 0;
}
