// y = x Wᵀ in fp32 from W as it stands in memory, [n_out, n_in], without a packed copy of it. Tokens are
// packed instead, 32 to a panel, and rows of W go through the product's kernel as its left side; what comes
// out, [rows of W, tokens], is turned over into y. With few tokens W is turned over in registers, 8 x 8 at a
// time. Each output is the same chain over k in both ways.
#include <omp.h>

#include "core/compute/cpu_internal.h"

enum {
    FEW = 4,      // tokens at most for the way in registers
    SQUARE = 8,   // lanes of a turned-over block
    TOKENS = 128, // of one piece of work
    W_ROWS = 48   // whose products with a piece's tokens are turned over together
};

// ---- squares of 8 x 8 ----

#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (int8v){__VA_ARGS__})
#endif

// Rows become columns: pairs, then fours, then halves.
DR_INLINE void turn_square(vec8 m[SQUARE]) {
    vec8 two[SQUARE], four[SQUARE];
    for (int i = 0; i < SQUARE; i += 2) {
        two[i] = SHUFFLE(m[i], m[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
        two[i + 1] = SHUFFLE(m[i], m[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
    }
    for (int i = 0; i < SQUARE; i += 4)
        for (int j = 0; j < 2; j++) {
            four[i + 2 * j] = SHUFFLE(two[i + j], two[i + 2 + j], 0, 1, 8, 9, 4, 5, 12, 13);
            four[i + 2 * j + 1] = SHUFFLE(two[i + j], two[i + 2 + j], 2, 3, 10, 11, 6, 7, 14, 15);
        }
    for (int j = 0; j < 4; j++) {
        m[j] = SHUFFLE(four[j], four[j + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        m[j + 4] = SHUFFLE(four[j], four[j + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
}

DR_HOT void dr_turn_over(const float *from, int64_t from_row, int64_t rows, int64_t columns, float *to,
                         int64_t to_row) {
    int64_t whole_rows = rows / SQUARE * SQUARE, whole_columns = columns / SQUARE * SQUARE;
    for (int64_t r = 0; r < whole_rows; r += SQUARE)
        for (int64_t c = 0; c < whole_columns; c += SQUARE) {
            vec8 m[SQUARE];
            for (int i = 0; i < SQUARE; i++) m[i] = *(const vec8 *)(from + (r + i) * from_row + c);
            turn_square(m);
            for (int i = 0; i < SQUARE; i++) *(vec8 *)(to + (c + i) * to_row + r) = m[i];
        }
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = r < whole_rows ? whole_columns : 0; c < columns; c++)
            to[c * to_row + r] = from[r * from_row + c];
}

// ---- few tokens ----

// Eight rows of W over k, k + 1, … k + 7, for T tokens; T is a constant where this is inlined.
DR_INLINE void add_square(int T, const float *x, int64_t n_in, const float *const *row, int64_t k,
                          vec8 *sum) {
    vec8 m[SQUARE];
    for (int i = 0; i < SQUARE; i++) m[i] = DR_LOAD8(row[i] + k);
    turn_square(m);
    for (int i = 0; i < SQUARE; i++)
        for (int t = 0; t < T; t++) sum[t] += x[t * n_in + k + i] * m[i];
}

// T tokens with 16 rows of W, of which `rows` at most are there. The 16 rows behind them are fetched
// meanwhile: a row is too short for the processor to foresee what follows.
DR_INLINE void few_tokens(int T, const float *x, int64_t n_in, const float *w, int64_t rows, float *y,
                          int64_t y_row) {
    const float *row[2 * SQUARE];
    vec8 sum[2][FEW];
    for (int i = 0; i < 2 * SQUARE; i++) row[i] = w + (i < rows ? i : rows - 1) * n_in;
    for (int half = 0; half < 2; half++)
        for (int t = 0; t < T; t++) sum[half][t] = (vec8){0};
    int64_t k = 0, ahead = rows > 4 * SQUARE ? 2 * SQUARE * n_in : 0;
    for (; k + 2 * SQUARE <= n_in; k += 2 * SQUARE)
        for (int half = 0; half < 2; half++) {
            for (int i = 0; i < SQUARE; i++) __builtin_prefetch(row[half * SQUARE + i] + ahead + k, 0, 2);
            add_square(T, x, n_in, row + half * SQUARE, k, sum[half]);
            add_square(T, x, n_in, row + half * SQUARE, k + SQUARE, sum[half]);
        }
    if (k + SQUARE <= n_in) {
        for (int half = 0; half < 2; half++) add_square(T, x, n_in, row + half * SQUARE, k, sum[half]);
        k += SQUARE;
    }
    for (; k < n_in; k++)
        for (int half = 0; half < 2; half++) {
            vec8 column = {0};
            for (int i = 0; i < SQUARE; i++) column[i] = row[half * SQUARE + i][k];
            for (int t = 0; t < T; t++) sum[half][t] += x[t * n_in + k] * column;
        }
    for (int t = 0; t < T; t++)
        for (int i = 0; i < 2 * SQUARE && i < rows; i++) y[t * y_row + i] = sum[i / SQUARE][t][i % SQUARE];
}

// Compiled as the product's kernel is, so that both fuse alike in every build.
#define FEW_TOKENS(T)                                                                                        \
    static DR_HOT void few_tokens_narrow_##T(const float *x, int64_t n_in, const float *w, int64_t begin,    \
                                             int64_t end, float *y, int64_t n_out) {                         \
        for (int64_t o = begin; o < end; o += 2 * SQUARE)                                                    \
            few_tokens(T, x, n_in, w + o * n_in, end - o, y + o, n_out);                                     \
    }                                                                                                        \
    static DR_WIDE void few_tokens_wide_##T(const float *x, int64_t n_in, const float *w, int64_t begin,     \
                                            int64_t end, float *y, int64_t n_out) {                          \
        for (int64_t o = begin; o < end; o += 2 * SQUARE)                                                    \
            few_tokens(T, x, n_in, w + o * n_in, end - o, y + o, n_out);                                     \
    }
FEW_TOKENS(1)
FEW_TOKENS(2)
FEW_TOKENS(3)
FEW_TOKENS(4)
#undef FEW_TOKENS

// ---- many tokens ----

// Panels of 32 tokens: [n_in][32], zeros where there is no token.
static void pack_tokens(const float *x, int64_t T, int64_t n_in, float *panels) {
    for (int64_t t = 0; t < T; t += DR_PANEL) {
        int64_t n = T - t < DR_PANEL ? T - t : DR_PANEL;
        float *panel = panels + t * n_in;
        if (n < DR_PANEL) memset(panel, 0, (size_t)(DR_PANEL * n_in) * sizeof(float));
        dr_turn_over(x + t * n_in, n_in, n, n_in, panel, DR_PANEL);
    }
}

// T packed tokens with rows begin … end - 1 of W. turned: W_ROWS * T floats of scratch.
static void many_tokens(const float *panels, int64_t T, int64_t n_in, const float *w, int64_t begin,
                        int64_t end, float *turned, float *y, int64_t n_out) {
    for (int64_t o = begin; o < end; o += W_ROWS) {
        int64_t rows = end - o < W_ROWS ? end - o : W_ROWS;
        dr_panels_multiply(w + o * n_in, n_in, 1, panels, rows, T, n_in, 0, (T + DR_PANEL - 1) / DR_PANEL,
                           turned, T, false);
        dr_turn_over(turned, T, rows, T, y + o, n_out);
    }
}

// Where work is cut: enough tokens, and each thread takes its own; few, and each takes a part of W's rows.
typedef struct pieces {
    int64_t tokens, n_token_pieces, rows, n_row_pieces;
} pieces;

static pieces cut(int64_t T, int64_t n_out, int threads) {
    pieces p = {.tokens = T < TOKENS ? T : TOKENS, .rows = n_out};
    p.n_token_pieces = (T + p.tokens - 1) / p.tokens;
    if (p.n_token_pieces < threads) {
        p.rows = (n_out + threads - 1) / threads;
        p.rows = (p.rows + 2 * SQUARE - 1) / (2 * SQUARE) * (2 * SQUARE);
    }
    p.n_row_pieces = (n_out + p.rows - 1) / p.rows;
    return p;
}

static void run_piece(const dr_weight *w, const float *x, int64_t T, int64_t begin, int64_t end,
                      float *scratch, float *y) {
    typedef void few(const float *, int64_t, const float *, int64_t, int64_t, float *, int64_t);
    static few *const few_of[][2] = {{few_tokens_narrow_1, few_tokens_wide_1},
                                     {few_tokens_narrow_2, few_tokens_wide_2},
                                     {few_tokens_narrow_3, few_tokens_wide_3},
                                     {few_tokens_narrow_4, few_tokens_wide_4}};
    if (T <= FEW) {
        few_of[T - 1][dr_cpu_is_wide()](x, w->n_in, w->values, begin, end, y, w->n_out);
        return;
    }
    float *turned = scratch + dr_panels_floats(w->n_in, T);
    pack_tokens(x, T, w->n_in, scratch);
    many_tokens(scratch, T, w->n_in, w->values, begin, end, turned, y, w->n_out);
}

int64_t dr_cpu_weight_floats(const dr_pass_shape *s) {
    int64_t tokens = s->T < TOKENS ? s->T : TOKENS;
    return dr_panels_floats(s->n_in, tokens) + W_ROWS * tokens;
}

dr_status dr_cpu_apply_weight(dr_backend *b, const dr_weight *w, const float *x, int64_t T, float *y) {
    dr_cpu_state *state = dr_cpu_state_of(b);
    if (T == 0) return DR_OK;
    pieces p = cut(T, w->n_out, b->n_threads);
    for (int i = 0; i < b->n_threads && p.tokens > FEW; i++)
        DR_TRY(
            dr_scratch_reserve(&state->thread[i], dr_panels_floats(w->n_in, p.tokens) + W_ROWS * p.tokens));
#pragma omp parallel for num_threads(b->n_threads) collapse(2) schedule(static) if (b->n_threads > 1)
    for (int64_t i = 0; i < p.n_token_pieces; i++)
        for (int64_t j = 0; j < p.n_row_pieces; j++) {
            int64_t t = i * p.tokens, n = T - t < p.tokens ? T - t : p.tokens, begin = j * p.rows,
                    end = begin + p.rows < w->n_out ? begin + p.rows : w->n_out;
            run_piece(w, x + t * w->n_in, n, begin, end, state->thread[omp_get_thread_num()].data,
                      y + t * w->n_out);
        }
    return DR_OK;
}
