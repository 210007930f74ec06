// The part of the CUDA runtime's names that our .cu files use. Streams run at once, so waiting is free; with
// LS_CUDA_HOST the names are the runtime's own, and test/native/cuda_host stands in for it.
#ifndef LONGSEQ_CUDA_EMUL_RUNTIME_H
#define LONGSEQ_CUDA_EMUL_RUNTIME_H

#include <stdlib.h>

#ifdef LS_CUDA_HOST
#include <cuda_runtime_api.h>
#endif

#include "emul_device.h"

#ifndef LS_CUDA_HOST
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchFailure = 719,
};
struct EmulStream;
using cudaStream_t = EmulStream *;
enum cudaMemcpyKind {
  cudaMemcpyHostToHost,
  cudaMemcpyHostToDevice,
  cudaMemcpyDeviceToHost,
  cudaMemcpyDeviceToDevice,
  cudaMemcpyDefault
};

namespace emul {
void set_last_error(cudaError_t error);
}

cudaError_t cudaGetLastError();
const char *cudaGetErrorString(cudaError_t error);
const char *cudaGetErrorName(cudaError_t error);
inline cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  memcpy(to, from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t) {
  memset(to, value, bytes);
  return cudaSuccess;
}
inline constexpr unsigned cudaHostAllocPortable = 1, cudaHostAllocMapped = 2;
inline cudaError_t cudaHostAlloc(void **memory, size_t bytes, unsigned) {
  *memory = malloc(bytes);
  return *memory ? cudaSuccess : cudaErrorMemoryAllocation;
}
inline cudaError_t cudaFreeHost(void *memory) {
  free(memory);
  return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
#endif  // LS_CUDA_HOST

#endif  // LONGSEQ_CUDA_EMUL_RUNTIME_H
