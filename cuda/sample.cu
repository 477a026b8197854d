// Drawing tokens. A row is cut up, so that few rows keep a device busy too: its log-sum-exp by the warps of a
// block of the loss head, whose bits it has, everything else by pieces of ids. Six kernels, each of which
// needs what all blocks of a row did before: the largest logit; sums over the whole row; two steps of the
// search for the border of the kept set; what each piece holds of it; and the list of kept ids with the draw.
// What blocks of one row decide together, each of them computes for itself, of the same exact sums.
#include "cuda/draw_index.h"
#include "cuda/softmax.cuh"

enum { THREADS = DR_DRAW_THREADS, SUM_THREADS = DR_DRAW_SUM_THREADS };

typedef struct draw_work {
    const float *logits;
    int64_t V;
    const dr_cuda_draw *draws;
    const dr_draw_key *keys;
    const dr_burst_row *rows;
    dr_draw_state *states; // [T]
    dr_draw_piece *pieces; // [T, n_pieces]
    int32_t n_pieces;
    int32_t *kept_ids;
    dr_cuda_drawn *drawn;
} draw_work;

static __device__ __forceinline__ bool is_idle(const draw_work &w, int64_t t) {
    return w.rows && w.rows[t].is_finished;
}

static __device__ __forceinline__ bool keeps_part(const dr_cuda_draw &draw) {
    return !draw.greedy && draw.top_p < 1.0f;
}

static __device__ __forceinline__ float probability(float z, float top, float inv_temperature) {
    return expf(dr_exponent_of(z, top, inv_temperature));
}

// ---- histograms of masses ----

// 64-bit sums in two words: the shared memory of a multiprocessor adds words of 32 bits only by itself.
typedef struct histogram {
    uint32_t low[DR_DRAW_WORDS], high[DR_DRAW_WORDS];
} histogram;

// What a thread adds to one bin before it comes to another.
typedef struct run {
    uint64_t mass;
    int32_t bin; // -1: none
} run;

static __device__ __forceinline__ void flush_run(histogram *h, int level, const run &own) {
    if (own.bin < 0) return;
    const int32_t at = dr_draw_word(level, threadIdx.x / 32, own.bin);
    const uint32_t before = atomicAdd(&h->low[at], (uint32_t)own.mass);
    const uint32_t high = dr_draw_carried(own.mass, before);
    if (high > 0) atomicAdd(&h->high[at], high);
}

static __device__ __forceinline__ void add_to_run(histogram *h, int level, run *own, int32_t bin,
                                                  uint64_t mass) {
    if (bin < 0) return;
    if (bin != own->bin) {
        flush_run(h, level, *own);
        *own = run{0, bin};
    }
    own->mass += mass;
}

template <int SIZE> static __device__ __forceinline__ void clear_histogram(histogram *h) {
    for (int i = threadIdx.x; i < DR_DRAW_WORDS; i += SIZE) h->low[i] = h->high[i] = 0;
    __syncthreads();
}

// Behind all flushes: the copies, added up, to the row's sums.
template <int SIZE> static __device__ void give_histogram(const histogram *h, int level, uint64_t *bins) {
    __syncthreads();
    for (int bin = threadIdx.x; bin < dr_draw_level_bins(level); bin += SIZE) {
        uint64_t mass = 0;
        for (int copy = 0; copy < dr_draw_copies(level); copy++) {
            const int at = dr_draw_word(level, copy, bin);
            mass += (uint64_t)h->high[at] << 32 | h->low[at];
        }
        if (mass > 0) atomicAdd((unsigned long long *)&bins[bin], (unsigned long long)mass);
    }
}

// ---- what a row is ----

typedef struct draw_row {
    const float *z;
    dr_cuda_draw draw;
    float top, lse;
    uint64_t mass; // of all ids; where lse is a number
} draw_row;

// The same in every thread of a whole warp.
static __device__ float top_of(const draw_work &w, int64_t t) {
    float top = -INFINITY;
    for (int i = threadIdx.x % 32; i < w.n_pieces; i += 32)
        top = fmaxf(top, w.pieces[t * w.n_pieces + i].top);
    return dr_warp_max(top);
}

