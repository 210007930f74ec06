// Puts softmax attention over two sets of keys together: each set weighs as much as the sum of its exponentials. Bytes:
// o read and written, part read; FLOPs: some ten an element.
#include "elementwise.h"
#include "entries.h"

namespace longseq::cuda {

namespace {

// Of two log-sum-exps the larger one, 0 where there is no key at all, and the exponentials of both beside it.
struct Weights {
  float top, a, b;
  LS_DEVICE Weights(float lse_a, float lse_b) {
    top = fmaxf(lse_a, lse_b);
    if (top == -INFINITY) top = 0;
    a = expf(lse_a - top);
    b = expf(lse_b - top);
  }
};

struct MergeOutput {
  static constexpr unsigned kReads = 0b1111, kWrites = 0b1000;
  LS_DEVICE void operator()(float (&v)[4]) const {
    const Weights weights(v[0], v[1]);
    const float total = weights.a + weights.b;
    v[3] = total == 0 ? 0 : fmaf(weights.a, v[3], weights.b * v[2]) / total;
  }
};

struct MergeLse {
  static constexpr unsigned kReads = 0b11, kWrites = 0b10;
  LS_DEVICE void operator()(float (&v)[2]) const {
    const Weights weights(v[1], v[0]);
    v[1] = weights.top + logf(weights.a + weights.b);
  }
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
  LS_TRY(elementwise<float>(exec, {&lse, &part_lse, &args->part, &args->o}, MergeOutput{}));
  return elementwise<float>(exec, {&args->part_lse, &args->lse}, MergeLse{});
}

}  // namespace longseq::cuda
