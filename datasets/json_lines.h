// Categories as JSON catalogues write them.
#ifndef DR_DATASETS_JSON_LINES_H
#define DR_DATASETS_JSON_LINES_H

#include <jansson.h>

#include "core/base/alloc.h"

// A text, a list of names, or a list of paths from the general to the special: distinct names without the
// root of a path, at most four, joined by ", ".
dr_status dr_categories_from_json(const json_t *value, dr_buf *out);

#endif
