// What tests of plans share: a call on the cache as a plan, with what must hold of it.
#ifndef DR_TESTS_CACHED_PLAN_H
#define DR_TESTS_CACHED_PLAN_H

#include <string.h>

#include "cuda/attention_plan.h"
#include "tests/owners.h"

enum { MAX_SPANS = 9, MAX_ROWS = 300 };

enum { MAX_TILES = 256, MAX_PLAN_PAGES = 512 };

// A call on the cache as the backend describes it.
typedef struct cached_plan {
    int32_t n, group, pages[MAX_PLAN_PAGES];
    dr_span spans[MAX_SPANS];
    int64_t starts[MAX_SPANS + 1], n_tiles, n_parts;
    dr_query queries[MAX_ROWS];
    dr_query_tile tiles[MAX_TILES];
} cached_plan;

static inline void plan_cached(cached_plan *p, const dr_attention_chunk *chunks, int32_t n, int32_t group) {
    int32_t first_page = 0;
    int64_t most = 0;
    *p = (cached_plan){.n = n, .group = group};
    for (int32_t s = 0; s < n; s++) {
        int32_t count = (int32_t)dr_chunk_pages(&chunks[s]);
        assert_true(first_page + count <= MAX_PLAN_PAGES);
        p->spans[s] = dr_span_of_chunk(&chunks[s], first_page);
        if (count > 0) memcpy(p->pages + first_page, chunks[s].pages, (size_t)count * sizeof *p->pages);
        first_page += count;
        p->starts[s + 1] = p->starts[s] + chunks[s].n_new;
        most += dr_span_most_tiles(&p->spans[s], group, true);
    }
    assert_true(most <= MAX_TILES && p->starts[n] <= MAX_ROWS);
    p->n_parts = dr_plan_queries(p->spans, n, group, true, p->queries);
    p->n_tiles = dr_plan_query_tiles(p->spans, n, group, p->starts, p->pages, p->queries, p->tiles);
    assert_true(p->n_tiles <= most);
}

static inline int32_t page_at(const cached_plan *p, int32_t span, int32_t key) {
    return p->pages[p->spans[span].first_page + key / DR_CUDA_PAGE];
}

// Each query meets each split that it sees once, on its own pages, its last key included; those that are
// split have a place of their own for each result. Returns the number of these.
static inline int64_t check_cached_plan(const cached_plan *p) {
    enum { SPLITS = 8 };
    int64_t n_queries = p->starts[p->n];
    int32_t *met = counters(n_queries * SPLITS), *parts = counters(p->n_parts);
    for (int64_t i = 0; i < p->n_tiles; i++) {
        const dr_query_tile *tile = &p->tiles[i];
        int32_t end = tile->first_key + tile->n_keys;
        assert_true(i == 0 || p->tiles[i - 1].n_keys >= tile->n_keys);
        assert_true(tile->n_keys > 0 && tile->n_queries > 0 && tile->first_key % DR_CUDA_SPLIT == 0);
        assert_true(tile->n_queries * p->group <= DR_CUDA_MMA_ROWS);
        for (int64_t q = tile->query; q < tile->query + tile->n_queries; q++) {
            int32_t own = dr_find_part(p->starts, p->n, q), seen = p->queries[q].seen;
            bool is_split = p->queries[q].part >= 0;
            assert_int_equal(is_split, p->queries[tile->query].part >= 0);
            assert_true(!is_split || end <= tile->first_key + DR_CUDA_SPLIT);
            for (int32_t key = tile->first_key; key < end && key < seen; key++)
                assert_int_equal(page_at(p, tile->span, key), page_at(p, own, key));
            for (int32_t c = tile->first_key / DR_CUDA_SPLIT; c * DR_CUDA_SPLIT < end; c++) {
                int32_t last = (c + 1) * DR_CUDA_SPLIT < seen ? (c + 1) * DR_CUDA_SPLIT : seen;
                if (c * DR_CUDA_SPLIT >= seen) continue;
                assert_true(last <= end);
                met[q * SPLITS + c]++;
                if (is_split) parts[p->queries[q].part + c]++;
            }
        }
    }
    for (int64_t q = 0; q < n_queries; q++)
        for (int32_t c = 0; c < SPLITS; c++)
            assert_int_equal(met[q * SPLITS + c], c < dr_splits_of(p->queries[q].seen));
    int64_t n_results = 0;
    for (int64_t i = 0; i < p->n_parts; i++) {
        assert_in_range(parts[i], 0, 1);
        n_results += parts[i];
    }
    dr_free(met);
    dr_free(parts);
    return n_results;
}

#endif
