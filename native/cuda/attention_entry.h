// From the table's attention arguments to those of the kernels.
#ifndef LONGSEQ_CUDA_ATTENTION_ENTRY_H
#define LONGSEQ_CUDA_ATTENTION_ENTRY_H

#include "attention_tile.h"

namespace longseq::cuda {

inline HeadTensor head_tensor(const ls_tensor &x) { return {x.data, x.strides[0], x.strides[1], x.dtype}; }

// Whether 16-byte copies can fetch the rows of x.
inline bool in_vectors(const ls_tensor &x) {
  return is_aligned(x.data) && x.strides[0] % 8 == 0 && x.strides[1] % 8 == 0;
}

// What forward and backward have in common. LS_UNSUPPORTED, with what is supported, for what no kernel takes.
template <class Args>
ls_status common_params(const ls_exec *exec, const char *op, const Args *args, AttentionParams *p) {
  const auto limit = int64_t{1} << 31;
  if (args->q.sizes[0] >= limit || args->k.sizes[0] >= limit)
    return fail(exec, LS_UNSUPPORTED, "%s: %lld queries and %lld keys; the CUDA kernels take fewer than 2^31", op,
                static_cast<long long>(args->q.sizes[0]), static_cast<long long>(args->k.sizes[0]));
  if (args->q.sizes[1] > 65535)
    return fail(exec, LS_UNSUPPORTED, "%s: %lld heads; the CUDA kernels take up to 65535", op,
                static_cast<long long>(args->q.sizes[1]));
  if (args->k.dtype != args->q.dtype || args->v.dtype != args->q.dtype)
    return fail(exec, LS_UNSUPPORTED,
                "%s: q, k and v differ in dtype; the CUDA kernels take float32 or bfloat16 for all", op);
  *p = {};
  p->q = head_tensor(args->q);
  p->k = head_tensor(args->k);
  p->v = head_tensor(args->v);
  p->o = head_tensor(args->o);
  p->lse = static_cast<float *>(args->lse.data);
  p->cu_seqlens = args->cu_seqlens.present ? static_cast<const int64_t *>(args->cu_seqlens.data) : nullptr;
  p->documents = args->cu_seqlens.present ? args->cu_seqlens.sizes[0] - 1 : 0;
  p->queries = args->q.sizes[0];
  p->keys = args->k.sizes[0];
  p->q_offset = args->q_offset;
  p->k_offset = args->k_offset;
  p->window = args->window;
  p->heads = static_cast<int32_t>(args->q.sizes[1]);
  p->group = static_cast<int32_t>(args->q.sizes[1] / args->k.sizes[1]);
  p->d = static_cast<int32_t>(args->q.sizes[2]);
  p->causal = args->causal != 0;
  p->vectors = p->d % 8 == 0 && in_vectors(args->q) && in_vectors(args->k) && in_vectors(args->v);
  p->scale = static_cast<float>(args->scale);
  // tanh is odd: the sign does not count. With a scale of 0 every score is 0, capped or not.
  p->cap = args->softcap == 0 || args->scale == 0 ? 0.0f : static_cast<float>(args->softcap / args->scale);
  return LS_OK;
}

}  // namespace longseq::cuda

#endif  // LONGSEQ_CUDA_ATTENTION_ENTRY_H
