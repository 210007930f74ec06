// Inner products of two matrices' rows: sixteen sums in float32 a piece, the pieces in float64.
#include "elementwise.h"
#include "kernels.h"

namespace longseq::cpu::LS_ISA {

ls_status row_dot(const ls_exec *exec, const ls_row_dot_args *args) {
  const ls_tensor &a = args->a, &b = args->b;
  const int64_t rows = a.sizes[0], width = a.sizes[1], stride = args->y.strides[0];
  float *const y = static_cast<float *>(args->y.data);
  parallel_for(exec, rows, max_of(1, 32768 / max_of(1, width)), [&](int64_t begin, int64_t end) {
    alignas(64) float buffer_a[kTile], buffer_b[kTile];
    for (int64_t row = begin; row < end; ++row) {
      const void *const at = offset_by(a.data, row * a.strides[0], a.dtype);
      const void *const bt = offset_by(b.data, row * b.strides[0], b.dtype);
      double total = 0;
      for (int64_t i = 0; i < width; i += kTile) {
        const int64_t n = min_of(kTile, width - i);
        const float *const left = row_piece(at, a.dtype, i, n, buffer_a);
        const float *const right = row_piece(bt, b.dtype, i, n, buffer_b);
        f32x16 sum = zero();
        lanes(n, [&](int64_t c, auto w) { sum = fma(load(left + c, w), load(right + c, w), sum); });
        total += static_cast<double>(reduce_add(sum));
      }
      y[row * stride] = static_cast<float>(total);
    }
  });
  return LS_OK;
}

}  // namespace longseq::cpu::LS_ISA
