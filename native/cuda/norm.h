// RMSNorm and LayerNorm over the last dim, forward and backward: one row a warp where rows are short, one row a block
// where they are long. A row is read from memory once and found in the first cache afterwards.
//
// Bytes of a row of H values: forward x in, y out; backward x and dy in (dx too where it is added to), dx out. Weights
// stay in the caches. FLOPs: some 4 H forward, 10 H backward: memory is the bound.
#ifndef LONGSEQ_CUDA_NORM_H
#define LONGSEQ_CUDA_NORM_H

#include "elementwise.h"
#include "reduce.h"

namespace longseq::cuda {

// Pieces of rows with a sum of their own of the weight gradients; by the shape alone, so results are always the same.
// native/runtime/ops/rms_norm.cc and layer_norm.cc size the workspace by it.
inline constexpr int64_t kNormPieces = 528;
inline constexpr int64_t kNormRowsPerPiece = 8;

// A vector of weights of any stride and dtype.
struct Weights {
  const char *data;
  int64_t stride;
  int32_t dtype;
  bool vector;

  explicit Weights(const ls_tensor &x)
      : data(static_cast<const char *>(x.data)),
        stride(x.present ? x.strides[0] : 0),
        dtype(x.dtype),
        vector(x.present && (x.strides[0] == 1 || x.sizes[0] == 1) && is_aligned(x.data)) {}

  // Values i..i+n-1, 0 beyond.
  LS_DEVICE void load(int64_t i, int n, float (&values)[kGroup]) const {
    if (dtype == LS_BF16) {
      load_typed(values, reinterpret_cast<const bf16 *>(data) + i * stride, stride, vector, n);
    } else {
      load_typed(values, reinterpret_cast<const float *>(data) + i * stride, stride, vector, n);
    }
  }
};

// (x - center) * scale + shift is the normalised value: center is the mean in float32, shift what that left out.
// RMSNorm has neither.
struct Statistics {
  float center, scale, shift;
};

// Sums over the threads that share a row.
template <int kThreads>
LS_DEVICE float row_sum(float value) {
  return block_reduce<kThreads>(value, Add{});
}

// Calls f(column, count) for the groups of eight columns that are this thread's, the same for every row.
template <int kThreads, typename F>
LS_DEVICE void columns(int64_t width, const F &f) {
  for (int64_t i = static_cast<int64_t>(threadIdx.x) * kGroup; i < width; i += kThreads * kGroup)
    f(i, static_cast<int>(width - i < kGroup ? width - i : kGroup));
}

template <int kThreads, bool kLayer, typename X>
LS_DEVICE Statistics statistics(const X *x, bool vector, int64_t width, double eps) {
  float values[kGroup];
  if constexpr (!kLayer) {
    float squares = 0;
    columns<kThreads>(width, [&](int64_t i, int n) {
      load_typed(values, x + i, 1, vector, n);
#pragma unroll
      for (int j = 0; j < kGroup; ++j) squares = fmaf(values[j], values[j], squares);
    });
    const double mean = static_cast<double>(row_sum<kThreads>(squares)) / static_cast<double>(width);
    return {0.0f, static_cast<float>(1.0 / sqrt(mean + eps)), 0.0f};
  } else {
    float sum = 0;
    columns<kThreads>(width, [&](int64_t i, int n) {
      load_typed(values, x + i, 1, vector, n);
#pragma unroll
      for (int j = 0; j < kGroup; ++j) sum += values[j];
    });
    const float center = row_sum<kThreads>(sum) / static_cast<float>(width);
    float squares = 0, rest = 0;
    columns<kThreads>(width, [&](int64_t i, int n) {
      load_typed(values, x + i, 1, vector, n);
#pragma unroll
      for (int j = 0; j < kGroup; ++j) {
        const float d = j < n ? values[j] - center : 0.0f;
        squares = fmaf(d, d, squares);
        rest += d;
      }
    });
    // The center is not quite the mean: its square distance to it is taken off again.
    const double off = static_cast<double>(row_sum<kThreads>(rest)) / static_cast<double>(width);
    const double variance = static_cast<double>(row_sum<kThreads>(squares)) / static_cast<double>(width) - off * off;
    const float scale = static_cast<float>(1.0 / sqrt((variance < 0 ? 0.0 : variance) + eps));
    return {center, scale, static_cast<float>(-off * static_cast<double>(scale))};
  }
}

template <bool kLayer>
LS_DEVICE float normalize(float x, const Statistics &s) {
  return kLayer ? fmaf(x - s.center, s.scale, s.shift) : x * s.scale;
}

// Threads of a row in x, rows of a block in y.
template <int kThreads, bool kLayer, typename X, typename Y>
__global__ void __launch_bounds__(256) norm_kernel(Rows xs, bool x_vector, Rows ys, bool y_vector, Weights weight,
                                                   Weights bias, int64_t rows, int64_t width, double eps) {
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y; row < rows;
       row += static_cast<int64_t>(gridDim.x) * blockDim.y) {
    const X *x = reinterpret_cast<const X *>(xs.at(row));
    Y *y = reinterpret_cast<Y *>(ys.at(row));
    const Statistics s = statistics<kThreads, kLayer>(x, x_vector, width, eps);
    columns<kThreads>(width, [&](int64_t i, int n) {
      float values[kGroup], w[kGroup], b[kGroup];
      load_typed(values, x + i, 1, x_vector, n);
      weight.load(i, n, w);
      if (kLayer && bias.data != nullptr) {
        bias.load(i, n, b);
#pragma unroll
        for (int j = 0; j < kGroup; ++j) values[j] = fmaf(normalize<kLayer>(values[j], s), w[j], b[j]);
      } else {
#pragma unroll
        for (int j = 0; j < kGroup; ++j) values[j] = normalize<kLayer>(values[j], s) * w[j];
      }
      store_typed(y + i, values, 1, y_vector, n);
    });
  }
}

