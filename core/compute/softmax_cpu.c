// The softmax of a row of logits: its log-sum-exp and entropy, the same over a kept set, and draws from it.
// p is a probability in units of the largest one. Masses of sets of ids are sums of p rounded to multiples of
// 2^-32, which a double holds without error up to 2^21 ids: no order of adding changes them, so that what the
// sampler finds while it looks for the nucleus is, bit for bit, what the training pass sums over the kept
// set.
#include <omp.h>

#include "core/base/alloc.h"
#include "core/compute/cpu_internal.h"

enum {
    BINS = 1024,      // ten bits of a float at a time
    FEW = 256,        // candidates that are not worth a further sieve
    SIEVE_STEPS = 4,  // floors that one sieve tries
    SIEVE_FACTOR = 4, // between two of them
    ROW_ARRAYS = 4    // of V elements, in a thread's scratch
};

static const float LEAST = 0x1p-32f; // less than this part of the top is never kept

DR_INLINE double mass_of(float p) {
    return ((double)p + 0x1.8p20) - 0x1.8p20; // whose last bit is 2^-32
}

// 16 ids' masses, four sums at a time.
typedef double four_sums __attribute__((vector_size(32)));
typedef float four_floats __attribute__((vector_size(16), aligned(4)));

DR_INLINE void add_masses(const float *p, four_sums *sums) {
    for (int i = 0; i < DR_LANES; i += 4) {
        four_sums mass = __builtin_convertvector(*(const four_floats *)(p + i), four_sums);
        *sums += mass + 0x1.8p20 - 0x1.8p20;
    }
}

DR_INLINE double sum_of(const four_sums *sums) {
    return (*sums)[0] + (*sums)[1] + (*sums)[2] + (*sums)[3];
}

DR_INLINE float lse_of(float top, float inv_temperature, float total) {
    return fmaf(top, inv_temperature, logf(total));
}

// ---- a whole row ----

typedef struct row_stats {
    float top, total; // total in units of the top's
    float lse, entropy;
} row_stats;

// z [V]; p [V] is written where `keep`. 16 fixed lanes. A NaN or +inf among z, or nothing finite, makes lse a
// NaN.
DR_INLINE void row_body(bool keep, const float *z, int64_t V, float inv_temperature, float *p,
                        row_stats *out) {
    float top = dr_largest(z, V);
    vec8 sums[2] = {{0}}, weighted[2] = {{0}};
    int64_t j = 0;
    for (; j + DR_LANES <= V; j += DR_LANES)
        for (int half = 0; half < 2; half++) {
            vec8 x = (DR_LOAD8(z + j + 8 * half) - top) * inv_temperature, e;
            int8v low = x < -87.0f;
            dr_expf8(&x, &e);
            sums[half] += e;
            weighted[half] += e * DR_SELECT8(low, DR_SAME8(-87.0f), x); // finite: 0 where e is
            if (keep) *(vec8 *)(p + j + 8 * half) = e;
        }
    float lanes[DR_LANES], weighted_lanes[DR_LANES];
    memcpy(lanes, sums, sizeof lanes);
    memcpy(weighted_lanes, weighted, sizeof weighted_lanes);
    for (int l = 0; j + l < V; l++) {
        float x = (z[j + l] - top) * inv_temperature, e = dr_expf(x);
        lanes[l] += e;
        weighted_lanes[l] += e * (x < -87.0f ? -87.0f : x);
        if (keep) p[j + l] = e;
    }
    float total = dr_lane_sum(lanes);
    *out = (row_stats){.top = top, .total = total, .lse = lse_of(top, inv_temperature, total)};
    out->entropy = logf(total) - dr_lane_sum(weighted_lanes) / total;
}

static DR_HOT void row_softmax(const float *z, int64_t V, float inv_temperature, row_stats *out) {
    row_body(false, z, V, inv_temperature, NULL, out);
}

static DR_HOT void row_probabilities(const float *z, int64_t V, float inv_temperature, float *p,
                                     row_stats *out) {
    row_body(true, z, V, inv_temperature, p, out);
}

