// The fp32 product of the CPU body: packed panels of 32 columns and a register-blocked kernel of up to 12
// rows. Each output element accumulates k in order, so results are row-exact by construction; blocks of k go
// through memory without rounding.
#include "core/compute/cpu_internal.h"

// What is taken of k at a time: K_BLOCK rows of a panel stay near while rows pass; with a transposed left
// side more, so that the result, which is large there, is loaded and stored less often, and SETS sets of ROWS
// rows pass over each panel. LINE: floats.
enum { K_BLOCK = 512, DEEP = 1024, ROWS = 12, SETS = 4, LINE = 16 };

// R rows x 2 vectors of columns over k rows of a panel. The R rows behind them are fetched meanwhile: rows
// are too short for the processor to foresee what follows.
#define KERNEL(R, VECTOR, LANES)                                                                             \
    DR_INLINE void kernel_##R##x##LANES(const float *a, int64_t a_row, int64_t a_column, const float *panel, \
                                        int64_t k, float *c, int64_t c_row, int first) {                     \
        VECTOR low[R], high[R];                                                                              \
        for (int r = 0; r < R; r++) {                                                                        \
            low[r] = first ? (VECTOR){0} : *(const VECTOR *)(c + r * c_row);                                 \
            high[r] = first ? (VECTOR){0} : *(const VECTOR *)(c + r * c_row + LANES);                        \
        }                                                                                                    \
        for (int64_t kk = 0; kk < k; kk++) {                                                                 \
            VECTOR b0 = *(const VECTOR *)(panel + kk * DR_PANEL),                                            \
                   b1 = *(const VECTOR *)(panel + kk * DR_PANEL + LANES);                                    \
            const float *column = a + kk * a_column;                                                         \
            if (kk % LINE == 0)                                                                              \
                for (int r = 0; r < R; r++) __builtin_prefetch(column + (R + r) * a_row, 0, 2);              \
            for (int r = 0; r < R; r++) {                                                                    \
                float value = column[r * a_row];                                                             \
                low[r] += value * b0;                                                                        \
                high[r] += value * b1;                                                                       \
            }                                                                                                \
        }                                                                                                    \
        for (int r = 0; r < R; r++) {                                                                        \
            *(VECTOR *)(c + r * c_row) = low[r];                                                             \
            *(VECTOR *)(c + r * c_row + LANES) = high[r];                                                    \
        }                                                                                                    \
    }
KERNEL(1, vec16, 16)
KERNEL(2, vec16, 16)
KERNEL(4, vec16, 16)
KERNEL(8, vec16, 16)
KERNEL(12, vec16, 16)
KERNEL(1, vec8, 8)
KERNEL(2, vec8, 8)
KERNEL(4, vec8, 8)
KERNEL(6, vec8, 8)
#undef KERNEL

// R rows x one vector of columns, for what is left of a matrix.
#define KERNEL(R, VECTOR, LANES)                                                                             \
    DR_INLINE void single_##R##x##LANES(const float *a, int64_t a_row, int64_t a_column, const float *panel, \
                                        int64_t k, float *c, int64_t c_row, int first) {                     \
        VECTOR sum[R];                                                                                       \
        for (int r = 0; r < R; r++) sum[r] = first ? (VECTOR){0} : *(const VECTOR *)(c + r * c_row);         \
        for (int64_t kk = 0; kk < k; kk++) {                                                                 \
            VECTOR b0 = *(const VECTOR *)(panel + kk * DR_PANEL);                                            \
            if (kk % LINE == 0)                                                                              \
                for (int r = 0; r < R; r++) __builtin_prefetch(a + kk * a_column + (R + r) * a_row, 0, 2);   \
            for (int r = 0; r < R; r++) sum[r] += a[kk * a_column + r * a_row] * b0;                         \
        }                                                                                                    \
        for (int r = 0; r < R; r++) *(VECTOR *)(c + r * c_row) = sum[r];                                     \
    }
KERNEL(1, vec16, 16)
KERNEL(2, vec16, 16)
KERNEL(4, vec16, 16)
KERNEL(12, vec16, 16)
KERNEL(1, vec8, 8)
KERNEL(2, vec8, 8)
KERNEL(4, vec8, 8)
KERNEL(12, vec8, 8)
#undef KERNEL

