// Bodies of lines.h.
#include "datasets/lines.h"

#include <dirent.h>
#include <errno.h>
#include <fnmatch.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "core/base/file.h"
#include "core/base/progress.h"

enum { PIECE = 65536, LONGEST = 1 << 26 };

typedef struct line_reader {
    const char *path;
    dr_line_visitor visit;
    void *context;
    dr_buf line; // what came of the current line
    int64_t number;
} line_reader;

// Hands over the collected line. A NUL inside becomes a control character, so that nothing behind it is lost
// unseen: it spoils a number and is white space in a title. A byte order mark is dropped.
static dr_status end_line(line_reader *r) {
    dr_buf *line = &r->line;
    dr_status status = DR_OK;
    r->number++;
    while (line->length > 0 && line->data[line->length - 1] == '\r') line->data[--line->length] = '\0';
    for (size_t i = 0; i < line->length; i++)
        if (line->data[i] == '\0') line->data[i] = '\x01';
    bool marked = r->number == 1 && line->length >= 3 && memcmp(line->data, "\xEF\xBB\xBF", 3) == 0;
    if (line->length > (marked ? 3 : 0))
        status = r->visit(r->context, r->path, r->number, line->data + (marked ? 3 : 0));
    dr_buf_clear(line);
    return status;
}

static dr_status take_piece(line_reader *r, const char *piece, size_t length) {
    for (const char *at = piece, *end = piece + length; at < end;) {
        const char *stop = memchr(at, '\n', (size_t)(end - at));
        DR_TRY(dr_buf_append(&r->line, at, (size_t)((stop ? stop : end) - at)));
        DR_CHECK(r->line.length <= LONGEST, DR_ERR_FORMAT, "%s:%lld: a line of more than %d bytes", r->path,
                 (long long)r->number + 1, LONGEST);
        if (stop) DR_TRY(end_line(r));
        at = stop ? stop + 1 : end;
    }
    return DR_OK;
}

static dr_status read_all(gzFile file, line_reader *r) {
    char piece[PIECE];
    dr_progress progress = dr_progress_start("reading", "bytes", dr_file_size(r->path));
    for (;;) {
        int n = gzread(file, piece, sizeof piece), code = Z_OK;
        const char *text = gzerror(file, &code);
        if (n < 0 || (code != Z_OK && code != Z_STREAM_END)) // Z_BUF_ERROR: a gzip file that ends too early
            return DR_FAIL(DR_ERR_IO, "%s: behind line %lld: %s", r->path, (long long)r->number,
                           code == Z_ERRNO ? strerror(errno) : text);
        if (n == 0) break;
        DR_TRY(take_piece(r, piece, (size_t)n));
        dr_progress_update(&progress, gzoffset(file));
    }
    if (r->line.length > 0) DR_TRY(end_line(r));
    dr_progress_finish(&progress);
    return DR_OK;
}

dr_status dr_lines_read(const char *path, dr_line_visitor visit, void *context) {
    gzFile file = gzopen(path, "rb");
    DR_CHECK(file, DR_ERR_IO, "%s: cannot open: %s", path, strerror(errno));
    line_reader reader = {.path = path, .visit = visit, .context = context};
    dr_status status = read_all(file, &reader);
    gzclose(file);
    dr_buf_reset(&reader.line);
    return status;
}

int32_t dr_fields_split(char *line, const char *separator, char **fields, int32_t most) {
    int32_t n = 0;
    size_t width = strlen(separator);
    for (char *at = line; at && n <= most; n++) {
        char *end = strstr(at, separator);
        if (end && n < most) *end = '\0';
        if (n < most) fields[n] = at;
        at = end ? end + width : NULL;
    }
    return n;
}

int32_t dr_fields_quoted(char *line, char separator, char **fields, int32_t most) {
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
            } else if (!quoted && *from == separator) {
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

const char *dr_fields_join(char *line, char separator, int32_t n) {
    char *at = line;
    for (; n > 1; n--) {
        at += strlen(at);
        *at = separator;
    }
    return line;
}

bool dr_field_number(const char *text, double *out) {
    char *end = NULL;
    if (!*text) return false;
    double value = strtod(text, &end);
    if (*end || !(value > -1e300 && value < 1e300)) return false;
    *out = value;
    return true;
}

// The file of `dir` that fits one pattern; NULL when there is none.
static dr_status find_file(const char *dir, const char *pattern, char **out_path) {
    DIR *folder = opendir(dir);
    char *path = NULL;
    dr_status status = DR_OK;
    DR_CHECK(folder, DR_ERR_IO, "%s: cannot open: %s", dir, strerror(errno));
    for (struct dirent *entry; status == DR_OK && (entry = readdir(folder));) {
        if (fnmatch(pattern, entry->d_name, FNM_EXTMATCH) != 0) continue;
        if (path)
            status = DR_FAIL(DR_ERR_ARGUMENT, "%s and %s/%s both fit %s; say which one", path, dir,
                             entry->d_name, pattern);
        else
            status = dr_path_join(&path, dir, entry->d_name);
    }
    closedir(folder);
    if (status == DR_OK)
        *out_path = path;
    else
        dr_free(path);
    return status;
}

dr_status dr_source_path(const char *dir, const char *patterns, const char *given, char **out_path) {
    char list[256], *rest = NULL, *path = NULL;
    if (given[0]) {
        DR_CHECK(dr_file_exists(given), DR_ERR_IO, "%s: no such file", given);
        return dr_strdup(out_path, given);
    }
    DR_ASSERT(strlen(patterns) < sizeof list);
    memcpy(list, patterns, strlen(patterns) + 1);
    for (char *at = strtok_r(list, " ", &rest); at && !path; at = strtok_r(NULL, " ", &rest))
        DR_TRY(find_file(dir[0] ? dir : ".", at, &path));
    DR_CHECK(path, DR_ERR_IO, "%s: no file like %s", dir[0] ? dir : ".", patterns);
    *out_path = path;
    return DR_OK;
}
