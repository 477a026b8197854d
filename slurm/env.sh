# Environment of a job, each variable with its reason. Sourced by the batch scripts; override before sbatch.
export DEEPREC=${DEEPREC:-build/release/deeprec}             # the program, built on the cluster
export OMP_PROC_BIND=${OMP_PROC_BIND:-close}                 # threads stay beside their rank's memory
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}           # idle threads sleep: rollout and retrieval share cores
export OMPI_MCA_mpi_yield_when_idle=${OMPI_MCA_mpi_yield_when_idle:-1} # srun never turns it on by itself
export HDF5_USE_FILE_LOCKING=${HDF5_USE_FILE_LOCKING:-BEST_EFFORT}     # parallel file systems without flock
