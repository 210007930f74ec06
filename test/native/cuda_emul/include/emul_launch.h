// The launch macros of native/cuda/launch.h where kernels are plain C++.
#ifndef LONGSEQ_CUDA_EMUL_LAUNCH_H
#define LONGSEQ_CUDA_EMUL_LAUNCH_H

#include "emul_runtime.h"

namespace emul {

template <typename Kernel, typename... Args>
void launch_kernel(Kernel *kernel, dim3 grid, dim3 block, size_t shared_bytes, const char *name, const Args &...args) {
  auto body = [&] { kernel(args...); };
  using Body = decltype(body);
  const int error = launch(
      grid, block, shared_bytes, [](void *context) { (*static_cast<Body *>(context))(); }, &body, name);
  if (error != 0) set_last_error(static_cast<cudaError_t>(error));
}

}  // namespace emul

#define LS_LAUNCH_RAW(kernel, grid, block, shared_bytes, stream, ...)                                          \
  do {                                                                                                         \
    static_cast<void>(stream);                                                                                 \
    ::emul::launch_kernel((kernel), (grid), (block), static_cast<size_t>(shared_bytes), #kernel, __VA_ARGS__); \
  } while (0)

#define LS_DYNAMIC_SHARED(T, name) T *name = static_cast<T *>(::emul::dynamic_shared())

#define LS_PREPARE_SHARED(kernel, shared_bytes) \
  (static_cast<size_t>(shared_bytes) > ::emul::most_shared() ? cudaErrorInvalidValue : cudaSuccess)

#endif  // LONGSEQ_CUDA_EMUL_LAUNCH_H
