// Products of groups of rows, each with a matrix of its own: as many products as there are groups.
#include "gemm.h"
#include "kernels.h"

namespace longseq::cpu::LS_ISA {

ls_status grouped_matmul(const ls_exec *exec, const ls_grouped_matmul_args *args) {
  const ls_tensor &a = args->a, &b = args->b, &c = args->c;
  const int64_t groups = args->offsets.sizes[0] - 1;
  const int64_t *const offsets = static_cast<const int64_t *>(args->offsets.data);
  const bool by_rows = c.ndim == 2;
  const int64_t rows = by_rows ? a.sizes[0] : a.sizes[1];
  for (int64_t e = 0; e <= groups; ++e) {
    const int64_t least = e == 0 ? 0 : offsets[e - 1];
    if (offsets[e] < least || offsets[e] > rows || (e == 0 && offsets[e] != 0) || (e == groups && offsets[e] != rows))
      return fail(exec, LS_INVALID_ARGUMENT,
                  "grouped_matmul: offsets[%lld] is %lld; they must ascend from 0 to the %lld rows",
                  static_cast<long long>(e), static_cast<long long>(offsets[e]), static_cast<long long>(rows));
  }
  Problem whole{matrix_of(a), matrix_of(b), matrix_of(c), nullptr, 0, c.sizes[c.ndim - 1], 0, 1.0f, false};
  whole.accumulate = args->accumulate != 0;
  const auto group = [&](int64_t e) {
    Problem p = whole;
    const int64_t first = offsets[e], count = offsets[e + 1] - first;
    if (by_rows) {
      p.a.data += first * a.strides[0] * p.a.element_bytes();
      p.b.data += e * b.strides[0] * p.b.element_bytes();
      p.c.data += first * c.strides[0] * p.c.element_bytes();
      p.m = count;
      p.k = a.sizes[1];
    } else {
      p.a.data += first * a.strides[1] * p.a.element_bytes();
      p.b.data += first * b.strides[0] * p.b.element_bytes();
      p.c.data += e * c.strides[0] * p.c.element_bytes();
      p.m = c.sizes[1];
      p.k = count;
      // Nothing is added to what is there.
      if (count == 0 && p.accumulate) p.m = 0;
    }
    return p;
  };
  // Many small groups: one a thread at a time. Their number and the rows of all decide, not how they fell.
  const int64_t inner = by_rows ? a.sizes[1] : c.sizes[1];
  const bool small = groups >= 4 * exec->threads && rows / groups * max_of(inner, 1) * whole.n < (int64_t{1} << 24);
  bool ok = true;
  if (small) {
    parallel_for(exec, groups, 1, [&](int64_t begin, int64_t end) {
      for (int64_t e = begin; e < end; ++e)
        if (!multiply(nullptr, group(e))) __atomic_store_n(&ok, false, __ATOMIC_RELAXED);
    });
  } else {
    for (int64_t e = 0; e < groups && ok; ++e) ok = multiply(exec, group(e));
  }
  return ok ? LS_OK
            : fail(exec, LS_OUT_OF_MEMORY, "grouped_matmul: the system gives no memory for a thread's packed panels");
}

}  // namespace longseq::cpu::LS_ISA
