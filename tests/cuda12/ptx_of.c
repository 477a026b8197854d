// Compiles one .cu file by NVRTC, the device compiler that CUDA has as a library: its kernels' PTX on the
// standard output, what the compiler says on the standard error. Ends with 1 where it says anything, warnings
// included.
//   ptx_of LIBRARY SOURCE OPTION...
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct program *nvrtc_program;

// nvrtc.h, as far as it is called here; results are an enum whose 0 is success.
typedef struct nvrtc {
    int (*create)(nvrtc_program *out, const char *source, const char *name, int n_headers,
                  const char *const *texts, const char *const *names);
    int (*compile)(nvrtc_program program, int n_options, const char *const *options);
    int (*log_size)(nvrtc_program program, size_t *out);
    int (*log)(nvrtc_program program, char *out);
    int (*ptx_size)(nvrtc_program program, size_t *out);
    int (*ptx)(nvrtc_program program, char *out);
    const char *(*error_string)(int result);
} nvrtc;

// What the sources take of the C library's headers, which NVRTC has none of.
static const char *const header_names[] = {"stdint.h", "math.h",   "stdbool.h",
                                           "stddef.h", "stdlib.h", "string.h"};
static const char *const header_texts[] = {
    "typedef signed char int8_t; typedef unsigned char uint8_t;\n"
    "typedef short int16_t; typedef unsigned short uint16_t;\n"
    "typedef int int32_t; typedef unsigned int uint32_t;\n"
    "typedef long int64_t; typedef unsigned long uint64_t, uintptr_t;\n"
    "#define INT32_MAX 2147483647\n#define INT64_MAX 9223372036854775807L\n",
    "#define INFINITY __int_as_float(0x7f800000)\n",
    "",
    "",
    "",
    ""};
enum { N_HEADERS = sizeof header_names / sizeof *header_names };

static void fail(const char *what, const char *why) {
    fprintf(stderr, "ptx_of: %s: %s\n", what, why);
    exit(1);
}

static void find(void *library, const char *name, void *out_function) {
    void *symbol = dlsym(library, name);
    if (!symbol) fail(name, "not in the library");
    memcpy(out_function, &symbol, sizeof symbol);
}

static nvrtc load(const char *path) {
    nvrtc n;
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) fail(path, dlerror());
    find(library, "nvrtcCreateProgram", &n.create);
    find(library, "nvrtcCompileProgram", &n.compile);
    find(library, "nvrtcGetProgramLogSize", &n.log_size);
    find(library, "nvrtcGetProgramLog", &n.log);
    find(library, "nvrtcGetPTXSize", &n.ptx_size);
    find(library, "nvrtcGetPTX", &n.ptx);
    find(library, "nvrtcGetErrorString", &n.error_string);
    return n;
}

static char *memory(size_t bytes) {
    char *text = calloc(bytes + 1, 1);
    if (!text) fail("memory", "none left");
    return text;
}

static char *read_source(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END) != 0) fail(path, "cannot be read");
    long size = ftell(file);
    rewind(file);
    char *text = memory(size > 0 ? (size_t)size : 0);
    if (size <= 0 || fread(text, 1, (size_t)size, file) != (size_t)size) fail(path, "cannot be read");
    fclose(file);
    return text;
}

int main(int argc, char **argv) {
    if (argc < 4) fail("usage", "ptx_of LIBRARY SOURCE OPTION...");
    const nvrtc n = load(argv[1]);
    nvrtc_program program = NULL;
    char *source = read_source(argv[2]);
    size_t log_size = 0, ptx_size = 0;
    int result = n.create(&program, source, argv[2], N_HEADERS, header_texts, header_names);
    if (result != 0) fail(argv[2], n.error_string(result));
    result = n.compile(program, argc - 3, (const char *const *)argv + 3);
    if (n.log_size(program, &log_size) != 0) fail(argv[2], "no log");
    char *log = memory(log_size);
    if (log_size > 0 && n.log(program, log) != 0) fail(argv[2], "no log");
    fputs(log, stderr);
    if (result != 0) fail(argv[2], n.error_string(result));
    if (n.ptx_size(program, &ptx_size) != 0) fail(argv[2], "no PTX");
    char *ptx = memory(ptx_size);
    if (n.ptx(program, ptx) != 0) fail(argv[2], "no PTX");
    fputs(ptx, stdout);
    const int said = log[strspn(log, " \n")] != '\0';
    free(ptx);
    free(log);
    free(source);
    return said;
}
