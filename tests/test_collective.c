// The MPI body of the collective seam on 2, 3 and 4 ranks: sums by hand, begun early or not, bytes sent, and
// optimizer steps that do not depend on the number of learners.
// labels: cpu ranks
#include "tests/check.h"

#include <math.h>
#include <mpi.h>
#include <string.h>

#include "core/base/clock.h"
#include "core/base/log.h"
#include "core/base/rng.h"
#include "core/model/optimizer.h"
#include "mpi/world.h"
#include "tests/mpi_launch.h"

enum { MOST = 4 };
static dr_world world;
static dr_collective *group;
static int64_t sent_bytes;  // by this rank, to others
static bool is_synchronous; // a send is done only when it was received

// The profiling interface of MPI: every send of the program comes through here.
int MPI_Isend(const void *bytes, int count, MPI_Datatype type, int to, int tag, MPI_Comm comm,
              MPI_Request *request) {
    int size = 0;
    PMPI_Type_size(type, &size);
    sent_bytes += (int64_t)count * size;
    return is_synchronous ? PMPI_Issend(bytes, count, type, to, tag, comm, request)
                          : PMPI_Isend(bytes, count, type, to, tag, comm, request);
}

static float *floats(int64_t n) {
    float *values = NULL;
    check_ok(dr_alloc(&values, "test array", n, sizeof *values));
    return values;
}

static void fill(float *values, int64_t n, int rank) {
    dr_rng rng = dr_rng_make(81, (uint64_t)rank);
    uint32_t word = dr_rng_bits(&rng);
    for (int64_t i = 0; i < n; i++) { // of sizes that make the order of a sum visible
        word = word * 1664525u + 1013904223u;
        values[i] = ((float)word / 4294967296.0f - 0.5f) * (word >> 28 ? 1.0f : 1e4f);
    }
}

// What rank 0 + rank 1 + … of fill's values gives.
static void sum_of_ranks(float *sum, float *part, int64_t n) {
    fill(sum, n, 0);
    for (int r = 1; r < group->size; r++) {
        fill(part, n, r);
        for (int64_t i = 0; i < n; i++) sum[i] += part[i];
    }
}

// Values [n], each from the rank that has their sum.
static dr_status gather(float *values, int64_t n) {
    dr_shard parts[MOST];
    for (int r = 0; r < group->size; r++) {
        dr_shard shard = dr_shard_of(n, r, group->size);
        parts[r] = (dr_shard){shard.begin * (int64_t)sizeof *values, shard.end * (int64_t)sizeof *values};
    }
    return group->ops->all_gather(group, values, parts);
}

// Around shards, around what is sent at a time (256 Ki values), shards that are empty, and shards of more
// than what one rank may have under way to another (8 times that).
static const int64_t counts[] = {0,     1,       4095,    4096,    4097,    12289,  16384,
                                 16385, 1 << 18, 1000003, 1048577, 2100001, 8800001};
enum { N_COUNTS = sizeof counts / sizeof *counts };

static void test_sum_and_gather(void **state) {
    (void)state;
    for (int k = 0; k < N_COUNTS; k++) {
        int64_t n = counts[k];
        float *values = floats(n), *want = floats(n), *own = floats(n);
        dr_shard shard = dr_shard_of(n, group->rank, group->size);
        sum_of_ranks(want, own, n);
        fill(own, n, group->rank);
        fill(values, n, group->rank);
        check_ok(group->ops->reduce_scatter_sum(group, values, n));
        check_same_bits("before the shard", values, own, shard.begin);
        check_same_bits("shard", values + shard.begin, want + shard.begin, shard.end - shard.begin);
        check_same_bits("behind the shard", values + shard.end, own + shard.end, n - shard.end);
        check_ok(gather(values, n));
        check_same_bits("gathered", values, want, n);
        dr_free(values);
        dr_free(want);
        dr_free(own);
    }
}

