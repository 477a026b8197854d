// bench_engine: what the CPU engine does with the small preset, each figure beside the ceiling measured in
// the same run. Exit status 0 only when every check held and every figure was written.
#include <getopt.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/engine_parts.h"
#include "core/base/log.h"

typedef struct settings {
    int n_threads; // 0: all
    dr_precision precision;
    double seconds;
    const char *json_path;
    const char *part;  // NULL: all
    const char *model; // folder to write, NULL: none
    bool is_large;     // a model of the shape of Qwen2.5-0.5B
} settings;

// In the order they run in; the ceilings of the machine come first in any case.
static const struct {
    const char *name;
    dr_status (*add_figures)(bench_engine *engine);
    bool only_when_named, takes_shape;
} parts[] = {
    {"decode", bench_decode_figures, false, true},      {"train", bench_train_figures, false, true},
    {"retrieve", bench_retrieve_figures, false, false}, {"rollout", bench_rollout_figures, false, false},
    {"sample", bench_sample_figures, false, true},      {"long", bench_long_figures, true, false}};
enum { N_PARTS = sizeof parts / sizeof *parts };

static const char usage[] =
    "bench_engine [--threads N] [--precision fp32|bf16] [--seconds S] [--json FILE] [--part NAME]\n"
    "             [--shape small|0.5b] [--write-model FOLDER]\n"
    "  --threads    of the engine and of the ceilings (default: all)\n"
    "  --precision  of the linear layers (default fp32)\n"
    "  --seconds    aimed at for one figure, of which at least five repeats are taken (default 1)\n"
    "  --json       file for one JSON line a figure\n"
    "  --part       decode, train, retrieve, rollout or sample alone, or long, which is not in the rest\n"
    "  --shape      model of the decode, train and sample parts: the small preset, or Qwen2.5-0.5B's sizes, "
    "random\n"
    "  --write-model  write the decode part's model with check.safetensors (ids, their logits), and end\n";

static bool is_part(const char *name) {
    for (int i = 0; i < N_PARTS; i++)
        if (strcmp(parts[i].name, name) == 0) return true;
    return false;
}

static dr_status read_options(int argc, char **argv, settings *out) {
    static const struct option options[] = {
        {"threads", required_argument, NULL, 't'}, {"precision", required_argument, NULL, 'p'},
        {"seconds", required_argument, NULL, 's'}, {"json", required_argument, NULL, 'j'},
        {"part", required_argument, NULL, 'a'},    {"write-model", required_argument, NULL, 'w'},
        {"shape", required_argument, NULL, 'm'},   {0}};
    settings s = {.seconds = 1};
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        char *end = NULL;
        bool is_good = true;
        if (option == 't') {
            s.n_threads = (int)strtol(optarg, &end, 10);
            is_good = *optarg && !*end && s.n_threads >= 1 && s.n_threads <= 256;
        } else if (option == 's') {
            s.seconds = strtod(optarg, &end);
            is_good = *optarg && !*end && s.seconds > 0 && s.seconds <= 3600;
        } else if (option == 'p') {
            is_good = strcmp(optarg, "fp32") == 0 || strcmp(optarg, "bf16") == 0;
            s.precision = strcmp(optarg, "bf16") == 0 ? DR_BF16 : DR_FP32;
        } else if (option == 'j') {
            s.json_path = optarg;
        } else if (option == 'm') {
            is_good = strcmp(optarg, "small") == 0 || strcmp(optarg, "0.5b") == 0;
            s.is_large = strcmp(optarg, "0.5b") == 0;
        } else if (option == 'w') {
            s.model = optarg;
        } else if (option == 'a') {
            s.part = optarg;
            is_good = is_part(optarg);
        }
        if (option == '?' || !is_good) {
            fputs(usage, stderr);
            return DR_FAIL(DR_ERR_ARGUMENT, "%s", option == '?' ? "unknown option" : optarg);
        }
    }
    DR_CHECK(optind == argc, DR_ERR_ARGUMENT, "unexpected argument %s", argv[optind]);
    *out = s;
    return DR_OK;
}

