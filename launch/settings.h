// The settings of `deeprec train`: one table that the YAML reader, --set, `deeprec config` and the reference
// page share. Adding a setting is adding a row in settings.c.
#ifndef DR_LAUNCH_SETTINGS_H
#define DR_LAUNCH_SETTINGS_H

#include <stdint.h>

#include "core/base/config.h"

#ifdef __cplusplus
extern "C" {
#endif

extern const dr_setting dr_train_settings[];
extern const int32_t dr_train_settings_count;

// Defaults, then the file (NULL: none), then the overrides "key=value" in order. Rules between settings are
// checked too (a top-p of 0, a clip range of nothing, stages with nothing to do). DR_ERR_ARGUMENT when a
// required one is missing and `needs_all` is set.
dr_status dr_settings_read(const char *path, const char *const *overrides, int32_t n_overrides, int needs_all,
                           dr_config **out_config);

#ifdef __cplusplus
}
#endif
#endif
