// FlashAttention backward: delta where it is not given, then the kernels for the dtype and the head size.
#include "attention_entry.h"
#include "cudnn_attention.h"
#include "entries.h"

namespace longseq::cuda {

namespace {

constexpr int kWarps = 8;

LS_DEVICE float at(const HeadTensor &x, int64_t head, int64_t row, int column) {
  const int64_t place = head * x.head + row * x.row + column;
  return x.dtype == LS_BF16 ? to_float(static_cast<const bf16 *>(x.data)[place])
                            : static_cast<const float *>(x.data)[place];
}

// delta [N, Tq] = sum over D of dout * o: a warp a row. Reads both once.
__global__ void __launch_bounds__(kWarps * 32) delta_kernel(const AttentionParams p) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32, head = blockIdx.y;
  if (row >= p.queries) return;
  float sum = 0;
  for (int column = lane; column < p.d; column += 32)
    sum = __fmaf_rn(at(p.dout, head, row, column), at(p.o, head, row, column), sum);
#pragma unroll
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  if (lane == 0) p.delta[head * p.queries + row] = sum;
}

}  // namespace

// Our own kernels are deterministic whether asked for or not: no sum depends on timing. cuDNN is not asked then.
ls_status attention_backward(const ls_exec *exec, const ls_attention_backward_args *args) {
  ls_status taken = LS_OK;
  if (cudnn_attention_backward && cudnn_attention_backward(exec, args, &taken)) return taken;
  AttentionParams p;
  LS_TRY(common_params(exec, "attention_backward", args, &p));
  if (args->dout.dtype != args->q.dtype)
    return fail(exec, LS_UNSUPPORTED,
                "attention_backward: dout and q differ in dtype; the CUDA kernels take one for both");
  p.dout = head_tensor(args->dout);
  p.dq = head_tensor(args->dq);
  p.dk = head_tensor(args->dk);
  p.dv = head_tensor(args->dv);
  p.vectors = p.vectors && in_vectors(args->dout);
  p.accumulate_dq = args->accumulate_dq != 0;
  p.accumulate_dkv = args->accumulate_dkv != 0;
  p.delta = static_cast<float *>(args->delta.present ? args->delta.data : exec->workspace);
  if (p.heads == 0) return LS_OK;
  if (!args->delta.present && p.queries > 0) {
    const dim3 grid(static_cast<unsigned>(ceil_div(p.queries, kWarps)), static_cast<unsigned>(p.heads));
    LS_TRY((LS_LAUNCH((delta_kernel), grid, dim3(kWarps * 32), 0, exec, p)));
  }
  if (args->q.dtype == LS_F32) return attention_backward_float32(exec, p);
  if (p.cap != 0) {
#define LS_TAKE(size) \
  if (p.d <= size) return attention_capped_backward_d##size(exec, p);
    LS_CAPPED_ATTENTION_SIZES(LS_TAKE)
#undef LS_TAKE
  }
#define LS_TAKE(size) \
  if (p.d <= size) return attention_backward_d##size(exec, p);
  LS_ATTENTION_SIZES(LS_TAKE)
#undef LS_TAKE
  return fail(exec, LS_UNSUPPORTED, "attention_backward: head size %d; the CUDA kernels take up to 256", p.d);
}

}  // namespace longseq::cuda
