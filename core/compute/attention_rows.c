// Scores, softmax and values of up to 8 query rows over blocks of 16 keys. Each score is one chain over the
// head, each output one chain over the keys; how many rows, blocks and vectors are in flight changes how fast
// it is and nothing else.
#include "core/compute/attention_rows_internal.h"

enum { KEYS = DR_KEYS, MAX_HEAD = DR_MAX_HEAD, HEADS = DR_ATTENTION_HEADS, UNIT = 16, LINE = 64, AHEAD = 3 };

typedef uint32_t words8 __attribute__((vector_size(32), aligned(4)));
typedef uint32_t words16 __attribute__((vector_size(64), aligned(4)));

// A unit of 16 elements into vectors, in their order.
DR_INLINE void unit_float8(const float *at, vec8 *out) {
    out[0] = DR_LOAD8(at);
    out[1] = DR_LOAD8(at + 8);
}

DR_INLINE void unit_float16(const float *at, vec16 *out) {
    out[0] = *(const vec16 *)at;
}

DR_INLINE void unit_bf16_8(const bf16 *at, vec8 *out) {
    words8 words = *(const words8 *)at;
    out[0] = (vec8)(words << 16);
    out[1] = (vec8)(words & 0xFFFF0000u);
}

// The words twice: in the first eight lanes their lower halves go up, in the others the upper ones stay. All
// in registers: what two halves of a vector wrote is slow to read as one.
DR_INLINE void unit_bf16_16(const bf16 *at, vec16 *out) {
    static const words16 up = {16, 16, 16, 16, 16, 16, 16, 16};
    words8 words = *(const words8 *)at;
    words16 both = __builtin_shufflevector(words, words, 0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7);
    out[0] = (vec16)(both << up & 0xFFFF0000u);
}

DR_INLINE float value_float(const float *at) {
    return *at;
}

DR_INLINE float value_bf16(const bf16 *at) {
    return dr_bf16_value(*at);
}

DR_INLINE int64_t block_of(const dr_key_blocks *blocks, int64_t i) {
    return (blocks->pages ? blocks->pages[i] : i) * blocks->block_stride;
}

// scores[r][16 keys] of R rows, STEP of them at a time, in B blocks at once: enough sums in flight. Meanwhile
// `ahead` is fetched, to the second cache: pages lie anywhere, so the processor cannot foresee them.
#define SCORES(NAME, VECTOR, LANES, ELEMENT, LOAD, R, STEP, B)                                               \
    DR_INLINE void NAME(const dr_query_rows *rows, const ELEMENT *const *keys, const ELEMENT *const *ahead,  \
                        int32_t d, float *scores, int64_t stride) {                                          \
        for (int r0 = 0; r0 < (R); r0 += (STEP)) {                                                           \
            VECTOR acc[B][STEP][KEYS / LANES] = {0};                                                         \
            for (int32_t e = 0; e < d; e++)                                                                  \
                for (int i = 0; i < (B); i++) {                                                              \
                    VECTOR key[KEYS / LANES];                                                                \
                    __builtin_prefetch(ahead[i] + e * KEYS, 0, 2);                                           \
                    LOAD(keys[i] + e * KEYS, key);                                                           \
                    for (int r = 0; r < (STEP); r++)                                                         \
                        for (int part = 0; part < KEYS / LANES; part++)                                      \
                            acc[i][r][part] += rows->q[r0 + r][e] * key[part];                               \
                }                                                                                            \
            for (int i = 0; i < (B); i++)                                                                    \
                for (int r = 0; r < (STEP); r++)                                                             \
                    for (int part = 0; part < KEYS / LANES; part++)                                          \
                        *(VECTOR *)(scores + (r0 + r) * stride + i * KEYS + part * LANES) = acc[i][r][part]; \
        }                                                                                                    \
    }

DR_INLINE float softmax_row(float *scores, int32_t n, int64_t padded, float scale, float *out_max) {
    for (int32_t j = 0; j < n; j++) scores[j] *= scale;
    for (int64_t j = n; j < padded; j++) scores[j] = -INFINITY;
    float lanes[KEYS], top = dr_largest(scores, padded);
    vec8 sums[2] = {{0}};
    for (int64_t j = 0; j < padded; j += KEYS)
        for (int half = 0; half < 2; half++) {
            vec8 *at = (vec8 *)(scores + j + 8 * half);
            vec8 x = *at - top;
            dr_expf8(&x, at);
            sums[half] += *at;
        }
    memcpy(lanes, sums, sizeof lanes);
    *out_max = top;
    return dr_lane_sum(lanes);
}

