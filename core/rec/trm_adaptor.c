// The mixture-of-experts text adaptor (UniSRec, Hou et al., KDD 2022): A(x) = Σ_e softmax(x·Wg)_e · (We x),
// all experts as one product. In training the expert input has dropout (one mask for all experts) and the
// gate has noise of learned size.
#include <math.h>
#include <string.h>

#include "core/base/alloc.h"
#include "core/rec/trm_internal.h"

void dr_trm_adaptor_reset(trm_adaptor *a) {
    if (!a->backend) return;
    float *owned[] = {
        a->x, a->x_dropped != a->x ? a->x_dropped : NULL, a->z, a->gate, a->noise, a->spread, a->y, a->dz};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++)
        a->backend->ops->memory_destroy(a->backend, owned[i]);
    *a = (trm_adaptor){0};
}

dr_status dr_trm_adaptor_create(const dr_trm *trm, int64_t capacity, bool trains, trm_adaptor *out) {
    const dr_trm_config *c = &trm->config;
    int64_t X = c->text_dim, E = c->n_experts, D = c->hidden;
    trm_adaptor a = {.backend = trm->backend, .capacity = capacity};
    struct {
        float **pointer;
        int64_t count;
        bool needed;
    } plan[] = {{&a.x, capacity * X, true},           {&a.z, capacity * E * D, true},
                {&a.gate, capacity * E, true},        {&a.y, capacity * D, true},
                {&a.x_dropped, capacity * X, trains}, {&a.noise, capacity * E, trains},
                {&a.spread, capacity * E, trains},    {&a.dz, capacity * E * D, trains}};
    dr_status status = DR_OK;
    for (size_t i = 0; i < sizeof plan / sizeof *plan && status == DR_OK; i++)
        if (plan[i].needed)
            status =
                dr_memory_create(a.backend, plan[i].pointer, "text adaptor", plan[i].count, sizeof(float));
    if (status != DR_OK) {
        dr_trm_adaptor_reset(&a);
        return status;
    }
    if (!trains) a.x_dropped = a.x;
    *out = a;
    return DR_OK;
}

static float softplus(float x) {
    return x > 20.0f ? x : log1pf(expf(x));
}

// Dropout of the expert input and noise of the gate logits.
static dr_status disturb(dr_trm *trm, trm_adaptor *a, int64_t rows, dr_rng *rng) {
    const dr_trm_config *c = &trm->config;
    int64_t X = c->text_dim, E = c->n_experts;
    uint32_t threshold = (uint32_t)(c->adaptor_dropout * 4294967296.0f), key = dr_rng_bits(rng);
    float scale = 1.0f / (1.0f - c->adaptor_dropout);
    for (int64_t i = 0; i < rows * X; i++) {
        if (a->x[i] == 0.0f) {
            a->x_dropped[i] = 0.0f;
            continue;
        }
        uint32_t h = ((uint32_t)i * 0x9E3779B9u) ^ key;
        h = (h ^ h >> 16) * 0x7FEB352Du;
        h = (h ^ h >> 15) * 0x846CA68Bu;
        a->x_dropped[i] = (h ^ h >> 16) < threshold ? 0.0f : a->x[i] * scale;
    }
    DR_TRY(trm->backend->ops->gemm(trm->backend, false, false, rows, E, X, 1.0f, a->x,
                                   trm->params + trm->noise, 0.0f, a->spread));
    for (int64_t i = 0; i < rows * E; i++) {
        a->noise[i] = (float)dr_rng_normal(rng);
        a->gate[i] += a->noise[i] * (softplus(a->spread[i]) + 0.01f);
    }
    return DR_OK;
}

dr_status dr_trm_adapt(dr_trm *trm, trm_adaptor *a, int64_t rows, dr_rng *rng) {
    const dr_trm_config *c = &trm->config;
    dr_backend *b = trm->backend;
    int64_t X = c->text_dim, E = c->n_experts, D = c->hidden;
    DR_ASSERT(rows <= a->capacity);
    a->rows = rows;
    if (rows == 0) return DR_OK;
    DR_TRY(b->ops->gemm(b, false, false, rows, E, X, 1.0f, a->x, trm->params + trm->gate, 0.0f, a->gate));
    if (rng)
        DR_TRY(disturb(trm, a, rows, rng));
    else if (a->x_dropped != a->x) // a training pass without noise still needs its input for the backward
        memcpy(a->x_dropped, a->x, (size_t)(rows * X) * sizeof(float));
    DR_TRY(b->ops->linear_forward(b, trm->w_experts, rng ? a->x_dropped : a->x, rows, NULL, a->z));
    b->ops->mixture_forward(b, a->gate, a->z, rows, E, D, a->y);
    return DR_OK;
}

// Reuses `spread` for the gradient of the noise's size and `gate` for that of the logits.
dr_status dr_trm_adapt_backward(dr_trm *trm, trm_adaptor *a, const float *dy, float *gradient) {
    const dr_trm_config *c = &trm->config;
    dr_backend *b = trm->backend;
    int64_t X = c->text_dim, E = c->n_experts, D = c->hidden, rows = a->rows;
    if (rows == 0) return DR_OK;
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        float *gate = a->gate + r * E, dgate[TRM_MAX_EXPERTS], mean = 0;
        const float *g = dy + r * D;
        for (int64_t e = 0; e < E; e++) {
            const float *z = a->z + (r * E + e) * D;
            float *dz = a->dz + (r * E + e) * D, sum = 0;
            for (int64_t d = 0; d < D; d++) {
                dz[d] = gate[e] * g[d];
                sum += z[d] * g[d];
            }
            dgate[e] = sum;
            mean += sum * gate[e];
        }
        for (int64_t e = 0; e < E; e++) {
            gate[e] = gate[e] * (dgate[e] - mean);
            float slope = 1.0f / (1.0f + expf(-a->spread[r * E + e]));
            a->spread[r * E + e] = gate[e] * a->noise[r * E + e] * slope;
        }
    }
    DR_TRY(b->ops->linear_backward_weight(b, a->x_dropped, a->dz, rows, E * D, X, gradient + trm->experts,
                                          NULL));
    DR_TRY(b->ops->gemm(b, true, false, X, E, rows, 1.0f, a->x, a->gate, 1.0f, gradient + trm->gate));
    return b->ops->gemm(b, true, false, X, E, rows, 1.0f, a->x, a->spread, 1.0f, gradient + trm->noise);
}
