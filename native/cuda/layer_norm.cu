// LayerNorm (Ba et al., arXiv 1607.06450) and its backward. Bytes and FLOPs: norm.h.
#include "entries.h"
#include "norm.h"

namespace longseq::cuda {

ls_status layer_norm(const ls_exec *exec, const ls_layer_norm_args *args) {
  return norm_forward<true>(exec, args->x, args->weight, args->bias, args->y, args->eps);
}

ls_status layer_norm_backward(const ls_exec *exec, const ls_layer_norm_backward_args *args) {
  return norm_backward<true>(exec, args->x, args->weight, args->dy, args->dx, args->dweight, args->dbias, args->eps,
                             args->accumulate_dx != 0);
}

}  // namespace longseq::cuda
