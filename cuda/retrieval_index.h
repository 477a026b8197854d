// Index arithmetic of the retrieval model's kernels and of their gradients, as in index.h.
#ifndef DR_CUDA_RETRIEVAL_INDEX_H
#define DR_CUDA_RETRIEVAL_INDEX_H

#include "cuda/index.h"

// ---- fusion ----

// Frequencies of L positions.
DR_INDEX int64_t dr_frequencies(int64_t L) {
    return L / 2 + 1;
}

// Column d of request q's position l in [B, L, D], and of part k in spectra [B, 2 K, D], K frequencies' real
// parts and then their imaginary ones.
DR_INDEX int64_t dr_position_at(int64_t q, int64_t l, int64_t L, int64_t d, int64_t D) {
    return (q * L + l) * D + d;
}

DR_INDEX int64_t dr_spectrum_at(int64_t q, int64_t k, int64_t L, int64_t d, int64_t D) {
    return (q * 2 * dr_frequencies(L) + k) * D + d;
}

// Real part of a frequency's factor in a filter [K, D, 2]; the imaginary one stands behind it.
DR_INDEX int64_t dr_filter_at(int64_t k, int64_t d, int64_t D) {
    return 2 * (k * D + d);
}

// ---- padded attention ----

// What a block of the forward pass works on: request, head, row of the output.
typedef struct dr_padded_block {
    int64_t q, h, i;
} dr_padded_block;

DR_INDEX dr_padded_block dr_padded_block_of(int64_t block, int64_t n_asking, int64_t H) {
    dr_padded_block of;
    of.q = block / n_asking / H;
    of.h = block / n_asking % H;
    of.i = block % n_asking;
    return of;
}

// A head's query in qkv [B, L, 3, H, d]; H · d behind it stands its key, then its value. Its row of out
// [B, n_asking, H, d] and of the weights [B, H, n_asking, L].
DR_INDEX int64_t dr_padded_query_at(int64_t q, int64_t position, int64_t L, int64_t h, int64_t H, int64_t d) {
    return ((q * L + position) * 3 * H + h) * d;
}

DR_INDEX int64_t dr_padded_out_at(int64_t q, int64_t i, int64_t n_asking, int64_t h, int64_t H, int64_t d) {
    return ((q * n_asking + i) * H + h) * d;
}

DR_INDEX int64_t dr_padded_weights_at(int64_t q, int64_t h, int64_t H, int64_t i, int64_t n_asking,
                                      int64_t L) {
    return ((q * H + h) * n_asking + i) * L;
}

// ---- mixture ----

// Column d of part e of row t in [T, E, D].
DR_INDEX int64_t dr_mixture_at(int64_t t, int64_t e, int64_t E, int64_t d, int64_t D) {
    return (t * E + e) * D + d;
}

// ---- gradients ----

DR_INDEX int64_t dr_fusion_filter_size(int64_t L, int64_t D) { // floats
    return 2 * dr_frequencies(L) * D;
}

// Scratch of fusion_backward, in floats: what each of B requests adds to the filter's, both gates' and both
// biases' gradients, a row a request; then parts of the sums over these rows.
typedef struct dr_fusion_parts {
    int64_t filter, gate[2], bias[2], sums, total;
} dr_fusion_parts;

DR_INDEX dr_fusion_parts dr_fusion_parts_of(int64_t B, int64_t L, int64_t D) {
    const int64_t filter = dr_fusion_filter_size(L, D), widest = filter > L * D ? filter : L * D;
    dr_fusion_parts parts;
    parts.filter = 0;
    parts.gate[0] = B * filter;
    parts.gate[1] = parts.gate[0] + B * D;
    parts.bias[0] = parts.gate[1] + B * D;
    parts.bias[1] = parts.bias[0] + B;
    parts.sums = parts.bias[1] + B;
    parts.total = parts.sums + dr_chunk_count(B) * widest;
    return parts;
}

