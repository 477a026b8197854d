// A micro-batch in the making: sequences packed one behind another for the training pass. Sequences that come
// one after another and begin with the same prompt share it: its tokens are run once, forward and backward
// (dr_sequences, backend.h), which does not change a log-probability's bits, nor the gradient but for
// rounding.
#ifndef DR_CORE_LEARN_MICRO_BATCH_H
#define DR_CORE_LEARN_MICRO_BATCH_H

#include <stdbool.h>

#include "core/model/lm.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct dr_micro_batch {
    dr_pack pack;                                        // what to run; points into the arrays below
    int64_t max_tokens;                                  // tokens at most, and loss rows at most
    int32_t *ids, *cu_seqlens, *prefix, *rows, *targets; // owned
    dr_kept *kept; // [max_tokens], owned; the sets themselves are borrowed
    // of the sequence added last
    const int32_t *sequence; // its ids, borrowed until the next one is added
    int32_t prompt; // number of the packed sequence that holds its prompt, -1: it has none of its own
    int64_t n_prompt, begin; // prompt's tokens; where the tokens behind it begin
} dr_micro_batch;

// Starts empty.
dr_status dr_micro_batch_create(int64_t max_tokens, dr_micro_batch *out);
void dr_micro_batch_reset(dr_micro_batch *m);      // frees what it owns and zeroes it
int64_t dr_micro_batch_memory(int64_t max_tokens); // bytes
void dr_micro_batch_clear(dr_micro_batch *m);

// True when a sequence of n tokens (the last one is only a target), the first n_prompt of which are its
// prompt, can be added with n_rows loss rows and leaves the pack within `budget` tokens (max_tokens or less).
bool dr_micro_batch_fits(const dr_micro_batch *m, const int32_t *ids, int64_t n, int64_t n_prompt,
                         int64_t n_rows, int64_t budget);
// Adds it; it must fit in max_tokens, n >= 2 and n_prompt < n. n_prompt 0: nothing is shared.
void dr_micro_batch_add(dr_micro_batch *m, const int32_t *ids, int64_t n, int64_t n_prompt);
// Adds the loss row that predicts token i (1 … n-1) of the sequence added last, drawn from `kept` (borrowed
// until the pack has run; n 0: from the whole vocabulary); returns its number in the pack.
int64_t dr_micro_batch_row(dr_micro_batch *m, int64_t i, dr_kept kept);

#ifdef __cplusplus
}
#endif
#endif
