// The meeting at the start of a job: all go on together, and who does not come is named.
// labels: cpu ranks
#include "tests/check.h"

#include <mpi.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "core/base/clock.h"
#include "core/base/log.h"
#include "mpi/world.h"
#include "tests/mpi_launch.h"

enum { MOST = 3 };
static dr_world world;

// Nobody goes on before the last one is here, whoever that is, and nobody keeps a core busy meanwhile.
static void test_late(void **state) {
    (void)state;
    for (int late = 0; late < world.size; late++) {
        MPI_Barrier(MPI_COMM_WORLD);
        double begun = dr_clock_seconds();
        clock_t before = clock();
        if (world.rank == late) dr_clock_sleep(0.6);
        check_ok(dr_world_meet(&world, 30));
        assert_true(dr_clock_seconds() - begun >= 0.5);
        assert_true((double)(clock() - before) / CLOCKS_PER_SEC < 0.3);
    }
}

// Again and again: no word of one meeting is taken for the next one's.
static void test_often(void **state) {
    (void)state;
    for (int i = 0; i < 50; i++) {
        int come = i + 1, least = 0;
        check_ok(dr_world_meet(&world, 30));
        MPI_Allreduce(&come, &least, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD);
        assert_int_equal(least, i + 1);
    }
}

// The last rank never comes: rank 0 names it, and first of all.
static void test_missing(void **state) {
    (void)state;
    int last = world.size - 1;
    double begun = dr_clock_seconds(), took = 0, first = 0;
    char text[128];
    snprintf(text, sizeof text, "start: within 1 s 1 of %d ranks have not come: %d", world.size, last);
    MPI_Barrier(MPI_COMM_WORLD);
    dr_log_set_level(DR_LOG_ERROR + 1);
    if (world.rank == 1 && last != 1) dr_clock_sleep(0.3);
    if (world.rank == 0)
        check_error(dr_world_meet(&world, 1), DR_ERR_TIMEOUT, text);
    else if (world.rank < last)
        check_error(dr_world_meet(&world, 1), DR_ERR_TIMEOUT, "rank 0 has not said that all have come");
    dr_log_set_level(DR_LOG_INFO);
    took = world.rank == last ? 60 : dr_clock_seconds() - begun;
    assert_true(took >= 1);
    MPI_Allreduce(&took, &first, 1, MPI_DOUBLE, MPI_MIN, MPI_COMM_WORLD);
    if (world.rank == 0) assert_true(took == first);
}

static void test_missing_first(void **state) {
    (void)state;
    MPI_Barrier(MPI_COMM_WORLD);
    if (world.rank == 0) return;
    dr_log_set_level(DR_LOG_ERROR + 1);
    check_error(dr_world_meet(&world, 0.5), DR_ERR_TIMEOUT, "start: within 0.5 s rank 0 has not come");
    dr_log_set_level(DR_LOG_INFO);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_late),
        cmocka_unit_test(test_often),
        cmocka_unit_test(test_missing), // from here on: what is left open never arrives
        cmocka_unit_test(test_missing_first),
    };
    if (!dr_world_is_launched()) return mpi_launch(argv[0], MOST);
    check_ok(dr_world_init(&argc, &argv, 60, &world));
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    if (failed) dr_world_abort(1);
    MPI_Barrier(MPI_COMM_WORLD);
    dr_world_finalize(60);
    return 0;
}
