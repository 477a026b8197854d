// How large the descriptors are that reach the device through stages, and how large they and the scratch of
// sums get for a shape of passes: plans of attention (attention_plan.h), what a burst sends, kept sets. Plain
// functions of counts.
#ifndef DR_CUDA_STAGE_PLAN_H
#define DR_CUDA_STAGE_PLAN_H

#include "cuda/attention_plan.h"
#include "cuda/kernels.h"

// Stages that what is sent for one op takes turns with. Kept sets of the loss head are the largest of that.
enum { DR_CUDA_STAGES = 2 };

// What a plan holds.
typedef struct dr_plan_counts {
    int64_t spans, pages;
    int64_t queries, query_tiles, key_tiles;  // for the tensor cores, else 0
    int64_t wide_query_tiles, wide_key_tiles; // for wgmma, else 0
} dr_plan_counts;

// Adds a span. group 0: without tiles for the tensor cores; is_wide: with those for wgmma too.
static inline void dr_plan_count(dr_plan_counts *n, const dr_span *span, int64_t n_pages, int32_t group,
                                 bool is_cached, bool is_wide) {
    n->spans++;
    n->pages += n_pages;
    if (group == 0) return;
    n->queries += span->n_rows;
    n->query_tiles += dr_span_most_tiles(span, group, is_cached);
    if (!is_cached) n->key_tiles += dr_ceil_div(span->n_rows, DR_CUDA_MMA_KEYS);
    if (!is_wide) return;
    n->wide_query_tiles += dr_span_wide_tiles(span, group);
    n->wide_key_tiles += dr_ceil_div(span->n_rows, DR_WGMMA_KEYS);
}

// Places of its parts in a stage, the same on host and device; the spans themselves stand at 0.
typedef struct dr_plan_layout {
    int64_t query_tiles, key_tiles, rows, queries, mma_query_tiles, mma_key_tiles, wide_query_tiles,
        wide_key_tiles, pages, bytes;
} dr_plan_layout;

static inline dr_plan_layout dr_plan_layout_of(const dr_plan_counts *n, bool is_cached) {
    int64_t query_tiles = dr_plan_room(n->query_tiles, is_cached);
    int64_t starts = (n->spans + 1) * (int64_t)sizeof(int64_t);
    dr_plan_layout at;
    at.query_tiles = n->spans * (int64_t)sizeof(dr_span);
    at.key_tiles = at.query_tiles + starts;
    at.rows = at.key_tiles + starts;
    at.queries = at.rows + starts;
    at.mma_query_tiles = at.queries + n->queries * (int64_t)sizeof(dr_query);
    at.mma_key_tiles = at.mma_query_tiles + query_tiles * (int64_t)sizeof(dr_query_tile);
    at.wide_query_tiles = at.mma_key_tiles + n->key_tiles * (int64_t)sizeof(dr_key_tile);
    at.wide_key_tiles = at.wide_query_tiles + n->wide_query_tiles * (int64_t)sizeof(dr_query_tile);
    at.pages = at.wide_key_tiles + n->wide_key_tiles * (int64_t)sizeof(dr_key_tile);
    at.bytes = at.pages + n->pages * (int64_t)sizeof(int32_t);
    return at;
}

// Plans of a burst stand behind each other at such multiples.
static inline int64_t dr_plan_stride(const dr_plan_layout *at) {
    enum { PLACE = 16 };
    return dr_ceil_div(at->bytes, PLACE) * PLACE;
}

// Ids that a burst's list of kept sets has room for: one step's worst case, so that every row's first draw
// fits, and as many steps' as DR_CUDA_LISTED_IDS and DR_CUDA_LISTED_STEPS allow. Not fewer for a shorter
// burst: whoever shortened it learns how long the next one may be.
#ifndef DR_CUDA_LISTED_IDS
#define DR_CUDA_LISTED_IDS (16 << 20) // 64 MiB
#endif
enum { DR_CUDA_LISTED_STEPS = 64 };
static inline int64_t dr_burst_listed_ids(int64_t n_rows, int64_t V) {
    const int64_t step = n_rows * V, most = DR_CUDA_LISTED_STEPS * step;
    const int64_t room = most < DR_CUDA_LISTED_IDS ? most : DR_CUDA_LISTED_IDS;
    return room > step ? room : step;
}

