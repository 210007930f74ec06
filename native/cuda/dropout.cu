// Zeros in the place of some elements; which ones is a function of seed, stream, row number and column (backend.h): bit
// for bit native/cpu/dropout.cc. Bytes: x once, y once, or twice where it is added to; FLOPs: some 100 integer
// operations a block of four.
#include "elementwise.h"
#include "entries.h"
#include "philox.h"

namespace longseq::cuda {

namespace {

struct Choice {
  uint64_t seed;
  uint32_t stream, threshold;
  float kept;
  int64_t first;
  bool accumulate;
};

// A thread takes eight columns of a row.
template <typename X, typename Y>
__global__ void __launch_bounds__(256)
    dropout_kernel(const X *x, int64_t x_stride, bool x_vector, const int64_t *numbers, Y *y, int64_t y_stride,
                   bool y_vector, int64_t rows, int64_t width, Choice choice) {
  const int64_t groups = ceil_div(width, kGroup), items = rows * groups;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x; item < items;
       item += static_cast<int64_t>(gridDim.x) * 256) {
    const int64_t t = item / groups, i = (item - t * groups) * kGroup;
    const int n = static_cast<int>(width - i < kGroup ? width - i : kGroup);
    const uint64_t number = static_cast<uint64_t>(numbers[t]);
    const int64_t column = choice.first + i;
    // Eight columns touch three blocks where they do not begin with one.
    uint32_t words[12];
#pragma unroll
    for (int block = 0; block < 3; ++block) {
      const PhiloxWords made = philox(static_cast<uint32_t>(column / 4 + block), choice.stream,
                                      static_cast<uint32_t>(number), static_cast<uint32_t>(number >> 32), choice.seed);
#pragma unroll
      for (int j = 0; j < 4; ++j) words[4 * block + j] = made.at[j];
    }
    const int skip = static_cast<int>(column & 3);
    float values[kGroup], sums[kGroup];
    load_typed(values, x + t * x_stride + i, 1, x_vector, n);
    if (choice.accumulate) load_typed(sums, y + t * y_stride + i, 1, y_vector, n);
#pragma unroll
    for (int c = 0; c < kGroup; ++c) {
      const uint32_t word = skip == 0 ? words[c] : skip == 1 ? words[c + 1] : skip == 2 ? words[c + 2] : words[c + 3];
      const float value = __fmul_rn(values[c], word >= choice.threshold ? choice.kept : 0.0f);
      values[c] = choice.accumulate ? __fadd_rn(sums[c], value) : value;
    }
    store_typed(y + t * y_stride + i, values, 1, y_vector, n);
  }
}

}  // namespace

ls_status dropout(const ls_exec *exec, const ls_dropout_args *args) {
  const ls_tensor &x = args->x, &y = args->y;
  const int64_t rows = x.sizes[0], width = x.sizes[1];
  if (rows == 0 || width == 0) return LS_OK;
  const Choice choice{static_cast<uint64_t>(args->seed),
                      static_cast<uint32_t>(args->stream),
                      static_cast<uint32_t>(args->rate * 0x1p32),
                      static_cast<float>(1.0 / (1.0 - args->rate)),
                      args->first,
                      args->accumulate != 0};
  const unsigned blocks = blocks_for(rows * ceil_div(width, kGroup), 256);
  return dispatch_float(x.dtype, [&](auto x_tag) {
    using X = typename decltype(x_tag)::type;
    return dispatch_float(y.dtype, [&](auto y_tag) {
      using Y = typename decltype(y_tag)::type;
      return LS_LAUNCH((dropout_kernel<X, Y>), blocks, 256, 0, exec, static_cast<const X *>(x.data), x.strides[0],
                       Rows(x, 1).aligned(), static_cast<const int64_t *>(args->rows.data), static_cast<Y *>(y.data),
                       y.strides[0], Rows(y, 1).aligned(), rows, width, choice);
    });
  });
}

}  // namespace longseq::cuda
