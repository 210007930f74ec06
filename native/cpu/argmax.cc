// The first index of the largest value of each row; a NaN counts as the largest, as in PyTorch.
#include "elementwise.h"
#include "kernels.h"

namespace longseq::cpu::LS_ISA {

ls_status argmax(const ls_exec *exec, const ls_argmax_args *args) {
  const ls_tensor &x = args->x;
  const int64_t width = x.sizes[x.ndim - 1];
  const Rows rows(x, 1), places(args->index, 0);
  parallel_for(exec, row_count(x), max_of(1, 32768 / max_of(1, width)), [&](int64_t begin, int64_t end) {
    alignas(64) float buffer[kTile];
    for (int64_t row = begin; row < end; ++row) {
      const void *from = rows.at(row);
      const f32x16 lowest = set1(-__builtin_inff());
      f32x16 top = lowest;
      bool nan = false;
      for (int64_t i = 0; i < width; i += kTile) {
        const int64_t n = min_of(kTile, width - i);
        const float *xs = row_piece(from, x.dtype, i, n, buffer);
        f32x16 unordered = zero();  // becomes NaN once a value was
        int64_t c = 0;
        for (; c + 16 <= n; c += 16) {
          const f32x16 v = load(xs + c);
          top = max(v, top);  // keeps top where v is NaN
          unordered = unordered + (v - v);
        }
        if (c < n) {
          const f32x16 v = select(first_n(n - c), load(xs + c, n - c), lowest);
          top = max(v, top);
          nan = nan || any(is_nan(load(xs + c, n - c)));
        }
        // Infinities make NaN of v - v as well: only then look closer.
        if (any(is_nan(unordered)))
          for (c = 0; c + 16 <= n; c += 16) nan = nan || any(is_nan(load(xs + c)));
      }
      const f32x16 best = set1(reduce_max(top));
      int64_t index = 0;
      bool found = false;
      for (int64_t i = 0; i < width && !found; i += kTile) {
        const int64_t n = min_of(kTile, width - i);
        const float *xs = row_piece(from, x.dtype, i, n, buffer);
        for (int64_t c = 0; c < n && !found; c += 16) {
          const int64_t m = min_of(16, n - c);
          const f32x16 v = load(xs + c, m);
          const uint32_t hits = mask_bits((nan ? is_nan(v) : eq(v, best)) & first_n(m));
          if (hits != 0) {
            index = i + c + __builtin_ctz(hits);
            found = true;
          }
        }
      }
      *static_cast<int32_t *>(places.at(row)) = static_cast<int32_t>(index);
    }
  });
  return LS_OK;
}

}  // namespace longseq::cpu::LS_ISA
