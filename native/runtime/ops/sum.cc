// Arguments, checks and cost of sum.
#include "runtime/op.h"

namespace longseq {

namespace {

void check_sum(const void *pointer) {
  const auto &a = *static_cast<const ls_sum_args *>(pointer);
  const Check c("sum");
  c.that(is_float(a.x) || a.x.dtype == LS_F64,
         std::string("x is ") + dtype_name(a.x.dtype) + ", expected a floating type");
  c.that(is_float(a.y) || a.y.dtype == LS_F64,
         std::string("y is ") + dtype_name(a.y.dtype) + ", expected a floating type");
  c.ndim("y", a.y, a.x.ndim);
  for (int32_t i = 0; i < a.x.ndim; ++i)
    if (a.y.sizes[i] != 1) c.size("y", a.y, i, a.x.sizes[i], "x, or 1 where it is summed");
}

Cost cost_sum(const void *pointer) {
  const auto &a = *static_cast<const ls_sum_args *>(pointer);
  return {0, tensor_bytes(a.x) + tensor_bytes(a.y)};
}

int64_t workspace_sum(const void *pointer, const Profile &profile) {
  const auto &a = *static_cast<const ls_sum_args *>(pointer);
  // Partial sums in float64, at most 64 a result (on a GPU 1024, 2^20 in all), where few results have many terms.
  const int64_t results = elements(a.y);
  if (results == 0 || results > 16384) return 0;
  const int64_t most = profile.cuda ? std::min<int64_t>(1024, (int64_t{1} << 20) / results) : 64;
  const int64_t pieces = std::min(most, elements(a.x) / results / 4096);
  return pieces > 1 ? pieces * results * 8 : 0;
}

const RegisterOp register_sum({
    "sum",
    sizeof(ls_sum_args),
    {LS_FIELD(ls_sum_args, input, x), LS_FIELD(ls_sum_args, inout, y), LS_FIELD(ls_sum_args, number, alpha),
     LS_FIELD(ls_sum_args, integer, accumulate)},
    check_sum,
    cost_sum,
    workspace_sum,
    nullptr,
    call_entry<ls_sum_args, &ls_backend::sum>,
});

}  // namespace

}  // namespace longseq
