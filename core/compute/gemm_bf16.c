// bf16 products through oneDNN, on processors with AMX (and in tests with AVX512-BF16): operands rounded to
// nearest even, sums in fp32, results in fp32 or rounded. Rows are taken in chunks of 512 and the rest in
// powers of two, so that a handful of primitives per matrix serves every batch size. Weights: [n_out, n_in].
#include <dnnl.h>
#include <omp.h>

#include "core/base/alloc.h"
#include "core/compute/cpu_internal.h"

enum { ROW_LEAST = 16, TABLE = 512 };

// c [m, n] = a · b: a [m, k] or its transpose in memory, b as a packed weight or dense [k, n].
typedef struct product_key {
    int64_t m, n, k;
    int64_t a_transposed, b_transposed, accumulate,
        rounded; // rounded: c is bf16; no padding: keys are compared as bytes
} product_key;

typedef struct product {
    product_key key;
    dnnl_primitive_t primitive;
    dnnl_memory_t a, b, c;
} product;

struct dr_bf16 {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    int n_threads;
    product table[TABLE];
    bf16 *a, *b; // rounded operands
    float *c;    // padded result, of either type
    int64_t a_count, b_count, c_count;
};

static dr_status dnnl_check(dnnl_status_t status, const char *what) {
    DR_CHECK(status == dnnl_success, DR_ERR_INTERNAL, "oneDNN: %s failed with status %d", what, (int)status);
    return DR_OK;
}

dr_status dr_bf16_create(int n_threads, struct dr_bf16 **out) {
    struct dr_bf16 *self = NULL;
    DR_TRY(dr_alloc(&self, "bf16 products", 1, sizeof *self));
    self->n_threads = n_threads;
    dr_status status;
    DR_TRY_GOTO(status, dnnl_check(dnnl_engine_create(&self->engine, dnnl_cpu, 0), "engine"), free_self);
    DR_TRY_GOTO(status,
                dnnl_check(dnnl_stream_create(&self->stream, self->engine, dnnl_stream_in_order), "stream"),
                destroy_engine);
    *out = self;
    return DR_OK;
destroy_engine:
    dnnl_engine_destroy(self->engine);
free_self:
    dr_free(self);
    return status;
}

void dr_bf16_destroy(struct dr_bf16 *self) {
    if (!self) return;
    for (int i = 0; i < TABLE; i++)
        if (self->table[i].primitive) {
            dnnl_primitive_destroy(self->table[i].primitive);
            dnnl_memory_destroy(self->table[i].a);
            dnnl_memory_destroy(self->table[i].b);
            dnnl_memory_destroy(self->table[i].c);
        }
    dnnl_stream_destroy(self->stream);
    dnnl_engine_destroy(self->engine);
    dr_free(self->a);
    dr_free(self->b);
    dr_free(self->c);
    dr_free(self);
}

static dr_status describe(dnnl_memory_desc_t *md, int64_t rows, int64_t columns, dnnl_data_type_t type,
                          int transposed) {
    dnnl_dims_t dims = {rows, columns}, strides = {transposed ? 1 : columns, transposed ? rows : 1};
    return dnnl_check(dnnl_memory_desc_init_by_strides(md, 2, dims, type, strides), "memory description");
}

static dr_status product_create(struct dr_bf16 *self, const product_key *key, product *out) {
    dnnl_memory_desc_t a, b, c;
    DR_TRY(describe(&a, key->m, key->k, dnnl_bf16, key->a_transposed != 0));
    DR_TRY(describe(&b, key->k, key->n, dnnl_bf16, key->b_transposed != 0));
    DR_TRY(describe(&c, key->m, key->n, key->rounded ? dnnl_bf16 : dnnl_f32, 0));
    dnnl_matmul_desc_t desc;
    DR_TRY(dnnl_check(dnnl_matmul_desc_init(&desc, &a, &b, NULL, &c), "matmul description"));
    dnnl_primitive_attr_t attr;
    DR_TRY(dnnl_check(dnnl_primitive_attr_create(&attr), "attributes"));
    dnnl_post_ops_t sum = NULL;
    if (key->accumulate) {
        dnnl_post_ops_create(&sum);
        dnnl_post_ops_append_sum(sum, 1.0f);
        dnnl_primitive_attr_set_post_ops(attr, sum);
    }
    dnnl_primitive_desc_t pd;
    dr_status status =
        dnnl_check(dnnl_primitive_desc_create(&pd, &desc, attr, self->engine, NULL), "bf16 matmul");
    if (status == DR_OK) {
        status = dnnl_check(dnnl_primitive_create(&out->primitive, pd), "primitive");
        dnnl_primitive_desc_destroy(pd);
    }
    if (sum) dnnl_post_ops_destroy(sum);
    dnnl_primitive_attr_destroy(attr);
    DR_TRY(status);
    DR_TRY(dnnl_check(dnnl_memory_create(&out->a, &a, self->engine, NULL), "memory"));
    DR_TRY(dnnl_check(dnnl_memory_create(&out->b, &b, self->engine, NULL), "memory"));
    DR_TRY(dnnl_check(dnnl_memory_create(&out->c, &c, self->engine, NULL), "memory"));
    out->key = *key;
    return DR_OK;
}