// With n the normalised x, r the scale and g = dy * weight:  dx = r * (g - mean(g) - n * mean(g * n)) (RMSNorm has no
// mean(g)),  dweight = sum dy * n,  dbias = sum dy.
// A block has one piece of the rows and adds up its weight gradients for columns first..last-1 in shared memory, each
// thread its own columns, each row of the block in a line of its own; the lines are added at the end.
template <int kThreads, bool kLayer, typename X, typename Y>
__global__ void __launch_bounds__(256)
    norm_backward_kernel(Rows xs, bool x_vector, Rows dys, bool dy_vector, Rows dxs, bool dx_vector, int32_t dx_dtype,
                         Weights weight, int64_t rows, int64_t width, double eps, bool accumulate, bool write_dx,
                         float *partial, bool weights, bool biases, int64_t first, int64_t last) {
  LS_DYNAMIC_SHARED(float, shared);
  const int64_t window = last - first, lines = (weights ? 1 : 0) + (biases ? 1 : 0);
  float *const mine = shared + threadIdx.y * lines * window;
  float *const weight_sums = mine, *const bias_sums = mine + (weights ? window : 0);
  if (lines > 0)
    columns<kThreads>(width, [&](int64_t i, int n) {
      for (int j = 0; j < n; ++j)
        if (i + j >= first && i + j < last)
          for (int64_t line = 0; line < lines; ++line) mine[line * window + i + j - first] = 0;
    });
  const int64_t pieces = gridDim.x, piece = blockIdx.x;
  const int64_t begin = rows / pieces * piece + min(piece, rows % pieces);
  const int64_t end = begin + rows / pieces + (piece < rows % pieces ? 1 : 0);
  // All threads of the block go round equally often: the sums over a row have barriers.
  for (int64_t base = begin; base < end; base += blockDim.y) {
    const int64_t row = base + threadIdx.y;
    if (kThreads == 32 && row >= end) break;
    const X *x = reinterpret_cast<const X *>(xs.at(row));
    const Y *dy = reinterpret_cast<const Y *>(dys.at(row));
    char *dx = dxs.at(row);
    const Statistics s = statistics<kThreads, kLayer>(x, x_vector, width, eps);
    float sum_g = 0, sum_gn = 0;
    columns<kThreads>(width, [&](int64_t i, int n) {
      float v[kGroup], d[kGroup], w[kGroup];
      load_typed(v, x + i, 1, x_vector, n);
      load_typed(d, dy + i, 1, dy_vector, n);
      weight.load(i, n, w);
#pragma unroll
      for (int j = 0; j < kGroup; ++j) {
        const float g = d[j] * w[j];  // 0 beyond the end
        sum_g += g;
        sum_gn = fmaf(g, j < n ? normalize<kLayer>(v[j], s) : 0.0f, sum_gn);
      }
    });
    const float mean_g = kLayer ? row_sum<kThreads>(sum_g) / static_cast<float>(width) : 0.0f;
    const float mean_gn = row_sum<kThreads>(sum_gn) / static_cast<float>(width);
    columns<kThreads>(width, [&](int64_t i, int n) {
      float v[kGroup], d[kGroup], w[kGroup], old[kGroup];
      load_typed(v, x + i, 1, x_vector, n);
      load_typed(d, dy + i, 1, dy_vector, n);
      weight.load(i, n, w);
      if (write_dx && accumulate) {
        if (dx_dtype == LS_BF16) {
          load_typed(old, reinterpret_cast<const bf16 *>(dx) + i, 1, dx_vector, n);
        } else {
          load_typed(old, reinterpret_cast<const float *>(dx) + i, 1, dx_vector, n);
        }
      }
#pragma unroll
      for (int j = 0; j < kGroup; ++j) {
        const float normal = normalize<kLayer>(v[j], s);
        if (lines > 0 && j < n && i + j >= first && i + j < last) {
          if (weights) weight_sums[i + j - first] = fmaf(d[j], normal, weight_sums[i + j - first]);
          if (biases) bias_sums[i + j - first] += d[j];
        }
        v[j] = s.scale * (fmaf(d[j], w[j], -mean_g) - normal * mean_gn);
        if (accumulate) v[j] += write_dx ? old[j] : 0.0f;
      }
      if (!write_dx) return;
      if (dx_dtype == LS_BF16) {
        store_typed(reinterpret_cast<bf16 *>(dx) + i, v, 1, dx_vector, n);
      } else {
        store_typed(reinterpret_cast<float *>(dx) + i, v, 1, dx_vector, n);
      }
    });
  }
  if (lines == 0) return;
  __syncthreads();
  const int64_t length = lines * window;
  for (int64_t i = threadIdx.y * kThreads + threadIdx.x; i < length; i += kThreads * blockDim.y) {
    float sum = 0;
    for (unsigned y = 0; y < blockDim.y; ++y) sum += shared[y * length + i];
    partial[piece * length + i] = sum;
  }
}

