// Drawing tokens: one block a row. Border of the kept set by a radix selection over masses in shared memory,
// then one walk through the row in the order of ids that lists the kept ones and finds the one drawn.
#include "cuda/softmax.cuh"

enum { THREADS = DR_SOFTMAX_THREADS, BINS = 1024 }; // ten bits of a float at a time

static const float LEAST = 0x1p-32f; // less than this part of the top is never kept

// What the threads of a block find out about their row.
typedef struct search {
    double above, mass; // of ids above the border; of the kept set
    uint32_t border;    // bits of the least kept p
    int32_t n_equal;    // kept ids that have just these, smaller ids first
    int32_t chosen;
} search;

// One thread: from the highest bin down to the one in which `wanted` is reached, or the last that has any.
static __device__ void choose_bin(const double *bins, double wanted, search *s) {
    int bin = BINS - 1, lowest = -1;
    for (; bin >= 0; bin--) {
        if (bins[bin] <= 0.0) continue;
        lowest = bin;
        if (s->above + bins[bin] >= wanted) break;
        s->above += bins[bin];
    }
    if (bin < 0) s->above -= bins[lowest];
    s->border = s->border << 10 | (uint32_t)lowest;
}

static __device__ void find_nucleus(const float *z, int64_t V, float top, float inv_temperature,
                                    double wanted, search *s) {
    __shared__ double bins[BINS];
    for (int shift = 20; shift >= 0; shift -= 10) {
        for (int i = threadIdx.x; i < BINS; i += THREADS) bins[i] = 0.0;
        __syncthreads();
        for (int64_t j = threadIdx.x; j < V; j += THREADS) {
            float p = expf(dr_exponent_of(z[j], top, inv_temperature));
            uint32_t bits = __float_as_uint(p);
            if (p >= LEAST && (shift == 20 || bits >> (shift + 10) == s->border))
                atomicAdd(&bins[bits >> shift & (BINS - 1)], dr_mass_of(p));
        }
        __syncthreads();
        if (threadIdx.x == 0) choose_bin(bins, wanted, s);
        __syncthreads();
    }
    // all of the last bin have the same p
    if (threadIdx.x > 0) return;
    double each = dr_mass_of(__uint_as_float(s->border)), all = bins[s->border & (BINS - 1)];
    s->mass = s->above;
    do {
        s->mass += each;
        s->n_equal++;
    } while (s->mass < wanted && s->mass < s->above + all);
}

// Writes the kept ids, rising, to kept_ids, and the first one up to which the mass is more than `mark` to
// s->chosen. Returns how many are kept. whole: every id is, and none is written.
static __device__ int32_t walk(const float *z, int64_t V, float top, float inv_temperature, bool whole,
                               double mark, int32_t *kept_ids, search *s) {
    double before = 0.0, mass;
    int32_t n_equal = 0, n_kept = 0, more;
    for (int64_t base = 0; base < V; base += THREADS) {
        const int64_t j = base + threadIdx.x;
        const float p = j < V ? expf(dr_exponent_of(z[j], top, inv_temperature)) : 0.0f;
        const uint32_t bits = __float_as_uint(p);
        int32_t equal = !whole && j < V && bits == s->border;
        int32_t equal_before = n_equal + dr_block_before<THREADS>(equal, &more);
        n_equal += more;
        int32_t keep = whole ? j < V : bits > s->border || (equal && equal_before < s->n_equal);
        int32_t place = n_kept + dr_block_before<THREADS>(keep, &more);
        n_kept += more;
        if (keep && !whole) kept_ids[place] = (int32_t)j;
        const double own = keep ? dr_mass_of(p) : 0.0, start = before + dr_block_before<THREADS>(own, &mass);
        before += mass;
        if (start <= mark && start + own > mark) s->chosen = (int32_t)j; // one thread at most, of all tiles
    }
    __syncthreads();
    return n_kept;
}

// The first id whose logit is NaN or +inf, V when there is none.
static __device__ int32_t first_bad(const float *z, int64_t V) {
    float first = (float)V;
    for (int64_t j = threadIdx.x; j < V; j += THREADS)
        if ((isnan(z[j]) || z[j] == INFINITY) && (float)j < first) first = (float)j;
    return (int32_t)-dr_block_max<THREADS>(-first);
}

