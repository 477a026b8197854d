// For tests of several ranks: the program, started by hand or by ctest, starts itself under mpirun.
#ifndef DR_TESTS_MPI_LAUNCH_H
#define DR_TESTS_MPI_LAUNCH_H

#include <stdio.h>
#include <stdlib.h>

// Runs `program` on 2, 3, … most ranks; the status to exit with, 77 (skipped) where there is no mpirun.
static inline int mpi_launch(const char *program, int most) {
    char command[2048];
    if (system("command -v mpirun > /dev/null") != 0) {
        printf("skipped: no mpirun\n");
        return 77;
    }
    for (int ranks = 2; ranks <= most; ranks++) {
        // The leak checker cannot name what Open MPI has unloaded by the end, so that no suppression holds.
        snprintf(command, sizeof command,
                 ". %s/tests/mpi-env.sh; export ASAN_OPTIONS=detect_leaks=0; exec mpirun -n %d %s",
                 DR_SOURCE_DIR, ranks, program);
        if (system(command) != 0) {
            fprintf(stderr, "failed on %d ranks\n", ranks);
            return 1;
        }
    }
    return 0;
}

#endif