static __device__ draw_row row_of(const draw_work &w, int64_t t) {
    const dr_draw_state *state = &w.states[t];
    const int lane = threadIdx.x % 32;
    draw_row row;
    row.z = w.logits + t * w.V;
    row.draw = w.draws[t];
    row.top = top_of(w, t);
    float total = state->total[0];
    for (int i = 1; i < DR_DRAW_WARPS; i++) total = __fadd_rn(total, state->total[i]); // as dr_block_sum does
    row.lse = dr_lse_of(row.top, row.draw.inv_temperature, total);
    row.mass = dr_warp_sum(lane < DR_DRAW_WARPS ? state->mass[lane] : (uint64_t)0);
    return row;
}

// ---- the largest logit ----

static __global__ void __launch_bounds__(THREADS) top_kernel(const draw_work w) {
    const int64_t t = blockIdx.x / w.n_pieces;
    const int32_t piece = (int32_t)(blockIdx.x % w.n_pieces);
    if (is_idle(w, t)) return;
    const float *z = w.logits + t * w.V;
    float top = -INFINITY;
#pragma unroll
    for (int k = 0; k < DR_DRAW_OWN; k++) {
        const int64_t j = dr_draw_id(piece, threadIdx.x, k);
        top = fmaxf(top, j < w.V ? z[j] : -INFINITY);
    }
    top = dr_block_max<THREADS>(top);
    if (threadIdx.x == 0) w.pieces[blockIdx.x].top = top;
    if (!keeps_part(w.draws[t])) return;
    uint64_t *bins = &w.states[t].bins[0][0];
    for (int i = piece * THREADS + threadIdx.x; i < DR_DRAW_LEVELS * DR_DRAW_BINS; i += w.n_pieces * THREADS)
        bins[i] = 0;
}

// ---- sums over the row ----

// A warp of chains a block: all warps of it find p, and the first one adds it in the order of dr_row_softmax.
static __global__ void __launch_bounds__(SUM_THREADS) sums_kernel(const draw_work w) {
    enum { OWN = DR_DRAW_ROUNDS / (SUM_THREADS / 32) };
    __shared__ histogram h;
    __shared__ float staged[2][DR_DRAW_ROUNDS][32];
    const int64_t t = blockIdx.x / DR_DRAW_WARPS;
    const int32_t chains = (int32_t)(blockIdx.x % DR_DRAW_WARPS), lane = threadIdx.x % 32;
    const int32_t warp = threadIdx.x / 32;
    if (is_idle(w, t)) return;
    const float *z = w.logits + t * w.V, top = top_of(w, t);
    const dr_cuda_draw draw = w.draws[t];
    const bool is_searched = keeps_part(draw);
    const int64_t n_rounds = dr_ceil_div(w.V, DR_DRAW_CHAINS);
    uint64_t mass = 0;
    float total = 0.0f;
    run own = {0, -1};
    clear_histogram<SUM_THREADS>(&h);
    for (int64_t first = 0, at = 0; first < n_rounds; first += DR_DRAW_ROUNDS, at ^= 1) {
        float value[OWN];
#pragma unroll
        for (int k = 0; k < OWN; k++) {
            const int64_t j = dr_chain_id(first + warp * OWN + k, chains, lane);
            value[k] = j < w.V ? z[j] : -INFINITY;
        }
#pragma unroll
        for (int k = 0; k < OWN; k++) {
            const bool is_there = dr_chain_id(first + warp * OWN + k, chains, lane) < w.V;
            const float p = is_there ? probability(value[k], top, draw.inv_temperature) : 0.0f;
            const uint64_t part = dr_draw_mass(p);
            staged[at][warp * OWN + k][lane] = p;
            mass += part;
            if (is_searched) add_to_run(&h, 0, &own, dr_draw_bin(0, 0, __float_as_uint(p)), part);
        }
        __syncthreads(); // once: the other half is written next, and was read before the barrier in front of
                         // it
        if (warp > 0) continue;
#pragma unroll 16
        for (int i = 0; i < DR_DRAW_ROUNDS; i++) total = __fadd_rn(total, staged[at][i][lane]);
    }
    flush_run(&h, 0, own);
    mass = dr_block_sum<SUM_THREADS>(mass);
    if (warp == 0) total = dr_warp_sum(total);
    if (threadIdx.x == 0) {
        w.states[t].total[chains] = total;
        w.states[t].mass[chains] = mass;
    }
    if (is_searched) give_histogram<SUM_THREADS>(&h, 0, w.states[t].bins[0]);
}

