// Summaries of files for people; `deeprec inspect` chooses among them.
#ifndef DR_LAUNCH_INSPECT_H
#define DR_LAUNCH_INSPECT_H

#include <jansson.h>
#include <stdbool.h>

#include "core/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

// Each prints to standard output and returns the first error of reading. `lists_all` is the user's --all.
dr_status dr_inspect_hdf5(const char *path, int lists_all);
dr_status dr_inspect_safetensors(const char *path, int lists_all);
dr_status dr_inspect_json(const char *path);
dr_status dr_inspect_json_lines(const char *path);
dr_status dr_inspect_settings(const char *path);
// Parts of the above: means over the quarters of each stage, for lines of metrics; means and ends of a
// trajectories file.
bool dr_inspect_is_metrics(const json_t *line);
void dr_inspect_metrics(const json_t *lines);
dr_status dr_inspect_trajectories(const char *path);

#ifdef __cplusplus
}
#endif
#endif