// acc[r][e] += Σ_j p[r][j] · v[j][e], j in order, of R rows, STEP at a time, and as many whole sets of UNITS
// units from e on as d holds. Returns the first e that is left.
#define VALUES(NAME, VECTOR, LANES, ELEMENT, LOAD, R, STEP, UNITS)                                           \
    DR_INLINE int32_t NAME(int32_t e, const float *scores, int64_t stride, const ELEMENT *values,            \
                           const ELEMENT *ahead, int32_t count, int32_t d, float(*acc)[MAX_HEAD]) {          \
        enum { PARTS = UNIT / LANES, VECTORS = PARTS * (UNITS), IN_LINE = LINE / sizeof(ELEMENT) };          \
        for (; e + UNIT * (UNITS) <= d; e += UNIT * (UNITS))                                                 \
            for (int r0 = 0; r0 < (R); r0 += (STEP)) {                                                       \
                VECTOR sum[STEP][VECTORS];                                                                   \
                for (int r = 0; r < (STEP); r++)                                                             \
                    for (int i = 0; i < VECTORS; i++)                                                        \
                        sum[r][i] = *(const VECTOR *)(acc[r0 + r] + e + i * LANES);                          \
                for (int32_t j = 0; j < count; j++) {                                                        \
                    for (int i = 0; i < UNIT * (UNITS); i += IN_LINE)                                        \
                        __builtin_prefetch(ahead + (int64_t)j * d + e + i, 0, 2);                            \
                    for (int u = 0; u < (UNITS); u++) {                                                      \
                        VECTOR value[PARTS];                                                                 \
                        LOAD(values + (int64_t)j * d + e + u * UNIT, value);                                 \
                        for (int r = 0; r < (STEP); r++)                                                     \
                            for (int part = 0; part < PARTS; part++)                                         \
                                sum[r][u * PARTS + part] += scores[(r0 + r) * stride + j] * value[part];     \
                    }                                                                                        \
                }                                                                                            \
                for (int r = 0; r < (STEP); r++)                                                             \
                    for (int i = 0; i < VECTORS; i++) *(VECTOR *)(acc[r0 + r] + e + i * LANES) = sum[r][i];  \
            }                                                                                                \
        return e;                                                                                            \
    }

// What is left over by whole units. Fused by hand: left to the compiler, some of these were and some were
// not.
#define VALUES_REST(NAME, ELEMENT, VALUE)                                                                    \
    DR_INLINE void NAME(int R, int32_t e, const float *scores, int64_t stride, const ELEMENT *values,        \
                        int32_t count, int32_t d, float(*acc)[MAX_HEAD]) {                                   \
        for (; e < d; e++)                                                                                   \
            for (int r = 0; r < R; r++) {                                                                    \
                float sum = acc[r][e];                                                                       \
                for (int32_t j = 0; j < count; j++)                                                          \
                    sum = fmaf(scores[r * stride + j], VALUE(values + (int64_t)j * d + e), sum);             \
                acc[r][e] = sum;                                                                             \
            }                                                                                                \
    }
VALUES_REST(rest_float, float, value_float)
VALUES_REST(rest_bf16, bf16, value_bf16)

