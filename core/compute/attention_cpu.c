// Attention ops: packed passes forward and backward, and the paged cache. How a row is attended is in
// attention_rows_internal.h.
#include <omp.h>

#include "core/base/alloc.h"
#include "core/compute/attention_rows_internal.h"

enum { KEYS = DR_KEYS, ROWS = DR_ATTENTION_ROWS, BACKWARD_ROWS = 48 };

static dr_status check_sizes(int32_t H, int32_t G, int32_t d) {
    DR_CHECK(G > 0 && H % G == 0 && d > 0 && d <= DR_MAX_HEAD, DR_ERR_RANGE,
             "attention: %d query heads, %d key heads, head size %d (at most %d)", H, G, d, DR_MAX_HEAD);
    return DR_OK;
}

static dr_status reserve_threads(dr_backend *b, int64_t floats) {
    for (int i = 0; i < b->n_threads; i++) DR_TRY(dr_scratch_reserve(&dr_cpu_state_of(b)->thread[i], floats));
    return DR_OK;
}

typedef struct packed_call {
    const float *q, *k, *v;
    int64_t q_stride, kv_stride;
    int32_t H, G, d;
    float scale;
} packed_call;

// What one sequence attends to: n_prefix rows from `prefix` on, then its own n from `begin` on.
typedef struct seen_rows {
    int32_t prefix, n_prefix, begin, n;
} seen_rows;

static seen_rows seen_by(const dr_sequences *sequences, int32_t s) {
    int32_t p = dr_prefix_of(sequences, s);
    return (seen_rows){p < 0 ? 0 : sequences->cu_seqlens[p], dr_rows_of(sequences, p),
                       sequences->cu_seqlens[s], dr_rows_of(sequences, s)};
}

DR_INLINE int64_t row_at(const seen_rows *rows, int64_t position) {
    return position < rows->n_prefix ? rows->prefix + position : rows->begin + position - rows->n_prefix;
}

// The longest sequence with its prefix, at least 1.
static int64_t longest_seen(const dr_sequences *sequences) {
    int64_t longest = 1;
    for (int32_t s = 0; s < sequences->n; s++) {
        seen_rows rows = seen_by(sequences, s);
        if (rows.n_prefix + rows.n > longest) longest = rows.n_prefix + rows.n;
    }
    return longest;
}

// The keys (or values) of one head that a sequence sees, one after another: [n_prefix + n, d].
static void gather_head(const float *from, int64_t stride, const seen_rows *rows, int32_t d, float *out) {
    for (int64_t j = 0; j < rows->n_prefix + rows->n; j++)
        memcpy(out + j * d, from + row_at(rows, j) * stride, (size_t)d * sizeof(float));
}

// The same keys in blocks of [d][16].
static DR_HOT void transpose_keys(const float *k, int64_t stride, const seen_rows *rows, int32_t d,
                                  float *out) {
    int64_t n = rows->n_prefix + rows->n, padded = dr_padded_keys(n);
    for (int64_t j = 0; j < padded; j++) {
        const float *key = j < n ? k + row_at(rows, j) * stride : NULL;
        for (int32_t e = 0; e < d; e++) out[j / KEYS * KEYS * d + e * KEYS + j % KEYS] = key ? key[e] : 0.0f;
    }
}

// is_causal: a row sees what stands up to itself, else its whole sequence.
static void forward_sequence(const packed_call *c, const seen_rows *seen, int32_t g, bool is_causal,
                             float *scratch, float *out, float *lse) {
    int32_t group = c->H / c->G, d = c->d;
    int64_t padded = dr_padded_keys(seen->n_prefix + seen->n);
    float *keys = scratch, *values = keys + padded * d, *scores = values + padded * d;
    transpose_keys(c->k + g * d, c->kv_stride, seen, d, keys);
    gather_head(c->v + g * d, c->kv_stride, seen, d, values);
    dr_key_blocks blocks = {.k = keys, .v = values, .block_stride = (int64_t)KEYS * d};
    dr_query_rows rows = {0};
    for (int64_t flat = 0; flat < (int64_t)seen->n * group; flat++) {
        int64_t i = flat / group, row = seen->begin + i, h = g * group + flat % group;
        rows.q[rows.n] = c->q + row * c->q_stride + h * d;
        rows.out[rows.n] = out + (row * c->H + h) * d;
        rows.lse[rows.n] = lse ? lse + row * c->H + h : NULL;
        rows.n_keys[rows.n++] = seen->n_prefix + (is_causal ? (int32_t)i + 1 : seen->n);
        if (rows.n == ROWS || flat + 1 == (int64_t)seen->n * group) {
            dr_attend(&rows, 1, &blocks, d, c->scale, scores);
            rows.n = 0;
        }
    }
}

