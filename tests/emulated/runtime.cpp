// The emulated runtime: streams, events and graphs as queues of functions. Calls come from one thread at a
// time.
#include "tests/emulated/runtime.h"

#include "tests/emulated/memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

namespace {

using emulated::device_turn;
using emulated::is_device_memory;
using emulated::is_pinned;
using emulated::open_memory;

typedef std::function<void()> work;

struct item {
    work run;
    CUevent_st *event; // not NULL: waits until `count` of its records are done
    uint64_t count;
    std::function<bool()> attempt = nullptr; // in the place of run: called until it is done
};

} // namespace

struct CUgraph_st {
    std::vector<work> nodes;
};

struct CUgraphExec_st {
    std::shared_ptr<std::vector<work>> nodes; // launches under way keep it
};

struct CUstream_st {
    std::deque<item> queue;
    CUgraph_st *recording;
    bool is_spoiled; // what was recorded cannot be
};

struct CUevent_st {
    uint64_t recorded, done;
    CUstream_st *stream; // of the last record
};

namespace {

// ---- order ----

struct order {
    bool is_early, is_random;
    uint64_t threads; // run_grid's
    uint64_t random;
};

order read_order() {
    const char *text = getenv("DR_EMULATED_ORDER");
    char *end = NULL;
    if (!text || strcmp(text, "late") == 0) return {false, false, emulated::BACKWARD, 0};
    if (strcmp(text, "early") == 0) return {true, false, emulated::FORWARD, 0};
    uint64_t seed = strtoull(text, &end, 10);
    if (*text == '\0' || *end != '\0') {
        fprintf(stderr, "DR_EMULATED_ORDER=%s: expected late, early or a number\n", text);
        exit(2);
    }
    return {false, true, 0, seed};
}

int read_devices() {
    const char *text = getenv("DR_EMULATED_DEVICES");
    int n = text ? atoi(text) : 1;
    if (n < 1) {
        fprintf(stderr, "DR_EMULATED_DEVICES=%s: expected a number from 1 on\n", text);
        exit(2);
    }
    return n;
}

// Numbers of the machine's devices that this process sees, as in CUDA_VISIBLE_DEVICES:
// DR_EMULATED_VISIBLE=2,0.
std::vector<int> read_visible() {
    const char *text = getenv("DR_EMULATED_VISIBLE");
    const int n = read_devices();
    std::vector<int> visible;
    for (int device = 0; !text && device < n; device++) visible.push_back(device);
    for (const char *at = text; at;) {
        char *end = NULL;
        const long device = strtol(at, &end, 10);
        if (end == at || (*end != ',' && *end != '\0') || device < 0 || device >= n) {
            fprintf(stderr, "DR_EMULATED_VISIBLE=%s: expected numbers below %d\n", text, n);
            exit(2);
        }
        visible.push_back((int)device);
        at = *end ? end + 1 : NULL;
    }
    return visible;
}

order as = read_order();
const std::vector<int> visible = read_visible();
const int n_devices = (int)visible.size();
int current_device;
std::recursive_mutex calls;
typedef std::lock_guard<std::recursive_mutex> call;
std::vector<CUstream_st *> streams;
std::vector<std::unique_ptr<CUevent_st>> destroyed; // records of these may be under way
cudaError_t last_error;
double still_since; // what is waited for has stood still; 0: it does not
const double PATIENCE_S = 0.5, STANDS_STILL_S = 120.0;
const useconds_t POLL_US = 100;

cudaError_t told(cudaError_t error) {
    if (error != cudaSuccess && error != cudaErrorNotReady) last_error = error;
    return error;
}

bool is_late() {
    return !as.is_early && !as.is_random;
}

uint64_t random_below(uint64_t n) {
    return emulated::next_random(&as.random) % n;
}

// ---- streams ----

// All of these: false where a stream stands still, at work that waits for another process.
bool run_next(CUstream_st *stream);

bool run_until(CUevent_st *event, uint64_t count) {
    while (event->done < count) {
        if (event->stream->queue.empty()) {
            fprintf(stderr, "emulated device: a wait for an event that nobody records\n");
            abort();
        }
        if (!run_next(event->stream)) return false;
    }
    return true;
}

bool run_next(CUstream_st *stream) {
    const item &next = stream->queue.front(); // stays: nothing that runs here adds to a queue
    if (next.event && !run_until(next.event, next.count)) return false;
    if (next.attempt && !next.attempt()) return false;
    if (next.run) {
        open_memory();
        next.run();
    }
    stream->queue.pop_front();
    still_since = 0;
    return true;
}

bool run_all(CUstream_st *stream) {
    device_turn here;
    while (!stream->queue.empty())
        if (!run_next(stream)) return false;
    return true;
}

// Late: the newest stream first, for what it does not wait for has not been done then.
bool run_streams() {
    device_turn here;
    bool is_done = true;
    for (size_t i = 0; i < streams.size(); i++) {
        const size_t newest = streams.size() - 1 - i;
        is_done = run_all(streams[is_late() ? newest : i]) && is_done;
    }
    return is_done;
}

double seconds() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

// While the stream that the host waits for stands still, the device goes on with the others, as it would by
// itself; late: when that has lasted for a while.
void run_others() {
    if (still_since == 0) still_since = seconds();
    if (!is_late() || seconds() - still_since > PATIENCE_S) run_streams();
}

// The host waits until `go_on` has done what it waits for.
void wait_until(const std::function<bool()> &go_on) {
    device_turn here;
    const double end = seconds() + STANDS_STILL_S;
    while (!go_on()) {
        run_others();
        if (seconds() > end) {
            fprintf(stderr, "emulated device: the host waited %.0f s for a stream that stands still\n",
                    STANDS_STILL_S);
            abort();
        }
        usleep(POLL_US);
    }
}

void run_device() {
    wait_until(run_streams);
    destroyed.clear();
}

// What the device may do while the host does something else.
void go_on() {
    if (!as.is_random || streams.empty()) return;
    device_turn here;
    for (uint64_t n = random_below(4); n > 0; n--) {
        CUstream_st *stream = streams[random_below(streams.size())];
        if (!stream->queue.empty()) run_next(stream);
    }
}

cudaError_t enqueue(CUstream_st *stream, item what) {
    if (!stream) return told(cudaErrorInvalidResourceHandle); // the default stream waits for all others
    if (stream->recording) {
        if (!what.run) {
            stream->is_spoiled = true;
            return told(cudaErrorStreamCaptureUnsupported);
        }
        stream->recording->nodes.push_back(std::move(what.run));
        return cudaSuccess;
    }
    stream->queue.push_back(std::move(what));
    if (as.is_early) run_all(stream);
    go_on();
    return cudaSuccess;
}

// Calls that a recording does not allow.
bool spoils(CUstream_st *stream) {
    if (!stream->recording) return false;
    stream->is_spoiled = true;
    told(cudaErrorStreamCaptureUnsupported);
    return true;
}

bool is_device(int device) {
    return device >= 0 && device < n_devices;
}

std::map<const void *, size_t> shared_allowed;

} // namespace

