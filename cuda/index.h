// Index arithmetic of the kernels, the same code on host and device, so that a test without a device can show
// that tiles, spans and chunks cover every element once. "Flat" rows of a span are its rows times the query
// heads that share one key head: flat = row · group + head within the group.
#ifndef DR_CUDA_INDEX_H
#define DR_CUDA_INDEX_H

#include "core/compute/burst.h"

#ifdef __CUDACC__
#define DR_INDEX static __host__ __device__ __forceinline__
#else
#define DR_INDEX static inline
#endif

enum {
    DR_CUDA_TILE = 64, // rows, and columns, of a product that one block computes
    DR_CUDA_FP32_DEPTH = 16,
    DR_CUDA_FP32_THREADS = 256,
    DR_CUDA_FP32_OWN = 4, // rows, and columns, of a tile that one thread owns
    DR_CUDA_BF16_DEPTH = 32,
    DR_CUDA_BF16_THREADS = 128,
    DR_CUDA_ROUNDED = 8,  // values that one thread rounds to bf16, or makes of gate and up
    DR_CUDA_QUERIES = 32, // flat query rows of one attention tile; also its keys
    DR_CUDA_KEYS = 32,
    DR_CUDA_ATTENTION_THREADS = 256,
    DR_CUDA_ATTENTION_OWN = 4, // rows of a tile that one warp owns
    DR_CUDA_MAX_HEAD = 256,
    DR_CUDA_MMA_ROWS = 64, // rows (queries × query heads of a key head) of a tile of bf16 attention
    DR_CUDA_MMA_KEYS = 64,
    DR_CUDA_MMA_THREADS = 128,
    DR_CUDA_MMA_HEAD = 128,    // largest head of bf16 attention
    DR_CUDA_SPLIT = 256,       // keys that one softmax of bf16 attention goes over before results are merged
    DR_CUDA_PAGE = 16,         // positions of a page of the key/value cache
    DR_CUDA_CHUNKS = 256,      // most parts that a sum over rows is cut into
    DR_CUDA_CHUNK_ROWS = 64,   // least rows of such a part
    DR_CUDA_NORM_PARTS = 1024, // the same for the gradient of RMSNorm, where a block goes through a part
    DR_CUDA_NORM_ROWS = 4,
    DR_CUDA_HEAD_WARPS = 4 // of a block that goes through a part of the heads of a norm by head
};

typedef struct dr_place {
    int64_t row, column;
} dr_place;

DR_INDEX int64_t dr_ceil_div(int64_t n, int64_t size) {
    return (n + size - 1) / size;
}

// ---- products ----

// First row and column of the tile of c that a block computes, `across` tiles side by side.
DR_INDEX dr_place dr_tile_corner(int64_t block, int64_t across) {
    dr_place corner;
    corner.row = block / across * DR_CUDA_TILE;
    corner.column = block % across * DR_CUDA_TILE;
    return corner;
}

// Place of one item of an operand's tile, `depth` inputs (column) of DR_CUDA_TILE lines (row). Items that
// follow each other lie side by side in memory: along the inputs or along the lines.
DR_INDEX dr_place dr_tile_item(int item, int depth, bool along_depth) {
    dr_place place;
    place.row = along_depth ? item / depth : item % DR_CUDA_TILE;
    place.column = along_depth ? item % depth : item / DR_CUDA_TILE;
    return place;
}

// Row and column, within an fp32 tile, of a thread's i-th row and j-th column: rows of one thread follow each
// other, columns of neighbouring threads do.
DR_INDEX int dr_thread_row(int thread, int i) {
    return thread / (DR_CUDA_TILE / DR_CUDA_FP32_OWN) * DR_CUDA_FP32_OWN + i;
}

DR_INDEX int dr_thread_column(int thread, int j) {
    return thread % (DR_CUDA_TILE / DR_CUDA_FP32_OWN) + j * (DR_CUDA_TILE / DR_CUDA_FP32_OWN);
}

// Pieces of DR_CUDA_ROUNDED columns of rows of F, the last of a row shorter: how many there are, and where
// one begins.
DR_INDEX int64_t dr_piece_count(int64_t T, int64_t F) {
    return T * dr_ceil_div(F, DR_CUDA_ROUNDED);
}

DR_INDEX dr_place dr_piece_at(int64_t piece, int64_t F) {
    const int64_t across = dr_ceil_div(F, DR_CUDA_ROUNDED);
    dr_place place;
    place.row = piece / across;
    place.column = piece % across * DR_CUDA_ROUNDED;
    return place;
}

