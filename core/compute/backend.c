// What holds for every backend: memory as arrays, their contents on the host, draws.
#include "core/compute/backend.h"

#include <stdio.h>
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

dr_status dr_weight_part_check(const dr_backend *b, int64_t n_values, int64_t first, int64_t n) {
    DR_CHECK(dr_rounds_to_bf16(b->precision), DR_ERR_UNSUPPORTED,
             "rounded values are no weights where products do not round");
    DR_CHECK(first >= 0 && n >= 0 && first <= n_values - n, DR_ERR_RANGE,
             "values %lld to %lld of a weight of %lld", (long long)first, (long long)(first + n),
             (long long)n_values);
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

dr_status dr_memory_is_host(dr_backend *b, bool *out_is_host) {
    void *memory = NULL;
    DR_TRY(b->ops->memory_create(b, "a look", 1, &memory));
    *out_is_host = b->ops->host_view(b, memory) != NULL;
    b->ops->memory_destroy(b, memory);
    return DR_OK;
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

dr_status dr_burst_check(const dr_burst *burst) {
    DR_CHECK(burst->n_rows >= 1 && burst->n_steps >= 1, DR_ERR_ARGUMENT, "burst of %lld rows, %d steps",
             (long long)burst->n_rows, burst->n_steps);
    for (int64_t r = 0; r < burst->n_rows; r++) {
        DR_TRY(dr_sampling_check(&burst->settings[r]));
        DR_CHECK(burst->limits[r] >= 1 && burst->limits[r] <= burst->n_steps, DR_ERR_ARGUMENT,
                 "burst: row %lld may draw %d tokens in %d steps", (long long)r, burst->limits[r],
                 burst->n_steps);
    }
    const dr_burst_pages *pages = burst->pages;
    if (!pages) return DR_OK;
    DR_CHECK(pages->page_size >= 1 && pages->n_pool >= 0, DR_ERR_ARGUMENT,
             "burst: a pool of %d pages of %d positions", pages->n_pool, pages->page_size);
    for (int64_t r = 0; r < burst->n_rows; r++)
        DR_CHECK((int64_t)pages->counts[r] * pages->page_size > burst->positions[r], DR_ERR_ARGUMENT,
                 "burst: row %lld stands at position %d, its pages hold %lld", (long long)r,
                 burst->positions[r], (long long)pages->counts[r] * pages->page_size);
    DR_CHECK(!pages->chunks || pages->n_chunks >= burst->n_rows, DR_ERR_ARGUMENT,
             "burst: %lld rows, %d chunks a pass", (long long)burst->n_rows, pages->n_chunks);
    return DR_OK;
}

dr_bad_logit dr_bad_logit_of(const float *z, int64_t V) {
    dr_bad_logit found = {-1, -INFINITY};
    for (int64_t i = 0; i < V; i++) {
        if (isnan(z[i]) || z[i] == INFINITY) return (dr_bad_logit){(int32_t)i, z[i]};
        found.value = z[i] > found.value ? z[i] : found.value;
    }
    return found;
}

dr_status dr_sampling_refuse(const dr_bad_logit *bad, int64_t step, int64_t row, float temperature) {
    char at[64];
    snprintf(at, sizeof at, step > 0 ? "sampling, row %lld, step %lld" : "sampling, row %lld", (long long)row,
             (long long)step);
    DR_CHECK(bad->id < 0, DR_ERR_NUMERIC, "%s: logit %d is %g", at, bad->id, (double)bad->value);
    DR_CHECK(bad->value > -INFINITY, DR_ERR_NUMERIC, "%s: every logit is -inf", at);
    return DR_FAIL(DR_ERR_NUMERIC, "%s: logits of up to %g at temperature %g are too large", at,
                   (double)bad->value, (double)temperature);
}