static __device__ int32_t first_largest(const float *z, int64_t V, float top) {
    float first = (float)V; // of each thread; exact below 2^24 ids
    for (int64_t j = threadIdx.x; j < V; j += THREADS)
        if (z[j] == top && (float)j < first) first = (float)j;
    return (int32_t)-dr_block_max<THREADS>(-first);
}

static __device__ double whole_mass(const float *z, int64_t V, float top, float inv_temperature) {
    double mass = 0.0;
    for (int64_t j = threadIdx.x; j < V; j += THREADS)
        mass += dr_mass_of(expf(dr_exponent_of(z[j], top, inv_temperature)));
    return dr_block_sum<THREADS>(mass);
}

static __global__ void __launch_bounds__(THREADS)
    sample_kernel(const float *logits, int64_t V, const dr_cuda_draw *draws, const dr_draw_key *keys,
                  const dr_burst_row *rows, int32_t *kept_ids, dr_cuda_drawn *drawn) {
    __shared__ search s;
    if (rows && rows[blockIdx.x].is_finished) return;
    const float *z = logits + blockIdx.x * V;
    const dr_cuda_draw draw = draws[blockIdx.x];
    const uint32_t bits =
        keys ? dr_draw_ahead(&keys[blockIdx.x], (uint32_t)rows[blockIdx.x].n_drawn) : draw.bits;
    const dr_row_stats stats = dr_row_softmax(z, V, draw.inv_temperature);
    dr_cuda_drawn out = {-1, 0, 0.0f, 0.0f, 0};
    if (threadIdx.x == 0) s = search{0.0, 0.0, 0u, 0, 0};
    __syncthreads();
    if (isfinite(stats.lse)) {
        const double mass = whole_mass(z, V, stats.top, draw.inv_temperature);
        float kept_set_lse = stats.lse;
        if (draw.greedy) {
            out.id = first_largest(z, V, stats.top);
        } else if (draw.top_p >= 1.0f) {
            walk(z, V, stats.top, draw.inv_temperature, true, bits * 0x1p-32 * mass, NULL, &s);
            out.id = s.chosen;
        } else {
            find_nucleus(z, V, stats.top, draw.inv_temperature, (double)draw.top_p * mass, &s);
            __syncthreads();
            out.n_kept = walk(z, V, stats.top, draw.inv_temperature, false, bits * 0x1p-32 * s.mass,
                              kept_ids + blockIdx.x * V, &s);
            out.id = s.chosen;
            kept_set_lse = dr_lse_of(stats.top, draw.inv_temperature, (float)s.mass);
        }
        out.logprob = dr_device_logprob(z[out.id], draw.inv_temperature, stats.lse);
        out.logprob_kept =
            draw.greedy ? 0.0f : dr_device_logprob(z[out.id], draw.inv_temperature, kept_set_lse);
    } else { // what dr_sampling_refuse wants to know
        const int32_t bad = first_bad(z, V);
        out.n_kept = bad < V ? bad : -1;
        out.logprob = bad < V ? z[bad] : stats.top;
    }
    if (threadIdx.x == 0) drawn[blockIdx.x] = out;
}

extern "C" dr_status dr_cuda_sample(const float *logits, int64_t T, int64_t V, const dr_cuda_draw *draws,
                                    const dr_draw_key *keys, const dr_burst_row *rows, int32_t *kept_ids,
                                    dr_cuda_drawn *drawn, dr_cuda_stream stream) {
    unsigned int blocks = 0;
    if (T == 0) return DR_OK;
    DR_TRY(dr_cuda_grid("sample", T, 1, &blocks));
    DR_CUDA_LAUNCH(sample_kernel, blocks, THREADS, 0, stream)(logits, V, draws, keys, rows, kept_ids, drawn);
    DR_CUDA_LAUNCHED("sample of %lld x %lld", (long long)T, (long long)V);
    return DR_OK;
}
