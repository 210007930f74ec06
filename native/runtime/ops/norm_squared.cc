// Arguments, checks and cost of norm_squared.
#include "runtime/op.h"

namespace longseq {

namespace {

void check_norm_squared(const void *pointer) {
  const auto &a = *static_cast<const ls_norm_squared_args *>(pointer);
  const Check c("norm_squared");
  c.floating("x", a.x);
  c.scalar("y", a.y, LS_F64);
}

Cost cost_norm_squared(const void *pointer) {
  const auto &a = *static_cast<const ls_norm_squared_args *>(pointer);
  return {0, tensor_bytes(a.x)};
}

const RegisterOp register_norm_squared({
    "norm_squared",
    sizeof(ls_norm_squared_args),
    {LS_FIELD(ls_norm_squared_args, input, x), LS_FIELD(ls_norm_squared_args, inout, y)},
    check_norm_squared,
    cost_norm_squared,
    nullptr,
    nullptr,
    call_entry<ls_norm_squared_args, &ls_backend::norm_squared>,
});

}  // namespace

}  // namespace longseq
