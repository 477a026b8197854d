// Body of held_memory.h.
#include "cuda/held_memory.h"

#include <cuda_runtime_api.h>

#include "core/base/alloc.h"
#include "core/base/log.h"
#include "cuda/cuda_internal.h"

typedef struct held {
    int device;
    bool is_host;
    void *memory;
} held;

static held *list;
static int64_t n_held, capacity;
static int n_holders;

static void give_back(const held *one) {
    cudaSetDevice(one->device);
    if (one->is_host)
        cudaFreeHost(one->memory);
    else
        cudaFree(one->memory);
    cudaGetLastError(); // clears what these reported: it was reported before, or nobody needs it
}

// False: no room in the list.
static bool hold(held one) {
    if (n_held == capacity) {
        int64_t more = capacity ? 2 * capacity : 16;
        if (dr_grow(&list, "memory to give back", capacity, more, sizeof *list) != DR_OK) return false;
        capacity = more;
    }
    list[n_held++] = one;
    return true;
}

static void free_or_hold(held one) {
    if (!one.memory || dr_cuda_is_given_up()) return;
    if (n_holders == 0)
        give_back(&one);
    else if (!hold(one))
        dr_warn("cuda: memory of device %d is left to the end of the process", one.device);
}

void dr_cuda_free(int device, void *memory) {
    free_or_hold((held){device, false, memory});
}

void dr_cuda_free_host(int device, void *memory) {
    free_or_hold((held){device, true, memory});
}

void dr_cuda_hold_memory(void) {
    n_holders++;
}

void dr_cuda_let_memory_go(void) {
    if (--n_holders > 0) return;
    for (int64_t i = 0; i < n_held && !dr_cuda_is_given_up(); i++) give_back(&list[i]);
    dr_free(list);
    list = NULL;
    n_held = capacity = 0;
}
