// `test_backend_ops perf [option ...]`: how fast the ops are. Timing is bench_ops' work (bench/bench_ops.c),
// which stands in the same folder and takes the options: --backend, --precision, --part, --shape and so on.
#ifndef DR_TESTS_OP_PERF_H
#define DR_TESTS_OP_PERF_H

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

// Becomes bench_ops with argv[2..]; argv ends in NULL. Comes back, with an exit status, only where it cannot.
static inline int op_perf(char **argv) {
    static const char program[] = "bench_ops";
    char path[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", path, sizeof path);
    if (n < 0 || (size_t)n + sizeof program > sizeof path) {
        fprintf(stderr, "%s perf: where this program stands is not known\n", argv[0]);
        return 1;
    }
    path[n] = 0;
    char *name = strrchr(path, '/') + 1;
    memcpy(name, program, sizeof program);
    argv[1] = path;
    execv(path, argv + 1);
    int error = errno;
    name[-1] = 0;
    fprintf(stderr, "%s perf: %s/%s: %s; build it with `ninja -C %s %s`\n", argv[0], path, program,
            strerror(error), path, program);
    return 1;
}

#endif
