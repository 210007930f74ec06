// RMSNorm and LayerNorm over the last dim, forward and backward.
//
// Rows of whole vectors and one dtype, up to 8192 values, are held in registers: a warp takes a row of up to 1024, a
// block of 128 or 256 threads a longer one, 32 values a thread. Everything a row needs is asked for at once, each value
// is read from memory once, and sums over the row are made together. Other rows are swept again for every step and
// found in the caches.
//
// Bytes of a row of H values: forward x in, y out; backward x and dy in (dx too where it is added to), dx out. Weights
// stay in the caches; their gradients add 8 H bytes for each of at most 528 pieces of the rows. FLOPs: some 4 H
// forward, 12 H backward: memory is the bound.
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

  // Calls f with the values as what they are.
  template <typename F>
  LS_DEVICE void with_type(const F &f) const {
    if (dtype == LS_BF16) {
      f(reinterpret_cast<const bf16 *>(data));
    } else {
      f(reinterpret_cast<const float *>(data));
    }
  }

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

// 1 / width, by which sums become means: a division in float64 is a function call with registers to save.
struct Share {
  double exact;
  float rounded;
  explicit Share(int64_t width) : exact(1.0 / static_cast<double>(width)), rounded(static_cast<float>(exact)) {}
};

// The statistics of a row from its sum of squares, or of squared distances and distances to the center.
template <bool kLayer>
LS_DEVICE Statistics statistics_of(float center, float squares, float rest, const Share &share, double eps) {
  const double mean_square = static_cast<double>(squares) * share.exact;
  if constexpr (!kLayer) {
    return {0.0f, static_cast<float>(rsqrt(mean_square + eps)), 0.0f};
  } else {
    // The center is not quite the mean: its square distance to it is taken off again.
    const double off = static_cast<double>(rest) * share.exact, variance = mean_square - off * off;
    const float scale = static_cast<float>(rsqrt((variance < 0 ? 0.0 : variance) + eps));
    return {center, scale, static_cast<float>(-off * static_cast<double>(scale))};
  }
}

template <bool kLayer>
LS_DEVICE float normalize(float x, const Statistics &s) {
  return kLayer ? fmaf(x - s.center, s.scale, s.shift) : x * s.scale;
}

// ---- rows that are held in registers ----

// kThreads threads have a row, kValues values each, in runs of kRun neighbours; threads take turns at runs.
template <int kThreads_, int kValues_>
struct Hold {
  static constexpr int kThreads = kThreads_, kValues = kValues_;
  static constexpr int kRows = kThreads == 32 ? 8 : 1, kBlock = kThreads * kRows;
  // 16 bytes of the wider of two types; heads of 128 values are spread over all lanes.
  template <typename X, typename Y>
  static constexpr int kRun = sizeof(X) == 2 && sizeof(Y) == 2 && kValues > 8 ? 8 : 4;
};

// A thread's part of a row as it lies in memory; zeros beyond the row's end.
template <typename H, int kRun, typename T>
struct HeldRow {
  static constexpr int kRuns = H::kValues / kRun;
  static constexpr int kWords = kRun * static_cast<int>(sizeof(T)) / 4;
  Pack<uint32_t, kWords> runs[kRuns];

  // The first column of run r.
  static LS_DEVICE int column(int r) { return (r * H::kThreads + static_cast<int>(threadIdx.x)) * kRun; }
  LS_DEVICE void load(const T *row, int width) {
#pragma unroll
    for (int r = 0; r < kRuns; ++r) {
      runs[r] = Pack<uint32_t, kWords>{};
      if (column(r) < width) runs[r] = load_pack<kWords>(reinterpret_cast<const uint32_t *>(row + column(r)));
    }
  }
  static LS_DEVICE void announce(const T *row, int width) {
#pragma unroll
    for (int r = 0; r < kRuns; ++r)
      if (column(r) < width) prefetch(row + column(r));
  }
  LS_DEVICE float at(int r, int i) const { return value_of<T>(runs[r].at, i); }
};

