// The rows of a token's experts, weighted and added up in the order of its choices: the sums of native/cpu/combine.cc.
// Bytes: x once, y once, or twice where it is added to; FLOPs: two an element of x.
#include "elementwise.h"
#include "entries.h"

namespace longseq::cuda {

namespace {

// A thread takes eight columns of a token.
template <typename X, typename Y>
__global__ void __launch_bounds__(256)
    combine_kernel(const X *x, int64_t x_stride, bool x_vector, const int32_t *slots, const float *weights, Y *y,
                   int64_t y_stride, bool y_vector, int64_t tokens, int64_t k, int64_t width, bool accumulate) {
  const int64_t groups = ceil_div(width, kGroup), items = tokens * groups;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x; item < items;
       item += static_cast<int64_t>(gridDim.x) * 256) {
    const int64_t t = item / groups, i = (item - t * groups) * kGroup;
    const int n = static_cast<int>(width - i < kGroup ? width - i : kGroup);
    float sums[kGroup] = {};
    if (accumulate) load_typed(sums, y + t * y_stride + i, 1, y_vector, n);
    for (int64_t j = 0; j < k; ++j) {
      const int64_t slot = slots[t * k + j];
      float values[kGroup];
      load_typed(values, x + slot * x_stride + i, 1, x_vector, n);
      const float weight = weights != nullptr ? weights[slot] : 1.0f;
#pragma unroll
      for (int c = 0; c < kGroup; ++c) sums[c] = __fmaf_rn(weight, values[c], sums[c]);
    }
    store_typed(y + t * y_stride + i, sums, 1, y_vector, n);
  }
}

}  // namespace

ls_status combine(const ls_exec *exec, const ls_combine_args *args) {
  const ls_tensor &x = args->x, &y = args->y;
  const int64_t tokens = args->slots.sizes[0], k = args->slots.sizes[1], width = x.sizes[1];
  if (tokens == 0 || width == 0) return LS_OK;
  const float *const weights = args->weights.present ? static_cast<const float *>(args->weights.data) : nullptr;
  const unsigned blocks = blocks_for(tokens * ceil_div(width, kGroup), 256);
  return dispatch_float(x.dtype, [&](auto x_tag) {
    using X = typename decltype(x_tag)::type;
    return dispatch_float(y.dtype, [&](auto y_tag) {
      using Y = typename decltype(y_tag)::type;
      return LS_LAUNCH((combine_kernel<X, Y>), blocks, 256, 0, exec, static_cast<const X *>(x.data), x.strides[0],
                       Rows(x, 1).aligned(), static_cast<const int32_t *>(args->slots.data), weights,
                       static_cast<Y *>(y.data), y.strides[0], Rows(y, 1).aligned(), tokens, k, width,
                       args->accumulate != 0);
    });
  });
}

}  // namespace longseq::cuda