// Rows of c by a panel, or by its first `width` columns rounded up to whole vectors.
DR_INLINE void run_rows_wide(const float *a, int64_t a_row, int64_t a_column, const float *panel, int64_t m,
                             int64_t k, float *c, int64_t c_row, int64_t width, int first) {
    int64_t i = 0;
#define STEP(NAME, R) NAME(a + i * a_row, a_row, a_column, panel, k, c + i * c_row, c_row, first), i += R
    if (width <= 16) {
        while (i + 12 <= m) STEP(single_12x16, 12);
        while (i + 4 <= m) STEP(single_4x16, 4);
        if (i + 2 <= m) STEP(single_2x16, 2);
        if (i < m) STEP(single_1x16, 1);
        return;
    }
    while (i + 12 <= m) STEP(kernel_12x16, 12);
    if (i + 8 <= m) STEP(kernel_8x16, 8);
    if (i + 4 <= m) STEP(kernel_4x16, 4);
    if (i + 2 <= m) STEP(kernel_2x16, 2);
    if (i < m) STEP(kernel_1x16, 1);
#undef STEP
}

// Half a panel at a time: 12 sums and their operands are what 16 registers hold.
DR_INLINE void run_rows_narrow(const float *a, int64_t a_row, int64_t a_column, const float *panel, int64_t m,
                               int64_t k, float *c, int64_t c_row, int64_t width, int first) {
    for (int half = 0; half < width; half += 16) {
        int64_t i = 0;
#define STEP(NAME, R)                                                                                        \
    NAME(a + i * a_row, a_row, a_column, panel + half, k, c + i * c_row + half, c_row, first), i += R
        if (width - half <= 8) {
            while (i + 12 <= m) STEP(single_12x8, 12);
            while (i + 4 <= m) STEP(single_4x8, 4);
            if (i + 2 <= m) STEP(single_2x8, 2);
            if (i < m) STEP(single_1x8, 1);
            return;
        }
        while (i + 6 <= m) STEP(kernel_6x8, 6);
        if (i + 4 <= m) STEP(kernel_4x8, 4);
        if (i + 2 <= m) STEP(kernel_2x8, 2);
        if (i < m) STEP(kernel_1x8, 1);
#undef STEP
    }
}

DR_INLINE void run_rows(bool wide, const float *a, int64_t a_row, int64_t a_column, const float *panel,
                        int64_t m, int64_t k, float *c, int64_t c_row, int64_t width, int first) {
    if (wide)
        run_rows_wide(a, a_row, a_column, panel, m, k, c, c_row, width, first);
    else
        run_rows_narrow(a, a_row, a_column, panel, m, k, c, c_row, width, first);
}

// The last panel may be narrower than 32 columns: it is computed in a small block and copied.
DR_INLINE void run_edge(bool wide, const float *a, int64_t a_row, int64_t a_column, const float *panel,
                        int64_t m, int64_t k, float *c, int64_t c_row, int64_t width, int first) {
    float block[ROWS * DR_PANEL] __attribute__((aligned(64)));
    for (int64_t i = 0; i < m; i += ROWS) {
        int64_t rows = m - i < ROWS ? m - i : ROWS;
        for (int64_t r = 0; r < rows && !first; r++)
            for (int64_t j = 0; j < DR_PANEL; j++)
                block[r * DR_PANEL + j] = j < width ? c[(i + r) * c_row + j] : 0.0f;
        run_rows(wide, a + i * a_row, a_row, a_column, panel, rows, k, block, DR_PANEL, width, first);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t j = 0; j < width; j++) c[(i + r) * c_row + j] = block[r * DR_PANEL + j];
    }
}

// All panels of one block of k: `panels` points at the block's first row of panel 0, panels are k rows apart.
DR_INLINE void run_panels(bool wide, const float *a, int64_t a_row, int64_t a_column, const float *panels,
                          int64_t m, int64_t n, int64_t k, int64_t depth, int64_t first_panel,
                          int64_t n_panels, float *c, int64_t c_row, int first) {
    for (int64_t p = first_panel; p < first_panel + n_panels; p++) {
        const float *panel = panels + p * DR_PANEL * k;
        int64_t width = n - p * DR_PANEL;
        if (width <= 0) break;
        if (width >= DR_PANEL)
            run_rows(wide, a, a_row, a_column, panel, m, depth, c + p * DR_PANEL, c_row, DR_PANEL, first);
        else
            run_edge(wide, a, a_row, a_column, panel, m, depth, c + p * DR_PANEL, c_row, width, first);
    }
}

