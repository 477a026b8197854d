// Between two passes of a burst: rows are moved on by what they drew, and their kept ids go to one list, so
// that the host reads all of it at the end.
#include "cuda/launch.cuh"

enum { THREADS = 256 };

// One block, rows THREADS at a time in their order: the place of a row's ids in the list depends on the rows
// before it alone. Once one does not fit, none behind it that kept any does.
static __global__ void __launch_bounds__(THREADS) settle_kernel(dr_cuda_settling s) {
    const dr_stop_table *stops = s.has_stops ? &s.stops : NULL;
    int64_t before = *s.n_listed, fitted = 0, total = 0;
    for (int64_t first = 0; first < s.n_rows; first += THREADS) {
        const int64_t r = first + threadIdx.x;
        const bool is_there = r < s.n_rows;
        dr_burst_row row = is_there ? s.rows[r] : dr_burst_row{};
        dr_cuda_drawn *drawn = s.drawn + r;
        const bool draws = is_there && !row.is_finished;
        const int64_t own = draws ? dr_listed_by(&row, drawn->id, drawn->n_kept) : 0,
                      place = before + dr_block_before<THREADS>(own, &total);
        before += total;
        if (!is_there) continue;
        if (!draws) {
            drawn->id = -1; // what stands there is of no draw
        } else if (dr_settle_row(&row, stops, drawn->id, drawn->n_kept, place, s.room)) {
            drawn->kept_at = place;
            fitted += own;
        } else if (!row.has_failed) {
            drawn->n_kept = 0; // no room
        }
        s.rows[r] = row;
        s.ids[r] = row.id;
        s.positions[r] = row.position;
    }
    fitted = dr_block_sum<THREADS>(fitted);
    if (threadIdx.x == 0) *s.n_listed += fitted;
}

static __global__ void __launch_bounds__(THREADS)
    list_kernel(const dr_cuda_drawn *drawn, const int32_t *kept_ids, int64_t V, int32_t *list) {
    const dr_cuda_drawn own = drawn[blockIdx.x];
    if (own.id < 0) return;
    for (int32_t i = threadIdx.x; i < own.n_kept; i += THREADS)
        list[own.kept_at + i] = kept_ids[blockIdx.x * V + i];
}

extern "C" dr_status dr_cuda_settle(const dr_cuda_settling *settling, dr_cuda_stream stream) {
    DR_CUDA_LAUNCH(settle_kernel, 1, THREADS, 0, stream)(*settling);
    DR_CUDA_LAUNCHED("draws of %lld rows", (long long)settling->n_rows);
    return DR_OK;
}

extern "C" dr_status dr_cuda_list_kept(const dr_cuda_settling *settling, const int32_t *kept_ids,
                                       int32_t *list, dr_cuda_stream stream) {
    unsigned int blocks = 0;
    DR_TRY(dr_cuda_grid("kept ids", settling->n_rows, 1, &blocks));
    DR_CUDA_LAUNCH(list_kernel, blocks, THREADS, 0, stream)(settling->drawn, kept_ids, settling->V, list);
    DR_CUDA_LAUNCHED("kept ids of %lld rows", (long long)settling->n_rows);
    return DR_OK;
}