static dr_status forward_packed(dr_backend *b, const packed_call *call, const dr_sequences *sequences,
                                bool is_causal, float *out, float *lse) {
    DR_TRY(check_sizes(call->H, call->G, call->d));
    int64_t longest = dr_padded_keys(longest_seen(sequences));
    DR_TRY(reserve_threads(b, 2 * longest * call->d + ROWS * longest));
    dr_cpu_state *state = dr_cpu_state_of(b);
#pragma omp parallel for num_threads(b->n_threads) schedule(dynamic) if (b->n_threads > 1)
    for (int32_t task = 0; task < sequences->n * call->G; task++) {
        seen_rows seen = seen_by(sequences, task / call->G);
        forward_sequence(call, &seen, task % call->G, is_causal, state->thread[omp_get_thread_num()].data,
                         out, lse);
    }
    return DR_OK;
}

static dr_status attention_forward(dr_backend *b, const float *q, const float *k, const float *v,
                                   int64_t q_stride, int64_t kv_stride, const dr_sequences *sequences,
                                   int32_t H, int32_t G, int32_t d, float *out, float *lse) {
    packed_call call = {q, k, v, q_stride, kv_stride, H, G, d, 1.0f / sqrtf((float)d)};
    return forward_packed(b, &call, sequences, true, out, lse);
}

static dr_status attention_bidirectional(dr_backend *b, const float *q, const float *k, const float *v,
                                         int64_t q_stride, int64_t kv_stride, const dr_sequences *sequences,
                                         int32_t H, int32_t G, int32_t d, float *out) {
    packed_call call = {q, k, v, q_stride, kv_stride, H, G, d, 1.0f / sqrtf((float)d)};
    DR_CHECK(!sequences->prefix, DR_ERR_UNSUPPORTED, "attention in both directions: sequences with prefixes");
    return forward_packed(b, &call, sequences, false, out, NULL);
}

// Scratch of one backward task: the keys and values of a head that a sequence sees and their gradients
// [n, d], packed transposes of K and V, the block's packed Q, dO, K, and two score blocks.
typedef struct backward_scratch {
    float *k, *v, *dk, *dv, *keys_t, *values_t, *packed, *p, *ds;
} backward_scratch;

// base NULL: only counts. Returns the floats of n rows.
static int64_t backward_carve(float *base, int64_t n, int32_t d, backward_scratch *w) {
    int64_t padded = (n + DR_PANEL - 1) / DR_PANEL * DR_PANEL, dense = (n * d + 15) / 16 * 16, at = 0;
    float **part[] = {&w->k, &w->v, &w->dk, &w->dv, &w->keys_t, &w->values_t, &w->packed, &w->p, &w->ds};
    int64_t wide = dr_panels_floats(d, n), scores = BACKWARD_ROWS * padded,
            block = dr_panels_floats(n > BACKWARD_ROWS ? n : BACKWARD_ROWS, d);
    int64_t floats[] = {dense, dense, dense, dense, wide, wide, block, scores, scores};
    for (size_t i = 0; i < sizeof part / sizeof *part; i++) {
        *part[i] = base ? base + at : NULL;
        at += floats[i];
    }
    return at;
}

DR_INLINE int64_t panels_of(int64_t n) {
    return (n + DR_PANEL - 1) / DR_PANEL;
}

