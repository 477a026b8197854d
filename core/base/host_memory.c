// Linux: /proc/meminfo, and the limits of control groups.
#include "core/base/host_memory.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "core/base/alloc.h"
#include "core/base/file.h"

// One version's names for the same four things.
typedef struct group_files {
    const char *mount, *limit, *usage, *cache_key;
} group_files;
static const group_files version_1 = {"/sys/fs/cgroup/memory", "memory.limit_in_bytes",
                                      "memory.usage_in_bytes", "total_inactive_file "};
static const group_files version_2 = {"/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file "};

typedef struct amounts {
    int64_t free, total;
} amounts;

// The number behind `key` at the beginning of a line; false: there is none.
static bool number_of(const char *text, const char *key, int64_t *out) {
    size_t length = strlen(key);
    for (const char *line = text; line; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (strncmp(line, key, length) == 0) return sscanf(line + length, "%" SCNd64, out) == 1;
    }
    return false;
}

// The number of a group's file; false: no such file, or a word ("max") stands there.
static bool group_number(const char *folder, const char *name, const char *key, int64_t *out) {
    char *path = NULL;
    dr_buf text = {0};
    bool found = dr_path_join(&path, folder, name) == DR_OK && dr_file_exists(path) &&
                 dr_file_read(path, 0, &text) == DR_OK && number_of(text.data, key, out);
    dr_buf_reset(&text);
    dr_free(path);
    return found;
}

static void obey_limit(const group_files *files, const char *folder, amounts *a) {
    int64_t limit, usage, cache = 0;
    if (!group_number(folder, files->limit, "", &limit) || !group_number(folder, files->usage, "", &usage))
        return;
    group_number(folder, "memory.stat", files->cache_key, &cache);
    int64_t left = limit - (usage - (cache < usage ? cache : usage));
    if (left < 0) left = 0;
    if (left < a->free) a->free = left;
    if (limit < a->total) a->total = limit;
}

// A group and all above it. path: "/…", as /proc/self/cgroup has it.
static dr_status obey_groups(const char *root, const group_files *files, const char *path, size_t length,
                             amounts *a) {
    for (;;) {
        dr_buf folder = {0};
        dr_status status = dr_buf_printf(&folder, "%s%s%.*s", root, files->mount, (int)length, path);
        if (status == DR_OK) obey_limit(files, folder.data, a);
        dr_buf_reset(&folder);
        DR_TRY(status);
        if (length == 0) return DR_OK;
        while (length > 0 && path[length - 1] != '/') length--;
        if (length > 0) length--;
    }
}

// A line of /proc/self/cgroup: number, controllers and path, with colons between; version 2 has no
// controllers.
static dr_status obey_line(const char *root, const char *line, size_t length, amounts *a) {
    const char *end = line + length, *names = memchr(line, ':', length);
    const char *path = names ? memchr(names + 1, ':', (size_t)(end - names - 1)) : NULL;
    if (!path) return DR_OK;
    names++;
    bool has_memory = false;
    for (const char *at = names; at < path;) {
        const char *comma = memchr(at, ',', (size_t)(path - at)), *stop = comma ? comma : path;
        has_memory |= stop - at == 6 && strncmp(at, "memory", 6) == 0;
        at = stop + 1;
    }
    bool is_version_2 = names == path;
    if (!has_memory && !is_version_2) return DR_OK;
    path++;
    return obey_groups(root, is_version_2 ? &version_2 : &version_1, path, (size_t)(end - path), a);
}

static dr_status read_meminfo(const char *root, amounts *a) {
    dr_buf path = {0}, text = {0};
    dr_status status = dr_buf_printf(&path, "%s/proc/meminfo", root);
    if (status == DR_OK) status = dr_file_read(path.data, 0, &text);
    if (status == DR_OK &&
        !(number_of(text.data, "MemAvailable:", &a->free) && number_of(text.data, "MemTotal:", &a->total)))
        status = DR_FAIL(DR_ERR_FORMAT, "%s: no MemAvailable and MemTotal in kB", path.data);
    dr_buf_reset(&path);
    dr_buf_reset(&text);
    a->free *= 1024;
    a->total *= 1024;
    return status;
}

static dr_status read_groups(const char *root, amounts *a) {
    dr_buf path = {0}, text = {0};
    dr_status status = dr_buf_printf(&path, "%s/proc/self/cgroup", root);
    bool is_there = status == DR_OK && dr_file_exists(path.data);
    if (is_there) status = dr_file_read(path.data, 0, &text);
    for (const char *line = text.data; is_there && status == DR_OK && line && *line;) {
        size_t length = strcspn(line, "\n");
        status = obey_line(root, line, length, a);
        line += length + (line[length] == '\n');
    }
    dr_buf_reset(&path);
    dr_buf_reset(&text);
    return status;
}

dr_status dr_host_memory_under(const char *root, int64_t *out_free, int64_t *out_total) {
    amounts a = {0};
    DR_TRY(read_meminfo(root, &a));
    DR_TRY(read_groups(root, &a));
    *out_free = a.free;
    *out_total = a.total;
    return DR_OK;
}

dr_status dr_host_memory(int64_t *out_free, int64_t *out_total) {
    return dr_host_memory_under("", out_free, out_total);
}

int64_t dr_host_cache_under(const char *root) {
    dr_buf path = {0}, text = {0};
    int64_t kilobytes = 0;
    char unit = 0;
    if (dr_buf_printf(&path, "%s/sys/devices/system/cpu/cpu0/cache/index3/size", root) == DR_OK &&
        dr_file_exists(path.data) && dr_file_read(path.data, 0, &text) == DR_OK &&
        (sscanf(text.data, "%" SCNd64 "%c", &kilobytes, &unit) != 2 || unit != 'K' || kilobytes < 0))
        kilobytes = 0;
    dr_buf_reset(&path);
    dr_buf_reset(&text);
    return kilobytes * 1024;
}

int64_t dr_host_cache(void) {
    return dr_host_cache_under("");
}
