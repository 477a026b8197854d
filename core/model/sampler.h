// Turns logits into one token: temperature, top-p (nucleus, Holtzman et al., arXiv 1904.09751), greedy.
#ifndef DR_CORE_MODEL_SAMPLER_H
#define DR_CORE_MODEL_SAMPLER_H

#include <stdint.h>

#include "core/compute/backend.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct dr_sampling {
    float temperature; // 0: greedy (ties to the smaller id), otherwise at least 1e-6
    float top_p;       // (0, 1]; 1 keeps the whole vocabulary; not looked at when greedy
} dr_sampling;

typedef struct dr_sampled {
    int32_t id;
    float logprob; // under softmax(logits / temperature) over the full vocabulary (temperature 1 when greedy)
    float logprob_kept; // under the truncated distribution that it was drawn from (0 when greedy)
    dr_kept kept; // what top-p left, the sampler's memory until its next draw; n 0 with top-p 1 and greedy
} dr_sampled;

// logits [vocab], host memory, not changed. `bits` decides the draw: equal bits and logits give the equal
// token. DR_ERR_NUMERIC when a logit is NaN or +inf or all are -inf; DR_ERR_ARGUMENT for settings outside
// their bounds. O(vocab) whatever the distribution; the scratch is the sampler's.
typedef struct dr_sampler dr_sampler;
dr_status dr_sampler_create(int32_t vocab, dr_sampler **out_sampler);
void dr_sampler_destroy(dr_sampler *sampler);
dr_status dr_sampler_draw(dr_sampler *sampler, const float *logits, const dr_sampling *settings,
                          uint32_t bits, dr_sampled *out);
// Restates a draw's log-probabilities as the training pass will compute them, bit for bit, so that the first
// update's ratio is exactly 1. lse: of these logits [vocab] at settings' temperature (1 when greedy), by
// softmax_stats.
void dr_sampled_restate(dr_backend *b, const float *logits, int32_t vocab, const dr_sampling *settings,
                        float lse, dr_sampled *token);

#ifdef __cplusplus
}
#endif
#endif
