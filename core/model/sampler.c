// Sampling one token. The kept set of top-p is the smallest set of most probable tokens whose mass reaches
// top_p; ties at the border go to smaller ids. A token is picked by walking the kept probabilities in id
// order, so equal bits give equal tokens.
#include "core/model/sampler.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

#include "core/base/alloc.h"
#include "core/base/rng.h"

typedef struct candidate {
    float p;
    int32_t id;
} candidate;

struct dr_sampler {
    int32_t vocab;
    float *p;              // [vocab] unnormalised probabilities
    candidate *candidates; // [vocab]
};

dr_status dr_sampler_create(int32_t vocab, dr_sampler **out_sampler) {
    dr_sampler *s = NULL;
    DR_TRY(dr_alloc(&s, "sampler", 1, sizeof *s));
    s->vocab = vocab;
    dr_status status;
    DR_TRY_GOTO(status, dr_alloc(&s->p, "sampler probabilities", vocab, sizeof *s->p), destroy);
    DR_TRY_GOTO(status, dr_alloc(&s->candidates, "sampler candidates", vocab, sizeof *s->candidates),
                destroy);
    *out_sampler = s;
    return DR_OK;
destroy:
    dr_sampler_destroy(s);
    return status;
}

void dr_sampler_destroy(dr_sampler *sampler) {
    if (!sampler) return;
    dr_free(sampler->p);
    dr_free(sampler->candidates);
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

static int by_probability(const void *a, const void *b) {
    const candidate *x = a, *y = b;
    if (x->p != y->p) return x->p > y->p ? -1 : 1;
    return x->id - y->id;
}

// Zeroes p outside the kept set and returns the kept mass. Only tokens above a floor are sorted; the floor
// falls until they weigh enough, and usually a handful does.
static double keep_nucleus(dr_sampler *s, double total, double top_p) {
    double floor = total;
    int32_t n = 0;
    do {
        floor = floor > total * 1e-30 ? floor * 0.0625 : 0.0;
        double above = 0;
        n = 0;
        for (int32_t i = 0; i < s->vocab; i++) {
            if (s->p[i] < floor) continue;
            above += s->p[i];
            s->candidates[n++] = (candidate){s->p[i], i};
        }
        if (above >= top_p * total) break;
    } while (floor > 0);
    qsort(s->candidates, (size_t)n, sizeof *s->candidates, by_probability);
    double kept = 0;
    int32_t n_kept = 0;
    while (n_kept < n && kept < top_p * total) kept += s->candidates[n_kept++].p;
    candidate last = s->candidates[n_kept - 1];
    kept = 0;
    for (int32_t i = 0; i < s->vocab; i++) {
        bool keep = s->p[i] > last.p || (s->p[i] == last.p && i <= last.id);
        if (!keep) s->p[i] = 0;
        kept += s->p[i];
    }
    return kept;
}

dr_status dr_sampler_draw(dr_sampler *s, const float *logits, const dr_sampling *settings, uint32_t bits,
                          dr_sampled *out) {
    int32_t top = 0;
    DR_TRY(find_top(logits, s->vocab, &top));
    bool greedy = settings->temperature <= 0;
    float inv = greedy ? 1.0f : 1.0f / settings->temperature;
    double total = 0;
    for (int32_t i = 0; i < s->vocab; i++) {
        s->p[i] = expf((logits[i] - logits[top]) * inv);
        total += s->p[i];
    }
    if (greedy) {
        *out = (dr_sampled){top, (float)-log(total), 0.0f};
        return DR_OK;
    }
    double kept = settings->top_p < 1.0f ? keep_nucleus(s, total, settings->top_p) : total;
    double mark = (double)bits * 0x1p-32 * kept, sum = 0;
    int32_t chosen = -1;
    for (int32_t i = 0; i < s->vocab; i++) {
        if (s->p[i] <= 0) continue;
        chosen = i;
        sum += s->p[i];
        if (sum > mark) break;
    }
    double z = (double)(logits[chosen] - logits[top]) * inv;
    *out = (dr_sampled){chosen, (float)(z - log(total)), (float)(z - log(kept))};
    return DR_OK;
}
