// bf16 products on processors without AMX: operands are rounded to it, and multiplied and
// summed in fp32, where the product of two of them is exact (short of under- and overflow). Weights are kept
// in panels of 32 outputs, [n_in][32], so that they stream from memory in half the bytes and widen in
// registers. Each output is one chain over k.
#include <omp.h>

#include "core/base/alloc.h"
#include "core/compute/cpu_internal.h"

enum {
    K_BLOCK = 512, // of a panel: what stays near while all tokens of a piece pass
    ROWS = 12,     // tokens that the largest kernel takes
    TOKENS = 128,  // of one piece of work
    WORDS = DR_PANEL / 2,
    W_ROWS = 512 // rows of W, whole panels, that are widened at a time for a gradient
};

typedef uint32_t bits16 __attribute__((vector_size(64), aligned(4)));
typedef uint32_t bits8 __attribute__((vector_size(32), aligned(4)));

// Two vectors of outputs: 8 and the 8 behind them, or of 16 lanes 0-7, 16-23 and 8-15, 24-31.
#define WIDEN(LANES)                                                                                         \
    DR_INLINE void widen##LANES(const uint32_t *at, vec##LANES *out) {                                       \
        bits##LANES words = *(const bits##LANES *)at;                                                        \
        out[0] = (vec##LANES)(words << 16);                                                                  \
        out[1] = (vec##LANES)(words & 0xFFFF0000u);                                                          \
    }
WIDEN(8)
WIDEN(16)
#undef WIDEN

DR_INLINE void load8(const float *y, vec8 *out) {
    out[0] = DR_LOAD8(y);
    out[1] = DR_LOAD8(y + 8);
}

DR_INLINE void store8(const vec8 *from, float *y) {
    *(vec8 *)y = from[0];
    *(vec8 *)(y + 8) = from[1];
}

DR_INLINE void load16(const float *y, vec16 *out) {
    for (int half = 0; half < 2; half++) {
        union {
            vec8 part[2];
            vec16 whole;
        } v = {{DR_LOAD8(y + 8 * half), DR_LOAD8(y + 16 + 8 * half)}};
        out[half] = v.whole;
    }
}

DR_INLINE void store16(const vec16 *from, float *y) {
    for (int half = 0; half < 2; half++) {
        union {
            vec16 whole;
            vec8 part[2];
        } v = {from[half]};
        *(vec8 *)(y + 8 * half) = v.part[0];
        *(vec8 *)(y + 16 + 8 * half) = v.part[1];
    }
}

// R tokens x V pairs of vectors of a panel's outputs over k rows of it.
#define KERNEL(R, V, LANES)                                                                                  \
    DR_INLINE void kernel_##R##x##V##x##LANES(const float *x, int64_t x_row, const uint32_t *panel,          \
                                              int64_t k, float *y, int64_t y_row, int first) {               \
        vec##LANES sum[R][2 * V], w[2 * V];                                                                  \
        for (int r = 0; r < R; r++)                                                                          \
            for (int v = 0; v < V; v++)                                                                      \
                if (first)                                                                                   \
                    sum[r][2 * v] = sum[r][2 * v + 1] = (vec##LANES){0};                                     \
                else                                                                                         \
                    load##LANES(y + r * y_row + (int64_t)v * 2 * LANES, &sum[r][2 * v]);                     \
        for (int64_t kk = 0; kk < k; kk++) {                                                                 \
            for (int v = 0; v < V; v++) widen##LANES(panel + kk * WORDS + (int64_t)v * LANES, &w[2 * v]);    \
            for (int r = 0; r < R; r++)                                                                      \
                for (int v = 0; v < 2 * V; v++) sum[r][v] += x[r * x_row + kk] * w[v];                       \
        }                                                                                                    \
        for (int r = 0; r < R; r++)                                                                          \
            for (int v = 0; v < V; v++)                                                                      \
                store##LANES(&sum[r][2 * v], y + r * y_row + (int64_t)v * 2 * LANES);                        \
    }
KERNEL(12, 1, 16)
KERNEL(8, 1, 16)
KERNEL(4, 1, 16)
KERNEL(2, 1, 16)
KERNEL(1, 1, 16)
KERNEL(6, 1, 8)
KERNEL(4, 1, 8)
KERNEL(2, 2, 8)
KERNEL(1, 2, 8)
#undef KERNEL

// T tokens with k rows of a panel; y has room for all 32 outputs.
DR_INLINE void run_tokens(bool wide, const float *x, int64_t x_row, int64_t T, const uint32_t *panel,
                          int64_t k, float *y, int64_t y_row, int first) {
#define STEP(NAME, R, AT) NAME(x + t * x_row, x_row, panel + (AT) / 2, k, y + t * y_row + (AT), y_row, first)
    int64_t t = 0;
    if (wide) {
        for (; t + 12 <= T; t += 12) STEP(kernel_12x1x16, 12, 0);
        for (; t + 8 <= T; t += 8) STEP(kernel_8x1x16, 8, 0);
        for (; t + 4 <= T; t += 4) STEP(kernel_4x1x16, 4, 0);
        for (; t + 2 <= T; t += 2) STEP(kernel_2x1x16, 2, 0);
        for (; t < T; t++) STEP(kernel_1x1x16, 1, 0);
        return;
    }
    for (; t + 6 <= T; t += 6)
        for (int at = 0; at < DR_PANEL; at += 16) STEP(kernel_6x1x8, 6, at);
    for (; t + 4 <= T; t += 4)
        for (int at = 0; at < DR_PANEL; at += 16) STEP(kernel_4x1x8, 4, at);
    for (; t + 2 <= T; t += 2) STEP(kernel_2x2x8, 2, 0);
    for (; t < T; t++) STEP(kernel_1x2x8, 1, 0);
#undef STEP
}

// The last panel's outputs may be fewer than 32: through a block.
DR_INLINE void run_edge(bool wide, const float *x, int64_t x_row, int64_t T, const uint32_t *panel, int64_t k,
                        int64_t width, float *y, int64_t y_row, int first) {
    float block[ROWS * DR_PANEL] __attribute__((aligned(64)));
    for (int64_t t = 0; t < T; t += ROWS) {
        int64_t n = T - t < ROWS ? T - t : ROWS;
        memset(block, 0, sizeof block);
        for (int64_t r = 0; r < n && !first; r++)
            memcpy(block + r * DR_PANEL, y + (t + r) * y_row, (size_t)width * sizeof(float));
        run_tokens(wide, x + t * x_row, x_row, n, panel, k, block, DR_PANEL, first);
        for (int64_t r = 0; r < n; r++)
            memcpy(y + (t + r) * y_row, block + r * DR_PANEL, (size_t)width * sizeof(float));
    }
}

// A panel's outputs for up to TOKENS tokens, summed up in a block and rounded from there: out has row stride
// n_out.
DR_INLINE void run_rounded(bool wide, const dr_weight *w, const float *x, int64_t T, int64_t p, bf16 *out) {
    float block[TOKENS * DR_PANEL] __attribute__((aligned(64)));
    int64_t n_in = w->n_in, left = w->n_out - p * DR_PANEL, width = left < DR_PANEL ? left : DR_PANEL;
    for (int64_t k0 = 0; k0 < n_in; k0 += K_BLOCK) {
        const uint32_t *panel = (const uint32_t *)w->bf16 + (p * n_in + k0) * WORDS;
        int64_t k = n_in - k0 < K_BLOCK ? n_in - k0 : K_BLOCK;
        run_tokens(wide, x + k0, n_in, T, panel, k, block, DR_PANEL, k0 == 0);
    }
    for (int64_t t = 0; t < T; t++)
        for (int64_t j = 0; j < width; j++)
            out[t * w->n_out + p * DR_PANEL + j] = (bf16)dr_bf16_bits(block[t * DR_PANEL + j]);
}

// T tokens, up to TOKENS, with the panels begin … end - 1.
DR_INLINE void run_panels(bool wide, const dr_weight *w, const float *x, int64_t T, int64_t begin,
                          int64_t end, const dr_result *to) {
    int64_t n_in = w->n_in, n_out = w->n_out;
    float *y = to->values;
    for (int64_t p = begin; p < end && to->rounded; p++) run_rounded(wide, w, x, T, p, to->rounded);
    if (to->rounded) return;
    for (int64_t p = begin; p < end; p++)
        for (int64_t k0 = 0; k0 < n_in; k0 += K_BLOCK) {
            const uint32_t *panel = (const uint32_t *)w->bf16 + (p * n_in + k0) * WORDS;
            int64_t k = n_in - k0 < K_BLOCK ? n_in - k0 : K_BLOCK, width = n_out - p * DR_PANEL;
            if (width >= DR_PANEL)
                run_tokens(wide, x + k0, n_in, T, panel, k, y + p * DR_PANEL, n_out, k0 == 0);
            else
                run_edge(wide, x + k0, n_in, T, panel, k, width, y + p * DR_PANEL, n_out, k0 == 0);
        }
}

static DR_WIDE void run_panels_wide(const dr_weight *w, const float *x, int64_t T, int64_t begin, int64_t end,
                                    const dr_result *y) {
    run_panels(true, w, x, T, begin, end, y);
}

static DR_HOT void run_panels_narrow(const dr_weight *w, const float *x, int64_t T, int64_t begin,
                                     int64_t end, const dr_result *y) {
    run_panels(false, w, x, T, begin, end, y);
}

// Enough tokens, and each thread takes its own; few, and each takes a part of the panels.
static dr_status forward_chunk(dr_backend *b, const dr_weight *w, const dr_rows *x, int64_t T,
                               const dr_result *y) {
    const float *rows = NULL;
    DR_TRY(dr_rows_floats(b, 0, x, T, true, &rows));
    bool wide = dr_cpu_is_wide();
    int64_t n_panels = (w->n_out + DR_PANEL - 1) / DR_PANEL, n_pieces = (T + TOKENS - 1) / TOKENS,
            group = n_pieces >= b->n_threads ? n_panels : (n_panels + b->n_threads - 1) / b->n_threads;
#pragma omp parallel for num_threads(b->n_threads) collapse(2) schedule(static) if (b->n_threads > 1)
    for (int64_t i = 0; i < n_pieces; i++)
        for (int64_t p = 0; p < n_panels; p += group) {
            int64_t t = i * TOKENS, n = T - t < TOKENS ? T - t : TOKENS,
                    end = p + group < n_panels ? p + group : n_panels;
            const dr_result to = dr_result_at(y, t * w->n_out);
            (wide ? run_panels_wide : run_panels_narrow)(w, rows + t * w->n_in, n, p, end, &to);
        }
    return DR_OK;
}

dr_status dr_bf16_lanes_forward(dr_backend *b, const dr_weight *w, const dr_rows *x, int64_t T,
                                const dr_result *y) {
    for (int64_t t = 0, n; t < T; t += n) {
        const dr_rows rows = dr_rows_from(x, t);
        const dr_result to = dr_result_at(y, t * w->n_out);
        n = dr_rows_chunk(b, T - t);
        DR_TRY(forward_chunk(b, w, &rows, n, &to));
    }
    return DR_OK;
}

// n rows of a panel, [n][32] floats that bf16 holds, into words and back.
static DR_HOT void join(const float *from, int64_t n, uint32_t *words) {
    typedef uint32_t word __attribute__((may_alias));
    const word *bits = (const word *)from;
    for (int64_t i = 0; i < 2 * n; i++)
        for (int j = 0; j < 8; j++)
            words[i * 8 + j] = bits[i * 16 + j] >> 16 | (bits[i * 16 + 8 + j] & 0xFFFF0000u);
}

static DR_HOT void part(const uint32_t *words, int64_t n, float *to) {
    for (int64_t i = 0; i < 2 * n; i++) {
        vec8 pair[2];
        widen8(words + i * 8, pair);
        store8(pair, to + i * 16);
    }
}

static dr_status reserve_panels(dr_backend *b, int64_t n_in) {
    for (int i = 0; i < b->n_threads; i++)
        DR_TRY(dr_scratch_reserve(&dr_cpu_state_of(b)->thread[i], DR_PANEL * n_in));
    return DR_OK;
}

// Outputs that are not there are zeros.
static dr_status weight_reserve(dr_weight *w, int64_t n_panels) {
    if (w->bf16) return DR_OK;
    return dr_alloc(&w->bf16, "bf16 weight", n_panels * w->n_in * WORDS, sizeof(uint32_t));
}

dr_status dr_bf16_lanes_pack(dr_backend *b, dr_weight *w, const float *values) {
    int64_t n_panels = (w->n_out + DR_PANEL - 1) / DR_PANEL, n_in = w->n_in;
    DR_TRY(weight_reserve(w, n_panels));
    DR_TRY(reserve_panels(b, n_in));
#pragma omp parallel for num_threads(b->n_threads) schedule(static) if (b->n_threads > 1)
    for (int64_t p = 0; p < n_panels; p++) {
        float *turned = dr_cpu_state_of(b)->thread[omp_get_thread_num()].data;
        int64_t o = p * DR_PANEL, n = w->n_out - o < DR_PANEL ? w->n_out - o : DR_PANEL;
        if (n < DR_PANEL) memset(turned, 0, (size_t)(DR_PANEL * n_in) * sizeof(float));
        dr_turn_over(values + o * n_in, n_in, n, n_in, turned, DR_PANEL);
        dr_bf16_round_floats(turned, DR_PANEL * n_in, 1, turned);
        join(turned, n_in, (uint32_t *)w->bf16 + p * n_in * WORDS);
    }
    return DR_OK;
}

// Of values first … end - 1 those in one panel. A few columns of all its rows at a time: a column's values
// stand side by side there, and a row's far apart.
static void take_panel(const dr_weight *w, int64_t panel, int64_t first, int64_t end, const bf16 *values) {
    enum { COLUMNS = 64 };
    typedef uint16_t half __attribute__((may_alias));
    int64_t n_in = w->n_in, from = panel * DR_PANEL, to = from + DR_PANEL;
    half *halves = (half *)((uint32_t *)w->bf16 + panel * n_in * WORDS);
    if (from < first / n_in) from = first / n_in;
    if (to > (end + n_in - 1) / n_in) to = (end + n_in - 1) / n_in;
    for (int64_t k0 = 0; k0 < n_in; k0 += COLUMNS)
        for (int64_t row = from; row < to; row++) {
            int64_t o = row % DR_PANEL, at = 2 * (o / 16 * 8 + o % 8) + (o % 16 < 8 ? 0 : 1), k = k0,
                    k_end = k0 + COLUMNS < n_in ? k0 + COLUMNS : n_in;
            if (k < first - row * n_in) k = first - row * n_in;
            if (k_end > end - row * n_in) k_end = end - row * n_in;
            for (; k < k_end; k++) halves[k * 2 * WORDS + at] = values[row * n_in + k - first];
        }
}

dr_status dr_bf16_lanes_take(dr_backend *b, dr_weight *w, int64_t first, int64_t n, const bf16 *rounded) {
    int64_t n_panels = (w->n_out + DR_PANEL - 1) / DR_PANEL, each = DR_PANEL * w->n_in, end = first + n;
    DR_TRY(weight_reserve(w, n_panels));
#pragma omp parallel for num_threads(b->n_threads) schedule(static) if (b->n_threads > 1 && n > each)
    for (int64_t p = first / each; p < (end + each - 1) / each; p++) take_panel(w, p, first, end, rounded);
    return DR_OK;
}

void dr_bf16_lanes_row(const dr_weight *w, int64_t row, float *out) {
    int64_t o = row % DR_PANEL, at = o / 16 * 8 + o % 8;
    int shift = o % 16 < 8 ? 0 : 16;
    const uint32_t *words = (const uint32_t *)w->bf16 + row / DR_PANEL * w->n_in * WORDS + at;
    for (int64_t i = 0; i < w->n_in; i++) out[i] = dr_bf16_value(words[i * WORDS] >> shift & 0xFFFF);
}

// Rows begin … end - 1 of W, begin at a panel's first, as floats [end - begin, n_in].
static void widen_rows(dr_backend *b, const dr_weight *w, int64_t begin, int64_t end, float *rows) {
    int64_t n_in = w->n_in;
#pragma omp parallel for num_threads(b->n_threads) schedule(static) if (b->n_threads > 1)
    for (int64_t o = begin; o < end; o += DR_PANEL) {
        float *turned = dr_cpu_state_of(b)->thread[omp_get_thread_num()].data;
        part((const uint32_t *)w->bf16 + o / DR_PANEL * n_in * WORDS, n_in, turned);
        dr_turn_over(turned, DR_PANEL, n_in, end - o < DR_PANEL ? end - o : DR_PANEL,
                     rows + (o - begin) * n_in, n_in);
    }
}

static dr_status backward_input_chunk(dr_backend *b, const dr_weight *w, const dr_rows *dy, int64_t T,
                                      float *dx, bool accumulate) {
    const float *from = NULL;
    dr_scratch *rows = &dr_cpu_state_of(b)->operands[1];
    DR_TRY(dr_rows_floats(b, 0, dy, T, true, &from));
    DR_TRY(dr_scratch_reserve(rows, W_ROWS * w->n_in));
    DR_TRY(reserve_panels(b, w->n_in));
    for (int64_t o = 0; o < w->n_out; o += W_ROWS) {
        int64_t end = o + W_ROWS < w->n_out ? o + W_ROWS : w->n_out;
        widen_rows(b, w, o, end, rows->data);
        DR_TRY(dr_cpu_product(b, from + o, w->n_out, 1, rows->data, w->n_in, 1, T, w->n_in, end - o, dx,
                              accumulate || o > 0));
    }
    return DR_OK;
}

dr_status dr_bf16_lanes_backward_input(dr_backend *b, const dr_weight *w, const dr_rows *dy, int64_t T,
                                       float *dx, bool accumulate) {
    for (int64_t t = 0, n; t < T; t += n) {
        const dr_rows gradient = dr_rows_from(dy, t);
        n = dr_rows_chunk(b, T - t);
        DR_TRY(backward_input_chunk(b, w, &gradient, n, dx + t * w->n_in, accumulate));
    }
    return DR_OK;
}

dr_status dr_bf16_lanes_backward_weight(dr_backend *b, const dr_rows *x, const dr_rows *dy, int64_t T,
                                        float *dw) {
    const float *left = NULL, *right = NULL;
    for (int64_t t = 0, n; t < T; t += n) {
        const dr_rows gradient = dr_rows_from(dy, t), rows = dr_rows_from(x, t);
        n = dr_rows_chunk(b, T - t);
        DR_TRY(dr_rows_floats(b, 0, &gradient, n, true, &left));
        DR_TRY(dr_rows_floats(b, 1, &rows, n, true, &right));
        DR_TRY(dr_cpu_product(b, left, 1, dy->n, right, x->n, 1, dy->n, x->n, n, dw, true));
    }
    return DR_OK;
}

int64_t dr_bf16_lanes_memory(const dr_backend *b, int64_t T, int64_t n_out, int64_t n_in) {
    return (T * n_out + (W_ROWS > T ? W_ROWS : T) * n_in + dr_panels_floats(W_ROWS, n_in) +
            (int64_t)DR_PANEL * n_in * b->n_threads) *
           (int64_t)sizeof(float);
}

int64_t dr_bf16_lanes_rounded(const dr_backend *b, const dr_pass_shape *s) {
    int64_t T = dr_rows_chunk(b, s->T), rows = W_ROWS > T ? W_ROWS : T;
    return (T * s->n_out + rows * (s->n_in > s->n_out ? s->n_in : s->n_out)) * (int64_t)sizeof(float);
}
