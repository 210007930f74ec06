// The sum of squares of a tensor in float64, in an order that depends on the shape and layout alone.
#include "elementwise.h"
#include "kernels.h"

namespace longseq::cpu::LS_ISA {

ls_status norm_squared(const ls_exec *exec, const ls_norm_squared_args *args) {
  constexpr int64_t kPieces = 256;
  const Plan<1> plan({&args->x});
  const bool direct = all_direct<float>(plan);
  const int64_t items = plan.items(), group = max_of(1, ceil_div(items, kPieces)), groups = ceil_div(items, group);
  double partial[kPieces] = {};
  parallel_for(exec, groups, 1, [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) {
      f64x8 sums[4] = {zero_f64(), zero_f64(), zero_f64(), zero_f64()};
      for (int64_t item = g * group; item < min_of(items, (g + 1) * group); ++item)
        walk_item<float>(plan, {kReads}, direct, item, [&](float *const *p, int64_t n) {
          int64_t i = 0;
          for (; i + 32 <= n; i += 32)
            for (int j = 0; j < 2; ++j) {
              const f32x16 v = load(p[0] + i + 16 * j);
              const f64x8 low = low_f64(v), high = high_f64(v);
              sums[2 * j] = fma(low, low, sums[2 * j]);
              sums[2 * j + 1] = fma(high, high, sums[2 * j + 1]);
            }
          for (; i < n; i += 16) {
            const f32x16 v = load(p[0] + i, min_of(16, n - i));  // zeros past the end
            const f64x8 low = low_f64(v), high = high_f64(v);
            sums[0] = fma(low, low, sums[0]);
            sums[1] = fma(high, high, sums[1]);
          }
        });
      partial[g] = reduce_add((sums[0] + sums[1]) + (sums[2] + sums[3]));
    }
  });
  double total = 0;
  for (int64_t g = 0; g < groups; ++g) total += partial[g];
  *static_cast<double *>(args->y.data) += total;
  return LS_OK;
}

}  // namespace longseq::cpu::LS_ISA
