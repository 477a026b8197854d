// Sampling one token. The kept set of top-p is the smallest set of most probable tokens whose mass reaches
// top_p; ties at the border go to smaller ids. A token is picked by walking the kept probabilities in id
// order, so equal bits give equal tokens.
#include "core/model/sampler.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "core/base/alloc.h"

enum { BINS = 1024 }; // ten bits at a time

struct dr_sampler {
    int32_t vocab;
    float *p;      // [vocab] unnormalised probabilities, at most 1
    int32_t *kept; // [vocab] ids that top-p left
    int32_t n_kept;
    double mass[BINS];
};

dr_status dr_sampler_create(int32_t vocab, dr_sampler **out_sampler) {
    dr_sampler *s = NULL;
    DR_TRY(dr_alloc(&s, "sampler", 1, sizeof *s));
    s->vocab = vocab;
    dr_status status;
    DR_TRY_GOTO(status, dr_alloc(&s->p, "sampler probabilities", vocab, sizeof *s->p), destroy);
    DR_TRY_GOTO(status, dr_alloc(&s->kept, "kept set", vocab, sizeof *s->kept), destroy);
    *out_sampler = s;
    return DR_OK;
destroy:
    dr_sampler_destroy(s);
    return status;
}

void dr_sampler_destroy(dr_sampler *sampler) {
    if (!sampler) return;
    dr_free(sampler->p);
    dr_free(sampler->kept);
    dr_free(sampler);
}

// Largest logit and its smallest id; NaN or nothing finite is an error.
static dr_status find_top(const float *logits, int32_t vocab, int32_t *out_id) {
    int32_t best = -1;
    for (int32_t i = 0; i < vocab; i++) {
        DR_CHECK(!isnan(logits[i]) && logits[i] != INFINITY, DR_ERR_NUMERIC, "sampling: logit %d is %g", i,
                 (double)logits[i]);
        if (best < 0 || logits[i] > logits[best]) best = i;
    }
    DR_CHECK(best >= 0 && logits[best] > -INFINITY, DR_ERR_NUMERIC, "sampling: every logit is -inf");
    *out_id = best;
    return DR_OK;
}

static uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

// The probability of the least probable kept token, with the mass above it. A radix selection: the bits of
// floats in [0, 1] sort as the floats do, so masses by their high ten bits, then the next ten inside the bin
// where the mass is reached, then the last ten, find the border in three passes whatever the distribution.
static uint32_t find_border(dr_sampler *s, double wanted, double *out_above) {
    uint32_t prefix = 0;
    double above = 0;
    for (int shift = 20; shift >= 0; shift -= 10) {
        memset(s->mass, 0, sizeof s->mass);
        for (int32_t i = 0; i < s->vocab; i++) {
            uint32_t bits = bits_of(s->p[i]);
            if (bits >> (shift + 10) == prefix) s->mass[bits >> shift & (BINS - 1)] += s->p[i];
        }
        int32_t bin = BINS - 1,
                lowest = -1; // rounding may leave the mass unreached: the last bin that has any
        for (; bin >= 0; bin--) {
            if (s->mass[bin] <= 0) continue;
            lowest = bin;
            if (above + s->mass[bin] >= wanted) break;
            above += s->mass[bin];
        }
        if (bin < 0) above -= s->mass[lowest];
        prefix = prefix << 10 | (uint32_t)lowest;
    }
    *out_above = above;
    return prefix;
}

// Zeroes p outside the kept set, lists its ids and returns its mass.
static double keep_nucleus(dr_sampler *s, double wanted) {
    double above = 0, kept = 0;
    uint32_t border = find_border(s, wanted, &above);
    for (int32_t i = 0; i < s->vocab; i++) {
        uint32_t bits = bits_of(s->p[i]);
        bool keep = bits > border;
        if (bits == border && above < wanted) {
            keep = true;
            above += s->p[i];
        }
        if (!keep) s->p[i] = 0;
        if (s->p[i] > 0) s->kept[s->n_kept++] = i;
        kept += s->p[i];
    }
    return kept;
}

static dr_status check_settings(const dr_sampling *settings) {
    float t = settings->temperature, p = settings->top_p;
    DR_CHECK(t == 0 || (t >= 1e-6f && isfinite(t)), DR_ERR_ARGUMENT,
             "sampling: temperature %g, expected 0 (greedy) or at least 1e-6", (double)t);
    DR_CHECK(t == 0 || (p > 0 && p <= 1), DR_ERR_ARGUMENT,
             "sampling: top-p %g, expected more than 0, at most 1", (double)p);
    return DR_OK;
}

dr_status dr_sampler_draw(dr_sampler *s, const float *logits, const dr_sampling *settings, uint32_t bits,
                          dr_sampled *out) {
    int32_t top = 0;
    DR_TRY(check_settings(settings));
    DR_TRY(find_top(logits, s->vocab, &top));
    bool greedy = settings->temperature == 0;
    float inv = greedy ? 1.0f : 1.0f / settings->temperature;
    double total = 0;
    for (int32_t i = 0; i < s->vocab; i++) {
        s->p[i] = expf((logits[i] - logits[top]) * inv);
        total += s->p[i];
    }
    if (greedy) {
        *out = (dr_sampled){.id = top, .logprob = (float)-log(total)};
        return DR_OK;
    }
    s->n_kept = 0;
    double kept = settings->top_p < 1.0f ? keep_nucleus(s, settings->top_p * total) : total;
    double mark = (double)bits * 0x1p-32 * kept, sum = 0;
    int32_t chosen = -1;
    for (int32_t i = 0; i < s->vocab; i++) {
        if (s->p[i] <= 0) continue;
        chosen = i;
        sum += s->p[i];
        if (sum > mark) break;
    }
    double z = (double)(logits[chosen] - logits[top]) * inv;
    *out = (dr_sampled){.id = chosen,
                        .logprob = (float)(z - log(total)),
                        .logprob_kept = (float)(z - log(kept)),
                        .kept = {s->kept, s->n_kept}};
    return DR_OK;
}

void dr_sampled_restate(dr_backend *b, const float *logits, int32_t vocab, const dr_sampling *settings,
                        float lse, dr_sampled *token) {
    bool greedy = settings->temperature == 0;
    float temperature = greedy ? 1.0f : settings->temperature;
    token->logprob = dr_logprob_of(logits[token->id], temperature, lse);
    // of the whole where nothing is cut
    b->ops->kept_lse(b, logits, 1, vocab, temperature, &token->kept, &lse);
    token->logprob_kept = greedy ? 0.0f : dr_logprob_of(logits[token->id], temperature, lse);
}
