// Who owns which part of a flat array.
#include "core/comm/collective.h"

dr_shard dr_shard_of(int64_t n, int rank, int size) {
    int64_t blocks = (n + DR_SHARD_MULTIPLE - 1) / DR_SHARD_MULTIPLE;
    int64_t each = (blocks + size - 1) / size * DR_SHARD_MULTIPLE, begin = rank * each, end = begin + each;
    return (dr_shard){begin < n ? begin : n, end < n ? end : n};
}

int dr_shard_owner(int64_t n, int64_t at, int size) {
    return (int)(at / dr_shard_of(n, 0, size).end);
}

dr_shard dr_shard_piece(dr_shard whole, int64_t k, int64_t most) {
    int64_t end = whole.end - k * most, begin = end - most;
    return (dr_shard){begin > whole.begin ? begin : whole.begin, end > whole.begin ? end : whole.begin};
}
