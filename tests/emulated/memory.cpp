#include "tests/emulated/memory.h"

#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <iterator>
#include <map>

namespace {

const size_t ARENA = (size_t)1 << 40, PAGE = 4096, ALIGNED = 256;
const unsigned char UNWRITTEN = 0xFF, BORDER = 0xA5;

struct allocation {
    size_t bytes, pages; // of its pages, the data end at the last one's end but for what ALIGNED leaves
    unsigned char *first_page;
};

unsigned char *arena, *arena_next;
std::map<unsigned char *, allocation> allocations; // by where the data begin
std::map<unsigned char *, size_t> pinned;
size_t used_bytes, most_used;
int turns;    // of the device, one within another
bool is_open; // its memory, within a turn

// Whether `bytes` from `at` on lie within one of these blocks.
template <typename BLOCK, typename BYTES>
bool lie_within(const std::map<unsigned char *, BLOCK> &blocks, const void *at, size_t bytes,
                BYTES bytes_of) {
    unsigned char *p = (unsigned char *)at;
    auto after = blocks.upper_bound(p);
    if (after == blocks.begin()) return false;
    auto one = std::prev(after);
    return p + bytes <= one->first + bytes_of(one->second);
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

void say_most() {
    fprintf(stderr, "emulated device: at most %zu bytes were taken\n", most_used);
}

void open_arena() {
    static unsigned char alternative[64 * 1024];
    if (arena) return;
    if (getenv("DR_EMULATED_METER")) atexit(say_most);
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

void check_borders(unsigned char *data, const allocation &a) {
    for (unsigned char *at = a.first_page; at < a.first_page + a.pages * PAGE; at++) {
        if (at == data) at += a.bytes;
        if (at < a.first_page + a.pages * PAGE && *at != BORDER) {
            fprintf(stderr, "emulated device: %td bytes from the beginning of %zu were written\n", at - data,
                    a.bytes);
            abort();
        }
    }
}

} // namespace

namespace emulated {

device_turn::device_turn() {
    turns++;
}

device_turn::~device_turn() {
    if (--turns > 0 || !is_open) return;
    if (!stays_open) protect_all(PROT_NONE);
    is_open = false;
}

void open_memory() {
    if (!is_open && !stays_open) protect_all(PROT_READ | PROT_WRITE);
    is_open = true;
}

bool is_device_memory(const void *at, size_t bytes) {
    return lie_within(allocations, at, bytes, [](const allocation &a) { return a.bytes; });
}

bool is_pinned(const void *at, size_t bytes) {
    return lie_within(pinned, at, bytes, [](size_t all) { return all; });
}

void *take_memory(size_t bytes) {
    open_arena();
    if (bytes == 0 || used_bytes + bytes > TOTAL_MEMORY) return NULL;
    const size_t filled = (bytes + ALIGNED - 1) / ALIGNED * ALIGNED, pages = (filled + PAGE - 1) / PAGE;
    if (arena_next + (pages + 1) * PAGE > arena + ARENA) return NULL;
    allocation a = {bytes, pages, arena_next};
    unsigned char *data = arena_next + pages * PAGE - filled;
    arena_next += (pages + 1) * PAGE; // addresses are not used again, nor those of a page behind each
    protect(a, PROT_READ | PROT_WRITE);
    memset(a.first_page, BORDER, pages * PAGE);
    memset(data, UNWRITTEN, bytes);
    if (!is_open && !stays_open) protect(a, PROT_NONE);
    allocations[data] = a;
    used_bytes += bytes;
    if (used_bytes > most_used) most_used = used_bytes;
    return data;
}

bool give_back_memory(void *memory) {
    auto at = allocations.find((unsigned char *)memory);
    if (at == allocations.end()) return false;
    allocation a = at->second;
    protect(a, PROT_READ | PROT_WRITE);
    check_borders(at->first, a);
    madvise(a.first_page, a.pages * PAGE, MADV_DONTNEED);
    protect(a, PROT_NONE);
    used_bytes -= a.bytes;
    allocations.erase(at);
    return true;
}

void *take_pinned(size_t bytes) {
    unsigned char *at = (unsigned char *)malloc(bytes ? bytes : 1);
    if (!at) return NULL;
    memset(at, UNWRITTEN, bytes);
    pinned[at] = bytes;
    return at;
}

bool give_back_pinned(void *memory) {
    if (pinned.erase((unsigned char *)memory) == 0) return false;
    free(memory);
    return true;
}

size_t used_memory() {
    return used_bytes;
}

} // namespace emulated
