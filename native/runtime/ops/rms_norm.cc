// Arguments, checks and cost of rms_norm and its backward.
#include <algorithm>

#include "runtime/op.h"

namespace longseq {

namespace {

void check_rms_norm(const void *pointer) {
  const auto &a = *static_cast<const ls_rms_norm_args *>(pointer);
  const Check c("rms_norm");
  c.that(a.x.ndim >= 1, "x has no dims");
  c.floating("x", a.x);
  c.floating("weight", a.weight);
  c.ndim("weight", a.weight, 1);
  c.size("weight", a.weight, 0, a.x.sizes[a.x.ndim - 1], "last dim of x");
  c.contiguous_last("x", a.x);
  c.positive_eps(a.eps);
  c.same_shape("y", a.y, "x", a.x);
  c.floating("y", a.y);
  c.contiguous_last("y", a.y);
}

Cost cost_rms_norm(const void *pointer) {
  const auto &a = *static_cast<const ls_rms_norm_args *>(pointer);
  return {0, tensor_bytes(a.x) + tensor_bytes(a.weight) + tensor_bytes(a.y)};
}

const RegisterOp register_rms_norm({
    "rms_norm",
    sizeof(ls_rms_norm_args),
    {LS_FIELD(ls_rms_norm_args, input, x), LS_FIELD(ls_rms_norm_args, input, weight),
     LS_FIELD(ls_rms_norm_args, output, y), LS_FIELD(ls_rms_norm_args, number, eps)},
    check_rms_norm,
    cost_rms_norm,
    nullptr,
    nullptr,
    call_entry<ls_rms_norm_args, &ls_backend::rms_norm>,
});

}  // namespace

namespace {

void check_rms_norm_backward(const void *pointer) {
  const auto &a = *static_cast<const ls_rms_norm_backward_args *>(pointer);
  const Check c("rms_norm_backward");
  c.that(a.x.ndim >= 1, "x has no dims");
  c.floating("x", a.x);
  c.floating("weight", a.weight);
  c.ndim("weight", a.weight, 1);
  c.size("weight", a.weight, 0, a.x.sizes[a.x.ndim - 1], "last dim of x");
  c.contiguous_last("x", a.x);
  c.positive_eps(a.eps);
  c.same_shape("dy", a.dy, "x", a.x);
  c.floating("dy", a.dy);
  c.contiguous_last("dy", a.dy);
  c.same_shape("dx", a.dx, "x", a.x);
  c.floating("dx", a.dx);
  c.contiguous_last("dx", a.dx);
  if (a.dweight.present) {
    c.same_shape("dweight", a.dweight, "weight", a.weight);
    c.dtype("dweight", a.dweight, LS_F32);
    c.contiguous("dweight", a.dweight);
  }
}

Cost cost_rms_norm_backward(const void *pointer) {
  const auto &a = *static_cast<const ls_rms_norm_backward_args *>(pointer);
  return {0, tensor_bytes(a.x) + tensor_bytes(a.dy) + (a.accumulate_dx ? 2 : 1) * tensor_bytes(a.dx)};
}

int64_t workspace_rms_norm_backward(const void *pointer, const Profile &profile) {
  const auto &a = *static_cast<const ls_rms_norm_backward_args *>(pointer);
  // Sums of the weight gradient: float64 over at most 32 pieces of rows, on a GPU float32 over at most 528.
  const int64_t width = a.weight.sizes[0];
  if (width == 0 || !a.dweight.present) return 0;
  const int64_t pieces = (elements(a.x) / width + 7) / 8;
  return profile.cuda ? std::min<int64_t>(528, pieces) * width * 4 : std::min<int64_t>(32, pieces) * width * 8;
}

const RegisterOp register_rms_norm_backward({
    "rms_norm_backward",
    sizeof(ls_rms_norm_backward_args),
    {LS_FIELD(ls_rms_norm_backward_args, input, x), LS_FIELD(ls_rms_norm_backward_args, input, weight),
     LS_FIELD(ls_rms_norm_backward_args, input, dy), LS_FIELD(ls_rms_norm_backward_args, inout, dx),
     LS_FIELD(ls_rms_norm_backward_args, optional_inout, dweight), LS_FIELD(ls_rms_norm_backward_args, number, eps),
     LS_FIELD(ls_rms_norm_backward_args, integer, accumulate_dx)},
    check_rms_norm_backward,
    cost_rms_norm_backward,
    workspace_rms_norm_backward,
    nullptr,
    call_entry<ls_rms_norm_backward_args, &ls_backend::rms_norm_backward>,
});

}  // namespace

}  // namespace longseq