// p and ds of one block of query rows: p = exp(s·scale - lse), ds = p · (dp - delta) · scale; zero above the
// diagonal.
static DR_HOT void backward_scores(float *p, float *ds, int64_t stride, int64_t first, int64_t rows,
                                   int64_t n_keys, const float *lse, const float *delta, int64_t lse_stride,
                                   float scale) {
    for (int64_t r = 0; r < rows; r++) {
        float l = lse[r * lse_stride], shift = delta[r];
        int64_t seen = first + r + 1;
        for (int64_t j = 0; j < seen; j++) {
            float value = dr_expf(p[r * stride + j] * scale - l);
            p[r * stride + j] = value;
            ds[r * stride + j] = value * (ds[r * stride + j] - shift) * scale;
        }
        for (int64_t j = seen; j < n_keys; j++) p[r * stride + j] = ds[r * stride + j] = 0.0f;
    }
}

typedef struct backward_call {
    packed_call in;
    const float *dout, *out, *lse;
    float *dq, *dk, *dv;
} backward_call;

// Rows i0 … i0 + rows - 1 of the sequence's own, head h.
static void backward_block(const backward_call *c, const backward_scratch *w, const seen_rows *seen,
                           int64_t i0, int64_t rows, int32_t h) {
    int32_t d = c->in.d;
    int64_t first = seen->n_prefix + i0, n_keys = first + rows, stride = panels_of(n_keys) * DR_PANEL,
            row = seen->begin + i0, wide = (int64_t)c->in.H * d;
    const float *q = c->in.q + row * c->in.q_stride + h * d, *dout = c->dout + row * wide + h * d;
    const float *out = c->out + row * wide + h * d;
    float delta[BACKWARD_ROWS];
    for (int64_t r = 0; r < rows; r++) {
        float sum = 0;
        for (int32_t e = 0; e < d; e++) sum += dout[r * wide + e] * out[r * wide + e];
        delta[r] = sum;
    }
    dr_panels_multiply(q, c->in.q_stride, 1, w->keys_t, rows, n_keys, d, 0, panels_of(n_keys), w->p, stride,
                       false);
    dr_panels_multiply(dout, wide, 1, w->values_t, rows, n_keys, d, 0, panels_of(n_keys), w->ds, stride,
                       false);
    backward_scores(w->p, w->ds, stride, first, rows, n_keys, c->lse + row * c->in.H + h, delta, c->in.H,
                    c->in.scale);

    dr_panels_pack(w->k, d, 1, n_keys, d, 0, panels_of(d), w->packed);
    dr_panels_multiply(w->ds, stride, 1, w->packed, rows, d, n_keys, 0, panels_of(d),
                       c->dq + row * c->in.q_stride + h * d, c->in.q_stride, false);
    dr_panels_pack(q, c->in.q_stride, 1, rows, d, 0, panels_of(d), w->packed);
    dr_panels_multiply(w->ds, 1, stride, w->packed, n_keys, d, rows, 0, panels_of(d), w->dk, d, true);
    dr_panels_pack(dout, wide, 1, rows, d, 0, panels_of(d), w->packed);
    dr_panels_multiply(w->p, 1, stride, w->packed, n_keys, d, rows, 0, panels_of(d), w->dv, d, true);
}

// Own rows of the gradient of the rows seen, to their places.
static void scatter_own(const float *gradient, const seen_rows *seen, int32_t d, int64_t stride, float *to) {
    for (int64_t i = 0; i < seen->n; i++)
        memcpy(to + (seen->begin + i) * stride, gradient + (seen->n_prefix + i) * d,
               (size_t)d * sizeof(float));
}

