// Arguments, checks and cost of binary elementwise functions.
#include "runtime/op.h"

namespace longseq {

namespace {

void check_binary(const void *pointer) {
  const auto &a = *static_cast<const ls_binary_args *>(pointer);
  const Check c("binary");
  c.that(a.kind >= 0 && a.kind < LS_BINARY_COUNT, "unknown kind " + std::to_string(a.kind));
  c.same_shape("b", a.b, "a", a.a);
  c.same_shape("y", a.y, "a", a.a);
  if (a.a.dtype == LS_F64 || a.a.dtype == LS_I64) {
    c.dtype("b", a.b, a.a.dtype);
    c.dtype("y", a.y, a.a.dtype);
  } else {
    c.floating("a", a.a);
    c.floating("b", a.b);
    c.floating("y", a.y);
  }
}

Cost cost_binary(const void *pointer) {
  const auto &a = *static_cast<const ls_binary_args *>(pointer);
  return {0, tensor_bytes(a.a) + tensor_bytes(a.b) + tensor_bytes(a.y)};
}

const RegisterOp register_binary({
    "binary",
    sizeof(ls_binary_args),
    {LS_FIELD(ls_binary_args, input, a), LS_FIELD(ls_binary_args, input, b), LS_FIELD(ls_binary_args, output, y),
     LS_FIELD(ls_binary_args, integer, kind)},
    check_binary,
    cost_binary,
    nullptr,
    nullptr,
    call_entry<ls_binary_args, &ls_backend::binary>,
});

}  // namespace

}  // namespace longseq
