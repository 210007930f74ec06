// One product as a vendor's GEMM takes it: gemm_cublaslt.cc on the GPU, a plain loop in the emulator.
#ifndef LONGSEQ_CUDA_GEMM_H
#define LONGSEQ_CUDA_GEMM_H

#include "matmul_tile.h"

namespace longseq::cuda {

// c = alpha * a . b [+ bias] [+ c if accumulate], `batch` times. Of a and b either the rows or the columns are
// contiguous; of c the rows. a and b have one dtype; c is float32, or bfloat16 like a and b; sums are float32.
struct Gemm {
  Matrix a, b, c;                                 // [M, K], [K, N], [M, N]
  int64_t batch = 1;                              // at least 1
  int64_t a_batch = 0, b_batch = 0, c_batch = 0;  // strides in elements; those of a and b may be 0
  const void *bias = nullptr;                     // [N] contiguous, of c's dtype, or NULL
  float alpha = 1;
  bool accumulate = false;
  void *workspace = nullptr;  // for the library, kGemmWorkspace bytes, aligned to 256
  int64_t workspace_bytes = 0;
};

ls_status gemm(const ls_exec *exec, const Gemm &g);

}  // namespace longseq::cuda

#endif  // LONGSEQ_CUDA_GEMM_H
