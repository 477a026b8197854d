// What tests of index arithmetic share: counts of who owns an element.
#ifndef DR_TESTS_OWNERS_H
#define DR_TESTS_OWNERS_H

#include "tests/check.h"

#include "core/base/alloc.h"

static inline int32_t *counters(int64_t n) {
    int32_t *counts = NULL;
    check_ok(dr_alloc(&counts, "counters", n, sizeof *counts));
    return counts;
}

static inline void check_each_once(const char *name, int32_t *counts, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        if (counts[i] != 1) fail_msg("%s: element %lld has %d owners", name, (long long)i, counts[i]);
    dr_free(counts);
}

#endif
