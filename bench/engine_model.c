// The measured model as files, for other engines that do the same work.
#include "bench/engine_parts.h"
#include "core/base/alloc.h"
#include "core/base/file.h"

enum { CHECK_LENGTH = 64 };

static dr_status write_check(dr_lm *lm, const char *dir) {
    int64_t vocab = dr_lm_config_of(lm)->vocab;
    int32_t ids[CHECK_LENGTH], rows[CHECK_LENGTH], bounds[2] = {0, CHECK_LENGTH};
    float values[CHECK_LENGTH], *logits = NULL;
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
    DR_TRY_GOTO(status, dr_alloc(&logits, "logits", CHECK_LENGTH * vocab, sizeof *logits), release);
    DR_TRY_GOTO(status, dr_lm_workspace_create(lm, CHECK_LENGTH, DR_KEEP_ACTIVATIONS, &workspace), release);
    DR_TRY_GOTO(status, dr_lm_logits(lm, workspace, &pack, logits), release);
    DR_TRY_GOTO(status, dr_path_join(&path, dir, "check.safetensors"), release);
    const dr_safetensor_source sources[] = {
        {.name = "ids", .n_dims = 1, .shape = {CHECK_LENGTH}, .data = values},
        {.name = "logits", .n_dims = 2, .shape = {CHECK_LENGTH, vocab}, .data = logits}};
    status = dr_safetensors_write(path, sources, 2);
release:
    dr_lm_workspace_destroy(workspace);
    dr_free(logits);
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
