// What rollouts of tests end in, to be compared bit for bit.
#ifndef DR_TESTS_ROLLOUT_OUTCOME_H
#define DR_TESTS_ROLLOUT_OUTCOME_H

#include "tests/check.h"

#include <string.h>

#include "core/episode/rollout.h"

enum { PROMPTS = 4, SAMPLES = 6 };

// Trajectories by prompt and sample, as their wire bytes: equal bytes are equal bits.
typedef struct outcome {
    dr_buf bytes[PROMPTS][SAMPLES];
    int32_t n;
    dr_rollout_stats stats;
} outcome;

static inline void outcome_reset(outcome *o) {
    for (int p = 0; p < PROMPTS; p++)
        for (int s = 0; s < SAMPLES; s++) dr_buf_reset(&o->bytes[p][s]);
    memset(o, 0, sizeof *o);
}

static inline void drain(dr_rollout *rollout, outcome *o) {
    dr_trajectory t;
    while (dr_rollout_take(rollout, &t)) {
        assert_true(t.prompt < PROMPTS && t.sample < SAMPLES);
        dr_buf *slot = &o->bytes[t.prompt][t.sample];
        assert_int_equal(slot->length, 0); // once
        check_ok(dr_trajectory_encode(&t, slot));
        dr_trajectory_reset(&t);
        o->n++;
    }
}

static inline void check_equal(const outcome *a, const outcome *b, const char *what) {
    for (int p = 0; p < PROMPTS; p++)
        for (int s = 0; s < SAMPLES; s++) {
            const dr_buf *x = &a->bytes[p][s], *y = &b->bytes[p][s];
            if (x->length != y->length || memcmp(x->data, y->data, x->length) != 0)
                fail_msg("%s: prompt %d sample %d differs", what, p, s);
        }
}

#endif
