// Arguments, checks and cost of dropout.
#include "runtime/op.h"

namespace longseq {

namespace {

void check_dropout(const void *pointer) {
  const auto &a = *static_cast<const ls_dropout_args *>(pointer);
  const Check c("dropout");
  c.ndim("x", a.x, 2);
  c.floating("x", a.x);
  c.contiguous_last("x", a.x);
  c.ndim("rows", a.rows, 1);
  c.dtype("rows", a.rows, LS_I64);
  c.contiguous("rows", a.rows);
  c.size("rows", a.rows, 0, a.x.sizes[0], "rows of x");
  c.same_shape("y", a.y, "x", a.x);
  c.floating("y", a.y);
  c.contiguous_last("y", a.y);
  c.that(a.rate >= 0 && a.rate < 1, "rate is " + std::to_string(a.rate) + ", expected a number from 0 to below 1");
  c.that(a.stream >= 0 && a.stream <= 0xffffffffll,
         "stream is " + std::to_string(a.stream) + ", expected a whole number from 0 to 2^32 - 1");
  c.that(a.first >= 0 && (a.first + a.x.sizes[1]) / 4 <= 0xffffffffll,
         "first is " + std::to_string(a.first) + ", expected the number of a column, from 0");
}

Cost cost_dropout(const void *pointer) {
  const auto &a = *static_cast<const ls_dropout_args *>(pointer);
  return {0, tensor_bytes(a.x) + tensor_bytes(a.rows) + tensor_bytes(a.y) * (a.accumulate ? 2 : 1)};
}

const RegisterOp register_dropout({
    "dropout",
    sizeof(ls_dropout_args),
    {LS_FIELD(ls_dropout_args, input, x), LS_FIELD(ls_dropout_args, input, rows), LS_FIELD(ls_dropout_args, inout, y),
     LS_FIELD(ls_dropout_args, number, rate), LS_FIELD(ls_dropout_args, integer, seed),
     LS_FIELD(ls_dropout_args, integer, stream), LS_FIELD(ls_dropout_args, integer, first),
     LS_FIELD(ls_dropout_args, integer, accumulate)},
    check_dropout,
    cost_dropout,
    nullptr,
    nullptr,
    call_entry<ls_dropout_args, &ls_backend::dropout>,
});

}  // namespace

}  // namespace longseq
