// The mixture-of-experts text adaptor (UniSRec, Hou et al., KDD 2022): A(x) = Σ_e softmax(x·Wg)_e · (We x),
// all experts as one product. In training the expert input has dropout (one mask for all experts) and the
// gate has noise of learned size.
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

int64_t dr_trm_adaptor_memory(const dr_trm_config *c, int64_t capacity, bool trains) {
    int64_t X = c->text_dim, E = c->n_experts, D = c->hidden;
    int64_t row = X + E * D + E + D + (trains ? X + 2 * E + E * D : 0);
    return capacity * row * (int64_t)sizeof(float);
}

// Dropout of the expert input and noise of the gate logits. The noise is drawn on the host: a few numbers a
// row, the same bits on every backend.
static dr_status disturb(dr_trm *trm, trm_adaptor *a, int64_t rows, dr_rng *rng) {
    const dr_trm_config *c = &trm->config;
    dr_backend *b = trm->backend;
    int64_t X = c->text_dim, n = rows * c->n_experts;
    float *noise = NULL;
    b->ops->dropout(b, a->x, rows * X, c->adaptor_dropout, dr_rng_bits(rng), a->x_dropped);
    DR_TRY(b->ops->gemm(b, false, false, rows, c->n_experts, X, 1.0f, a->x, trm->params + trm->noise, 0.0f,
                        a->spread));
    DR_TRY(dr_host_open(b, a->noise, n, DR_HOST_WRITES, &noise));
    for (int64_t i = 0; i < n; i++) noise[i] = (float)dr_rng_normal(rng);
    dr_host_close(b, a->noise, n, DR_HOST_WRITES, noise);
    b->ops->noisy_gate_forward(b, a->noise, a->spread, n, a->gate);
    return DR_OK;
}

dr_status dr_trm_adapt(dr_trm *trm, trm_adaptor *a, int64_t rows, dr_rng *rng) {
    const dr_trm_config *c = &trm->config;
    dr_backend *b = trm->backend;
    int64_t X = c->text_dim, E = c->n_experts, D = c->hidden;
    DR_ASSERT(rows <= a->capacity);
    a->rows = rows;
    a->is_noisy = rng != NULL;
    if (rows == 0) return DR_OK;
    DR_TRY(b->ops->gemm(b, false, false, rows, E, X, 1.0f, a->x, trm->params + trm->gate, 0.0f, a->gate));
    if (rng)
        DR_TRY(disturb(trm, a, rows, rng));
    else if (a->x_dropped != a->x) // a training pass without noise still needs its input for the backward
        b->ops->copy(b, a->x_dropped, a->x, trm_bytes(rows * X));
    DR_TRY(b->ops->linear_forward(b, trm->w_experts, rng ? a->x_dropped : a->x, rows, NULL, a->z));
    b->ops->mixture_forward(b, a->gate, a->z, rows, E, D, a->y);
    return DR_OK;
}

// `spread` and `gate` become their own gradients.
dr_status dr_trm_adapt_backward(dr_trm *trm, trm_adaptor *a, const float *dy, float *gradient) {
    const dr_trm_config *c = &trm->config;
    dr_backend *b = trm->backend;
    int64_t X = c->text_dim, E = c->n_experts, D = c->hidden, rows = a->rows;
    if (rows == 0) return DR_OK;
    b->ops->mixture_backward(b, dy, a->gate, a->z, rows, E, D, a->dz, a->gate);
    if (a->is_noisy) {
        b->ops->noisy_gate_backward(b, a->gate, a->noise, a->spread, rows * E, a->spread);
        DR_TRY(b->ops->gemm(b, true, false, X, E, rows, 1.0f, a->x, a->spread, 1.0f, gradient + trm->noise));
    }
    DR_TRY(b->ops->linear_backward(b, trm->w_experts, a->x_dropped, a->dz, rows, NULL, false,
                                   gradient + trm->experts, NULL));
    return b->ops->gemm(b, true, false, X, E, rows, 1.0f, a->x, a->gate, 1.0f, gradient + trm->gate);
}
