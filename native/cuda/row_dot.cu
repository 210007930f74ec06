// Inner products of two matrices' rows: a warp a row, float32 sums a lane, added up in float64.
// Bytes: a and b once, 4 a row; FLOPs: two an element.
#include "elementwise.h"
#include "entries.h"
#include "reduce.h"

namespace longseq::cuda {

namespace {

template <typename A, typename B>
__global__ void __launch_bounds__(256)
    row_dot_kernel(const A *a, int64_t a_stride, bool a_vector, const B *b, int64_t b_stride, bool b_vector, float *y,
                   int64_t y_stride, int64_t rows, int64_t width) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * 8 + threadIdx.x / 32; row < rows;
       row += static_cast<int64_t>(gridDim.x) * 8) {
    float sum = 0;
    for (int64_t i = lane * kGroup; i < width; i += 32 * kGroup) {
      const int n = static_cast<int>(width - i < kGroup ? width - i : kGroup);
      float left[kGroup], right[kGroup];
      load_typed(left, a + row * a_stride + i, 1, a_vector, n);
      load_typed(right, b + row * b_stride + i, 1, b_vector, n);
#pragma unroll
      for (int c = 0; c < kGroup; ++c) sum = __fmaf_rn(left[c], right[c], sum);
    }
    const double total = warp_reduce(static_cast<double>(sum), Add{});
    if (lane == 0) y[row * y_stride] = static_cast<float>(total);
  }
}

}  // namespace

ls_status row_dot(const ls_exec *exec, const ls_row_dot_args *args) {
  const ls_tensor &a = args->a, &b = args->b;
  const int64_t rows = a.sizes[0], width = a.sizes[1];
  if (rows == 0) return LS_OK;
  return dispatch_float(a.dtype, [&](auto a_tag) {
    using A = typename decltype(a_tag)::type;
    return dispatch_float(b.dtype, [&](auto b_tag) {
      using B = typename decltype(b_tag)::type;
      return LS_LAUNCH((row_dot_kernel<A, B>), blocks_for(rows, 8), 256, 0, exec, static_cast<const A *>(a.data),
                       a.strides[0], Rows(a, 1).aligned(), static_cast<const B *>(b.data), b.strides[0],
                       Rows(b, 1).aligned(), static_cast<float *>(args->y.data), args->y.strides[0], rows, width);
    });
  });
}

}  // namespace longseq::cuda
