// Checkpoints: checkpoints/step_N/{rank_R.h5, view.h5, manifest.json}. Rank files hold the rank's own shard
// of the fp32 weights and of both moments, flat, with its place in the whole; view.h5 shows them together,
// and every tensor by its name. Only a manifest, written last, makes a checkpoint real. Any number of
// learners can load one.
#ifndef DR_CORE_LEARN_CHECKPOINT_H
#define DR_CORE_LEARN_CHECKPOINT_H

#include "core/base/alloc.h"
#include "core/model/lm.h"
#include "core/model/optimizer.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct dr_checkpoint_file {
    char name[32];
    int64_t bytes;
    char digest[24]; // XXH3-64 of the whole file, hexadecimal
} dr_checkpoint_file;

typedef struct dr_checkpoint_info {
    int64_t step;    // steps done
    int64_t updates; // optimizer updates done
    char config_hash[24];
    int32_t n_files;
    dr_checkpoint_file *files; // [n_files], owned
    dr_checkpoint_file view;   // set by read and verify
} dr_checkpoint_info;
void dr_checkpoint_info_reset(dr_checkpoint_info *info);

// "RUN/checkpoints/step_000012" into a new string.
dr_status dr_checkpoint_dir(const char *run_dir, int64_t step, char **out_dir);

// Learner `part` of n_parts writes its optimizer's shard of weights and moments into dir/rank_PART.h5 and
// tells what it wrote. DR_ERR_ARGUMENT: the optimizer has another part's moments.
dr_status dr_checkpoint_write_part(dr_lm *lm, dr_optimizer *optimizer, const char *dir, int32_t part,
                                   int32_t n_parts, dr_checkpoint_file *out_file);
// view.h5 (virtual datasets over all rank files), then manifest.json.
dr_status dr_checkpoint_commit(const dr_lm_config *config, const char *dir, const dr_checkpoint_info *info);
// Removes all but the newest `keep` complete checkpoints, and incomplete ones older than those. Before the
// first removal the kept ones are read back, newest first, until one is undamaged; without one, older ones
// stay.
dr_status dr_checkpoint_prune(const char *run_dir, int32_t keep);

// The newest checkpoint that is complete and undamaged. Damaged ones are named in a warning and skipped.
// *out_step = -1 when there is none at all; DR_ERR_FORMAT when there are some and none is usable: a run never
// starts over silently.
dr_status dr_checkpoint_find(const char *run_dir, int64_t *out_step);
// manifest.json, by its own digest, and its step against the folder's name; no other file is read.
dr_status dr_checkpoint_read(const char *dir, dr_checkpoint_info *out_info);
// The same, and the digests of all files checked.
dr_status dr_checkpoint_verify(const char *dir, dr_checkpoint_info *out_info);
// Fills weights, those that this model keeps, and, when optimizer is not NULL, the moments of its shard and
// the update count; then repacks the weights. DR_ERR_FORMAT: of another model, by the name of a tensor.
dr_status dr_checkpoint_load(dr_lm *lm, dr_optimizer *optimizer, const char *dir);
// dr_lm_save of a checkpoint's weights as DR_SAVE_FP32, in pieces from its files: memory for all of them is
// not wanted. lm: of the same shape; an outline is enough. For a checkpoint that was just written or loaded:
// the digests of its files, which cost reading the moments too, are not checked again.
dr_status dr_checkpoint_export(const dr_lm *lm, const char *dir, const char *out_dir);

#ifdef __cplusplus
}
#endif
#endif
