// LayerNorm (Ba et al., arXiv 1607.06450) over the last dim, and its backward, which recomputes the statistics.
#include "elementwise.h"
#include "kernels.h"
#include "norm.h"

namespace longseq::cpu::LS_ISA {

namespace {

// (x - mean) / sqrt(variance + eps) = (x - center) * scale + shift: center is the mean in float32, shift what that left
// out.
struct Statistics {
  f32x16 center, scale, shift;
};

LS_INLINE f32x16 normalize(f32x16 x, const Statistics &s) { return fma(x - s.center, s.scale, s.shift); }

// Two passes: the mean first, then the squared distances to it, which keeps precision where the mean is large.
LS_INLINE Statistics statistics(const void *row, int32_t dtype, int64_t width, double eps, float *buffer) {
  f32x16 sum[2] = {zero(), zero()};
  double total = 0;
  for (int64_t i = 0; i < width; i += kTile) {
    const int64_t n = min_of(kTile, width - i);
    const float *xs = row_piece(row, dtype, i, n, buffer);
    sum[0] = zero();
    lanes(n, [&](int64_t c, auto w) { sum[0] = sum[0] + load(xs + c, w); });
    total += static_cast<double>(reduce_add(sum[0]));
  }
  const double mean = total / static_cast<double>(width);
  const f32x16 center = set1(static_cast<float>(mean));
  double squares = 0, rest = 0;
  for (int64_t i = 0; i < width; i += kTile) {
    const int64_t n = min_of(kTile, width - i);
    const float *xs = row_piece(row, dtype, i, n, buffer);
    sum[0] = zero();
    sum[1] = zero();
    int64_t c = 0;
    for (; c + 16 <= n; c += 16) {
      const f32x16 d = load(xs + c) - center;
      sum[0] = fma(d, d, sum[0]);
      sum[1] = sum[1] + d;
    }
    if (c < n) {
      const f32x16 d = select(first_n(n - c), load(xs + c, n - c) - center, zero());
      sum[0] = fma(d, d, sum[0]);
      sum[1] = sum[1] + d;
    }
    squares += static_cast<double>(reduce_add(sum[0]));
    rest += static_cast<double>(reduce_add(sum[1]));
  }
  // The center was rounded to float32: its square distance to the mean is taken off again.
  const double off = rest / static_cast<double>(width);
  const double variance = squares / static_cast<double>(width) - off * off;
  const float scale = inverse_root((variance < 0 ? 0 : variance) + eps);
  return {center, set1(scale), set1(static_cast<float>(-off * static_cast<double>(scale)))};
}

}  // namespace

ls_status layer_norm(const ls_exec *exec, const ls_layer_norm_args *args) {
  const ls_tensor &x = args->x, &y = args->y;
  const int64_t width = x.sizes[x.ndim - 1], count = width == 0 ? 0 : row_count(x);
  const Rows x_rows(x, 1), y_rows(y, 1);
  const bool biased = args->bias.present != 0;
  parallel_for(exec, count, row_grain(width), [&](int64_t begin, int64_t end) {
    alignas(64) float x_buffer[kTile], w_buffer[kTile], b_buffer[kTile], y_buffer[kTile];
    for (int64_t row = begin; row < end; ++row) {
      const void *x_row = x_rows.at(row);
      void *y_row = y_rows.at(row);
      const Statistics s = statistics(x_row, x.dtype, width, args->eps, x_buffer);
      for (int64_t i = 0; i < width; i += kTile) {
        const int64_t n = min_of(kTile, width - i);
        const float *xs = row_piece(x_row, x.dtype, i, n, x_buffer);
        const float *ws = weight_piece(args->weight, i, n, w_buffer);
        const float *bs = biased ? weight_piece(args->bias, i, n, b_buffer) : nullptr;
        float *ys = out_piece(y_row, y.dtype, i, y_buffer);
        lanes(n, [&](int64_t c, auto w) {
          const f32x16 normal = normalize(load(xs + c, w), s);
          store(ys + c, biased ? fma(normal, load(ws + c, w), load(bs + c, w)) : normal * load(ws + c, w), w);
        });
        finish_piece(y_row, y.dtype, i, n, y_buffer);
      }
    }
  });
  return LS_OK;
}

// With n = (x - mean) * r and g = dy * weight:  dx = r * (g - mean(g) - n * mean(g * n)),  dweight = sum dy * n,
// dbias = sum dy.
ls_status layer_norm_backward(const ls_exec *exec, const ls_layer_norm_backward_args *args) {
  const ls_tensor &x = args->x, &dy = args->dy, &dx = args->dx;
  const int64_t width = x.sizes[x.ndim - 1], count = width == 0 ? 0 : row_count(x);
  if (count == 0) return LS_OK;
  const Rows x_rows(x, 1), dy_rows(dy, 1), dx_rows(dx, 1);
  const bool add = args->accumulate_dx != 0;
  float *const dweight = args->dweight.present ? static_cast<float *>(args->dweight.data) : nullptr;
  float *const dbias = args->dbias.present ? static_cast<float *>(args->dbias.data) : nullptr;

  const auto block = [&](int64_t begin, int64_t end, double *sums) {
    alignas(64) float x_buffer[kTile], w_buffer[kTile], dy_buffer[kTile], dx_buffer[kTile];
    alignas(64) float weight_part[kTile], bias_part[kTile];
    struct {
      Statistics s;
      f32x16 mean_g, mean_gn;
    } row_values[kNormRows];
    for (int64_t row = begin; row < end; ++row) {
      const void *x_row = x_rows.at(row), *dy_row = dy_rows.at(row);
      const Statistics s = statistics(x_row, x.dtype, width, args->eps, x_buffer);
      double total_g = 0, total_gn = 0;
      for (int64_t i = 0; i < width; i += kTile) {
        const int64_t n = min_of(kTile, width - i);
        const float *xs = row_piece(x_row, x.dtype, i, n, x_buffer);
        const float *dys = row_piece(dy_row, dy.dtype, i, n, dy_buffer);
        const float *ws = weight_piece(args->weight, i, n, w_buffer);
        f32x16 sum_g = zero(), sum_gn = zero();
        // Past the end dy is loaded as 0, so those lanes add nothing.
        lanes(n, [&](int64_t c, auto w) {
          const f32x16 g = load(dys + c, w) * load(ws + c, w);
          sum_g = sum_g + g;
          sum_gn = fma(g, normalize(load(xs + c, w), s), sum_gn);
        });
        total_g += static_cast<double>(reduce_add(sum_g));
        total_gn += static_cast<double>(reduce_add(sum_gn));
      }
      row_values[row - begin] = {s, set1(static_cast<float>(total_g / static_cast<double>(width))),
                                 set1(static_cast<float>(total_gn / static_cast<double>(width)))};
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
        const auto &values = row_values[row - begin];
        const bool first = row == begin;
        lanes(n, [&](int64_t c, auto w) {
          const f32x16 d = load(dys + c, w);
          const f32x16 normal = normalize(load(xs + c, w), values.s);
          f32x16 result = values.s.scale * fnma(normal, values.mean_gn, d * load(ws + c, w) - values.mean_g);
          if (add) result = result + load(dxs + c, w);
          store(dxs + c, result, w);
          if (sums != nullptr) {
            store(weight_part + c, first ? d * normal : fma(d, normal, load(weight_part + c, w)), w);
            store(bias_part + c, first ? d : d + load(bias_part + c, w), w);
          }
        });
        finish_piece(dx_row, dx.dtype, i, n, dx_buffer);
      }
      if (sums == nullptr) continue;
      double *to = sums;
      if (dweight != nullptr) {
        add_to_f64(to + i, weight_part, n);
        to += width;
      }
      if (dbias != nullptr) add_to_f64(to + i, bias_part, n);
    }
  };

  const int vectors = (dweight != nullptr ? 1 : 0) + (dbias != nullptr ? 1 : 0);
  norm_backward_rows(exec, count, width, vectors, block,
                     {dweight != nullptr ? dweight : dbias, dweight != nullptr ? dbias : nullptr});
  return LS_OK;
}

}  // namespace longseq::cpu::LS_ISA
