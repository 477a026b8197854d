// What the fuzz targets share: each target is a program of libFuzzer (LLVMFuzzerTestOneInput), or of
// replay.c, which runs it over files.
#ifndef DR_TESTS_FUZZ_FUZZ_H
#define DR_TESTS_FUZZ_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/log.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

// Stops the program, which is what a fuzzer takes for a finding.
static inline void fuzz_demand(int holds, const char *what) {
    if (holds) return;
    fprintf(stderr, "broken promise: %s\n", what);
    abort();
}

// Removes a target's files and their folder at the end of the process (libFuzzer skips that; tests/fuzz.sh
// sweeps up).
static inline void fuzz_remove_folder(void) {
    static const char *const names[] = {"model.safetensors", "config.json", "template", "chat_template.jinja",
                                        ""};
    char path[128];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) { // the folder itself last
        snprintf(path, sizeof path, "%s/deeprec-fuzz-%ld/%s",
                 access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp", (long)getpid(), names[i]);
        remove(path);
    }
}

// A folder of this process, in memory where the system has such a place. Made once, silences the log.
static inline const char *fuzz_folder(void) {
    static char folder[64];
    if (!folder[0]) {
        atexit(fuzz_remove_folder);
        dr_log_set_level(DR_LOG_ERROR + 1);
        snprintf(folder, sizeof folder, "%s/deeprec-fuzz-%ld",
                 access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp", (long)getpid());
        mkdir(folder, 0700);
    }
    return folder;
}

// The bytes as a file of that folder; its path, valid until the next call.
static inline const char *fuzz_file(const char *name, const void *bytes, size_t size) {
    static char path[128];
    snprintf(path, sizeof path, "%s/%s", fuzz_folder(), name);
    FILE *file = fopen(path, "wb");
    fuzz_demand(file && fwrite(bytes, 1, size, file) == size && fclose(file) == 0,
                "the input can be written");
    return path;
}

#endif
