// Arguments, checks and cost of axpby.
#include "runtime/op.h"

namespace longseq {

namespace {

void check_axpby(const void *pointer) {
  const auto &a = *static_cast<const ls_axpby_args *>(pointer);
  const Check c("axpby");
  c.same_shape("y", a.y, "x", a.x);
  if (a.x.dtype == LS_F64) {
    c.dtype("y", a.y, LS_F64);
  } else {
    c.floating("x", a.x);
    c.floating("y", a.y);
  }
  if (a.factor.present) {
    c.that(a.factor.dtype == LS_F32 || a.factor.dtype == LS_F64,
           std::string("factor is ") + dtype_name(a.factor.dtype) + ", expected float32 or float64");
    c.scalar("factor", a.factor, a.factor.dtype);
  }
}

Cost cost_axpby(const void *pointer) {
  const auto &a = *static_cast<const ls_axpby_args *>(pointer);
  return {0, tensor_bytes(a.x) + tensor_bytes(a.y) * (a.beta != 0 ? 2 : 1)};
}

const RegisterOp register_axpby({
    "axpby",
    sizeof(ls_axpby_args),
    {LS_FIELD(ls_axpby_args, input, x), LS_FIELD(ls_axpby_args, inout, y),
     LS_FIELD(ls_axpby_args, optional_input, factor), LS_FIELD(ls_axpby_args, number, alpha),
     LS_FIELD(ls_axpby_args, number, beta)},
    check_axpby,
    cost_axpby,
    nullptr,
    nullptr,
    call_entry<ls_axpby_args, &ls_backend::axpby>,
});

}  // namespace

}  // namespace longseq
