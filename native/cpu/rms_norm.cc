// RMSNorm (Zhang and Sennrich, arXiv 1910.07467) over the last dim, and its backward, which recomputes the statistics.
#include "elementwise.h"
#include "kernels.h"
#include "norm.h"

namespace longseq::cpu::LS_ISA {

namespace {

// Adds the squares of n values to the four running vectors.
LS_INLINE void add_squares(const float *x, int64_t n, f32x16 (&sum)[4]) {
  int64_t i = 0;
  for (; i + 64 <= n; i += 64)
    for (int j = 0; j < 4; ++j) {
      const f32x16 v = load(x + i + 16 * j);
      sum[j] = fma(v, v, sum[j]);
    }
  for (int j = 0; i < n; i += 16, ++j) {
    const f32x16 v = load(x + i, min_of(16, n - i));
    sum[j] = fma(v, v, sum[j]);
  }
}

LS_INLINE double total(const f32x16 (&sum)[4]) {
  return static_cast<double>(reduce_add((sum[0] + sum[1]) + (sum[2] + sum[3])));
}

}  // namespace

ls_status rms_norm(const ls_exec *exec, const ls_rms_norm_args *args) {
  const ls_tensor &x = args->x, &y = args->y;
  const int64_t width = x.sizes[x.ndim - 1], count = width == 0 ? 0 : row_count(x);
  const Rows x_rows(x, 1), y_rows(y, 1);
  const double eps = args->eps;
  parallel_for(exec, count, row_grain(width), [&](int64_t begin, int64_t end) {
    alignas(64) float x_buffer[kTile], w_buffer[kTile], y_buffer[kTile];
    for (int64_t row = begin; row < end; ++row) {
      const void *x_row = x_rows.at(row);
      void *y_row = y_rows.at(row);
      f32x16 sum[4] = {zero(), zero(), zero(), zero()};
      for (int64_t i = 0; i < width; i += kTile) {
        const int64_t n = min_of(kTile, width - i);
        add_squares(row_piece(x_row, x.dtype, i, n, x_buffer), n, sum);
      }
      const f32x16 scale = set1(inverse_root(total(sum) / static_cast<double>(width) + eps));
      for (int64_t i = 0; i < width; i += kTile) {
        const int64_t n = min_of(kTile, width - i);
        const float *xs = row_piece(x_row, x.dtype, i, n, x_buffer);
        const float *ws = weight_piece(args->weight, i, n, w_buffer);
        float *ys = out_piece(y_row, y.dtype, i, y_buffer);
        lanes(n, [&](int64_t c, auto w) { store(ys + c, load(xs + c, w) * scale * load(ws + c, w), w); });
        finish_piece(y_row, y.dtype, i, n, y_buffer);
      }
    }
  });
  return LS_OK;
}

// With r = 1 / sqrt(mean(x^2) + eps), g = dy * weight:  dx = r * g - r^3 * mean(g * x) * x,  dweight = sum dy * x * r.
ls_status rms_norm_backward(const ls_exec *exec, const ls_rms_norm_backward_args *args) {
  const ls_tensor &x = args->x, &dy = args->dy, &dx = args->dx;
  const int64_t width = x.sizes[x.ndim - 1], count = width == 0 ? 0 : row_count(x);
  if (count == 0) return LS_OK;
  const Rows x_rows(x, 1), dy_rows(dy, 1), dx_rows(dx, 1);
  const bool add = args->accumulate_dx != 0, weights = args->dweight.present != 0;
  const double eps = args->eps;

  // Handles rows begin..end-1 (at most kNormRows); adds their part of dweight to the float64 sums, if any.
  const auto block = [&](int64_t begin, int64_t end, double *dweight) {
    alignas(64) float x_buffer[kTile], w_buffer[kTile], dy_buffer[kTile], dx_buffer[kTile], part[kTile];
    f32x16 scale[kNormRows], pull[kNormRows];
    for (int64_t row = begin; row < end; ++row) {
      const void *x_row = x_rows.at(row), *dy_row = dy_rows.at(row);
      f32x16 squares[4] = {zero(), zero(), zero(), zero()};
      f32x16 products[2] = {zero(), zero()};
      for (int64_t i = 0; i < width; i += kTile) {
        const int64_t n = min_of(kTile, width - i);
        const float *xs = row_piece(x_row, x.dtype, i, n, x_buffer);
        const float *dys = row_piece(dy_row, dy.dtype, i, n, dy_buffer);
        const float *ws = weight_piece(args->weight, i, n, w_buffer);
        lanes(n, [&](int64_t c, auto w) {
          const f32x16 v = load(xs + c, w);
          const int odd = static_cast<int>(c >> 4) & 1;
          if (odd) {
            squares[1] = fma(v, v, squares[1]);
            products[1] = fma(load(dys + c, w) * load(ws + c, w), v, products[1]);
          } else {
            squares[0] = fma(v, v, squares[0]);
            products[0] = fma(load(dys + c, w) * load(ws + c, w), v, products[0]);
          }
        });
      }
      const double mean_square = total(squares) / static_cast<double>(width);
      const float r = inverse_root(mean_square + eps);
      const double mean_product =
          static_cast<double>(reduce_add(products[0] + products[1])) / static_cast<double>(width);
      scale[row - begin] = set1(r);
      pull[row - begin] = set1(static_cast<float>(mean_product * r * r * r));
    }
    for (int64_t i = 0; i < width; i += kTile) {
      const int64_t n = min_of(kTile, width - i);
      const float *ws = weight_piece(args->weight, i, n, w_buffer);
      for (int64_t row = begin; row < end; ++row) {
        const float *xs = row_piece(x_rows.at(row), x.dtype, i, n, x_buffer);
        const float *dys = row_piece(dy_rows.at(row), dy.dtype, i, n, dy_buffer);
        void *dx_row = dx_rows.at(row);
        float *dxs = out_piece(dx_row, dx.dtype, i, dx_buffer);
        if (add && dxs == dx_buffer) row_piece(dx_row, dx.dtype, i, n, dx_buffer);
        const f32x16 r = scale[row - begin], p = pull[row - begin];
        const bool first = row == begin;
        lanes(n, [&](int64_t c, auto w) {
          const f32x16 v = load(xs + c, w), d = load(dys + c, w) * r;
          f32x16 result = fnma(p, v, d * load(ws + c, w));
          if (add) result = result + load(dxs + c, w);
          store(dxs + c, result, w);
          if (dweight != nullptr) store(part + c, first ? d * v : fma(d, v, load(part + c, w)), w);
        });
        finish_piece(dx_row, dx.dtype, i, n, dx_buffer);
      }
      if (dweight != nullptr) add_to_f64(dweight + i, part, n);
    }
  };

  norm_backward_rows(exec, count, width, weights ? 1 : 0, block, {static_cast<float *>(args->dweight.data), nullptr});
  return LS_OK;
}

}  // namespace longseq::cpu::LS_ISA
