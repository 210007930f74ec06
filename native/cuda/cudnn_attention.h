// Attention on cuDNN: what the attention entries try before our own kernels.
#ifndef LONGSEQ_CUDA_CUDNN_ATTENTION_H
#define LONGSEQ_CUDA_CUDNN_ATTENTION_H

#include "longseq/backend.h"

namespace longseq::cuda {

// True: cuDNN took the call, and *status is the entry's answer. False: our own kernels are to run it, because cuDNN is
// not installed, refuses the case, or its plan wants more workspace than there is. Where the device was told `cudnn`,
// which forces cuDNN, what it refuses is taken with LS_UNSUPPORTED and the reason. Weak: a build without these has no
// cuDNN.
__attribute__((weak)) bool cudnn_attention(const ls_exec *exec, const ls_attention_args *args, ls_status *status);
__attribute__((weak)) bool cudnn_attention_backward(const ls_exec *exec, const ls_attention_backward_args *args,
                                                    ls_status *status);

}  // namespace longseq::cuda

#endif  // LONGSEQ_CUDA_CUDNN_ATTENTION_H