// The same for a transposed left side: its columns lie far apart in memory, so SETS sets of rows are packed
// first, each [depth][ROWS], and pass over a panel one after the other.
DR_INLINE void run_transposed(bool wide, const float *a, int64_t a_row, int64_t a_column, const float *panels,
                              int64_t m, int64_t n, int64_t k, int64_t depth, int64_t first_panel,
                              int64_t n_panels, float *c, int64_t c_row, int first) {
    float sets[SETS][DEEP * ROWS] __attribute__((aligned(64)));
    for (int64_t i = 0; i < m; i += SETS * ROWS) {
        int64_t rows = m - i < SETS * ROWS ? m - i : SETS * ROWS;
        for (int64_t kk = 0; kk < depth; kk++)
            for (int64_t r0 = 0; r0 < rows; r0 += ROWS) {
                const float *from = a + (i + r0) * a_row + kk * a_column;
                float *to = sets[r0 / ROWS] + kk * ROWS;
                if (a_row == 1 && r0 + ROWS <= rows)
                    memcpy(to, from, ROWS * sizeof(float));
                else
                    for (int64_t r = 0; r < ROWS && r0 + r < rows; r++) to[r] = from[r * a_row];
            }
        for (int64_t p = first_panel; p < first_panel + n_panels; p++)
            for (int64_t r0 = 0; r0 < rows; r0 += ROWS)
                run_panels(wide, sets[r0 / ROWS], 1, ROWS, panels, rows - r0 < ROWS ? rows - r0 : ROWS, n, k,
                           depth, p, 1, c + (i + r0) * c_row, c_row, first);
    }
}

DR_INLINE void multiply(bool wide, bool transposed, const float *a, int64_t a_row, int64_t a_column,
                        const float *panels, int64_t m, int64_t n, int64_t k, int64_t first_panel,
                        int64_t n_panels, float *c, int64_t c_row, bool accumulate) {
    int64_t block = transposed ? DEEP : K_BLOCK;
    for (int64_t k0 = 0; k0 < k; k0 += block) {
        int64_t depth = k - k0 < block ? k - k0 : block;
        int first = k0 == 0 && !accumulate;
        if (transposed)
            run_transposed(wide, a + k0 * a_column, a_row, a_column, panels + k0 * DR_PANEL, m, n, k, depth,
                           first_panel, n_panels, c, c_row, first);
        else
            run_panels(wide, a + k0 * a_column, a_row, a_column, panels + k0 * DR_PANEL, m, n, k, depth,
                       first_panel, n_panels, c, c_row, first);
    }
}

// A function each: compilers do worse with two loops of the kernel in one.
#define MULTIPLY(NAME, TARGET, WIDE, TRANSPOSED)                                                             \
    static TARGET void NAME(const float *a, int64_t a_row, int64_t a_column, const float *panels, int64_t m, \
                            int64_t n, int64_t k, int64_t first_panel, int64_t n_panels, float *c,           \
                            int64_t c_row, bool accumulate) {                                                \
        multiply(WIDE, TRANSPOSED, a, a_row, a_column, panels, m, n, k, first_panel, n_panels, c, c_row,     \
                 accumulate);                                                                                \
    }
MULTIPLY(multiply_narrow, DR_HOT, false, false)
MULTIPLY(multiply_narrow_transposed, DR_HOT, false, true)
MULTIPLY(multiply_wide, DR_WIDE, true, false)
MULTIPLY(multiply_wide_transposed, DR_WIDE, true, true)
#undef MULTIPLY

void dr_panels_multiply(const float *a, int64_t a_row, int64_t a_column, const float *panels, int64_t m,
                        int64_t n, int64_t k, int64_t first_panel, int64_t n_panels, float *c, int64_t c_row,
                        bool accumulate) {
    if (k == 0 && !accumulate) {
        for (int64_t i = 0; i < m; i++)
            for (int64_t j = first_panel * DR_PANEL; j < n && j < (first_panel + n_panels) * DR_PANEL; j++)
                c[i * c_row + j] = 0;
        return;
    }
    typedef void product(const float *, int64_t, int64_t, const float *, int64_t, int64_t, int64_t, int64_t,
                         int64_t, float *, int64_t, bool);
    static product *const body[][2] = {{multiply_narrow, multiply_narrow_transposed},
                                       {multiply_wide, multiply_wide_transposed}};
    body[dr_cpu_is_wide()][a_column != 1 && m >= ROWS](a, a_row, a_column, panels, m, n, k, first_panel,
                                                       n_panels, c, c_row, accumulate);
}

