// The copying start: an induction circuit written into fresh random weights. Layer 0, head 0 looks at the
// token before and writes its code into the residual stream; layer 1, head 0 looks for a place whose previous
// token is the present one and raises the logit of the token there. Models that learn to copy from their
// context grow this pair by themselves (Olsson et al., "In-context Learning and Induction Heads", arXiv
// 2209.11895), which takes a small model longer than everything else that the warm-up teaches.
#include <math.h>

#include "core/base/alloc.h"
#include "core/base/rng.h"
#include "core/model/lm_internal.h"

// The rotary pairs are shared out: fast ones tell positions apart, slow ones hardly turn within a context of
// SPAN tokens and compare contents.
static const float SLOWEST_FAST = 0.02f, SPAN = 256.0f;

// Strengths, in units that make every input of a product of size 1: how much sharper than its neighbours the
// previous position is, how loud its code is beside a token's own embedding, how sharp the comparison of
// contents is, and how loud the copied token is.
static const float PREVIOUS = 5.0f, CODE = 1.3f, MATCH = 2.0f, COPIED = 0.5f;

typedef struct circuit {
    dr_lm *lm;
    float *params; // [n_params] on the host
    dr_rng rng;
    int64_t D, d, half;
    float embed; // standard deviation of an embedding's values
    float *code; // [d, D] projection that stands for a token
    float *loud; // [D, d] where the previous token's code is written
} circuit;

static bool is_slow(const circuit *c, int64_t pair) {
    return c->lm->frequencies[pair] * SPAN < 0.75f;
}

static void fill(circuit *c, float *values, int64_t n, float deviation) {
    for (int64_t i = 0; i < n; i++) values[i] = deviation * (float)dr_rng_normal(&c->rng);
}

// Rows of head 0's query, and of key/value head 0's key and value, in the merged matrix of a layer.
static float *query_row(const circuit *c, const lm_layer *layer, int64_t row) {
    return c->params + layer->qkv + row * c->D;
}
static float *key_row(const circuit *c, const lm_layer *layer, int64_t row) {
    return query_row(c, layer, c->lm->config.n_heads * c->d + row);
}
static float *value_row(const circuit *c, const lm_layer *layer, int64_t row) {
    return query_row(c, layer, (c->lm->config.n_heads + c->lm->config.n_kv_heads) * c->d + row);
}

// Biases alone: the query points along each fast pair, the key one position further on.
static void write_previous_token_head(circuit *c) {
    const lm_layer *layer = &c->lm->layers[0];
    float *query = c->params + layer->qkv_bias, *key = query + c->lm->config.n_heads * c->d, apart = 0;
    const float *frequency = c->lm->frequencies;
    for (int64_t i = 0; i < c->half; i++)
        if (frequency[i] > SLOWEST_FAST) apart += 1 - cosf(frequency[i]);
    float size = sqrtf(PREVIOUS * sqrtf((float)c->d) / apart);
    for (int64_t r = 0; r < c->d; r++)
        for (int64_t j = 0; j < c->D; j++) query_row(c, layer, r)[j] = 0;
    for (int64_t i = 0; i < c->half; i++) {
        if (frequency[i] <= SLOWEST_FAST) continue;
        for (int64_t j = 0; j < c->D; j++) key_row(c, layer, i)[j] = key_row(c, layer, i + c->half)[j] = 0;
        query[i] = size;
        key[i] = size * cosf(frequency[i]);
        key[i + c->half] = size * sinf(frequency[i]);
    }
    float width = sqrtf((float)c->D);
    fill(c, c->code, c->d * c->D, 1 / width);
    fill(c, c->loud, c->D * c->d, CODE * c->embed / sqrtf((float)c->d));
    for (int64_t r = 0; r < c->d; r++)
        for (int64_t j = 0; j < c->D; j++) {
            value_row(c, layer, r)[j] = c->code[r * c->D + j];
            c->params[layer->o + j * c->lm->config.n_heads * c->d + r] = c->loud[j * c->d + r];
        }
}

