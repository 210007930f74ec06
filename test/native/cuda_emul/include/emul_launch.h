// The launch macros of native/cuda/launch.h where kernels are plain C++.
#ifndef LONGSEQ_CUDA_EMUL_LAUNCH_H
#define LONGSEQ_CUDA_EMUL_LAUNCH_H

#include "emul_runtime.h"

#ifdef LS_CUDA_HOST
#include "cudart.h"
#endif

namespace emul {

#ifdef LS_CUDA_HOST
// Behind what the stream was given before. Its arguments are copied, as CUDA does.
template <typename Kernel, typename... Args>
void launch_kernel(cudaStream_t stream, Kernel *kernel, dim3 grid, dim3 block, size_t shared_bytes, const char *name,
                   const Args &...args) {
  fake_launch(stream, {}, [=] {
    auto body = [&] { kernel(args...); };
    using Body = decltype(body);
    return static_cast<cudaError_t>(launch(
        grid, block, shared_bytes, [](void *context) { (*static_cast<Body *>(context))(); }, &body, name));
  });
}
#else
template <typename Kernel, typename... Args>
void launch_kernel(cudaStream_t, Kernel *kernel, dim3 grid, dim3 block, size_t shared_bytes, const char *name,
                   const Args &...args) {
  auto body = [&] { kernel(args...); };
  using Body = decltype(body);
  const int error = launch(
      grid, block, shared_bytes, [](void *context) { (*static_cast<Body *>(context))(); }, &body, name);
  if (error != 0) set_last_error(static_cast<cudaError_t>(error));
}
#endif

}  // namespace emul

#define LS_LAUNCH_RAW(kernel, grid, block, shared_bytes, stream, ...) \
  ::emul::launch_kernel((stream), (kernel), (grid), (block), static_cast<size_t>(shared_bytes), #kernel, __VA_ARGS__)

#define LS_DYNAMIC_SHARED(T, name) T *name = static_cast<T *>(::emul::dynamic_shared())

#define LS_PREPARE_SHARED(kernel, shared_bytes) \
  (static_cast<size_t>(shared_bytes) > ::emul::most_shared() ? cudaErrorInvalidValue : cudaSuccess)

#endif  // LONGSEQ_CUDA_EMUL_LAUNCH_H
