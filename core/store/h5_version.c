// Asks the loaded library, not the header.
#include "core/store/h5_version.h"

#include <stdio.h>

#include <hdf5.h>

void dr_h5_version(char *out, size_t size) {
    unsigned major = 0, minor = 0, release = 0;
    hbool_t is_threadsafe = 0;
    if (H5get_libversion(&major, &minor, &release) < 0) {
        snprintf(out, size, "unknown");
        return;
    }
    if (H5is_library_threadsafe(&is_threadsafe) < 0) is_threadsafe = 0;
    snprintf(out, size, "%u.%u.%u%s", major, minor, release, is_threadsafe ? ", thread-safe" : "");
}
