// Index arithmetic of the attention kernels, as in index.h: spans and tiles, the cache, who copies and owns
// what of a tile. "Flat" rows of a span are its rows times the query heads that share one key head: flat =
// row · group + head within the group.
#ifndef DR_CUDA_ATTENTION_INDEX_H
#define DR_CUDA_ATTENTION_INDEX_H

#include "cuda/index.h"

// ---- attention ----

// One sequence of a packed batch, or one chunk of a call on the cache.
typedef struct dr_span {
    int64_t row;        // its first row in q and out (and k, v of a packed batch)
    int64_t prefix_row; // packed: first row of its prefix
    int32_t n_rows;     // own rows
    int32_t n_before;   // positions before the first own row: its prefix, or what the cache holds
    int32_t first_page; // cached: where its pages begin in the list of all pages
    int32_t n_sharers;  // packed: spans right behind it that go on from it
} dr_span;

DR_INDEX int64_t dr_span_query_tiles(const dr_span *span, int32_t group) {
    return dr_ceil_div((int64_t)span->n_rows * group, DR_CUDA_QUERIES);
}

DR_INDEX int64_t dr_span_key_tiles(const dr_span *span) {
    return dr_ceil_div(span->n_rows, DR_CUDA_KEYS);
}

// The part that holds `at`, of n parts of which part s begins at starts[s]; parts may be empty.
DR_INDEX int32_t dr_find_part(const int64_t *starts, int32_t n, int64_t at) {
    int32_t low = 0, high = n; // starts[low] <= at < starts[high]
    while (high - low > 1) {
        int32_t middle = low + (high - low) / 2;
        if (starts[middle] <= at)
            low = middle;
        else
            high = middle;
    }
    return low;
}

// Keys that a flat row sees: all before the span and its own up to the row itself.
DR_INDEX int32_t dr_span_keys_seen(const dr_span *span, int64_t flat, int32_t group) {
    return span->n_before + (int32_t)(flat / group) + 1;
}

// The same where rows look in both directions: all of the span's, whichever row asks.
DR_INDEX int32_t dr_span_keys(const dr_span *span, int64_t flat, int32_t group, bool both_ways) {
    return both_ways ? span->n_before + span->n_rows : dr_span_keys_seen(span, flat, group);
}

// Row of k and v, in a packed batch, of a position that the span sees.
DR_INDEX int64_t dr_span_key_row(const dr_span *span, int64_t position) {
    return position < span->n_before ? span->prefix_row + position : span->row + position - span->n_before;
}

// Row of q and out, and head of key head g, of a flat row.
DR_INDEX int64_t dr_flat_row(const dr_span *span, int64_t flat, int32_t group) {
    return span->row + flat / group;
}

DR_INDEX int32_t dr_flat_head(int64_t flat, int32_t group, int32_t g) {
    return g * group + (int32_t)(flat % group);
}

// Flat rows of a tile that begins at `first`.
DR_INDEX int32_t dr_flat_count(const dr_span *span, int64_t first, int32_t group) {
    int64_t left = (int64_t)span->n_rows * group - first;
    return left < DR_CUDA_QUERIES ? (int32_t)left : (int32_t)DR_CUDA_QUERIES;
}

// Offset of a head in rows of `stride` values, and its place in [T, H].
DR_INDEX int64_t dr_head_offset(int64_t row, int64_t stride, int32_t head, int32_t d) {
    return row * stride + (int64_t)head * d;
}

DR_INDEX int64_t dr_head_place(int64_t row, int32_t H, int32_t head) {
    return row * H + head;
}

// Offset of element i of dense rows of `width` in rows that stand `stride` apart.
DR_INDEX int64_t dr_strided_at(int64_t i, int64_t width, int64_t stride) {
    return i / width * stride + i % width;
}

// Offset in floats of a position's key (or value) of head g in the cache [n_pages, DR_CUDA_PAGE, G, d].
DR_INDEX int64_t dr_cache_offset(const int32_t *pages, int64_t position, int32_t G, int32_t g, int32_t d) {
    int64_t slot = (int64_t)pages[position / DR_CUDA_PAGE] * DR_CUDA_PAGE + position % DR_CUDA_PAGE;
    return (slot * G + g) * d;
}

// Own row i of a chunk on its way to the cache: the first of its G · d values in rows of `stride`, and there.
typedef struct dr_store_place {
    int64_t from, to;
} dr_store_place;

DR_INDEX dr_store_place dr_store_place_of(const dr_span *span, const int32_t *pages, int64_t i,
                                          int64_t stride, int32_t G, int32_t d) {
    dr_store_place place;
    place.from = (span->row + i) * stride;
    place.to = dr_cache_offset(pages + span->first_page, span->n_before + i, G, 0, d);
    return place;
}

// Row and key, within a tile of scores, of a thread's i-th row and j-th key, i and j below 2.
DR_INDEX int dr_score_row(int thread, int i) {
    return thread / 16 + 16 * i;
}