namespace emulated {

cudaError_t allow_shared(const void *kernel, size_t bytes) {
    call one(calls);
    if (bytes > SHARED_BYTES) return told(cudaErrorInvalidValue);
    shared_allowed[kernel] = bytes;
    return cudaSuccess;
}

void launch(const char *name, const void *kernel, dim3 blocks, dim3 threads, size_t shared_bytes,
            cudaStream_t stream, std::function<void()> run) {
    call one(calls);
    const uint64_t n_threads = (uint64_t)threads.x * threads.y * threads.z;
    auto allowed = shared_allowed.find(kernel);
    const size_t most_shared =
        std::max(allowed == shared_allowed.end() ? 0 : allowed->second, (size_t)48 * 1024);
    if (n_threads == 0 || n_threads > MOST_THREADS || threads.z > 64 || blocks.x == 0 ||
        blocks.x > INT32_MAX || blocks.y == 0 || blocks.y > 65535 || blocks.z == 0 || blocks.z > 65535 ||
        shared_bytes > most_shared) {
        fprintf(stderr, "emulated device: %s: %u x %u x %u blocks of %u x %u x %u threads, %zu bytes\n", name,
                blocks.x, blocks.y, blocks.z, threads.x, threads.y, threads.z, shared_bytes);
        told(cudaErrorInvalidConfiguration);
        return;
    }
    enqueue(stream, {[=]() {
                         run_grid(name, blocks, threads, shared_bytes,
                                  as.is_random ? 2 + random_below(1u << 30) : as.threads, run);
                     },
                     NULL, 0});
}

cudaError_t enqueue_attempt(cudaStream_t stream, std::function<bool()> attempt) {
    call one(calls);
    return enqueue(stream, {nullptr, NULL, 0, std::move(attempt)});
}

cudaError_t enqueue_work(cudaStream_t stream, std::function<void()> run) {
    call one(calls);
    return enqueue(stream, {std::move(run), NULL, 0});
}

void run_others() {
    call one(calls);
    ::run_others();
}

int physical_device(int device) {
    return visible[(size_t)device];
}

bool is_early() {
    return as.is_early;
}

} // namespace emulated

