// A micro-batch in the making: sequences packed one behind another for the training pass. Sequences that come
// one after another and begin with the same prompt share it: its tokens are run once, forward and backward
// (dr_sequences, backend.h), which does not change a log-probability's bits, nor the gradient but for
// rounding.
#ifndef DR_CORE_LEARN_MICRO_BATCH_H
#define DR_CORE_LEARN_MICRO_BATCH_H

#include <stdbool.h>

#include "core/episode/trajectory.h"
#include "core/model/lm.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct dr_micro_batch {
    dr_pack pack;                                        // what to run; points into the arrays below
    int64_t max_tokens;                                  // tokens at most, and loss rows at most
    int32_t *ids, *cu_seqlens, *prefix, *rows, *targets; // owned
    dr_kept *kept; // [max_tokens], owned; the sets themselves are borrowed
    // [rows], owned: which trajectory a row belongs to, by its number, and which of its tokens it predicts
    int32_t *number_of, *token_of;
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

// Which tokens of trajectories get a loss row.
typedef struct dr_loss_rows {
    bool (*has_row)(const void *context, const dr_trajectory *t, int32_t i); // i >= 1
    const void *context;
    bool over_kept;     // over the set that top-p left when the token was drawn, else over the vocabulary
    bool shares_prompt; // no prompt token has a row
} dr_loss_rows;

// Adds a trajectory (borrowed until the pack has run), its tokens but the last as input, with its loss rows;
// one without any is left out. False: it does not fit into `budget` tokens (max_tokens or less) any more.
bool dr_micro_batch_add(dr_micro_batch *m, const dr_trajectory *t, int32_t number, const dr_loss_rows *rows,
                        int64_t budget);
// What was recorded of row r's token, of trajectory t, when it was drawn: under the distribution of the row.
float dr_micro_batch_recorded(const dr_micro_batch *m, const dr_trajectory *t, int64_t r);

#ifdef __cplusplus
}
#endif
#endif
