// An emulated NCCL: what a group queues is one piece of work of its stream, which goes on while the transfers
// of the group do, and a transfer begins when both ranks have come to it. Between two ranks sends meet
// receives in order. Only calls of this library and of the emulated runtime carry it on.
//
// A group's end is ncclInProgress, as the library's may be: its work is on the stream some calls of
// ncclCommGetAsyncError later, and where two ranks meet for the first time not before both have come. In the
// order `early` it is there at once where the ranks have met.
//
// DR_EMULATED_NCCL_FAULT=KIND:RANK:N is what becomes of that rank when it comes to its N-th group, from 1 on:
//   error   an asynchronous error    stall   it stands still for ever    die   the process is killed
#include "tests/emulated/nccl.h"

#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include <memory>
#include <mutex>

#include "tests/emulated/memory.h"
#include "tests/emulated/nccl_mesh.h"
#include "tests/emulated/runtime.h"

using namespace emulated;

namespace {

const int LAUNCH_POLLS = 2;         // until a group is on its stream
const unsigned char UNKNOWN = 0xFF; // in what is received, until it is there

struct transfer {
    bool is_send;
    int peer;
    uint32_t operation; // 0: send and receive; 1 + root: a broadcast
    char *memory;
    size_t bytes;
    bool is_begun, is_done;
    uint64_t sent_at; // when the connection has sent so many bytes
};

struct group_work {
    cudaStream_t stream;
    std::vector<transfer> transfers;
    bool is_begun, stalls;
};

struct peer_state {
    bool is_asked, is_met, is_leaving; // met: it was asked for a first exchange, and asked for one
    std::deque<message_head> ready;    // receives that it has come to
    std::deque<message> data;
};

struct fault_at {
    char kind[8];
    int rank;
    uint64_t number;
};

fault_at read_fault() {
    fault_at fault = {};
    unsigned long long number = 0;
    const char *text = getenv("DR_EMULATED_NCCL_FAULT");
    if (text && sscanf(text, "%7[a-z]:%d:%llu", fault.kind, &fault.rank, &number) != 3) {
        fprintf(stderr, "DR_EMULATED_NCCL_FAULT=%s: expected KIND:RANK:N\n", text);
        exit(2);
    }
    fault.number = number;
    return fault;
}

enum phase { CONNECTING, IDLE, LAUNCHING, LEAVING_ALL, LEFT };

} // namespace

struct ncclComm : std::enable_shared_from_this<ncclComm> {
    greeting own;
    std::unique_ptr<mesh> net;
    std::vector<peer_state> peers;
    phase at = CONNECTING;
    ncclResult_t error = ncclSuccess;
    bool is_aborted = false;
    std::shared_ptr<group_work> launching;
    int polls_left = 0, n_on_streams = 0;
    uint64_t n_begun = 0;
};

