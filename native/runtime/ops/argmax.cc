// Arguments, checks and cost of argmax.
#include "runtime/op.h"

namespace longseq {

namespace {

void check_argmax(const void *pointer) {
  const auto &a = *static_cast<const ls_argmax_args *>(pointer);
  const Check c("argmax");
  c.ndim("x", a.x, 2);
  c.floating("x", a.x);
  c.contiguous_last("x", a.x);
  c.that(a.x.sizes[1] > 0, "x has no columns");
  c.ndim("index", a.index, 1);
  c.dtype("index", a.index, LS_I32);
  c.size("index", a.index, 0, a.x.sizes[0], "rows of x");
}

Cost cost_argmax(const void *pointer) {
  const auto &a = *static_cast<const ls_argmax_args *>(pointer);
  return {0, tensor_bytes(a.x) + tensor_bytes(a.index)};
}

const RegisterOp register_argmax({
    "argmax",
    sizeof(ls_argmax_args),
    {LS_FIELD(ls_argmax_args, input, x), LS_FIELD(ls_argmax_args, output, index)},
    check_argmax,
    cost_argmax,
    nullptr,
    nullptr,
    call_entry<ls_argmax_args, &ls_backend::argmax>,
});

}  // namespace

}  // namespace longseq
