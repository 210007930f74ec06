// Philox4x32-10 (Salmon et al., SC 2011), sixteen blocks at a time.
#ifndef LONGSEQ_CPU_PHILOX_H
#define LONGSEQ_CPU_PHILOX_H

#include "simd.h"

namespace longseq::cpu::LS_ISA {

// The high and low halves of a * multiplier, lane by lane.
LS_INLINE void multiply_wide(i32x16 a, uint32_t multiplier, i32x16 &high, i32x16 &low) {
#if defined(__AVX512F__)
  const __m512i m = _mm512_set1_epi64(multiplier);
  const __m512i even = _mm512_mul_epu32(a.v, m), odd = _mm512_mul_epu32(_mm512_srli_epi64(a.v, 32), m);
  high = {_mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 32), odd)};
  low = {_mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64(odd, 32))};
#else
  const __m256i m = _mm256_set1_epi64x(multiplier);
  const __m256i even_a = _mm256_mul_epu32(a.a, m), odd_a = _mm256_mul_epu32(_mm256_srli_epi64(a.a, 32), m);
  const __m256i even_b = _mm256_mul_epu32(a.b, m), odd_b = _mm256_mul_epu32(_mm256_srli_epi64(a.b, 32), m);
  high = {_mm256_blend_epi32(_mm256_srli_epi64(even_a, 32), odd_a, 0xaa),
          _mm256_blend_epi32(_mm256_srli_epi64(even_b, 32), odd_b, 0xaa)};
  low = {_mm256_blend_epi32(even_a, _mm256_slli_epi64(odd_a, 32), 0xaa),
         _mm256_blend_epi32(even_b, _mm256_slli_epi64(odd_b, 32), 0xaa)};
#endif
}

// The four words of the blocks whose counters are (c0, c1, c2, c3), lane by lane.
LS_INLINE void philox(i32x16 c0, i32x16 c1, i32x16 c2, i32x16 c3, uint64_t seed, i32x16 (&word)[4]) {
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    i32x16 high0, low0, high1, low1;
    multiply_wide(c0, 0xd2511f53u, high0, low0);
    multiply_wide(c2, 0xcd9e8d57u, high1, low1);
    c0 = high1 ^ c1 ^ set1_i32(static_cast<int32_t>(k0));
    c1 = low1;
    c2 = high0 ^ c3 ^ set1_i32(static_cast<int32_t>(k1));
    c3 = low0;
    k0 += 0x9e3779b9u;
    k1 += 0xbb67ae85u;
  }
  word[0] = c0;
  word[1] = c1;
  word[2] = c2;
  word[3] = c3;
}

}  // namespace longseq::cpu::LS_ISA

#endif  // LONGSEQ_CPU_PHILOX_H
