// The parts of bench_ops: what a case is, and one table of cases each.
#ifndef DR_BENCH_OPS_PARTS_H
#define DR_BENCH_OPS_PARTS_H

#include "bench/ceiling.h"
#include "bench/device.h"
#include "core/model/lm.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { BENCH_OP_ARRAYS = 16, BENCH_OP_OUTPUTS = 4 };

// Arguments of one op on one backend, and the work that one call of it is. All but out_host in backend
// memory.
typedef struct bench_call {
    dr_backend *b;
    const dr_lm_config *m; // sizes of the model
    int64_t T;             // rows
    uint64_t stream;       // of the next random array: two calls prepared alike have the same values
    void *memory[BENCH_OP_ARRAYS + BENCH_OP_OUTPUTS];
    int n_memory;
    dr_weight *w;
    int64_t n_out, n_in; // of the matrix
    float *x[BENCH_OP_ARRAYS];
    int32_t *ids;
    // what the check compares; [0] is waited for
    struct {
        float *values;
        int64_t n;
    } out[BENCH_OP_OUTPUTS];
    float *out_host; // results of ops that give them to the host; NULL: none
    int64_t n_out_host;
    void *host[4]; // host memory of descriptors
    dr_sequences sequences;
    bench_product product; // count 0: none
    double bytes;          // that must be read or written at least
} bench_call;

typedef struct bench_op {
    const char *name;
    dr_status (*prepare)(bench_call *c);
    dr_status (*run)(bench_call *c);
    dr_status (*finish)(bench_call *c); // makes comparable what run left; NULL: nothing to do
    bool decodes, trains;               // measured with 32 rows, with the pack's rows
} bench_op;

typedef struct bench_ops_part {
    const char *name, *title;
    const bench_op *ops;
    int n;
} bench_ops_part;
extern const bench_ops_part bench_ops_products, bench_ops_rows, bench_ops_attention, bench_ops_head;

// Arrays of a call; they go with it.
dr_status bench_call_normal(bench_call *c, int64_t n, float **out);
dr_status bench_call_spread(bench_call *c, int64_t n, double deviation, float **out); // the same, wider
dr_status bench_call_zeros(bench_call *c, int64_t n, float **out);
// n random values of gate and up as the backend keeps them; out_floats, where it is not NULL: as many floats,
// zeros, for bench_call_widen, which writes what the kept ones are.
dr_status bench_call_gated(bench_call *c, int64_t n, float **out, float **out_floats);
dr_status bench_call_widen(bench_call *c, const void *gated, int64_t n, float *out);
dr_status bench_call_ids(bench_call *c, int64_t n, int32_t below, int32_t **out);
dr_status bench_call_host(bench_call *c, int slot, int64_t count, size_t size, void *out_pointer);
dr_status bench_call_weight(bench_call *c, int64_t n_out, int64_t n_in, float **out_values);
// The next of c->out. An array that the op also reads or adds to may be one.
void bench_call_compare(bench_call *c, float *values, int64_t n);
void bench_call_reset(bench_call *c);

#ifdef __cplusplus
}
#endif
#endif
