// Asks the loaded library, not the header it was compiled with.
#include "core/compute/dnnl_version.h"

#include <stdio.h>

#include <oneapi/dnnl/dnnl.h>

static const char *isa_name(dnnl_cpu_isa_t isa) {
    switch (isa) {
    case dnnl_cpu_isa_sse41:
        return "SSE4.1";
    case dnnl_cpu_isa_avx:
        return "AVX";
    case dnnl_cpu_isa_avx2:
        return "AVX2";
    case dnnl_cpu_isa_avx2_vnni:
        return "AVX2 with VNNI";
    case dnnl_cpu_isa_avx512_core:
        return "AVX-512";
    case dnnl_cpu_isa_avx512_core_vnni:
        return "AVX-512 with VNNI";
    case dnnl_cpu_isa_avx512_core_bf16:
        return "AVX-512 with BF16";
    case dnnl_cpu_isa_avx512_core_amx:
        return "AVX-512 with AMX";
    default:
        return "all of this processor";
    }
}

static const char *runtime_name(unsigned runtime) {
    switch (runtime) {
    case DNNL_RUNTIME_SEQ:
        return "no threads";
    case DNNL_RUNTIME_OMP:
        return "OpenMP threads";
    case DNNL_RUNTIME_TBB:
        return "TBB threads";
    default:
        return "its own threads";
    }
}

void dr_dnnl_version(char *out, size_t size) {
    const dnnl_version_t *version = dnnl_version();
    snprintf(out, size, "%d.%d.%d, %s, instructions: %s", version->major, version->minor, version->patch,
             runtime_name(version->cpu_runtime), isa_name(dnnl_get_effective_cpu_isa()));
}