// Pages that a row takes in a burst at most: the one of the token that gave its first logits is there.
static inline int64_t dr_burst_row_pages(int64_t n_steps) {
    return n_steps > 1 ? dr_ceil_div(n_steps - 1, DR_CUDA_PAGE) : 0;
}

// Places of a burst's parts in its stage: the numbers of ids listed and of pages taken at 0, then of each row
// what it is, how it draws and the key of its first draw, the pool of pages, and, not sent, the pages that
// each row takes.
typedef struct dr_burst_layout {
    int64_t n_taken, rows, draws, keys, pool, taken, bytes;
} dr_burst_layout;

static inline dr_burst_layout dr_burst_layout_of(int64_t n_rows, int64_t n_steps) {
    enum { PLACE = 16 };
    const int64_t pages = n_rows * dr_burst_row_pages(n_steps) * (int64_t)sizeof(int32_t);
    dr_burst_layout at;
    at.n_taken = (int64_t)sizeof(int64_t);
    at.rows = PLACE;
    at.draws = dr_ceil_div(at.rows + n_rows * (int64_t)sizeof(dr_burst_row), PLACE) * PLACE;
    at.keys = dr_ceil_div(at.draws + n_rows * (int64_t)sizeof(dr_cuda_draw), PLACE) * PLACE;
    at.pool = at.keys + n_rows * (int64_t)sizeof(dr_draw_key);
    at.taken = at.pool + pages;
    at.bytes = at.taken + pages;
    return at;
}

// Kept sets of `rows` rows: where each begins, then n_ids ids.
static inline int64_t dr_kept_bytes(int64_t rows, int64_t n_ids) {
    return (rows + 1) * (int64_t)sizeof(int64_t) + n_ids * (int64_t)sizeof(int32_t);
}

// Of T rows, those at the beginning whose kept sets are sent at once: few whole vocabularies' ids, or all
// rows of a block where top-p left little. *out_ids: how many ids they hold.
static inline int64_t dr_kept_rows(const dr_kept *kept, int64_t T, int64_t V, int64_t *out_ids) {
    int64_t rows = 0, n_ids = 0;
    while (rows < T && n_ids + kept[rows].n <= DR_CUDA_KEPT_ROWS * V) n_ids += kept[rows++].n;
    *out_ids = n_ids;
    return rows;
}

// What a stage takes that grows to hold `bytes`, on the device and pinned on the host.
static inline int64_t dr_cuda_stage_capacity(int64_t bytes) {
    return bytes < 65536 ? 65536 : bytes + bytes / 4;
}

// Ids that the host's list of kept ids has room for when it grows to hold n_ids.
static inline int64_t dr_kept_capacity(int64_t n_ids) {
    return n_ids + n_ids / 4;
}

// ---- the largest of a shape ----

// A call on the cache: `rows` rows in `spans` spans, no sequence longer than `longest`.
static inline dr_plan_counts dr_most_of_cached(int64_t spans, int64_t rows, int64_t longest, int32_t group) {
    dr_plan_counts n;
    n.spans = spans;
    n.pages = spans * dr_ceil_div(longest, DR_CUDA_PAGE);
    n.queries = rows;
    // a span is cut by its keys or by its rows
    n.query_tiles =
        spans * dr_splits_of((int32_t)longest) + dr_ceil_div(rows, dr_tile_queries(group)) + spans;
    n.key_tiles = n.wide_query_tiles = n.wide_key_tiles = 0;
    return n;
}

// A packed batch of T rows: four sequences a row at most, empty ones among them, as a micro-batch has room
// for.
static inline dr_plan_counts dr_most_of_packed(int64_t T, int32_t group) {
    dr_plan_counts n;
    n.spans = 4 * T;
    n.pages = 0;
    n.queries = T;
    n.query_tiles = dr_ceil_div(T, dr_tile_queries(group)) + T;
    n.key_tiles = dr_ceil_div(T, DR_CUDA_MMA_KEYS) + T;
    n.wide_query_tiles = dr_ceil_div(T, dr_wgmma_queries(group)) + T;
    n.wide_key_tiles = dr_ceil_div(T, DR_WGMMA_KEYS) + T;
    return n;
}

// Rows of a pass of single rows, idle ones among them: at most two for each sequence that draws.
static inline int64_t dr_most_pass_rows(const dr_pass_shape *s) {
    return dr_pass_bucket((int32_t)s->n_draws);
}