// The position that asks in row i of a padded attention's output, and the row in which a position asks, -1
// when it does not.
DR_INDEX int64_t dr_asking_position(bool last_only, int32_t length, int64_t i) {
    return last_only ? (int64_t)length - 1 : i;
}

DR_INDEX int64_t dr_asking_of(bool last_only, int32_t length, int64_t position) {
    if (!last_only) return position;
    return position == (int64_t)length - 1 ? 0 : -1;
}

// ---- pooling ----

// Rows whose mean stands for a sequence's: a first row is its own.
DR_INDEX int32_t dr_pooled_rows(int32_t n_rows, dr_pooling pooling) {
    return pooling == DR_POOL_FIRST && n_rows > 1 ? 1 : n_rows;
}

// ---- the best of a row ----

// Rises with the score and, among equal ones, falls with the column: no two columns have the same. 0: never
// among the best. score_bits: of the score, a float.
DR_INDEX uint64_t dr_hit_key(uint32_t score_bits, int32_t item) {
    uint32_t size = score_bits & 0x7FFFFFFFu;
    if (size > 0x7F800000u || score_bits == 0xFF800000u) return 0; // NaN, -inf
    uint32_t rank = size == 0 ? 0x80000000u : score_bits >> 31 ? ~score_bits : score_bits | 0x80000000u;
    return (uint64_t)rank << 32 | (0xFFFFFFFFu - (uint32_t)item);
}

DR_INDEX int32_t dr_hit_item(uint64_t key) {
    return (int32_t)(0xFFFFFFFFu - (uint32_t)key);
}

// A search, DR_HIT_BITS of the key at a time from the top: the best keys begin with `prefix` or are above it;
// `left` of those that begin with it are among them.
typedef struct dr_hit_search {
    uint64_t prefix;
    int32_t shift, left; // shift: bits behind the prefix
} dr_hit_search;
enum { DR_HIT_BITS = 8, DR_HIT_BINS = 1 << DR_HIT_BITS };

DR_INDEX dr_hit_search dr_hit_search_begin(int32_t k) {
    dr_hit_search search;
    search.prefix = 0;
    search.shift = 64;
    search.left = k;
    return search;
}

// The bin of a key in this step, or -1 when it does not begin with the prefix.
DR_INDEX int dr_hit_bin(const dr_hit_search *search, uint64_t key) {
    if (key == 0 || (search->shift < 64 && key >> search->shift != search->prefix)) return -1;
    return (int)(key >> (search->shift - DR_HIT_BITS) & (DR_HIT_BINS - 1));
}

// Goes on with the bin in which the search ends; counts [DR_HIT_BINS]. True: it is at its end, and the best
// are the keys from dr_hit_least on.
DR_INDEX bool dr_hit_narrow(dr_hit_search *search, const int32_t *counts) {
    int bin = DR_HIT_BINS - 1;
    for (; bin >= 0 && counts[bin] < search->left; bin--) search->left -= counts[bin];
    if (bin < 0) { // in the first step only: all that there are, and they are too few
        search->prefix = 1;
        search->shift = 0;
        return true;
    }
    search->shift -= DR_HIT_BITS;
    search->prefix = search->prefix << DR_HIT_BITS | (uint64_t)bin;
    return counts[bin] == search->left || search->shift == 0;
}

DR_INDEX uint64_t dr_hit_least(const dr_hit_search *search) {
    uint64_t least = search->prefix << search->shift;
    return least == 0 ? 1 : least;
}

// A step of a bitonic sort, largest first, of n (a power of two) keys: the lower place of pair i of n / 2,
// whose other place is `stride` behind it, and whether the larger key belongs to the lower place.
DR_INDEX int dr_bitonic_low(int i, int stride) {
    return i / stride * 2 * stride + i % stride;
}

DR_INDEX bool dr_bitonic_falls(int low, int run) { // run: length of the runs that the step makes
    return (low & run) == 0;
}

#endif
