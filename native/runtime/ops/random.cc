// Arguments, checks and cost of random.
#include "runtime/op.h"

namespace longseq {

namespace {

void check_random(const void *pointer) {
  const auto &a = *static_cast<const ls_random_args *>(pointer);
  const Check c("random");
  c.floating("y", a.y);
  c.contiguous("y", a.y);
  c.that(a.offset >= 0 && a.offset % 4 == 0,
         "offset is " + std::to_string(a.offset) + ", expected a multiple of 4, not negative");
}

Cost cost_random(const void *pointer) {
  const auto &a = *static_cast<const ls_random_args *>(pointer);
  return {0, tensor_bytes(a.y)};
}

const RegisterOp register_random({
    "random",
    sizeof(ls_random_args),
    {LS_FIELD(ls_random_args, output, y), LS_FIELD(ls_random_args, number, a), LS_FIELD(ls_random_args, number, b),
     LS_FIELD(ls_random_args, integer, seed), LS_FIELD(ls_random_args, integer, offset),
     LS_FIELD(ls_random_args, integer, normal)},
    check_random,
    cost_random,
    nullptr,
    nullptr,
    call_entry<ls_random_args, &ls_backend::random>,
});

}  // namespace

}  // namespace longseq
