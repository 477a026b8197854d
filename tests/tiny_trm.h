// A small retrieval model with random weights for tests, made the way a converted one is: a folder with
// model.safetensors.
#ifndef DR_TESTS_TINY_TRM_H
#define DR_TESTS_TINY_TRM_H

#include <stdio.h>
#include <unistd.h>

#include "core/base/rng.h"
#include "core/rec/trm.h"
#include "core/store/safetensors.h"
#include "core/text/encoder.h"
#include "tests/check.h"

enum {
    TINY_HIDDEN = 16,
    TINY_TEXT = 64,
    TINY_HISTORY = 10,
    TINY_INNER = 32,
    TINY_EXPERTS = 2,
    TINY_TENSORS = 64
};

typedef struct tiny_trm_file {
    dr_safetensor_source tensors[TINY_TENSORS];
    char names[TINY_TENSORS][96];
    float *data[TINY_TENSORS];
    int n;
    dr_rng rng;
} tiny_trm_file;

// A tensor of normal values around `mean`; returns them.
static inline float *tiny_trm_add(tiny_trm_file *f, const char *name, float mean, int32_t n_dims, int64_t a,
                                  int64_t b, int64_t c, int64_t d) {
    dr_safetensor_source *t = &f->tensors[f->n];
    const int64_t shape[4] = {a, b, c, d};
    int64_t count = 1;
    for (int32_t i = 0; i < n_dims; i++) count *= t->shape[i] = shape[i];
    check_ok(dr_alloc(&f->data[f->n], "tensor", count, sizeof(float)));
    for (int64_t i = 0; i < count; i++) f->data[f->n][i] = mean + (float)(0.2 * dr_rng_normal(&f->rng));
    snprintf(f->names[f->n], sizeof f->names[0], "%s", name);
    t->name = f->names[f->n];
    t->n_dims = n_dims;
    t->data = f->data[f->n];
    return f->data[f->n++];
}

static inline void tiny_trm_linear(tiny_trm_file *f, const char *name, int64_t n_out, int64_t n_in) {
    char full[96];
    snprintf(full, sizeof full, "trm_encoder.layer.0.%s.weight", name);
    if (n_in > 0)
        tiny_trm_add(f, full, 0, 2, n_out, n_in, 0, 0);
    else
        tiny_trm_add(f, full, 1, 1, n_out, 0, 0, 0);
    snprintf(full, sizeof full, "trm_encoder.layer.0.%s.bias", name);
    tiny_trm_add(f, full, 0, 1, n_out, 0, 0, 0);
}

static inline dr_status tiny_trm_text(const dr_dataset *d, float *out) {
    dr_text_encoder *encoder = NULL;
    DR_TRY(dr_hashed_encoder_create(TINY_TEXT, &encoder));
    for (int32_t i = 1; i <= d->n_items; i++) {
        char text[256];
        const char *one = text;
        snprintf(text, sizeof text, "%s, %s", d->titles[i], d->categories[i]);
        DR_TRY(encoder->ops->encode(encoder, &one, 1, out + (int64_t)i * TINY_TEXT));
    }
    dr_text_encoder_destroy(encoder);
    return DR_OK;
}

static inline dr_status tiny_trm(dr_backend *backend, const dr_dataset *d, dr_trm **out) {
    static tiny_trm_file f;
    const char *dir = check_scratch_dir(), *weights = check_path(dir, "model.safetensors"),
               *config = check_path(dir, "config.json");
    const char json[] = "{\"num_heads\": 2, \"text_encoder\": \"hashed-ngram\"}";
    int64_t n = d->n_items + 1, H = TINY_HIDDEN;
    char name[96];
    f.n = 0;
    f.rng = dr_rng_make(23, 4);
    tiny_trm_add(&f, "item_embedding.weight", 0, 2, n, H, 0, 0);
    DR_TRY(tiny_trm_text(d, tiny_trm_add(&f, "item_plm_embedding.weight", 0, 2, n, TINY_TEXT, 0, 0)));
    tiny_trm_add(&f, "position_embedding.weight", 0, 2, TINY_HISTORY, H, 0, 0);
    tiny_trm_add(&f, "complex_weight", 0, 4, 1, TINY_HISTORY / 2 + 1, H, 2);
    tiny_trm_add(&f, "item_gating.weight", 0, 2, 1, H, 0, 0);
    tiny_trm_add(&f, "item_gating.bias", 0, 1, 1, 0, 0, 0);
    tiny_trm_add(&f, "fusion_gating.weight", 0, 2, 1, H, 0, 0);
    tiny_trm_add(&f, "fusion_gating.bias", 0, 1, 1, 0, 0, 0);
    for (int e = 0; e < TINY_EXPERTS; e++) {
        snprintf(name, sizeof name, "moe_adaptor.experts.%d.lin.weight", e);
        tiny_trm_add(&f, name, 0, 2, H, TINY_TEXT, 0, 0);
    }
    tiny_trm_add(&f, "moe_adaptor.w_gate", 0, 2, TINY_TEXT, TINY_EXPERTS, 0, 0);
    tiny_trm_add(&f, "moe_adaptor.w_noise", 0, 2, TINY_TEXT, TINY_EXPERTS, 0, 0);
    tiny_trm_add(&f, "LayerNorm.weight", 1, 1, H, 0, 0, 0);
    tiny_trm_add(&f, "LayerNorm.bias", 0, 1, H, 0, 0, 0);
    tiny_trm_add(&f, "OutLayerNorm.weight", 1, 1, H, 0, 0, 0);
    tiny_trm_add(&f, "OutLayerNorm.bias", 0, 1, H, 0, 0, 0);
    tiny_trm_linear(&f, "multi_head_attention.query", H, H);
    tiny_trm_linear(&f, "multi_head_attention.key", H, H);
    tiny_trm_linear(&f, "multi_head_attention.value", H, H);
    tiny_trm_linear(&f, "multi_head_attention.out_linear", H, H);
    tiny_trm_linear(&f, "multi_head_attention.LayerNorm", H, 0);
    tiny_trm_linear(&f, "feed_forward.linear_1", TINY_INNER, H);
    tiny_trm_linear(&f, "feed_forward.linear_2", H, TINY_INNER);
    tiny_trm_linear(&f, "feed_forward.LayerNorm", H, 0);
    dr_status status = dr_safetensors_write(weights, f.tensors, f.n);
    check_write_file(config, json, sizeof json - 1);
    if (status == DR_OK) status = dr_trm_load(backend, dir, out);
    for (int i = 0; i < f.n; i++) dr_free(f.data[i]);
    unlink(weights);
    unlink(config);
    rmdir(dir);
    return status;
}

#endif
