// What rms_norm, layer_norm and their backwards ask alike.
#ifndef LONGSEQ_RUNTIME_OPS_NORM_H
#define LONGSEQ_RUNTIME_OPS_NORM_H

#include <algorithm>

#include "runtime/op.h"

namespace longseq {

// x, weight and eps of a forward or backward.
template <class Args>
void check_normed(const Check &c, const Args &a) {
  c.that(a.x.ndim >= 1, "x has no dims");
  c.floating("x", a.x);
  c.floating("weight", a.weight);
  c.ndim("weight", a.weight, 1);
  c.size("weight", a.weight, 0, a.x.sizes[a.x.ndim - 1], "last dim of x");
  c.contiguous_last("x", a.x);
  c.positive_eps(a.eps);
}

// y, dy or dx: of x's shape.
inline void check_like_x(const Check &c, const char *name, const ls_tensor &tensor, const ls_tensor &x) {
  c.same_shape(name, tensor, "x", x);
  c.floating(name, tensor);
  c.contiguous_last(name, tensor);
}

// A gradient of weight or bias, where it is asked for.
inline void check_sum(const Check &c, const char *name, const ls_tensor &tensor, const ls_tensor &weight) {
  if (!tensor.present) return;
  c.same_shape(name, tensor, "weight", weight);
  c.dtype(name, tensor, LS_F32);
  c.contiguous(name, tensor);
}

// Workspace of so many gradients of weight or bias: float64 over at most 32 pieces of rows, on a GPU float32 over at
// most 528.
inline int64_t sums_bytes(const ls_tensor &x, int64_t width, int64_t sums, const Profile &profile) {
  if (width == 0) return 0;
  const int64_t pieces = (elements(x) / width + 7) / 8;
  return (profile.cuda ? std::min<int64_t>(528, pieces) * 4 : std::min<int64_t>(32, pieces) * 8) * width * sums;
}

}  // namespace longseq

#endif  // LONGSEQ_RUNTIME_OPS_NORM_H
