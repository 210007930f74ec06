// The library's matrix product (native/cuda/gemm.h) as plain loops: operands as float32, sums in float32 over blocks of
// 32 of the inner dim, those in float64.
#include <algorithm>
#include <vector>

#include "cuda/gemm.h"

#ifdef LS_CUDA_HOST
#include "cudart.h"
#endif

namespace longseq::cuda {

namespace {

// A matrix of one entry of the batch, row-major.
std::vector<float> values(const Matrix &m, int64_t offset) {
  std::vector<float> all(static_cast<size_t>(m.rows * m.columns));
  for (int64_t i = 0; i < m.rows; ++i)
    for (int64_t j = 0; j < m.columns; ++j) {
      const int64_t at = offset + i * m.row + j * m.column;
      all[static_cast<size_t>(i * m.columns + j)] =
          m.dtype == LS_BF16 ? to_float(static_cast<const bf16 *>(m.data)[at]) : static_cast<const float *>(m.data)[at];
    }
  return all;
}

void product(const Gemm &g, int64_t entry) {
  const int64_t m = g.c.rows, n = g.c.columns, k = g.a.columns;
  const std::vector<float> a = values(g.a, entry * g.a_batch), b = values(g.b, entry * g.b_batch);
  std::vector<double> sums(static_cast<size_t>(n));
  std::vector<float> part(static_cast<size_t>(n));
  for (int64_t i = 0; i < m; ++i) {
    std::fill(sums.begin(), sums.end(), 0.0);
    for (int64_t first = 0; first < k; first += 32) {
      std::fill(part.begin(), part.end(), 0.0f);
      for (int64_t l = first; l < std::min(k, first + 32); ++l) {
        const float x = a[static_cast<size_t>(i * k + l)];
        const float *const row = b.data() + l * n;
        for (int64_t j = 0; j < n; ++j) part[static_cast<size_t>(j)] += x * row[j];
      }
      for (int64_t j = 0; j < n; ++j) sums[static_cast<size_t>(j)] += static_cast<double>(part[static_cast<size_t>(j)]);
    }
    for (int64_t j = 0; j < n; ++j) {
      const int64_t at = entry * g.c_batch + i * g.c.row + j * g.c.column;
      const bool is_bf16 = g.c.dtype == LS_BF16;
      const auto value_of = [is_bf16](const void *data, int64_t index) {
        return static_cast<double>(is_bf16 ? to_float(static_cast<const bf16 *>(data)[index])
                                           : static_cast<const float *>(data)[index]);
      };
      double value = static_cast<double>(g.alpha) * sums[static_cast<size_t>(j)];
      if (g.bias) value += value_of(g.bias, j);
      if (g.accumulate) value += value_of(g.c.data, at);
      if (is_bf16) {
        static_cast<bf16 *>(g.c.data)[at] = from_float<bf16>(static_cast<float>(value));
      } else {
        static_cast<float *>(g.c.data)[at] = static_cast<float>(value);
      }
    }
  }
}

}  // namespace

// What the library does not take is refused here: a plan that leaves it shows.
ls_status gemm(const ls_exec *exec, const Gemm &g) {
  const auto has_line = [](const Matrix &m) { return m.row == 1 || m.column == 1 || m.rows <= 1 || m.columns <= 1; };
  if (!has_line(g.a) || !has_line(g.b) || (g.c.column != 1 && g.c.columns > 1))
    return fail(exec, LS_DEVICE_FAILURE, "gemm: an operand lies as the library does not take it");
  if (g.a.dtype != g.b.dtype || (g.c.dtype == LS_BF16 && g.a.dtype != LS_BF16))
    return fail(exec, LS_DEVICE_FAILURE, "gemm: dtypes that the library does not take together");
#ifdef LS_CUDA_HOST
  fake_launch(stream_of(exec), {}, [g] {
    for (int64_t entry = 0; entry < g.batch; ++entry) product(g, entry);
    return cudaSuccess;
  });
#else
  for (int64_t entry = 0; entry < g.batch; ++entry) product(g, entry);
#endif
  return LS_OK;
}

}  // namespace longseq::cuda
