// The emulated runtime: a device, whose memory the host can touch only through it; streams, events and
// graphs as queues of functions. Calls come from one thread at a time.
#include "tests/emulated/runtime.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

namespace {

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

order as = read_order();
const int n_devices = read_devices();
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

uint64_t random_below(uint64_t n) { // splitmix64
    uint64_t z = (as.random += 0x9E3779B97F4A7C15ull);
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ z >> 27) * 0x94D049BB133111EBull;
    return (z ^ z >> 31) % n;
}

// ---- device memory: pages that are there while a stream works, and never for the host ----

const size_t ARENA = (size_t)1 << 40, TOTAL = (size_t)8 << 30, PAGE = 4096, ALIGNED = 256;
const unsigned char UNWRITTEN = 0xFF, BORDER = 0xA5;

struct allocation {
    size_t bytes, pages; // of its pages, the data end at the last one's end but for what ALIGNED leaves
    unsigned char *first_page;
};

unsigned char *arena, *arena_next;
std::map<unsigned char *, allocation> allocations; // by where the data begin
std::map<unsigned char *, size_t> pinned;
size_t used_bytes;
int turns;    // of the device, one within another
bool is_open; // its memory, within a turn

allocation *find(const void *at, size_t bytes) {
    unsigned char *p = (unsigned char *)at;
    auto after = allocations.upper_bound(p);
    if (after == allocations.begin()) return NULL;
    auto one = std::prev(after);
    return p + bytes <= one->first + one->second.bytes ? &one->second : NULL;
}

bool is_pinned(const void *at, size_t bytes) {
    unsigned char *p = (unsigned char *)at;
    auto after = pinned.upper_bound(p);
    if (after == pinned.begin()) return false;
    auto one = std::prev(after);
    return p + bytes <= one->first + one->second;
}

void protect(const allocation &a, int protection) {
    if (mprotect(a.first_page, a.pages * PAGE, protection) != 0) {
        perror("emulated device: mprotect");
        abort();
    }
}

void protect_all(int protection) {
    for (auto &one : allocations) protect(one.second, protection);
}

const bool stays_open = getenv("DR_EMULATED_OPEN") != NULL;

// The device works between these; its memory is opened by the first that touches it.
struct device_turn {
    device_turn() {
        turns++;
    }
    ~device_turn() {
        if (--turns > 0 || !is_open) return;
        if (!stays_open) protect_all(PROT_NONE);
        is_open = false;
    }
};

void open_memory() {
    if (!is_open && !stays_open) protect_all(PROT_READ | PROT_WRITE);
    is_open = true;
}

// Writes with the calls of a signal handler only.
void on_fault(int number, siginfo_t *info, void *) {
    char text[256];
    unsigned char *at = (unsigned char *)info->si_addr;
    const bool inside = at >= arena && at < arena + ARENA;
    int n = snprintf(text, sizeof text, "emulated device: %s touched %p%s\n",
                     is_open ? "a kernel" : "the host", (void *)at, inside ? ", in the device's memory" : "");
    if (write(2, text, (size_t)n) < 0) _exit(3);
    if (inside)
        for (auto &one : allocations)
            if (at >= one.second.first_page && at <= one.first + one.second.bytes + PAGE) {
                n = snprintf(text, sizeof text, "  %td bytes from the beginning of %zu\n", at - one.first,
                             one.second.bytes);
                if (write(2, text, (size_t)n) < 0) _exit(3);
            }
    signal(number, SIG_DFL);
}

void open_arena() {
    static unsigned char alternative[64 * 1024];
    if (arena) return;
    void *at = mmap(NULL, ARENA, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) {
        perror("emulated device: no address space");
        abort();
    }
    arena = arena_next = (unsigned char *)at;
    stack_t stack = {};
    stack.ss_sp = alternative;
    stack.ss_size = sizeof alternative;
    sigaltstack(&stack, NULL);
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, NULL);
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

void open_memory() {
    ::open_memory();
}

void run_others() {
    call one(calls);
    ::run_others();
}

bool is_device_memory(const void *at, size_t bytes) {
    call one(calls);
    return find(at, bytes) != NULL;
}

bool is_early() {
    return as.is_early;
}

} // namespace emulated

