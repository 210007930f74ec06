// Arguments, checks and cost of swiglu (the gated activation) and its backward.
#include "runtime/op.h"

namespace longseq {

namespace {

void check_swiglu(const void *pointer) {
  const auto &a = *static_cast<const ls_swiglu_args *>(pointer);
  const Check c("swiglu");
  c.floating("gate", a.gate);
  c.same_shape("up", a.up, "gate", a.gate);
  c.floating("up", a.up);
  c.same_shape("y", a.y, "gate", a.gate);
  c.floating("y", a.y);
  c.that(a.kind >= 0 && a.kind <= LS_UNARY_RELU, "kind " + std::to_string(a.kind) + " is no activation");
}

Cost cost_swiglu(const void *pointer) {
  const auto &a = *static_cast<const ls_swiglu_args *>(pointer);
  return {0, tensor_bytes(a.gate) + tensor_bytes(a.up) + tensor_bytes(a.y)};
}

const RegisterOp register_swiglu({
    "swiglu",
    sizeof(ls_swiglu_args),
    {LS_FIELD(ls_swiglu_args, input, gate), LS_FIELD(ls_swiglu_args, input, up), LS_FIELD(ls_swiglu_args, output, y),
     LS_FIELD(ls_swiglu_args, integer, kind)},
    check_swiglu,
    cost_swiglu,
    nullptr,
    nullptr,
    call_entry<ls_swiglu_args, &ls_backend::swiglu>,
});

}  // namespace

namespace {

void check_swiglu_backward(const void *pointer) {
  const auto &a = *static_cast<const ls_swiglu_backward_args *>(pointer);
  const Check c("swiglu_backward");
  c.floating("gate", a.gate);
  c.same_shape("up", a.up, "gate", a.gate);
  c.floating("up", a.up);
  c.same_shape("dy", a.dy, "gate", a.gate);
  c.floating("dy", a.dy);
  c.same_shape("dgate", a.dgate, "gate", a.gate);
  c.floating("dgate", a.dgate);
  c.same_shape("dup", a.dup, "gate", a.gate);
  c.floating("dup", a.dup);
  c.that(a.kind >= 0 && a.kind <= LS_UNARY_RELU, "kind " + std::to_string(a.kind) + " is no activation");
}

Cost cost_swiglu_backward(const void *pointer) {
  const auto &a = *static_cast<const ls_swiglu_backward_args *>(pointer);
  return {0,
          tensor_bytes(a.gate) + tensor_bytes(a.up) + tensor_bytes(a.dy) + tensor_bytes(a.dgate) + tensor_bytes(a.dup)};
}

const RegisterOp register_swiglu_backward({
    "swiglu_backward",
    sizeof(ls_swiglu_backward_args),
    {LS_FIELD(ls_swiglu_backward_args, input, gate), LS_FIELD(ls_swiglu_backward_args, input, up),
     LS_FIELD(ls_swiglu_backward_args, input, dy), LS_FIELD(ls_swiglu_backward_args, output, dgate),
     LS_FIELD(ls_swiglu_backward_args, output, dup), LS_FIELD(ls_swiglu_backward_args, integer, kind)},
    check_swiglu_backward,
    cost_swiglu_backward,
    nullptr,
    nullptr,
    call_entry<ls_swiglu_backward_args, &ls_backend::swiglu_backward>,
});

}  // namespace

}  // namespace longseq
