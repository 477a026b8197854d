# Open MPI on one small machine, sourced by tests and scripts: as root, more ranks than cores, waiting ranks that yield
# (srun and per-host slot lists never turn that on), and nothing that leaves the machine: no ssh, which need not be there.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_mpi_yield_when_idle=1
export OMPI_MCA_plm=isolated
export OMPI_MCA_btl_tcp_if_include=lo OMPI_MCA_oob_tcp_if_include=lo
