// Bodies of advantage.h. Sums are in double and in record order.
#include "core/learn/advantage.h"

#include <math.h>

static int32_t group_end(const dr_credit *c, int32_t begin, int32_t n) {
    int32_t end = begin;
    while (end < n && c[end].prompt == c[begin].prompt) end++;
    return end;
}

static void group_advantages(dr_advantage_kind kind, dr_credit *c, int32_t n) {
    double mean = 0, variance = 0;
    for (int32_t i = 0; i < n; i++) mean += (double)c[i].reward / n;
    for (int32_t i = 0; i < n; i++) variance += (c[i].reward - mean) * (c[i].reward - mean) / n;
    for (int32_t i = 0; i < n; i++) {
        double a = c[i].reward - mean;
        if (kind == DR_ADVANTAGE_GRPO) a /= sqrt(variance) + 1e-6;
        if (kind == DR_ADVANTAGE_RLOO && n > 1) a *= (double)n / (n - 1); // r - mean of the others
        c[i].advantage = (float)a;
    }
}

static void normalise_over_tokens(dr_credit *c, int32_t n) {
    double tokens = 0, mean = 0, variance = 0;
    for (int32_t i = 0; i < n; i++) {
        if (!c[i].trains) continue;
        tokens += c[i].n_sampled;
        mean += (double)c[i].advantage * c[i].n_sampled;
    }
    if (tokens == 0) return;
    mean /= tokens;
    for (int32_t i = 0; i < n; i++)
        if (c[i].trains)
            variance += (c[i].advantage - mean) * (c[i].advantage - mean) * c[i].n_sampled / tokens;
    for (int32_t i = 0; i < n; i++)
        c[i].advantage = (float)((c[i].advantage - mean) / (sqrt(variance) + 1e-8));
}

void dr_advantages(dr_advantage_kind kind, dr_credit *credits, int32_t n) {
    for (int32_t begin = 0; begin < n;) {
        int32_t end = group_end(credits, begin, n);
        group_advantages(kind, credits + begin, end - begin);
        begin = end;
    }
    if (kind == DR_ADVANTAGE_REINFORCE_PP) normalise_over_tokens(credits, n);
}

void dr_token_weights(dr_loss_mean mean, dr_credit *credits, int32_t n) {
    int32_t n_training = 0, n_units = 0;
    for (int32_t i = 0; i < n; i++) {
        credits[i].token_weight = 0;
        n_training += credits[i].trains;
    }
    if (mean == DR_MEAN_TRAJECTORY) {
        for (int32_t i = 0; i < n; i++)
            if (credits[i].trains)
                credits[i].token_weight = 1.0f / ((float)n_training * (float)credits[i].n_sampled);
        return;
    }
    for (int32_t i = 0; i < n; i += 2) n_units += credits[i].trains || (i + 1 < n && credits[i + 1].trains);
    for (int32_t i = 0; i < n; i += 2) {
        int32_t tokens = 0;
        for (int32_t j = i; j < n && j < i + 2; j++) tokens += credits[j].trains ? credits[j].n_sampled : 0;
        for (int32_t j = i; j < n && j < i + 2; j++)
            if (credits[j].trains) credits[j].token_weight = 1.0f / ((float)n_units * (float)tokens);
    }
}
