// Arithmetic of draws (sample.cu), the same on host and device: which thread looks at which id, the search
// for the border of a kept set, and a row's scratch. A mass here is a whole number of 2^-32 (core/compute/
// softmax_cpu.c says what it is): sums of them are exact, so that no order of adding changes a bit.
#ifndef DR_CUDA_DRAW_INDEX_H
#define DR_CUDA_DRAW_INDEX_H

#include <math.h>

#include "cuda/index.h"

enum {
    DR_DRAW_CHAINS = 512,                // of a row's log-sum-exp: the threads of a block of the loss head
    DR_DRAW_WARPS = DR_DRAW_CHAINS / 32, // of chains; each is a block of its own here
    DR_DRAW_SUM_THREADS = 256,           // of such a block
    DR_DRAW_ROUNDS = 64,                 // ids of each of its chains that it has at hand at a time
    DR_DRAW_THREADS = 512,               // of a block that goes through a piece of a row
    DR_DRAW_OWN = 16,                    // ids of each of its threads
    DR_DRAW_PIECE = DR_DRAW_THREADS * DR_DRAW_OWN,
    DR_DRAW_LEVELS = 3, // of the search, ten bits of p each
    DR_DRAW_BITS = 10,
    DR_DRAW_BINS = 1 << DR_DRAW_BITS,
    DR_DRAW_WORDS = 2056 // bins of all copies of a block's histogram, of any level
};

// Bits of the least p that is ever kept, 2^-32, and of 1, the largest there is.
#define DR_DRAW_LEAST 0x2F800000u
#define DR_DRAW_ONE 0x3F800000u

// ---- who looks at what ----

DR_INDEX int32_t dr_draw_pieces(int64_t V) {
    return (int32_t)dr_ceil_div(V, DR_DRAW_PIECE);
}

// The k-th id of a thread: a warp's ids follow each other, those of its lanes side by side.
DR_INDEX int64_t dr_draw_id(int32_t piece, int32_t thread, int32_t k) {
    return (int64_t)piece * DR_DRAW_PIECE + thread / 32 * (32 * DR_DRAW_OWN) + k * 32 + thread % 32;
}

// The id that a chain adds as its number `round`.
DR_INDEX int64_t dr_chain_id(int64_t round, int32_t warp, int32_t lane) {
    return round * DR_DRAW_CHAINS + warp * 32 + lane;
}

// ---- masses ----

DR_INDEX uint64_t dr_draw_mass(float p) {
    return (uint64_t)llrintf(p * 0x1p32f); // to nearest, ties to even, as a double's last bit would be
}

DR_INDEX double dr_draw_real(uint64_t mass) {
    return (double)mass * 0x1p-32;
}

// The least mass that is not less than top_p of all, and the largest one up to a part of the mass.
DR_INDEX uint64_t dr_draw_goal(float top_p, uint64_t mass) {
    return (uint64_t)ceil((double)top_p * (double)mass);
}

DR_INDEX uint64_t dr_draw_mark(uint32_t bits, uint64_t mass) {
    return (uint64_t)(bits * 0x1p-32 * (double)mass);
}

// What is to be added to a sum's high word when its low word was `before` and `low` was added to that.
DR_INDEX uint32_t dr_draw_carried(uint64_t mass, uint32_t before) {
    return (uint32_t)(mass >> 32) + (before + (uint32_t)mass < before ? 1u : 0u);
}

// ---- the search ----

// p of the first level is between the least and 1: few of the values of ten bits.
DR_INDEX uint32_t dr_draw_first_bin(int level) {
    return level == 0 ? DR_DRAW_LEAST >> 20 : 0;
}

DR_INDEX int32_t dr_draw_level_bins(int level) {
    return level == 0 ? (int32_t)((DR_DRAW_ONE >> 20) - (DR_DRAW_LEAST >> 20)) + 1 : DR_DRAW_BINS;
}

// Copies of the histogram that warps share: one each where all ids go into it.
DR_INDEX int32_t dr_draw_copies(int level) {
    return level == 0 ? DR_DRAW_SUM_THREADS / 32 : 2;
}

DR_INDEX int32_t dr_draw_word(int level, int32_t warp, int32_t bin) {
    return warp % dr_draw_copies(level) * dr_draw_level_bins(level) + bin;
}

