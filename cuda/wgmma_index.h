// Index arithmetic of the attention kernels with wgmma (compute capability 9.0), the same code on host and
// device: how tiles stand in shared memory, what a descriptor says of them, who owns which element of a
// result, and by which steps a tile of queries goes through its keys. tests/test_wgmma.c runs all of it.
//
// A tile [rows, columns] of bf16 stands in panels of 64 columns side by side. A panel's rows are 128 bytes
// and follow each other; the eight pieces of 16 bytes of row r change places by exclusive or with r % 8
// ("128-byte swizzle", what a tensor copy writes and wgmma reads). A tile begins at a multiple of 1024 bytes
// and has a multiple of 8 rows.
#ifndef DR_CUDA_WGMMA_INDEX_H
#define DR_CUDA_WGMMA_INDEX_H

#include "cuda/attention_index.h"

enum {
    DR_WGMMA_ROWS = 64,      // of a result, one warpgroup's
    DR_WGMMA_DEPTH = 16,     // of one instruction
    DR_WGMMA_THREADS = 128,  // a warpgroup
    DR_WGMMA_CONSUMERS = 2,  // warpgroups of a block that multiply; one more copies
    DR_WGMMA_KEYS = 128,     // of a tile
    DR_WGMMA_PANEL = 64,     // columns
    DR_WGMMA_PITCH = 128,    // bytes of a panel's row
    DR_WGMMA_PATTERN = 1024, // bytes of eight such rows, after which the swizzle repeats
    DR_WGMMA_STAGES = 2      // tiles of keys, or of queries, on their way or worked on
};

// ---- shared memory ----

// Bytes from the beginning of a tile of `rows` rows to one of its elements.
DR_INDEX int32_t dr_panel_offset(int row, int column, int rows) {
    int32_t piece = column % DR_WGMMA_PANEL / 8 ^ row % 8;
    return (column / DR_WGMMA_PANEL * rows + row) * DR_WGMMA_PITCH + piece * 16 + column % 8 * 2;
}

// A matrix descriptor with 128-byte swizzle. address: in shared memory; leading, stride: bytes. All three are
// multiples of 16 below 2^18. `ahead`: bytes that the operand begins behind the address, added to what is
// made of the rest, which a loop's steps share.
DR_INDEX uint64_t dr_wgmma_descriptor(uint32_t address, uint32_t leading, uint32_t stride, uint32_t ahead) {
    uint32_t low = (address >> 4 & 0x3FFF) | (leading >> 4 & 0x3FFF) << 16,
             high = (stride >> 4 & 0x3FFF) | 1u << 30;
    return (uint64_t)(low + (ahead >> 4)) | (uint64_t)high << 32;
}

// Rows from `first` on of a tile as an operand whose products run along the columns (K-major), columns
// 16 step … 16 step + 15. first is a multiple of 8.
DR_INDEX uint64_t dr_wgmma_along_columns(uint32_t tile, int rows, int first, int step) {
    int column = step * DR_WGMMA_DEPTH;
    uint32_t ahead =
        (uint32_t)(column / DR_WGMMA_PANEL * rows * DR_WGMMA_PITCH + column % DR_WGMMA_PANEL * 2);
    return dr_wgmma_descriptor(tile + (uint32_t)(first * DR_WGMMA_PITCH), 16, DR_WGMMA_PATTERN, ahead);
}

// All columns of a tile as an operand whose products run along the rows (MN-major), rows 16 step …
// 16 step + 15.
DR_INDEX uint64_t dr_wgmma_along_rows(uint32_t tile, int rows, int step) {
    return dr_wgmma_descriptor(tile, (uint32_t)(rows * DR_WGMMA_PITCH), DR_WGMMA_PATTERN,
                               (uint32_t)(step * DR_WGMMA_DEPTH * DR_WGMMA_PITCH));
}

// ---- registers ----

// Row and column of a result [64, n] that a thread's i-th of n / 2 sums is. Sums 8 k … 8 k + 7, rounded and
// in pairs, are the four registers of a left operand's columns 16 k … 16 k + 15.
DR_INDEX int dr_fragment_row(int thread, int i) {
    return thread / 32 % 4 * 16 + thread % 32 / 4 + i / 2 % 2 * 8;
}

DR_INDEX int dr_fragment_column(int thread, int i) {
    return i / 4 * 8 + thread % 4 * 2 + i % 2;
}

// A warpgroup's rows of q, two columns at a time: how many pairs a thread brings of `columns` a row, and row
// and first column of its i-th.
DR_INDEX int dr_wgmma_pairs(int columns) {
    return DR_WGMMA_ROWS * columns / 2 / DR_WGMMA_THREADS;
}

DR_INDEX int dr_wgmma_pair_row(int thread, int i, int columns) {
    return (thread + i * DR_WGMMA_THREADS) / (columns / 2);
}

DR_INDEX int dr_wgmma_pair_column(int thread, int i, int columns) {
    return (thread + i * DR_WGMMA_THREADS) % (columns / 2) * 2;
}

// ---- stages ----

// Step j uses stage j % DR_WGMMA_STAGES for the (j / DR_WGMMA_STAGES)-th time, and waits for "full" with this
// parity; whoever fills it waits for "empty" with the other one.
DR_INDEX int dr_stage_of(int32_t step) {
    return step % DR_WGMMA_STAGES;
}

DR_INDEX uint32_t dr_stage_parity(int32_t step) {
    return step / DR_WGMMA_STAGES % 2;
}

// ---- steps ----

// Whether the kernels take these heads.
DR_INDEX bool dr_wgmma_takes(int32_t group, int32_t d) {
    return (d == 64 || d == 128) && group <= DR_CUDA_MMA_ROWS;
}

// Queries of a block's tile; row r of it is head r % group of query r / group.
DR_INDEX int32_t dr_wgmma_queries(int32_t group) {
    return DR_WGMMA_CONSUMERS * DR_WGMMA_ROWS / group;
}

// Keys go by in steps of `keys`, first those of the prefix, then own ones, so that the rows of a step follow
// each other in memory. What a step reads behind its part's end is masked, and must be finite.
DR_INDEX int32_t dr_prefix_steps(const dr_span *span, int32_t keys) {
    return (int32_t)dr_ceil_div(span->n_before, keys);
}

// Steps of a tile whose last query sees `seen` keys.
DR_INDEX int32_t dr_key_steps(const dr_span *span, int32_t seen, int32_t keys) {
    return dr_prefix_steps(span, keys) + (int32_t)dr_ceil_div(seen - span->n_before, keys);
}

// Row of k and v where a step begins.
DR_INDEX int64_t dr_step_row(const dr_span *span, int32_t step, int32_t keys) {
    int32_t before = dr_prefix_steps(span, keys);
    return step < before ? span->prefix_row + (int64_t)step * keys
                         : span->row + (int64_t)(step - before) * keys;
}

// Keys of a step, from its first on, that a query sees: none where this is not above 0, all where it is
// `keys` or more. seen: of the query; 0: there is no such query.
DR_INDEX int32_t dr_step_limit(const dr_span *span, int32_t step, int32_t keys, int32_t seen) {
    int32_t before = dr_prefix_steps(span, keys);
    if (step < before) return (seen > 0 ? span->n_before : 0) - step * keys;
    return seen - span->n_before - (step - before) * keys;
}

#endif