// outputs += the sums over pieces in ascending order, in float64; outputs[1] follows where both are wanted.
template <int kUnused = 0>
__global__ void __launch_bounds__(256) norm_weights_kernel(const float *partial, int64_t pieces, int64_t window,
                                                           float *first_output, float *second_output) {
  const int64_t length = window * (second_output != nullptr ? 2 : 1);
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (i >= length) return;
  double sum = 0;
  for (int64_t piece = 0; piece < pieces; ++piece) sum += static_cast<double>(partial[piece * length + i]);
  float *const slot = i < window ? first_output + i : second_output + (i - window);
  *slot = static_cast<float>(static_cast<double>(*slot) + sum);
}

inline constexpr int64_t kShortRow = 1024;  // the longest row that one warp takes

template <bool kLayer>
ls_status norm_forward(const ls_exec *exec, const ls_tensor &x, const ls_tensor &weight, const ls_tensor &bias,
                       const ls_tensor &y, double eps) {
  const int64_t width = x.sizes[x.ndim - 1], rows = width == 0 ? 0 : row_count(x);
  if (rows == 0) return LS_OK;
  const Rows xs(x, 1), ys(y, 1);
  const bool x_vector = xs.aligned(), y_vector = ys.aligned();
  const Weights w(weight), b(bias);
  return dispatch_float(x.dtype, [&](auto x_tag) {
    using X = typename decltype(x_tag)::type;
    return dispatch_float(y.dtype, [&](auto y_tag) {
      using Y = typename decltype(y_tag)::type;
      if (width <= kShortRow)
        return LS_LAUNCH((norm_kernel<32, kLayer, X, Y>), blocks_for(rows, 8), dim3(32, 8), 0, exec, xs, x_vector, ys,
                         y_vector, w, b, rows, width, eps);
      return LS_LAUNCH((norm_kernel<256, kLayer, X, Y>), blocks_for(rows, 1), dim3(256, 1), 0, exec, xs, x_vector, ys,
                       y_vector, w, b, rows, width, eps);
    });
  });
}

