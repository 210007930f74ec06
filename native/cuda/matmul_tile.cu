// Copies, casts and sums of the tiles that matmul makes where cuBLASLt cannot take an operand as it lies.
//
// Bytes: each element is read once and written once (finish: sum and c read, c written). A block turns a tile of
// 32 x 32 through shared memory where rows of one side lie along columns of the other, so both sides stay coalesced.
#include "launch.h"
#include "matmul_tile.h"

namespace longseq::cuda {

namespace {

constexpr int kTile = 32, kRowsAtOnce = 8;

// A Matrix as kernels see it.
template <typename T>
struct View {
  T *data;
  int64_t row, column;
};

template <typename T>
View<T> view(const Matrix &m) {
  return {static_cast<T *>(m.data), m.row, m.column};
}

// What is left of x once it was rounded to T `part` times; nothing is left of infinities and NaNs.
template <typename T>
LS_DEVICE float left_over(float x, int part) {
  for (int p = 0; p < part; ++p) {
    const float rest = x - to_float(from_float<T>(x));
    x = rest == rest ? rest : 0.0f;
  }
  return x;
}

// Tiles along the grid's x; grid.x blocks stride over all of them.
template <typename From, typename To>
__global__ void copy_kernel(View<From> from, View<To> to, int64_t rows, int64_t columns, int part) {
  __shared__ float values[kTile][kTile + 1];
  const int64_t across = ceil_div(columns, kTile), tiles = across * ceil_div(rows, kTile);
  const bool from_rows = from.column <= from.row, to_rows = to.column <= to.row;
  const int x = static_cast<int>(threadIdx.x), y = static_cast<int>(threadIdx.y);
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int64_t i0 = tile / across * kTile, j0 = tile % across * kTile;
    // Threads of a warp go along the side whose stride is the smaller.
    for (int k = y; k < kTile; k += kRowsAtOnce) {
      const int r = from_rows ? k : x, c = from_rows ? x : k;
      if (i0 + r < rows && j0 + c < columns)
        values[r][c] = to_float(from.data[(i0 + r) * from.row + (j0 + c) * from.column]);
    }
    __syncthreads();
    for (int k = y; k < kTile; k += kRowsAtOnce) {
      const int r = to_rows ? k : x, c = to_rows ? x : k;
      if (i0 + r < rows && j0 + c < columns)
        to.data[(i0 + r) * to.row + (j0 + c) * to.column] = from_float<To>(left_over<To>(values[r][c], part));
    }
    __syncthreads();
  }
}

template <typename Bias, typename C>
__global__ void finish_kernel(View<const float> sum, View<const Bias> bias, View<C> c, int64_t rows, int64_t columns,
                              bool accumulate) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  const bool along_rows = c.column <= c.row;
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; at < rows * columns; at += step) {
    const int64_t i = along_rows ? at / columns : at % rows, j = along_rows ? at % columns : at / rows;
    float value = sum.data != nullptr ? sum.data[i * sum.row + j * sum.column] : 0.0f;
    if (bias.data != nullptr) value += to_float(bias.data[j * bias.column]);
    C *const target = c.data + i * c.row + j * c.column;
    if (accumulate) value += to_float(*target);
    *target = from_float<C>(value);
  }
}

unsigned blocks_for(const ls_exec *exec, int64_t pieces) {
  const int64_t most = static_cast<int64_t>(multiprocessors(exec)) * 16;
  return static_cast<unsigned>(pieces < most ? pieces : most);
}

}  // namespace

ls_status tile_part(const ls_exec *exec, const Matrix &from, const Matrix &to, int part) {
  if (from.rows == 0 || from.columns == 0) return LS_OK;
  const unsigned grid = blocks_for(exec, ceil_div(from.rows, kTile) * ceil_div(from.columns, kTile));
  return dispatch_float(from.dtype, [&](auto from_tag) {
    using From = typename decltype(from_tag)::type;
    return dispatch_float(to.dtype, [&](auto to_tag) {
      using To = typename decltype(to_tag)::type;
      return LS_LAUNCH((copy_kernel<const From, To>), grid, dim3(kTile, kRowsAtOnce), 0, exec, view<const From>(from),
                       view<To>(to), from.rows, from.columns, part);
    });
  });
}

ls_status tile_finish(const ls_exec *exec, const Matrix &sum, const Matrix &bias, const Matrix &c, bool accumulate) {
  if (c.rows == 0 || c.columns == 0) return LS_OK;
  constexpr int kThreads = 256;
  const unsigned grid = blocks_for(exec, ceil_div(c.rows * c.columns, kThreads));
  return dispatch_float(bias.dtype, [&](auto bias_tag) {
    using Bias = typename decltype(bias_tag)::type;
    return dispatch_float(c.dtype, [&](auto c_tag) {
      using C = typename decltype(c_tag)::type;
      return LS_LAUNCH((finish_kernel<Bias, C>), grid, kThreads, 0, exec, view<const float>(sum),
                       view<const Bias>(bias), view<C>(c), c.rows, c.columns, accumulate);
    });
  });
}

}  // namespace longseq::cuda