static DR_HOT float row_kept_lse(const float *z, const dr_kept *kept, float inv_temperature) {
    float top = -INFINITY, gathered[DR_LANES];
    four_sums sums = {0};
    for (int32_t k = 0; k < kept->n; k++) top = z[kept->ids[k]] > top ? z[kept->ids[k]] : top;
    for (int32_t k = 0; k < kept->n; k += DR_LANES) {
        int32_t n = kept->n - k < DR_LANES ? kept->n - k : DR_LANES;
        for (int l = 0; l < DR_LANES; l++) gathered[l] = l < n ? z[kept->ids[k + l]] : -INFINITY;
        for (int half = 0; half < DR_LANES; half += 8) {
            vec8 x = (DR_LOAD8(gathered + half) - top) * inv_temperature;
            dr_expf8(&x, (vec8 *)(gathered + half));
        }
        add_masses(gathered, &sums);
    }
    return lse_of(top, inv_temperature, (float)sum_of(&sums));
}

static void softmax_stats(dr_backend *b, const float *logits, int64_t T, int64_t V, float temperature,
                          float *lse, float *entropy) {
    float inv = 1.0f / temperature;
#pragma omp parallel for num_threads(b->n_threads) schedule(static) if (b->n_threads > 1 && T > 1)
    for (int64_t t = 0; t < T; t++) {
        row_stats stats;
        row_softmax(logits + t * V, V, inv, &stats);
        lse[t] = stats.lse;
        entropy[t] = stats.entropy;
    }
}

static void kept_lse(dr_backend *b, const float *logits, int64_t T, int64_t V, float temperature,
                     const dr_kept *kept, float *lse) {
    float inv = 1.0f / temperature;
#pragma omp parallel for num_threads(b->n_threads) schedule(dynamic) if (b->n_threads > 1 && T > 1)
    for (int64_t t = 0; t < T; t++)
        if (kept[t].n > 0) lse[t] = row_kept_lse(logits + t * V, &kept[t], inv);
}

// ---- the nucleus ----

// Ids in rising order with their p. Every id of the nucleus is among them.
typedef struct candidates {
    int32_t *ids;
    float *p;
    int32_t n;
} candidates;

DR_INLINE bool any_at_least(const float *p, float floor) {
    typedef int64_t four_ids __attribute__((vector_size(32)));
    four_ids mask = (four_ids)((DR_LOAD8(p) >= floor) | (DR_LOAD8(p + 8) >= floor));
    return mask[0] | mask[1] | mask[2] | mask[3];
}

// Those whose p is at least `floor`. Returns the mass of all V ids.
static DR_HOT double collect(const float *p, int64_t V, float floor, candidates *c) {
    four_sums sums = {0};
    double total = 0;
    int32_t n = 0;
    int64_t j = 0;
    for (; j + DR_LANES <= V; j += DR_LANES) {
        add_masses(p + j, &sums);
        if (!any_at_least(p + j, floor)) continue;
        for (int l = 0; l < DR_LANES; l++) {
            c->ids[n] = (int32_t)j + l;
            c->p[n] = p[j + l];
            n += p[j + l] >= floor;
        }
    }
    for (; j < V; j++) {
        total += mass_of(p[j]);
        c->ids[n] = (int32_t)j;
        c->p[n] = p[j];
        n += p[j] >= floor;
    }
    c->n = n;
    return total + sum_of(&sums);
}

// A higher floor above which the mass still is more than `wanted`, with room for the rounding of these sums;
// the old one where none of those tried is.
static DR_HOT float higher_floor(const candidates *c, float floor, double wanted) {
    vec8 sums[SIEVE_STEPS] = {{0}};
    float floors[SIEVE_STEPS];
    for (int s = 0; s < SIEVE_STEPS; s++) floors[s] = (s ? floors[s - 1] : floor) * SIEVE_FACTOR;
    for (int32_t i = 0; i + 8 <= c->n; i += 8) { // what is left over counts as nothing
        vec8 p = DR_LOAD8(c->p + i);
        for (int s = 0; s < SIEVE_STEPS; s++) sums[s] += (vec8)((p >= floors[s]) & (int8v)p);
    }
    for (int s = SIEVE_STEPS - 1; s >= 0; s--) {
        float mass = 0;
        for (int l = 0; l < 8; l++) mass += sums[s][l];
        if (mass >= wanted * 1.01) return floors[s];
    }
    return floor;
}

static DR_HOT void drop_below(candidates *c, float floor) {
    int32_t n = 0;
    for (int32_t i = 0; i < c->n; i++) {
        float p = c->p[i];
        c->ids[n] = c->ids[i];
        c->p[n] = p;
        n += p >= floor;
    }
    c->n = n;
}