// ---- the search ----

// Goes on with the bin of this level in which the search ends: the same in every thread of the block.
static __device__ dr_draw_search narrow(const uint64_t *bins, int level, dr_draw_search search) {
    enum { OWN = DR_DRAW_BINS / THREADS };
    __shared__ dr_draw_search found;
    const int32_t n_bins = dr_draw_level_bins(level);
    uint64_t own[OWN], sum = 0, all;
    for (int k = 0; k < OWN; k++) { // the highest bin first
        const int32_t bin = n_bins - 1 - (int32_t)(threadIdx.x * OWN + k);
        sum += own[k] = bin < 0 ? 0 : bins[bin];
    }
    uint64_t before = dr_block_before<THREADS>(sum, &all);
    const uint64_t target = dr_draw_target(&search, all);
    for (int k = 0; k < OWN; k++) {
        if (dr_draw_reaches(before, own[k], target)) { // one thread, once
            dr_draw_narrow(&search, level, n_bins - 1 - (int32_t)(threadIdx.x * OWN + k), before);
            if (level == DR_DRAW_LEVELS - 1)
                dr_draw_settle(&search, dr_draw_mass(__uint_as_float(search.border)), own[k]);
            found = search;
        }
        before += own[k];
    }
    __syncthreads();
    return found;
}

// Of a row whose log-sum-exp is a number: what level `level` found, which the row's first block leaves for
// the kernels behind.
static __device__ dr_draw_search narrow_row(const draw_work &w, int64_t t, const draw_row &row, int level,
                                            bool is_first) {
    dr_draw_state *state = &w.states[t];
    const dr_draw_search search =
        narrow(state->bins[level], level,
               level == 0 ? dr_draw_search_begin(row.draw.top_p, row.mass) : state->searches[level - 1]);
    if (is_first && threadIdx.x == 0) state->searches[level] = search;
    return search;
}

// Behind the histogram of the level before LEVEL: that of LEVEL.
template <int LEVEL> static __global__ void __launch_bounds__(THREADS) search_kernel(const draw_work w) {
    __shared__ histogram h;
    const int64_t t = blockIdx.x / w.n_pieces;
    const int32_t piece = (int32_t)(blockIdx.x % w.n_pieces);
    if (is_idle(w, t) || !keeps_part(w.draws[t])) return;
    const draw_row row = row_of(w, t);
    if (!isfinite(row.lse)) return;
    float value[DR_DRAW_OWN];
#pragma unroll
    for (int k = 0; k < DR_DRAW_OWN; k++) {
        const int64_t j = dr_draw_id(piece, threadIdx.x, k);
        value[k] = j < w.V ? row.z[j] : -INFINITY; // whose p is not kept
    }
    const dr_draw_search search = narrow_row(w, t, row, LEVEL - 1, piece == 0);
    clear_histogram<THREADS>(&h);
    run own = {0, -1};
#pragma unroll
    for (int k = 0; k < DR_DRAW_OWN; k++) {
        const float p = probability(value[k], row.top, row.draw.inv_temperature);
        add_to_run(&h, LEVEL, &own, dr_draw_bin(LEVEL, search.border, __float_as_uint(p)), dr_draw_mass(p));
    }
    flush_run(&h, LEVEL, own);
    give_histogram<THREADS>(&h, LEVEL, w.states[t].bins[LEVEL]);
}

// ---- what each piece holds ----

// Of the whole vocabulary every id counts as above the border.
static __device__ __forceinline__ dr_draw_count count_of(float p, bool is_there, bool is_whole,
                                                         uint32_t border) {
    const uint32_t bits = __float_as_uint(p);
    const bool is_above = is_there && (is_whole || bits > border);
    dr_draw_count count;
    count.mass = is_above ? dr_draw_mass(p) : 0;
    count.n_above = is_above;
    count.n_equal = is_there && !is_whole && bits == border;
    return count;
}

static __device__ __forceinline__ dr_draw_count warp_count(dr_draw_count own) {
    own.mass = dr_warp_sum(own.mass);
    own.n_above = dr_warp_sum(own.n_above);
    own.n_equal = dr_warp_sum(own.n_equal);
    return own;
}

