// Between two passes of a burst: rows are moved on by what they drew, take pages that they come to need, and
// stand where they are in the next pass's plan; their kept ids go to one list, so that the host reads all of
// it at the end.
#include "cuda/launch.cuh"

enum { THREADS = 256 };

// Whether a row drew in this step, its kept ids at `place` of the list.
static __device__ __forceinline__ bool settle_draw(const dr_cuda_settling &s, dr_burst_row *row,
                                                   dr_cuda_drawn *drawn, int64_t place) {
    if (row->is_finished) {
        drawn->id = -1; // what stands there is of no draw
        return false;
    }
    if (dr_settle_row(row, s.has_stops ? &s.stops : NULL, drawn->id, drawn->n_kept, place, s.room)) {
        drawn->kept_at = place;
        return true;
    }
    if (!row->has_failed) drawn->n_kept = 0; // no room
    return false;
}

// Row r as the next pass finds it.
static __device__ __forceinline__ void write_row(const dr_cuda_settling &s, int64_t r,
                                                 const dr_burst_row &row) {
    s.rows[r] = row;
    s.ids[r] = row.id;
    s.positions[r] = row.position;
    if (s.next.spans)
        dr_plan_row(&row, s.taken + r * s.row_pages, s.next.spans + r,
                    s.next.queries ? s.next.queries + r : NULL, s.next.pages);
}

// One block, rows THREADS at a time in their order: the place of a row's ids in the list, and of its page in
// the pool, depends on the rows before it alone. Once one's ids do not fit, none behind it that kept any
// does.
static __global__ void __launch_bounds__(THREADS) settle_kernel(dr_cuda_settling s) {
    int64_t before = *s.n_listed, n_taken = *s.n_taken, fitted = 0, total = 0;
    for (int64_t first = 0; first < s.n_rows; first += THREADS) {
        const int64_t r = first + threadIdx.x;
        const bool is_there = r < s.n_rows;
        dr_burst_row row = is_there ? s.rows[r] : dr_burst_row{};
        dr_cuda_drawn *drawn = s.drawn + r;
        const int64_t own = is_there ? dr_listed_by(&row, drawn->id, drawn->n_kept) : 0,
                      place = before + dr_block_before<THREADS>(own, &total);
        before += total;
        const bool drew = is_there && settle_draw(s, &row, drawn, place),
                   wants = drew && dr_burst_wants_page(&row);
        const int64_t page = n_taken + dr_block_before<THREADS>((int64_t)wants, &total);
        n_taken += total;
        if (wants && dr_burst_take_page(&row, page, s.n_pool, DR_CUDA_PAGE))
            s.taken[r * s.row_pages + row.n_taken - 1] = s.pool[page];
        if (drew) {
            fitted += own;
            dr_burst_go_on(&row, drawn->id);
        }
        if (is_there) write_row(s, r, row);
    }
    fitted = dr_block_sum<THREADS>(fitted);
    if (threadIdx.x != 0) return;
    *s.n_listed += fitted;
    *s.n_taken = min(n_taken, s.n_pool);
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