DR_INDEX int dr_score_key(int thread, int j) {
    return thread % 16 + 16 * j;
}

// Floats of one tile's row in shared memory: odd, so that rows begin in different banks.
DR_INDEX int dr_head_pitch(int32_t d) {
    return d | 1;
}

// Columns of a head that one lane of a warp holds, lane + 32 · c: a power of two, so that few kernels do.
DR_INDEX int dr_head_columns(int32_t d) {
    return d <= 64 ? 2 : d <= 128 ? 4 : 8;
}

// Sequence s of a packed batch as a span.
static inline dr_span dr_span_of_sequence(const dr_sequences *sequences, int32_t s) {
    int32_t p = dr_prefix_of(sequences, s);
    dr_span span;
    span.row = sequences->cu_seqlens[s];
    span.prefix_row = p < 0 ? 0 : sequences->cu_seqlens[p];
    span.n_rows = dr_rows_of(sequences, s);
    span.n_before = dr_rows_of(sequences, p);
    span.first_page = 0;
    span.n_sharers = 0;
    for (int32_t i = s + 1; i < sequences->n && dr_prefix_of(sequences, i) == s; i++) span.n_sharers++;
    return span;
}

// A chunk of a call on the cache as a span whose pages begin at first_page of the list of all.
static inline dr_span dr_span_of_chunk(const dr_attention_chunk *chunk, int32_t first_page) {
    dr_span span;
    span.row = chunk->row;
    span.prefix_row = 0;
    span.n_rows = chunk->n_new;
    span.n_before = chunk->n_past;
    span.first_page = first_page;
    span.n_sharers = 0;
    return span;
}

static inline int64_t dr_chunk_pages(const dr_attention_chunk *chunk) {
    return dr_ceil_div((int64_t)chunk->n_past + chunk->n_new, DR_CUDA_PAGE);
}

// ---- attention in bf16 (attention_plan.h) ----

// A row of q, with all of its heads.
typedef struct dr_query {
    int32_t row;  // in q and out
    int32_t seen; // keys, its own included
    int32_t part; // place of what its first split gives, the others' behind it; -1: nobody waits for it
} dr_query;

// Queries first … of the list, and keys first_key … first_key + n_keys - 1 of what they see, found through
// `span`: their own, or one that has these keys on the same pages.
typedef struct dr_query_tile {
    int32_t span, query, n_queries, first_key, n_keys;
} dr_query_tile;

// A span's own keys from `first` on, as many as the kernel's tile has; n_viewers: rows that see any of them.
typedef struct dr_key_tile {
    int32_t span, first, n_viewers;
} dr_key_tile;

// A row of a burst in the plan of its next pass, which was made before: where the row stands, and the pages
// that it took so far, the last n_taken of its list. query NULL: a plan without; pages: of all spans.
DR_INDEX void dr_plan_row(const dr_burst_row *row, const int32_t *taken, dr_span *span, dr_query *query,
                          int32_t *pages) {
    const int32_t first = span->first_page + row->room / DR_CUDA_PAGE - row->n_taken;
    span->n_before = row->position;
    if (query) query->seen = row->position + 1;
    for (int32_t i = 0; i < row->n_taken; i++) pages[first + i] = taken[i];
}

// Queries that a tile of DR_CUDA_MMA_ROWS rows holds.
DR_INDEX int32_t dr_tile_queries(int32_t group) {
    return DR_CUDA_MMA_ROWS / group;
}

// Queries first … first + n - 1 of span `viewer`, which see a key tile's keys or some of them.
typedef struct dr_view {
    int32_t viewer, first, n;
} dr_view;

// The first of them at or behind (viewer, first), `most` at a time; n is 0 behind the last viewer. A key
// tile's views begin at (span, first) of the tile: own rows before see none of its keys.
DR_INDEX dr_view dr_view_from(const dr_span *spans, int32_t viewer, int32_t first, int32_t last_viewer,
                              int32_t most) {
    while (viewer <= last_viewer && first >= spans[viewer].n_rows) {
        viewer++;
        first = 0;
    }
    dr_view at = {viewer, first, 0};
    if (viewer <= last_viewer)
        at.n = spans[viewer].n_rows - first < most ? spans[viewer].n_rows - first : most;
    return at;
}

// The first row of a view's tile (row · group + head) that sees key `key` of a key tile: a sharer's rows see
// all keys, own rows those up to themselves.
DR_INDEX int32_t dr_view_low(const dr_view *at, const dr_key_tile *tile, int32_t key, int32_t group) {
    return at->viewer == tile->span ? (tile->first + key - at->first) * group : 0;
}

// Whether the tensor cores' kernels take these heads: by their sizes alone, so that every pass does.
DR_INDEX bool dr_mma_takes(int32_t group, int32_t d) {
    return d % 8 == 0 && d <= DR_CUDA_MMA_HEAD && group <= DR_CUDA_MMA_ROWS;
}

