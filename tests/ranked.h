// Ids in the order in which a nucleus takes them: the likeliest first, and of equals the lowest.
#ifndef DR_TESTS_RANKED_H
#define DR_TESTS_RANKED_H

#include <stdint.h>

typedef struct ranked {
    double p;
    int32_t id;
} ranked;

static inline int by_rank(const void *a, const void *b) {
    const ranked *x = a, *y = b;
    if (x->p != y->p) return x->p > y->p ? -1 : 1;
    return x->id - y->id;
}

#endif
