// Declares the CPU entries of one instruction set, and the few helpers that its op files share.
//
// Each entry has the signature of the table in longseq/backend.h and lives in native/cpu/<op>.cc, which is compiled
// once with -DLS_ISA=avx2 and once with -DLS_ISA=avx512.
#ifndef LONGSEQ_CPU_KERNELS_H
#define LONGSEQ_CPU_KERNELS_H

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "longseq/backend.h"

#ifndef LS_ISA
#error "compile with -DLS_ISA=avx2 or -DLS_ISA=avx512"
#endif

// Every op of the table, in its order.
#define LS_CPU_OPS(X)    \
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

namespace longseq::cpu::LS_ISA {

#define LS_DECLARE(op) ls_status op(const ls_exec *exec, const ls_##op##_args *args);
LS_CPU_OPS(LS_DECLARE)
#undef LS_DECLARE

// Puts this instruction set's entries into a table whose other fields are filled elsewhere.
void fill_table(ls_backend *table);

// Runs body(begin, end) over pieces of `grain` items; body is any callable and must not depend on the thread.
template <typename Body>
inline void parallel_for(const ls_exec *exec, int64_t items, int64_t grain, const Body &body) {
  if (items <= 0) return;
  if (items <= grain) {
    body(static_cast<int64_t>(0), items);
    return;
  }
  exec->parallel(
      exec, items, grain,
      [](void *context, int64_t begin, int64_t end) { (*static_cast<const Body *>(context))(begin, end); },
      const_cast<void *>(static_cast<const void *>(&body)));
}

// Writes one line into exec->error and gives the status back.
__attribute__((format(printf, 3, 4))) inline ls_status fail(const ls_exec *exec, ls_status status, const char *format,
                                                            ...) {
  if (exec->error != nullptr && exec->error_size > 0) {
    va_list values;
    va_start(values, format);
    vsnprintf(exec->error, exec->error_size, format, values);
    va_end(values);
  }
  return status;
}

inline int64_t element_count(const ls_tensor &x) {
  int64_t count = 1;
  for (int32_t d = 0; d < x.ndim; ++d) count *= x.sizes[d];
  return count;
}

inline int64_t element_bytes(int32_t dtype) {
  switch (dtype) {
    case LS_F64:
    case LS_I64:
      return 8;
    case LS_F32:
    case LS_I32:
      return 4;
    case LS_BF16:
      return 2;
    default:
      return 1;
  }
}

// True where the elements lie row-major without holes (dims of size 1 may have any stride).
inline bool is_contiguous(const ls_tensor &x) {
  int64_t expected = 1;
  for (int32_t d = x.ndim - 1; d >= 0; --d) {
    if (x.sizes[d] == 0) return true;
    if (x.sizes[d] != 1 && x.strides[d] != expected) return false;
    expected *= x.sizes[d];
  }
  return true;
}

}  // namespace longseq::cpu::LS_ISA

#endif  // LONGSEQ_CPU_KERNELS_H
