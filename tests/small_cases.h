// Sizes for where the usual ones would take too long: on the emulated device (tests/emulated), a thousand
// times slower, and under compute-sanitizer. Fewer cases, which still go through every kernel.
#ifndef DR_TESTS_SMALL_CASES_H
#define DR_TESTS_SMALL_CASES_H

#ifndef DR_SMALL_CASES
#define DR_SMALL_CASES 0
#endif
#define sized(usual, small) (DR_SMALL_CASES ? (small) : (usual))

#endif