extern "C" {

const char *cudaGetErrorString(cudaError_t error) {
    switch (error) {
    case cudaSuccess:
        return "no error";
    case cudaErrorInvalidValue:
        return "invalid argument";
    case cudaErrorMemoryAllocation:
        return "out of memory";
    case cudaErrorInvalidConfiguration:
        return "invalid configuration argument";
    case cudaErrorInvalidDevice:
        return "invalid device ordinal";
    case cudaErrorInvalidResourceHandle:
        return "invalid resource handle";
    case cudaErrorNotReady:
        return "device not ready";
    case cudaErrorStreamCaptureUnsupported:
        return "operation not permitted when stream is capturing";
    }
    return "an error of no name";
}

cudaError_t cudaGetLastError(void) {
    call one(calls);
    cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}

cudaError_t cudaRuntimeGetVersion(int *version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int *count) {
    *count = n_devices;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
    call one(calls);
    if (!is_device(device)) return told(cudaErrorInvalidDevice);
    current_device = device;
    return cudaSuccess;
}

cudaError_t cudaGetDevice(int *device) {
    call one(calls);
    *device = current_device;
    return cudaSuccess;
}

// Of the machine's devices below DR_EMULATED_OLD.
static int major_of(int device) {
    const char *old = getenv("DR_EMULATED_OLD");
    return old && visible[(size_t)device] < atoi(old) ? 7 : 9;
}

static bool reads_host_late() {
    const char *host = getenv("DR_EMULATED_HOST");
    return host && strcmp(host, "late") == 0;
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device) {
    if (!is_device(device)) return told(cudaErrorInvalidDevice);
    *value = attribute == cudaDevAttrComputeCapabilityMajor                   ? major_of(device)
             : attribute == cudaDevAttrPageableMemoryAccessUsesHostPageTables ? reads_host_late()
                                                                              : 0;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *properties, int device) {
    if (!is_device(device)) return told(cudaErrorInvalidDevice);
    *properties = {};
    snprintf(properties->name, sizeof properties->name, "emulated on the processor");
    properties->major = major_of(device);
    properties->multiProcessorCount = 1;
    properties->pciBusID = 0x10 + visible[(size_t)device];
    properties->totalGlobalMem = emulated::TOTAL_MEMORY;
    return cudaSuccess;
}

// ---- memory ----

cudaError_t cudaMalloc(void **memory, size_t bytes) {
    call one(calls);
    for (CUstream_st *stream : streams) // of this thread's recordings none may be open
        if (spoils(stream)) return cudaErrorStreamCaptureUnsupported;
    *memory = emulated::take_memory(bytes);
    return *memory ? cudaSuccess : told(cudaErrorMemoryAllocation);
}

cudaError_t cudaFree(void *memory) {
    call one(calls);
    if (!memory) return cudaSuccess;
    if (!is_device_memory(memory, 1)) return told(cudaErrorInvalidValue);
    for (CUstream_st *stream : streams)
        if (spoils(stream)) return cudaErrorStreamCaptureUnsupported;
    run_device();
    return emulated::give_back_memory(memory) ? cudaSuccess : told(cudaErrorInvalidValue);
}

cudaError_t cudaMallocHost(void **memory, size_t bytes) {
    call one(calls);
    *memory = emulated::take_pinned(bytes);
    return *memory ? cudaSuccess : told(cudaErrorMemoryAllocation);
}

cudaError_t cudaFreeHost(void *memory) {
    call one(calls);
    if (!is_pinned(memory, 0)) return told(cudaErrorInvalidValue);
    run_device();
    return emulated::give_back_pinned(memory) ? cudaSuccess : told(cudaErrorInvalidValue);
}

cudaError_t cudaMemGetInfo(size_t *left, size_t *total) {
    call one(calls);
    *total = emulated::TOTAL_MEMORY;
    *left = *total - emulated::used_memory();
    return cudaSuccess;
}

// To and from pinned memory as late as the stream is; other memory of the host is read at once, or as late too
// with DR_EMULATED_HOST=late, and written before the call returns.
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
    call one(calls);
    const bool to_device = kind != cudaMemcpyDeviceToHost, from_device = kind != cudaMemcpyHostToDevice;
    if (bytes == 0) return cudaSuccess;
    if (!stream) return told(cudaErrorInvalidResourceHandle);
    if (to_device != (is_device_memory(to, bytes)) || from_device != (is_device_memory(from, bytes)))
        return told(cudaErrorInvalidValue);
    const void *host = !to_device ? to : !from_device ? from : NULL;
    if (!host || is_pinned(host, bytes))
        return enqueue(stream, {[=]() { memcpy(to, from, bytes); }, NULL, 0});
    if (spoils(stream)) return cudaErrorStreamCaptureUnsupported;
    if (!from_device && reads_host_late()) return enqueue(stream, {[=]() { memcpy(to, from, bytes); }, NULL, 0});
    if (!from_device) {
        auto copy = std::make_shared<std::vector<char>>((const char *)from, (const char *)from + bytes);
        return enqueue(stream, {[=]() { memcpy(to, copy->data(), bytes); }, NULL, 0});
    }
    device_turn here;
    wait_until([=]() { return run_all(stream); });
    open_memory();
    memcpy(to, from, bytes);
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *memory, int value, size_t bytes, cudaStream_t stream) {
    call one(calls);
    if (bytes == 0) return cudaSuccess;
    if (!is_device_memory(memory, bytes)) return told(cudaErrorInvalidValue);
    return enqueue(stream, {[=]() { memset(memory, value, bytes); }, NULL, 0});
}

