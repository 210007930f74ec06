// Philox4x32-10 (Salmon et al., SC 2011).
#ifndef LONGSEQ_CUDA_PHILOX_H
#define LONGSEQ_CUDA_PHILOX_H

#include "common.h"

namespace longseq::cuda {

struct PhiloxWords {
  uint32_t at[4];
};

// The block of a counter, lowest word first.
LS_DEVICE PhiloxWords philox(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint64_t seed) {
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint32_t high0 = __umulhi(c0, 0xd2511f53u), low0 = c0 * 0xd2511f53u;
    const uint32_t high1 = __umulhi(c2, 0xcd9e8d57u), low1 = c2 * 0xcd9e8d57u;
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 += 0x9e3779b9u;
    k1 += 0xbb67ae85u;
  }
  return {{c0, c1, c2, c3}};
}

}  // namespace longseq::cuda

#endif  // LONGSEQ_CUDA_PHILOX_H