static dr_status product_find(struct dr_bf16 *self, const product_key *key, product **out) {
    uint64_t hash =
        (uint64_t)key->m * 0x9E3779B97F4A7C15u ^ (uint64_t)key->n * 0xC2B2AE3D27D4EB4Fu ^
        (uint64_t)key->k * 0x165667B19E3779F9u ^
        (uint64_t)(key->a_transposed | key->b_transposed << 1 | key->accumulate << 2 | key->rounded << 3) *
            0x27D4EB2F165667C5u;
    for (int probe = 0; probe < TABLE; probe++) {
        product *entry = &self->table[((hash >> 32) + (uint64_t)probe) % TABLE];
        if (!entry->primitive) {
            DR_TRY(product_create(self, key, entry));
            *out = entry;
            return DR_OK;
        }
        if (memcmp(&entry->key, key, sizeof *key) == 0) {
            *out = entry;
            return DR_OK;
        }
    }
    return DR_FAIL(DR_ERR_INTERNAL, "bf16 products: more than %d shapes", TABLE);
}

static dr_status product_run(struct dr_bf16 *self, const product_key *key, const bf16 *a, const bf16 *b,
                             void *c) {
    product *p = NULL;
    omp_set_num_threads(self->n_threads); // the library asks OpenMP, and other bodies have other numbers
    DR_TRY(product_find(self, key, &p));
    dnnl_memory_set_data_handle(p->a, (void *)(uintptr_t)a);
    dnnl_memory_set_data_handle(p->b, (void *)(uintptr_t)b);
    dnnl_memory_set_data_handle(p->c, c);
    dnnl_exec_arg_t args[] = {{DNNL_ARG_SRC, p->a}, {DNNL_ARG_WEIGHTS, p->b}, {DNNL_ARG_DST, p->c}};
    DR_TRY(dnnl_check(dnnl_primitive_execute(p->primitive, self->stream, 3, args), "execution"));
    return dnnl_check(dnnl_stream_wait(self->stream), "execution");
}

static dr_status reserve(void *pointer, int64_t *count, int64_t need, size_t size, const char *label) {
    if (need <= *count) return DR_OK;
    DR_TRY(dr_grow(pointer, label, *count, need + need / 4, size));
    *count = need + need / 4;
    return DR_OK;
}

// *out: the rows as bf16, in the buffer with zeros behind them, or where they are when that is all.
static dr_status round_rows(dr_backend *b, const dr_rows *x, int64_t rows, int64_t padded, bf16 **buffer,
                            int64_t *count, const bf16 **out) {
    *out = x->rounded;
    if (x->rounded && !x->is_gated && rows == padded) return DR_OK;
    DR_TRY(reserve(buffer, count, padded * x->n, sizeof(bf16), "bf16 operand"));
    DR_TRY(dr_rows_bf16(b, x, rows, *buffer));
    memset(*buffer + rows * x->n, 0, (size_t)((padded - rows) * x->n) * sizeof(bf16));
    *out = *buffer;
    return DR_OK;
}

static int64_t bucket(int64_t rows) {
    int64_t size = ROW_LEAST;
    while (size < rows) size *= 2;
    return size;
}

static dr_status weight_reserve(dr_weight *w) {
    return w->bf16 ? DR_OK : dr_alloc(&w->bf16, "bf16 weight", w->n_out * w->n_in, sizeof(bf16));
}

dr_status dr_bf16_weight_pack(struct dr_bf16 *self, dr_weight *w, const float *values) {
    DR_TRY(weight_reserve(w));
    dr_bf16_round(values, w->n_out * w->n_in, self->n_threads, w->bf16);
    return DR_OK;
}

