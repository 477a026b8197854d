// Bodies of lm_shard.h: what a model without all of its fp32 values keeps instead, and how values come to it,
// from the host and from other learners.
#include "core/model/lm_shard.h"

#include "core/model/lm_internal.h"

enum {
    PASSING = 1 << 20,       // values on their way from the host at a time, at most
    MOST_ROUNDED = 32 << 20, // values of all learners on their way at a time, about
    ROUNDS = 4               // of an exchange, at least about: the buffer is small beside a small model
};

// Values of one learner in one round.
static int64_t piece_of(int64_t n_params, int n_learners) {
    int64_t most = MOST_ROUNDED / n_learners,
            piece = (dr_shard_of(n_params, 0, n_learners).end + ROUNDS - 1) / ROUNDS;
    piece = piece < most ? piece : most;
    return (piece + DR_SHARD_MULTIPLE - 1) / DR_SHARD_MULTIPLE * DR_SHARD_MULTIPLE;
}

static int64_t passing_of(int64_t n_rounded) {
    return n_rounded < PASSING ? n_rounded : PASSING;
}

bool dr_lm_is_shared(const dr_backend *b, int n_learners) {
    return n_learners > 1 && dr_rounds_to_bf16(b->precision);
}

int64_t dr_lm_weights_memory(const dr_lm *lm, int n_learners) {
    int64_t n_rounded = piece_of(lm->n_params, n_learners) * n_learners;
    if (!dr_lm_is_shared(lm->backend, n_learners)) return lm->n_params * (int64_t)sizeof(float);
    int64_t floats = dr_shard_of(lm->n_params, 0, n_learners).end + dr_lm_vectors_before(lm, lm->n_params) +
                     passing_of(n_rounded);
    return floats * (int64_t)sizeof(float) + n_rounded * (int64_t)sizeof(uint16_t);
}

int64_t dr_lm_frozen_memory(const dr_lm *lm, int64_t *out_loading) {
    const bool is_whole = !dr_rounds_to_bf16(lm->backend->precision);
    int64_t floats = is_whole ? lm->n_params : dr_lm_vectors_before(lm, lm->n_params);
    *out_loading = is_whole ? 0 : PASSING * (int64_t)(sizeof(float) + sizeof(uint16_t));
    return floats * (int64_t)sizeof(float) + dr_lm_products_memory(lm);
}

dr_status dr_lm_parts_create(dr_lm *lm) {
    dr_backend *b = lm->backend;
    lm->piece = piece_of(lm->n_params, lm->n_learners);
    lm->n_rounded = lm->is_frozen ? PASSING : lm->piece * lm->n_learners;
    DR_TRY(dr_memory_create(b, &lm->vectors, "norms and biases", dr_lm_vectors_before(lm, lm->n_params),
                            sizeof(float)));
    DR_TRY(
        dr_memory_create(b, &lm->passing, "weights on their way", passing_of(lm->n_rounded), sizeof(float)));
    return dr_memory_create(b, &lm->rounded, "rounded weights on their way", lm->n_rounded, sizeof(uint16_t));
}

void dr_lm_passing_destroy(dr_lm *lm) {
    dr_backend *b = lm->backend;
    b->ops->memory_destroy(b, lm->passing);
    b->ops->memory_destroy(b, lm->rounded);
    lm->passing = NULL;
    lm->rounded = NULL;
}

// ---- places ----

// Number of the tensor that value `at` belongs to, by halving: they stand in the order of their offsets.
static int32_t tensor_at(const dr_lm *lm, int64_t at) {
    int32_t first = 0, end = lm->n_tensors;
    while (end - first > 1) {
        int32_t middle = first + (end - first) / 2;
        *(lm->tensors[middle].offset <= at ? &first : &end) = middle;
    }
    return first;
}

int64_t dr_lm_vectors_before(const dr_lm *lm, int64_t at) {
    int32_t i = tensor_at(lm, at);
    const dr_lm_tensor *t = &lm->tensors[i];
    int64_t within = at - t->offset < t->cols ? at - t->offset : t->cols;
    return lm->vectors_before[i] + (dr_lm_is_vector(t) ? within : 0);
}