// Where a place's gate stands in gate_up [T, 2F]; its up stands F behind it.
DR_INDEX int64_t dr_gate_at(dr_place place, int64_t F) {
    return place.row * 2 * F + place.column;
}

// ---- sums over rows in two stages ----

// Rows of one part: depends on T alone, so that the order of a sum does.
DR_INDEX int64_t dr_chunk_rows(int64_t T) {
    int64_t rows = dr_ceil_div(T, DR_CUDA_CHUNKS);
    return rows < DR_CUDA_CHUNK_ROWS ? (int64_t)DR_CUDA_CHUNK_ROWS : rows;
}

DR_INDEX int64_t dr_chunk_count(int64_t T) {
    return dr_ceil_div(T, dr_chunk_rows(T));
}

DR_INDEX int64_t dr_norm_rows(int64_t T) {
    int64_t rows = dr_ceil_div(T, DR_CUDA_NORM_PARTS);
    return rows < DR_CUDA_NORM_ROWS ? (int64_t)DR_CUDA_NORM_ROWS : rows;
}

DR_INDEX int64_t dr_norm_parts(int64_t T) {
    return dr_ceil_div(T, dr_norm_rows(T));
}

// Where head `row` of heads [T, n_heads, d] stands in rows of `stride`: row counts heads, token by token.
DR_INDEX int64_t dr_head_at(int64_t row, int64_t n_heads, int64_t d, int64_t stride) {
    return row / n_heads * stride + row % n_heads * d;
}

// ---- the retrieval model's gradients ----

DR_INDEX int64_t dr_fusion_filter_size(int64_t L, int64_t D) { // floats
    return 2 * (L / 2 + 1) * D;
}

// Scratch of fusion_backward, in floats: what each of B requests adds to the filter's, both gates' and both
// biases' gradients, a row a request; then parts of the sums over these rows.
typedef struct dr_fusion_parts {
    int64_t filter, gate[2], bias[2], sums, total;
} dr_fusion_parts;

DR_INDEX dr_fusion_parts dr_fusion_parts_of(int64_t B, int64_t L, int64_t D) {
    const int64_t filter = dr_fusion_filter_size(L, D), widest = filter > L * D ? filter : L * D;
    dr_fusion_parts parts;
    parts.filter = 0;
    parts.gate[0] = B * filter;
    parts.gate[1] = parts.gate[0] + B * D;
    parts.bias[0] = parts.gate[1] + B * D;
    parts.bias[1] = parts.bias[0] + B;
    parts.sums = parts.bias[1] + B;
    parts.total = parts.sums + dr_chunk_count(B) * widest;
    return parts;
}

// The position that asks in row i of a padded attention's output, and the row in which a position asks, -1
// when it does not.
DR_INDEX int64_t dr_asking_position(bool last_only, int32_t length, int64_t i) {
    return last_only ? (int64_t)length - 1 : i;
}

DR_INDEX int64_t dr_asking_of(bool last_only, int32_t length, int64_t position) {
    if (!last_only) return position;
    return position == (int64_t)length - 1 ? 0 : -1;
}

// ---- bursts ----

// Rows of a pass that is recorded: few sizes, so that a rollout whose rows become fewer records few graphs,
// and not many more rows than there are.
DR_INDEX int32_t dr_pass_bucket(int32_t n_rows) {
    const int32_t size = n_rows <= 4 ? 2 : n_rows <= 64 ? 8 : 16;
    return n_rows <= 1 ? n_rows : (n_rows + size - 1) / size * size;
}

// Kept ids that a row adds to a burst's list: those of a draw of this step.
DR_INDEX int64_t dr_listed_by(const dr_burst_row *row, int32_t id, int32_t n_kept) {
    return row->is_finished || id < 0 ? 0 : (int64_t)n_kept;
}

// A row behind a step's draws, `before` ids standing in the list before its own. Returns whether it drew in
// this step, so that its page and going on follow (burst.h); a row whose ids do not fit is finished without
// this draw.
DR_INDEX bool dr_settle_row(dr_burst_row *row, const dr_stop_table *stops, int32_t id, int32_t n_kept,
                            int64_t before, int64_t room) {
    if (row->is_finished) return false;
    row->has_failed = id < 0;
    row->found_no_room = !row->has_failed && n_kept > 0 && before + n_kept > room;
    row->is_finished = row->has_failed || row->found_no_room;
    if (row->is_finished) return false;
    dr_burst_count(row, stops, id);
    return true;
}

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

