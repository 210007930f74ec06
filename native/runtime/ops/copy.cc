// Arguments, checks and cost of copy.
#include "runtime/op.h"

namespace longseq {

namespace {

void check_copy(const void *pointer) {
  const auto &a = *static_cast<const ls_copy_args *>(pointer);
  const Check c("copy");
  c.same_shape("dst", a.dst, "src", a.src);
}

Cost cost_copy(const void *pointer) {
  const auto &a = *static_cast<const ls_copy_args *>(pointer);
  return {0, tensor_bytes(a.src) + tensor_bytes(a.dst)};
}

const RegisterOp register_copy({
    "copy",
    sizeof(ls_copy_args),
    {LS_FIELD(ls_copy_args, input, src), LS_FIELD(ls_copy_args, output, dst)},
    check_copy,
    cost_copy,
    nullptr,
    nullptr,
    call_entry<ls_copy_args, &ls_backend::copy>,
});

}  // namespace

}  // namespace longseq
