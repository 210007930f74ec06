// The execution model of CUDA on a CPU: grids, blocks, threads as fibers, barriers, warps, shared memory, cp.async.
//
// A block runs on one OS thread; its threads are fibers that switch only where they wait for each other. Threads that
// never wait run one after the other on one stack. Warps are lockstep at their collectives and nowhere else, and warps
// run ahead of each other as far as barriers let them, so that a missing barrier shows. Blocks run in parallel.
#ifndef LONGSEQ_CUDA_EMUL_MODEL_H
#define LONGSEQ_CUDA_EMUL_MODEL_H

#include <cstddef>
#include <cstdint>
#include <vector>

#ifdef LS_CUDA_HOST  // beside the real host files: CUDA's own types, and streams that run behind
#include <vector_types.h>
#else
struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
#endif

namespace emul {

inline constexpr int kWarp = 32;

// A pending copy of cp.async: made when it is waited for, never before, so that a missing wait shows; in the other
// order of threads made at once, so that a missing barrier before it shows.
struct AsyncCopy {
  void *to;
  const void *from;
  uint32_t bytes, valid;  // the rest of `bytes` becomes zero
};

// One CUDA thread.
struct Lane {
  uint3 thread_idx;
  int index;  // in its block
  void *fiber = nullptr;
  enum State { kNew, kReady, kBarrier, kWarpWait, kDone } state;
  // What it brings to a collective of its warp.
  unsigned mask;
  void *operand;
  void (*complete)(void *const *operands, unsigned mask);
  int barrier_value;  // of __syncthreads_or and its like
  std::vector<std::vector<AsyncCopy>> groups;
  std::vector<AsyncCopy> open_group;
};

// What threadIdx, blockIdx, blockDim and gridDim read.
extern constinit thread_local Lane *lane;
extern constinit thread_local uint3 block_idx;
extern constinit thread_local dim3 block_dim;
extern constinit thread_local dim3 grid_dim;

// The dynamic shared memory of the running block; poisoned at its start.
void *dynamic_shared();

// Waits for all threads of the block that have not returned. The sum, or and and of `value` over them.
struct BarrierResult {
  int count, any, all;
};
BarrierResult barrier(int value);

// Waits for the lanes of `mask`; the last to come runs complete(operands by lane, mask) for all of them.
void collective(unsigned mask, void *operand, void (*complete)(void *const *operands, unsigned mask));

void async_copy(void *to, const void *from, uint32_t bytes, uint32_t valid);
void async_commit();
void async_wait(int remaining);

// Bytes of shared memory that a block may take: an H200's 227 KiB, or LONGSEQ_EMUL_SHARED_KIB.
size_t most_shared();

// Runs body(context) once a thread. 0, or a cudaError_t for a launch that no device would take.
int launch(dim3 grid, dim3 block, size_t shared_bytes, void (*body)(void *), void *context, const char *kernel);

// A kernel did what CUDA leaves undefined: prints what and where, and aborts the process.
[[noreturn]] void die(const char *format, ...) __attribute__((format(printf, 1, 2)));

// The order in which threads are started: 0 ascending, 1 descending. Results must not depend on it.
extern int thread_order;

}  // namespace emul

#endif  // LONGSEQ_CUDA_EMUL_MODEL_H
