// The plain way to decode, one token at a time: every linear layer a loop over the rows of its matrix, as
// small programs for language models in C do it, here in our own words. Reads a model folder that
// bench_engine wrote, compares its logits with check.safetensors, then prints one JSON line a context.
// Compiled by run.sh with -O3 -march=native -ffast-math, which is how such programs are run.
//   matvec FOLDER THREADS SECONDS OUT.json
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/alloc.h"
#include "core/base/clock.h"
#include "core/base/file.h"
#include "core/model/lm.h"
#include "core/store/safetensors.h"

enum { STEPS = 8, MAX_REPEATS = 200, LONGEST = 2048 + STEPS };

typedef struct model {
    dr_lm_config c;
    dr_lm *lm;
    float *x, *norm, *q, *att, *out, *gate, *up, *scores, *logits; // one token's
    float *keys, *values;                                          // [n_layers, LONGEST, G * d]
} model;

// NULL: the model has no such tensor.
static const float *weight(const model *m, int layer, const char *name) {
    const dr_lm_tensor *tensors;
    int32_t n = dr_lm_tensors(m->lm, &tensors);
    char full[128];
    if (layer < 0)
        snprintf(full, sizeof full, "%s", name);
    else
        snprintf(full, sizeof full, "model.layers.%d.%s", layer, name);
    for (int32_t i = 0; i < n; i++)
        if (strcmp(tensors[i].name, full) == 0) return dr_lm_params(m->lm) + tensors[i].offset;
    return NULL;
}

static void multiply(const float *w, const float *x, const float *bias, int64_t n_out, int64_t n_in,
                     float *y) {
#pragma omp parallel for
    for (int64_t o = 0; o < n_out; o++) {
        float sum = bias ? bias[o] : 0.0f;
        for (int64_t i = 0; i < n_in; i++) sum += w[o * n_in + i] * x[i];
        y[o] = sum;
    }
}

static void normalise(const float *x, const float *w, int64_t n, float eps, float *y) {
    float square = 0;
    for (int64_t i = 0; i < n; i++) square += x[i] * x[i];
    float scale = 1.0f / sqrtf(square / (float)n + eps);
    for (int64_t i = 0; i < n; i++) y[i] = x[i] * scale * w[i];
}

static void turn(float *x, int heads, int d, float theta, int position) {
    for (int h = 0; h < heads; h++)
        for (int i = 0; i < d / 2; i++) {
            float angle = (float)position * powf(theta, -2.0f * (float)i / (float)d), c = cosf(angle),
                  s = sinf(angle), *a = x + h * d + i, *b = a + d / 2, left = *a, right = *b;
            *a = left * c - right * s;
            *b = right * c + left * s;
        }
}

static void attend(model *m, const float *keys, const float *values, int position) {
    int d = m->c.head_size, group = m->c.n_heads / m->c.n_kv_heads, width = m->c.n_kv_heads * d;
#pragma omp parallel for
    for (int h = 0; h < m->c.n_heads; h++) {
        float *scores = m->scores + (int64_t)h * LONGEST, *out = m->att + h * d, top = -INFINITY, total = 0;
        const float *q = m->q + h * d, *k = keys + h / group * d, *v = values + h / group * d;
        for (int t = 0; t <= position; t++) {
            float sum = 0;
            for (int i = 0; i < d; i++) sum += q[i] * k[(int64_t)t * width + i];
            scores[t] = sum / sqrtf((float)d);
            top = scores[t] > top ? scores[t] : top;
        }
        for (int t = 0; t <= position; t++) total += scores[t] = expf(scores[t] - top);
        for (int i = 0; i < d; i++) out[i] = 0;
        for (int t = 0; t <= position; t++)
            for (int i = 0; i < d; i++) out[i] += scores[t] / total * v[(int64_t)t * width + i];
    }
}

static void run_layer(model *m, int l, int position) {
    const dr_lm_config *c = &m->c;
    int64_t D = c->hidden, A = (int64_t)c->n_heads * c->head_size, K = (int64_t)c->n_kv_heads * c->head_size;
    float *keys = m->keys + (int64_t)l * LONGEST * K, *values = m->values + (int64_t)l * LONGEST * K,
          *k = keys + position * K, *v = values + position * K;
    normalise(m->x, weight(m, l, "input_layernorm.weight"), D, c->rms_eps, m->norm);
    multiply(weight(m, l, "self_attn.q_proj.weight"), m->norm, weight(m, l, "self_attn.q_proj.bias"), A, D,
             m->q);
    multiply(weight(m, l, "self_attn.k_proj.weight"), m->norm, weight(m, l, "self_attn.k_proj.bias"), K, D,
             k);
    multiply(weight(m, l, "self_attn.v_proj.weight"), m->norm, weight(m, l, "self_attn.v_proj.bias"), K, D,
             v);
    turn(m->q, c->n_heads, c->head_size, c->rope_theta, position);
    turn(k, c->n_kv_heads, c->head_size, c->rope_theta, position);
    attend(m, keys, values, position);
    multiply(weight(m, l, "self_attn.o_proj.weight"), m->att, NULL, D, A, m->out);
    for (int64_t i = 0; i < D; i++) m->x[i] += m->out[i];
    normalise(m->x, weight(m, l, "post_attention_layernorm.weight"), D, c->rms_eps, m->norm);
    multiply(weight(m, l, "mlp.gate_proj.weight"), m->norm, NULL, c->intermediate, D, m->gate);
    multiply(weight(m, l, "mlp.up_proj.weight"), m->norm, NULL, c->intermediate, D, m->up);
    for (int64_t i = 0; i < c->intermediate; i++) m->gate[i] *= m->up[i] / (1.0f + expf(-m->gate[i]));
    multiply(weight(m, l, "mlp.down_proj.weight"), m->gate, NULL, D, c->intermediate, m->out);
    for (int64_t i = 0; i < D; i++) m->x[i] += m->out[i];
}

