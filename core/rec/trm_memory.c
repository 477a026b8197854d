// What a retrieval model takes, counted from its folder's sizes.
#include "core/base/alloc.h"
#include "core/base/file.h"
#include "core/rec/trm_internal.h"

static int64_t largest(int64_t a, int64_t b) {
    return a > b ? a : b;
}

dr_pass_shape dr_trm_pass_shape(const dr_trm_config *c, int64_t B, int64_t rows) {
    int64_t D = c->hidden, I = c->inner, X = c->text_dim;
    return (dr_pass_shape){.is_plain = true,
                           .T = rows,
                           .n_out = largest(largest(3 * D, I), c->n_experts * D),
                           .n_in = largest(largest(D, I), X),
                           .n_requests = B,
                           .n_positions = c->max_history,
                           .n_columns = D,
                           .n_scores = (int64_t)c->n_items + 1};
}

// As dr_trm_allocate and dr_trm_prepare_serving take it; the model's own retrieval is of one item.
static void count(const dr_trm *trm, const dr_text_encoder_memory *encoder, bool is_host,
                  dr_trm_memory *out) {
    const dr_trm_config *c = &trm->config;
    dr_backend *b = trm->backend;
    int64_t N = (int64_t)c->n_items + 1, D = c->hidden, X = c->text_dim, rows = trm->serving.rows;
    int64_t dft = 4 * (c->max_history / 2 + 1) * c->max_history, scratch_on_host = 0, own_on_host = 0,
            own = 0;
    const dr_pass_shape shape = dr_trm_pass_shape(c, rows, rows * c->max_history);
    dr_trm_retrieval_memory(trm, rows, 1, 0, &own_on_host, &own);
    out->backend = encoder->backend + encoder->scratch +
                   (int64_t)trm_bytes(trm->n_params + dft + 2 * N * D + rows * X) +
                   dr_trm_packed_memory(trm) + dr_trm_serving_memory(c) + own +
                   b->ops->pass_memory(b, &shape, &scratch_on_host);
    out->host = (int64_t)trm_bytes(2 * N * X) + own_on_host + scratch_on_host + encoder->scratch_on_host;
    if (is_host) {
        out->backend += out->host;
        out->host = 0;
    } else {
        out->host += (int64_t)trm_bytes(N * D) + largest((int64_t)trm_bytes(trm->n_params), encoder->host);
    }
}

static dr_status outline(dr_backend *backend, const dr_trm_config *config, dr_trm **out,
                         dr_trm_memory *memory) {
    dr_trm_config sizes = *config; // the encoder's own width is held against the model's where it is opened
    dr_text_encoder_memory encoder;
    bool is_host = false;
    DR_TRY(dr_memory_is_host(backend, &is_host));
    DR_TRY(dr_trm_encoder_memory(backend, &sizes, &encoder));
    DR_TRY(dr_trm_outline(backend, config, out));
    (*out)->queued = encoder.queued;
    count(*out, &encoder, is_host, memory);
    return DR_OK;
}

dr_status dr_trm_outline_of(dr_backend *backend, const char *dir, const char *encoder_dir,
                            dr_trm **out_outline, dr_trm_memory *out_memory) {
    char *path = NULL;
    dr_safetensors *file = NULL;
    dr_trm_config config;
    DR_TRY(dr_path_join(&path, dir, "model.safetensors"));
    dr_status status = dr_safetensors_open(path, &file);
    if (status == DR_OK) {
        status = dr_trm_read_sizes(file, path, dir, &config);
        if (status == DR_OK) status = dr_trm_locate_encoder(dir, encoder_dir, &config);
        if (status == DR_OK) status = outline(backend, &config, out_outline, out_memory);
        dr_safetensors_close(file);
    }
    dr_free(path);
    return status;
}
