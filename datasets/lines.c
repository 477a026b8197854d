// Bodies of lines.h.
#include "datasets/lines.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "core/base/file.h"
#include "core/base/progress.h"

static dr_status read_all(gzFile file, const char *path, dr_line_visitor visit, void *context) {
    static const size_t most = (size_t)1 << 26;
    dr_buf line = {0};
    char piece[65536];
    int64_t number = 0;
    dr_status status = DR_OK;
    dr_progress progress = dr_progress_start("reading", "bytes", dr_file_size(path));
    while (status == DR_OK && gzgets(file, piece, sizeof piece)) {
        size_t length = strlen(piece);
        status = dr_buf_append(&line, piece, length);
        if (status == DR_OK && line.length > most)
            status = DR_FAIL(DR_ERR_FORMAT, "%s:%lld: a line of more than %zu bytes", path,
                             (long long)number + 1, most);
        if (status != DR_OK || (length > 0 && piece[length - 1] != '\n' && !gzeof(file))) continue;
        while (line.length > 0 && (line.data[line.length - 1] == '\n' || line.data[line.length - 1] == '\r'))
            line.data[--line.length] = '\0';
        number++;
        if (line.length > 0) status = visit(context, path, number, line.data);
        dr_buf_clear(&line);
        if (number % 1024 == 0) dr_progress_update(&progress, gzoffset(file));
    }
    int code = Z_OK;
    const char *text = gzerror(file, &code);
    if (status == DR_OK && code != Z_OK && code != Z_STREAM_END)
        status = DR_FAIL(DR_ERR_IO, "%s: line %lld: %s", path, (long long)number + 1, text);
    dr_progress_finish(&progress);
    dr_buf_reset(&line);
    return status;
}

dr_status dr_lines_read(const char *path, dr_line_visitor visit, void *context) {
    gzFile file = gzopen(path, "rb");
    DR_CHECK(file, DR_ERR_IO, "%s: cannot open: %s", path, strerror(errno));
    dr_status status = read_all(file, path, visit, context);
    gzclose(file);
    return status;
}

int32_t dr_fields_split(char *line, const char *separator, char **fields, int32_t most) {
    int32_t n = 0;
    size_t width = strlen(separator);
    for (char *at = line; at && n <= most; n++) {
        char *end = strstr(at, separator);
        if (end) *end = '\0';
        if (n < most) fields[n] = at;
        at = end ? end + width : NULL;
    }
    return n;
}

int32_t dr_fields_csv(char *line, char **fields, int32_t most) {
    int32_t n = 0;
    char *from = line, *to = line;
    for (bool more = true; more;) {
        char *begin = to;
        bool quoted = *from == '"';
        if (quoted) from++;
        for (;;) {
            if (*from == '\0') {
                if (quoted) return -1;
                more = false;
                break;
            }
            if (quoted && *from == '"') {
                if (from[1] != '"') {
                    quoted = false;
                    from++;
                    continue;
                }
                from++;
            } else if (!quoted && *from == ',') {
                from++;
                break;
            }
            *to++ = *from++;
        }
        *to++ = '\0';
        if (n < most) fields[n] = begin;
        n++;
    }
    return n;
}

bool dr_field_number(const char *text, double *out) {
    char *end = NULL;
    if (!*text) return false;
    double value = strtod(text, &end);
    if (*end || !(value > -1e300 && value < 1e300)) return false;
    *out = value;
    return true;
}

dr_status dr_source_path(const char *dir, const char *name, const char *given, char **out_path) {
    char *path = NULL;
    DR_TRY(given[0] ? dr_strdup(&path, given) : dr_path_join(&path, dir[0] ? dir : ".", name));
    if (!dr_file_exists(path)) {
        dr_status status = DR_FAIL(DR_ERR_IO, "%s: no such file", path);
        dr_free(path);
        return status;
    }
    *out_path = path;
    return DR_OK;
}
