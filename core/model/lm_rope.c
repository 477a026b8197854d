// The rotary embedding's frequencies. In fp32 and in the order of operations of the models' own code, since
// the weights were trained with those roundings: an angle is a position times a frequency, and at position
// 30,000 one unit in the frequency's last place is already a thousandth of a radian.
#include <math.h>

#include "core/model/lm_internal.h"

// Llama 3.1's stretching ("The Llama 3 Herd of Models", arXiv 2407.21783, §3.4.3 trains with it; the formula
// is that of apply_scaling in the authors' published code): with the wavelength w = 2 pi / f, frequencies of
// w < n / high stay, those of w > n / low are divided by the factor, and between the two the share
// s = (n / w - low) / (high - low) of the first is mixed with the rest of the second; n original positions.
static float stretch(const dr_rope_llama3 *s, float frequency) {
    float n = (float)s->original_positions, wavelength = 6.283185307179586f / frequency;
    if (wavelength < n / s->high_freq_factor) return frequency;
    if (wavelength > n / s->low_freq_factor) return frequency / s->factor;
    float share = (n / wavelength - s->low_freq_factor) / (s->high_freq_factor - s->low_freq_factor);
    return (1.0f - share) * frequency / s->factor + share * frequency;
}

// 1 / theta^(2i/d) (Su et al., arXiv 2104.09864, §3.3).
void dr_lm_rope_frequencies(const dr_lm_config *c, float *out_inv_freq) {
    for (int32_t i = 0; i < c->head_size / 2; i++) {
        float exponent = (float)(2 * i) / (float)c->head_size;
        out_inv_freq[i] = 1.0f / (float)pow((double)c->rope_theta, (double)exponent);
        if (c->rope_llama3.factor > 0) out_inv_freq[i] = stretch(&c->rope_llama3, out_inv_freq[i]);
    }
}