// Rows of a block in y.
template <typename H, bool kLayer, typename X, typename Y>
__global__ void __launch_bounds__(H::kBlock, (kLayer || sizeof(X) + sizeof(Y) > 4 ? 768 : 1280) / H::kBlock)
    held_norm_kernel(Rows xs, Rows ys, Weights weight, Weights bias, int64_t rows, int width, Share share, double eps) {
  constexpr int kRun = H::template kRun<X, Y>;
  using Held = HeldRow<H, kRun, X>;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * H::kRows + threadIdx.y; row < rows;
       row += static_cast<int64_t>(gridDim.x) * H::kRows) {
    Held x;
    x.load(reinterpret_cast<const X *>(xs.at(row)), width);
    Y *const y = reinterpret_cast<Y *>(ys.at(row));
    float sums[kLayer ? 2 : 1] = {};
    float center = 0;
    if constexpr (kLayer) {
      float total[1] = {};
#pragma unroll
      for (int r = 0; r < Held::kRuns; ++r)
#pragma unroll
        for (int i = 0; i < kRun; ++i) total[0] += x.at(r, i);
      block_sums<H::kThreads>(total);
      center = total[0] * share.rounded;
    }
#pragma unroll
    for (int r = 0; r < Held::kRuns; ++r)
#pragma unroll
      for (int i = 0; i < kRun; ++i) {
        const float d = kLayer && Held::column(r) >= width ? 0.0f : x.at(r, i) - center;
        sums[0] = fmaf(d, d, sums[0]);
        if constexpr (kLayer) sums[1] += d;
      }
    block_sums<H::kThreads>(sums);
    const Statistics s = statistics_of<kLayer>(center, sums[0], sums[kLayer ? 1 : 0], share, eps);
    weight.with_type([&](const auto *w) {
#pragma unroll
      for (int r = 0; r < Held::kRuns; ++r) {
        const int column = Held::column(r);
        if (column >= width) continue;
        float values[kRun], weights[kRun], biases[kRun] = {};
        load_run(weights, w + column);
        if (kLayer && bias.data != nullptr) bias.with_type([&](const auto *b) { load_run(biases, b + column); });
#pragma unroll
        for (int i = 0; i < kRun; ++i) {
          const float normal = normalize<kLayer>(x.at(r, i), s);
          values[i] = kLayer ? fmaf(normal, weights[i], biases[i]) : normal * weights[i];
        }
        store_run(y + column, values);
      }
    });
  }
}

