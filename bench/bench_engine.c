// bench_engine: what the engine does on the processor or on a device, with the small preset or the sizes of
// Qwen2.5 models, each figure beside the ceiling measured in the same run. Exit status 0 only when every
// check held and every figure was written.
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
    const char *backend, *shape;
    const char *only;     // figures, NULL: all
    int n_layers;         // 0: as many as the shape has
    int32_t pack, length; // of training
} settings;

// In the order they run in; the ceilings of the machine come first in any case.
static const struct {
    const char *name;
    dr_status (*add_figures)(bench_engine *engine);
    bool only_when_named, takes_shape, on_device;
} parts[] = {{"decode", bench_decode_figures, false, true, true},
             {"train", bench_train_figures, false, true, true},
             {"handover", bench_handover_figures, false, true, true},
             {"retrieve", bench_retrieve_figures, false, false, false},
             {"rollout", bench_rollout_figures, false, false, true},
             {"sample", bench_sample_figures, false, true, true},
             {"long", bench_long_figures, true, true, true}};
enum { N_PARTS = sizeof parts / sizeof *parts };

static const char usage[] =
    "bench_engine [--backend cpu|cuda|cuda-graphs|cuda-wgmma|cuda-reference] [--threads N]\n"
    "             [--precision fp32|bf16] [--seconds S] [--json FILE] [--part NAME] [--only NAME,NAME] "
    "[--shape "
    "tiny|small|0.5b|1.5b|7b]\n"
    "             [--layers N] [--pack TOKENS] [--length TOKENS] [--write-model FOLDER]\n"
    "  --backend    the processor, or device 0, there with decode passes as graphs, or with packed "
    "attention\n"
    "               by wgmma in bf16, or with the simple kernels (default cpu)\n"
    "  --threads    of the engine and of the ceilings (default: all)\n"
    "  --precision  of the linear layers (default fp32)\n"
    "  --seconds    aimed at for one figure, of which at least five repeats are taken (default 1)\n"
    "  --json       file for one JSON line a figure\n"
    "  --part       decode, train, handover, retrieve, rollout or sample alone, or long, which is not in the "
    "rest\n"
    "  --only       these figures alone, decode.b8.c512,decode.b8.c512.shared say\n"
    "  --shape      model of the decode, train, handover, sample and long parts: a preset, or sizes "
    "of a\n"
    "               Qwen2.5 model, random\n"
    "  --pack       tokens of a training pack (default 4096), --length of each of its sequences (default "
    "512)\n"
    "  --layers     a slice of so many layers of that model (default: all of them)\n"
    "  --write-model  write the decode part's model with check.safetensors (ids, their logits), and end\n";

static bool is_part(const char *name) {
    for (int i = 0; i < N_PARTS; i++)
        if (strcmp(parts[i].name, name) == 0) return true;
    return false;
}

static bool read_number(int option, settings *s) {
    char *end = NULL;
    long value = strtol(optarg, &end, 10);
    if (!*optarg || *end || value < 1) return false;
    if (option == 't')
        s->n_threads = (int)value;
    else if (option == 'l')
        s->n_layers = (int)value;
    else if (option == 'k')
        s->pack = (int32_t)value;
    else
        s->length = (int32_t)value;
    return value <= (option == 't' ? 256 : option == 'l' ? 1000 : 1 << 20);
}

static bool read_option(int option, settings *s) {
    dr_lm_config unused;
    char *end = NULL;
    if (option == 's') {
        s->seconds = strtod(optarg, &end);
        return *optarg && !*end && s->seconds > 0 && s->seconds <= 3600;
    } else if (option == 'p') {
        s->precision = strcmp(optarg, "bf16") == 0 ? DR_BF16 : DR_FP32;
        return s->precision == DR_BF16 || strcmp(optarg, "fp32") == 0;
    } else if (option == 'm') {
        s->shape = optarg;
        return bench_model_shape(optarg, &unused) == DR_OK;
    } else if (option == 'b') {
        s->backend = optarg;
        return bench_is_kind(optarg);
    } else if (option == 'a') {
        s->part = optarg;
        return is_part(optarg);
    } else if (option == 'j' || option == 'w' || option == 'o') {
        *(option == 'j' ? &s->json_path : option == 'w' ? &s->model : &s->only) = optarg;
        return true;
    }
    return read_number(option, s);
}

static dr_status read_options(int argc, char **argv, settings *out) {
    static const struct option options[] = {{"threads", required_argument, NULL, 't'},
                                            {"precision", required_argument, NULL, 'p'},
                                            {"seconds", required_argument, NULL, 's'},
                                            {"json", required_argument, NULL, 'j'},
                                            {"part", required_argument, NULL, 'a'},
                                            {"write-model", required_argument, NULL, 'w'},
                                            {"shape", required_argument, NULL, 'm'},
                                            {"backend", required_argument, NULL, 'b'},
                                            {"layers", required_argument, NULL, 'l'},
                                            {"only", required_argument, NULL, 'o'},
                                            {"pack", required_argument, NULL, 'k'},
                                            {"length", required_argument, NULL, 'n'},
                                            {0}};
    settings s = {.seconds = 1, .backend = "cpu", .shape = "small", .pack = 4096, .length = 512};
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;)
        if (option == '?' || !read_option(option, &s)) {
            fputs(usage, stderr);
            return DR_FAIL(DR_ERR_ARGUMENT, "%s", option == '?' ? "unknown option" : optarg);
        }
    DR_CHECK(optind == argc, DR_ERR_ARGUMENT, "unexpected argument %s", argv[optind]);
    DR_CHECK(s.pack % s.length == 0, DR_ERR_ARGUMENT, "a pack of %d tokens is not whole sequences of %d",
             s.pack, s.length);
    *out = s;
    return DR_OK;
}