// Offset in floats of a position's key (or value) of head g in the cache [n_pages, DR_CUDA_PAGE, G, d].
DR_INDEX int64_t dr_cache_offset(const int32_t *pages, int64_t position, int32_t G, int32_t g, int32_t d) {
    int64_t slot = (int64_t)pages[position / DR_CUDA_PAGE] * DR_CUDA_PAGE + position % DR_CUDA_PAGE;
    return (slot * G + g) * d;
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

// Place, in 16 bytes, of those that are `column` of a row of a tile, `columns` (8 or 16) a row. Eight rows'
// equal columns, and eight neighbouring columns of a row, lie in different banks.
DR_INDEX int dr_swizzled(int row, int column, int columns) {
    return row * columns + (column ^ (row % 8));
}

// ---- pooling ----

// Rows whose mean stands for a sequence's: a first row is its own.
DR_INDEX int32_t dr_pooled_rows(int32_t n_rows, dr_pooling pooling) {
    return pooling == DR_POOL_FIRST && n_rows > 1 ? 1 : n_rows;
}

// ---- kept sets ----

// Whether the rising ids hold this one.
DR_INDEX bool dr_ids_hold(const int32_t *ids, int64_t n, int64_t id) {
    int64_t low = 0, high = n;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (ids[middle] < id)
            low = middle + 1;
        else
            high = middle;
    }
    return low < n && ids[low] == id;
}

// ---- the best of a row ----

// Rises with the score and, among equal ones, falls with the column: no two columns have the same. 0: never
// among the best. score_bits: of the score, a float.
DR_INDEX uint64_t dr_hit_key(uint32_t score_bits, int32_t item) {
    uint32_t size = score_bits & 0x7FFFFFFFu;
    if (size > 0x7F800000u || score_bits == 0xFF800000u) return 0; // NaN, -inf
    uint32_t rank = size == 0 ? 0x80000000u : score_bits >> 31 ? ~score_bits : score_bits | 0x80000000u;
    return (uint64_t)rank << 32 | (0xFFFFFFFFu - (uint32_t)item);
}

DR_INDEX int32_t dr_hit_item(uint64_t key) {
    return (int32_t)(0xFFFFFFFFu - (uint32_t)key);
}

// A search, DR_HIT_BITS of the key at a time from the top: the best keys begin with `prefix` or are above it;
// `left` of those that begin with it are among them.
typedef struct dr_hit_search {
    uint64_t prefix;
    int32_t shift, left; // shift: bits behind the prefix
} dr_hit_search;
enum { DR_HIT_BITS = 8, DR_HIT_BINS = 1 << DR_HIT_BITS };

DR_INDEX dr_hit_search dr_hit_search_begin(int32_t k) {
    dr_hit_search search;
    search.prefix = 0;
    search.shift = 64;
    search.left = k;
    return search;
}

// The bin of a key in this step, or -1 when it does not begin with the prefix.
DR_INDEX int dr_hit_bin(const dr_hit_search *search, uint64_t key) {
    if (key == 0 || (search->shift < 64 && key >> search->shift != search->prefix)) return -1;
    return (int)(key >> (search->shift - DR_HIT_BITS) & (DR_HIT_BINS - 1));
}

// Goes on with the bin in which the search ends; counts [DR_HIT_BINS]. True: it is at its end, and the best
// are the keys from dr_hit_least on.
DR_INDEX bool dr_hit_narrow(dr_hit_search *search, const int32_t *counts) {
    int bin = DR_HIT_BINS - 1;
    for (; bin >= 0 && counts[bin] < search->left; bin--) search->left -= counts[bin];
    if (bin < 0) { // in the first step only: all that there are, and they are too few
        search->prefix = 1;
        search->shift = 0;
        return true;
    }
    search->shift -= DR_HIT_BITS;
    search->prefix = search->prefix << DR_HIT_BITS | (uint64_t)bin;
    return counts[bin] == search->left || search->shift == 0;
}

DR_INDEX uint64_t dr_hit_least(const dr_hit_search *search) {
    uint64_t least = search->prefix << search->shift;
    return least == 0 ? 1 : least;
}

// A step of a bitonic sort, largest first, of n (a power of two) keys: the lower place of pair i of n / 2,
// whose other place is `stride` behind it, and whether the larger key belongs to the lower place.
DR_INDEX int dr_bitonic_low(int i, int stride) {
    return i / stride * 2 * stride + i % stride;
}

DR_INDEX bool dr_bitonic_falls(int low, int run) { // run: length of the runs that the step makes
    return (low & run) == 0;
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

#endif