// p of a thread's ids of a piece; less than 0 behind the end of the row.
static __device__ __forceinline__ void piece_probabilities(const draw_row &row, int64_t V, int32_t piece,
                                                           float *p) {
#pragma unroll
    for (int k = 0; k < DR_DRAW_OWN; k++) {
        const int64_t j = dr_draw_id(piece, threadIdx.x, k);
        p[k] = j < V ? row.z[j] : 0.0f;
    }
#pragma unroll
    for (int k = 0; k < DR_DRAW_OWN; k++)
        p[k] = dr_draw_id(piece, threadIdx.x, k) < V ? probability(p[k], row.top, row.draw.inv_temperature)
                                                     : -1.0f;
}

static __global__ void __launch_bounds__(THREADS) count_kernel(const draw_work w) {
    const int64_t t = blockIdx.x / w.n_pieces;
    const int32_t piece = (int32_t)(blockIdx.x % w.n_pieces);
    if (is_idle(w, t) || w.draws[t].greedy) return;
    const draw_row row = row_of(w, t);
    const bool is_whole = !keeps_part(row.draw);
    if (!isfinite(row.lse)) return;
    const uint32_t border = is_whole ? 0 : narrow_row(w, t, row, DR_DRAW_LEVELS - 1, piece == 0).border;
    float p[DR_DRAW_OWN];
    piece_probabilities(row, w.V, piece, p);
    dr_draw_count count = {0, 0, 0};
#pragma unroll
    for (int k = 0; k < DR_DRAW_OWN; k++)
        count = dr_draw_sum(count, count_of(p[k], p[k] >= 0.0f, is_whole, border));
    count.mass = dr_block_sum<THREADS>(count.mass);
    count.n_above = dr_block_sum<THREADS>(count.n_above);
    count.n_equal = dr_block_sum<THREADS>(count.n_equal);
    if (threadIdx.x == 0) w.pieces[blockIdx.x].count = count;
}

// ---- the list and the draw ----

// The first id whose logit is NaN or +inf, V when there is none.
static __device__ int32_t first_bad(const float *z, int64_t V) {
    float first = (float)V; // of each thread; exact below 2^24 ids
    for (int64_t j = threadIdx.x; j < V; j += THREADS)
        if ((isnan(z[j]) || z[j] == INFINITY) && (float)j < first) first = (float)j;
    return (int32_t)-dr_block_max<THREADS>(-first);
}

// What dr_sampling_refuse wants to know.
static __device__ void refuse(const draw_work &w, const draw_row &row, dr_cuda_drawn *drawn) {
    const int32_t bad = first_bad(row.z, w.V);
    if (threadIdx.x == 0) *drawn = {-1, bad < w.V ? bad : -1, bad < w.V ? row.z[bad] : row.top, 0.0f, 0};
}

static __device__ void draw_greedy(const draw_work &w, const draw_row &row, int64_t t, int32_t piece,
                                   dr_cuda_drawn *drawn) {
    const dr_draw_piece *pieces = w.pieces + t * w.n_pieces;
    for (int i = 0; i < piece; i++)
        if (pieces[i].top == row.top) return;
    if (pieces[piece].top != row.top) return;
    float first = (float)DR_DRAW_PIECE; // within the piece
    for (int k = 0; k < DR_DRAW_OWN; k++) {
        const int64_t j = dr_draw_id(piece, threadIdx.x, k), within = j - (int64_t)piece * DR_DRAW_PIECE;
        if (j < w.V && row.z[j] == row.top && (float)within < first) first = (float)within;
    }
    first = -dr_block_max<THREADS>(-first);
    if (threadIdx.x > 0) return;
    const int32_t id = piece * DR_DRAW_PIECE + (int32_t)first;
    *drawn = {id, 0, dr_device_logprob(row.z[id], row.draw.inv_temperature, row.lse), 0.0f, 0};
}

// How a row is drawn: from its kept set, or from all of it.
typedef struct draw_set {
    bool is_whole;
    uint32_t border;
    int32_t n_equal, n_kept; // 0 of the whole vocabulary
    uint64_t each, mass, mark;
} draw_set;