// Values come to be in steps from the end to the start, other ones on every rank, and are none before.
static void begin_in_steps(float *values, const float *made, int64_t n, uint64_t schedule) {
    dr_rng rng = dr_rng_make(schedule, (uint64_t)group->rank);
    int64_t longest = schedule % 2 ? 30000 + n / 40 : n / 2 + 1;
    for (int64_t at = n; at > 0;) {
        int64_t begin = at - 1 - (int64_t)dr_rng_below(&rng, (uint32_t)longest);
        if (begin < 0) begin = 0;
        memcpy(values + begin, made + begin, (size_t)(at - begin) * sizeof *values);
        check_ok(group->ops->reduce_scatter_begin(group, values, n, begin));
        if (schedule % 3 == 0) check_ok(group->ops->reduce_scatter_begin(group, values, n, begin)); // again
        at = begin;
    }
}

// However a sum is begun, and by whom, it has the same bits.
static void test_begun_sums(void **state) {
    (void)state;
    for (int k = 0; k < N_COUNTS; k++) {
        int64_t n = counts[k];
        bool is_large = n > 4000000; // slow: in small steps only
        for (uint64_t schedule = is_large; schedule < (is_large ? 2 : 3); schedule++) {
            float *values = floats(n), *want = floats(n), *own = floats(n);
            dr_shard shard = dr_shard_of(n, group->rank, group->size);
            sum_of_ranks(want, own, n);
            fill(own, n, group->rank);
            for (int64_t i = 0; i < n; i++) values[i] = NAN;
            if ((schedule + (uint64_t)group->rank) % 3 > 0) // others only come to the end
                begin_in_steps(values, own, n, 6 * (uint64_t)k + schedule);
            else
                memcpy(values, own, (size_t)n * sizeof *values);
            check_ok(group->ops->reduce_scatter_sum(group, values, n));
            check_same_bits("before the shard", values, own, shard.begin);
            check_same_bits("shard", values + shard.begin, want + shard.begin, shard.end - shard.begin);
            check_same_bits("behind the shard", values + shard.end, own + shard.end, n - shard.end);
            dr_free(values);
            dr_free(want);
            dr_free(own);
        }
    }
}

static void meet(void) {
    MPI_Barrier(MPI_COMM_WORLD);
}

// Beginning waits for nobody: the others are held back until rank 0 has begun everything. And it is enough to
// begin: where all do, the sum is there before any of them asks for it.
static void test_begin_is_early(void **state) {
    (void)state;
    enum { N = 4 * 3 * DR_SHARD_MULTIPLE * 64 };
    float *values = floats(N), *want = floats(N), *part = floats(N);
    dr_shard shard = dr_shard_of(N, group->rank, group->size);
    int64_t bytes = (shard.end - shard.begin) * (int64_t)sizeof *values;
    sum_of_ranks(want, part, N);
    fill(values, N, group->rank);
    sent_bytes = 0;
    if (group->rank == 0) {
        check_ok(group->ops->reduce_scatter_begin(group, values, N, N - 1)); // no whole piece
        assert_int_equal(sent_bytes, 0);
        check_ok(group->ops->reduce_scatter_begin(group, values, N, shard.end));
        assert_int_equal(sent_bytes, bytes * (group->size - 1));
        check_ok(group->ops->reduce_scatter_begin(group, values, N, 0));
    }
    meet();
    double end = dr_clock_seconds() + 20;
    while (memcmp(values + shard.begin, want + shard.begin, (size_t)bytes) != 0) {
        assert_true(dr_clock_seconds() < end);
        check_ok(group->ops->reduce_scatter_begin(group, values, N, 0));
        dr_clock_sleep(0.0005);
    }
    check_ok(group->ops->reduce_scatter_sum(group, values, N));
    check_same_bits("shard", values + shard.begin, want + shard.begin, shard.end - shard.begin);
    assert_int_equal(sent_bytes, bytes * (group->size - 1));
    dr_free(values);
    dr_free(want);
    dr_free(part);
}