namespace {

std::recursive_mutex calls;
typedef std::lock_guard<std::recursive_mutex> call;
std::vector<std::shared_ptr<ncclComm>> communicators;
char last_error[256];
size_t n_floats_queued;

// The group under way on this thread's behalf.
int group_depth;
ncclResult_t group_error;
ncclComm_t group_comm;
std::shared_ptr<group_work> group;

__attribute__((format(printf, 2, 3))) ncclResult_t told(ncclResult_t result, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(last_error, sizeof last_error, format, arguments);
    va_end(arguments);
    return result;
}

std::shared_ptr<ncclComm> known(ncclComm_t comm) {
    for (auto &one : communicators)
        if (one.get() == comm) return one;
    return nullptr;
}

void forget(ncclComm_t comm) {
    for (size_t i = 0; i < communicators.size(); i++)
        if (communicators[i].get() == comm) {
            communicators.erase(communicators.begin() + (long)i);
            return;
        }
}

ncclResult_t state_of(const ncclComm &c) {
    if (c.error != ncclSuccess) return c.error;
    return c.at == IDLE || c.at == LEFT ? ncclSuccess : ncclInProgress;
}

// ---- what comes from the other ranks ----

void receive(ncclComm &c, int rank, connection &from) {
    peer_state &peer = c.peers[(size_t)rank];
    for (; !from.arrived.empty(); from.arrived.pop_front()) {
        message &next = from.arrived.front();
        switch (next.head.kind) {
        case MEETING:
            peer.is_met = true;
            break;
        case READY:
            peer.ready.push_back(next.head);
            break;
        case DATA:
            peer.data.push_back(std::move(next));
            break;
        case LEAVING:
            peer.is_leaving = true;
            break;
        case GREETING:
            break;
        }
    }
    if (from.is_gone && !peer.is_leaving && c.error == ncclSuccess)
        c.error = told(ncclRemoteError, "rank %d closed its connection", rank);
}

bool have_left(const ncclComm &c) {
    for (int r = 0; r < c.own.n_ranks; r++) {
        const connection *to = c.net->to[(size_t)r];
        if (to && (!c.peers[(size_t)r].is_leaving || to->n_sent < to->n_put)) return false;
    }
    return true;
}

void check_greetings(ncclComm &c) {
    std::vector<greeting> all = c.net->greetings;
    all[(size_t)c.own.rank] = c.own;
    for (int i = 0; i < c.own.n_ranks; i++) {
        const greeting &a = all[(size_t)i];
        if (a.n_ranks != c.own.n_ranks)
            c.error = told(ncclInvalidArgument, "rank %d is one of %d", i, a.n_ranks);
        for (int j = 0; j < i; j++)
            if (a.host == all[(size_t)j].host && a.device == all[(size_t)j].device)
                c.error = told(ncclInvalidUsage,
                               "Duplicate GPU detected : rank %d and rank %d both on CUDA device %d", j, i,
                               a.device);
    }
    c.at = IDLE;
}

// ---- the work of a group ----

// False: the two ranks do not mean the same.
bool agrees(ncclComm &c, const transfer &t, uint32_t operation, uint64_t bytes) {
    if (t.operation == operation && t.bytes == bytes) return true;
    c.error = told(ncclInvalidUsage, "rank %d %s %zu bytes (operation %u), rank %d has %llu (operation %u)",
                   c.own.rank, t.is_send ? "sends" : "receives", t.bytes, t.operation, t.peer,
                   (unsigned long long)bytes, operation);
    return false;
}

void go_on_sending(ncclComm &c, transfer &t) {
    std::deque<message_head> &ready = c.peers[(size_t)t.peer].ready;
    connection &to = *c.net->to[(size_t)t.peer];
    if (!t.is_begun && !ready.empty()) {
        if (!agrees(c, t, ready.front().operation, ready.front().bytes)) return;
        ready.pop_front();
        open_memory();
        to.put(DATA, t.operation, t.bytes, t.memory, t.bytes);
        t.is_begun = true;
        t.sent_at = to.n_put;
    }
    t.is_done = t.is_begun && to.n_sent >= t.sent_at;
}

void go_on_receiving(ncclComm &c, transfer &t) {
    std::deque<message> &data = c.peers[(size_t)t.peer].data;
    if (!t.is_begun) {
        open_memory();
        memset(t.memory, UNKNOWN, t.bytes);
        c.net->to[(size_t)t.peer]->put(READY, t.operation, t.bytes, NULL, 0);
        t.is_begun = true;
    }
    if (data.empty() || !agrees(c, t, data.front().head.operation, data.front().payload.size())) return;
    open_memory();
    memcpy(t.memory, data.front().payload.data(), t.bytes);
    data.pop_front();
    t.is_done = true;
}

void meet_fault(ncclComm &c, group_work &work) {
    static const fault_at fault = read_fault();
    if (fault.number != ++c.n_begun || fault.rank != c.own.rank) return;
    if (strcmp(fault.kind, "die") == 0) kill(getpid(), SIGKILL);
    if (strcmp(fault.kind, "stall") == 0) work.stalls = true;
    if (strcmp(fault.kind, "error") == 0)
        c.error = told(ncclSystemError, "a fault asked for in group %llu", (unsigned long long)c.n_begun);
}

void progress(ncclComm &c);

// One attempt; true: done, or given up. In case of an error the stream stands still until the communicator
// is given up.
bool attempt(ncclComm &c, group_work &work) {
    call one(calls);
    if (c.is_aborted) return true;
    progress(c);
    if (!work.is_begun && c.error == ncclSuccess) meet_fault(c, work);
    work.is_begun = true;
    if (work.stalls) return false;
    bool is_done = true;
    for (transfer &t : work.transfers) {
        if (c.error != ncclSuccess) return false;
        if (!t.is_done && t.is_send) go_on_sending(c, t);
        if (!t.is_done && !t.is_send) go_on_receiving(c, t);
        is_done = is_done && t.is_done;
    }
    if (is_done) c.n_on_streams--;
    return is_done;
}

bool have_met(const ncclComm &c, const group_work &work) {
    for (const transfer &t : work.transfers)
        if (!c.peers[(size_t)t.peer].is_met) return false;
    return true;
}

void launch_group(ncclComm &c) {
    auto self = c.shared_from_this();
    auto work = std::move(c.launching);
    c.at = IDLE;
    c.n_on_streams++;
    if (enqueue_attempt(work->stream, [self, work]() { return attempt(*self, *work); }) != cudaSuccess)
        c.error = told(ncclUnhandledCudaError, "a group cannot be put on its stream");
}

void progress(ncclComm &c) {
    if (!c.net) return;
    c.net->progress();
    // First: who cannot go on with these ranks may have closed its connections already.
    if (c.at == CONNECTING && c.net->is_complete()) check_greetings(c);
    for (int r = 0; r < c.own.n_ranks; r++)
        if (c.net->to[(size_t)r]) receive(c, r, *c.net->to[(size_t)r]);
    if (c.error != ncclSuccess) return;
    if (c.at == LEAVING_ALL && c.n_on_streams == 0 && have_left(c)) c.at = LEFT;
}

// ---- calls ----

uint64_t host_hash() { // FNV-1a
    char text[256] = "";
    const char *chosen = getenv("NCCL_HOSTID");
    uint64_t hash = 0xCBF29CE484222325ull;
    if (!chosen && gethostname(text, sizeof text - 1) == 0) chosen = text;
    for (const char *at = chosen ? chosen : ""; *at; at++)
        hash = (hash ^ (unsigned char)*at) * 0x100000001B3ull;
    return hash;
}

// Into the group under way, or as a group of its own.
ncclResult_t add(ncclComm_t comm, cudaStream_t stream, std::vector<transfer> transfers) {
    ncclResult_t result = ncclSuccess;
    ncclGroupStart();
    if (!group) {
        group_comm = comm;
        group = std::make_shared<group_work>();
        group->stream = stream;
    }
    if (comm != group_comm || stream != group->stream)
        result = told(ncclInvalidUsage, "emulated: a group of several communicators or streams");
    for (transfer &t : transfers) {
        group->transfers.push_back(t);
        n_floats_queued += t.bytes / sizeof(float);
    }
    if (group_error == ncclSuccess) group_error = result;
    const ncclResult_t ended = ncclGroupEnd();
    return result == ncclSuccess ? ended : result;
}

size_t bytes_of(size_t count, ncclDataType_t type) {
    return count * (type == ncclFloat32 ? sizeof(float) : 1);
}

ncclResult_t check(ncclComm_t comm, const void *values, size_t count, ncclDataType_t type, int peer) {
    auto c = known(comm);
    if (!c) return told(ncclInvalidArgument, "no such communicator");
    if (state_of(*c) == ncclInProgress)
        return told(ncclInvalidArgument, "the operation before is still in progress");
    if (c->error != ncclSuccess) return c->error;
    if (c->at != IDLE) return told(ncclInvalidArgument, "the communicator was finalized");
    if (type != ncclFloat32 && type != ncclUint8)
        return told(ncclInvalidArgument, "emulated: floats and bytes only");
    if (peer < 0 || peer >= c->own.n_ranks)
        return told(ncclInvalidArgument, "rank %d of %d", peer, c->own.n_ranks);
    if (!is_device_memory(values, bytes_of(count, type)))
        return told(ncclInvalidArgument, "%zu values are not the device's memory", count);
    return ncclSuccess;
}

// What went wrong within a group is what its end returns.
ncclResult_t noted(ncclResult_t result) {
    if (group_depth > 0 && group_error == ncclSuccess) group_error = result;
    return result;
}

ncclResult_t end_group() {
    auto c = known(group_comm);
    auto work = std::move(group);
    const ncclResult_t failed = group_error;
    group_error = ncclSuccess;
    group = nullptr;
    if (failed != ncclSuccess) return failed;
    if (!work || work->transfers.empty()) return ncclSuccess;
    for (const transfer &t : work->transfers) {
        peer_state &peer = c->peers[(size_t)t.peer];
        if (!peer.is_asked) c->net->to[(size_t)t.peer]->put(MEETING, 0, 0, NULL, 0);
        peer.is_asked = true;
    }
    c->launching = std::move(work);
    c->at = LAUNCHING;
    c->polls_left = is_early() ? 0 : LAUNCH_POLLS;
    progress(*c);
    if (is_early() && have_met(*c, *c->launching)) launch_group(*c);
    return state_of(*c);
}

} // namespace