// The device's copy and products; the copy is `memory` bytes/s.
static dr_status add_device_figures(bench_engine *engine, double memory) {
    enum { SIDE = BENCH_DEVICE_SIDE };
    bench_product side = {.m = SIDE, .n = SIDE, .k = SIDE, .count = 1};
    char name[32], copied[64], multiplied[128];
    double seconds = 0;
    snprintf(name, sizeof name, "ceiling.gemm.%d", SIDE);
    snprintf(copied, sizeof copied, "read and written together, %d MiB", BENCH_DEVICE_BYTES >> 20);
    DR_TRY(bench_products_seconds(engine->ceilings, &side, 1, &seconds));
    snprintf(multiplied, sizeof multiplied, "%s, %d x %d x %d", bench_product_note(engine->ceilings), SIDE,
             SIDE, SIDE);
    double rate = bench_product_flops(&side, 1) / seconds;
    bench_figure copy = {.name = "ceiling.copy", .unit = "GB/s", .value = memory * 1e-9, .note = copied},
                 product = {.name = name, .unit = "TFLOP/s", .value = rate * 1e-12, .note = multiplied};
    if (engine->device.peak_flops > 0 && engine->backend->precision == DR_BF16) {
        product.ceiling = engine->device.peak_flops * 1e-12;
        product.bound = "data sheet";
    }
    DR_TRY(bench_report_add(engine->report, &copy));
    return bench_report_add(engine->report, &product);
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
    if (!bench_is_cpu(engine->backend)) return add_device_figures(engine, memory);
    snprintf(note, sizeof note, "a block of %.1f MB, the weights' size", bytes * 1e-6);
    for (int i = 0; i < 3; i++) DR_TRY(bench_report_add(engine->report, &figures[i]));
    return DR_OK;
}

static bool is_wanted(const bench_engine *engine, int part, const char *only) {
    if (only) return strcmp(parts[part].name, only) == 0;
    if (!parts[part].on_device && !bench_is_cpu(engine->backend)) return false;
    return !parts[part].only_when_named && (parts[part].takes_shape || !engine->is_large);
}

static dr_status run_parts(bench_engine *engine, const char *only) {
    DR_TRY(add_machine_figures(engine));
    for (int i = 0; i < N_PARTS; i++)
        if (is_wanted(engine, i, only)) {
            DR_CHECK(parts[i].on_device || bench_is_cpu(engine->backend), DR_ERR_UNSUPPORTED,
                     "part %s: measured on the processor only, expected --backend cpu", parts[i].name);
            DR_TRY(parts[i].add_figures(engine));
        }
    return DR_OK;
}

static dr_status run(int argc, char **argv) {
    settings s = {0};
    bench_engine engine = {0};
    dr_status status;
    DR_TRY(read_options(argc, argv, &s));
    if (s.n_threads > 0) omp_set_num_threads(s.n_threads); // oneDNN's threads and the retrieval model's, too
    DR_TRY(bench_backend_open(s.backend, s.precision, s.n_threads, &engine.backend, &engine.device));
    engine.seconds = s.seconds;
    engine.pack = s.pack;
    engine.length = s.length;
    engine.is_large = strcmp(s.shape, "small") != 0 && strcmp(s.shape, "tiny") != 0;
    engine.is_slow = engine.is_large && bench_is_cpu(engine.backend);
    DR_TRY_GOTO(status, bench_model_shape(s.shape, &engine.model), release);
    if (s.n_layers > 0) engine.model.n_layers = s.n_layers;
    if (s.model) {
        status = bench_write_model(engine.backend, &engine.model, s.model);
        goto release;
    }
    DR_TRY_GOTO(status, bench_ceilings_create(engine.backend, 0.1 * s.seconds, &engine.ceilings), release);
    DR_TRY_GOTO(status,
                bench_report_open(s.json_path, engine.backend, s.backend, engine.device.name, &engine.report),
                release);
    bench_report_model(engine.report, s.shape, s.n_layers);
    bench_report_only(engine.report, s.only);
    status = run_parts(&engine, s.part);
    if (status == DR_OK) status = bench_report_complete(engine.report);
    dr_status closed = bench_report_close(engine.report);
    if (status == DR_OK) status = closed;
release:
    bench_ceilings_destroy(engine.ceilings);
    dr_backend_destroy(engine.backend);
    return status;
}

int main(int argc, char **argv) {
    dr_log_set_level(DR_LOG_WARN);
    dr_status status = run(argc, argv);
    if (status != DR_OK) fprintf(stderr, "bench_engine: %s: %s\n", dr_status_name(status), dr_last_error());
    return status == DR_OK ? EXIT_SUCCESS : EXIT_FAILURE;
}
