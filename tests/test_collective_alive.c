// Learners that come late to a sum because they have more to do: those who say so are waited for, one that
// falls silent is not, on 2 and 3 ranks.
// labels: cpu ranks
#include "tests/check.h"

#include <mpi.h>

#include "core/base/alive.h"
#include "core/base/clock.h"
#include "core/base/log.h"
#include "core/comm/collective.h"
#include "mpi/world.h"
#include "tests/mpi_launch.h"

enum { MOST = 3, N = MOST * DR_SHARD_MULTIPLE };
static const double DEADLINE_S = 2;
static dr_world world;
static dr_collective *group;
static float values[N]; // outlives what is left open
static int waits;

static dr_status hear(void *context, bool is_waiting) {
    (void)context;
    waits += is_waiting;
    return DR_OK;
}

// Works for a while, a piece at a time.
static void work(double seconds) {
    double end = dr_clock_seconds() + seconds;
    while (dr_clock_seconds() < end) {
        dr_clock_sleep(0.05);
        check_ok(group->ops->alive(group));
    }
}

static bool is_last(void) {
    return group->rank == group->size - 1;
}

// The last rank works for longer than the deadline before it comes to an operation.
static void test_late(void **state) {
    (void)state;
    const dr_alive_listener listener = {hear, NULL};
    for (int i = 0; i < N; i++) values[i] = 1;
    dr_shard own = dr_shard_of(N, group->rank, group->size);
    MPI_Barrier(MPI_COMM_WORLD);
    waits = 0;
    dr_alive_listen(&listener);
    double begun = dr_clock_seconds(), number = 1;
    if (is_last()) work(1.7 * DEADLINE_S);
    check_ok(group->ops->reduce_scatter_sum(group, values, N));
    assert_true(dr_clock_seconds() - begun > 1.5 * DEADLINE_S);
    if (!is_last()) assert_true(waits > 20); // and say meanwhile that they wait
    for (int64_t i = own.begin; i < own.end; i++) assert_true(values[i] == (float)group->size);
    if (is_last()) work(1.7 * DEADLINE_S);
    check_ok(group->ops->allreduce_sum_double(group, &number, 1));
    assert_true(number == group->size);
    dr_alive_listen(NULL);
}

// It works for a while, and then nothing more is heard of it.
static void test_silent(void **state) {
    (void)state;
    const double worked_s = 1.2 * DEADLINE_S;
    char text[96];
    MPI_Barrier(MPI_COMM_WORLD);
    double begun = dr_clock_seconds();
    if (is_last()) {
        work(worked_s);
        return;
    }
    snprintf(text, sizeof text, "sum of %d values did not finish within 2 s: learner %d has not sent values",
             N, group->size - 1);
    dr_log_set_level(DR_LOG_ERROR + 1);
    check_error(group->ops->reduce_scatter_sum(group, values, N), DR_ERR_TIMEOUT, text);
    dr_log_set_level(DR_LOG_INFO);
    double took = dr_clock_seconds() - begun;
    assert_true(took > worked_s + DEADLINE_S - 1.5 * dr_alive_every(DEADLINE_S));
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_late),
        cmocka_unit_test(test_silent), // the last: what it leaves open never arrives
    };
    static const int processes[MOST] = {0, 1, 2};
    if (!dr_world_is_launched()) return mpi_launch(argv[0], MOST);
    check_ok(dr_world_init(&argc, &argv, 60, &world));
    check_ok(dr_collective_mpi_create(processes, world.size, 60, &group));
    group->deadline_s = DEADLINE_S;
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    if (failed) dr_world_abort(1);
    MPI_Barrier(MPI_COMM_WORLD);
    group->deadline_s = 60; // of its end
    group->ops->destroy(group);
    dr_world_finalize(60);
    return 0;
}
