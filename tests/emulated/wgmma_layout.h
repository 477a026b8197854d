// Where the tensor cores and the copy engine of compute capability 9.0 find and put what, after the PTX ISA:
// canonical layouts of matrix descriptors with 128-byte swizzle, fragments of wgmma.mma_async.m64nNk16.
// Nothing here is shared with the kernels' own index arithmetic, which is held against it.
#ifndef DR_TESTS_EMULATED_WGMMA_LAYOUT_H
#define DR_TESTS_EMULATED_WGMMA_LAYOUT_H

#include <stdbool.h>
#include <stdint.h>

#define WGMMA_ILLEGAL                                                                                        \
    UINT32_MAX // of wgmma_operand: a descriptor that is none, or not one that the kernels may use

// Bits 4 to 6 of an address by exclusive or with bits 7 to 9.
static inline uint32_t swizzled_address(uint32_t address) {
    return address ^ (address >> 7 & 7) << 4;
}

// Address of element (mn, k) of the operand that a descriptor names. Only what the kernels use is legal:
// 128-byte swizzle, no base offset, a start within one row of a pattern that begins at a multiple of 1024
// bytes.
static inline uint32_t wgmma_operand(uint64_t descriptor, int mn, int k, bool is_mn_major) {
    const uint64_t fields = 0x3FFFull | 0x3FFFull << 16 | 0x3FFFull << 32 | 3ull << 62;
    uint32_t start = (uint32_t)(descriptor & 0x3FFF) << 4,
             leading = (uint32_t)(descriptor >> 16 & 0x3FFF) << 4,
             stride = (uint32_t)(descriptor >> 32 & 0x3FFF) << 4, offset;
    if ((descriptor & ~fields) != 0 || descriptor >> 62 != 1 || start % 1024 >= 128) return WGMMA_ILLEGAL;
    if (is_mn_major) // ((8, 8, m), (8, k)) : ((1, 8, leading), (64, stride)) elements
        offset = (uint32_t)(mn % 64 * 2 + k % 8 * 128) + (uint32_t)(mn / 64) * leading +
                 (uint32_t)(k / 8) * stride;
    else // ((8, m), (8, 2)) : ((64, stride), (1, 8)) elements
        offset = (uint32_t)(mn % 8 * 128 + k * 2) + (uint32_t)(mn / 8) * stride;
    return swizzled_address(start + offset);
}

// The element (row, column) of [64, n] that a thread's i-th sum is.
static inline int wgmma_result_row(int thread, int i) {
    return 16 * (thread / 32) + thread % 32 / 4 + 8 * (i / 2 % 2);
}

static inline int wgmma_result_column(int thread, int i) {
    return 8 * (i / 4) + 2 * (thread % 4) + i % 2;
}

// The thread of a warpgroup, its register and the register's half that hold element (row, k) of a left
// operand.
static inline int wgmma_left_thread(int row, int k) {
    return row / 16 * 32 + row % 8 * 4 + k % 8 / 2;
}

static inline int wgmma_left_register(int row, int k) {
    return row % 16 / 8 + k / 8 * 2;
}

static inline int wgmma_left_half(int k) {
    return k % 2;
}

#endif