DR_HOT void dr_panels_pack(const float *b, int64_t row_stride, int64_t column_stride, int64_t k, int64_t n,
                           int64_t first_panel, int64_t n_panels, float *panels) {
    for (int64_t p = first_panel; p < first_panel + n_panels; p++) {
        float *panel = panels + p * DR_PANEL * k;
        int64_t width = n - p * DR_PANEL < DR_PANEL ? n - p * DR_PANEL : DR_PANEL;
        const float *corner = b + p * DR_PANEL * column_stride;
        if (column_stride == 1 && width == DR_PANEL) {
            for (int64_t kk = 0; kk < k; kk++)
                memcpy(panel + kk * DR_PANEL, corner + kk * row_stride, DR_PANEL * sizeof(float));
            continue;
        }
        if (width < DR_PANEL) memset(panel, 0, (size_t)(k * DR_PANEL) * sizeof(float));
        for (int64_t k0 = 0; k0 < k; k0 += 16)
            for (int64_t j = 0; j < width; j++)
                for (int64_t kk = k0; kk < k0 + 16 && kk < k; kk++)
                    panel[kk * DR_PANEL + j] = corner[kk * row_stride + j * column_stride];
    }
}

// Many rows: cut rows, into as many blocks for each thread, of whole sets of `whole` rows; few rows: cut
// columns only.
static int64_t row_block_of(int64_t m, int threads, int64_t whole) {
    const int64_t most = 192;
    if (m < most * threads) return m;
    int64_t n_blocks = ((m + most - 1) / most + threads - 1) / threads * threads,
            rows = (m + n_blocks - 1) / n_blocks;
    return (rows + whole - 1) / whole * whole;
}

// Work is cut into row blocks × column groups of similar size; each piece is computed whole by one thread,
// whichever is free: of many pieces a thread that was held up takes fewer.
static void multiply_threaded(dr_backend *b, const float *a, int64_t a_row, int64_t a_column,
                              const float *panels, int64_t m, int64_t n, int64_t k, float *c,
                              bool accumulate) {
    int64_t n_panels = (n + DR_PANEL - 1) / DR_PANEL;
    int threads = b->n_threads;
    if (threads == 1 || m * n * k < 32768) {
        dr_panels_multiply(a, a_row, a_column, panels, m, n, k, 0, n_panels, c, n, accumulate);
        return;
    }
    int64_t row_block = row_block_of(m, threads, a_column == 1 ? ROWS : SETS * ROWS);
    int64_t n_row_blocks = (m + row_block - 1) / row_block;
    int64_t group = n_row_blocks >= threads ? n_panels : (n_panels + threads - 1) / threads;
    int64_t n_groups = (n_panels + group - 1) / group;
#pragma omp parallel for num_threads(threads) collapse(2) schedule(dynamic)
    for (int64_t rb = 0; rb < n_row_blocks; rb++)
        for (int64_t g = 0; g < n_groups; g++) {
            int64_t i = rb * row_block, rows = m - i < row_block ? m - i : row_block;
            int64_t p = g * group, count = n_panels - p < group ? n_panels - p : group;
            dr_panels_multiply(a + i * a_row, a_row, a_column, panels, rows, n, k, p, count, c + i * n, n,
                               accumulate);
        }
}

static void pack_threaded(dr_backend *b, const float *b_matrix, int64_t b_row, int64_t b_column, int64_t k,
                          int64_t n, float *panels) {
    int64_t n_panels = (n + DR_PANEL - 1) / DR_PANEL;
    if (b->n_threads == 1 || k * n < 65536) {
        dr_panels_pack(b_matrix, b_row, b_column, k, n, 0, n_panels, panels);
        return;
    }
#pragma omp parallel for num_threads(b->n_threads) schedule(static)
    for (int64_t p = 0; p < n_panels; p++) dr_panels_pack(b_matrix, b_row, b_column, k, n, p, 1, panels);
}

// In parts of DR_DEPTH of k, so that the packed operand is never larger: each output goes on from where the
// part before left it, which is the same chain.
dr_status dr_cpu_product(dr_backend *b, const float *a, int64_t a_row, int64_t a_column,
                         const float *b_matrix, int64_t b_row, int64_t b_column, int64_t m, int64_t n,
                         int64_t k, float *c, bool accumulate) {
    dr_scratch *scratch = &dr_cpu_state_of(b)->shared;
    DR_TRY(dr_scratch_reserve(scratch, dr_panels_floats(k < DR_DEPTH ? k : DR_DEPTH, n)));
    for (int64_t at = 0; at == 0 || at < k; at += DR_DEPTH) {
        int64_t depth = k - at < DR_DEPTH ? k - at : DR_DEPTH;
        pack_threaded(b, b_matrix + at * b_row, b_row, b_column, depth, n, scratch->data);
        multiply_threaded(b, a + at * a_column, a_row, a_column, scratch->data, m, n, depth, c,
                          accumulate || at > 0);
    }
    return DR_OK;
}
