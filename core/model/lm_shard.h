// The fp32 weights of a policy in bf16, shared out over its learners (stage 1 of ZeRO, Rajbhandari et al.,
// arXiv 1910.02054): each keeps those of its shard of the flat parameters, and the vectors (norms, biases),
// which passes read as fp32. What the products read, 2 bytes a weight, is whole everywhere.
#ifndef DR_CORE_MODEL_LM_SHARD_H
#define DR_CORE_MODEL_LM_SHARD_H

#include "core/comm/collective.h"
#include "core/model/lm.h"

#ifdef __cplusplus
extern "C" {
#endif

// dr_lm_load for learner `rank` of `size`, with its shard of the fp32 values only: a matrix is rounded on its
// way in. dr_lm_params is NULL; saving and dr_lm_start_copying are refused (DR_ERR_UNSUPPORTED). Logits,
// log-probabilities and gradients are those of dr_lm_load, bit for bit. Of a learner alone, and in fp32,
// where the fp32 values are what products read, it is dr_lm_load.
dr_status dr_lm_load_shard(dr_backend *backend, const char *dir, int rank, int size, dr_lm **out_lm);

// Where the fp32 values of these parameters stand one behind the other, backend memory; NULL: not here.
float *dr_lm_master(dr_lm *lm, dr_shard shard);
// Values at … at + n - 1 of the flat parameters, from the host, go wherever this model keeps them: fp32
// values, vectors, products. dr_lm_weights_changed follows on what is put.
dr_status dr_lm_put(dr_lm *lm, int64_t at, int64_t n, const float *values);
// After each learner has changed the fp32 values of its own shard: all have all weights, and the model's are
// repacked. parts [size] is scratch. Where fp32 is shared out, owners round and 2 bytes a value of a matrix
// go round, through a buffer of bounded size; else fp32 goes round and is rounded by everyone. The same bits.
// DR_ERR_ARGUMENT: a group of another shape than the model was loaded for.
dr_status dr_lm_share(dr_lm *lm, dr_collective *learners, dr_shard *parts);

// Bytes of what one of n learners keeps beside what products read, at most; an outline is enough.
int64_t dr_lm_weights_memory(const dr_lm *lm, int n_learners);

#ifdef __cplusplus
}
#endif
#endif
