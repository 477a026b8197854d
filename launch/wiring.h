// Puts a training run together: which process plays which role, and which body stands behind each seam.
#ifndef DR_LAUNCH_WIRING_H
#define DR_LAUNCH_WIRING_H

#include "launch/policy_parts.h"
#include "mpi/run.h"

// The typed settings of a run from its configuration; text is borrowed from `config`, hash [24] is filled in.
void dr_wiring_settings(const dr_config *config, char hash[24], dr_run_settings *out);

// Runs the roles of this process to their end: all of them without a launcher (loopback), those of its rank
// under mpirun or srun. What each worker will take of memory is said first, and DR_ERR_MEMORY returned when
// that is more than is free; is_plan: there it ends. *out_interrupted: the run was asked to stop early and
// has saved.
dr_status dr_wiring_run(const dr_cli *cli, const dr_config *config, const dr_run_settings *settings,
                        bool is_plan, int *out_interrupted);

#endif