static void run_token(model *m, int32_t id, int position) {
    int64_t D = m->c.hidden;
    const float *embed = weight(m, -1, "model.embed_tokens.weight");
    memcpy(m->x, embed + id * D, (size_t)D * sizeof(float));
    for (int l = 0; l < m->c.n_layers; l++) run_layer(m, l, position);
    normalise(m->x, weight(m, -1, "model.norm.weight"), D, m->c.rms_eps, m->norm);
    multiply(m->c.tied_head ? embed : weight(m, -1, "lm_head.weight"), m->norm, NULL, m->c.vocab, D,
             m->logits);
}

static dr_status allocate(model *m) {
    const dr_lm_config *c = &m->c;
    int64_t cache = (int64_t)c->n_layers * LONGEST * c->n_kv_heads * c->head_size;
    struct {
        float **to;
        int64_t n;
    } arrays[] = {{&m->x, c->hidden},
                  {&m->norm, c->hidden},
                  {&m->q, (int64_t)c->n_heads * c->head_size},
                  {&m->att, (int64_t)c->n_heads * c->head_size},
                  {&m->out, c->hidden},
                  {&m->gate, c->intermediate},
                  {&m->up, c->intermediate},
                  {&m->scores, (int64_t)c->n_heads * LONGEST},
                  {&m->logits, c->vocab},
                  {&m->keys, cache},
                  {&m->values, cache}};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        DR_TRY(dr_alloc(arrays[i].to, "matvec", arrays[i].n, sizeof(float)));
    return DR_OK;
}

// The logits of check.safetensors, within a thousandth of the largest.
static dr_status check(model *m, const char *folder) {
    char *path = NULL;
    dr_safetensors *file = NULL;
    float *ids = NULL, *want = NULL, gap = 0, largest = 0;
    int64_t shape[2] = {0, m->c.vocab};
    DR_TRY(dr_path_join(&path, folder, "check.safetensors"));
    DR_TRY(dr_safetensors_open(path, &file));
    shape[0] = dr_safetensors_find(file, "ids")->shape[0];
    DR_TRY(dr_alloc(&ids, "ids", shape[0], sizeof *ids));
    DR_TRY(dr_alloc(&want, "logits", shape[0] * shape[1], sizeof *want));
    DR_TRY(dr_safetensors_read(file, "ids", shape, 1, ids));
    DR_TRY(dr_safetensors_read(file, "logits", shape, 2, want));
    for (int64_t t = 0; t < shape[0]; t++) {
        run_token(m, (int32_t)ids[t], (int)t);
        for (int64_t j = 0; j < shape[1]; j++) {
            gap = fmaxf(gap, fabsf(m->logits[j] - want[t * shape[1] + j]));
            largest = fmaxf(largest, fabsf(want[t * shape[1] + j]));
        }
    }
    dr_safetensors_close(file);
    dr_free(path);
    dr_free(ids);
    dr_free(want);
    DR_CHECK(gap <= 1e-3f * largest, DR_ERR_INTERNAL, "matvec: logits differ by %g, the largest is %g",
             (double)gap, (double)largest);
    return DR_OK;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median_rate(model *m, int context, double seconds) {
    double taken[MAX_REPEATS], all = 0;
    int n = 0;
    while (n < 5 || (all < seconds && n < MAX_REPEATS)) {
        double begun = dr_clock_seconds();
        for (int i = 0; i < STEPS; i++) run_token(m, 1, context + i);
        all += taken[n++] = dr_clock_seconds() - begun;
    }
    qsort(taken, (size_t)n, sizeof *taken, by_value);
    return STEPS / taken[n / 2];
}

static dr_status run(const char *folder, int threads, double seconds, const char *out) {
    model m = {0};
    dr_backend *backend = NULL;
    omp_set_num_threads(threads);
    DR_TRY(dr_backend_cpu_create(DR_FP32, threads, &backend));
    DR_TRY(dr_lm_load(backend, folder, &m.lm));
    m.c = *dr_lm_config_of(m.lm);
    DR_TRY(allocate(&m));
    DR_TRY(check(&m, folder));
    FILE *file = fopen(out, "w");
    DR_CHECK(file, DR_ERR_IO, "%s: cannot be written", out);
    for (int context = 512; context <= 2048; context *= 4)
        fprintf(file, "{\"name\": \"decode.b1.c%d\", \"value\": %.6g, \"note\": \"fp32, row by row\"}\n",
                context, median_rate(&m, context, seconds));
    DR_CHECK(fclose(file) == 0, DR_ERR_IO, "%s: cannot be written", out);
    return DR_OK; // what it holds goes with the process
}

int main(int argc, char **argv) {
    if (argc != 5) {
        fputs("matvec FOLDER THREADS SECONDS OUT.json\n", stderr);
        return EXIT_FAILURE;
    }
    return run(argv[1], atoi(argv[2]), atof(argv[3]), argv[4]) == DR_OK ? EXIT_SUCCESS : EXIT_FAILURE;
}
