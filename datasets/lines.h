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
// DR_ERR_IO when the file is missing or damaged (gzip's checksum and length included). Progress is shown.
// Empty lines are skipped but counted.
dr_status dr_lines_read(const char *path, dr_line_visitor visit, void *context);

// Cuts `line` at each `separator` (a text) into fields [most] inside it; the count found, at most `most` + 1.
int32_t dr_fields_split(char *line, const char *separator, char **fields, int32_t most);
// The same for CSV (RFC 4180) with any separator: quoted fields, doubled quotes. The full count; -1 for an
// open quote.
int32_t dr_fields_quoted(char *line, char separator, char **fields, int32_t most);
// Puts the separators back where n fields were cut, to show the line in an error; returns it.
const char *dr_fields_join(char *line, char separator, int32_t n);
// A number that fills the whole text.
bool dr_field_number(const char *text, double *out);

// `given` when it is not "", else the one file of `dir` ("": here) that fits the first of `patterns` (shell
// patterns with spaces between them, "!(a|b)" and "?(a)" included) that any file fits. Owned by the caller.
// DR_ERR_IO when there is none, DR_ERR_ARGUMENT when several fit.
dr_status dr_source_path(const char *dir, const char *patterns, const char *given, char **out_path);

#ifdef __cplusplus
}
#endif
#endif
