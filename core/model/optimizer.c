// AdamW state and step; the arithmetic is the backend's.
#include "core/model/optimizer.h"

#include <assert.h>
#include <math.h>

#include "core/base/alloc.h"
#include "core/model/lm_shard.h"

static_assert(DR_SHARD_MULTIPLE % DR_SQUARE_BLOCK == 0, "a block of squares belongs to one learner");

struct dr_optimizer {
    dr_backend *backend;
    dr_lm *lm;
    dr_collective *learners; // NULL: alone
    dr_optimizer_settings settings;
    dr_shard shard;
    dr_shard *parts;      // [learners] bytes of each in an exchange
    float *m, *v;         // of the shard
    double *squares;      // [dr_square_blocks(n_params)] of the gradient
    float *host;          // of a sum under way, where the learners cannot read the backend's memory: a copy
    int64_t copied;       // of the gradient's values from here on
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

dr_status dr_optimizer_create(dr_lm *lm, const dr_optimizer_settings *settings, dr_collective *learners,
                              dr_optimizer **out_optimizer) {
    dr_optimizer *o = NULL;
    int64_t n = dr_lm_n_params(lm);
    const dr_shard shard = learners ? dr_shard_of(n, learners->rank, learners->size) : (dr_shard){0, n};
    DR_CHECK(dr_lm_master(lm, shard) != NULL, DR_ERR_UNSUPPORTED,
             "a model without the fp32 weights of parameters %lld to %lld: they cannot be trained",
             (long long)shard.begin, (long long)shard.end);
    DR_TRY(dr_alloc(&o, "optimizer", 1, sizeof *o));
    o->lm = lm;
    o->settings = *settings;
    o->learners = learners;
    o->shard = shard;
    int64_t own = o->shard.end - o->shard.begin;
    dr_backend *b = o->backend = dr_lm_backend(lm);
    dr_status status;
    DR_TRY_GOTO(status,
                dr_alloc(&o->parts, "learners' parts", learners ? learners->size : 1, sizeof *o->parts),
                destroy);
    DR_TRY_GOTO(status, dr_memory_create(b, &o->m, "first moments", own, sizeof(float)), destroy);
    DR_TRY_GOTO(status, dr_memory_create(b, &o->v, "second moments", own, sizeof(float)), destroy);
    DR_TRY_GOTO(status, dr_alloc(&o->squares, "sums of squares", dr_square_blocks(n), sizeof *o->squares),
                destroy);
    *out_optimizer = o;
    return DR_OK;
destroy:
    dr_optimizer_destroy(o);
    return status;
}

int64_t dr_optimizer_memory(const dr_lm *lm, int n_learners) {
    return 2 * dr_shard_of(dr_lm_n_params(lm), 0, n_learners).end * (int64_t)sizeof(float);
}

void dr_optimizer_destroy(dr_optimizer *optimizer) {
    if (!optimizer) return;
    dr_backend *b = optimizer->backend;
    b->ops->memory_destroy(b, optimizer->m);
    b->ops->memory_destroy(b, optimizer->v);
    dr_free(optimizer->parts);
    dr_free(optimizer->squares);
    dr_free(optimizer->host);
    dr_free(optimizer);
}

dr_shard dr_optimizer_shard(const dr_optimizer *optimizer) {
    return optimizer->shard;
}

static bool is_alone(const dr_optimizer *o) {
    return !o->learners || o->learners->size == 1;
}

// Where the group finds the gradient: the memory itself, or a copy whose values from `begin` on are there.
static dr_status show_gradient(dr_optimizer *o, float *gradient, int64_t begin, float **out_values) {
    dr_backend *b = o->backend;
    float *view = o->learners->takes_backend_memory ? gradient : b->ops->host_view(b, gradient);
    if (!view && !o->host) {
        o->copied = dr_lm_n_params(o->lm);
        DR_TRY(dr_alloc_unset(&o->host, "host copy of the gradient", o->copied, sizeof *o->host));
    }
    if (!view && begin < o->copied) {
        b->ops->copy_out(b, o->host + begin, gradient + begin, (size_t)(o->copied - begin) * sizeof(float));
        o->copied = begin;
    }
    *out_values = view ? view : o->host;
    return DR_OK;
}

dr_status dr_optimizer_reduce_begin(dr_optimizer *o, float *gradient, int64_t begin) {
    float *values = NULL;
    if (is_alone(o)) return DR_OK;
    DR_TRY(show_gradient(o, gradient, begin, &values));
    return o->learners->ops->reduce_scatter_begin(o->learners, values, dr_lm_n_params(o->lm), begin);
}

dr_status dr_optimizer_reduce(dr_optimizer *o, float *gradient) {
    int64_t begin = o->shard.begin;
    dr_backend *b = o->backend;
    float *values = NULL;
    if (is_alone(o)) return DR_OK;
    DR_TRY(show_gradient(o, gradient, 0, &values));
    DR_TRY(o->learners->ops->reduce_scatter_sum(o->learners, values, dr_lm_n_params(o->lm)));
    if (values == o->host)
        b->ops->copy_in(b, gradient + begin, values + begin, (size_t)(o->shard.end - begin) * sizeof(float));
    dr_free(o->host);
    o->host = NULL;
    return DR_OK;
}

// Every block of the gradient has one owner, who tells its sum to all.
static dr_status gather_squares(dr_optimizer *o) {
    int64_t n = dr_lm_n_params(o->lm), size = sizeof *o->squares;
    for (int r = 0; r < o->learners->size; r++) {
        dr_shard shard = dr_shard_of(n, r, o->learners->size);
        o->parts[r] = (dr_shard){dr_square_blocks(shard.begin) * size, dr_square_blocks(shard.end) * size};
    }
    return o->learners->ops->all_gather_host(o->learners, o->squares, o->parts);
}

static dr_status gradient_norm(dr_optimizer *o, const float *gradient, double *out_norm) {
    dr_backend *b = o->backend;
    int64_t n_blocks = dr_square_blocks(dr_lm_n_params(o->lm)), begin = o->shard.begin;
    double total = 0;
    b->ops->sums_of_squares(b, gradient + begin, o->shard.end - begin, o->squares + dr_square_blocks(begin));
    if (!is_alone(o)) DR_TRY(gather_squares(o));
    for (int64_t i = 0; i < n_blocks; i++) total += o->squares[i];
    *out_norm = sqrt(total);
    return DR_OK;
}

dr_status dr_optimizer_step(dr_optimizer *o, const float *gradient, float learning_rate, double *out_norm) {
    int64_t begin = o->shard.begin;
    dr_backend *b = o->backend;
    double norm = 0;
    DR_TRY(gradient_norm(o, gradient, &norm));
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
    b->ops->adamw(b, dr_lm_master(o->lm, o->shard), gradient + begin, o->m, o->v, o->shard.end - begin, scale,
                  &settings);
    DR_TRY(is_alone(o) ? dr_lm_weights_changed(o->lm) : dr_lm_share(o->lm, o->learners, o->parts));
    o->updates++;
    o->age++;
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
    size_t bytes = (size_t)(o->shard.end - o->shard.begin) * sizeof(float);
    dr_backend *b = o->backend;
    b->ops->zero(b, o->m, bytes);
    b->ops->zero(b, o->v, bytes);
    o->age = 0;
}
