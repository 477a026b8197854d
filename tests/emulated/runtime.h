// Launches of kernels on the emulated device. What a stream is given waits there; DR_EMULATED_ORDER says how
// long:
//  - late: until somebody must have it, by a wait for the stream or its events, so that what a host that does
//  not wait
//    would miss is missed. Threads run against the order of their numbers. This is the default.
//  - early: not at all. Threads run in the order of their numbers.
//  - N: parts of all streams run at every call, threads and streams in orders that the number N decides.
// DR_EMULATED_NO_GRAPHS: nothing can be recorded. With DR_EMULATED_OPEN set, the host may touch the device's
// memory, and nothing is spent on that it cannot. DR_EMULATED_DEVICES says how many devices there are, 1 by
// default; a process uses one of them.
#ifndef DR_TESTS_EMULATED_RUNTIME_H
#define DR_TESTS_EMULATED_RUNTIME_H

#include "tests/emulated/block.h"
#include "tests/emulated/cuda_runtime_api.h"

namespace emulated {

void launch(const char *name, const void *kernel, dim3 blocks, dim3 threads, size_t shared_bytes,
            cudaStream_t stream, std::function<void()> run);
cudaError_t allow_shared(const void *kernel, size_t bytes);

// For libraries of the device that a program loads. Work of the host's that the stream does in its turn.
cudaError_t enqueue_work(cudaStream_t stream, std::function<void()> run);
// Work that may have to wait for another process: `attempt` is called once all before it on the stream is
// done, again and again until it returns true, in calls of the runtime alone. Meanwhile the stream stands
// still, and so does all that waits for it; the host waits at most two minutes.
cudaError_t enqueue_attempt(cudaStream_t stream, std::function<bool()> attempt);
// The number of the machine's device that this process calls `device` (DR_EMULATED_VISIBLE).
int physical_device(int device);
void run_others(); // what streams do while the host waits for something else
bool is_early();

// The kernel by its address and arguments by value, as a launch takes them. Static: files have structures of
// the same name for their kernels' arguments.
template <typename... PARAMETERS>
static auto launcher(const char *name, void (*kernel)(PARAMETERS...), dim3 blocks, dim3 threads,
                     size_t shared_bytes, void *stream) {
    return [=](PARAMETERS... arguments) {
        launch(name, reinterpret_cast<const void *>(kernel), blocks, threads, shared_bytes,
               static_cast<cudaStream_t>(stream), [kernel, arguments...]() { kernel(arguments...); });
    };
}

} // namespace emulated

template <typename KERNEL>
static inline cudaError_t cudaFuncSetAttribute(KERNEL kernel, cudaFuncAttribute, int bytes) {
    return emulated::allow_shared(reinterpret_cast<const void *>(kernel), (size_t)bytes);
}

#endif
