// Arguments, checks and cost of rms_norm and its backward.
#include "runtime/ops/norm.h"

namespace longseq {

namespace {

void check_rms_norm(const void *pointer) {
  const auto &a = *static_cast<const ls_rms_norm_args *>(pointer);
  const Check c("rms_norm");
  check_normed(c, a);
  check_like_x(c, "y", a.y, a.x);
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

void check_rms_norm_backward(const void *pointer) {
  const auto &a = *static_cast<const ls_rms_norm_backward_args *>(pointer);
  const Check c("rms_norm_backward");
  check_normed(c, a);
  check_like_x(c, "dy", a.dy, a.x);
  check_like_x(c, "dx", a.dx, a.x);
  check_sum(c, "dweight", a.dweight, a.weight);
}

Cost cost_rms_norm_backward(const void *pointer) {
  const auto &a = *static_cast<const ls_rms_norm_backward_args *>(pointer);
  return {0, tensor_bytes(a.x) + tensor_bytes(a.dy) + (a.accumulate_dx ? 2 : 1) * tensor_bytes(a.dx)};
}

int64_t workspace_rms_norm_backward(const void *pointer, const Profile &profile) {
  const auto &a = *static_cast<const ls_rms_norm_backward_args *>(pointer);
  return sums_bytes(a.x, a.weight.sizes[0], a.dweight.present ? 1 : 0, profile);
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
