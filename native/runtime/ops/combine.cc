// Arguments, checks and cost of combine: the rows of a token's experts, added up.
#include "runtime/op.h"

namespace longseq {

namespace {

void check_combine(const void *pointer) {
  const auto &a = *static_cast<const ls_combine_args *>(pointer);
  const Check c("combine");
  c.ndim("x", a.x, 2);
  c.floating("x", a.x);
  c.contiguous_last("x", a.x);
  c.ndim("slots", a.slots, 2);
  c.dtype("slots", a.slots, LS_I32);
  c.contiguous("slots", a.slots);
  c.size("x", a.x, 0, elements(a.slots), "choices of all tokens");
  if (a.weights.present) {
    c.ndim("weights", a.weights, 1);
    c.dtype("weights", a.weights, LS_F32);
    c.contiguous("weights", a.weights);
    c.size("weights", a.weights, 0, a.x.sizes[0], "rows of x");
  }
  c.ndim("y", a.y, 2);
  c.floating("y", a.y);
  c.contiguous_last("y", a.y);
  c.size("y", a.y, 0, a.slots.sizes[0], "tokens of slots");
  c.size("y", a.y, 1, a.x.sizes[1], "width of x");
  c.that(elements(a.y) == 0 || a.y.data != a.x.data, "y may not be x: it is written while that is read");
}

Cost cost_combine(const void *pointer) {
  const auto &a = *static_cast<const ls_combine_args *>(pointer);
  return {0, tensor_bytes(a.x) + tensor_bytes(a.slots) + tensor_bytes(a.y) * (a.accumulate ? 2 : 1)};
}

const RegisterOp register_combine({
    "combine",
    sizeof(ls_combine_args),
    {LS_FIELD(ls_combine_args, input, x), LS_FIELD(ls_combine_args, input, slots),
     LS_FIELD(ls_combine_args, optional_input, weights), LS_FIELD(ls_combine_args, inout, y),
     LS_FIELD(ls_combine_args, integer, accumulate)},
    check_combine,
    cost_combine,
    nullptr,
    nullptr,
    call_entry<ls_combine_args, &ls_backend::combine>,
});

}  // namespace

}  // namespace longseq