// prefix_gradient [2, n_prefix, d]: where the gradient of the prefix's keys and values by this sequence goes.
static void backward_sequence(const backward_call *c, const seen_rows *seen, int32_t g, float *scratch,
                              float *prefix_gradient) {
    int32_t d = c->in.d, group = c->in.H / c->in.G;
    int64_t n = seen->n_prefix + seen->n, n_prefix = (int64_t)seen->n_prefix * d;
    backward_scratch w;
    backward_carve(scratch, n, d, &w);
    gather_head(c->in.k + g * d, c->in.kv_stride, seen, d, w.k);
    gather_head(c->in.v + g * d, c->in.kv_stride, seen, d, w.v);
    dr_panels_pack(w.k, 1, d, d, n, 0, panels_of(n), w.keys_t);
    dr_panels_pack(w.v, 1, d, d, n, 0, panels_of(n), w.values_t);
    memset(w.dk, 0, (size_t)(n * d) * sizeof(float));
    memset(w.dv, 0, (size_t)(n * d) * sizeof(float));
    for (int32_t h = g * group; h < (g + 1) * group; h++)
        for (int64_t i0 = 0; i0 < seen->n; i0 += BACKWARD_ROWS)
            backward_block(c, &w, seen, i0, seen->n - i0 < BACKWARD_ROWS ? seen->n - i0 : BACKWARD_ROWS, h);
    scatter_own(w.dk, seen, d, c->in.kv_stride, c->dk + g * d);
    scatter_own(w.dv, seen, d, c->in.kv_stride, c->dv + g * d);
    if (n_prefix == 0) return;
    memcpy(prefix_gradient, w.dk, (size_t)n_prefix * sizeof(float));
    memcpy(prefix_gradient + n_prefix, w.dv, (size_t)n_prefix * sizeof(float));
}

// Adds what a sequence gave to its prefix's rows.
static void add_to_prefix(const backward_call *c, const seen_rows *seen, int32_t g,
                          const float *prefix_gradient) {
    int32_t d = c->in.d;
    for (int64_t j = 0; j < seen->n_prefix; j++) {
        int64_t at = (seen->prefix + j) * c->in.kv_stride + g * d;
        const float *dk = prefix_gradient + j * d, *dv = dk + (int64_t)seen->n_prefix * d;
        for (int32_t e = 0; e < d; e++) {
            c->dk[at + e] += dk[e];
            c->dv[at + e] += dv[e];
        }
    }
}

// Room for what every sequence gives to its prefix, one head.
static int64_t prefix_floats(const dr_sequences *sequences, int32_t d) {
    int64_t longest = 0;
    for (int32_t s = 0; s < sequences->n; s++) {
        int64_t n = dr_rows_of(sequences, dr_prefix_of(sequences, s));
        longest = n > longest ? n : longest;
    }
    return 2 * longest * d;
}

// A sequence sees all tokens of a pass at most; the backward takes more than the forward.
int64_t dr_cpu_attention_floats(const dr_pass_shape *s) {
    backward_scratch none;
    int64_t forward = (2 * s->d + ROWS) * dr_padded_keys(s->T),
            backward = backward_carve(NULL, s->T, s->d, &none);
    return forward > backward ? forward : backward;
}

int64_t dr_cpu_both_ways_floats(const dr_pass_shape *s) {
    return (2 * s->d + ROWS) * dr_padded_keys(s->longest);
}

int64_t dr_cpu_cached_floats(const dr_pass_shape *s) {
    int64_t heads = s->G < DR_ATTENTION_HEADS ? s->G : DR_ATTENTION_HEADS;
    return heads * ROWS * dr_padded_keys(s->longest);
}

int64_t dr_cpu_prefix_floats(const dr_pass_shape *s) {
    return 2 * s->T * s->d * s->n_sharing * s->G;
}

