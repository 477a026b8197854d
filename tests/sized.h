// Sizes of tests of the CUDA body: on a device, and on one that the processor emulates (tests/emulated), a
// thousand times slower, where fewer cases still go through all of the code.
#ifndef DR_TESTS_SIZED_H
#define DR_TESTS_SIZED_H

#ifndef DR_EMULATED
#define DR_EMULATED 0
#endif
#define sized(on_device, emulated) (DR_EMULATED ? (emulated) : (on_device))

#endif
