// Arguments, checks, cost and workspace of matmul.
#include "runtime/op.h"
#include "runtime/ops/matmul_plan.h"

namespace longseq {

namespace {

void check_matmul(const void *pointer) {
  const auto &a = *static_cast<const ls_matmul_args *>(pointer);
  const Check c("matmul");
  c.that(a.a.ndim >= 2 && a.a.ndim <= 4, "a has shape " + shape_text(a.a.sizes, a.a.ndim) + ", expected 2 to 4 dims");
  c.ndim("b", a.b, a.a.ndim);
  c.ndim("c", a.c, a.a.ndim);
  c.floating("a", a.a);
  c.floating("b", a.b);
  c.floating("c", a.c);
  const int32_t m = a.a.ndim - 2, n = a.a.ndim - 1;
  for (int32_t i = 0; i < m; ++i) {
    c.size("b", a.b, i, a.a.sizes[i], "batch of a");
    c.size("c", a.c, i, a.a.sizes[i], "batch of a");
  }
  if (a.a.sizes[n] != a.b.sizes[m])
    c.fail("inner sizes differ: a is " + shape_text(a.a.sizes, a.a.ndim) + ", b is " + shape_text(a.b.sizes, a.b.ndim));
  c.size("c", a.c, m, a.a.sizes[m], "rows of a");
  c.size("c", a.c, n, a.b.sizes[n], "columns of b");
  c.that(elements(a.c) == 0 || (a.c.data != a.a.data && a.c.data != a.b.data),
         "c may not be a or b: it is written while they are read");
  if (a.bias.present) {
    c.ndim("bias", a.bias, 1);
    c.floating("bias", a.bias);
    c.size("bias", a.bias, 0, a.b.sizes[n], "columns of b");
  }
}

Cost cost_matmul(const void *pointer) {
  const auto &a = *static_cast<const ls_matmul_args *>(pointer);
  const int32_t n = a.a.ndim - 1;
  return {2.0 * static_cast<double>(elements(a.c)) * static_cast<double>(a.a.sizes[n]),
          tensor_bytes(a.a) + tensor_bytes(a.b) + tensor_bytes(a.c) * (a.accumulate ? 2 : 1)};
}

int64_t workspace_matmul(const void *pointer, const Profile &profile) {
  const auto &a = *static_cast<const ls_matmul_args *>(pointer);
  return profile.cuda && elements(a.c) > 0 ? plan_matmul(a).workspace() : 0;
}

const RegisterOp register_matmul({
    "matmul",
    sizeof(ls_matmul_args),
    {LS_FIELD(ls_matmul_args, input, a), LS_FIELD(ls_matmul_args, input, b), LS_FIELD(ls_matmul_args, inout, c),
     LS_FIELD(ls_matmul_args, optional_input, bias), LS_FIELD(ls_matmul_args, number, alpha),
     LS_FIELD(ls_matmul_args, integer, accumulate)},
    check_matmul,
    cost_matmul,
    workspace_matmul,
    nullptr,
    call_entry<ls_matmul_args, &ls_backend::matmul>,
});

}  // namespace

}  // namespace longseq