static __device__ draw_set set_of(const draw_work &w, const draw_row &row, int64_t t, dr_draw_count all) {
    const uint32_t bits = w.keys ? dr_draw_ahead(&w.keys[t], (uint32_t)w.rows[t].n_drawn) : row.draw.bits;
    draw_set set = {true, 0, 0, 0, 0, row.mass, 0};
    if (keeps_part(row.draw)) {
        const dr_draw_search search = w.states[t].searches[DR_DRAW_LEVELS - 1];
        const uint64_t each = dr_draw_mass(__uint_as_float(search.border));
        set = {false, search.border, search.n_equal, dr_draw_kept(all, search.n_equal), each, search.mass, 0};
    }
    set.mark = dr_draw_mark(bits, set.mass);
    return set;
}

// All lanes of the warp whose ids the mark is among, or of any other; `before`: what is in front of them.
static __device__ void find_drawn(const draw_row &row, const draw_set &set, dr_draw_count before,
                                  int32_t piece, const float *p, dr_cuda_drawn *drawn) {
    __shared__ float kept_p[DR_DRAW_OWN][32]; // each lane's own: registers would have to be unrolled
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < DR_DRAW_OWN; k++) kept_p[k][lane] = p[k];
#pragma unroll 1
    for (int k = 0; k < DR_DRAW_OWN; k++) {
        const float value = kept_p[k][lane];
        const dr_draw_count own = count_of(value, value >= 0.0f, set.is_whole, set.border);
        dr_draw_count through = own;
        for (int width = 1; width < 32; width *= 2) {
            const dr_draw_count other = {__shfl_up_sync(0xffffffffu, through.mass, width),
                                         __shfl_up_sync(0xffffffffu, through.n_above, width),
                                         __shfl_up_sync(0xffffffffu, through.n_equal, width)};
            if (lane >= width) through = dr_draw_sum(through, other);
        }
        through = dr_draw_sum(before, through);
        const uint64_t end = dr_draw_kept_mass(through, set.n_equal, set.each);
        dr_draw_count in_front = through;
        in_front.mass -= own.mass;
        in_front.n_above -= own.n_above;
        in_front.n_equal -= own.n_equal;
        if (dr_draw_kept_mass(in_front, set.n_equal, set.each) <= set.mark && end > set.mark) {
            const int32_t id = (int32_t)dr_draw_id(piece, threadIdx.x, k);
            const float lse =
                set.is_whole ? row.lse
                             : dr_lse_of(row.top, row.draw.inv_temperature, (float)dr_draw_real(set.mass));
            *drawn = {id, set.n_kept, dr_device_logprob(row.z[id], row.draw.inv_temperature, row.lse),
                      dr_device_logprob(row.z[id], row.draw.inv_temperature, lse), 0};
        }
        before.mass = __shfl_sync(0xffffffffu, through.mass, 31);
        before.n_above = __shfl_sync(0xffffffffu, through.n_above, 31);
        before.n_equal = __shfl_sync(0xffffffffu, through.n_equal, 31);
    }
}

// The kept ids of a warp, whose list begins where `before` says.
static __device__ void list_kept(const draw_set &set, dr_draw_count before, int32_t piece, const float *p,
                                 int32_t *kept_ids) {
    const uint32_t lower = (1u << threadIdx.x % 32) - 1;
#pragma unroll
    for (int k = 0; k < DR_DRAW_OWN; k++) {
        const dr_draw_count own = count_of(p[k], p[k] >= 0.0f, false, set.border);
        const uint32_t above = __ballot_sync(0xffffffffu, own.n_above),
                       equal = __ballot_sync(0xffffffffu, own.n_equal);
        const int32_t equal_before = before.n_equal + __popc(equal & lower);
        if (own.n_above > 0 || (own.n_equal > 0 && equal_before < set.n_equal)) {
            const dr_draw_count in_front = {0, before.n_above + __popc(above & lower), equal_before};
            kept_ids[dr_draw_kept(in_front, set.n_equal)] = (int32_t)dr_draw_id(piece, threadIdx.x, k);
        }
        before.n_above += __popc(above);
        before.n_equal += __popc(equal);
    }
}