// ---- streams and events ----

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned int) {
    call one(calls);
    *stream = new CUstream_st();
    streams.push_back(*stream);
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    call one(calls);
    auto at = std::find(streams.begin(), streams.end(), stream);
    if (at == streams.end()) return told(cudaErrorInvalidResourceHandle);
    wait_until([=]() { return run_all(stream); });
    streams.erase(at);
    delete stream;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    call one(calls);
    if (!stream) return told(cudaErrorInvalidResourceHandle);
    if (spoils(stream)) return cudaErrorStreamCaptureUnsupported;
    wait_until([=]() { return run_all(stream); });
    return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned int) {
    call one(calls);
    return enqueue(stream, {nullptr, event, event->recorded});
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned int) {
    *event = new CUevent_st();
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
    call one(calls);
    destroyed.emplace_back(event);
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    call one(calls);
    if (!stream) return told(cudaErrorInvalidResourceHandle);
    if (spoils(stream)) return cudaErrorStreamCaptureUnsupported;
    const uint64_t count = ++event->recorded;
    event->stream = stream;
    return enqueue(stream, {[=]() { event->done = std::max(event->done, count); }, NULL, 0});
}

// Each question lets the stream do one thing more, or the others where it stands still.
cudaError_t cudaEventQuery(cudaEvent_t event) {
    call one(calls);
    if (event->done < event->recorded && !event->stream->queue.empty()) {
        device_turn here;
        if (!run_next(event->stream)) run_others();
    }
    return event->done < event->recorded ? cudaErrorNotReady : cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    call one(calls);
    wait_until([=]() { return run_until(event, event->recorded); });
    return cudaSuccess;
}

// ---- graphs ----

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
    call one(calls);
    if (stream->recording) return told(cudaErrorInvalidValue);
    if (getenv("DR_EMULATED_NO_GRAPHS")) return told(cudaErrorStreamCaptureUnsupported);
    stream->recording = new CUgraph_st();
    stream->is_spoiled = false;
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    call one(calls);
    *graph = NULL;
    if (!stream->recording) return told(cudaErrorInvalidValue);
    if (stream->is_spoiled)
        delete stream->recording;
    else
        *graph = stream->recording;
    stream->recording = NULL;
    return *graph ? cudaSuccess : told(cudaErrorStreamCaptureUnsupported);
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long) {
    *exec = new CUgraphExec_st{std::make_shared<std::vector<work>>(graph->nodes)};
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
    call one(calls);
    auto nodes = exec->nodes;
    return enqueue(stream, {[nodes]() {
                                for (const work &node : *nodes) node();
                            },
                            NULL, 0});
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
    delete exec;
    return cudaSuccess;
}

} // extern "C"