ncclResult_t ncclGetVersion(int *version) {
    *version = NCCL_VERSION_CODE;
    return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
    uint64_t number[2];
    if (getrandom(number, sizeof number, 0) != (ssize_t)sizeof number)
        return told(ncclSystemError, "no random number");
    *id = {};
    snprintf(id->internal, sizeof id->internal, "emulated-nccl-%016llx%016llx", (unsigned long long)number[0],
             (unsigned long long)number[1]);
    return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t *comm, int n_ranks, ncclUniqueId id, int rank,
                                    ncclConfig_t *config) {
    call one(calls);
    int device = 0;
    if (!config || config->magic != 0xcafebeef || config->blocking != 0)
        return told(ncclInvalidArgument, "emulated: communicators that do not block only");
    if (rank < 0 || rank >= n_ranks) return told(ncclInvalidArgument, "rank %d of %d", rank, n_ranks);
    cudaGetDevice(&device);
    id.internal[NCCL_UNIQUE_ID_BYTES - 1] = '\0';
    auto c = std::make_shared<ncclComm>();
    c->own = {rank, n_ranks, emulated::physical_device(device), host_hash()};
    c->peers.resize((size_t)n_ranks);
    c->net = std::make_unique<mesh>(id.internal, c->own);
    if (!c->net->is_listening()) return told(ncclSystemError, "rank %d cannot listen", rank);
    communicators.push_back(c);
    *comm = c.get();
    return ncclInProgress;
}