// All sequences by themselves, then what they give to their prefixes, in their order.
static dr_status attention_backward(dr_backend *b, const float *dout, const float *q, const float *k,
                                    const float *v, const float *out, const float *lse, int64_t q_stride,
                                    int64_t kv_stride, const dr_sequences *sequences, int32_t H, int32_t G,
                                    int32_t d, float *dq, float *dk, float *dv) {
    DR_TRY(check_sizes(H, G, d));
    backward_scratch none;
    dr_cpu_state *state = dr_cpu_state_of(b);
    int64_t stride = prefix_floats(sequences, d);
    DR_TRY(reserve_threads(b, backward_carve(NULL, longest_seen(sequences), d, &none)));
    DR_TRY(dr_scratch_reserve(&state->shared, stride * sequences->n * G));
    float *given = state->shared.data;
    backward_call call = {
        {q, k, v, q_stride, kv_stride, H, G, d, 1.0f / sqrtf((float)d)}, dout, out, lse, dq, dk, dv};
#pragma omp parallel for num_threads(b->n_threads) schedule(dynamic) if (b->n_threads > 1)
    for (int32_t task = 0; task < sequences->n * G; task++) {
        seen_rows seen = seen_by(sequences, task / G);
        backward_sequence(&call, &seen, task % G, state->thread[omp_get_thread_num()].data,
                          given + task * stride);
    }
#pragma omp parallel for num_threads(b->n_threads) schedule(static) if (b->n_threads > 1 && stride > 0)
    for (int32_t g = 0; g < G; g++)
        for (int32_t s = 0; s < sequences->n; s++) {
            seen_rows seen = seen_by(sequences, s);
            add_to_prefix(&call, &seen, g, given + (s * G + g) * stride);
        }
    return DR_OK;
}

static void kv_round(dr_backend *b, float *k, float *v, int64_t kv_stride, int64_t T, int32_t G, int32_t d) {
    if (b->precision != DR_BF16) return;
#pragma omp parallel for num_threads(b->n_threads) schedule(static) if (b->n_threads > 1 && T > 256)
    for (int64_t t = 0; t < T; t++) {
        dr_bf16_round_floats(k + t * kv_stride, (int64_t)G * d, 1, k + t * kv_stride);
        dr_bf16_round_floats(v + t * kv_stride, (int64_t)G * d, 1, v + t * kv_stride);
    }
}

// One head's key and value [d] into slot `slot` of its block, number `block` of the cache.
static void store_floats(const float *k, const float *v, int32_t d, int64_t block, int32_t slot,
                         float *k_cache, float *v_cache) {
    float *keys = k_cache + block * KEYS * d, *values = v_cache + block * KEYS * d;
    for (int32_t e = 0; e < d; e++) keys[e * KEYS + slot] = k[e];
    memcpy(values + slot * d, v, (size_t)d * sizeof(float));
}

static void store_bf16(const float *k, const float *v, int32_t d, int64_t block, int32_t slot, bf16 *k_cache,
                       bf16 *v_cache) {
    bf16 *keys = k_cache + block * KEYS * d, *values = v_cache + block * KEYS * d;
    int32_t place = dr_bf16_place(slot, KEYS);
    for (int32_t e = 0; e < d; e++) {
        keys[e * KEYS + place] = (bf16)dr_bf16_bits(k[e]);
        values[slot * d + dr_bf16_place(e, d)] = (bf16)dr_bf16_bits(v[e]);
    }
}

static void kv_store(dr_backend *b, const float *k, const float *v, int64_t kv_stride,
                     const dr_attention_chunk *chunks, int32_t n_chunks, int32_t page_size, int32_t G,
                     int32_t d, void *k_cache, void *v_cache) {
    DR_ASSERT(page_size == KEYS);
    for (int32_t c = 0; c < n_chunks; c++)
        for (int32_t i = 0; i < chunks[c].n_new; i++) {
            int32_t position = chunks[c].n_past + i, slot = position % KEYS;
            int64_t page = chunks[c].pages[position / KEYS];
            for (int32_t g = 0; g < G; g++) {
                int64_t from = (chunks[c].row + i) * kv_stride + g * d;
                if (b->precision == DR_BF16)
                    store_bf16(k + from, v + from, d, page * G + g, slot, k_cache, v_cache);
                else
                    store_floats(k + from, v + from, d, page * G + g, slot, k_cache, v_cache);
            }
        }
}

typedef struct cached_call {
    const float *q;
    const char *k, *v;
    int64_t q_stride;
    int32_t H, G, d;
    float scale;
    size_t element; // bytes of a cached one
} cached_call;