// R rows a head, B blocks of keys at once and UNITS units of values; the heads of a block one after another,
// as they stand in memory.
#define ATTEND(NAME, ATTRIBUTE, VECTOR, LANES, ELEMENT, LOAD, REST, R, STEP, B, UNITS)                       \
    SCORES(scores_##NAME, VECTOR, LANES, ELEMENT, LOAD, R, STEP, B)                                          \
    SCORES(scores_one_##NAME, VECTOR, LANES, ELEMENT, LOAD, R, STEP, 1)                                      \
    VALUES(values_##NAME, VECTOR, LANES, ELEMENT, LOAD, R, STEP, UNITS)                                      \
    VALUES(values_one_##NAME, VECTOR, LANES, ELEMENT, LOAD, R, STEP, 1)                                      \
    static ATTRIBUTE void NAME(dr_query_rows *heads, int n_heads, const dr_key_blocks *blocks, int32_t d,    \
                               float scale, float *scores) {                                                 \
        const ELEMENT *k = blocks->k, *v = blocks->v, *keys[B], *ahead[B];                                   \
        int32_t most = 0;                                                                                    \
        for (int h = 0; h < n_heads; h++) {                                                                  \
            dr_query_rows *rows = &heads[h];                                                                 \
            for (int r = 0; r < rows->n; r++) most = rows->n_keys[r] > most ? rows->n_keys[r] : most;        \
            for (int r = rows->n; r < (R); r++) { /* idle rows repeat the first one */                       \
                rows->q[r] = rows->q[0];                                                                     \
                rows->n_keys[r] = rows->n_keys[0];                                                           \
            }                                                                                                \
        }                                                                                                    \
        int64_t n_blocks = (most + KEYS - 1) / KEYS, padded = n_blocks * KEYS, i = 0;                        \
        int64_t distance = (B) > AHEAD ? (B) : AHEAD, of_head = (R)*padded;                                  \
        for (int64_t n; i < n_blocks; i += n) {                                                              \
            n = i + (B) <= n_blocks ? (B) : 1;                                                               \
            for (int64_t l = 0; l < n; l++) { /* behind the last keys come the first values */               \
                int64_t next = i + l + distance;                                                             \
                keys[l] = k + block_of(blocks, i + l);                                                       \
                ahead[l] = next < n_blocks ? k + block_of(blocks, next)                                      \
                                           : v + block_of(blocks, (next - n_blocks) % n_blocks);             \
            }                                                                                                \
            for (int h = 0; h < n_heads; h++) {                                                              \
                float *to = scores + h * of_head + i * KEYS;                                                 \
                if (n == (B))                                                                                \
                    scores_##NAME(&heads[h], keys, ahead, d, to, padded);                                    \
                else                                                                                         \
                    scores_one_##NAME(&heads[h], keys, ahead, d, to, padded);                                \
                for (int64_t l = 0; l < n; l++) {                                                            \
                    keys[l] += blocks->head_stride;                                                          \
                    ahead[l] += blocks->head_stride;                                                         \
                }                                                                                            \
            }                                                                                                \
        }                                                                                                    \
        float total[HEADS][R], top[HEADS][R], acc[HEADS][R][MAX_HEAD];                                       \
        for (int h = 0; h < n_heads; h++)                                                                    \
            for (int r = 0; r < (R); r++)                                                                    \
                total[h][r] = softmax_row(scores + h * of_head + r * padded, heads[h].n_keys[r], padded,     \
                                          scale, &top[h][r]);                                                \
        memset(acc, 0, (size_t)n_heads * sizeof acc[0]);                                                     \
        for (i = 0; i < n_blocks; i++) {                                                                     \
            int64_t next = i + AHEAD < n_blocks ? i + AHEAD : n_blocks - 1;                                  \
            int32_t count = most - i * KEYS < KEYS ? (int32_t)(most - i * KEYS) : KEYS;                      \
            const ELEMENT *values = v + block_of(blocks, i), *after = v + block_of(blocks, next);            \
            for (int h = 0; h < n_heads; h++) {                                                              \
                const float *p = scores + h * of_head + i * KEYS;                                            \
                int32_t e = values_##NAME(0, p, padded, values, after, count, d, acc[h]);                    \
                e = values_one_##NAME(e, p, padded, values, after, count, d, acc[h]);                        \
                REST(R, e, p, padded, values, count, d, acc[h]);                                             \
                values += blocks->head_stride;                                                               \
                after += blocks->head_stride;                                                                \
            }                                                                                                \
        }                                                                                                    \
        for (int h = 0; h < n_heads; h++)                                                                    \
            for (int r = 0; r < heads[h].n; r++) {                                                           \
                float inv = 1.0f / total[h][r];                                                              \
                for (int32_t e = 0; e < d; e++) heads[h].out[r][e] = acc[h][r][e] * inv;                     \
                if (heads[h].lse[r]) *heads[h].lse[r] = top[h][r] + logf(total[h][r]);                       \
            }                                                                                                \
    }

// Eight vectors of sums are in flight, however few the rows are.
#define BOTH_WIDTHS(ELEMENT, NARROW, WIDE, REST, R, STEP, B, UNITS)                                          \
    ATTEND(ELEMENT##_narrow_##R, DR_HOT, vec8, 8, ELEMENT, NARROW, REST, R, STEP, B, UNITS)                  \
    ATTEND(ELEMENT##_wide_##R, DR_WIDE, vec16, 16, ELEMENT, WIDE, REST, R, R, 2 * (B), 2 * (UNITS))
#define ALL_ROWS(ELEMENT, NARROW, WIDE, REST)                                                                \
    BOTH_WIDTHS(ELEMENT, NARROW, WIDE, REST, 1, 1, 4, 4)                                                     \
    BOTH_WIDTHS(ELEMENT, NARROW, WIDE, REST, 2, 2, 2, 2)                                                     \
    BOTH_WIDTHS(ELEMENT, NARROW, WIDE, REST, 4, 4, 1, 1)                                                     \
    BOTH_WIDTHS(ELEMENT, NARROW, WIDE, REST, 8, 4, 1, 1)
ALL_ROWS(float, unit_float8, unit_float16, rest_float)
ALL_ROWS(bf16, unit_bf16_8, unit_bf16_16, rest_bf16)

void dr_attend(dr_query_rows *heads, int n_heads, const dr_key_blocks *blocks, int32_t d, float scale,
               float *scores) {
    typedef void attend(dr_query_rows *, int, const dr_key_blocks *, int32_t, float, float *);
    static attend *const body[2][2][4] = {{{float_narrow_1, float_narrow_2, float_narrow_4, float_narrow_8},
                                           {float_wide_1, float_wide_2, float_wide_4, float_wide_8}},
                                          {{bf16_narrow_1, bf16_narrow_2, bf16_narrow_4, bf16_narrow_8},
                                           {bf16_wide_1, bf16_wide_2, bf16_wide_4, bf16_wide_8}}};
    int n = heads[0].n;
    body[blocks->is_bf16][dr_cpu_is_wide()][n > 4   ? 3
                                            : n > 2 ? 2
                                                    : n - 1](heads, n_heads, blocks, d, scale, scores);
}