// Row r of a tile of queries: which of its queries, and which head, of key head g.
DR_INDEX int32_t dr_tile_query(int r, int32_t group) {
    return r / group;
}

DR_INDEX int32_t dr_tile_head(int r, int32_t group, int32_t g) {
    return g * group + r % group;
}

// Its place in [T, H] when the tile's queries are the rows from `first` on.
DR_INDEX int64_t dr_tile_place(int64_t first, int r, int32_t H, int32_t group, int32_t g) {
    return dr_head_place(first + dr_tile_query(r, group), H, dr_tile_head(r, group, g));
}

// Place of what split c of a query's head gives among [n_parts, H].
DR_INDEX int64_t dr_part_place(int32_t part, int32_t c, int32_t H, int32_t head) {
    return ((int64_t)part + c) * H + head;
}

// Whether the tile of keys that begins at `first` is the last of its split, or of all up to `end`.
DR_INDEX bool dr_ends_split(int32_t first, int32_t end) {
    return (first + DR_CUDA_MMA_KEYS) % DR_CUDA_SPLIT == 0 || first + DR_CUDA_MMA_KEYS >= end;
}

// A block's copies of a tile of `rows` rows, `across` (a power of two up to the threads) a row: how many a
// thread makes, and the row and column of its i-th.
DR_INDEX int dr_copies_of(int rows, int across) {
    return rows * across / DR_CUDA_MMA_THREADS;
}

DR_INDEX int dr_copy_row(int thread, int i, int across) {
    return thread / across + i * (DR_CUDA_MMA_THREADS / across);
}

DR_INDEX int dr_copy_column(int thread, int across) {
    return thread % across;
}

// Warps that go through the keys of the same 16 rows, in tiles with so many rows: all of them where one warp
// would have work. A warp's first row, and its number among those that share it.
DR_INDEX int dr_sharers_of(int32_t rows) {
    return rows <= DR_CUDA_MMA_STRIP ? 4 : rows <= 2 * DR_CUDA_MMA_STRIP ? 2 : 1;
}

DR_INDEX int dr_strip_of(int thread, int sharers) {
    return thread / 32 / sharers * DR_CUDA_MMA_STRIP;
}

DR_INDEX int dr_sharer_of(int thread, int sharers) {
    return thread / 32 % sharers;
}

// Rows of a tile that so many sharers have work on.
DR_INDEX int dr_shared_rows(int sharers) {
    return DR_CUDA_MMA_ROWS / sharers;
}

// Shared scores, four a lane, a warp's 16 rows by 8 keys after the other: the first of a lane's four. They
// stand behind the rows of q that are in use. Bytes of both together, of heads filled up to `columns`.
DR_INDEX int dr_shared_score(int strip, int keys8, int lane) {
    return ((strip / DR_CUDA_MMA_STRIP * (DR_CUDA_MMA_KEYS / 8) + keys8) * 32 + lane) * 4;
}

DR_INDEX int dr_shared_scores_at(int sharers, int columns) { // bytes
    return dr_shared_rows(sharers) * columns * 2;
}

DR_INDEX int dr_query_bytes(int columns) {
    int most = DR_CUDA_MMA_ROWS * columns * 2;
    for (int sharers = 2; sharers <= 4; sharers *= 2) {
        int bytes = dr_shared_scores_at(sharers, columns) + dr_shared_rows(sharers) * DR_CUDA_MMA_KEYS * 4;
        if (bytes > most) most = bytes;
    }
    return most;
}

// Fragments of mma.m16n8k16: row and column of a lane's x-th of four sums.
DR_INDEX int dr_mma_row(int lane, int x) {
    return lane / 4 + x / 2 * 8;
}

DR_INDEX int dr_mma_column(int lane, int x) {
    return lane % 4 * 2 + x % 2;
}

// What a lane names for ldmatrix of 16 rows and 16 columns (two pieces of 8): a left operand, or transposed
// two right ones whose products run along the rows; then two right operands of 8 rows each whose products run
// along the columns.
DR_INDEX int dr_matrix_row(int lane) {
    return lane % 16;
}

DR_INDEX int dr_matrix_piece(int lane) {
    return lane / 16;
}

DR_INDEX int dr_matrices_row(int lane) {
    return lane / 16 * 8 + lane % 8;
}

DR_INDEX int dr_matrices_piece(int lane) {
    return lane / 8 % 2;
}

// Place, in 16 bytes, of those that are `column` of a row of a tile, `columns` (8 or 16) a row. Eight rows'
// equal columns, and eight neighbouring columns of a row, lie in different banks.
DR_INDEX int dr_swizzled(int row, int column, int columns) {
    return row * columns + (column ^ (row % 8));
}

// Place of an element of it.
DR_INDEX int dr_swizzled_element(int row, int element, int columns) {
    return dr_swizzled(row, element / 8, columns) * 8 + element % 8;
}

#endif
