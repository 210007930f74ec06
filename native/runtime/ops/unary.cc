// Arguments, checks and cost of unary functions and their backward.
#include "runtime/op.h"

namespace longseq {

namespace {

void check_unary(const void *pointer) {
  const auto &a = *static_cast<const ls_unary_args *>(pointer);
  const Check c("unary");
  c.floating("x", a.x);
  c.same_shape("y", a.y, "x", a.x);
  c.floating("y", a.y);
  c.that(a.kind >= 0 && a.kind < LS_UNARY_COUNT, "unknown kind " + std::to_string(a.kind));
}

Cost cost_unary(const void *pointer) {
  const auto &a = *static_cast<const ls_unary_args *>(pointer);
  return {0, tensor_bytes(a.x) + tensor_bytes(a.y)};
}

const RegisterOp register_unary({
    "unary",
    sizeof(ls_unary_args),
    {LS_FIELD(ls_unary_args, input, x), LS_FIELD(ls_unary_args, output, y), LS_FIELD(ls_unary_args, integer, kind)},
    check_unary,
    cost_unary,
    nullptr,
    nullptr,
    call_entry<ls_unary_args, &ls_backend::unary>,
});

}  // namespace

namespace {

void check_unary_backward(const void *pointer) {
  const auto &a = *static_cast<const ls_unary_backward_args *>(pointer);
  const Check c("unary_backward");
  c.floating("x", a.x);
  c.same_shape("dy", a.dy, "x", a.x);
  c.floating("dy", a.dy);
  c.same_shape("dx", a.dx, "x", a.x);
  c.floating("dx", a.dx);
  c.that(a.kind >= 0 && a.kind < LS_UNARY_COUNT, "unknown kind " + std::to_string(a.kind));
}

Cost cost_unary_backward(const void *pointer) {
  const auto &a = *static_cast<const ls_unary_backward_args *>(pointer);
  return {0, tensor_bytes(a.x) + tensor_bytes(a.dy) + tensor_bytes(a.dx)};
}

const RegisterOp register_unary_backward({
    "unary_backward",
    sizeof(ls_unary_backward_args),
    {LS_FIELD(ls_unary_backward_args, input, x), LS_FIELD(ls_unary_backward_args, input, dy),
     LS_FIELD(ls_unary_backward_args, output, dx), LS_FIELD(ls_unary_backward_args, integer, kind)},
    check_unary_backward,
    cost_unary_backward,
    nullptr,
    nullptr,
    call_entry<ls_unary_backward_args, &ls_backend::unary_backward>,
});

}  // namespace

}  // namespace longseq
