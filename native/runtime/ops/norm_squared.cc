// Arguments, checks and cost of norm_squared.
#include <algorithm>

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

// On a GPU a float64 for each of at most 1024 pieces; the CPU's lie on the stack.
int64_t workspace_norm_squared(const void *pointer, const Profile &profile) {
  const auto &a = *static_cast<const ls_norm_squared_args *>(pointer);
  return profile.cuda ? 8 * std::min<int64_t>(1024, elements(a.x) / 8192 + 1) : 0;
}

const RegisterOp register_norm_squared({
    "norm_squared",
    sizeof(ls_norm_squared_args),
    {LS_FIELD(ls_norm_squared_args, input, x), LS_FIELD(ls_norm_squared_args, inout, y)},
    check_norm_squared,
    cost_norm_squared,
    workspace_norm_squared,
    nullptr,
    call_entry<ls_norm_squared_args, &ls_backend::norm_squared>,
});

}  // namespace

}  // namespace longseq
