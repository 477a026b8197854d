// What the tensor cores and the copy engine of compute capability 9.0 do with shared memory, on the host,
// after the PTX ISA: canonical layouts of matrix descriptors with 128-byte swizzle, fragments of
// wgmma.mma_async.m64nNk16, boxes of cp.async.bulk.tensor. It knows nothing of the kernels' index arithmetic,
// which is held against it.
#ifndef DR_TESTS_WGMMA_EMULATION_H
#define DR_TESTS_WGMMA_EMULATION_H

#include "tests/check.h"

#include <string.h>

enum { SHARED_BYTES = 227 * 1024, GROUP_THREADS = 128, RESULT_ROWS = 64, DEPTH = 16, MOST_COLUMNS = 128 };

// Shared memory of a block; every byte 0xFF, not a number, until it is written.
static uint8_t shared_memory[SHARED_BYTES];

static inline void shared_clear(void) {
    memset(shared_memory, 0xFF, sizeof shared_memory);
}

// Bits 4 to 6 of an address by exclusive or with bits 7 to 9.
static inline uint32_t swizzled_address(uint32_t address) {
    return address ^ (address >> 7 & 7) << 4;
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

// Address of element (mn, k) of the operand that a descriptor names. Only what the tests use is legal:
// 128-byte swizzle, no base offset, a start within one row of a pattern that begins at a multiple of 1024
// bytes.
static inline uint32_t operand_address(uint64_t descriptor, int mn, int k, bool is_mn_major) {
    const uint64_t fields = 0x3FFFull | 0x3FFFull << 16 | 0x3FFFull << 32 | 3ull << 62;
    uint32_t start = (uint32_t)(descriptor & 0x3FFF) << 4,
             leading = (uint32_t)(descriptor >> 16 & 0x3FFF) << 4,
             stride = (uint32_t)(descriptor >> 32 & 0x3FFF) << 4, offset;
    assert_true((descriptor & ~fields) == 0 && descriptor >> 62 == 1);
    assert_true(start % 1024 < 128);
    if (is_mn_major) // ((8, 8, m), (8, k)) : ((1, 8, leading), (64, stride)) elements
        offset = (uint32_t)(mn % 64 * 2 + k % 8 * 128) + (uint32_t)(mn / 64) * leading +
                 (uint32_t)(k / 8) * stride;
    else // ((8, m), (8, 2)) : ((64, stride), (1, 8)) elements
        offset = (uint32_t)(mn % 8 * 128 + k * 2) + (uint32_t)(mn / 8) * stride;
    return swizzled_address(start + offset);
}

// The element (row, column) of [64, n] that a thread's i-th sum is.
static inline int result_row(int thread, int i) {
    return 16 * (thread / 32) + thread % 32 / 4 + 8 * (i / 2 % 2);
}

static inline int result_column(int thread, int i) {
    return 8 * (i / 4) + 2 * (thread % 4) + i % 2;
}

// A left operand: in shared memory, or four registers a thread.
typedef struct left_operand {
    uint64_t descriptor;
    const uint32_t (*registers)[4]; // NULL: the descriptor
} left_operand;

static inline uint16_t left_element(const left_operand *a, int row, int k) {
    if (!a->registers) return shared_bf16(operand_address(a->descriptor, row, k, false));
    int thread = row / 16 * 32 + row % 8 * 4 + k % 8 / 2;
    return (uint16_t)(a->registers[thread][row % 16 / 8 + k / 8 * 2] >> 16 * (k % 2));
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
                sum += left[result_row(thread, i)][k] * right[result_column(thread, i)][k];
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
