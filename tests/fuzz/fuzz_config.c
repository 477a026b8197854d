// Any bytes as a model's config.json: refused with an error that names the file, or sizes that make sense.
#include "core/base/alloc.h"
#include "core/model/lm_internal.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    dr_lm_config config;
    fuzz_file("config.json", data, size);
    if (dr_lm_config_read(fuzz_folder(), &config) != DR_OK) {
        fuzz_demand(strstr(dr_last_error(), "config.json") != NULL, "the error names the file");
        return 0;
    }
    fuzz_demand(config.n_layers > 0 && config.hidden > 0 && config.head_size > 0 && config.intermediate > 0 &&
                    config.vocab > 0 && config.max_positions > 0,
                "sizes are positive");
    fuzz_demand(config.n_kv_heads > 0 && config.n_heads % config.n_kv_heads == 0,
                "heads are in whole groups");
    fuzz_demand(config.rms_eps > 0 && config.rope_theta > 0, "numbers are positive");
    return 0;
}
