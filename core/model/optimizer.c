// AdamW state and step; the arithmetic is the backend's.
#include "core/model/optimizer.h"

#include <math.h>

#include "core/base/alloc.h"

struct dr_optimizer {
    dr_backend *backend;
    dr_lm *lm;
    dr_optimizer_settings settings;
    float *m, *v;
    int64_t updates, age; // in all; since the moments were zero
};

float dr_schedule_rate(const dr_schedule *s, int64_t t) {
    if (t < s->warmup_steps) return s->peak * (float)(t + 1) / (float)(s->warmup_steps + 1);
    if (s->kind == DR_SCHEDULE_CONSTANT || s->total_steps <= s->warmup_steps) return s->peak;
    double done = (double)(t - s->warmup_steps) / (double)(s->total_steps - s->warmup_steps);
    if (done > 1) done = 1;
    double share = s->kind == DR_SCHEDULE_LINEAR ? 1.0 - done : 0.5 * (1.0 + cos(3.14159265358979 * done));
    return (float)(s->peak * (s->final_share + (1.0 - s->final_share) * share));
}

dr_status dr_optimizer_create(dr_lm *lm, const dr_optimizer_settings *settings,
                              dr_optimizer **out_optimizer) {
    dr_optimizer *o = NULL;
    DR_CHECK(dr_lm_params(lm) != NULL, DR_ERR_UNSUPPORTED,
             "a model without its fp32 weights cannot be trained");
    DR_TRY(dr_alloc(&o, "optimizer", 1, sizeof *o));
    o->lm = lm;
    o->settings = *settings;
    dr_backend *b = o->backend = dr_lm_backend(lm);
    dr_status status;
    DR_TRY_GOTO(status, dr_memory_create(b, &o->m, "first moments", dr_lm_n_params(lm), sizeof(float)),
                destroy);
    DR_TRY_GOTO(status, dr_memory_create(b, &o->v, "second moments", dr_lm_n_params(lm), sizeof(float)),
                destroy);
    *out_optimizer = o;
    return DR_OK;
destroy:
    dr_optimizer_destroy(o);
    return status;
}

void dr_optimizer_destroy(dr_optimizer *optimizer) {
    if (!optimizer) return;
    dr_backend *b = optimizer->backend;
    b->ops->memory_destroy(b, optimizer->m);
    b->ops->memory_destroy(b, optimizer->v);
    dr_free(optimizer);
}

dr_status dr_optimizer_step(dr_optimizer *o, const float *gradient, float learning_rate, double *out_norm) {
    int64_t n = dr_lm_n_params(o->lm);
    dr_backend *b = dr_lm_backend(o->lm);
    double norm = sqrt(b->ops->sum_of_squares(b, gradient, n));
    DR_CHECK(isfinite(norm), DR_ERR_NUMERIC, "the gradient's norm is %g: no update is made", norm);
    float scale = o->settings.clip_norm > 0 && norm > o->settings.clip_norm
                      ? (float)(o->settings.clip_norm / norm)
                      : 1.0f;
    dr_adamw_settings settings = {.learning_rate = learning_rate,
                                  .beta1 = o->settings.beta1,
                                  .beta2 = o->settings.beta2,
                                  .epsilon = o->settings.epsilon,
                                  .weight_decay = o->settings.weight_decay,
                                  .t = o->age + 1};
    b->ops->adamw(b, dr_lm_params(o->lm), gradient, o->m, o->v, n, scale, &settings);
    o->updates++;
    o->age++;
    DR_TRY(dr_lm_weights_changed(o->lm));
    *out_norm = norm;
    return DR_OK;
}

float *dr_optimizer_first(dr_optimizer *optimizer) {
    return optimizer->m;
}

float *dr_optimizer_second(dr_optimizer *optimizer) {
    return optimizer->v;
}

int64_t dr_optimizer_updates(const dr_optimizer *optimizer) {
    return optimizer->updates;
}

int64_t dr_optimizer_age(const dr_optimizer *optimizer) {
    return optimizer->age;
}

void dr_optimizer_set_updates(dr_optimizer *optimizer, int64_t updates, int64_t age) {
    optimizer->updates = updates;
    optimizer->age = age;
}

void dr_optimizer_restart(dr_optimizer *o) {
    size_t bytes = (size_t)dr_lm_n_params(o->lm) * sizeof(float);
    dr_backend *b = dr_lm_backend(o->lm);
    b->ops->zero(b, o->m, bytes);
    b->ops->zero(b, o->v, bytes);
    o->age = 0;
}