extern "C" {

cudaError_t emulated_enqueue(cudaStream_t stream, const std::function<void()> &run) {
    call one(calls);
    return enqueue(stream, {run, NULL, 0});
}

bool emulated_is_device(const void *at, size_t bytes) {
    call one(calls);
    return find(at, bytes) != NULL;
}

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

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device) {
    if (!is_device(device)) return told(cudaErrorInvalidDevice);
    *value = attribute == cudaDevAttrComputeCapabilityMajor ? 9 : 0;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *properties, int device) {
    if (!is_device(device)) return told(cudaErrorInvalidDevice);
    *properties = {};
    snprintf(properties->name, sizeof properties->name, "emulated on the processor");
    properties->major = 9;
    properties->multiProcessorCount = 1;
    properties->totalGlobalMem = TOTAL;
    return cudaSuccess;
}

// ---- memory ----

cudaError_t cudaMalloc(void **memory, size_t bytes) {
    call one(calls);
    for (CUstream_st *stream : streams) // of this thread's recordings none may be open
        if (spoils(stream)) return cudaErrorStreamCaptureUnsupported;
    open_arena();
    if (bytes == 0 || used_bytes + bytes > TOTAL) return told(cudaErrorMemoryAllocation);
    const size_t filled = (bytes + ALIGNED - 1) / ALIGNED * ALIGNED, pages = (filled + PAGE - 1) / PAGE;
    if (arena_next + (pages + 1) * PAGE > arena + ARENA) return told(cudaErrorMemoryAllocation);
    allocation a = {bytes, pages, arena_next};
    unsigned char *data = arena_next + pages * PAGE - filled;
    arena_next += (pages + 1) * PAGE; // addresses are not used again, nor those of a page behind each
    protect(a, PROT_READ | PROT_WRITE);
    memset(a.first_page, BORDER, pages * PAGE);
    memset(data, UNWRITTEN, bytes);
    if (!is_open && !stays_open) protect(a, PROT_NONE);
    allocations[data] = a;
    used_bytes += bytes;
    *memory = data;
    return cudaSuccess;
}

static void check_borders(unsigned char *data, const allocation &a) {
    for (unsigned char *at = a.first_page; at < a.first_page + a.pages * PAGE; at++) {
        if (at == data) at += a.bytes;
        if (at < a.first_page + a.pages * PAGE && *at != BORDER) {
            fprintf(stderr, "emulated device: %td bytes from the beginning of %zu were written\n", at - data,
                    a.bytes);
            abort();
        }
    }
}

cudaError_t cudaFree(void *memory) {
    call one(calls);
    if (!memory) return cudaSuccess;
    auto at = allocations.find((unsigned char *)memory);
    if (at == allocations.end()) return told(cudaErrorInvalidValue);
    for (CUstream_st *stream : streams)
        if (spoils(stream)) return cudaErrorStreamCaptureUnsupported;
    run_device();
    allocation a = at->second;
    protect(a, PROT_READ | PROT_WRITE);
    check_borders(at->first, a);
    madvise(a.first_page, a.pages * PAGE, MADV_DONTNEED);
    protect(a, PROT_NONE);
    used_bytes -= a.bytes;
    allocations.erase(at);
    return cudaSuccess;
}

cudaError_t cudaMallocHost(void **memory, size_t bytes) {
    call one(calls);
    unsigned char *at = (unsigned char *)malloc(bytes ? bytes : 1);
    if (!at) return told(cudaErrorMemoryAllocation);
    memset(at, UNWRITTEN, bytes);
    pinned[at] = bytes;
    *memory = at;
    return cudaSuccess;
}

cudaError_t cudaFreeHost(void *memory) {
    call one(calls);
    if (pinned.erase((unsigned char *)memory) == 0) return told(cudaErrorInvalidValue);
    run_device();
    free(memory);
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *left, size_t *total) {
    call one(calls);
    *left = TOTAL - used_bytes;
    *total = TOTAL;
    return cudaSuccess;
}

// To and from pinned memory as late as the stream is; other memory of the host is read at once, and written
// before the call returns.
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
    call one(calls);
    const bool to_device = kind != cudaMemcpyDeviceToHost, from_device = kind != cudaMemcpyHostToDevice;
    if (bytes == 0) return cudaSuccess;
    if (!stream) return told(cudaErrorInvalidResourceHandle);
    if (to_device != (find(to, bytes) != NULL) || from_device != (find(from, bytes) != NULL))
        return told(cudaErrorInvalidValue);
    const void *host = !to_device ? to : !from_device ? from : NULL;
    if (!host || is_pinned(host, bytes))
        return enqueue(stream, {[=]() { memcpy(to, from, bytes); }, NULL, 0});
    if (spoils(stream)) return cudaErrorStreamCaptureUnsupported;
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
    if (!find(memory, bytes)) return told(cudaErrorInvalidValue);
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
