// The gradient norm, the factor that clips it, and whether the step is finite, all as device scalars.
#include "kernels.h"

namespace longseq::cpu::LS_ISA {

ls_status clip_factor(const ls_exec *, const ls_clip_factor_args *args) {
  const double norm = __builtin_sqrt(*static_cast<const double *>(args->total.data));
  const double max_norm = args->max_norm;
  double factor = 1;
  if (max_norm > 0) {
    factor = max_norm / (norm + 1e-6);
    if (factor > 1) factor = 1;  // a NaN stays one
  }
  bool finite = norm - norm == 0;
  if (args->loss.present) {
    const double loss = *static_cast<const double *>(args->loss.data);
    finite = finite && loss - loss == 0;
  }
  *static_cast<double *>(args->norm.data) = norm;
  *static_cast<double *>(args->factor.data) = factor;
  *static_cast<int64_t *>(args->finite.data) = finite ? 1 : 0;
  return LS_OK;
}

}  // namespace longseq::cpu::LS_ISA
