// What holds for every backend: memory as arrays, their contents on the host, draws.
#include "core/compute/backend.h"

#include <string.h>

#include "core/base/alloc.h"

dr_status dr_memory_create(dr_backend *b, void *out_pointer, const char *label, int64_t count, size_t size) {
    void *memory = NULL;
    DR_CHECK(count >= 0 && (uint64_t)count <= SIZE_MAX / 2 / size, DR_ERR_MEMORY,
             "%s: %lld elements of %zu bytes", label, (long long)count, size);
    DR_TRY(b->ops->memory_create(b, label, (size_t)count * size, &memory));
    memcpy(out_pointer, &memory, sizeof memory);
    return DR_OK;
}

dr_status dr_host_open(dr_backend *b, float *memory, int64_t n, dr_host_use use, float **out_host) {
    float *host = b->ops->host_view(b, memory);
    if (!host) {
        DR_TRY(dr_alloc(&host, "host copy", n, sizeof *host));
        if (use != DR_HOST_WRITES) b->ops->copy_out(b, host, memory, (size_t)n * sizeof *host);
    }
    *out_host = host;
    return DR_OK;
}

void dr_host_close(dr_backend *b, float *memory, int64_t n, dr_host_use use, float *host) {
    if (!host || b->ops->host_view(b, memory) == host) return;
    if (use != DR_HOST_READS) b->ops->copy_in(b, memory, host, (size_t)n * sizeof *host);
    dr_free(host);
}

double dr_sum_of_squares(dr_backend *b, const float *x, int64_t n) {
    enum { BLOCKS = 256 }; // of one call
    const int64_t piece = (int64_t)BLOCKS * DR_SQUARE_BLOCK;
    double sums[BLOCKS], total = 0;
    for (int64_t at = 0; at < n; at += piece) {
        int64_t count = n - at < piece ? n - at : piece;
        b->ops->sums_of_squares(b, x + at, count, sums);
        for (int64_t i = 0; i < dr_square_blocks(count); i++) total += sums[i];
    }
    return total;
}

dr_status dr_sampling_check(const dr_sampling *settings) {
    float t = settings->temperature, p = settings->top_p;
    DR_CHECK(t == 0 || (t >= 1e-6f && isfinite(t)), DR_ERR_ARGUMENT,
             "sampling: temperature %g, expected 0 (greedy) or at least 1e-6", (double)t);
    DR_CHECK(t == 0 || (p > 0 && p <= 1), DR_ERR_ARGUMENT,
             "sampling: top-p %g, expected more than 0, at most 1", (double)p);
    return DR_OK;
}

dr_status dr_sampling_refuse(const float *z, int64_t V, int64_t row, float temperature) {
    float top = -INFINITY;
    for (int64_t i = 0; i < V; i++) {
        DR_CHECK(!isnan(z[i]) && z[i] != INFINITY, DR_ERR_NUMERIC, "sampling, row %lld: logit %lld is %g",
                 (long long)row, (long long)i, (double)z[i]);
        top = z[i] > top ? z[i] : top;
    }
    DR_CHECK(top > -INFINITY, DR_ERR_NUMERIC, "sampling, row %lld: every logit is -inf", (long long)row);
    return DR_FAIL(DR_ERR_NUMERIC, "sampling, row %lld: logits of up to %g at temperature %g are too large",
                   (long long)row, (double)top, (double)temperature);
}
