// Puts softmax attention over two sets of keys together: each set weighs as much as the sum of its exponentials.
#include "elementwise.h"
#include "kernels.h"

namespace longseq::cpu::LS_ISA {

namespace {

// Of two log-sum-exps the larger one, 0 where there is no key at all, and the exponentials of both beside it.
struct Weights {
  f32x16 top, a, b;
  LS_INLINE Weights(f32x16 lse_a, f32x16 lse_b) {
    const f32x16 none = set1(-__builtin_inff());
    top = max(lse_a, lse_b);
    top = select(eq(top, none), zero(), top);
    a = exp(lse_a - top);
    b = exp(lse_b - top);
  }
  LS_INLINE f32x16 total() const { return a + b; }
};

// [N, T] as [T, N, D], the same for all of a head.
ls_tensor over_heads(const ls_tensor &lse, const ls_tensor &o) {
  ls_tensor view = lse;
  view.ndim = 3;
  for (int d = 0; d < 3; ++d) view.sizes[d] = o.sizes[d];
  view.strides[0] = lse.strides[1];
  view.strides[1] = lse.strides[0];
  view.strides[2] = 0;
  return view;
}

}  // namespace

ls_status attention_merge(const ls_exec *exec, const ls_attention_merge_args *args) {
  const ls_tensor lse = over_heads(args->lse, args->o), part_lse = over_heads(args->part_lse, args->o);
  elementwise<float>(exec, {&lse, &part_lse, &args->part, &args->o}, {kReads, kReads, kReads, kReads | kWrites},
                     [](float *const *p, int64_t n) {
                       lanes(n, [&](int64_t i, auto w) {
                         const Weights weights(load(p[0] + i, w), load(p[1] + i, w));
                         const f32x16 total = weights.total();
                         const f32x16 both = fma(weights.a, load(p[3] + i, w), weights.b * load(p[2] + i, w));
                         store(p[3] + i, select(eq(total, zero()), zero(), both / total), w);
                       });
                     });
  elementwise<float>(exec, {&args->part_lse, &args->lse}, {kReads, kReads | kWrites}, [](float *const *p, int64_t n) {
    lanes(n, [&](int64_t i, auto w) {
      const Weights weights(load(p[1] + i, w), load(p[0] + i, w));
      store(p[1] + i, weights.top + log(weights.total()), w);
    });
  });
  return LS_OK;
}

}  // namespace longseq::cpu::LS_ISA
