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

#endif