static __device__ void draw_kept(const draw_work &w, const draw_row &row, int64_t t, int32_t piece,
                                 dr_cuda_drawn *drawn) {
    __shared__ dr_draw_count warps[THREADS / 32];
    const int32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    dr_draw_count before = {0, 0, 0}, all = {0, 0, 0};
    for (int i = lane; i < w.n_pieces; i += 32) { // in every warp
        const dr_draw_count count = w.pieces[t * w.n_pieces + i].count;
        all = dr_draw_sum(all, count);
        if (i < piece) before = dr_draw_sum(before, count);
    }
    before = warp_count(before);
    const draw_set set = set_of(w, row, t, warp_count(all));
    const dr_draw_count through = dr_draw_sum(before, w.pieces[t * w.n_pieces + piece].count);
    const bool has_kept = dr_draw_kept(through, set.n_equal) > dr_draw_kept(before, set.n_equal);
    const bool has_mark = dr_draw_kept_mass(before, set.n_equal, set.each) <= set.mark &&
                          dr_draw_kept_mass(through, set.n_equal, set.each) > set.mark;
    if (!has_mark && (set.is_whole || !has_kept)) return; // the whole block
    float p[DR_DRAW_OWN];
    piece_probabilities(row, w.V, piece, p);
    dr_draw_count own = {0, 0, 0};
#pragma unroll
    for (int k = 0; k < DR_DRAW_OWN; k++)
        own = dr_draw_sum(own, count_of(p[k], p[k] >= 0.0f, set.is_whole, set.border));
    own = warp_count(own);
    if (lane == 0) warps[warp] = own;
    __syncthreads();
    for (int i = 0; i < warp; i++) before = dr_draw_sum(before, warps[i]);
    if (!set.is_whole) list_kept(set, before, piece, p, w.kept_ids + t * w.V);
    own = dr_draw_sum(before, own);
    if (dr_draw_kept_mass(before, set.n_equal, set.each) <= set.mark &&
        dr_draw_kept_mass(own, set.n_equal, set.each) > set.mark)
        find_drawn(row, set, before, piece, p, drawn);
}

static __global__ void __launch_bounds__(THREADS, 2) draw_kernel(const draw_work w) {
    const int64_t t = blockIdx.x / w.n_pieces;
    const int32_t piece = (int32_t)(blockIdx.x % w.n_pieces);
    if (is_idle(w, t)) return;
    const draw_row row = row_of(w, t);
    if (!isfinite(row.lse)) {
        if (piece == 0) refuse(w, row, &w.drawn[t]);
    } else if (row.draw.greedy) {
        draw_greedy(w, row, t, piece, &w.drawn[t]);
    } else {
        draw_kept(w, row, t, piece, &w.drawn[t]);
    }
}

extern "C" dr_status dr_cuda_sample(const float *logits, int64_t T, int64_t V, const dr_cuda_draw *draws,
                                    const dr_draw_key *keys, const dr_burst_row *rows, void *scratch,
                                    int32_t *kept_ids, dr_cuda_drawn *drawn, dr_cuda_stream stream) {
    unsigned int pieces = 0, warps = 0;
    if (T == 0) return DR_OK;
    dr_draw_state *states = (dr_draw_state *)scratch;
    const draw_work work = {
        logits,   V,    draws, keys, rows, states, (dr_draw_piece *)(states + T), dr_draw_pieces(V),
        kept_ids, drawn};
    DR_TRY(dr_cuda_grid("sample", T * work.n_pieces, 1, &pieces));
    DR_TRY(dr_cuda_grid("sample", T * DR_DRAW_WARPS, 1, &warps));
    DR_CUDA_LAUNCH(top_kernel, pieces, THREADS, 0, stream)(work);
    DR_CUDA_LAUNCH(sums_kernel, warps, SUM_THREADS, 0, stream)(work);
    DR_CUDA_LAUNCH(search_kernel<1>, pieces, THREADS, 0, stream)(work);
    DR_CUDA_LAUNCH(search_kernel<2>, pieces, THREADS, 0, stream)(work);
    DR_CUDA_LAUNCH(count_kernel, pieces, THREADS, 0, stream)(work);
    DR_CUDA_LAUNCH(draw_kernel, pieces, THREADS, 0, stream)(work);
    DR_CUDA_LAUNCHED("sample of %lld x %lld", (long long)T, (long long)V);
    return DR_OK;
}
