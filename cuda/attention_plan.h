// The work of the bf16 attention kernels, planned on the host by plain functions. A query is one row of q
// with all of its heads; those that share a key head stand together in a tile, row · group + head, so that
// one query of seven heads fills seven rows of it. Keys go by in tiles of 64 and in splits of 256 positions
// that begin at position 0; a split has a softmax of its own, and what a row's splits give is merged in their
// order. Who computes a split (the block that goes through all of them, or a block for this one) therefore
// changes no bit, and neither does who else is in the tile.
#ifndef DR_CUDA_ATTENTION_PLAN_H
#define DR_CUDA_ATTENTION_PLAN_H

#include <stdlib.h>
#include <string.h>

#include "cuda/wgmma_index.h"

// Splits of the keys of a query that sees `seen` of them, or of a span's last query.
static inline int32_t dr_splits_of(int32_t seen) {
    return (int32_t)dr_ceil_div(seen, DR_CUDA_SPLIT);
}

static inline int32_t dr_span_splits(const dr_span *span) {
    return dr_splits_of(span->n_before + span->n_rows);
}

// Whether each split of a span's keys is a block's work of its own: few queries on many cached keys.
static inline bool dr_span_is_split(const dr_span *span, int32_t group) {
    return span->n_rows > 0 && span->n_rows <= dr_tile_queries(group) && dr_span_splits(span) > 1;
}

// Tiles that a span adds at most, sharing with nobody.
static inline int64_t dr_span_most_tiles(const dr_span *span, int32_t group, bool is_cached) {
    if (is_cached && dr_span_is_split(span, group)) return dr_span_splits(span);
    return dr_ceil_div(span->n_rows, dr_tile_queries(group));
}

// Counts of a call on the cache are rounded up, so that the decode loop's passes look alike for some while.
static inline int64_t dr_plan_room(int64_t n, bool is_cached) {
    enum { STEP = 64 };
    return is_cached ? dr_ceil_div(n, STEP) * STEP : n;
}

// Whether split c is whole in both spans and stands on the same pages.
static inline bool dr_shares_split(const dr_span *a, const dr_span *b, int32_t c, const int32_t *pages) {
    enum { PAGES = DR_CUDA_SPLIT / DR_CUDA_PAGE };
    int64_t end = (int64_t)(c + 1) * DR_CUDA_SPLIT;
    return end <= a->n_before + a->n_rows && end <= b->n_before + b->n_rows &&
           memcmp(pages + a->first_page + c * PAGES, pages + b->first_page + c * PAGES,
                  PAGES * sizeof *pages) == 0;
}

// Lists the queries of all spans, in their order. A query of a split span gets places for its splits'
// results; returns how many places there are.
static inline int64_t dr_plan_queries(const dr_span *spans, int32_t n, int32_t group, bool is_cached,
                                      dr_query *queries) {
    int64_t n_queries = 0, n_parts = 0;
    for (int32_t s = 0; s < n; s++) {
        bool is_split = is_cached && dr_span_is_split(&spans[s], group);
        for (int32_t i = 0; i < spans[s].n_rows; i++) {
            dr_query *query = &queries[n_queries++];
            query->row = (int32_t)spans[s].row + i;
            query->seen = spans[s].n_before + i + 1;
            query->part = is_split ? (int32_t)n_parts : -1;
            if (is_split) n_parts += dr_splits_of(query->seen);
        }
    }
    return n_parts;
}

// Cuts queries first … first + n - 1 into tiles over keys from first_key on, up to end_key or to the last
// that one of a tile's queries sees. Returns the new number of tiles.
static inline int64_t dr_add_tiles(const dr_query *queries, int32_t span, int64_t first, int64_t n,
                                   int32_t group, int32_t first_key, int32_t end_key, dr_query_tile *tiles,
                                   int64_t n_tiles) {
    for (int64_t end = first + n; first < end; first += dr_tile_queries(group)) {
        int64_t count = end - first < dr_tile_queries(group) ? end - first : dr_tile_queries(group);
        int32_t most = 0;
        for (int64_t i = first; i < first + count; i++)
            if (queries[i].seen > most) most = queries[i].seen;
        if (most > end_key) most = end_key;
        if (most > first_key)
            tiles[n_tiles++] =
                (dr_query_tile){span, (int32_t)first, (int32_t)count, first_key, most - first_key};
    }
    return n_tiles;
}

static inline int dr_longer_query_tile(const void *left, const void *right) {
    const dr_query_tile *a = (const dr_query_tile *)left, *b = (const dr_query_tile *)right;
    if (a->n_keys != b->n_keys) return a->n_keys > b->n_keys ? -1 : 1;
    if (a->query != b->query) return a->query < b->query ? -1 : 1;
    return a->first_key < b->first_key ? -1 : a->first_key > b->first_key;
}

