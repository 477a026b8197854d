// What the tensor cores and the copy engine of compute capability 9.0 do with shared memory, on the host:
// products of wgmma.mma_async.m64nNk16, boxes of cp.async.bulk.tensor. It knows nothing of the kernels' index
// arithmetic, which is held against it.
#ifndef DR_TESTS_WGMMA_EMULATION_H
#define DR_TESTS_WGMMA_EMULATION_H

#include "tests/check.h"
#include "tests/emulated/wgmma_layout.h"

#include <string.h>

enum { SHARED_BYTES = 227 * 1024, GROUP_THREADS = 128, RESULT_ROWS = 64, DEPTH = 16, MOST_COLUMNS = 128 };

// Shared memory of a block; every byte 0xFF, not a number, until it is written.
static uint8_t shared_memory[SHARED_BYTES];

static inline void shared_clear(void) {
    memset(shared_memory, 0xFF, sizeof shared_memory);
}

static inline float bf16_value(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

static inline uint16_t bf16_bits(float value) { // to nearest, ties to even; finite values
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)((bits + 0x7FFFu + (bits >> 16 & 1)) >> 16);
}

static inline uint32_t bf16_pair(float low, float high) {
    return bf16_bits(low) | (uint32_t)bf16_bits(high) << 16;
}

static inline uint16_t shared_bf16(uint32_t address) {
    uint16_t bits;
    assert_true(address % 2 == 0 && address + 2 <= SHARED_BYTES);
    memcpy(&bits, shared_memory + address, sizeof bits);
    return bits;
}

static inline uint32_t operand_address(uint64_t descriptor, int mn, int k, bool is_mn_major) {
    uint32_t address = wgmma_operand(descriptor, mn, k, is_mn_major);
    assert_true(address != WGMMA_ILLEGAL);
    return address;
}

// A left operand: in shared memory, or four registers a thread.
typedef struct left_operand {
    uint64_t descriptor;
    const uint32_t (*registers)[4]; // NULL: the descriptor
} left_operand;

static inline uint16_t left_element(const left_operand *a, int row, int k) {
    if (!a->registers) return shared_bf16(operand_address(a->descriptor, row, k, false));
    uint32_t pair = a->registers[wgmma_left_thread(row, k)][wgmma_left_register(row, k)];
    return (uint16_t)(pair >> 16 * wgmma_left_half(k));
}

// sums [128 threads][pitch], n / 2 of them each, (+)= a [64, 16] b [16, n].
static inline void emulate_wgmma(float *sums, int pitch, int n, const left_operand *a, uint64_t b,
                                 bool b_is_mn_major, bool add) {
    static float left[RESULT_ROWS][DEPTH], right[MOST_COLUMNS][DEPTH];
    assert_true(n % 8 == 0 && n <= MOST_COLUMNS && n / 2 <= pitch);
    for (int row = 0; row < RESULT_ROWS; row++)
        for (int k = 0; k < DEPTH; k++) left[row][k] = bf16_value(left_element(a, row, k));
    for (int column = 0; column < n; column++)
        for (int k = 0; k < DEPTH; k++)
            right[column][k] = bf16_value(shared_bf16(operand_address(b, column, k, b_is_mn_major)));
    for (int thread = 0; thread < GROUP_THREADS; thread++)
        for (int i = 0; i < n / 2; i++) {
            float sum = add ? sums[thread * pitch + i] : 0.0f;
            for (int k = 0; k < DEPTH; k++)
                sum += left[wgmma_result_row(thread, i)][k] * right[wgmma_result_column(thread, i)][k];
            sums[thread * pitch + i] = sum;
        }
}

// A tensor map of bf16 rows [T, n_heads, d] whose boxes are 64 columns of box_heads heads of box_rows rows.
typedef struct tensor_map {
    const uint16_t *rows;
    int64_t T;
    int n_heads, d, box_heads, box_rows;
} tensor_map;

static inline void emulate_tensor_copy(uint32_t to, const tensor_map *map, int column, int head,
                                       int64_t row) {
    assert_true(to % 1024 == 0 && map->box_heads <= 256 && map->box_rows <= 256);
    for (int r = 0; r < map->box_rows; r++)
        for (int h = 0; h < map->box_heads; h++)
            for (int c = 0; c < 64; c++) {
                bool is_there = row + r < map->T && head + h < map->n_heads && column + c < map->d;
                int64_t from = ((row + r) * map->n_heads + head + h) * map->d + column + c;
                uint16_t bits = is_there ? map->rows[from] : 0;
                uint32_t address = swizzled_address(to + (uint32_t)((r * map->box_heads + h) * 64 + c) * 2);
                assert_true(address + 2 <= SHARED_BYTES);
                memcpy(shared_memory + address, &bits, sizeof bits);
            }
}

#endif
