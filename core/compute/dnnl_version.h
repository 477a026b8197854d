// Which oneDNN library runs here, for reports.
#ifndef DR_CORE_COMPUTE_DNNL_VERSION_H
#define DR_CORE_COMPUTE_DNNL_VERSION_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

// "2.6.3, OpenMP threads, instruction set up to AVX-512 with AMX" into out (cut to size).
void dr_dnnl_version(char *out, size_t size);

#ifdef __cplusplus
}
#endif
#endif
