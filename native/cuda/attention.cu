// FlashAttention forward: chooses the kernel for the dtype and the head size.
#include "attention_entry.h"
#include "cudnn_attention.h"
#include "entries.h"

namespace longseq::cuda {

ls_status attention(const ls_exec *exec, const ls_attention_args *args) {
  ls_status taken = LS_OK;
  if (cudnn_attention && cudnn_attention(exec, args, &taken)) return taken;
  AttentionParams p;
  LS_TRY(common_params(exec, "attention", args, &p));
  if (p.queries == 0 || p.heads == 0) return LS_OK;
  if (args->q.dtype == LS_F32) return attention_float32(exec, p);
  if (p.cap != 0) {
#define LS_TAKE(size) \
  if (p.d <= size) return attention_capped_d##size(exec, p);
    LS_CAPPED_ATTENTION_SIZES(LS_TAKE)
#undef LS_TAKE
  }
#define LS_TAKE(size) \
  if (p.d <= size) return attention_d##size(exec, p);
  LS_ATTENTION_SIZES(LS_TAKE)
#undef LS_TAKE
  return fail(exec, LS_UNSUPPORTED, "attention: head size %d; the CUDA kernels take up to 256", p.d);
}

}  // namespace longseq::cuda
