// What is said to standard error, into a file.
#ifndef DR_TESTS_EMULATED_STDERR_TO_H
#define DR_TESTS_EMULATED_STDERR_TO_H

#include <fcntl.h>
#include <unistd.h>

#include "tests/check.h"

static inline int stderr_to(const char *path) {
    int kept = dup(2), file = open(path, O_CREAT | O_TRUNC | O_WRONLY, 0600);
    assert_true(kept >= 0 && file >= 0);
    assert_true(dup2(file, 2) == 2);
    close(file);
    return kept;
}

#endif
