// What checkpoint.c, of manifests and folders, and checkpoint_contents.c, of values, share.
#ifndef DR_CORE_LEARN_CHECKPOINT_INTERNAL_H
#define DR_CORE_LEARN_CHECKPOINT_INTERNAL_H

#include "core/learn/checkpoint.h"

#define DR_CHECKPOINT_VIEW "view.h5"

// Bytes and digest of dir/file->name.
dr_status dr_checkpoint_digest(const char *dir, dr_checkpoint_file *file);
// Every tensor by its name, and the flat parameters and moments put together, of n_parts rank files.
dr_status dr_checkpoint_write_view(const char *dir, int32_t n_parts, const dr_lm *shape);

#endif
