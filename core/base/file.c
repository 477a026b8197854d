// POSIX files. Every refusal names the path and the system's reason.
#include "core/base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/alive.h"

static dr_status read_all(int fd, const char *path, int64_t max_bytes, dr_buf *buf) {
    char chunk[65536];
    int64_t total = 0;
    for (;;) {
        ssize_t got = read(fd, chunk, sizeof chunk);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return DR_FAIL(DR_ERR_IO, "%s: cannot read: %s", path, strerror(errno));
        if (got == 0) return dr_buf_append(buf, "", 0);
        total += got;
        if (max_bytes > 0 && total > max_bytes)
            return DR_FAIL(DR_ERR_RANGE, "%s: longer than the %lld bytes allowed here", path,
                           (long long)max_bytes);
        DR_TRY(dr_buf_append(buf, chunk, (size_t)got));
    }
}

dr_status dr_file_read(const char *path, int64_t max_bytes, dr_buf *buf) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return DR_FAIL(DR_ERR_IO, "%s: cannot open: %s", path, strerror(errno));
    struct stat info;
    size_t before = buf->length;
    dr_status status = DR_OK;
    if (fstat(fd, &info) == 0 && S_ISDIR(info.st_mode))
        status = DR_FAIL(DR_ERR_IO, "%s: is a folder, expected a file", path);
    else
        status = read_all(fd, path, max_bytes, buf);
    close(fd);
    if (status != DR_OK && buf->data) {
        buf->length = before;
        buf->data[before] = '\0';
    }
    return status;
}

static dr_status sync_path(const char *path, int flags) {
    int fd = open(path, flags | O_CLOEXEC);
    if (fd < 0) return DR_FAIL(DR_ERR_IO, "%s: cannot open to flush: %s", path, strerror(errno));
    int failed = fsync(fd) != 0 && errno != EINVAL ? errno : 0; // EINVAL: a file system without fsync
    if (close(fd) != 0 && !failed) failed = errno;
    if (failed) return DR_FAIL(DR_ERR_IO, "%s: cannot flush to disk: %s", path, strerror(failed));
    return DR_OK;
}

static dr_status sync_folder_of(const char *path) {
    char folder[PATH_MAX];
    const char *slash = strrchr(path, '/');
    size_t length = slash ? (size_t)(slash - path) : 0;
    if (length >= sizeof folder) return DR_FAIL(DR_ERR_ARGUMENT, "%s: path too long", path);
    if (slash && length == 0)
        strcpy(folder, "/");
    else if (!slash)
        strcpy(folder, ".");
    else {
        memcpy(folder, path, length);
        folder[length] = '\0';
    }
    return sync_path(folder, O_RDONLY | O_DIRECTORY);
}

// Most of what a flush of the whole file would do, piece by piece: as one it may take minutes.
static dr_status flush_in_pieces(int fd, const char *path) {
    enum { PIECE = 64 << 20 };
    const unsigned flags = SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;
    struct stat info;
    if (fstat(fd, &info) != 0) return DR_OK; // what follows says why
    for (off_t at = 0; at < info.st_size; at += PIECE) {
        if (sync_file_range(fd, at, PIECE, flags) != 0) {
            bool is_unknown = errno == EINVAL || errno == ENOSYS || errno == ESPIPE; // of this file system
            return is_unknown ? DR_OK
                              : DR_FAIL(DR_ERR_IO, "%s: cannot flush to disk: %s", path, strerror(errno));
        }
        DR_TRY(dr_alive_work());
    }
    return DR_OK;
}

static dr_status flush_file(const char *path) {
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) return DR_FAIL(DR_ERR_IO, "%s: cannot open to flush: %s", path, strerror(errno));
    dr_status status = flush_in_pieces(fd, path);
    close(fd);
    return status;
}

dr_status dr_file_commit(const char *temp_path, const char *path) {
    dr_status status = DR_OK;
    DR_TRY_GOTO(status, flush_file(temp_path), remove_temp);
    DR_TRY_GOTO(status, sync_path(temp_path, O_RDWR), remove_temp);
    DR_CHECK_GOTO(rename(temp_path, path) == 0, status, DR_ERR_IO, remove_temp, "%s: cannot rename to %s: %s",
                  temp_path, path, strerror(errno));
    return sync_folder_of(path);

remove_temp:
    unlink(temp_path);
    return status;
}

dr_status dr_file_replace(const char *path, const void *bytes, size_t length) {
    char temp[PATH_MAX];
    int n = snprintf(temp, sizeof temp, "%s.tmp%ld", path, (long)getpid());
    DR_CHECK(n > 0 && (size_t)n < sizeof temp, DR_ERR_ARGUMENT, "%s: path too long", path);
    int fd = open(temp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0) return DR_FAIL(DR_ERR_IO, "%s: cannot create: %s", temp, strerror(errno));
    size_t done = 0;
    int failed = 0;
    while (done < length && !failed) {
        ssize_t wrote = write(fd, (const char *)bytes + done, length - done);
        if (wrote >= 0)
            done += (size_t)wrote;
        else if (errno != EINTR)
            failed = errno;
    }
    if (close(fd) != 0 && !failed) failed = errno;
    if (failed) {
        unlink(temp);
        return DR_FAIL(DR_ERR_IO, "%s: cannot write %zu bytes: %s", path, length, strerror(failed));
    }
    return dr_file_commit(temp, path);
}

dr_status dr_dir_make(const char *path) {
    char partial[PATH_MAX];
    size_t length = strlen(path);
    DR_CHECK(length > 0 && length < sizeof partial, DR_ERR_ARGUMENT, "'%s': empty or too long for a folder",
             path);
    memcpy(partial, path, length + 1);
    for (size_t i = 1; i <= length; i++) {
        if (partial[i] != '/' && partial[i] != '\0') continue;
        partial[i] = '\0';
        if (mkdir(partial, 0755) != 0 && !dr_dir_exists(partial))
            return DR_FAIL(DR_ERR_IO, "%s: cannot make folder %s: %s", path, partial, strerror(errno));
        if (i < length) partial[i] = '/';
    }
    return DR_OK;
}

int dr_file_exists(const char *path) {
    struct stat info;
    return stat(path, &info) == 0;
}

int dr_dir_exists(const char *path) {
    struct stat info;
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

int64_t dr_file_size(const char *path) {
    struct stat info;
    return stat(path, &info) == 0 && S_ISREG(info.st_mode) ? (int64_t)info.st_size : -1;
}

dr_status dr_path_join(char **out_path, const char *folder, const char *name) {
    size_t length = strlen(folder), extra = strlen(name);
    while (length > 1 && folder[length - 1] == '/') length--;
    int needs_slash = length > 0 && folder[length - 1] != '/';
    char *path = NULL;
    DR_TRY(dr_alloc(&path, "path", (int64_t)(length + extra + 2), 1));
    memcpy(path, folder, length);
    if (needs_slash) path[length++] = '/';
    memcpy(path + length, name, extra);
    *out_path = path;
    return DR_OK;
}