// With n the normalised x, r the scale and g = dy * weight:  dx = r * (g - mean(g) - n * mean(g * n)) (RMSNorm has no
// mean(g)),  dweight = sum dy * n,  dbias = sum dy.
//
// A block has one piece of the rows. Weight gradients are added up in shared memory, each thread its own columns, in
// lines of a row of the block: four columns of all threads, then the next four.
template <typename H, bool kLayer, typename X, typename Y>
__global__ void __launch_bounds__(H::kBlock, H::kThreads == 128 ? 4 : 2)
    held_norm_backward_kernel(Rows xs, Rows dys, Rows dxs, Weights weight, int64_t rows, int width, Share share,
                              double eps, bool accumulate, float *partial, bool weights, bool biases) {
  constexpr int kRun = H::template kRun<X, Y>, kFours = kRun / 4;
  using Held = HeldRow<H, kRun, X>;
  using HeldY = HeldRow<H, kRun, Y>;
  LS_DYNAMIC_SHARED(float, shared);
  const int lines = (weights ? 1 : 0) + (biases ? 1 : 0);
  // Only as much as columns go: the fours of runs beyond the width have no place.
  const int length = static_cast<int>(ceil_div(width, H::kThreads * kRun)) * H::kThreads * kRun;
  float *const mine = shared + static_cast<int>(threadIdx.y) * lines * length;
  float *const weight_sums = mine, *const bias_sums = mine + (weights ? length : 0);
  const auto place = [](int r, int four) {
    return ((r * kFours + four) * H::kThreads + static_cast<int>(threadIdx.x)) * 4;
  };
#pragma unroll
  for (int r = 0; r < Held::kRuns; ++r) {
    if (Held::column(r) >= width) continue;
    for (int line = 0; line < lines; ++line)
      for (int four = 0; four < kFours; ++four) store_pack<4>(mine + line * length + place(r, four), Pack<float, 4>{});
  }
  const int64_t pieces = gridDim.x, piece = blockIdx.x;
  const int64_t begin = rows / pieces * piece + min(piece, rows % pieces);
  const int64_t end = begin + rows / pieces + (piece < rows % pieces ? 1 : 0);
  weight.with_type([&](const auto *w) {
    // All threads of a row go round equally often: the sums over it have barriers.
    for (int64_t row = begin + threadIdx.y; row < end; row += H::kRows) {
      Held x;
      HeldY dy;
      X *const dx = reinterpret_cast<X *>(dxs.at(row));
      x.load(reinterpret_cast<const X *>(xs.at(row)), width);
      dy.load(reinterpret_cast<const Y *>(dys.at(row)), width);
      if (accumulate) Held::announce(dx, width);
      if (row + H::kRows < end) {
        Held::announce(reinterpret_cast<const X *>(xs.at(row + H::kRows)), width);
        HeldY::announce(reinterpret_cast<const Y *>(dys.at(row + H::kRows)), width);
      }
      // g = dy * weight, rounded: what its mean is taken off from later has to be the same.
      const auto gradients = [&](int r, float(&g)[kRun]) {
        load_run(g, w + Held::column(r));
#pragma unroll
        for (int i = 0; i < kRun; ++i) g[i] = __fmul_rn(dy.at(r, i), g[i]);
      };
      float center = 0, mean_g = 0, sum_g = 0;
      if constexpr (kLayer) {
        float sums[2] = {};
#pragma unroll
        for (int r = 0; r < Held::kRuns; ++r) {
          if (Held::column(r) >= width) continue;
          float g[kRun];
          gradients(r, g);
#pragma unroll
          for (int i = 0; i < kRun; ++i) {
            sums[0] += x.at(r, i);
            sums[1] += g[i];
          }
        }
        block_sums<H::kThreads>(sums);
        center = sums[0] * share.rounded;
        sum_g = sums[1];
        mean_g = sum_g * share.rounded;
      }
      float sums[kLayer ? 3 : 2] = {};  // of squares, of g times the distance, of distances
#pragma unroll
      for (int r = 0; r < Held::kRuns; ++r) {
        if (Held::column(r) >= width) continue;
        float g[kRun];
        gradients(r, g);
#pragma unroll
        for (int i = 0; i < kRun; ++i) {
          const float d = x.at(r, i) - center;
          sums[0] = fmaf(d, d, sums[0]);
          sums[1] = fmaf(g[i], d, sums[1]);
          if constexpr (kLayer) sums[2] += d;
        }
      }
      block_sums<H::kThreads>(sums);
      const Statistics s = statistics_of<kLayer>(center, sums[0], sums[kLayer ? 2 : 0], share, eps);
      const float mean_gn = (kLayer ? fmaf(s.scale, sums[1], s.shift * sum_g) : s.scale * sums[1]) * share.rounded;
#pragma unroll
      for (int r = 0; r < Held::kRuns; ++r) {
        if (Held::column(r) >= width) continue;
        float values[kRun], normals[kRun];
        gradients(r, values);
#pragma unroll
        for (int i = 0; i < kRun; ++i) {
          normals[i] = normalize<kLayer>(x.at(r, i), s);
          values[i] = s.scale * fmaf(-normals[i], mean_gn, kLayer ? values[i] - mean_g : values[i]);
        }
        if (accumulate) {
          float old[kRun];
          load_run(old, dx + Held::column(r));
#pragma unroll
          for (int i = 0; i < kRun; ++i) values[i] += old[i];
        }
        store_run(dx + Held::column(r), values);
#pragma unroll
        for (int four = 0; four < kFours; ++four) {
          if (weights) {
            Pack<float, 4> sum = load_pack<4>(weight_sums + place(r, four));
#pragma unroll
            for (int i = 0; i < 4; ++i) sum.at[i] = fmaf(dy.at(r, 4 * four + i), normals[4 * four + i], sum.at[i]);
            store_pack<4>(weight_sums + place(r, four), sum);
          }
          if (biases) {
            Pack<float, 4> sum = load_pack<4>(bias_sums + place(r, four));
#pragma unroll
            for (int i = 0; i < 4; ++i) sum.at[i] += dy.at(r, 4 * four + i);
            store_pack<4>(bias_sums + place(r, four), sum);
          }
        }
      }
    }
  });
  if (lines == 0) return;
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.y) * H::kThreads + static_cast<int>(threadIdx.x); i < lines * length / 4;
       i += H::kBlock) {
    const int line = i / (length / 4), at = i - line * (length / 4);
    const int lane = at % H::kThreads, four = at / H::kThreads % kFours, r = at / (H::kThreads * kFours);
    const int column = (r * H::kThreads + lane) * kRun + four * 4;
    if (column >= width) continue;
    Pack<float, 4> sum{};
    for (int y = 0; y < H::kRows; ++y) {
      const Pack<float, 4> part = load_pack<4>(shared + y * lines * length + 4 * i);
#pragma unroll
      for (int j = 0; j < 4; ++j) sum.at[j] += part.at[j];
    }
    store_pack<4>(partial + (piece * lines + line) * width + column, sum);
  }
}

