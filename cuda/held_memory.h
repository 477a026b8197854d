// How the CUDA body gives memory back. cudaFree and cudaFreeHost wait for all work of a device, and an
// exchange with another rank ends when that rank comes to it, or never: while one may be under way, memory is
// held and given back afterwards. For all backends of the process, whose devices may be the same.
#ifndef DR_CUDA_HELD_MEMORY_H
#define DR_CUDA_HELD_MEMORY_H

#ifdef __cplusplus
extern "C" {
#endif

// Memory of a device, and the host's pinned memory. At once, or by the last let_go; NULL is fine. Of a
// device that is given up (dr_cuda_give_up) nothing is given back.
void dr_cuda_free(int device, void *memory);
void dr_cuda_free_host(int device, void *memory);

// From hold to let_go nothing is given back; several of them may be under way. The last let_go comes when
// all work that waits for other ranks has ended, and gives back what was held.
void dr_cuda_hold_memory(void);
void dr_cuda_let_memory_go(void);

#ifdef __cplusplus
}
#endif
#endif
