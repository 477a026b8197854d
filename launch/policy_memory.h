// What training a policy will take, said and refused before weights and the retrieval model are loaded.
#ifndef DR_LAUNCH_POLICY_MEMORY_H
#define DR_LAUNCH_POLICY_MEMORY_H

#include "core/learn/memory_plan.h"
#include "launch/policy_parts.h"

// What is free now of the memory of the parts' backend and of the host, and who shares it.
dr_status dr_policy_memory_place(const dr_policy_choice *choice, const dr_policy_parts *parts,
                                 dr_memory_place *out);

// One line, "memory of WHO: …", from the sizes of the folders alone. parts: data and backends are open.
// needs: its rollout's policy and retrieval model, and `retrieval`, are filled in. DR_ERR_MEMORY: it does not
// fit; other errors are those of the folders.
dr_status dr_policy_memory_plan(const dr_policy_choice *choice, const dr_policy_parts *parts,
                                const char *model_dir, const dr_memory_needs *needs,
                                const dr_memory_place *place, const char *who);

#endif
