// Kernels of the runtime's stand-in.
#ifndef LONGSEQ_TEST_CUDA_HOST_CUDART_H
#define LONGSEQ_TEST_CUDA_HOST_CUDART_H

#include <cuda_runtime_api.h>

#include <functional>

// Runs a kernel on a stream; an error that it returns breaks the context.
void fake_launch(cudaStream_t stream, std::function<cudaError_t()> kernel);

#endif  // LONGSEQ_TEST_CUDA_HOST_CUDART_H