// Calls f(Hold<...>{}) with what holds a row of that width, if anything does.
template <typename F>
ls_status with_hold(int64_t width, const F &f) {
  if (width <= 256) return f(Hold<32, 8>{});
  if (width <= 1024) return f(Hold<32, 32>{});
  if (width <= 4096) return f(Hold<128, 32>{});
  return f(Hold<256, 32>{});
}
inline bool is_held(int64_t width) { return width % 8 == 0 && width <= 8192; }

// ---- all other rows ----

inline constexpr int kSweepThreads = 256;

LS_DEVICE float row_sum(float value) { return block_reduce<kSweepThreads>(value, Add{}); }

// Calls f(column, count) for the groups of eight columns that are this thread's, the same for every row.
template <typename F>
LS_DEVICE void columns(int64_t width, const F &f) {
  for (int64_t i = static_cast<int64_t>(threadIdx.x) * kGroup; i < width; i += kSweepThreads * kGroup)
    f(i, static_cast<int>(width - i < kGroup ? width - i : kGroup));
}

template <bool kLayer, typename X>
LS_DEVICE Statistics statistics(const X *x, bool vector, int64_t width, const Share &share, double eps) {
  float values[kGroup];
  float center = 0, squares = 0, rest = 0;
  if constexpr (kLayer) {
    float sum = 0;
    columns(width, [&](int64_t i, int n) {
      load_typed(values, x + i, 1, vector, n);
#pragma unroll
      for (int j = 0; j < kGroup; ++j) sum += values[j];
    });
    center = row_sum(sum) * share.rounded;
  }
  columns(width, [&](int64_t i, int n) {
    load_typed(values, x + i, 1, vector, n);
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
      const float d = j < n ? values[j] - center : 0.0f;
      squares = fmaf(d, d, squares);
      rest += d;
    }
  });
  float sums[2] = {squares, rest};
  block_sums<kSweepThreads>(sums);
  return statistics_of<kLayer>(center, sums[0], sums[1], share, eps);
}

