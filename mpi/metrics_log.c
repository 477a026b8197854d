// Bodies of metrics_log.h.
#include "mpi/metrics_log.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "core/base/alloc.h"
#include "core/base/file.h"
#include "core/base/log.h"
#include "core/reward/reward.h"
#include "core/store/tensorboard.h"

struct dr_metrics_log {
    FILE *file;
    char *path;
    dr_tensorboard *board; // NULL: not wanted
};

// Keeps complete lines of steps up to `step`; a torn last line is dropped.
static dr_status cut(const char *path, int64_t step) {
    dr_buf all = {0}, kept = {0};
    if (!dr_file_exists(path)) return DR_OK;
    dr_status status = dr_file_read(path, 0, &all);
    for (size_t at = 0; status == DR_OK && at < all.length;) {
        const char *end = memchr(all.data + at, '\n', all.length - at);
        if (!end) break;
        size_t length = (size_t)(end - all.data) - at + 1;
        json_t *line = json_loadb(all.data + at, length, 0, NULL);
        if (line && json_integer_value(json_object_get(line, "step")) <= step)
            status = dr_buf_append(&kept, all.data + at, length);
        json_decref(line);
        at += length;
    }
    if (status == DR_OK) status = dr_file_replace(path, kept.data ? kept.data : "", kept.length);
    dr_buf_reset(&all);
    dr_buf_reset(&kept);
    return status;
}

// ---- curves ----

enum { MOST_CURVES = 64, LONGEST_CURVE = 64 };
typedef struct curves {
    char names[MOST_CURVES][LONGEST_CURVE];
    const char *tags[MOST_CURVES];
    float values[MOST_CURVES];
    int32_t n;
} curves;

// Every number of a line and of the objects in it, as "object/member".
static void collect(const json_t *object, const char *prefix, curves *out) {
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)object, key, value) {
        if (json_is_object(value)) collect(value, key, out);
        bool is_curve = json_is_number(value) && strcmp(key, "step") != 0 && strcmp(key, "wall_time") != 0;
        if (!is_curve || out->n == MOST_CURVES) continue;
        snprintf(out->names[out->n], LONGEST_CURVE, "%s%s%s", prefix, *prefix ? "/" : "", key);
        out->tags[out->n] = out->names[out->n];
        out->values[out->n++] = (float)json_number_value(value);
    }
}

static double wall_time_of(const json_t *line) {
    return json_number_value(json_object_get(json_object_get(line, "timing"), "wall_time"));
}

static dr_status draw(dr_tensorboard *board, const json_t *line) {
    curves all = {0};
    collect(line, "", &all);
    return dr_tensorboard_scalars(board, json_integer_value(json_object_get(line, "step")),
                                  wall_time_of(line), all.tags, all.values, all.n);
}

// The curves are those of metrics.jsonl, drawn anew: a resumed run leaves no second line of a step.
static dr_status open_board(dr_metrics_log *log, const char *run_dir) {
    char *dir = NULL, *path = NULL;
    dr_buf all = {0};
    dr_status status = dr_path_join(&dir, run_dir, "tensorboard");
    if (status == DR_OK) status = dr_dir_make(dir);
    if (status == DR_OK) status = dr_path_join(&path, dir, "events.out.tfevents.0.deeprec");
    if (status == DR_OK) status = dr_tensorboard_create(path, (double)time(NULL), &log->board);
    if (status == DR_OK && dr_file_exists(log->path)) status = dr_file_read(log->path, 0, &all);
    for (size_t at = 0; status == DR_OK && at < all.length;) { // whole lines only: cut() left no other
        size_t length = (size_t)((char *)memchr(all.data + at, '\n', all.length - at) - all.data) - at;
        json_t *line = json_loadb(all.data + at, length, 0, NULL);
        if (line) status = draw(log->board, line);
        json_decref(line);
        at += length + 1;
    }
    dr_buf_reset(&all);
    dr_free(path);
    dr_free(dir);
    return status;
}

dr_status dr_metrics_log_open(const char *run_dir, int64_t step, bool tensorboard, dr_metrics_log **out_log) {
    dr_metrics_log *log = NULL;
    DR_TRY(dr_alloc(&log, "metrics log", 1, sizeof *log));
    dr_status status = dr_path_join(&log->path, run_dir, "metrics.jsonl");
    if (status == DR_OK) status = cut(log->path, step);
    if (status == DR_OK && tensorboard) status = open_board(log, run_dir);
    if (status == DR_OK) {
        log->file = fopen(log->path, "a");
        if (!log->file) status = DR_FAIL(DR_ERR_IO, "%s: cannot open for appending", log->path);
    }
    if (status != DR_OK) {
        dr_metrics_log_close(log);
        return status;
    }
    *out_log = log;
    return DR_OK;
}

