// The measured model: its sizes, its share of a device's peak, and its files for other engines that do the
// same work.
#include <stdio.h>
#include <string.h>

#include "bench/engine_parts.h"
#include "core/base/alloc.h"
#include "core/base/file.h"

enum { CHECK_LENGTH = 64 };

dr_status bench_model_shape(const char *name, dr_lm_config *out) {
    static const struct {
        const char *name;
        int32_t n_layers, hidden, n_heads, n_kv_heads, head_size, intermediate, vocab;
        bool tied_head;
    } shapes[] = {{"0.5b", 24, 896, 14, 2, 64, 4864, 151936, true},
                  {"1.5b", 28, 1536, 12, 2, 128, 8960, 151936, true},
                  {"7b", 28, 3584, 28, 4, 128, 18944, 152064, false}};
    if (strcmp(name, "tiny") == 0 || strcmp(name, "small") == 0) return dr_lm_preset(name, BENCH_VOCAB, out);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        if (strcmp(shapes[i].name, name) != 0) continue;
        DR_TRY(dr_lm_preset("small", shapes[i].vocab, out)); // the family's other settings
        out->n_layers = shapes[i].n_layers;
        out->hidden = shapes[i].hidden;
        out->n_heads = shapes[i].n_heads;
        out->n_kv_heads = shapes[i].n_kv_heads;
        out->head_size = shapes[i].head_size;
        out->intermediate = shapes[i].intermediate;
        out->tied_head = shapes[i].tied_head;
        return DR_OK;
    }
    return DR_FAIL(DR_ERR_ARGUMENT, "shape %s: expected tiny, small, 0.5b, 1.5b or 7b", name);
}

double bench_mfu(const bench_engine *engine, double flops_per_s) {
    double peak = engine->device.peak_flops;
    return peak > 0 && engine->backend->precision == DR_BF16 ? flops_per_s / peak : 0;
}

void bench_mfu_note(const bench_engine *engine, double flops_per_s, char *out, size_t size) {
    double share = bench_mfu(engine, flops_per_s);
    out[0] = '\0';
    if (share > 0)
        snprintf(out, size, ", MFU %.1f%% of %.0f TFLOP/s", 100 * share, engine->device.peak_flops * 1e-12);
}

static dr_status write_check(dr_lm *lm, const char *dir) {
    int64_t vocab = dr_lm_config_of(lm)->vocab;
    int32_t ids[CHECK_LENGTH], rows[CHECK_LENGTH], bounds[2] = {0, CHECK_LENGTH};
    float values[CHECK_LENGTH], *logits = NULL, *host = NULL;
    dr_backend *b = dr_lm_backend(lm);
    char *path = NULL;
    dr_lm_workspace *workspace = NULL;
    bench_fill_ids(5, (int32_t)vocab, CHECK_LENGTH, ids);
    for (int32_t i = 0; i < CHECK_LENGTH; i++) {
        rows[i] = i;
        values[i] = (float)ids[i];
    }
    dr_pack pack = {.n_tokens = CHECK_LENGTH,
                    .ids = ids,
                    .cu_seqlens = bounds,
                    .n_seqs = 1,
                    .n_rows = CHECK_LENGTH,
                    .rows = rows};
    dr_status status;
    DR_TRY_GOTO(status, dr_memory_create(b, &logits, "logits", CHECK_LENGTH * vocab, sizeof *logits),
                release);
    DR_TRY_GOTO(status, dr_lm_workspace_create(lm, CHECK_LENGTH, DR_KEEP_ACTIVATIONS, &workspace), release);
    DR_TRY_GOTO(status, dr_lm_logits(lm, workspace, &pack, logits), release);
    DR_TRY_GOTO(status, dr_host_open(b, logits, CHECK_LENGTH * vocab, DR_HOST_READS, &host), release);
    DR_TRY_GOTO(status, dr_path_join(&path, dir, "check.safetensors"), release);
    const dr_safetensor_source sources[] = {
        {.name = "ids", .n_dims = 1, .shape = {CHECK_LENGTH}, .data = values},
        {.name = "logits", .n_dims = 2, .shape = {CHECK_LENGTH, vocab}, .data = host}};
    status = dr_safetensors_write(path, sources, 2);
release:
    dr_lm_workspace_destroy(workspace);
    dr_host_close(b, logits, CHECK_LENGTH * vocab, DR_HOST_READS, host);
    if (logits) b->ops->memory_destroy(b, logits);
    dr_free(path);
    return status;
}

dr_status bench_write_model(dr_backend *backend, const dr_lm_config *config, const char *dir) {
    dr_lm *lm = NULL;
    DR_TRY(dr_lm_create(backend, config, 1, &lm));
    dr_status status = dr_lm_save(lm, dir, DR_SAVE_FP32);
    if (status == DR_OK) status = write_check(lm, dir);
    dr_lm_destroy(lm);
    return status;
}