static void add_row(const cached_call *c, const dr_attention_chunk *chunk, int64_t flat, int32_t g,
                    float *out, dr_query_rows *rows) {
    int32_t group = c->H / c->G;
    int64_t i = flat / group, row = chunk->row + i, h = g * group + flat % group;
    rows->q[rows->n] = c->q + row * c->q_stride + h * c->d;
    rows->out[rows->n] = out + (row * c->H + h) * c->d;
    rows->n_keys[rows->n++] = chunk->n_past + (int32_t)i + 1;
}

// The chunk's rows for key heads g … g + n_heads - 1, as many at a time as there is room for.
static void cached_chunk(const cached_call *c, const dr_attention_chunk *chunk, int32_t g, int n_heads,
                         float *scores, float *out) {
    int64_t head = (int64_t)KEYS * c->d, n_rows = (int64_t)chunk->n_new * (c->H / c->G);
    size_t begin = (size_t)(g * head) * c->element;
    dr_key_blocks blocks = {.k = c->k + begin,
                            .v = c->v + begin,
                            .pages = chunk->pages,
                            .block_stride = c->G * head,
                            .head_stride = head,
                            .is_bf16 = c->element == sizeof(bf16)};
    for (int64_t flat = 0, n; flat < n_rows; flat += n) {
        dr_query_rows heads[DR_ATTENTION_HEADS] = {0};
        n = n_rows - flat < ROWS ? n_rows - flat : ROWS;
        for (int h = 0; h < n_heads; h++)
            for (int64_t i = 0; i < n; i++) add_row(c, chunk, flat + i, g + h, out, &heads[h]);
        dr_attend(heads, n_heads, &blocks, c->d, c->scale, scores);
    }
}

// Heads at a time: so many that their keys are read as they stand, but none where threads would have nothing.
static int32_t heads_together(int32_t n_chunks, int32_t G, int n_threads) {
    int32_t together = G < DR_ATTENTION_HEADS ? G : DR_ATTENTION_HEADS;
    int64_t wanted = n_threads > 1 ? 4 * (int64_t)n_threads : 1; // tasks
    while (together > 1 && (int64_t)n_chunks * ((G + together - 1) / together) < wanted) together /= 2;
    return together;
}

static dr_status attention_cached(dr_backend *b, const float *q, int64_t q_stride, const void *k_cache,
                                  const void *v_cache, const dr_attention_chunk *chunks, int32_t n_chunks,
                                  int32_t page_size, int32_t H, int32_t G, int32_t d, float *out) {
    DR_TRY(check_sizes(H, G, d));
    DR_CHECK(page_size == KEYS, DR_ERR_UNSUPPORTED, "key/value pages of %d positions, expected %d", page_size,
             KEYS);
    int64_t longest = 1;
    for (int32_t c = 0; c < n_chunks; c++)
        if (chunks[c].n_past + chunks[c].n_new > longest) longest = chunks[c].n_past + chunks[c].n_new;
    const int32_t together = heads_together(n_chunks, G, b->n_threads),
                  n_sets = (G + together - 1) / together;
    DR_TRY(reserve_threads(b, together * ROWS * dr_padded_keys(longest)));
    cached_call call = {q, k_cache, v_cache, q_stride, H, G, d, 1.0f / sqrtf((float)d), dr_kv_bytes(b)};
    dr_cpu_state *state = dr_cpu_state_of(b);
#pragma omp parallel for num_threads(b->n_threads) schedule(dynamic) if (b->n_threads > 1)
    for (int32_t task = 0; task < n_chunks * n_sets; task++) {
        int32_t g = task % n_sets * together;
        cached_chunk(&call, &chunks[task / n_sets], g, G - g < together ? G - g : together,
                     state->thread[omp_get_thread_num()].data, out);
    }
    return DR_OK;
}

void dr_cpu_fill_attention(dr_backend_ops *ops) {
    ops->attention_forward = attention_forward;
    ops->attention_backward = attention_backward;
    ops->attention_bidirectional = attention_bidirectional;
    ops->kv_round = kv_round;
    ops->kv_store = kv_store;
    ops->attention_cached = attention_cached;
}
