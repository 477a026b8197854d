// cuda/wgmma.cuh for an emulated device. Products and tensor copies are done as late as they may be: products
// when they are waited for, with what then stands in registers and shared memory; copies when no thread can
// go on without them, in no order. Sums are not a number while products of theirs are pending: a kernel that
// reads them sees that, one that writes them is at fault, and so is a thread that ends. Fences, and registers
// that are handed over, change nothing here.
#ifndef DR_CUDA_WGMMA_CUH
#define DR_CUDA_WGMMA_CUH

#include <cuda.h>

#include <deque>
#include <vector>

#include "cuda/tensor_core.cuh"
#include "cuda/wgmma_index.h"
#include "tests/emulated/wgmma_layout.h"

// ---- products ----

struct emulated_sums { // of one thread, while products are pending that add to them
    float *at;
    int32_t n, pending; // sums, products
    float values[64];
};

struct emulated_product { // of one thread
    emulated_sums *sums;
    const uint32_t *a; // NULL: of a_descriptor
    uint64_t a_descriptor, b_descriptor;
    int32_t n;
    bool b_is_mn_major, add;
};
static_assert(sizeof(emulated_product) <= emulated::EXCHANGED, "what a lane gives");

struct emulated_products {
    std::vector<emulated_product> open;
    std::deque<std::vector<emulated_product>> groups;
    emulated_sums sums[8];
};
static emulated_products emulated_pending[emulated::MOST_THREADS];

static inline emulated_products *emulated_own() {
    return &emulated_pending[emulated::thread_number()];
}

// Takes n sums at `at` away until the last of their products is done.
static inline emulated_sums *emulated_take(float *at, int32_t n) {
    emulated_sums *place = NULL;
    for (emulated_sums &one : emulated_own()->sums) {
        if (one.pending > 0 && one.at == at) {
            one.pending++;
            return &one;
        }
        if (one.pending == 0) place = &one;
    }
    if (!place) emulated::fault("wgmma: products of more than 8 matrices of sums are pending");
    *place = {at, n, 1, {}};
    memcpy(place->values, at, (size_t)n * sizeof *at);
    memset((void *)at, 0xFF, (size_t)n * sizeof *at);
    return place;
}

static inline void emulated_give_back(emulated_sums *sums) {
    if (--sums->pending > 0) return;
    for (int32_t i = 0; i < sums->n; i++)
        if (__float_as_uint(sums->at[i]) != 0xFFFFFFFFu)
            emulated::fault("wgmma: thread %d wrote sum %d while products that add to it were pending",
                            emulated::thread_number(), i);
    memcpy(sums->at, sums->values, (size_t)sums->n * sizeof *sums->at);
}

static inline void emulated_begin(const emulated_product &one) {
    emulated_own()->open.push_back(one);
    emulated::owe("products of wgmma", 1);
}

static inline float emulated_operand(uint64_t descriptor, int mn, int k, bool is_mn_major) {
    const uint32_t address = wgmma_operand(descriptor, mn, k, is_mn_major);
    uint16_t bits;
    if (address == WGMMA_ILLEGAL)
        emulated::fault("wgmma: descriptor %016llx", (unsigned long long)descriptor);
    memcpy(&bits, emulated::shared_pointer(address, sizeof bits), sizeof bits);
    return emulated_bf16(bits, 0);
}

// One product of a warp: its 16 rows of [64, n].
static inline void emulated_multiply(emulated::exchanged *all) {
    const int strip = emulated::thread_number() / emulated::WARP % 4 * 16;
    emulated_product of[emulated::WARP];
    float a[16][16], b[16][DR_WGMMA_KEYS];
    for (int lane = 0; lane < emulated::WARP; lane++) {
        memcpy(&of[lane], all[lane], sizeof of[lane]);
        if (of[lane].a_descriptor != of[0].a_descriptor || of[lane].b_descriptor != of[0].b_descriptor ||
            of[lane].n != of[0].n || of[lane].b_is_mn_major != of[0].b_is_mn_major ||
            of[lane].add != of[0].add || (of[lane].a == NULL) != (of[0].a == NULL))
            emulated::fault("wgmma: lanes 0 and %d of a warp with different operands", lane);
    }
    for (int row = 0; row < 16; row++)
        for (int k = 0; k < 16; k++)
            a[row][k] = of[0].a ? emulated_bf16(of[wgmma_left_thread(row, k)].a[wgmma_left_register(row, k)],
                                                wgmma_left_half(k))
                                : emulated_operand(of[0].a_descriptor, strip + row, k, false);
    for (int column = 0; column < of[0].n; column++)
        for (int k = 0; k < 16; k++)
            b[k][column] = emulated_operand(of[0].b_descriptor, column, k, of[0].b_is_mn_major);
    for (int lane = 0; lane < emulated::WARP; lane++)
        for (int i = 0; i < of[0].n / 2; i++) {
            const int row = wgmma_result_row(lane, i), column = wgmma_result_column(lane, i);
            float *at = &of[lane].sums->values[i], sum = of[0].add ? *at : 0.0f;
            for (int k = 0; k < 16; k++) sum += a[row][k] * b[k][column];
            *at = sum;
        }
}

