// Packed batches of the tests of the attention kernels with wgmma: several lengths, with prefixes and
// without, as spans and queries.
#ifndef DR_TESTS_WGMMA_BATCH_H
#define DR_TESTS_WGMMA_BATCH_H

#include "tests/check.h"

#include "cuda/attention_plan.h"

enum { MAX_SPANS = 9, MAX_ROWS = 400, TILE = DR_WGMMA_CONSUMERS * DR_WGMMA_ROWS, KEYS = DR_WGMMA_KEYS };

typedef struct packing {
    int32_t n, lengths[MAX_SPANS], prefix[MAX_SPANS];
} packing;

static const packing packings[] = {
    {1, {1}, {-1}},
    {3, {1, 5, 17}, {-1, -1, -1}},
    {2, {128, 129}, {-1, -1}},
    {9, {19, 18, 0, 61, 0, 5, 50, 3, 33}, {-1, 0, 0, 0, -1, 4, -1, 6, 6}},
    {4, {150, 5, 140, 70}, {-1, 0, 0, -1}},
};
enum { N_PACKINGS = sizeof packings / sizeof *packings };

typedef struct batch {
    const packing *from;
    dr_sequences sequences;
    int32_t cu[MAX_SPANS + 1];
    int64_t starts[MAX_SPANS + 1], T;
    dr_span spans[MAX_SPANS];
    dr_query queries[MAX_ROWS];
} batch;

static inline void open_batch(batch *b, const packing *from, int32_t group) {
    *b = (batch){.from = from, .sequences = {from->n, b->cu, from->prefix}};
    for (int32_t s = 0; s < from->n; s++) b->starts[s + 1] = b->cu[s + 1] = b->cu[s] + from->lengths[s];
    for (int32_t s = 0; s < from->n; s++) b->spans[s] = dr_span_of_sequence(&b->sequences, s);
    b->T = b->cu[from->n];
    assert_true(b->T <= MAX_ROWS);
    assert_int_equal(dr_plan_queries(b->spans, from->n, group, false, b->queries), 0);
}

#endif
