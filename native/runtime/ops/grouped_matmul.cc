// Arguments, checks and cost of grouped_matmul: rows in groups, each with a matrix of its own.
#include "runtime/op.h"

namespace longseq {

namespace {

void check_grouped_matmul(const void *pointer) {
  const auto &a = *static_cast<const ls_grouped_matmul_args *>(pointer);
  const Check c("grouped_matmul");
  c.ndim("a", a.a, 2);
  c.floating("a", a.a);
  c.floating("b", a.b);
  c.floating("c", a.c);
  c.ndim("offsets", a.offsets, 1);
  c.dtype("offsets", a.offsets, LS_I64);
  c.contiguous("offsets", a.offsets);
  c.that(a.offsets.sizes[0] >= 2, "offsets has shape " + shape_text(a.offsets.sizes, 1) + ", expected groups + 1");
  const int64_t groups = a.offsets.sizes[0] - 1;
  if (a.c.ndim == 2) {
    c.ndim("b", a.b, 3);
    c.size("b", a.b, 0, groups, "groups of offsets");
    c.size("b", a.b, 1, a.a.sizes[1], "columns of a");
    c.size("c", a.c, 0, a.a.sizes[0], "rows of a");
    c.size("c", a.c, 1, a.b.sizes[2], "columns of b");
  } else {
    c.ndim("c", a.c, 3);
    c.ndim("b", a.b, 2);
    c.size("b", a.b, 0, a.a.sizes[1], "columns of a");
    c.size("c", a.c, 0, groups, "groups of offsets");
    c.size("c", a.c, 1, a.a.sizes[0], "rows of a");
    c.size("c", a.c, 2, a.b.sizes[1], "columns of b");
  }
  c.that(elements(a.c) == 0 || (a.c.data != a.a.data && a.c.data != a.b.data),
         "c may not be a or b: it is written while they are read");
}

// Each row of M meets one matrix, whichever.
Cost cost_grouped_matmul(const void *pointer) {
  const auto &a = *static_cast<const ls_grouped_matmul_args *>(pointer);
  const double columns = static_cast<double>(a.b.sizes[a.b.ndim - 1]);
  return {2.0 * static_cast<double>(elements(a.a)) * columns,
          tensor_bytes(a.a) + tensor_bytes(a.b) + tensor_bytes(a.c) * (a.accumulate ? 2 : 1)};
}

const RegisterOp register_grouped_matmul({
    "grouped_matmul",
    sizeof(ls_grouped_matmul_args),
    {LS_FIELD(ls_grouped_matmul_args, input, a), LS_FIELD(ls_grouped_matmul_args, input, b),
     LS_FIELD(ls_grouped_matmul_args, inout, c), LS_FIELD(ls_grouped_matmul_args, input, offsets),
     LS_FIELD(ls_grouped_matmul_args, integer, accumulate)},
    check_grouped_matmul,
    cost_grouped_matmul,
    nullptr,
    nullptr,
    call_entry<ls_grouped_matmul_args, &ls_backend::grouped_matmul>,
});

}  // namespace

}  // namespace longseq
