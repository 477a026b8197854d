// nvcuda::wmma for bf16 tiles of 16 x 16 x 16 on an emulated device: lane l holds elements 8 l … 8 l + 7 of a
// tile, which no kernel may know.
#ifndef DR_TESTS_EMULATED_MMA_H
#define DR_TESTS_EMULATED_MMA_H

#include "tests/emulated/cuda_bf16.h"

namespace nvcuda {
namespace wmma {

enum { TILE = 16, OWN = TILE * TILE / emulated::WARP };
enum layout_t { mem_row_major };
struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};

template <typename USE, int M, int N, int K, typename T, typename LAYOUT = void> struct fragment {
    static_assert(M == TILE && N == TILE && K == TILE, "tiles of 16");
    T own[OWN];
};

static inline int first_own() {
    return emulated::thread_number() % emulated::WARP * OWN;
}

template <int M, int N, int K, typename T>
static inline void fill_fragment(fragment<accumulator, M, N, K, T> &f, T value) {
    for (T &own : f.own) own = value;
}

// A row of `a` and a column of `b` lie together in memory: in both, `pitch` elements from one to the next.
template <typename USE, int M, int N, int K, typename T, typename LAYOUT>
static inline void load_matrix_sync(fragment<USE, M, N, K, T, LAYOUT> &f, const T *from, unsigned int pitch) {
    if ((uintptr_t)from % 32 != 0 || pitch * sizeof(T) % 16 != 0)
        emulated::fault("load_matrix_sync from %p, pitch %u", (const void *)from, pitch);
    __syncwarp();
    for (int i = 0; i < OWN; i++)
        f.own[i] = from[(first_own() + i) / TILE * pitch + (first_own() + i) % TILE];
}

template <int M, int N, int K, typename T>
static inline void store_matrix_sync(T *to, const fragment<accumulator, M, N, K, T> &f, unsigned int pitch,
                                     layout_t) {
    if ((uintptr_t)to % 32 != 0 || pitch * sizeof(T) % 16 != 0)
        emulated::fault("store_matrix_sync to %p, pitch %u", (void *)to, pitch);
    for (int i = 0; i < OWN; i++) to[(first_own() + i) / TILE * pitch + (first_own() + i) % TILE] = f.own[i];
    __syncwarp();
}

struct operands {
    __nv_bfloat16 a[OWN], b[OWN];
    float c[OWN];
};
static_assert(sizeof(operands) <= emulated::EXCHANGED, "what a lane gives");

static inline void multiply(emulated::exchanged *all) {
    float a[TILE][TILE], b[TILE][TILE], c[TILE][TILE];
    operands own;
    for (int place = 0; place < TILE * TILE; place++) {
        if (place % OWN == 0) memcpy(&own, all[place / OWN], sizeof own);
        a[place / TILE][place % TILE] = __bfloat162float(own.a[place % OWN]);
        b[place % TILE][place / TILE] = __bfloat162float(own.b[place % OWN]);
        c[place / TILE][place % TILE] = own.c[place % OWN];
    }
    for (int row = 0; row < TILE; row++)
        for (int k = 0; k < TILE; k++)
            for (int column = 0; column < TILE; column++) c[row][column] += a[row][k] * b[k][column];
    for (int lane = 0; lane < emulated::WARP; lane++)
        memcpy(all[lane], &c[0][0] + lane * OWN, OWN * sizeof(float));
}

template <int M, int N, int K, typename A, typename B>
static inline void mma_sync(fragment<accumulator, M, N, K, float> &d,
                            const fragment<matrix_a, M, N, K, __nv_bfloat16, A> &a,
                            const fragment<matrix_b, M, N, K, __nv_bfloat16, B> &b,
                            const fragment<accumulator, M, N, K, float> &c) {
    operands given;
    memcpy(given.a, a.own, sizeof given.a);
    memcpy(given.b, b.own, sizeof given.b);
    memcpy(given.c, c.own, sizeof given.c);
    const emulated::exchanged *all = emulated::exchange_all("mma_sync", &given, sizeof given, multiply);
    memcpy(d.own, all[first_own() / OWN], sizeof d.own);
}

} // namespace wmma
} // namespace nvcuda

#endif