// Query: the code of the token here. Key: the code of the token before. Both in the slow pairs only.
static void write_matching_head(circuit *c) {
    const lm_layer *layer = &c->lm->layers[1];
    float here = 1 / sqrtf(1 + CODE * CODE), before = CODE * here; // parts of the normalised stream
    float square = (float)c->D * CODE * CODE * c->embed * c->embed / (float)c->d; // of a column of `loud`
    float read = CODE * c->embed / (before * square); // gives back the code in size 1
    int64_t slow = 0;
    for (int64_t i = 0; i < c->half; i++) slow += 2 * is_slow(c, i);
    float sharp = MATCH * sqrtf((float)c->d) / (float)slow;
    for (int64_t r = 0; r < c->d; r++)
        for (int64_t j = 0; j < c->D; j++) {
            bool used = is_slow(c, r % c->half);
            query_row(c, layer, r)[j] = used ? 3 * sharp / here * c->code[r * c->D + j] : 0;
            key_row(c, layer, r)[j] = used ? read * c->loud[j * c->d + r] : 0;
        }
    float *back = c->loud; // its last use was above: [D, d] of the way out
    for (int64_t r = 0; r < c->d; r++)
        for (int64_t j = 0; j < c->D; j++) {
            float v = (float)dr_rng_normal(&c->rng) / sqrtf((float)c->D);
            value_row(c, layer, r)[j] = v;
            back[j * c->d + r] = COPIED * v;
        }
    for (int64_t j = 0; j < c->D; j++)
        for (int64_t r = 0; r < c->d; r++)
            c->params[layer->o + j * c->lm->config.n_heads * c->d + r] = back[j * c->d + r];
}

// Everything else starts quiet, so that the circuit is heard.
static void quieten(circuit *c) {
    const dr_lm_config *config = &c->lm->config;
    for (int32_t l = 0; l < config->n_layers; l++) {
        float *o = c->params + c->lm->layers[l].o, *down = c->params + c->lm->layers[l].down;
        for (int64_t i = 0; i < c->D * config->n_heads * c->d; i++) o[i] *= 0.3f;
        for (int64_t i = 0; i < c->D * config->intermediate; i++) down[i] *= 0.1f;
    }
}

dr_status dr_lm_start_copying(dr_lm *lm, uint64_t seed) {
    const dr_lm_config *config = &lm->config;
    circuit c = {.lm = lm, .rng = dr_rng_make(seed, 0xC0B1), .D = config->hidden, .d = config->head_size};
    c.half = c.d / 2;
    DR_CHECK(!lm->vectors, DR_ERR_UNSUPPORTED,
             "a model that was loaded for reading, or in shards, cannot be changed");
    DR_CHECK(config->n_layers >= 2 && config->qkv_bias && config->tied_head, DR_ERR_UNSUPPORTED,
             "the copying start needs two layers, biases of queries and keys, and a tied head");
    DR_TRY(dr_host_open(lm->backend, lm->params, lm->n_params, DR_HOST_CHANGES, &c.params));
    double square = 0;
    int64_t n = (int64_t)config->vocab * c.D;
    for (int64_t i = 0; i < n; i++) square += (double)c.params[lm->embed + i] * c.params[lm->embed + i];
    c.embed = (float)sqrt(square / (double)n);
    dr_status status = dr_alloc(&c.code, "copying start", c.d * c.D, sizeof(float));
    if (status == DR_OK) status = dr_alloc(&c.loud, "copying start", c.d * c.D, sizeof(float));
    if (status == DR_OK) {
        quieten(&c);
        write_previous_token_head(&c);
        write_matching_head(&c);
    }
    dr_host_close(lm->backend, lm->params, lm->n_params, DR_HOST_CHANGES, c.params);
    if (status == DR_OK) status = dr_lm_weights_changed(lm);
    dr_free(c.code);
    dr_free(c.loud);
    return status;
}
