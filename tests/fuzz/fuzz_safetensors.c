// Any bytes as a safetensors file: refused, or every tensor of it can be read.
#include "core/base/alloc.h"
#include "core/store/safetensors.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    dr_safetensors *file = NULL;
    const char *path = fuzz_file("model.safetensors", data, size);
    if (dr_safetensors_open(path, &file) != DR_OK) {
        fuzz_demand(strstr(dr_last_error(), "model.safetensors") != NULL, "the error names the file");
        return 0;
    }
    for (int32_t i = 0; i < dr_safetensors_count(file); i++) {
        const dr_safetensor *t = dr_safetensors_at(file, i);
        float *values = NULL;
        if (t->n_values > 1 << 20 || dr_alloc(&values, "values", t->n_values, sizeof *values) != DR_OK)
            continue;
        dr_safetensors_read(file, t->name, t->shape, t->n_dims,
                            values); // other types than floats are refused
        dr_free(values);
    }
    dr_safetensors_close(file);
    return 0;
}
