// Whole files and folders: read, replace safely, make. What a format means is the business of its own module.
#ifndef DR_CORE_BASE_FILE_H
#define DR_CORE_BASE_FILE_H

#include <stddef.h>
#include <stdint.h>

#include "core/base/alloc.h"
#include "core/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

// Appends the bytes of a regular file to `buf` (NUL-terminated as always). DR_ERR_IO names the path and the
// system's reason; DR_ERR_RANGE when it is longer than max_bytes (0: no limit but memory).
dr_status dr_file_read(const char *path, int64_t max_bytes, dr_buf *buf);

// Replaces the file as a whole: temporary name beside it, fsync, rename, fsync of the folder. After a failure
// the old file is as it was and the temporary one is gone.
dr_status dr_file_replace(const char *path, const void *bytes, size_t length);

// The two halves of the above for writers that produce the temporary file themselves. dr_file_commit fsyncs
// temp_path, renames it to path and fsyncs the folder; on failure temp_path is removed.
dr_status dr_file_commit(const char *temp_path, const char *path);

// Makes a folder and its missing parents; fine when it is there already.
dr_status dr_dir_make(const char *path);

int dr_file_exists(const char *path); // anything at that path, folders included
int dr_dir_exists(const char *path);
int64_t dr_file_size(const char *path); // bytes, -1 when there is no regular file

// "folder/name" in a new string owned by the caller (no doubled slash).
dr_status dr_path_join(char **out_path, const char *folder, const char *name);

#ifdef __cplusplus
}
#endif
#endif