// A row a block.
template <bool kLayer, typename X, typename Y>
__global__ void __launch_bounds__(kSweepThreads)
    norm_kernel(Rows xs, bool x_vector, Rows ys, bool y_vector, Weights weight, Weights bias, int64_t rows,
                int64_t width, Share share, double eps) {
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const X *x = reinterpret_cast<const X *>(xs.at(row));
    Y *y = reinterpret_cast<Y *>(ys.at(row));
    const Statistics s = statistics<kLayer>(x, x_vector, width, share, eps);
    columns(width, [&](int64_t i, int n) {
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

// A block has one piece of the rows and adds up its weight gradients for columns first..last-1 in shared memory, each
// thread its own columns.
template <bool kLayer, typename X, typename Y>
__global__ void __launch_bounds__(kSweepThreads)
    norm_backward_kernel(Rows xs, bool x_vector, Rows dys, bool dy_vector, Rows dxs, bool dx_vector, int32_t dx_dtype,
                         Weights weight, int64_t rows, int64_t width, Share share, double eps, bool accumulate,
                         bool write_dx, float *partial, bool weights, bool biases, int64_t first, int64_t last) {
  LS_DYNAMIC_SHARED(float, shared);
  const int64_t window = last - first, lines = (weights ? 1 : 0) + (biases ? 1 : 0);
  float *const weight_sums = shared, *const bias_sums = shared + (weights ? window : 0);
  const int64_t pieces = gridDim.x, piece = blockIdx.x;
  const int64_t begin = rows / pieces * piece + min(piece, rows % pieces);
  const int64_t end = begin + rows / pieces + (piece < rows % pieces ? 1 : 0);
  for (int64_t row = begin; row < end; ++row) {
    const X *x = reinterpret_cast<const X *>(xs.at(row));
    const Y *dy = reinterpret_cast<const Y *>(dys.at(row));
    char *const dx = dxs.at(row);
    const Statistics s = statistics<kLayer>(x, x_vector, width, share, eps);
    // g = dy * weight, rounded: what its mean is taken off from later has to be the same.
    float sums[2] = {};  // of g, of g times the normalised x
    columns(width, [&](int64_t i, int n) {
      float v[kGroup], d[kGroup], w[kGroup];
      load_typed(v, x + i, 1, x_vector, n);
      load_typed(d, dy + i, 1, dy_vector, n);
      weight.load(i, n, w);
#pragma unroll
      for (int j = 0; j < kGroup; ++j) {
        const float g = __fmul_rn(d[j], w[j]);  // 0 beyond the end
        sums[0] += g;
        sums[1] = fmaf(g, j < n ? normalize<kLayer>(v[j], s) : 0.0f, sums[1]);
      }
    });
    block_sums<kSweepThreads>(sums);
    const float mean_g = kLayer ? sums[0] * share.rounded : 0.0f, mean_gn = sums[1] * share.rounded;
    columns(width, [&](int64_t i, int n) {
      float v[kGroup], d[kGroup], w[kGroup];
      load_typed(v, x + i, 1, x_vector, n);
      load_typed(d, dy + i, 1, dy_vector, n);
      weight.load(i, n, w);
#pragma unroll
      for (int j = 0; j < kGroup; ++j) {
        const float normal = normalize<kLayer>(v[j], s);
        if (lines > 0 && j < n && i + j >= first && i + j < last) {
          // The sums begin with the first row.
          float *const to = weight_sums + (i + j - first), *const bias_to = bias_sums + (i + j - first);
          if (weights) *to = fmaf(d[j], normal, row == begin ? 0.0f : *to);
          if (biases) *bias_to = d[j] + (row == begin ? 0.0f : *bias_to);
        }
        v[j] = s.scale * fmaf(-normal, mean_gn, __fmul_rn(d[j], w[j]) - mean_g);
      }
      if (!write_dx) return;
      const auto finish = [&](auto *to) {
        if (accumulate) {
          load_typed(d, to + i, 1, dx_vector, n);
#pragma unroll
          for (int j = 0; j < kGroup; ++j) v[j] += d[j];
        }
        store_typed(to + i, v, 1, dx_vector, n);
      };
      if (dx_dtype == LS_BF16) {
        finish(reinterpret_cast<bf16 *>(dx));
      } else {
        finish(reinterpret_cast<float *>(dx));
      }
    });
  }
  if (lines == 0) return;
  __syncthreads();
  const int64_t length = lines * window;
  for (int64_t i = threadIdx.x; i < length; i += kSweepThreads) partial[piece * length + i] = shared[i];
}

// ---- weight gradients of all pieces ----

inline constexpr int kWeightColumns = 32, kWeightPieces = 32;

// outputs += the sums over pieces, in float64; the second output's columns follow those of the first. A thread has
// every 32nd piece of a column, four of them on their way at a time; the 32 sums are added in order.
template <int kUnused = 0>
__global__ void __launch_bounds__(kWeightColumns *kWeightPieces)
    norm_weights_kernel(const float *partial, int64_t pieces, int64_t window, float *first_output,
                        float *second_output) {
  __shared__ double parts[kWeightPieces][kWeightColumns];
  const int64_t length = window * (second_output != nullptr ? 2 : 1);
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kWeightColumns + threadIdx.x;
  double sum = 0;
  if (i < length) {
#pragma unroll 4
    for (int64_t piece = threadIdx.y; piece < pieces; piece += kWeightPieces)
      sum += static_cast<double>(partial[piece * length + i]);
  }
  parts[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || i >= length) return;
  for (int y = 1; y < kWeightPieces; ++y) sum += parts[y][threadIdx.x];
  float *const slot = i < window ? first_output + i : second_output + (i - window);
  *slot = static_cast<float>(static_cast<double>(*slot) + sum);
}

inline ls_status add_weights(const ls_exec *exec, const float *partial, int64_t pieces, int64_t window,
                             float *first_output, float *second_output) {
  const int64_t length = window * (second_output != nullptr ? 2 : 1);
  return LS_LAUNCH(norm_weights_kernel<>, blocks_for(length, kWeightColumns), dim3(kWeightColumns, kWeightPieces), 0,
                   exec, partial, pieces, window, first_output, second_output);
}

template <bool kLayer>
ls_status norm_forward(const ls_exec *exec, const ls_tensor &x, const ls_tensor &weight, const ls_tensor &bias,
                       const ls_tensor &y, double eps) {
  const int64_t width = x.sizes[x.ndim - 1], rows = width == 0 ? 0 : row_count(x);
  if (rows == 0) return LS_OK;
  const Rows xs(x, 1), ys(y, 1);
  const bool x_vector = xs.aligned(), y_vector = ys.aligned();
  const Weights w(weight), b(bias);
  const bool held = is_held(width) && x_vector && y_vector && w.vector && (b.vector || !bias.present);
  return dispatch_float(x.dtype, [&](auto x_tag) {
    using X = typename decltype(x_tag)::type;
    return dispatch_float(y.dtype, [&](auto y_tag) {
      using Y = typename decltype(y_tag)::type;
      if constexpr (sizeof(X) == sizeof(Y))
        if (held)
          return with_hold(width, [&](auto hold) {
            using H = decltype(hold);
            return LS_LAUNCH((held_norm_kernel<H, kLayer, X, Y>), blocks_for(rows, H::kRows),
                             dim3(H::kThreads, H::kRows), 0, exec, xs, ys, w, b, rows, static_cast<int>(width),
                             Share(width), eps);
          });
      return LS_LAUNCH((norm_kernel<kLayer, X, Y>), blocks_for(rows, 1), kSweepThreads, 0, exec, xs, x_vector, ys,
                       y_vector, w, b, rows, width, Share(width), eps);
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
  const unsigned blocks = static_cast<unsigned>(pieces);
  float *const partial = static_cast<float *>(exec->workspace);
  if (is_held(width) && x_vector && dy_vector && dx_vector && w.vector && dx.dtype == x.dtype && dy.dtype == x.dtype) {
    LS_TRY(dispatch_float(x.dtype, [&](auto x_tag) {
      using X = typename decltype(x_tag)::type;
      return with_hold(width, [&](auto hold) {
        using H = decltype(hold);
        constexpr int64_t turn = H::kThreads * H::template kRun<X, X>;
        const size_t shared = static_cast<size_t>(H::kRows * lines * ceil_div(width, turn) * turn) * sizeof(float);
        return LS_LAUNCH((held_norm_backward_kernel<H, kLayer, X, X>), blocks, dim3(H::kThreads, H::kRows), shared,
                         exec, xs, dys, dxs, w, rows, static_cast<int>(width), Share(width), eps, accumulate, partial,
                         weights, biases);
      });
    }));
    return lines == 0 ? LS_OK : add_weights(exec, partial, pieces, width, outputs[0], outputs[1]);
  }
  // Weight gradients of all columns at once where shared memory holds them; else window by window, and dx, which may
  // be dy, with the last.
  const int64_t most = (96 << 10) / 4 / (lines > 0 ? lines : 1);
  const int64_t step = lines == 0 ? width : most < width ? most : width;
  for (int64_t first = 0; first < width; first += step) {
    const int64_t last = first + step < width ? first + step : width, window = last - first;
    const bool write_dx = last == width;
    const size_t shared = static_cast<size_t>(lines * window) * sizeof(float);
    LS_TRY(dispatch_float(x.dtype, [&](auto x_tag) {
      using X = typename decltype(x_tag)::type;
      return dispatch_float(dy.dtype, [&](auto dy_tag) {
        using Y = typename decltype(dy_tag)::type;
        return LS_LAUNCH((norm_backward_kernel<kLayer, X, Y>), blocks, kSweepThreads, shared, exec, xs, x_vector, dys,
                         dy_vector, dxs, dx_vector, dx.dtype, w, rows, width, Share(width), eps, accumulate, write_dx,
                         partial, weights, biases, first, last);
      });
    }));
    if (lines == 0) break;
    LS_TRY(add_weights(exec, partial, pieces, window, outputs[0] + first,
                       outputs[1] != nullptr ? outputs[1] + first : nullptr));
  }
  return LS_OK;
}

}  // namespace longseq::cuda

#endif  // LONGSEQ_CUDA_NORM_H