void dr_metrics_log_close(dr_metrics_log *log) {
    if (!log) return;
    if (log->file) fclose(log->file);
    dr_tensorboard_close(log->board);
    dr_free(log->path);
    dr_free(log);
}

typedef struct means {
    double reward, parts[DR_REWARD_PARTS], valid, retrievals, sampled, tokens;
} means;

static means record_means(const dr_metric_record *records, int32_t n) {
    means m = {0};
    for (int32_t i = 0; i < n; i++) {
        m.reward += (double)records[i].reward / n;
        for (int p = 0; p < DR_REWARD_PARTS; p++) m.parts[p] += (double)records[i].parts[p] / n;
        m.valid += (double)(records[i].flags >> 1 & 1) / n;
        m.retrievals += (double)records[i].n_turns / n;
        m.sampled += (double)records[i].n_sampled / n;
        m.tokens += (double)records[i].n_tokens / n;
    }
    return m;
}

static double wall_time(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static int append_bytes(const char *bytes, size_t length, void *buf) {
    return dr_buf_append(buf, bytes, length) == DR_OK ? 0 : -1;
}

dr_status dr_metrics_log_step(dr_metrics_log *log, const dr_step_metrics *s, const dr_metric_record *records,
                              int32_t n, int32_t n_workers) {
    double sum[DR_METRIC_SUMS] = {0};
    for (int32_t w = 0; w < n_workers; w++)
        for (int i = 0; i < DR_METRIC_SUMS; i++) sum[i] += s->worker[w][i];
    double tokens = sum[0] > 0 ? sum[0] : 1, norm = s->worker[0][8], rate = s->worker[0][9];
    means m = record_means(records, n);
    json_t *parts = json_object();
    for (int p = 0; p < DR_REWARD_PARTS; p++)
        json_object_set_new(parts, dr_reward_names[p], json_real(m.parts[p]));
    json_t *timing =
        json_pack("{s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "wall_time", wall_time(), "step_s",
                  s->step_s, "rollout_s", s->rollout_s, "reward_s", s->reward_s, "retrieval_s", sum[14],
                  "short_bursts", sum[16], "idle_rows", sum[17], "train_s", s->train_s,
                  "sampled_tokens_per_s", sum[12] / (s->rollout_s > 0 ? s->rollout_s : 1),
                  "train_tokens_per_s", sum[1] / (s->train_s > 0 ? s->train_s : 1));
    json_t *line =
        json_pack("{s:I, s:s, s:I, s:f, s:o, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:o}",
                  "step", (json_int_t)s->step, "stage", s->stage, "updates", (json_int_t)s->updates, "reward",
                  m.reward, "reward_parts", parts, "valid_share", m.valid, "retrievals", m.retrievals,
                  "sampled_length", m.sampled, "total_length", m.tokens, "loss", sum[2], "entropy",
                  sum[3] / tokens, "ratio_mean", sum[4] / tokens, "clip_share", sum[5] / tokens, "kl",
                  sum[6] / tokens, "gradient_norm", norm, "learning_rate", rate, "timing", timing);
    dr_buf text = {0};
    int failed =
        line ? json_dump_callback(line, append_bytes, &text, JSON_COMPACT | JSON_PRESERVE_ORDER) : -1;
    bool ok = failed == 0 && fprintf(log->file, "%s\n", text.data) > 0 && fflush(log->file) == 0;
    dr_buf_reset(&text);
    dr_status drawn = ok && log->board ? draw(log->board, line) : DR_OK;
    json_decref(line);
    DR_TRY(drawn);
    DR_CHECK(ok, DR_ERR_IO, "%s: cannot write the line of step %lld", log->path, (long long)s->step);
    dr_info("step %lld %s: reward %.3f (format %.2f invocation %.2f diversity %.3f hit %.3f rank %.3f "
            "similarity %.2f) valid "
            "%.0f %% retrievals %.2f tokens %.0f entropy %.3f clip %.3f norm %.2f | rollout %.1f s %.0f "
            "tok/s, train %.1f s "
            "%.0f tok/s",
            (long long)s->step, s->stage, m.reward, m.parts[0], m.parts[1], m.parts[2], m.parts[3],
            m.parts[4], m.parts[5], 100 * m.valid, m.retrievals, m.sampled, sum[3] / tokens, sum[5] / tokens,
            norm, s->rollout_s, sum[12] / (s->rollout_s > 0 ? s->rollout_s : 1), s->train_s,
            sum[1] / (s->train_s > 0 ? s->train_s : 1));
    return DR_OK;
}
