// Shared by the two halves of the evaluation; nothing outside core/eval includes it.
#ifndef DR_CORE_EVAL_EVALUATE_INTERNAL_H
#define DR_CORE_EVAL_EVALUATE_INTERNAL_H

#include "core/eval/evaluate.h"

// A named evaluation with n_users ranks of -1.
dr_status dr_evaluation_begin(const char *name, int32_t n_users, dr_evaluation *out);
// Fills the metrics from the ranks.
void dr_evaluation_finish(dr_evaluation *evaluation);

#endif