static void test_refused_in_a_sum(void **state) {
    (void)state;
    enum { N = 3 * DR_SHARD_MULTIPLE };
    static float values[N], others[N];
    double number = 1;
    fill(values, N, group->rank);
    dr_log_set_level(DR_LOG_ERROR + 1);
    check_error(group->ops->reduce_scatter_begin(group, values, N, -1), DR_ERR_ARGUMENT, "from -1 on");
    check_ok(group->ops->reduce_scatter_begin(group, values, N, 5000));
    check_error(group->ops->reduce_scatter_begin(group, values, N, 5001), DR_ERR_ARGUMENT,
                "sum of 12288 values from 5001 on, under way is one of 12288 from 5000 on");
    check_error(group->ops->reduce_scatter_begin(group, others, N, 0), DR_ERR_ARGUMENT, "under way is one");
    check_error(group->ops->reduce_scatter_sum(group, values, N - 1), DR_ERR_ARGUMENT, "under way is one");
    check_error(gather(others, N), DR_ERR_ARGUMENT, "while a sum of 12288 values");
    check_error(group->ops->allreduce_sum_double(group, &number, 1), DR_ERR_ARGUMENT, "while a sum");
    dr_log_set_level(DR_LOG_INFO);
    check_ok(group->ops->reduce_scatter_sum(group, values, N));
    check_ok(gather(values, N));
    check_ok(group->ops->allreduce_sum_double(group, &number, 1));
    assert_true(number == group->size);
    float *want = floats(N), *part = floats(N);
    sum_of_ranks(want, part, N);
    check_same_bits("sum", values, want, N);
    dr_free(want);
    dr_free(part);
}

// Parts of any lengths, in any order, with bytes between them that stay, and longer than a message.
static void test_gather_of_bytes(void **state) {
    (void)state;
    static const int64_t lengths[][MOST] = {
        {1, 2, 3, 4}, {0, 7, 0, 9}, {5, 0, 0, 0}, {0, 0, 0, 0}, {4097, 1, 0, (1 << 26) + 3}};
    for (size_t k = 0; k < sizeof lengths / sizeof *lengths; k++) {
        dr_shard parts[MOST];
        int64_t at = 1;
        for (int r = group->size - 1; r >= 0; r--) {
            parts[r] = (dr_shard){at, at + lengths[k][r]};
            at = parts[r].end + 1;
        }
        unsigned char *bytes = NULL;
        check_ok(dr_alloc(&bytes, "test array", at, 1));
        memset(bytes, 255, (size_t)at);
        for (int64_t i = parts[group->rank].begin; i < parts[group->rank].end; i++)
            bytes[i] = (unsigned char)((i + group->rank) % 251);
        sent_bytes = 0;
        check_ok((k % 2 ? group->ops->all_gather_host : group->ops->all_gather)(group, bytes, parts));
        assert_int_equal(sent_bytes, (group->size - 1) * lengths[k][group->rank]);
        for (int64_t i = 0, r = group->size - 1; i < at; i++) {
            if (r > 0 && i >= parts[r].end) r--;
            int want = i >= parts[r].begin && i < parts[r].end ? (int)((i + r) % 251) : 255;
            if (bytes[i] != want)
                fail_msg("byte %lld of %lld is %d, not %d", (long long)i, (long long)at, bytes[i], want);
        }
        dr_free(bytes);
    }
}

static void test_sum_of_doubles(void **state) {
    (void)state;
    enum { N = 300001 };
    double *values = NULL;
    check_ok(dr_alloc(&values, "test array", N, sizeof *values));
    for (int i = 0; i < N; i++) values[i] = 1.0 / (i + 1 + 1000 * group->rank);
    check_ok(group->ops->allreduce_sum_double(group, values, N));
    for (int i = 0; i < N; i++) {
        double want = 1.0 / (i + 1);
        for (int r = 1; r < group->size; r++) want += 1.0 / (i + 1 + 1000 * r);
        if (values[i] != want) fail_msg("value %d is %.17g, expected %.17g", i, values[i], want);
    }
    dr_free(values);
}

