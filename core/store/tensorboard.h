// TensorBoard event files with scalar curves. Format: a record is length (uint64), masked CRC32C of the
// length, data, masked CRC32C of the data, all little-endian (the TFRecord format); the data is the protocol
// buffer Event {1: wall_time double, 2: step int64, 3: file_version string, 5: Summary {1: Value {1: tag, 2:
// float}}}.
#ifndef DR_CORE_STORE_TENSORBOARD_H
#define DR_CORE_STORE_TENSORBOARD_H

#include <stdint.h>

#include "core/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct dr_tensorboard dr_tensorboard;

// A new file at path, with its version record stamped wall_time (seconds since 1970); what was there is
// replaced. TensorBoard looks for names that contain "tfevents". DR_ERR_IO names the path.
dr_status dr_tensorboard_create(const char *path, double wall_time, dr_tensorboard **out_board);
// One event: values[i] under tags[i], n of them, at `step`. Reaches the file before it returns.
dr_status dr_tensorboard_scalars(dr_tensorboard *board, int64_t step, double wall_time,
                                 const char *const *tags, const float *values, int32_t n);
void dr_tensorboard_close(dr_tensorboard *board); // NULL is allowed

#ifdef __cplusplus
}
#endif
#endif
