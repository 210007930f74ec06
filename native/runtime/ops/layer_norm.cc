// Arguments, checks and cost of layer_norm and its backward.
#include "runtime/ops/norm.h"

namespace longseq {

namespace {

void check_layer_norm(const void *pointer) {
  const auto &a = *static_cast<const ls_layer_norm_args *>(pointer);
  const Check c("layer_norm");
  check_normed(c, a);
  check_like_x(c, "y", a.y, a.x);
  if (a.bias.present) {
    c.same_shape("bias", a.bias, "weight", a.weight);
    c.floating("bias", a.bias);
  }
}

Cost cost_layer_norm(const void *pointer) {
  const auto &a = *static_cast<const ls_layer_norm_args *>(pointer);
  return {0, tensor_bytes(a.x) + tensor_bytes(a.weight) + tensor_bytes(a.y)};
}

const RegisterOp register_layer_norm({
    "layer_norm",
    sizeof(ls_layer_norm_args),
    {LS_FIELD(ls_layer_norm_args, input, x), LS_FIELD(ls_layer_norm_args, input, weight),
     LS_FIELD(ls_layer_norm_args, output, y), LS_FIELD(ls_layer_norm_args, optional_input, bias),
     LS_FIELD(ls_layer_norm_args, number, eps)},
    check_layer_norm,
    cost_layer_norm,
    nullptr,
    nullptr,
    call_entry<ls_layer_norm_args, &ls_backend::layer_norm>,
});

void check_layer_norm_backward(const void *pointer) {
  const auto &a = *static_cast<const ls_layer_norm_backward_args *>(pointer);
  const Check c("layer_norm_backward");
  check_normed(c, a);
  check_like_x(c, "dy", a.dy, a.x);
  check_like_x(c, "dx", a.dx, a.x);
  check_sum(c, "dweight", a.dweight, a.weight);
  check_sum(c, "dbias", a.dbias, a.weight);
}

Cost cost_layer_norm_backward(const void *pointer) {
  const auto &a = *static_cast<const ls_layer_norm_backward_args *>(pointer);
  return {0, tensor_bytes(a.x) + tensor_bytes(a.dy) + (a.accumulate_dx ? 2 : 1) * tensor_bytes(a.dx)};
}

int64_t workspace_layer_norm_backward(const void *pointer, const Profile &profile) {
  const auto &a = *static_cast<const ls_layer_norm_backward_args *>(pointer);
  return sums_bytes(a.x, a.weight.sizes[0], (a.dweight.present ? 1 : 0) + (a.dbias.present ? 1 : 0), profile);
}

const RegisterOp register_layer_norm_backward({
    "layer_norm_backward",
    sizeof(ls_layer_norm_backward_args),
    {LS_FIELD(ls_layer_norm_backward_args, input, x), LS_FIELD(ls_layer_norm_backward_args, input, weight),
     LS_FIELD(ls_layer_norm_backward_args, input, dy), LS_FIELD(ls_layer_norm_backward_args, inout, dx),
     LS_FIELD(ls_layer_norm_backward_args, optional_inout, dweight),
     LS_FIELD(ls_layer_norm_backward_args, optional_inout, dbias), LS_FIELD(ls_layer_norm_backward_args, number, eps),
     LS_FIELD(ls_layer_norm_backward_args, integer, accumulate_dx)},
    check_layer_norm_backward,
    cost_layer_norm_backward,
    workspace_layer_norm_backward,
    nullptr,
    call_entry<ls_layer_norm_backward_args, &ls_backend::layer_norm_backward>,
});

}  // namespace

}  // namespace longseq
