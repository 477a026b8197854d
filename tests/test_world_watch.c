// Calls that wait for every rank end by their deadline: the watch by itself, and jobs of which a rank never
// comes to MPI_Init or to a communicator, or comes late.
// labels: cpu ranks
#include "tests/check.h"

#include <errno.h>
#include <fcntl.h>
#include <mpi.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "core/base/clock.h"
#include "mpi/world.h"
#include "mpi/world_watch.h"

enum { RANKS = 3, PATIENCE_S = 100 }; // patience: of this test with a process that it has started
static const char *program;

// ---- processes ----

// Says how the process ended: its exit status, 1000 and more for a signal. One that does not end is ended,
// and the test fails.
static int wait_for(pid_t pid) {
    int status = 0;
    double end = dr_clock_seconds() + PATIENCE_S;
    while (waitpid(pid, &status, WNOHANG) == 0) {
        if (dr_clock_seconds() > end) {
            kill(pid, SIGKILL);
            waitpid(pid, &status, 0);
            fail_msg("process %d did not end within %d s", (int)pid, PATIENCE_S);
        }
        dr_clock_sleep(0.02);
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

static void send_output_to(const char *path) {
    int file = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (file < 0 || dup2(file, STDERR_FILENO) < 0 || dup2(file, STDOUT_FILENO) < 0) _exit(99);
}

// Runs body in a process of its own; what it says goes to the file at path. Returns how it ended.
static int run_apart(void (*body)(void), const char *path) {
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        send_output_to(path);
        body();
        _exit(0);
    }
    return wait_for(pid);
}

static bool says(const char *path, const char *text) {
    size_t length = 0;
    char *all = check_read_file(path, &length);
    char *end = realloc(all, length + 1);
    assert_non_null(end);
    end[length] = '\0';
    bool found = strstr(end, text) != NULL;
    free(end);
    return found;
}

static void check_says(const char *path, const char *text) {
    if (!says(path, text)) fail_msg("%s does not hold: %s", path, text);
}

// ---- who this process will be ----

static void test_launched_rank(void **state) {
    (void)state;
    static const char *const names[] = {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "SLURM_PROCID"};
    static const char *const not_ranks[] = {"", "-1", "3x", "99999999999"};
    char *before[3];
    for (int i = 0; i < 3; i++) {
        before[i] = getenv(names[i]) ? strdup(getenv(names[i])) : NULL;
        unsetenv(names[i]);
    }
    assert_int_equal(dr_world_launched_rank(), -1);
    for (int i = 2; i >= 0; i--) { // the first one that says something counts
        setenv(names[i], "0", 1);
        assert_int_equal(dr_world_launched_rank(), 0);
        char text[16];
        snprintf(text, sizeof text, "%d", 7 + i);
        setenv(names[i], text, 1);
        assert_int_equal(dr_world_launched_rank(), 7 + i);
    }
    for (int i = 0; i < 3; i++) unsetenv(names[i]);
    for (size_t i = 0; i < sizeof not_ranks / sizeof *not_ranks; i++) {
        setenv(names[0], not_ranks[i], 1);
        assert_int_equal(dr_world_launched_rank(), -1);
    }
    unsetenv(names[0]);
    for (int i = 0; i < 3; i++) {
        if (before[i]) setenv(names[i], before[i], 1);
        free(before[i]);
    }
}

// ---- the watch ----

static void never_return(void) {
    for (;;) pause();
}

static void hang_in_first(void) {
    dr_world_watch *watch = NULL;
    setenv("OMPI_COMM_WORLD_RANK", "5", 1);
    if (dr_world_watch_begin(0.3, "the first call", -1, &watch) != DR_OK) _exit(98);
    never_return();
}

static void hang_in_second(void) {
    dr_world_watch *watch = NULL;
    if (dr_world_watch_begin(2.5, "the first call", -1, &watch) != DR_OK) _exit(98);
    dr_clock_sleep(1.5);
    dr_world_watch_next(watch, "the second call", 7);
    dr_clock_sleep(1.5); // 3 s in all
    fprintf(stderr, "the second call was given its time\n");
    never_return();
}

static void return_in_time(void) {
    dr_world_watch *watch = NULL;
    if (dr_world_watch_begin(1.5, "the first call", -1, &watch) != DR_OK) _exit(98);
    dr_world_watch_end(watch);
    dr_clock_sleep(1.7);
}

static void test_hang(void **state) {
    (void)state;
    const char *path = check_path(check_scratch_dir(), "said");
    char host[256] = "", place[320];
    double begun = dr_clock_seconds();
    assert_int_equal(run_apart(hang_in_first, path), 1);
    assert_true(dr_clock_seconds() - begun >= 0.3);
    assert_int_equal(gethostname(host, sizeof host - 1), 0);
    snprintf(place, sizeof place, "(at most 0.3 s) on host %s, rank 5: not every rank has come", host);
    check_says(path, "mpi: the first call has not ended after ");
    check_says(path, place);
}

static void test_next(void **state) {
    (void)state;
    const char *path = check_path(check_scratch_dir(), "said");
    assert_int_equal(run_apart(hang_in_second, path), 1);
    check_says(path, "the second call was given its time");
    check_says(path, "mpi: the second call has not ended after ");
    check_says(path, "rank 7: ");
}

static void test_in_time(void **state) {
    (void)state;
    const char *path = check_path(check_scratch_dir(), "said");
    size_t length = 1;
    assert_int_equal(run_apart(return_in_time, path), 0);
    free(check_read_file(path, &length));
    assert_int_equal(length, 0);
}

// It sleeps, and its end does not wait for the deadline.
static void test_cheap(void **state) {
    (void)state;
    dr_world_watch *watch = NULL;
    double begun = dr_clock_seconds();
    clock_t before = clock();
    check_ok(dr_world_watch_begin(60, "a call", 0, &watch));
    dr_clock_sleep(0.5);
    dr_world_watch_end(watch);
    assert_true(dr_clock_seconds() - begun < 30);
    assert_true((double)(clock() - before) / CLOCKS_PER_SEC < 0.1);
}

// ---- jobs ----

// Each rank leaves its process id in the folder, at its rank.
#define NOTED "sh -c 'echo $$ > \"$0/$OMPI_COMM_WORLD_RANK\"; exec \"$@\"' %s "

static bool is_there(pid_t pid) {
    char path[64], state = 0;
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    FILE *file = fopen(path, "r");
    if (!file) return false;
    if (fscanf(file, "%*d (%*[^)]) %c", &state) != 1) state = 'Z';
    fclose(file);
    return state != 'Z' && state != 'X'; // has ended, and nobody has asked for its status
}

// No rank outlives its job; one that does is ended here.
static void check_gone(const char *dir) {
    double end = dr_clock_seconds() + 20;
    for (int r = 0; r < RANKS; r++) {
        int pid = 0;
        char name[16];
        snprintf(name, sizeof name, "%d", r);
        FILE *file = fopen(check_path(dir, name), "r");
        if (!file) fail_msg("rank %d was not started", r);
        assert_int_equal(fscanf(file, "%d", &pid), 1);
        fclose(file);
        while (is_there(pid) && dr_clock_seconds() < end) dr_clock_sleep(0.05);
        if (!is_there(pid)) continue;
        kill(pid, SIGKILL);
        fail_msg("rank %d, process %d, outlived its job", r, pid);
    }
}

static char command[4096];
static void start_job(void) {
    execl("/bin/sh", "sh", "-c", command, (char *)NULL);
    _exit(97);
}

// mpirun with these arguments; returns its exit status when all ranks have gone, and what they said in *path.
static int run_job(const char *dir, const char *arguments, const char **out_path) {
    *out_path = check_path(dir, "said");
    // the leak checker cannot name what Open MPI has unloaded by the end
    int length = snprintf(command, sizeof command,
                          ". %s/tests/mpi-env.sh; export ASAN_OPTIONS=detect_leaks=0; exec mpirun %s",
                          DR_SOURCE_DIR, arguments);
    assert_in_range(length, 1, sizeof command - 1);
    int status = run_apart(start_job, *out_path);
    check_gone(dir);
    return status;
}

// RANKS times this program with `part` (see play).
static int run_part(const char *part, const char **out_path) {
    const char *dir = check_scratch_dir();
    char arguments[2048];
    snprintf(arguments, sizeof arguments, "-n %d " NOTED "%s %s", RANKS, dir, program, part);
    return run_job(dir, arguments, out_path);
}

static void test_rank_without_mpi(void **state) {
    (void)state;
    const char *dir = check_scratch_dir(), *path;
    char arguments[3072];
    snprintf(arguments, sizeof arguments,
             "-n 1 " NOTED "sleep 300 : -n %d " NOTED
             "%s train /dev/null --set run.start_deadline=3 --set run.dir=%s/run --set data.dataset=none "
             "--set model.trm=none --set model.policy=none",
             dir, RANKS - 1, dir, DR_BINARY, dir);
    double begun = dr_clock_seconds();
    assert_int_equal(run_job(dir, arguments, &path), 1);
    assert_true(dr_clock_seconds() - begun >= 3);
    check_says(path, "deadline passed: mpi: MPI_Init has not ended after ");
    check_says(path, "(at most 3 s) on host ");
    assert_true(says(path, ", rank 1: not every") || says(path, ", rank 2: not every"));
}

static void test_no_node_communicator(void **state) {
    (void)state;
    const char *path;
    assert_int_equal(run_part("node", &path), 1);
    check_says(path, "mpi: making the communicator of each node has not ended after ");
}

static void test_no_learners_communicator(void **state) {
    (void)state;
    const char *path;
    assert_int_equal(run_part("learners", &path), 1);
    check_says(path, "mpi: making the communicator of the learners has not ended after ");
    check_says(path, "(at most 1.5 s) on host ");
}

static void test_no_end(void **state) {
    (void)state;
    const char *path;
    assert_int_equal(run_part("end", &path), 1);
    check_says(path, "mpi: MPI_Finalize has not ended after ");
}

static void test_late(void **state) {
    (void)state;
    const char *path;
    assert_int_equal(run_part("late", &path), 0);
    check_says(path, "rank 0 has ended as it should");
    assert_false(says(path, "mpi: "));
}

// ---- what a rank of a job does ----

// node, learners: the last rank does not come to that communicator. end: nor to MPI_Finalize. late: it comes
// late to MPI_Init and to the learners' communicator.
static int play(const char *part, int argc, char **argv) {
    static const int processes[RANKS] = {0, 1, 2};
    bool is_node = strcmp(part, "node") == 0, is_late = strcmp(part, "late") == 0,
         is_end = strcmp(part, "end") == 0;
    const char *launched = getenv("OMPI_COMM_WORLD_RANK");
    bool is_last = launched && atoi(launched) == RANKS - 1;
    dr_world world;
    dr_collective *learners = NULL;
    if (is_last && is_node) {
        MPI_Init(&argc, &argv);
        never_return();
    }
    if (is_last && is_late) dr_clock_sleep(1.5);
    if (dr_world_init(&argc, &argv, is_node ? 8 : PATIENCE_S / 2, &world) != DR_OK) return 96;
    if (is_last && is_late) dr_clock_sleep(1.5);
    if (is_last && !is_late && !is_end) never_return();
    if (dr_collective_mpi_create(processes, RANKS, is_late || is_end ? PATIENCE_S / 2 : 1.5, &learners) !=
        DR_OK)
        return 95;
    learners->ops->destroy(learners);
    if (is_last && is_end) never_return();
    dr_world_finalize(is_end ? 1.5 : PATIENCE_S / 2);
    if (world.rank == 0) fprintf(stderr, "rank 0 has ended as it should\n");
    return 0;
}

int main(int argc, char **argv) {
    const struct CMUnitTest watch[] = {
        cmocka_unit_test(test_launched_rank), cmocka_unit_test(test_hang),  cmocka_unit_test(test_next),
        cmocka_unit_test(test_in_time),       cmocka_unit_test(test_cheap),
    };
    const struct CMUnitTest jobs[] = {
        cmocka_unit_test(test_rank_without_mpi),
        cmocka_unit_test(test_no_node_communicator),
        cmocka_unit_test(test_no_learners_communicator),
        cmocka_unit_test(test_no_end),
        cmocka_unit_test(test_late),
    };
    if (argc > 1) return play(argv[1], argc, argv);
    program = argv[0];
    int failed = cmocka_run_group_tests(watch, NULL, NULL);
    if (system("command -v mpirun > /dev/null") != 0) {
        printf("skipped: the jobs, no mpirun\n");
        return failed;
    }
    return failed + cmocka_run_group_tests(jobs, NULL, NULL);
}