static dr_status choose_model(bool is_large, dr_lm_config *out) {
    DR_TRY(dr_lm_preset("small", BENCH_VOCAB, out));
    if (!is_large) return DR_OK;
    out->n_layers = 24;
    out->hidden = 896;
    out->n_heads = 14;
    out->intermediate = 4864;
    out->vocab = 151936;
    return DR_OK;
}

// Reading and products at their best; everything below is judged by these.
static dr_status add_machine_figures(bench_engine *engine) {
    bench_product best = {.m = 1024, .n = 1024, .k = 1024, .trans_b = true, .count = 1};
    double memory = 0, cache = 0, seconds = 0;
    char note[64];
    double bytes = bench_lm_weight_bytes(engine->backend, &engine->model);
    DR_TRY(bench_read_rate(engine->ceilings, 0, &memory));
    DR_TRY(bench_read_rate(engine->ceilings, (size_t)bytes, &cache));
    DR_TRY(bench_products_seconds(engine->ceilings, &best, 1, &seconds));
    bench_report_section(engine->report, "Ceilings of this machine");
    bench_figure figures[] = {
        {.name = "ceiling.read.memory", .unit = "GB/s", .value = memory * 1e-9},
        {.name = "ceiling.read.weights", .unit = "GB/s", .value = cache * 1e-9, .note = note},
        {.name = "ceiling.gemm.1024",
         .unit = "GFLOP/s",
         .value = bench_product_flops(&best, 1) / seconds * 1e-9,
         .note = "oneDNN, 1024 x 1024 x 1024"}};
    snprintf(note, sizeof note, "a block of %.1f MB, the weights' size", bytes * 1e-6);
    for (int i = 0; i < 3; i++) DR_TRY(bench_report_add(engine->report, &figures[i]));
    return DR_OK;
}

static bool is_wanted(const bench_engine *engine, int part, const char *only) {
    if (only) return strcmp(parts[part].name, only) == 0;
    return !parts[part].only_when_named && (parts[part].takes_shape || !engine->is_large);
}

static dr_status run_parts(bench_engine *engine, const char *only) {
    DR_TRY(add_machine_figures(engine));
    for (int i = 0; i < N_PARTS; i++)
        if (is_wanted(engine, i, only)) DR_TRY(parts[i].add_figures(engine));
    return DR_OK;
}

static dr_status run(int argc, char **argv) {
    settings s = {0};
    bench_engine engine = {0};
    dr_status status;
    DR_TRY(read_options(argc, argv, &s));
    if (s.n_threads > 0) omp_set_num_threads(s.n_threads); // oneDNN's threads and the retrieval model's, too
    DR_TRY(dr_backend_cpu_create(s.precision, s.n_threads, &engine.backend));
    int n_threads = engine.backend->n_threads;
    engine.seconds = s.seconds;
    engine.is_large = s.is_large;
    DR_TRY_GOTO(status, choose_model(s.is_large, &engine.model), release);
    if (s.model) {
        status = bench_write_model(engine.backend, &engine.model, s.model);
        goto release;
    }
    DR_TRY_GOTO(status, bench_ceilings_create(n_threads, s.precision, 0.1 * s.seconds, &engine.ceilings),
                release);
    DR_TRY_GOTO(status, bench_report_open(s.json_path, s.precision, n_threads, &engine.report), release);
    status = run_parts(&engine, s.part);
    dr_status closed = bench_report_close(engine.report);
    if (status == DR_OK) status = closed;
release:
    bench_ceilings_destroy(engine.ceilings);
    dr_backend_cpu_destroy(engine.backend);
    return status;
}

int main(int argc, char **argv) {
    dr_log_set_level(DR_LOG_WARN);
    dr_status status = run(argc, argv);
    if (status != DR_OK) fprintf(stderr, "bench_engine: %s: %s\n", dr_status_name(status), dr_last_error());
    return status == DR_OK ? EXIT_SUCCESS : EXIT_FAILURE;
}
