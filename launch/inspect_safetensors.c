// Weights: how many, of what type, and the tensors themselves.
#include <stdio.h>
#include <string.h>

#include "core/store/safetensors.h"
#include "launch/inspect.h"

enum { FIRST_TENSORS = 12 };

static void print_tensor(const dr_safetensor *tensor) {
    char shape[160] = "one value";
    int used = 0;
    for (int32_t i = 0; i < tensor->n_dims; i++)
        used += snprintf(shape + used, sizeof shape - (size_t)used, "%s%lld", i ? " x " : "",
                         (long long)tensor->shape[i]);
    printf("  %-60s %-5s %s\n", tensor->name, tensor->dtype_name, shape);
}

dr_status dr_inspect_safetensors(const char *path, int lists_all) {
    dr_safetensors *file = NULL;
    DR_TRY(dr_safetensors_open(path, &file));
    int32_t n = dr_safetensors_count(file);
    int64_t n_values = 0;
    for (int32_t i = 0; i < n; i++) n_values += dr_safetensors_at(file, i)->n_values;
    printf("%s: safetensors, %d tensors, %lld values (%.2f million)\n", path, n, (long long)n_values,
           (double)n_values / 1e6);
    int32_t shown = lists_all || n <= FIRST_TENSORS ? n : FIRST_TENSORS;
    for (int32_t i = 0; i < shown; i++) print_tensor(dr_safetensors_at(file, i));
    if (shown < n) printf("  … and %d more (--all lists them)\n", n - shown);
    dr_safetensors_close(file);
    return DR_OK;
}