static inline void dr_wgmma_begin() {}

static inline void dr_wgmma_commit() {
    emulated_products *own = emulated_own();
    own->groups.push_back(std::move(own->open));
    own->open.clear();
}

template <typename T, int N> static inline void dr_wgmma_keep(T (&)[N]) {}

template <int PENDING> static inline void dr_wgmma_wait() {
    emulated_products *own = emulated_own();
    for (; own->groups.size() > (size_t)PENDING; own->groups.pop_front())
        for (const emulated_product &one : own->groups.front()) {
            emulated::exchange_all("wgmma", &one, sizeof one, emulated_multiply);
            emulated_give_back(one.sums);
            emulated::owe("products of wgmma", -1);
        }
}

template <int N> static inline void dr_wgmma(float (&c)[N], uint64_t a, uint64_t b, bool add) {
    emulated_begin({emulated_take(c, N), NULL, a, b, 2 * N, false, add});
}

template <int N> static inline void dr_wgmma_weigh(float (&c)[N], const uint32_t *a, uint64_t b) {
    emulated_begin({emulated_take(c, N), a, 0, b, 2 * N, true, true});
}

// ---- barriers in shared memory ----

static inline void dr_barrier_init(uint32_t barrier, int arrivals) {
    emulated::shared_barrier_init(barrier, arrivals);
}

static inline void dr_barrier_publish() {}

static inline void dr_barrier_arrive(uint32_t barrier) {
    emulated::shared_barrier_change(barrier, 1, 0);
}

static inline void dr_barrier_expect(uint32_t barrier, int bytes) {
    emulated::shared_barrier_change(barrier, 1, bytes);
}

static inline void dr_barrier_arrive_copied(uint32_t barrier) {
    emulated::copies_then_arrive(barrier);
}

static inline void dr_barrier_wait(uint32_t barrier, uint32_t parity) {
    emulated::shared_barrier_wait(barrier, parity);
}

static inline void dr_barrier_wait_warp(uint32_t barrier, uint32_t parity) {
    dr_barrier_wait(barrier, parity);
    __syncwarp();
}

static inline void dr_named_wait(int barrier, int threads) {
    emulated::barrier_wait(barrier, threads, false);
}

static inline void dr_named_arrive(int barrier, int threads) {
    emulated::barrier_arrive(barrier, threads);
}

// ---- copies, registers ----

static inline void dr_tensor_copy(uint32_t to, const CUtensorMap *map, uint32_t barrier, int32_t column,
                                  int32_t head, int32_t row) {
    const CUtensorMap from = *map;
    if (to % 128 != 0) emulated::fault("tensor copy to %u, not a multiple of 128", to);
    emulated::later([=]() {
        uint32_t place = to;
        for (int32_t r = row; r < row + from.box_rows; r++)
            for (int32_t h = head; h < head + from.box_heads; h++)
                for (int32_t c = column; c < column + DR_WGMMA_PANEL; c++, place += 2) {
                    const bool is_there =
                        r >= 0 && r < from.T && h >= 0 && h < from.n_heads && c >= 0 && c < from.d;
                    const uint16_t bits =
                        is_there ? from.rows[((int64_t)r * from.n_heads + h) * from.d + c] : 0;
                    memcpy(emulated::shared_pointer(swizzled_address(place), sizeof bits), &bits,
                           sizeof bits);
                }
        emulated::shared_barrier_change(barrier, 0, -(int)(place - to));
    });
}

static inline void dr_publish_shared() {}

template <int N> static inline void dr_registers_fewer() {}
template <int N> static inline void dr_registers_more() {}

#endif