// Carries the communicator on; each call brings a group nearer to its stream.
ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *state) {
    call one(calls);
    auto c = known(comm);
    if (!c) return told(ncclInvalidArgument, "no such communicator");
    progress(*c);
    if (c->at == LEAVING_ALL || (c->at == LAUNCHING && c->polls_left == 0)) run_others();
    *state = state_of(*c);
    if (c->error != ncclSuccess || c->at != LAUNCHING) return ncclSuccess;
    if (c->polls_left > 0) c->polls_left--;
    if (c->polls_left == 0 && have_met(*c, *c->launching)) launch_group(*c);
    *state = state_of(*c);
    return ncclSuccess;
}

ncclResult_t ncclCommFinalize(ncclComm_t comm) {
    call one(calls);
    auto c = known(comm);
    if (!c) return told(ncclInvalidArgument, "no such communicator");
    if (c->error != ncclSuccess) return c->error;
    if (c->at != IDLE) return told(ncclInvalidArgument, "the operation before is still in progress");
    c->at = LEAVING_ALL;
    for (connection *to : c->net->to)
        if (to) to->put(LEAVING, 0, 0, NULL, 0);
    return ncclInProgress;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
    call one(calls);
    auto c = known(comm);
    if (!c) return told(ncclInvalidArgument, "no such communicator");
    if (c->at != LEFT) return told(ncclInvalidUsage, "emulated: destroyed before it was finalized");
    c->net.reset();
    forget(comm);
    return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t comm) {
    call one(calls);
    auto c = known(comm);
    if (!c) return told(ncclInvalidArgument, "no such communicator");
    c->is_aborted = true;
    c->net.reset();
    forget(comm);
    return ncclSuccess;
}

const char *ncclGetErrorString(ncclResult_t result) {
    static const char *const texts[] = {"no error",
                                        "unhandled cuda error",
                                        "unhandled system error",
                                        "internal error",
                                        "invalid argument",
                                        "invalid usage",
                                        "remote process exited or there was a network error",
                                        "NCCL operation in progress"};
    return (size_t)result < sizeof texts / sizeof *texts ? texts[result] : "unknown result code";
}

const char *ncclGetLastError(ncclComm_t) {
    return last_error;
}

ncclResult_t ncclGroupStart(void) {
    group_depth++;
    return ncclSuccess;
}

ncclResult_t ncclGroupEnd(void) {
    call one(calls);
    if (group_depth == 0) return told(ncclInvalidUsage, "a group ends that was not begun");
    return --group_depth == 0 ? end_group() : ncclSuccess;
}

ncclResult_t ncclSend(const void *values, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
    call one(calls);
    ncclResult_t result = check(comm, values, count, type, peer);
    if (result == ncclSuccess && peer == known(comm)->own.rank)
        result = told(ncclInvalidUsage, "emulated: rank %d sends to itself", peer);
    if (result != ncclSuccess) return noted(result);
    return add(comm, stream, {{true, peer, 0, (char *)values, bytes_of(count, type), false, false, 0}});
}

ncclResult_t ncclRecv(void *values, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
    call one(calls);
    ncclResult_t result = check(comm, values, count, type, peer);
    if (result == ncclSuccess && peer == known(comm)->own.rank)
        result = told(ncclInvalidUsage, "emulated: rank %d receives from itself", peer);
    if (result != ncclSuccess) return noted(result);
    return add(comm, stream, {{false, peer, 0, (char *)values, bytes_of(count, type), false, false, 0}});
}

ncclResult_t ncclBroadcast(const void *from, void *to, size_t count, ncclDataType_t type, int root,
                           ncclComm_t comm, cudaStream_t stream) {
    call one(calls);
    const size_t bytes = bytes_of(count, type);
    ncclResult_t result = check(comm, to, count, type, root);
    if (result == ncclSuccess && from != to)
        result = told(ncclInvalidUsage, "emulated: broadcasts in place only");
    if (result != ncclSuccess) return noted(result);
    const ncclComm &c = *known(comm);
    std::vector<transfer> all;
    for (int r = 0; r < c.own.n_ranks; r++)
        if (r != root && (c.own.rank == root || c.own.rank == r))
            all.push_back({c.own.rank == root, c.own.rank == root ? r : root, 1 + (uint32_t)root, (char *)to,
                           bytes, false, false, 0});
    return add(comm, stream, all);
}

size_t emulatedNcclQueued(void) {
    call one(calls);
    return n_floats_queued;
}
