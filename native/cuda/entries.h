// Declares the CUDA entries of the backend table; each lives in native/cuda/<op>.cu (or .cc, where it only calls
// libraries), and its file includes this header so that the two agree.
#ifndef LONGSEQ_CUDA_ENTRIES_H
#define LONGSEQ_CUDA_ENTRIES_H

#include "longseq/backend.h"

// Every op of the table, in its order.
#define LS_CUDA_OPS(X)   \
  X(matmul)              \
  X(rms_norm)            \
  X(rms_norm_backward)   \
  X(layer_norm)          \
  X(layer_norm_backward) \
  X(rope)                \
  X(swiglu)              \
  X(swiglu_backward)     \
  X(unary)               \
  X(unary_backward)      \
  X(binary)              \
  X(axpby)               \
  X(embedding)           \
  X(embedding_backward)  \
  X(route)               \
  X(route_backward)      \
  X(grouped_matmul)      \
  X(combine)             \
  X(row_dot)             \
  X(dropout)             \
  X(attention)           \
  X(attention_backward)  \
  X(attention_merge)     \
  X(cross_entropy)       \
  X(copy)                \
  X(fill)                \
  X(sum)                 \
  X(norm_squared)        \
  X(argmax)              \
  X(clip_factor)         \
  X(adamw_advance)       \
  X(adamw)               \
  X(random)              \
  X(quantize)            \
  X(dequantize)

namespace longseq::cuda {

// Weak: an op that no file of the build defines is NULL in the table, which the runtime reports as unsupported.
#define LS_DECLARE(op) __attribute__((weak)) ls_status op(const ls_exec *exec, const ls_##op##_args *args);
LS_CUDA_OPS(LS_DECLARE)
#undef LS_DECLARE

// Enqueues a copy of bytes from and to any memory of the device or of the pinned arena. (native/cuda/queue.cc)
ls_status copy_bytes(const ls_exec *exec, void *to, const void *from, int64_t bytes);

// Puts the ops into a table whose other fields are filled elsewhere.
void fill_table(ls_backend *table);

}  // namespace longseq::cuda

#endif  // LONGSEQ_CUDA_ENTRIES_H
