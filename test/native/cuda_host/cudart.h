// Kernels of the runtime's stand-in.
#ifndef LONGSEQ_TEST_CUDA_HOST_CUDART_H
#define LONGSEQ_TEST_CUDA_HOST_CUDART_H

#include <cuda_runtime_api.h>

#include <functional>
#include <vector>

// Bytes that a job works on.
struct FakeAccess {
  const char *begin;
  size_t bytes;
  bool writes;
};

// Runs a kernel on a stream; an error that it returns breaks the context. Two jobs that work on the same bytes, one of
// them writing, must be in one stream, or ordered by events, or the first be over: else the process ends.
void fake_launch(cudaStream_t stream, std::vector<FakeAccess> accesses, std::function<cudaError_t()> kernel);

#endif  // LONGSEQ_TEST_CUDA_HOST_CUDART_H
