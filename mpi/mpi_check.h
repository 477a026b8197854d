// Turns MPI error codes into ours; only files of this room include it.
#ifndef DR_MPI_MPI_CHECK_H
#define DR_MPI_MPI_CHECK_H

#include "core/base/status.h"

dr_status dr_mpi_check(int code, const char *call);
#define DR_MPI(call) DR_TRY(dr_mpi_check((call), #call))

#endif