const float *dr_lm_vector(const dr_lm *lm, int64_t at) {
    return lm->vectors ? lm->vectors + dr_lm_vectors_before(lm, at) : lm->params + at;
}

float *dr_lm_master(dr_lm *lm, dr_shard shard) {
    bool is_here = lm->params && !lm->is_frozen && shard.begin >= lm->own.begin && shard.end <= lm->own.end;
    return is_here ? lm->params + (shard.begin - lm->own.begin) : NULL;
}

static dr_shard common(dr_shard a, dr_shard b) {
    return (dr_shard){a.begin > b.begin ? a.begin : b.begin, a.end < b.end ? a.end : b.end};
}

// ---- values from the host ----

// Rounded values of a range, which may hold vectors' too, to the products.
static dr_status take(dr_lm *lm, dr_shard range, const uint16_t *rounded) {
    dr_backend *b = lm->backend;
    for (int32_t i = 0; i < lm->n_products; i++) {
        const lm_product *p = &lm->products[i];
        dr_shard part = common(range, (dr_shard){p->at, p->at + p->rows * p->cols});
        if (part.begin >= part.end) continue;
        DR_TRY(b->ops->weight_take(b, *p->w, part.begin - p->at, part.end - part.begin,
                                   rounded + (part.begin - range.begin)));
    }
    return DR_OK;
}

static void put_vectors(dr_lm *lm, dr_shard range, const float *values) {
    dr_backend *b = lm->backend;
    for (int32_t i = tensor_at(lm, range.begin); i < lm->n_tensors && lm->tensors[i].offset < range.end;
         i++) {
        const dr_lm_tensor *t = &lm->tensors[i];
        dr_shard part = common(range, (dr_shard){t->offset, t->offset + t->cols});
        if (!dr_lm_is_vector(t) || part.begin >= part.end) continue;
        b->ops->copy_in(b, lm->vectors + dr_lm_vectors_before(lm, part.begin),
                        values + (part.begin - range.begin),
                        (size_t)(part.end - part.begin) * sizeof *values);
    }
}

// At most what is on its way at a time.
static dr_status put_piece(dr_lm *lm, dr_shard range, const float *values) {
    dr_backend *b = lm->backend;
    int64_t n = range.end - range.begin;
    put_vectors(lm, range, values);
    b->ops->copy_in(b, lm->passing, values, (size_t)n * sizeof *values);
    DR_TRY(b->ops->weight_round(b, lm->passing, n, lm->rounded));
    return take(lm, range, lm->rounded);
}

dr_status dr_lm_put(dr_lm *lm, int64_t at, int64_t n, const float *values) {
    dr_backend *b = lm->backend;
    const dr_shard range = {at, at + n}, own = common(range, lm->own);
    DR_CHECK(at >= 0 && n >= 0 && n <= lm->n_params - at, DR_ERR_RANGE,
             "values %lld to %lld of %lld parameters", (long long)at, (long long)(at + n),
             (long long)lm->n_params);
    if (own.begin < own.end)
        b->ops->copy_in(b, lm->params + (own.begin - lm->own.begin), values + (own.begin - at),
                        (size_t)(own.end - own.begin) * sizeof *values);
    if (!lm->vectors) return DR_OK;
    for (int64_t step = passing_of(lm->n_rounded), i = 0; i < n; i += step) {
        int64_t count = n - i < step ? n - i : step;
        DR_TRY(put_piece(lm, (dr_shard){at + i, at + i + count}, values + i));
    }
    return DR_OK;
}

// ---- values from other learners ----

// parts [size] of `bytes` bytes of backend memory, a multiple of 4, through the host where the group cannot
// take that.
static dr_status gather(dr_lm *lm, dr_collective *learners, void *memory, int64_t bytes,
                        const dr_shard *parts) {
    float *host = NULL;
    int64_t n = bytes / (int64_t)sizeof *host;
    if (learners->takes_backend_memory) return learners->ops->all_gather(learners, memory, parts);
    DR_TRY(dr_host_open(lm->backend, memory, n, DR_HOST_CHANGES, &host));
    dr_status status = learners->ops->all_gather(learners, host, parts);
    dr_host_close(lm->backend, memory, n, DR_HOST_CHANGES, host);
    return status;
}

