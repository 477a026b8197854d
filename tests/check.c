// Bodies of check.h. Every comparison prints what it saw before it fails.
#include "tests/check.h"

#include <ftw.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

void check_close(const char *name, const float *got, const float *want, int64_t n, double absolute,
                 double relative) {
    double worst = -1;
    int64_t at = -1;
    for (int64_t i = 0; i < n; i++) {
        double share = fabs((double)got[i] - (double)want[i]) / (absolute + relative * fabs((double)want[i]));
        if (!(share <= worst)) {
            worst = isnan(share) ? INFINITY : share;
            at = i;
        }
        if (isinf(worst)) break;
    }
    if (n > 0 && !(worst <= 1))
        fail_msg("%s: element %lld of %lld is %.9g, expected %.9g (%.3g of the tolerance)", name,
                 (long long)at, (long long)n, (double)got[at], (double)want[at], worst);
}

void check_relative_error(const char *name, const float *got, const float *want, int64_t n, double limit) {
    double difference = 0, norm = 0;
    for (int64_t i = 0; i < n; i++) {
        difference += ((double)got[i] - want[i]) * ((double)got[i] - want[i]);
        norm += (double)want[i] * want[i];
    }
    double error = norm > 0 ? sqrt(difference / norm) : sqrt(difference);
    if (!(error <= limit))
        fail_msg("%s: relative error %.4g over %lld values, limit %.4g", name, error, (long long)n, limit);
}

void check_same_bits(const char *name, const float *got, const float *want, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        if (memcmp(&got[i], &want[i], sizeof(float)) != 0)
            fail_msg("%s: element %lld is %.9g, expected the same bits as %.9g", name, (long long)i,
                     (double)got[i], (double)want[i]);
}

void check_error(dr_status status, dr_status expected, const char *text) {
    if (status != expected)
        fail_msg("status is '%s' (%s), expected '%s'", dr_status_name(status), dr_last_error(),
                 dr_status_name(expected));
    if (text && !strstr(dr_last_error(), text))
        fail_msg("error text \"%s\" lacks \"%s\"", dr_last_error(), text);
}

// One folder a program, removed when it ends by itself; forked children leave it alone.
static char scratch_root[256];
static pid_t scratch_owner;

static int remove_entry(const char *path, const struct stat *status, int kind, struct FTW *walk) {
    (void)status, (void)kind, (void)walk;
    return remove(path);
}

static void remove_scratch(void) {
    if (getpid() == scratch_owner) nftw(scratch_root, remove_entry, 16, FTW_DEPTH | FTW_PHYS | FTW_MOUNT);
}

const char *check_scratch_dir(void) {
    static char slots[8][300];
    static int next;
    if (!scratch_owner) {
        const char *base = getenv("TMPDIR");
        snprintf(scratch_root, sizeof scratch_root, "%.200s/deeprec-test-XXXXXX",
                 base && base[0] ? base : "/tmp");
        if (!mkdtemp(scratch_root)) fail_msg("cannot make a scratch folder like %s", scratch_root);
        scratch_owner = getpid();
        atexit(remove_scratch);
    }
    char *slot = slots[next % 8];
    snprintf(slot, sizeof slots[0], "%s/%d", scratch_root, next++);
    if (mkdir(slot, 0700) != 0) fail_msg("cannot make the scratch folder %s", slot);
    return slot;
}

const char *check_path(const char *dir, const char *name) {
    static char slots[16][1024];
    static int next;
    char *slot = slots[next++ % 16];
    snprintf(slot, 1024, "%s/%s", dir, name);
    return slot;
}

const char *check_golden(const char *name) {
    const char *dir = getenv("DR_GOLDEN_DIR");
    return check_path(dir ? dir : DR_GOLDEN_DIR, name);
}

char *check_read_file(const char *path, size_t *out_length) {
    FILE *file = fopen(path, "rb");
    if (!file) fail_msg("cannot open %s", path);
    fseek(file, 0, SEEK_END);
    long length = ftell(file);
    rewind(file);
    char *bytes = malloc((size_t)length + 1);
    if (fread(bytes, 1, (size_t)length, file) != (size_t)length) fail_msg("cannot read %s", path);
    bytes[length] = '\0';
    fclose(file);
    if (out_length) *out_length = (size_t)length;
    return bytes;
}

void check_write_file(const char *path, const void *bytes, size_t length) {
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(bytes, 1, length, file) != length || fclose(file) != 0)
        fail_msg("cannot write %s", path);
}