// The bin of p at a level, or -1: it is not kept, or not below the prefix that the levels before have found.
DR_INDEX int32_t dr_draw_bin(int level, uint32_t prefix, uint32_t bits) {
    const int shift = DR_DRAW_BITS * (DR_DRAW_LEVELS - 1 - level);
    if (bits < DR_DRAW_LEAST || bits > DR_DRAW_ONE) return -1;
    if (level > 0 && bits >> (shift + DR_DRAW_BITS) != prefix) return -1;
    return (int32_t)((bits >> shift & (DR_DRAW_BINS - 1)) - dr_draw_first_bin(level));
}

// The kept set is of ids whose p has more than the border's bits, and n_equal of those that have just these,
// smaller ids first.
typedef struct dr_draw_search {
    uint64_t goal;   // what it has to reach, 1 at least
    uint64_t above;  // mass of the ids above the border, less than goal
    uint64_t mass;   // of the kept set; at the end, as n_equal
    uint32_t border; // its highest bits, all of them at the end
    int32_t n_equal;
} dr_draw_search;

DR_INDEX dr_draw_search dr_draw_search_begin(float top_p, uint64_t mass) {
    dr_draw_search search;
    search.goal = dr_draw_goal(top_p, mass);
    search.above = search.mass = 0;
    search.border = 0;
    search.n_equal = 0;
    return search;
}

// From the highest bin of a level down, the search goes on in the one in which the sum comes to this; all
// bins together may fall short of the goal: then in the last that has any.
DR_INDEX uint64_t dr_draw_target(const dr_draw_search *search, uint64_t all_bins) {
    const uint64_t left = search->goal - search->above;
    return left < all_bins ? left : all_bins;
}

DR_INDEX bool dr_draw_reaches(uint64_t before, uint64_t own, uint64_t target) {
    return before < target && before + own >= target;
}

// before: mass of the bins above the chosen one.
DR_INDEX void dr_draw_narrow(dr_draw_search *search, int level, int32_t bin, uint64_t before) {
    search->above += before;
    search->border = search->border << DR_DRAW_BITS | ((uint32_t)bin + dr_draw_first_bin(level));
}

// each: mass of one id at the border; all: of all of them, which the last level's bin holds.
DR_INDEX void dr_draw_settle(dr_draw_search *search, uint64_t each, uint64_t all) {
    const uint64_t wanted = (search->goal - search->above + each - 1) / each, there = all / each;
    search->n_equal = (int32_t)(wanted < there ? wanted : there);
    search->mass = search->above + (uint64_t)search->n_equal * each;
}

// Ids in front of a place, or of a part of a row: those above the border, with their mass, and those at it.
// Counts of parts that follow each other add up, whichever of the equal ones are kept.
typedef struct dr_draw_count {
    uint64_t mass;
    int32_t n_above, n_equal;
} dr_draw_count;

DR_INDEX dr_draw_count dr_draw_sum(dr_draw_count a, dr_draw_count b) {
    a.mass += b.mass;
    a.n_above += b.n_above;
    a.n_equal += b.n_equal;
    return a;
}

DR_INDEX int32_t dr_draw_kept(dr_draw_count count, int32_t n_equal) {
    return count.n_above + (count.n_equal < n_equal ? count.n_equal : n_equal);
}

DR_INDEX uint64_t dr_draw_kept_mass(dr_draw_count count, int32_t n_equal, uint64_t each) {
    return count.mass + (uint64_t)(dr_draw_kept(count, n_equal) - count.n_above) * each;
}

// ---- scratch ----

typedef struct dr_draw_state { // of a row
    uint64_t bins[DR_DRAW_LEVELS][DR_DRAW_BINS];
    uint64_t mass[DR_DRAW_WARPS]; // of the ids of a warp's chains
    float total[DR_DRAW_WARPS];   // sum of its chains
    dr_draw_search searches[DR_DRAW_LEVELS];
} dr_draw_state;

typedef struct dr_draw_piece { // of a row
    dr_draw_count count;
    float top;
} dr_draw_piece;

// Bytes for T rows: their states, then their pieces.
DR_INDEX int64_t dr_draw_bytes(int64_t T, int64_t V) {
    return T * ((int64_t)sizeof(dr_draw_state) + dr_draw_pieces(V) * (int64_t)sizeof(dr_draw_piece));
}

#endif
