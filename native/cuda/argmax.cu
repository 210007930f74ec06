// The first index of the largest value of each row; a NaN counts as the largest, as in PyTorch. Bytes: x once.
#include "elementwise.h"
#include "entries.h"
#include "reduce.h"

namespace longseq::cuda {

namespace {

constexpr int kThreads = 256;

// Greater for a larger value, and for a lower index among equal ones.
LS_DEVICE unsigned long long order_of(float value, int64_t index) {
  const uint32_t bits = as_bits(value + 0.0f);  // -0 is 0
  const uint32_t rank = value != value ? 0xffffffffu : bits >> 31 ? ~bits : bits | 0x80000000u;
  return static_cast<unsigned long long>(rank) << 32 | static_cast<unsigned long long>(~static_cast<uint32_t>(index));
}

struct Larger {
  LS_DEVICE unsigned long long operator()(unsigned long long a, unsigned long long b) const { return a > b ? a : b; }
};

template <typename T>
__global__ void __launch_bounds__(kThreads) argmax_kernel(const T *x, int64_t stride, bool vector, int32_t *index,
                                                          int64_t index_stride, int64_t rows, int64_t width) {
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    unsigned long long best = 0;
    for (int64_t i = static_cast<int64_t>(threadIdx.x) * kGroup; i < width; i += kThreads * kGroup) {
      const int n = static_cast<int>(width - i < kGroup ? width - i : kGroup);
      float values[kGroup];
      load_typed(values, x + row * stride + i, 1, vector, n);
#pragma unroll
      for (int j = 0; j < kGroup; ++j)
        if (j < n) best = Larger{}(best, order_of(values[j], i + j));
    }
    best = block_reduce<kThreads>(best, Larger{});
    if (threadIdx.x == 0) index[row * index_stride] = static_cast<int32_t>(~static_cast<uint32_t>(best));
  }
}

}  // namespace

ls_status argmax(const ls_exec *exec, const ls_argmax_args *args) {
  const ls_tensor &x = args->x;
  if (x.sizes[0] == 0) return LS_OK;
  return dispatch_float(x.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return LS_LAUNCH(argmax_kernel<T>, blocks_for(x.sizes[0], 1), kThreads, 0, exec, static_cast<const T *>(x.data),
                     x.strides[0], Rows(x, 1).aligned(), static_cast<int32_t *>(args->index.data),
                     args->index.strides[0], x.sizes[0], x.sizes[1]);
  });
}

}  // namespace longseq::cuda