template <bool kLayer>
ls_status norm_backward(const ls_exec *exec, const ls_tensor &x, const ls_tensor &weight, const ls_tensor &dy,
                        const ls_tensor &dx, const ls_tensor &dweight, const ls_tensor &dbias, double eps,
                        bool accumulate) {
  const int64_t width = x.sizes[x.ndim - 1], rows = width == 0 ? 0 : row_count(x);
  if (rows == 0) return LS_OK;
  const Rows xs(x, 1), dys(dy, 1), dxs(dx, 1);
  const bool x_vector = xs.aligned(), dy_vector = dys.aligned(), dx_vector = dxs.aligned();
  const Weights w(weight);
  const bool weights = dweight.present != 0, biases = dbias.present != 0;
  float *const outputs[2] = {weights ? static_cast<float *>(dweight.data) : static_cast<float *>(dbias.data),
                             weights && biases ? static_cast<float *>(dbias.data) : nullptr};
  const int64_t lines = (weights ? 1 : 0) + (biases ? 1 : 0);
  const int64_t wanted = ceil_div(rows, kNormRowsPerPiece), pieces = wanted < kNormPieces ? wanted : kNormPieces;
  float *const partial = static_cast<float *>(exec->workspace);
  const bool is_short = width <= kShortRow;
  const unsigned lines_of_rows = is_short ? 8 : 1;
  // Weight gradients of all columns at once where shared memory holds them; else window by window, and dx, which may
  // be dy, with the last.
  const int64_t most = (96 << 10) / 4 / (lines_of_rows * (lines > 0 ? lines : 1));
  const int64_t step = lines == 0 ? width : most < width ? most : width;
  for (int64_t first = 0; first < width; first += step) {
    const int64_t last = first + step < width ? first + step : width, window = last - first;
    const bool write_dx = last == width;
    const size_t shared = static_cast<size_t>(lines_of_rows * lines * window) * sizeof(float);
    LS_TRY(dispatch_float(x.dtype, [&](auto x_tag) {
      using X = typename decltype(x_tag)::type;
      return dispatch_float(dy.dtype, [&](auto dy_tag) {
        using Y = typename decltype(dy_tag)::type;
        if (is_short)
          return LS_LAUNCH((norm_backward_kernel<32, kLayer, X, Y>), static_cast<unsigned>(pieces), dim3(32, 8), shared,
                           exec, xs, x_vector, dys, dy_vector, dxs, dx_vector, dx.dtype, w, rows, width, eps,
                           accumulate, write_dx, partial, weights, biases, first, last);
        return LS_LAUNCH((norm_backward_kernel<256, kLayer, X, Y>), static_cast<unsigned>(pieces), dim3(256, 1), shared,
                         exec, xs, x_vector, dys, dy_vector, dxs, dx_vector, dx.dtype, w, rows, width, eps, accumulate,
                         write_dx, partial, weights, biases, first, last);
      });
    }));
    if (lines == 0) break;
    LS_TRY(LS_LAUNCH(norm_weights_kernel<>, blocks_for(lines * window, 256), 256, 0, exec, partial, pieces, window,
                     outputs[0] + first, outputs[1] != nullptr ? outputs[1] + first : nullptr));
  }
  return LS_OK;
}

}  // namespace longseq::cuda

#endif  // LONGSEQ_CUDA_NORM_H