// Bytes on the device of all stages that plans and bursts go through. The plans of a burst's later passes
// hold one row of each sequence that draws, and idle ones.
static inline int64_t dr_stages_memory(const dr_pass_shape *s) {
    if (s->is_plain && s->H == 0) return 0;
    int32_t group = s->H / s->G <= DR_CUDA_MMA_ROWS ? s->H / s->G : DR_CUDA_MMA_ROWS;
    const int64_t rows = dr_most_pass_rows(s);
    dr_plan_counts packed = dr_most_of_packed(s->T, group),
                   cached = dr_most_of_cached(2 * s->n_draws + 1, s->n_cached > rows ? s->n_cached : rows,
                                              s->longest, group),
                   later = dr_most_of_cached(rows, rows, s->longest, group);
    const int64_t n_later = s->n_steps > 1 ? s->n_steps - 1 : 0;
    if (s->is_plain) return dr_cuda_stage_capacity(dr_plan_layout_of(&packed, false).bytes);
    dr_plan_layout of_packed = dr_plan_layout_of(&packed, false),
                   of_cached = dr_plan_layout_of(&cached, true), of_later = dr_plan_layout_of(&later, true);
    return dr_cuda_stage_capacity(of_packed.bytes) + dr_cuda_stage_capacity(of_cached.bytes) +
           dr_cuda_stage_capacity(n_later * dr_plan_stride(&of_later)) +
           dr_cuda_stage_capacity(dr_burst_layout_of(s->n_draws, s->n_steps).bytes);
}

// Bytes on the device of the stages that ops take turns with: kept sets of a block of T rows at most, as many
// ids as are sent at once.
static inline int64_t dr_turns_memory(int64_t T, int64_t V) {
    const int64_t rows = dr_head_block(T, V, 0), most = DR_CUDA_KEPT_ROWS,
                  n_ids = (rows < most ? rows : most) * V;
    return DR_CUDA_STAGES * dr_cuda_stage_capacity(dr_kept_bytes(rows, n_ids));
}

// Bytes on the host: the pinned twins of all stages, and what comes back of draws, kept sets of the whole
// vocabulary again.
static inline int64_t dr_passes_on_host(const dr_pass_shape *s) {
    if (s->is_plain) return dr_stages_memory(s);
    int64_t n_drawn = s->n_draws * (s->n_steps > 1 ? s->n_steps : 1);
    return dr_stages_memory(s) + dr_turns_memory(s->T, s->V) + s->n_draws * (int64_t)sizeof(dr_burst_row) +
           n_drawn * (int64_t)sizeof(dr_cuda_drawn) +
           dr_kept_capacity(dr_burst_listed_ids(s->n_draws, s->V)) * (int64_t)sizeof(int32_t);
}

// Floats of the scratch for sums of several blocks, the largest of: columns over rows, a norm's gradient (of
// the hidden size, which no weight falls below, or of heads), squares, attention's delta, and its splits of
// sequences that draw (those of short pieces of prompts left out). Of a retrieval model's training: columns,
// and a fusion's gradient.
static inline int64_t dr_partials_floats(const dr_pass_shape *s) {
    if (s->is_plain) {
        int64_t columns = dr_chunk_count(s->T) * s->n_out,
                fusion = dr_fusion_parts_of(s->n_requests, s->n_positions, s->n_columns).total;
        return s->n_requests == 0 ? 0 : columns > fusion ? columns : fusion;
    }
    const int64_t most = s->n_out > s->n_in ? s->n_out : s->n_in, least = s->n_out + s->n_in - most;
    const int64_t floats[] = {
        dr_chunk_count(s->T) * most,
        dr_norm_parts(s->T) * least,
        dr_norm_parts(s->T * s->H) * s->d,
        dr_square_blocks(s->row_macs + s->V * s->n_in) * (int64_t)(sizeof(double) / sizeof(float)),
        s->T * s->H,
        dr_plan_room(dr_most_pass_rows(s) * dr_splits_of((int32_t)s->longest), true) * s->H * (s->d + 2)};
    int64_t largest = 0;
    for (size_t i = 0; i < sizeof floats / sizeof *floats; i++)
        if (floats[i] > largest) largest = floats[i];
    return largest;
}

#endif
