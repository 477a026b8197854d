// The library's own text is long; its first part, up to the comma, names it.
#include "mpi/mpi_version.h"

#include <stdio.h>
#include <string.h>

#include <mpi.h>

void dr_mpi_version(char *out, size_t size) {
    char text[MPI_MAX_LIBRARY_VERSION_STRING] = "";
    int length = 0, major = 0, minor = 0;
    if (MPI_Get_library_version(text, &length) != MPI_SUCCESS || length == 0)
        strcpy(text, "unnamed MPI library");
    MPI_Get_version(&major, &minor);
    snprintf(out, size, "%.*s, standard %d.%d", (int)strcspn(text, ",\n"), text, major, minor);
}
