// Body of nccl_library.h.
#include "cuda/nccl_library.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

enum { NAMES = 3 };
static const char *const names[NAMES] = {"libnccl.so.2", "libnccl.so", "/usr/local/cuda/lib64/libnccl.so.2"};

void dr_nccl_versions(int32_t *out_built, int32_t *out_found) {
    int version = 0;
#ifdef DR_HAVE_NCCL
    *out_built = NCCL_VERSION_CODE;
#else
    *out_built = 0;
#endif
    for (int i = 0; i < NAMES && version == 0; i++) {
        void *library = dlopen(names[i], RTLD_LAZY | RTLD_LOCAL);
        if (!library) continue;
        int (*get_version)(int *) = NULL;
        void *symbol = dlsym(library, "ncclGetVersion");
        memcpy(&get_version, &symbol, sizeof symbol);
        if (!get_version || get_version(&version) != 0) version = 0;
        dlclose(library);
    }
    *out_found = version;
}

#ifdef DR_HAVE_NCCL

static dr_status find(void *handle, const char *name, void *out_function) {
    void *symbol = dlsym(handle, name);
    DR_CHECK(symbol, DR_ERR_UNSUPPORTED, "nccl: the library has no %s; 2.14 or later is expected", name);
    memcpy(out_function, &symbol, sizeof symbol);
    return DR_OK;
}

dr_status dr_nccl_load(dr_nccl_library *out) {
    void *handle = NULL;
    char reason[256] = "";
    for (int i = 0; i < NAMES && !handle; i++) {
        handle = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
        const char *error = handle ? NULL : dlerror();
        if (error && i == 0) snprintf(reason, sizeof reason, "%s", error);
    }
    DR_CHECK(handle, DR_ERR_UNSUPPORTED, "nccl: the library cannot be loaded: %s", reason);
    DR_TRY(find(handle, "ncclGetUniqueId", &out->get_unique_id));
    DR_TRY(find(handle, "ncclCommInitRankConfig", &out->comm_init));
    DR_TRY(find(handle, "ncclCommFinalize", &out->comm_finalize));
    DR_TRY(find(handle, "ncclCommDestroy", &out->comm_destroy));
    DR_TRY(find(handle, "ncclCommAbort", &out->comm_abort));
    DR_TRY(find(handle, "ncclCommGetAsyncError", &out->comm_state));
    DR_TRY(find(handle, "ncclGetErrorString", &out->error_string));
    DR_TRY(find(handle, "ncclGetLastError", &out->last_error));
    DR_TRY(find(handle, "ncclGroupStart", &out->group_start));
    DR_TRY(find(handle, "ncclGroupEnd", &out->group_end));
    DR_TRY(find(handle, "ncclSend", &out->send));
    DR_TRY(find(handle, "ncclRecv", &out->receive));
    return find(handle, "ncclBroadcast", &out->broadcast);
}

#endif