static dr_status share_floats(dr_lm *lm, dr_collective *learners, dr_shard *parts) {
    const int64_t size = sizeof *lm->params;
    for (int r = 0; r < learners->size; r++) {
        dr_shard shard = dr_shard_of(lm->n_params, r, learners->size);
        parts[r] = (dr_shard){shard.begin * size, shard.end * size};
    }
    return gather(lm, learners, lm->params, lm->n_params * size, parts);
}

// Piece k of every shard: rounded by its owner, taken by all.
static dr_status share_piece(dr_lm *lm, dr_collective *learners, int64_t k, dr_shard *parts) {
    dr_backend *b = lm->backend;
    const int64_t size = sizeof *lm->rounded;
    dr_shard own = dr_shard_piece(lm->own, k, lm->piece);
    DR_TRY(b->ops->weight_round(b, lm->params + (own.begin - lm->own.begin), own.end - own.begin,
                                lm->rounded + learners->rank * lm->piece));
    for (int r = 0; r < learners->size; r++) {
        dr_shard piece = dr_shard_piece(dr_shard_of(lm->n_params, r, learners->size), k, lm->piece);
        int64_t begin = r * lm->piece;
        parts[r] = (dr_shard){begin * size, (begin + piece.end - piece.begin) * size};
    }
    DR_TRY(gather(lm, learners, lm->rounded, lm->n_rounded * size, parts));
    for (int r = 0; r < learners->size; r++)
        DR_TRY(take(lm, dr_shard_piece(dr_shard_of(lm->n_params, r, learners->size), k, lm->piece),
                    lm->rounded + r * lm->piece));
    return DR_OK;
}

static dr_status share_vectors(dr_lm *lm, dr_collective *learners, dr_shard *parts) {
    dr_backend *b = lm->backend;
    const int64_t size = sizeof *lm->vectors;
    for (int32_t i = 0; i < lm->n_tensors; i++) {
        const dr_lm_tensor *t = &lm->tensors[i];
        dr_shard own = common(lm->own, (dr_shard){t->offset, t->offset + t->cols});
        if (!dr_lm_is_vector(t) || own.begin >= own.end) continue;
        b->ops->copy(b, lm->vectors + dr_lm_vectors_before(lm, own.begin),
                     lm->params + (own.begin - lm->own.begin), (size_t)((own.end - own.begin) * size));
    }
    for (int r = 0; r < learners->size; r++) {
        dr_shard shard = dr_shard_of(lm->n_params, r, learners->size);
        parts[r] = (dr_shard){dr_lm_vectors_before(lm, shard.begin) * size,
                              dr_lm_vectors_before(lm, shard.end) * size};
    }
    return gather(lm, learners, lm->vectors, dr_lm_vectors_before(lm, lm->n_params) * size, parts);
}

static dr_status share_rounded(dr_lm *lm, dr_collective *learners, dr_shard *parts) {
    dr_shard own = dr_shard_of(lm->n_params, learners->rank, learners->size);
    int64_t longest = dr_shard_of(lm->n_params, 0, learners->size).end;
    DR_CHECK(learners->size == lm->n_learners && own.begin == lm->own.begin && own.end == lm->own.end,
             DR_ERR_ARGUMENT, "learner %d of %d shares weights that were loaded as parameters %lld to %lld",
             learners->rank, learners->size, (long long)lm->own.begin, (long long)lm->own.end);
    for (int64_t k = 0; k * lm->piece < longest; k++) DR_TRY(share_piece(lm, learners, k, parts));
    return share_vectors(lm, learners, parts);
}

dr_status dr_lm_share(dr_lm *lm, dr_collective *learners, dr_shard *parts) {
    DR_TRY((lm->vectors ? share_rounded : share_floats)(lm, learners, parts));
    return dr_lm_weights_changed(lm);
}
