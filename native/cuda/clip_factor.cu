// The gradient norm, the factor that clips it, and whether the step is finite, all as device scalars: one thread.
#include "entries.h"
#include "launch.h"

namespace longseq::cuda {

namespace {

__global__ void clip_factor_kernel(const double *total, const double *loss, double max_norm, double *norm,
                                   double *factor, int64_t *finite) {
  const double root = sqrt(*total);
  double clip = 1;
  if (max_norm > 0) {
    clip = max_norm / (root + 1e-6);
    if (clip > 1) clip = 1;  // a NaN stays one
  }
  bool is_finite = root - root == 0;
  if (loss != nullptr) is_finite = is_finite && *loss - *loss == 0;
  *norm = root;
  *factor = clip;
  *finite = is_finite ? 1 : 0;
}

}  // namespace

ls_status clip_factor(const ls_exec *exec, const ls_clip_factor_args *args) {
  return LS_LAUNCH(clip_factor_kernel, 1, 1, 0, exec, static_cast<const double *>(args->total.data),
                   static_cast<const double *>(args->loss.present ? args->loss.data : nullptr), args->max_norm,
                   static_cast<double *>(args->norm.data), static_cast<double *>(args->factor.data),
                   static_cast<int64_t *>(args->finite.data));
}

}  // namespace longseq::cuda
