// DR_HOT: compiles a hot function for several instruction sets and chooses at start. Sanitizers dislike the
// resolver.
#ifndef DR_CORE_BASE_HOT_H
#define DR_CORE_BASE_HOT_H

#if defined(__SANITIZE_ADDRESS__) || !defined(__x86_64__) || defined(__cplusplus)
#define DR_HOT
#else
#define DR_HOT __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#endif

#endif
