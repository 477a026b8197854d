// Who owns which part of a flat array.
#include "core/comm/collective.h"

dr_shard dr_shard_of(int64_t n, int rank, int size) {
    int64_t blocks = (n + DR_SHARD_MULTIPLE - 1) / DR_SHARD_MULTIPLE;
    int64_t each = (blocks + size - 1) / size * DR_SHARD_MULTIPLE, begin = rank * each, end = begin + each;
    return (dr_shard){begin < n ? begin : n, end < n ? end : n};
}
