// The weights of a Hugging Face folder: model.safetensors, or model.safetensors.index.json with shards. The
// index is distrusted like every header: it names files of this folder only, and says of every tensor of
// every shard, and of no other, where it is.
#ifndef DR_CORE_STORE_SAFETENSORS_FOLDER_H
#define DR_CORE_STORE_SAFETENSORS_FOLDER_H

#include "core/store/safetensors.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct dr_safetensors_folder dr_safetensors_folder;

// model.safetensors when it is there, else the index with all its shards, mapped read-only. DR_ERR_IO:
// neither is there, or a shard is missing; DR_ERR_FORMAT: an index that is no index, a name outside the
// folder, a tensor in no shard, in another shard than the index says, or in a shard and not in the index. The
// text names the index, the tensor and the shards.
dr_status dr_safetensors_folder_open(const char *dir, dr_safetensors_folder **out_folder);
void dr_safetensors_folder_close(dr_safetensors_folder *folder); // NULL is fine
// model.safetensors or the index, for error texts; borrowed.
const char *dr_safetensors_folder_path(const dr_safetensors_folder *folder);
// All tensors of all files.
int32_t dr_safetensors_folder_count(const dr_safetensors_folder *folder);
const dr_safetensor *dr_safetensors_folder_at(const dr_safetensors_folder *folder, int32_t index);
// NULL when absent.
const dr_safetensor *dr_safetensors_folder_find(const dr_safetensors_folder *folder, const char *name);
// As dr_safetensors_check and dr_safetensors_read, whichever file the tensor is in.
dr_status dr_safetensors_folder_check(const dr_safetensors_folder *folder, const char *name,
                                      const int64_t *shape, int32_t n_dims);
dr_status dr_safetensors_folder_read(const dr_safetensors_folder *folder, const char *name,
                                     const int64_t *shape, int32_t n_dims, float *out);

// Writes model.safetensors, or, when the tensors' bytes are more than max_shard_bytes, shards
// model-0000I-of-0000N.safetensors of at most that size (one tensor at least) in the given order and their
// index. All new files are whole on the disk before the first old one goes; weights under the other names of
// this scheme are removed. Between the two, for an instant, a folder that had shards before has no index, and
// nothing opens it: old and new shards never mix. DR_ERR_ARGUMENT: max_shard_bytes < 1.
dr_status dr_safetensors_folder_write(const char *dir, const dr_safetensor_source *tensors, int32_t n_tensors,
                                      int64_t max_shard_bytes);

#ifdef __cplusplus
}
#endif
#endif
