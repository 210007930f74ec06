// What RMSNorm and LayerNorm share: how rows are split, and the fixed order in which weight gradients are summed.
#ifndef LONGSEQ_CPU_NORM_H
#define LONGSEQ_CPU_NORM_H

#include "elementwise.h"
#include "kernels.h"

namespace longseq::cpu::LS_ISA {

// Rows whose weight gradients are added up in float32 before they join a float64 sum.
inline constexpr int64_t kNormRows = 8;
// Pieces of rows that have a float64 sum of their own.
inline constexpr int64_t kNormPieces = 32;

LS_INLINE int64_t row_grain(int64_t width) { return max_of(1, 32768 / max_of(1, width)); }

LS_INLINE float inverse_root(double x) { return static_cast<float>(1.0 / __builtin_sqrt(x)); }

// Values i..i+n-1 of a weight vector of any stride as float32.
LS_INLINE const float *weight_piece(const ls_tensor &weight, int64_t i, int64_t n, float *buffer) {
  const int64_t stride = weight.strides[0];
  if (weight.dtype == LS_F32 && stride == 1) return static_cast<const float *>(weight.data) + i;
  read_run(buffer, offset_by(weight.data, i * stride, weight.dtype), weight.dtype, stride, n);
  return buffer;
}

// sums[i] += part[i]; sums has room for whole vectors of eight, part for whole vectors of sixteen.
LS_INLINE void add_to_f64(double *sums, const float *part, int64_t n) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const f32x16 v = load(part + i);
    store_f64(sums + i, load_f64(sums + i) + low_f64(v));
    store_f64(sums + i + 8, load_f64(sums + i + 8) + high_f64(v));
  }
  for (; i < n; ++i) sums[i] += static_cast<double>(part[i]);
}

// Runs block(begin, end, sums) over all rows, kNormRows at a time; `vectors` (0, 1 or 2) gradients of `width` values
// are summed in float64 over at most kNormPieces pieces of rows, split by the shape alone, and added to `outputs` (a
// NULL output is not wanted). sums holds `vectors` * width values. Workspace: pieces * vectors * width float64, where
// pieces is min(32, ceil(rows / 8)).
template <typename Block>
inline void norm_backward_rows(const ls_exec *exec, int64_t count, int64_t width, int vectors, const Block &block,
                               float *const (&outputs)[2]) {
  if (vectors == 0) {
    const int64_t grain = ceil_div(row_grain(width), kNormRows) * kNormRows;
    parallel_for(exec, count, grain, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; row += kNormRows) block(row, min_of(row + kNormRows, end), nullptr);
    });
    return;
  }
  const int64_t pieces = min_of(kNormPieces, ceil_div(count, kNormRows));
  const int64_t length = vectors * width;
  double *const partial = static_cast<double *>(exec->workspace);
  parallel_for(exec, pieces, 1, [&](int64_t first, int64_t last) {
    for (int64_t piece = first; piece < last; ++piece) {
      double *const sums = partial + piece * length;
      memset(sums, 0, static_cast<size_t>(length) * sizeof(double));
      // count < 2^58, so the product fits.
      const int64_t begin = count * piece / pieces, end = count * (piece + 1) / pieces;
      for (int64_t row = begin; row < end; row += kNormRows) block(row, min_of(row + kNormRows, end), sums);
    }
  });
  parallel_for(exec, length, 4096, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      float *const output = outputs[i / width];
      if (output == nullptr) continue;
      double sum = 0;
      for (int64_t piece = 0; piece < pieces; ++piece) sum += partial[piece * length + i];
      float &slot = output[i % width];
      slot = static_cast<float>(static_cast<double>(slot) + sum);
    }
  });
}

}  // namespace longseq::cpu::LS_ISA

#endif  // LONGSEQ_CPU_NORM_H
