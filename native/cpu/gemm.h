// The product of two strided matrices behind matmul and grouped_matmul.
#ifndef LONGSEQ_CPU_GEMM_H
#define LONGSEQ_CPU_GEMM_H

#include "kernels.h"
#include "simd.h"

namespace longseq::cpu::LS_ISA {

// A strided matrix of float32 or bfloat16.
struct Matrix {
  char *data;
  bool half;
  int64_t row, column;  // strides in elements

  int64_t element_bytes() const { return half ? 2 : 4; }
  char *at(int64_t i, int64_t j) const { return data + (i * row + j * column) * element_bytes(); }
  float load(int64_t i, int64_t j) const {
    const char *p = at(i, j);
    return half ? to_float(*reinterpret_cast<const bf16 *>(p)) : *reinterpret_cast<const float *>(p);
  }
  void store(int64_t i, int64_t j, float x) const {
    char *p = at(i, j);
    if (half) {
      *reinterpret_cast<bf16 *>(p) = to_bf16(x);
    } else {
      *reinterpret_cast<float *>(p) = x;
    }
  }
};

// c[M, N] = alpha * a[M, K] . b[K, N] + base, base = bias and/or c.
struct Problem {
  Matrix a, b, c;
  const Matrix *bias;  // one row, or NULL
  int64_t m, n, k;
  float alpha;
  bool accumulate;
};

// The last two dims of a tensor, at its first element.
inline Matrix matrix_of(const ls_tensor &t) {
  return {static_cast<char *>(t.data), t.dtype == LS_BF16, t.strides[t.ndim - 2], t.strides[t.ndim - 1]};
}

// Below this many multiply-adds the threads are not worth waking.
constexpr int64_t kSerialWork = int64_t{1} << 19;

// Runs it on the pool, or here where exec is NULL. False where the system gives no memory for packed panels.
// (native/cpu/matmul.cc)
bool multiply(const ls_exec *exec, Problem p);

}  // namespace longseq::cpu::LS_ISA

#endif  // LONGSEQ_CPU_GEMM_H