// Both together send 2 (size - 1) / size of the values, an all-gather of everything (size - 1) times them.
static void test_bytes(void **state) {
    (void)state;
    enum { N = 12 * DR_SHARD_MULTIPLE * 16, MOST_OF_BUFFERS = 64 << 20 }; // equal shards
    float *values = floats(N);
    int64_t shard = N / group->size * (int64_t)sizeof(float), others = group->size - 1;
    fill(values, N, group->rank);
    sent_bytes = 0;
    check_ok(group->ops->reduce_scatter_sum(group, values, N));
    assert_int_equal(sent_bytes, others * shard);
    check_ok(gather(values, N));
    assert_int_equal(sent_bytes, 2 * others * shard);
    int64_t all_of_everything = others * N * (int64_t)sizeof(float);
    if (group->rank == 0)
        print_message(
            "%d ranks, %d values: %lld bytes sent by each, an all-gather of everything sends %lld\n",
            group->size, N, (long long)sent_bytes, (long long)all_of_everything);
    if (group->size > 2) assert_true(sent_bytes < all_of_everything);
    assert_true(sent_bytes * group->size == 2 * all_of_everything);
    assert_true(group->memory > 0 && group->memory <= MOST_OF_BUFFERS);
    dr_free(values);
}

static void test_deadline(void **state) {
    (void)state;
    static float values[2 * DR_SHARD_MULTIPLE]; // outlives what is left open
    double deadline_s = group->deadline_s;
    if (group->rank == 0) {
        group->deadline_s = 0.2;
        dr_log_set_level(DR_LOG_ERROR + 1);
        check_error(gather(values, 2 * DR_SHARD_MULTIPLE), DR_ERR_TIMEOUT,
                    "all-gather of 32768 bytes did not finish within 0 s");
        dr_log_set_level(DR_LOG_INFO);
        group->deadline_s = deadline_s;
    }
}

// The only owner never comes to a sum: the others, who have nothing to receive, name it.
static void test_values_not_taken(void **state) {
    (void)state;
    static float values[DR_SHARD_MULTIPLE];
    static const int processes[MOST] = {0, 1, 2, 3};
    dr_collective *other = NULL;
    check_ok(dr_collective_mpi_create(processes, world.size, 30, &other));
    other->deadline_s = 0.3;
    if (other->rank > 0) {
        is_synchronous = true;
        dr_log_set_level(DR_LOG_ERROR + 1);
        check_error(other->ops->reduce_scatter_sum(other, values, DR_SHARD_MULTIPLE), DR_ERR_TIMEOUT,
                    "sum of 4096 values did not finish within 0 s: learner 0 has not taken values 0 to 4095");
        dr_log_set_level(DR_LOG_INFO);
        is_synchronous = false;
    }
    other->ops->destroy(other);
}

// The last rank never comes to a sum: all others, who wait for it in vain, name it.
static void test_deadline_of_a_sum(void **state) {
    (void)state;
    static float values[MOST * DR_SHARD_MULTIPLE];
    int64_t n = (int64_t)group->size * DR_SHARD_MULTIPLE, last = group->size - 1, rank = group->rank;
    char text[128];
    meet();
    if (rank == last) return;
    snprintf(text, sizeof text,
             "sum of %lld values did not finish within 2 s: learner %lld has not sent values %lld",
             (long long)n, (long long)last, (long long)rank * DR_SHARD_MULTIPLE);
    group->deadline_s = 1.5;
    dr_log_set_level(DR_LOG_ERROR + 1);
    check_ok(group->ops->reduce_scatter_begin(group, values, n, n / 2));
    double start = dr_clock_seconds();
    check_error(group->ops->reduce_scatter_sum(group, values, n), DR_ERR_TIMEOUT, text);
    assert_true(dr_clock_seconds() - start >= 1.5);
    dr_log_set_level(DR_LOG_INFO);
}

// ---- the optimizer ----

static dr_lm *make_model(dr_backend *backend) {
    dr_lm_config config;
    dr_lm *lm = NULL;
    check_ok(dr_lm_preset("tiny", 97, &config));
    check_ok(dr_lm_create(backend, &config, 5, &lm));
    return lm;
}

// Some steps are clipped, one comes after a restart of the moments.
static void one_step(dr_optimizer *o, int step, const float *gradient, double *out_norm) {
    if (step == 4) dr_optimizer_restart(o);
    check_ok(dr_optimizer_step(o, gradient, 0.01f, out_norm));
}