// Whether span s takes split c together with the span before it: both are split, and share it.
static inline bool dr_joins_before(const dr_span *spans, int32_t s, int32_t group, int32_t c,
                                   const int32_t *pages) {
    return s > 0 && dr_span_is_split(&spans[s - 1], group) && dr_span_is_split(&spans[s], group) &&
           dr_shares_split(&spans[s - 1], &spans[s], c, pages);
}

// The tiles of split span s: one a split, which the spans behind it join where they share it; those that it
// joins itself are left out. starts [n + 1]: queries of the spans before.
static inline int64_t dr_plan_splits(const dr_span *spans, int32_t n, int32_t s, int32_t group,
                                     const int64_t *starts, const int32_t *pages, const dr_query *queries,
                                     dr_query_tile *tiles, int64_t n_tiles) {
    for (int32_t c = 0; c < dr_span_splits(&spans[s]); c++) {
        int32_t end = s + 1;
        if (dr_joins_before(spans, s, group, c, pages)) continue;
        while (end < n && dr_joins_before(spans, end, group, c, pages)) end++;
        n_tiles = dr_add_tiles(queries, s, starts[s], starts[end] - starts[s], group, c * DR_CUDA_SPLIT,
                               (c + 1) * DR_CUDA_SPLIT, tiles, n_tiles);
    }
    return n_tiles;
}

// All tiles, those with most keys first. pages NULL: a packed batch. starts [n + 1]: queries of the spans
// before. Returns their number, at most the sum of dr_span_most_tiles.
static inline int64_t dr_plan_query_tiles(const dr_span *spans, int32_t n, int32_t group,
                                          const int64_t *starts, const int32_t *pages,
                                          const dr_query *queries, dr_query_tile *tiles) {
    int64_t n_tiles = 0;
    for (int32_t s = 0; s < n; s++)
        if (pages && dr_span_is_split(&spans[s], group))
            n_tiles = dr_plan_splits(spans, n, s, group, starts, pages, queries, tiles, n_tiles);
        else
            n_tiles =
                dr_add_tiles(queries, s, starts[s], spans[s].n_rows, group, 0, INT32_MAX, tiles, n_tiles);
    qsort(tiles, (size_t)n_tiles, sizeof *tiles, dr_longer_query_tile);
    return n_tiles;
}

// Tiles of a span's queries for the kernels with wgmma.
static inline int64_t dr_span_wide_tiles(const dr_span *span, int32_t group) {
    return dr_ceil_div(span->n_rows, dr_wgmma_queries(group));
}

// All of a packed batch's, each over all keys that its queries see; those with most keys first. Returns their
// number, the sum of dr_span_wide_tiles.
static inline int64_t dr_plan_wide_tiles(const dr_span *spans, int32_t n, int32_t group,
                                         const int64_t *starts, dr_query_tile *tiles) {
    int32_t most = dr_wgmma_queries(group);
    int64_t n_tiles = 0;
    for (int32_t s = 0; s < n; s++)
        for (int32_t first = 0; first < spans[s].n_rows; first += most) {
            int32_t count = spans[s].n_rows - first < most ? spans[s].n_rows - first : most;
            tiles[n_tiles++] =
                (dr_query_tile){s, (int32_t)starts[s] + first, count, 0, spans[s].n_before + first + count};
        }
    qsort(tiles, (size_t)n_tiles, sizeof *tiles, dr_longer_query_tile);
    return n_tiles;
}

static inline int dr_longer_key_tile(const void *left, const void *right) {
    const dr_key_tile *a = (const dr_key_tile *)left, *b = (const dr_key_tile *)right;
    if (a->n_viewers != b->n_viewers) return a->n_viewers > b->n_viewers ? -1 : 1;
    if (a->span != b->span) return a->span < b->span ? -1 : 1;
    return a->first < b->first ? -1 : a->first > b->first;
}

// Tiles of a packed batch's keys, `keys` each, those that most rows see first. Returns their number: of each
// span its rows by `keys`, rounded up.
static inline int64_t dr_plan_key_tiles(const dr_span *spans, int32_t n, int32_t keys, dr_key_tile *tiles) {
    int64_t n_tiles = 0;
    for (int32_t s = 0; s < n; s++) {
        int32_t sharers = 0;
        for (int32_t i = 1; i <= spans[s].n_sharers; i++) sharers += spans[s + i].n_rows;
        for (int32_t first = 0; first < spans[s].n_rows; first += keys)
            tiles[n_tiles++] = (dr_key_tile){s, first, spans[s].n_rows - first + sharers};
    }
    qsort(tiles, (size_t)n_tiles, sizeof *tiles, dr_longer_key_tile);
    return n_tiles;
}

#endif
