// Arguments, checks and cost of fill.
#include "runtime/op.h"

namespace longseq {

namespace {

void check_fill(const void *pointer) {
  const auto &a = *static_cast<const ls_fill_args *>(pointer);
  const Check c("fill");
  c.that(a.y.ndim >= 0, "y has no shape");
}

Cost cost_fill(const void *pointer) {
  const auto &a = *static_cast<const ls_fill_args *>(pointer);
  return {0, tensor_bytes(a.y)};
}

const RegisterOp register_fill({
    "fill",
    sizeof(ls_fill_args),
    {LS_FIELD(ls_fill_args, output, y), LS_FIELD(ls_fill_args, number, value)},
    check_fill,
    cost_fill,
    nullptr,
    nullptr,
    call_entry<ls_fill_args, &ls_backend::fill>,
});

}  // namespace

}  // namespace longseq
