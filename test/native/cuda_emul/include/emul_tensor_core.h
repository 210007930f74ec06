// Tensor cores and asynchronous copies by their fragment layouts in the PTX manual (native/cuda/tensor_core.h says what
// each function does).
#ifndef LONGSEQ_CUDA_EMUL_TENSOR_CORE_H
#define LONGSEQ_CUDA_EMUL_TENSOR_CORE_H

#include "cuda/common.h"
#include "emul_device.h"

namespace emul {

struct LoadMatrix {
  const void *row;
  uint32_t *fragment;
};

// Lane 8 i + r points at row r of matrix i; lane l gets of each matrix the values (l / 4, 2 (l % 4)) and its right
// neighbour, or of the transposed matrix.
template <bool kTransposed>
void complete_ldmatrix(void *const *operands, unsigned mask) {
  if (mask != 0xffffffffu) die("ldmatrix needs all lanes of a warp, got %08x", mask);
  for (int i = 0; i < 4; ++i) {
    uint16_t matrix[8][8];
    for (int r = 0; r < 8; ++r) {
      const void *const row = static_cast<LoadMatrix *>(operands[8 * i + r])->row;
      if (reinterpret_cast<uintptr_t>(row) % 16 != 0)
        die("ldmatrix: the row of lane %d is not aligned to 16 bytes", 8 * i + r);
      memcpy(matrix[r], row, 16);
    }
    for (int l = 0; l < kWarp; ++l) {
      const int r = l / 4, c = l % 4 * 2;
      const uint32_t low = kTransposed ? matrix[c][r] : matrix[r][c];
      const uint32_t high = kTransposed ? matrix[c + 1][r] : matrix[r][c + 1];
      static_cast<LoadMatrix *>(operands[l])->fragment[i] = low | high << 16;
    }
  }
}

struct Mma {
  float *c;
  const uint32_t *a;
  uint32_t b[2];
};

inline float low_half(uint32_t pair) { return std::bit_cast<float>(pair << 16); }
inline float high_half(uint32_t pair) { return std::bit_cast<float>(pair & 0xffff0000u); }

inline void complete_mma(void *const *operands, unsigned mask) {
  if (mask != 0xffffffffu) die("mma.sync needs all lanes of a warp, got %08x", mask);
  float a[16][16], b[16][8];
  for (int l = 0; l < kWarp; ++l) {
    const auto *one = static_cast<Mma *>(operands[l]);
    const int g = l / 4, t = l % 4 * 2;
    for (int i = 0; i < 4; ++i) {
      const int row = g + i % 2 * 8, k = t + i / 2 * 8;
      a[row][k] = low_half(one->a[i]);
      a[row][k + 1] = high_half(one->a[i]);
    }
    for (int i = 0; i < 2; ++i) {
      b[t + 8 * i][g] = low_half(one->b[i]);
      b[t + 8 * i + 1][g] = high_half(one->b[i]);
    }
  }
  float c[16][8] = {};
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < 16; ++k)
      for (int n = 0; n < 8; ++n) c[row][n] += a[row][k] * b[k][n];
  for (int l = 0; l < kWarp; ++l) {
    float *const mine = static_cast<Mma *>(operands[l])->c;
    const int g = l / 4, t = l % 4 * 2;
    for (int i = 0; i < 4; ++i) mine[i] += c[g + i / 2 * 8][t + i % 2];
  }
}

}  // namespace emul

namespace longseq::cuda {

inline void cp_async_16(void *shared, const void *global, bool inside) {
  if (reinterpret_cast<uintptr_t>(shared) % 16 != 0 || (inside && reinterpret_cast<uintptr_t>(global) % 16 != 0))
    emul::die("cp.async: an address is not aligned to 16 bytes");
  emul::async_copy(shared, global, 16, inside ? 16 : 0);
}
inline void cp_async_4(void *shared, const void *global, bool inside) {
  if (reinterpret_cast<uintptr_t>(shared) % 4 != 0 || (inside && reinterpret_cast<uintptr_t>(global) % 4 != 0))
    emul::die("cp.async: an address is not aligned to 4 bytes");
  emul::async_copy(shared, global, 4, inside ? 4 : 0);
}
inline void cp_async_commit() { emul::async_commit(); }
template <int Remaining>
void cp_async_wait() {
  emul::async_wait(Remaining);
}

inline void ldmatrix_x4(uint32_t (&fragment)[4], const void *row) {
  emul::LoadMatrix one{row, fragment};
  emul::collective(0xffffffffu, &one, emul::complete_ldmatrix<false>);
}
inline void ldmatrix_x4_transposed(uint32_t (&fragment)[4], const void *row) {
  emul::LoadMatrix one{row, fragment};
  emul::collective(0xffffffffu, &one, emul::complete_ldmatrix<true>);
}

inline void mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emul::Mma one{c, a, {b0, b1}};
  emul::collective(0xffffffffu, &one, emul::complete_mma);
}

inline uint32_t pack_bf16(float low, float high) {
  return static_cast<uint32_t>(from_float<bf16>(low).bits) | static_cast<uint32_t>(from_float<bf16>(high).bits) << 16;
}

inline float exp2_fast(float x) { return exp2f(x); }

}  // namespace longseq::cuda

#endif  // LONGSEQ_CUDA_EMUL_TENSOR_CORE_H
