// Puts a training run together: which process plays which role, and which body stands behind each seam.
#ifndef DR_LAUNCH_WIRING_H
#define DR_LAUNCH_WIRING_H

#include "launch/policy_parts.h"
#include "mpi/run.h"

// The typed settings of a run from its configuration; text is borrowed from `config`, hash [24] is filled in.
void dr_wiring_settings(const dr_config *config, char hash[24], dr_run_settings *out);

// Runs the roles of this process to their end: all of them without a launcher (loopback), those of its rank
// under mpirun or srun. model_dir NULL: `parts` already holds the model. *out_interrupted: the run was asked
// to stop early and has saved.
dr_status dr_wiring_run(const dr_cli *cli, const dr_config *config, dr_run_settings *settings,
                        int *out_interrupted);

#endif
