// Memory of the emulated device: pages that are there while the device works, and never for the host; each
// allocation ends at a page that is never there, and what is around it is watched. Nothing that is taken has
// been written.
#ifndef DR_TESTS_EMULATED_MEMORY_H
#define DR_TESTS_EMULATED_MEMORY_H

#include <stddef.h>

namespace emulated {

const size_t TOTAL_MEMORY = (size_t)8 << 30;

// The device works while one of these is there; its memory is opened by the first that touches it.
struct device_turn {
    device_turn();
    ~device_turn();
};
void open_memory();

bool is_device_memory(const void *at, size_t bytes); // within one allocation
bool is_pinned(const void *at, size_t bytes);        // within one block of the host's pinned memory

void *take_memory(size_t bytes);     // NULL: there is not so much
bool give_back_memory(void *memory); // false: it is no allocation
void *take_pinned(size_t bytes);
bool give_back_pinned(void *memory);
size_t used_memory();

} // namespace emulated

#endif
