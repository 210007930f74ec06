// RMSNorm (Zhang and Sennrich, arXiv 1910.07467) and its backward. Bytes and FLOPs: norm.h.
#include "entries.h"
#include "norm.h"

namespace longseq::cuda {

ls_status rms_norm(const ls_exec *exec, const ls_rms_norm_args *args) {
  return norm_forward<false>(exec, args->x, args->weight, ls_tensor{}, args->y, args->eps);
}

ls_status rms_norm_backward(const ls_exec *exec, const ls_rms_norm_backward_args *args) {
  return norm_backward<false>(exec, args->x, args->weight, args->dy, args->dx, args->dweight, ls_tensor{}, args->eps,
                              args->accumulate_dx != 0);
}

}  // namespace longseq::cuda
