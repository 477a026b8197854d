// What this machine can do at best, measured beside the figures it bounds. On the processor: reading memory,
// and oneDNN's products at given shapes, on all threads. On a device: the backend's own copy of a large
// block, and cuBLASLt's product at 8192 x 8192 x 8192, the fastest of its offers with a workspace, operands
// in the type that is multiplied and results in it, so that nothing but the product is timed: one rate for
// all shapes. Also the one way in which things are timed here: medians. The emulated device has smaller
// sizes, and one repeat.
#ifndef DR_BENCH_CEILING_H
#define DR_BENCH_CEILING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/compute/backend.h"
#include "tests/small_cases.h"

#ifdef __cplusplus
extern "C" {
#endif

// Of a device's ceilings: bytes that are copied, sides of a product.
enum { BENCH_DEVICE_BYTES = sized(1 << 30, 1 << 20), BENCH_DEVICE_SIDE = sized(8192, 64) };

// One repeat: does the work and says how long the part that counts took, in seconds.
typedef dr_status (*bench_run)(void *context, double *out_seconds);
// Median of at least five repeats after one that does not count; more until `seconds` have passed.
dr_status bench_median(bench_run run, void *context, double seconds, double *out_median_s);

// c [m, n] = op(a) · op(b), op(a) [m, k], done `count` times in what is bounded. In the precision of the
// ceilings: fp32 by dnnl_sgemm, bf16 by a matmul primitive with fp32 sums; is_fp32 keeps fp32 on the
// processor in any case.
typedef struct bench_product {
    int64_t m, n, k;
    bool trans_a, trans_b, is_fp32;
    int64_t count;
} bench_product;
double bench_product_flops(const bench_product *products, int32_t n); // of all of them, counts included

typedef struct bench_ceilings bench_ceilings;
// Of the kind, the threads and the precision of `backend`, borrowed. seconds: what one measurement may take.
// On the processor takes a block of four times the last cache (at least 256 MB).
dr_status bench_ceilings_create(dr_backend *backend, double seconds, bench_ceilings **out);
void bench_ceilings_destroy(bench_ceilings *ceilings);

// Bytes/s at which all threads together read `bytes` again and again, each its own part: the rate of the
// cache level they fit in, that of memory for bytes 0 or more than the block has. On a device: bytes read and
// bytes written together, by its copy, whatever `bytes` is. Measured when first asked.
dr_status bench_read_rate(bench_ceilings *ceilings, size_t bytes, double *out_rate);
// Seconds that the products take at their measured rates. Measured when a shape is first asked for.
dr_status bench_products_seconds(bench_ceilings *ceilings, const bench_product *products, int32_t n,
                                 double *out_seconds);

// What the products' rate on a device is of: "cuBLASLt, offer 2 of 8", once it has been measured.
const char *bench_product_note(const bench_ceilings *ceilings);

// On a device, seconds of one backend copy, or of one product [n, n] · [n, n] in the precision of `b`; note
// says which, and without cuBLASLt it is the backend's own linear_forward.
enum { BENCH_NOTE = 64 };
dr_status bench_device_copy(dr_backend *b, size_t bytes, double seconds, double *out_seconds);
dr_status bench_device_product(dr_backend *b, int64_t n, double seconds, double *out_seconds,
                               char note[BENCH_NOTE]);

// A piece of work: bytes that must be read at least once, products (there may be none), and other
// floating-point operations, which are taken to run at the products' mean rate.
typedef struct bench_work {
    double bytes;
    const bench_product *products;
    int32_t n_products;
    double other_flops;
} bench_work;
// The roofline: the slower of reading and computing, and which of the two it is ("memory" or "compute").
dr_status bench_roofline(bench_ceilings *ceilings, const bench_work *work, double *out_seconds,
                         const char **out_bound);

#ifdef __cplusplus
}
#endif
#endif
