// How much memory this process may still take, and how much of it stays near a processor.
#ifndef DR_CORE_BASE_HOST_MEMORY_H
#define DR_CORE_BASE_HOST_MEMORY_H

#include <stdint.h>

#include "core/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

// Bytes that may still be taken and bytes in all: the machine's (MemAvailable and MemTotal of /proc/meminfo),
// or less where a control group of this process, of version 1 or 2, or one above it, has a limit. File pages
// that a group could give back count as free. DR_ERR_IO, DR_ERR_FORMAT: no such /proc/meminfo.
dr_status dr_host_memory(int64_t *out_free, int64_t *out_total);
// The same from files below `root`, a folder that stands for "/".
dr_status dr_host_memory_under(const char *root, int64_t *out_free, int64_t *out_total);

// Bytes of the first processor's third-level cache, as the system tells them; 0: it does not.
int64_t dr_host_cache(void);
int64_t dr_host_cache_under(const char *root);

#ifdef __cplusplus
}
#endif
#endif
