// Arguments, checks and cost of layer_norm and its backward.
#include <algorithm>

#include "runtime/op.h"

namespace longseq {

namespace {

void check_layer_norm(const void *pointer) {
  const auto &a = *static_cast<const ls_layer_norm_args *>(pointer);
  const Check c("layer_norm");
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

}  // namespace

namespace {

void check_layer_norm_backward(const void *pointer) {
  const auto &a = *static_cast<const ls_layer_norm_backward_args *>(pointer);
  const Check c("layer_norm_backward");
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
  if (a.dbias.present) {
    c.same_shape("dbias", a.dbias, "weight", a.weight);
    c.dtype("dbias", a.dbias, LS_F32);
    c.contiguous("dbias", a.dbias);
  }
}

Cost cost_layer_norm_backward(const void *pointer) {
  const auto &a = *static_cast<const ls_layer_norm_backward_args *>(pointer);
  return {0, tensor_bytes(a.x) + tensor_bytes(a.dy) + (a.accumulate_dx ? 2 : 1) * tensor_bytes(a.dx)};
}

int64_t workspace_layer_norm_backward(const void *pointer, const Profile &profile) {
  const auto &a = *static_cast<const ls_layer_norm_backward_args *>(pointer);
  // Sums of the gradients of weight and bias: float64 over at most 32 pieces of rows, on a GPU float32 over at most
  // 528.
  const int64_t width = a.weight.sizes[0];
  if (width == 0) return 0;
  const int64_t wanted = (a.dweight.present ? 1 : 0) + (a.dbias.present ? 1 : 0);
  const int64_t pieces = (elements(a.x) / width + 7) / 8;
  return (profile.cuda ? std::min<int64_t>(528, pieces) * 4 : std::min<int64_t>(32, pieces) * 8) * width * wanted;
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