// V ids below `floor` = (1 - top_p) · total / V have less than 1 - top_p of the mass between them: the
// nucleus is reached without them. A little lower, for the rounding of the total. Returns the mass to be
// reached.
static double find_candidates(const float *p, int64_t V, float total, float top_p, candidates *c) {
    float floor = ((1.0f - top_p) * 0.99f - 1e-4f) * total / (float)V;
    if (!(floor > LEAST)) floor = LEAST;
    double wanted = (double)top_p * collect(p, V, floor, c);
    while (c->n > FEW) {
        float higher = higher_floor(c, floor, wanted);
        if (higher == floor) break;
        drop_below(c, floor = higher);
    }
    return wanted;
}

static uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

// Where the kept set ends: ids whose p has more than these bits are in it, and `n_equal` of those that have
// just these, smaller ids first. mass: of the set.
typedef struct nucleus {
    uint32_t border;
    int32_t n_equal;
    double mass;
} nucleus;

// The smallest set of most probable ids whose mass reaches `wanted`. A radix selection: the bits of positive
// floats sort as the floats do, so masses by their high ten bits, then the next ten inside the bin where the
// mass is reached, then the last ten, find the border whatever the distribution is. same [n]: scratch.
static nucleus find_nucleus(const candidates *c, double wanted, float *same) {
    double bins[BINS], above = 0;
    uint32_t border = 0;
    const float *p = c->p;
    int32_t n = c->n;
    for (int shift = 20; shift >= 0; shift -= 10) {
        memset(bins, 0, sizeof bins);
        for (int32_t i = 0; i < n; i++) bins[bits_of(p[i]) >> shift & (BINS - 1)] += mass_of(p[i]);
        int32_t bin = BINS - 1, lowest = -1; // all of them may fall short of it: then the last that has any
        for (; bin >= 0; bin--) {
            if (bins[bin] <= 0) continue;
            lowest = bin;
            if (above + bins[bin] >= wanted) break;
            above += bins[bin];
        }
        if (bin < 0) above -= bins[lowest];
        border = border << 10 | (uint32_t)lowest;
        int32_t n_same = 0;
        for (int32_t i = 0; i < n; i++) {
            float value = p[i];
            same[n_same] = value;
            n_same += bits_of(value) >> shift == border;
        }
        p = same;
        n = n_same;
    }
    nucleus found = {.border = border, .mass = above};
    while (found.n_equal < n && (found.mass < wanted || found.n_equal == 0)) {
        found.mass += mass_of(p[0]);
        found.n_equal++;
    }
    return found;
}

static void keep_nucleus(candidates *c, const nucleus *found) {
    int32_t n = 0, equal_left = found->n_equal;
    for (int32_t i = 0; i < c->n; i++) {
        uint32_t bits = bits_of(c->p[i]);
        int32_t is_equal = bits == found->border,
                is_kept = bits > found->border || (is_equal && equal_left > 0);
        c->ids[n] = c->ids[i];
        c->p[n] = c->p[i];
        equal_left -= is_equal;
        n += is_kept;
    }
    c->n = n;
}

// ---- the draw ----

static DR_HOT double mass_of_all(const float *p, int64_t n) {
    four_sums sums = {0};
    double total = 0;
    int64_t j = 0;
    for (; j + DR_LANES <= n; j += DR_LANES) add_masses(p + j, &sums);
    for (; j < n; j++) total += mass_of(p[j]);
    return total + sum_of(&sums);
}

// The first place up to which the mass is more than `mark`, a mark below the whole.
static DR_HOT int64_t place_of(const float *p, int64_t n, double mark) {
    double before = 0;
    int64_t j = 0, last = 0;
    for (; j + DR_LANES <= n; j += DR_LANES) {
        four_sums sums = {0};
        add_masses(p + j, &sums);
        if (before + sum_of(&sums) > mark) break;
        before += sum_of(&sums);
    }
    for (; j < n; j++) {
        double mass = mass_of(p[j]);
        before += mass;
        if (before > mark) return j;
        if (mass > 0) last = j;
    }
    return last; // sums that are not exact, of more ids than 2^21, may fall short of it
}

static int32_t first_at(const float *z, int64_t V, float value) {
    int32_t i = 0;
    while (i < V - 1 && z[i] != value) i++;
    return i;
}

