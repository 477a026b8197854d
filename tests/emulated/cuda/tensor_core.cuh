// cuda/tensor_core.cuh for an emulated device: each instruction as the PTX ISA describes it, its sums in
// order of k.
#ifndef DR_CUDA_TENSOR_CORE_CUH
#define DR_CUDA_TENSOR_CORE_CUH

#include <cuda_bf16.h>
#include <stdint.h>

#define DR_LOG2_E 1.44269504088896341f

static inline int emulated_own_lane() {
    return emulated::thread_number() % emulated::WARP;
}

static inline float emulated_bf16(uint32_t pair, int half) {
    return __uint_as_float(half ? pair & 0xFFFF0000u : pair << 16);
}

// mma.m16n8k16: a's register r of lane l holds row l / 4 + 8 (r % 2), columns 2 (l % 4) + 8 (r / 2) and the
// next; b's register r rows 2 (l % 4) + 8 r and the next of column l / 4. Each lane gives a, b, c and gets
// its part of c.
static inline void emulated_mma(emulated::exchanged *all) {
    float a[16][16], b[16][8], c[16][8];
    for (int lane = 0; lane < emulated::WARP; lane++) {
        uint32_t words[6];
        float sums[4];
        const int row = lane / 4, column = lane % 4 * 2;
        memcpy(words, all[lane], sizeof words);
        memcpy(sums, all[lane] + sizeof words, sizeof sums);
        for (int half = 0; half < 2; half++) {
            for (int r = 0; r < 4; r++)
                a[row + r % 2 * 8][column + r / 2 * 8 + half] = emulated_bf16(words[r], half);
            for (int r = 0; r < 2; r++) b[column + 8 * r + half][row] = emulated_bf16(words[4 + r], half);
            for (int r = 0; r < 2; r++) c[row + 8 * r][column + half] = sums[2 * r + half];
        }
    }
    for (int row = 0; row < 16; row++)
        for (int k = 0; k < 16; k++)
            for (int column = 0; column < 8; column++) c[row][column] += a[row][k] * b[k][column];
    for (int lane = 0; lane < emulated::WARP; lane++) {
        const int row = lane / 4, column = lane % 4 * 2;
        const float sums[4] = {c[row][column], c[row][column + 1], c[row + 8][column],
                               c[row + 8][column + 1]};
        memcpy(all[lane], sums, sizeof sums);
    }
}

static inline void dr_mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    struct {
        uint32_t words[6];
        float sums[4];
    } given = {{a[0], a[1], a[2], a[3], b0, b1}, {c[0], c[1], c[2], c[3]}};
    const emulated::exchanged *all = emulated::exchange_all("mma", &given, sizeof given, emulated_mma);
    memcpy(c, all[emulated_own_lane()], sizeof c);
}

static inline void emulated_ldmatrix(uint32_t (&to)[4], const void *row, bool transposed) {
    if ((uintptr_t)row % 16 != 0) emulated::fault("ldmatrix from %p, not a multiple of 16", row);
    const emulated::exchanged *all = emulated::exchange("ldmatrix", DR_EMULATED_WARP, row, 16);
    const int lane = emulated_own_lane();
    for (int m = 0; m < 4; m++) {
        uint16_t halves[2];
        for (int h = 0; h < 2; h++) {
            const int line = transposed ? lane % 4 * 2 + h : lane / 4,
                      place = transposed ? lane / 4 : lane % 4 * 2 + h;
            memcpy(&halves[h], all[8 * m + line] + 2 * place, sizeof halves[h]);
        }
        to[m] = halves[0] | (uint32_t)halves[1] << 16;
    }
}

static inline void dr_ldmatrix(uint32_t (&to)[4], const void *row) {
    emulated_ldmatrix(to, row, false);
}

static inline void dr_ldmatrix_transposed(uint32_t (&to)[4], const void *row) {
    emulated_ldmatrix(to, row, true);
}

static inline uint32_t dr_shared_address(const void *shared) {
    return emulated::shared_address(shared);
}

static inline void dr_copy_async_16(void *shared, const void *from, bool is_there) {
    emulated::copy_later(shared, from, 16, is_there);
}

static inline void dr_copy_async_4(void *shared, const void *from, bool is_there) {
    emulated::copy_later(shared, from, 4, is_there);
}

static inline void dr_copy_async_commit() {
    emulated::copies_commit();
}

template <int PENDING> static inline void dr_copy_async_wait() {
    emulated::copies_wait(PENDING);
}

static inline float dr_exp2(float x) {
    return exp2f(x);
}

static inline uint32_t dr_pack_bf16(float low, float high) {
    return __float2bfloat16_rn(low).bits | (uint32_t)__float2bfloat16_rn(high).bits << 16;
}

static inline float dr_row_max(float value) {
    value = fmaxf(value, __shfl_xor_sync(DR_EMULATED_WARP, value, 1));
    return fmaxf(value, __shfl_xor_sync(DR_EMULATED_WARP, value, 2));
}

static inline float dr_row_sum(float value) {
    value += __shfl_xor_sync(DR_EMULATED_WARP, value, 1);
    return value + __shfl_xor_sync(DR_EMULATED_WARP, value, 2);
}

#endif
