// Which MPI library runs here. Allowed before MPI_Init and after MPI_Finalize; starts nothing.
#ifndef DR_MPI_MPI_VERSION_H
#define DR_MPI_MPI_VERSION_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

// One line such as "Open MPI v4.1.4, standard 3.1" into out (cut to size).
void dr_mpi_version(char *out, size_t size);

#ifdef __cplusplus
}
#endif
#endif