// One row; scratch: ROW_ARRAYS · V floats; kept: this row's, that `out` points into. DR_ERR_NUMERIC without a
// word: the caller says what is wrong, on its own thread.
static dr_status draw_row(const float *z, int64_t V, const dr_sampling *how, uint32_t bits, float *scratch,
                          dr_scratch *kept, dr_sampled *out) {
    row_stats stats;
    bool is_greedy = how->temperature == 0;
    float temperature = is_greedy ? 1.0f : how->temperature, inv = 1.0f / temperature, *p = scratch;
    candidates c = {.ids = (int32_t *)(scratch + V), .p = scratch + 2 * V};
    row_probabilities(z, V, inv, p, &stats);
    if (!isfinite(stats.lse)) return DR_ERR_NUMERIC;
    dr_sampled drawn = {0};
    float kept_set_lse = stats.lse;
    if (is_greedy) {
        drawn.id = first_at(z, V, stats.top);
    } else if (how->top_p >= 1.0f) {
        drawn.id = (int32_t)place_of(p, V, bits * 0x1p-32 * mass_of_all(p, V));
    } else {
        double wanted = find_candidates(p, V, stats.total, how->top_p, &c);
        nucleus found = find_nucleus(&c, wanted, scratch + 3 * V);
        keep_nucleus(&c, &found);
        dr_status status = dr_scratch_reserve(kept, c.n < 1024 && V > 1024 ? 1024 : c.n);
        if (status != DR_OK) return status;
        drawn.kept = (dr_kept){memcpy(kept->data, c.ids, (size_t)c.n * sizeof *c.ids), c.n};
        drawn.id = c.ids[place_of(c.p, c.n, bits * 0x1p-32 * found.mass)];
        kept_set_lse = lse_of(stats.top, inv, (float)found.mass);
    }
    drawn.logprob = dr_logprob_of(z[drawn.id], temperature, stats.lse);
    drawn.logprob_kept = is_greedy ? 0.0f : dr_logprob_of(z[drawn.id], temperature, kept_set_lse);
    *out = drawn;
    return DR_OK;
}

int64_t dr_cpu_draw_floats(const dr_pass_shape *s) {
    return ROW_ARRAYS * s->V;
}

dr_status dr_cpu_reserve_draws(dr_backend *b, int64_t n_draws, int64_t V) {
    dr_cpu_state *state = dr_cpu_state_of(b);
    if (n_draws > state->n_kept) {
        DR_TRY(dr_grow(&state->kept, "kept sets", state->n_kept, n_draws, sizeof *state->kept));
        state->n_kept = n_draws;
    }
    for (int i = 0; i < b->n_threads; i++) DR_TRY(dr_scratch_reserve(&state->thread[i], ROW_ARRAYS * V));
    return DR_OK;
}

dr_status dr_cpu_draw(dr_backend *b, const float *logits, int64_t T, int64_t V, const dr_cpu_draws *draws) {
    dr_cpu_state *state = dr_cpu_state_of(b);
    int64_t failed = T; // the first row that did
    dr_status failure = DR_OK;
#pragma omp parallel for num_threads(b->n_threads) schedule(dynamic) if (b->n_threads > 1 && T > 1)
    for (int64_t t = 0; t < T; t++) {
        if (draws->rows && draws->rows[t].is_finished) continue;
        dr_status status =
            draw_row(logits + t * V, V, &draws->settings[t], draws->bits[t],
                     state->thread[omp_get_thread_num()].data, &draws->kept[t], &draws->out[t]);
        if (status == DR_OK) continue;
#pragma omp critical(dr_sample_failure)
        if (t < failed) {
            failed = t;
            failure = status;
        }
    }
    if (failure == DR_ERR_NUMERIC) {
        dr_bad_logit bad = dr_bad_logit_of(logits + failed * V, V);
        return dr_sampling_refuse(&bad, draws->step, failed, draws->settings[failed].temperature);
    }
    DR_CHECK(failure == DR_OK, failure, "sampling, row %lld: no memory for its kept set", (long long)failed);
    return DR_OK;
}

static dr_status sample(dr_backend *b, const float *logits, int64_t T, int64_t V, const dr_sampling *how,
                        const uint32_t *bits, dr_sampled *out) {
    for (int64_t t = 0; t < T; t++) DR_TRY(dr_sampling_check(&how[t]));
    DR_TRY(dr_cpu_reserve_draws(b, T, V));
    const dr_cpu_draws draws = {.settings = how, .bits = bits, .kept = dr_cpu_state_of(b)->kept, .out = out};
    return dr_cpu_draw(b, logits, T, V, &draws);
}

void dr_cpu_fill_softmax(dr_backend_ops *ops) {
    ops->softmax_stats = softmax_stats;
    ops->kept_lse = kept_lse;
    ops->sample = sample;
}
