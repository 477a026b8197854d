// Index arithmetic of the kernels, the same code on host and device, so that a test without a device can show
// that tiles and chunks cover every element once: products, sums over rows, bursts, kept sets. What belongs
// to one family of kernels stands in attention_index.h, retrieval_index.h and wgmma_index.h.
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
    DR_CUDA_MMA_STRIP = 16,    // rows of a warp
    DR_CUDA_MMA_HEAD = 128,    // largest head of bf16 attention
    DR_CUDA_SPLIT = 256,       // keys that one softmax of bf16 attention goes over before results are merged
    DR_CUDA_PAGE = 16,         // positions of a page of the key/value cache
    DR_CUDA_CHUNKS = 256,      // most parts that a sum over rows is cut into
    DR_CUDA_CHUNK_ROWS = 64,   // least rows of such a part
    DR_CUDA_NORM_PARTS = 1024, // the same for the gradient of RMSNorm, where a block goes through a part
    DR_CUDA_NORM_ROWS = 4,
    DR_CUDA_HEAD_WARPS = 4,   // of a block that goes through a part of the heads of a norm by head
    DR_CUDA_HEAD_STEP = 128,  // rows of a block of the loss head are a multiple of this,
    DR_CUDA_HEAD_MOST = 2048, // at most this,
    DR_CUDA_KEPT_ROWS = 128   // and whole vocabularies that kept sets sent at once may hold
};

#ifndef DR_CUDA_HEAD_BYTES // of a block's logits; tests have less
#define DR_CUDA_HEAD_BYTES (1 << 30)
#endif

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

// ---- the loss head ----

// Rows of a block whose logits take about `bytes`, where the limits allow it: by V alone, since sums over
// rows are cut where blocks end.
DR_INDEX int64_t dr_head_rows_within(int64_t V, int64_t bytes) {
    int64_t rows = bytes / (V * (int64_t)sizeof(float)) / DR_CUDA_HEAD_STEP * DR_CUDA_HEAD_STEP;
    if (rows < DR_CUDA_HEAD_STEP) rows = DR_CUDA_HEAD_STEP;
    return rows > DR_CUDA_HEAD_MOST ? (int64_t)DR_CUDA_HEAD_MOST : rows;
}

// Rows of the block that begins at row t0 of T; of the largest block when t0 is 0.
DR_INDEX int64_t dr_head_block(int64_t T, int64_t V, int64_t t0) {
    const int64_t rows = dr_head_rows_within(V, DR_CUDA_HEAD_BYTES);
    return T - t0 < rows ? T - t0 : rows;
}

// A row's kept ids, which rise, go by in tiles: n_ids of them from ids[first] on, and the columns begin …
// end - 1 that are cleared before the tile's gradient is written. They reach up to its last id, in the last
// tile to the end of the row, so that ids of later tiles still have their logits where these are overwritten.
typedef struct dr_kept_tile {
    int64_t n_ids, begin, end;
} dr_kept_tile;

DR_INDEX dr_kept_tile dr_kept_tile_at(const int32_t *ids, int64_t n, int64_t V, int64_t first, int64_t size) {
    dr_kept_tile tile;
    tile.n_ids = n - first < size ? n - first : size;
    tile.begin = first == 0 ? 0 : (int64_t)ids[first - 1] + 1;
    tile.end = first + size < n ? (int64_t)ids[first + size - 1] + 1 : V;
    return tile;
}

#endif
