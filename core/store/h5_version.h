// Which HDF5 library runs here, for reports; the reading and writing is in h5.h.
#ifndef DR_CORE_STORE_H5_VERSION_H
#define DR_CORE_STORE_H5_VERSION_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

// "1.10.8, thread-safe" into out (cut to size).
void dr_h5_version(char *out, size_t size);

#ifdef __cplusplus
}
#endif
#endif
