// Runs a fuzz target over every file of the given folders: the seeds, and what once broke something.
#include <dirent.h>

#include "tests/fuzz/fuzz.h"

static void run_file(const char *path) {
    FILE *file = fopen(path, "rb");
    fuzz_demand(file != NULL, path);
    fseek(file, 0, SEEK_END);
    long size = ftell(file);
    rewind(file);
    uint8_t *bytes =
        malloc(size > 0 ? (size_t)size : 1); // no spare byte: the sanitizer sees the first one too far
    fuzz_demand(bytes && fread(bytes, 1, (size_t)size, file) == (size_t)size, path);
    fclose(file);
    LLVMFuzzerTestOneInput(bytes, (size_t)size);
    // and cut off at some places
    for (int i = 1; i < 16; i++) {
        size_t cut = (size_t)size * (size_t)i / 16;
        uint8_t *part = malloc(cut > 0 ? cut : 1);
        fuzz_demand(part != NULL, "memory");
        memcpy(part, bytes, cut);
        LLVMFuzzerTestOneInput(part, cut);
        free(part);
    }
    free(bytes);
}

int main(int argc, char **argv) {
    int n = 0;
    for (int i = 1; i < argc; i++) {
        DIR *dir = opendir(argv[i]);
        fuzz_demand(dir != NULL, argv[i]);
        for (struct dirent *entry; (entry = readdir(dir));) {
            char path[1024];
            if (entry->d_name[0] == '.') continue;
            snprintf(path, sizeof path, "%s/%.200s", argv[i], entry->d_name);
            run_file(path);
            n++;
        }
        closedir(dir);
    }
    printf("%d files\n", n);
    return n > 0 ? 0 : 1; // nothing to run is no success
}