dr_status dr_bf16_weight_take(dr_weight *w, int64_t first, int64_t n, const bf16 *rounded) {
    DR_TRY(weight_reserve(w));
    memcpy((bf16 *)w->bf16 + first, rounded, (size_t)n * sizeof *rounded);
    return DR_OK;
}

void dr_bf16_row(const dr_weight *w, int64_t row, float *out) {
    const bf16 *values = (const bf16 *)w->bf16 + row * w->n_in;
    for (int64_t i = 0; i < w->n_in; i++) out[i] = dr_bf16_value(values[i]);
}

// c [T, n] (+)= x [T, k] · W or Wᵀ, in row chunks.
static dr_status rows_product(dr_backend *b, const dr_rows *x, int64_t T, int64_t n, const bf16 *w,
                              int w_transposed, const dr_result *c, bool accumulate) {
    struct dr_bf16 *self = dr_cpu_state_of(b)->bf16;
    const size_t row = (size_t)n * (c->rounded ? sizeof(bf16) : sizeof(float));
    for (int64_t t = 0; t < T; t += DR_UNIT_ROWS) {
        const dr_rows chunk = dr_rows_from(x, t);
        const dr_result at = dr_result_at(c, t * n);
        const bf16 *a = NULL;
        int64_t rows = T - t < DR_UNIT_ROWS ? T - t : DR_UNIT_ROWS, padded = bucket(rows);
        DR_TRY(round_rows(b, &chunk, rows, padded, &self->a, &self->a_count, &a));
        void *to = at.rounded ? (void *)at.rounded : at.values;
        bool direct = padded == rows;
        if (!direct) {
            DR_TRY(reserve(&self->c, &self->c_count, padded * n, sizeof(float), "bf16 result"));
            if (accumulate) memcpy(self->c, to, (size_t)rows * row);
        }
        product_key key = {padded, n, x->n, 0, w_transposed, accumulate, c->rounded != NULL};
        DR_TRY(product_run(self, &key, a, w, direct ? to : self->c));
        if (!direct) memcpy(to, self->c, (size_t)rows * row);
    }
    return DR_OK;
}

dr_status dr_bf16_forward(dr_backend *b, const dr_weight *w, const dr_rows *x, int64_t T,
                          const dr_result *y) {
    return rows_product(b, x, T, w->n_out, w->bf16, 1, y, false);
}

dr_status dr_bf16_backward_input(dr_backend *b, const dr_weight *w, const dr_rows *dy, int64_t T, float *dx,
                                 bool accumulate) {
    const dr_result to = {dx, NULL};
    return rows_product(b, dy, T, w->n_in, w->bf16, 0, &to, accumulate);
}

dr_status dr_bf16_backward_weight(dr_backend *b, const dr_rows *x, const dr_rows *dy, int64_t T, float *dw) {
    struct dr_bf16 *self = dr_cpu_state_of(b)->bf16;
    for (int64_t t = 0; t < T; t += DR_UNIT_ROWS) {
        const dr_rows left = dr_rows_from(dy, t), right = dr_rows_from(x, t);
        const bf16 *left_rows = NULL, *right_rows = NULL;
        int64_t rows = T - t < DR_UNIT_ROWS ? T - t : DR_UNIT_ROWS, padded = bucket(rows);
        DR_TRY(round_rows(b, &left, rows, padded, &self->a, &self->a_count, &left_rows));
        DR_TRY(round_rows(b, &right, rows, padded, &self->b, &self->b_count, &right_rows));
        product_key key = {dy->n, x->n, padded, 1, 0, 1, 0};
        DR_TRY(product_run(self, &key, left_rows, right_rows, dw));
    }
    return DR_OK;
}

// Both operands and the result, the logits of rows that draw among them.
int64_t dr_bf16_memory(const dr_pass_shape *s) {
    int64_t widest = s->n_out > s->n_in ? s->n_out : s->n_in, result = DR_UNIT_ROWS * widest,
            logits = bucket(s->n_draws < DR_UNIT_ROWS ? s->n_draws : DR_UNIT_ROWS) * s->V;
    return DR_UNIT_ROWS * widest * (int64_t)(2 * sizeof(bf16)) +
           (logits > result ? logits : result) * (int64_t)sizeof(float);
}
