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

// Endpoints want a tag for every two, and no MPI has more than 2^31; words of 300 endpoints, of which the
// last ones live on the last rank, arrive beside those of the meeting.
static void test_tags(void **state) {
    (void)state;
    enum { TOO_MANY = 46341, MANY = 300 };
    dr_channel **channels = NULL;
    int *process_of = NULL, from = -1, to = MANY - 2;
    dr_buf bytes = {0};
    check_ok(dr_alloc(&channels, "channels", TOO_MANY, sizeof *channels));
    check_ok(dr_alloc(&process_of, "endpoints", TOO_MANY, sizeof *process_of));
    check_error(dr_channel_mpi_create(process_of, TOO_MANY, channels), DR_ERR_RANGE,
                "46341 endpoints take 2147488281 tags");
    for (int e = MANY / 2; e < MANY; e++) process_of[e] = world.size - 1;
    check_ok(dr_channel_mpi_create(process_of, MANY, channels));
    for (int e = 0; e < MANY; e++) assert_true((channels[e] != NULL) == (process_of[e] == world.rank));
    if (world.rank == 0) {
        check_ok(channels[MANY / 2 - 1]->ops->send(channels[MANY / 2 - 1], to, "word", 5));
        while (channels[0]->ops->pending_sends(channels[0]) > 0) {
            check_ok(channels[0]->ops->poll(channels[0], &from, &bytes));
            assert_int_equal(from, -1);
        }
    }
    double end = dr_clock_seconds() + 30;
    while (world.rank == world.size - 1 && from < 0) {
        check_ok(channels[to]->ops->poll(channels[to], &from, &bytes));
        assert_true(dr_clock_seconds() < end);
        if (from >= 0) assert_string_equal(bytes.data, "word");
    }
    if (world.rank == world.size - 1) assert_int_equal(from, MANY / 2 - 1);
    for (int e = 0; e < MANY; e++)
        if (channels[e]) channels[e]->ops->destroy(channels[e]);
    dr_buf_reset(&bytes);
    dr_free(process_of);
    dr_free(channels);
    MPI_Barrier(MPI_COMM_WORLD);
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
        cmocka_unit_test(test_late),          cmocka_unit_test(test_often), cmocka_unit_test(test_tags),
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
