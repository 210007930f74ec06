// Arguments, checks and cost of row_dot: the inner products of two matrices' rows.
#include "runtime/op.h"

namespace longseq {

namespace {

void check_row_dot(const void *pointer) {
  const auto &a = *static_cast<const ls_row_dot_args *>(pointer);
  const Check c("row_dot");
  c.ndim("a", a.a, 2);
  c.floating("a", a.a);
  c.contiguous_last("a", a.a);
  c.same_shape("b", a.b, "a", a.a);
  c.floating("b", a.b);
  c.contiguous_last("b", a.b);
  c.ndim("y", a.y, 1);
  c.dtype("y", a.y, LS_F32);
  c.size("y", a.y, 0, a.a.sizes[0], "rows of a");
}

Cost cost_row_dot(const void *pointer) {
  const auto &a = *static_cast<const ls_row_dot_args *>(pointer);
  return {0, tensor_bytes(a.a) + tensor_bytes(a.b) + tensor_bytes(a.y)};
}

const RegisterOp register_row_dot({
    "row_dot",
    sizeof(ls_row_dot_args),
    {LS_FIELD(ls_row_dot_args, input, a), LS_FIELD(ls_row_dot_args, input, b), LS_FIELD(ls_row_dot_args, output, y)},
    check_row_dot,
    cost_row_dot,
    nullptr,
    nullptr,
    call_entry<ls_row_dot_args, &ls_backend::row_dot>,
});

}  // namespace

}  // namespace longseq
