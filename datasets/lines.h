// Reading text files line by line, plain or gzip alike, and cutting lines into fields.
#ifndef DR_DATASETS_LINES_H
#define DR_DATASETS_LINES_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/alloc.h"

#ifdef __cplusplus
extern "C" {
#endif

// Called for each line without its end; `line` is NUL-terminated and may be changed in place. number is
// 1-based.
typedef dr_status (*dr_line_visitor)(void *context, const char *path, int64_t number, char *line);
// DR_ERR_IO when the file is missing or damaged (gzip's checksum included). progress: bytes are shown on the
// terminal.
dr_status dr_lines_read(const char *path, dr_line_visitor visit, void *context);

// Cuts `line` at each `separator` (a text) into fields [most] inside it; the count found, at most `most` + 1.
int32_t dr_fields_split(char *line, const char *separator, char **fields, int32_t most);
// The same for CSV (RFC 4180): commas, quoted fields, doubled quotes. -1 for an open quote.
int32_t dr_fields_csv(char *line, char **fields, int32_t most);
// A number that fills the whole text.
bool dr_field_number(const char *text, double *out);

// dir/name, or `given` when it is not "". Owned by the caller. DR_ERR_IO when there is no such file.
dr_status dr_source_path(const char *dir, const char *name, const char *given, char **out_path);

#ifdef __cplusplus
}
#endif
#endif
