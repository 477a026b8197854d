// One HDF5 file of a step's trajectories per reward shard, readable with h5py: flat arrays with offsets,
// names, descriptions, units; everything that reproduces a sample.
#ifndef DR_CORE_LEARN_TRAJECTORY_STORE_H
#define DR_CORE_LEARN_TRAJECTORY_STORE_H

#include "core/base/status.h"
#include "core/episode/trajectory.h"

#ifdef __cplusplus
extern "C" {
#endif

// Writes trajectories [n] in the given order. Safe replacement; equal trajectories give equal bytes.
dr_status dr_trajectories_write(const char *path, const dr_trajectory *const *trajectories, int32_t n,
                                uint32_t step, const char *stage);

#ifdef __cplusplus
}
#endif
#endif
