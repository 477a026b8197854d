// What a worker, or the training of a retrieval model, takes of memory, counted from shapes before anything
// large is allocated.
#ifndef DR_CORE_LEARN_MEMORY_PLAN_H
#define DR_CORE_LEARN_MEMORY_PLAN_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/alloc.h"
#include "core/episode/rollout.h"
#include "core/rec/trm_train.h"

#ifdef __cplusplus
extern "C" {
#endif

// What the worker is going to make.
typedef struct dr_memory_needs {
    const dr_rollout_parts
        *rollout; // borrowed; lm may be an outline; tokenizer and template are not looked at
    int64_t pack_tokens;
    dr_activations activations;
    bool has_reference;             // a frozen policy of the same shape
    int32_t n_samples;              // of one prompt at most
    int n_learners;                 // that share moments, and in bf16 weights
    int64_t collective;             // bytes of the collective's buffers
    const dr_trm_memory *retrieval; // of the retrieval model that will be loaded; NULL: it is there
    int64_t reserve;                // bytes of the backend that stay free beside all
    bool is_warm_up;                // learns only (sft.h): nothing is decoded
} dr_memory_needs;

typedef struct dr_memory_part {
    const char *name;
    int64_t bytes;
    bool on_host; // beside a backend whose memory is not the host's
} dr_memory_part;

enum { DR_MEMORY_PARTS = 18 };
typedef struct dr_memory_plan {
    dr_memory_part parts[DR_MEMORY_PARTS];
    int64_t bytes, host; // of all parts, those on the host apart
    const char *advice;  // what takes less
} dr_memory_plan;

// Backend memory, where the parts of the learner and of the collective that live on the host are counted as
// well; beside a backend whose memory is not the host's also what else of size the host needs. Left out:
// text and trajectories; what libraries take for themselves is the reserve. Errors are those of
// dr_rollout_create.
dr_status dr_memory_plan_make(const dr_memory_needs *needs, dr_memory_plan *out_plan);

// The same of training a retrieval model: what dr_trm_train takes, its encoder included; the data set and
// text are left out. reserve: bytes of the backend that stay free beside all. Errors are those of
// dr_trm_train_memory_of.
dr_status dr_memory_plan_make_retrieval(dr_backend *backend, const dr_dataset *dataset,
                                        const dr_trm_train_options *options, int64_t reserve,
                                        dr_memory_plan *out_plan);

// Where the plan has to fit.
typedef struct dr_memory_place {
    int64_t free, total; // bytes, for the backend
    int n_workers;       // that take as much each of it
    int64_t host_free;   // not looked at where a plan has nothing on the host apart
    int n_on_host;       // workers on this host
} dr_memory_place;

// Appends one line, in MB of 10^6 bytes: each part, the sum, and what is free; the same of the host's parts.
dr_status dr_memory_plan_print(const dr_memory_plan *plan, const dr_memory_place *place, dr_buf *out);
// DR_ERR_MEMORY with that line when all workers together need more than is free, of either.
dr_status dr_memory_plan_check(const dr_memory_plan *plan, const dr_memory_place *place);

#ifdef __cplusplus
}
#endif
#endif