static void test_steps(void **state) {
    (void)state;
    static const dr_optimizer_settings settings = {0.9f, 0.95f, 1e-8f, 0.1f, 1.0f};
    dr_backend *backend = NULL;
    dr_optimizer *alone = NULL, *shared = NULL;
    check_ok(dr_backend_cpu_create(DR_FP32, 1, &backend));
    dr_lm *want = make_model(backend), *got = make_model(backend);
    int64_t n = dr_lm_n_params(want);
    float *own = floats(n), *part = floats(n), *sum = floats(n);
    assert_true(n > MOST * DR_SHARD_MULTIPLE); // a shard each
    check_ok(dr_optimizer_create(want, &settings, NULL, &alone));
    check_ok(dr_optimizer_create(got, &settings, group, &shared));
    dr_shard shard = dr_optimizer_shard(shared);
    assert_true(shard.begin < shard.end);
    for (int step = 0; step < 6; step++) {
        double norm[2] = {-1, -2};
        sum_of_ranks(sum, part, n);
        fill(own, n, group->rank);
        for (int64_t i = 0; i < n && step % 2; i++) { // small: not clipped
            own[i] *= 0x1p-20f;
            sum[i] *= 0x1p-20f;
        }
        one_step(alone, step, sum, &norm[0]);
        if (step % 3 == 1) check_ok(dr_optimizer_reduce_begin(shared, own, n / 3));
        check_ok(dr_optimizer_reduce(shared, own));
        one_step(shared, step, own, &norm[1]);
        assert_true((norm[0] > 1) == (step % 2 == 0));
        assert_memory_equal(&norm[0], &norm[1], sizeof *norm);
        check_same_bits("weights", dr_lm_params(got), dr_lm_params(want), n);
        check_same_bits("first moments", dr_optimizer_first(shared), dr_optimizer_first(alone) + shard.begin,
                        shard.end - shard.begin);
        check_same_bits("second moments", dr_optimizer_second(shared),
                        dr_optimizer_second(alone) + shard.begin, shard.end - shard.begin);
    }
    // a value that is none in one shard is refused by all
    double norm = -1;
    memset(own, 0, (size_t)n * sizeof *own);
    if (shard.end == n) own[n - 1] = NAN;
    dr_log_set_level(DR_LOG_ERROR + 1);
    check_error(dr_optimizer_step(shared, own, 0.01f, &norm), DR_ERR_NUMERIC, "no update is made");
    dr_log_set_level(DR_LOG_INFO);
    check_same_bits("weights", dr_lm_params(got), dr_lm_params(want), n);
    assert_int_equal(dr_optimizer_updates(shared), 6);
    dr_optimizer_destroy(alone);
    dr_optimizer_destroy(shared);
    dr_lm_destroy(want);
    dr_lm_destroy(got);
    dr_backend_cpu_destroy(backend);
    dr_free(own);
    dr_free(part);
    dr_free(sum);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sum_and_gather),
        cmocka_unit_test(test_begun_sums),
        cmocka_unit_test(test_begin_is_early),
        cmocka_unit_test(test_refused_in_a_sum),
        cmocka_unit_test(test_gather_of_bytes),
        cmocka_unit_test(test_sum_of_doubles),
        cmocka_unit_test(test_bytes),
        cmocka_unit_test(test_steps),
        cmocka_unit_test(test_deadline),
        cmocka_unit_test(test_values_not_taken),
        cmocka_unit_test(test_deadline_of_a_sum), // the last: what these leave open never arrives
    };
    static const int processes[MOST] = {0, 1, 2, 3};
    if (!dr_world_is_launched()) return mpi_launch(argv[0], MOST);
    check_ok(dr_world_init(&argc, &argv, 60, &world));
    check_ok(dr_collective_mpi_create(processes, world.size, 30.0, &group));
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    if (failed) dr_world_abort(1);
    group->ops->destroy(group);
    dr_world_finalize(60);
    return 0;
}
