// What training left behind, as numbers for people: metrics by stage and quarter, one file of trajectories.
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "core/base/alloc.h"
#include "core/episode/trajectory.h"
#include "core/store/h5.h"
#include "launch/inspect.h"

enum { QUARTERS = 4 };

static const char *const columns[] = {"reward",  "valid_share", "retrievals",    "sampled_length",
                                      "entropy", "clip_share",  "gradient_norm", NULL};
static const char *const timings[] = {"rollout_s", "train_s", "step_s", NULL};

static bool same_stage(const json_t *a, const json_t *b) {
    const char *x = json_string_value(json_object_get(a, "stage")),
               *y = json_string_value(json_object_get(b, "stage"));
    return x && y && strcmp(x, y) == 0;
}

static double number(const json_t *line, const char *key) {
    return json_number_value(json_object_get(line, key));
}

static void print_row(const json_t *lines, size_t begin, size_t end, const char *label) {
    printf("  %-22s", label);
    for (int c = 0; columns[c]; c++) {
        double sum = 0;
        for (size_t i = begin; i < end; i++) sum += number(json_array_get(lines, i), columns[c]);
        printf(" %14.4f", sum / (double)(end - begin));
    }
    for (int c = 0; timings[c]; c++) {
        double sum = 0;
        for (size_t i = begin; i < end; i++)
            sum += number(json_object_get(json_array_get(lines, i), "timing"), timings[c]);
        printf(" %10.2f", sum / (double)(end - begin));
    }
    printf("\n");
}

bool dr_inspect_is_metrics(const json_t *line) {
    return json_is_object(json_object_get(line, "reward_parts")) &&
           json_is_string(json_object_get(line, "stage"));
}

void dr_inspect_metrics(const json_t *lines) {
    size_t n = json_array_size(lines);
    printf("  means of steps         ");
    for (int c = 0; columns[c]; c++) printf("%14s ", columns[c]);
    for (int c = 0; timings[c]; c++) printf("%10s ", timings[c]);
    printf("\n");
    for (size_t begin = 0; begin < n;) {
        size_t end = begin;
        while (end < n && same_stage(json_array_get(lines, end), json_array_get(lines, begin))) end++;
        if (end == begin) end++;
        const char *stage = json_string_value(json_object_get(json_array_get(lines, begin), "stage"));
        size_t steps = end - begin;
        for (size_t q = 0; steps >= QUARTERS && q < QUARTERS; q++) {
            char label[64];
            snprintf(label, sizeof label, "%.32s, quarter %zu", stage, q + 1);
            print_row(lines, begin + steps * q / QUARTERS, begin + steps * (q + 1) / QUARTERS, label);
        }
        if (steps < QUARTERS) print_row(lines, begin, end, stage);
        begin = end;
    }
}

// Counts of stops, and means, of a file that trajectory_store.c wrote.
typedef struct trajectory_file {
    int64_t n;
    float *reward;
    int32_t *stop;
    uint8_t *valid;
    int64_t *token_offset, *turn_offset; // [n + 1]
} trajectory_file;

static dr_status read_trajectories(dr_h5 *file, trajectory_file *t) {
    int64_t n[1] = {-1}, offsets[1];
    DR_TRY(dr_h5_read(file, "reward", DR_H5_F32, 1, n, &t->reward));
    t->n = n[0];
    offsets[0] = t->n + 1;
    DR_TRY(dr_h5_read(file, "stop", DR_H5_I32, 1, n, &t->stop));
    DR_TRY(dr_h5_read(file, "valid", DR_H5_U8, 1, n, &t->valid));
    DR_TRY(dr_h5_read(file, "offset", DR_H5_I64, 1, offsets, &t->token_offset));
    return dr_h5_read(file, "turn_offset", DR_H5_I64, 1, offsets, &t->turn_offset);
}

dr_status dr_inspect_trajectories(const char *path) {
    static const char *const stops[] = {"running",  "answered",      "end of sequence", "empty preference",
                                        "turn cap", "retrieval cap", "total cap"};
    int64_t counts[sizeof stops / sizeof *stops] = {0};
    trajectory_file t = {0};
    dr_h5 *file = NULL;
    DR_TRY(dr_h5_open(path, &file));
    dr_status status = read_trajectories(file, &t);
    dr_h5_close(file);
    double reward = 0, valid = 0;
    for (int64_t i = 0; status == DR_OK && i < t.n; i++) {
        reward += (double)t.reward[i] / (double)t.n;
        valid += (double)t.valid[i] / (double)t.n;
        if (t.stop[i] >= 0 && t.stop[i] <= DR_STOP_TOTAL_CAP) counts[t.stop[i]]++;
    }
    if (status == DR_OK && t.n > 0) {
        printf("  %lld trajectories: mean reward %.4f, valid %.1f %%, %.1f tokens, %.2f retrievals\n",
               (long long)t.n, reward, 100 * valid, (double)t.token_offset[t.n] / (double)t.n,
               (double)t.turn_offset[t.n] / (double)t.n);
        printf("  they ended:");
        for (size_t s = 0; s < sizeof stops / sizeof *stops; s++)
            if (counts[s]) printf(" %s %lld", stops[s], (long long)counts[s]);
        printf("\n");
    }
    dr_free(t.reward);
    dr_free(t.stop);
    dr_free(t.valid);
    dr_free(t.token_offset);
    dr_free(t.turn_offset);
    return status;
}
