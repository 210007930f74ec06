// The one way a kernel is launched, so that kernels have one source for the GPU and for the emulator on the CPU.
//
// A build with LS_CUDA_EMUL takes the same macros from test/native/cuda_emul, where the .cu files are plain C++;
// nothing but this header and common.h may therefore use what only nvcc understands (<<<>>>, extern __shared__, inline
// PTX).
#ifndef LONGSEQ_CUDA_LAUNCH_H
#define LONGSEQ_CUDA_LAUNCH_H

#include "common.h"

#ifdef LS_CUDA_EMUL
#include "emul_launch.h"  // defines: LS_LAUNCH_RAW, LS_DYNAMIC_SHARED, LS_PREPARE_SHARED
#else

#define LS_LAUNCH_RAW(kernel, grid, block, shared_bytes, stream, ...) \
  (kernel)<<<(grid), (block), (shared_bytes), (stream)>>>(__VA_ARGS__)

// Inside a kernel: `T *name`, the block's dynamic shared memory, aligned to 128 bytes.
#define LS_DYNAMIC_SHARED(T, name)                                  \
  extern __shared__ __align__(128) unsigned char ls_shared_bytes[]; \
  T *name = reinterpret_cast<T *>(ls_shared_bytes)

// More than 48 KiB of shared memory has to be asked for, once a kernel; asking again costs nothing to speak of. What a
// kernel declares itself counts as well (some KiB at most), so it is asked from 32 KiB on.
#define LS_PREPARE_SHARED(kernel, shared_bytes)                                                                    \
  ((shared_bytes) > 32 * 1024                                                                                      \
       ? cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)) \
       : cudaSuccess)

#endif

// LS_LAUNCH(kernel, grid, block, shared_bytes, exec, args...): launches on the stream of `exec` and gives an ls_status;
// a refused launch (or an earlier failure of the device) leaves one line in exec->error. A kernel with template
// arguments stands in parentheses: LS_LAUNCH((kernel<float, 4>), ...). An empty grid is the caller's to leave out.
#define LS_LAUNCH(kernel, grid, block, shared_bytes, exec, ...)                                        \
  [&]() -> ls_status {                                                                                 \
    cudaStream_t const ls_stream = ::longseq::cuda::stream_of(exec);                                   \
    const cudaError_t ls_prepared = LS_PREPARE_SHARED(kernel, shared_bytes);                           \
    if (ls_prepared != cudaSuccess) return ::longseq::cuda::launch_status(exec, ls_prepared, #kernel); \
    LS_LAUNCH_RAW(kernel, grid, block, shared_bytes, ls_stream, __VA_ARGS__);                          \
    return ::longseq::cuda::launch_status(exec, cudaGetLastError(), #kernel);                          \
  }()

// Returns from the entry where `expression`, an ls_status, is no LS_OK.
#define LS_TRY(expression)                            \
  do {                                                \
    const ls_status ls_try_status = (expression);     \
    if (ls_try_status != LS_OK) return ls_try_status; \
  } while (0)

#endif  // LONGSEQ_CUDA_LAUNCH_H
