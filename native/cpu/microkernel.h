// The vector type of native width and the register-tile matrix product that matmul and attention are built from.
//
// Every element of a product is one chain of fused multiply-adds in ascending k, so its bits depend neither on the
// width of the vectors nor on the tile that holds it: AVX2 and AVX-512 agree bit for bit.
#ifndef LONGSEQ_CPU_MICROKERNEL_H
#define LONGSEQ_CPU_MICROKERNEL_H

#include "simd.h"

// Every loop over registers must be unrolled completely, or the accumulators would live in memory.
#define LS_UNROLL _Pragma("GCC unroll 32")
#define LS_LAMBDA_INLINE __attribute__((always_inline))

namespace longseq::cpu::LS_ISA {

#if defined(__AVX512F__)

struct Vec {
  static constexpr int kWidth = 16;
  __m512 v;
};

LS_INLINE Vec vec_zero() { return {_mm512_setzero_ps()}; }
LS_INLINE Vec vec_set(float x) { return {_mm512_set1_ps(x)}; }
LS_INLINE Vec vec_load(const float *p) { return {_mm512_loadu_ps(p)}; }
LS_INLINE void vec_store(float *p, Vec a) { _mm512_storeu_ps(p, a.v); }
LS_INLINE Vec vec_load(const float *p, int n) {
  return {_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p)};
}
LS_INLINE void vec_store(float *p, Vec a, int n) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), a.v);
}
LS_INLINE Vec vec_fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
LS_INLINE Vec vec_fnma(Vec a, Vec b, Vec c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }
LS_INLINE Vec vec_add(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
LS_INLINE Vec vec_sub(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
LS_INLINE Vec vec_mul(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
// b where a is NaN.
LS_INLINE Vec vec_max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
// 2^n for integral n in [-252, 254], in two factors so that results below the smallest normal number stay right.
LS_INLINE Vec vec_scale2(Vec x, Vec n) { return {_mm512_scalef_ps(x.v, n.v)}; }
LS_INLINE Vec vec_round(Vec a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
// Lanes whose number first + lane lies in [lo, hi) keep a, the others get b.
LS_INLINE Vec vec_keep_range(Vec a, Vec b, int32_t first, int32_t lo, int32_t hi) {
  const __m512i i = _mm512_add_epi32(_mm512_set1_epi32(first),
                                     _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
  const __mmask16 m =
      _mm512_cmpge_epi32_mask(i, _mm512_set1_epi32(lo)) & _mm512_cmplt_epi32_mask(i, _mm512_set1_epi32(hi));
  return {_mm512_mask_blend_ps(m, b.v, a.v)};
}
// Lanes with lo[lane] <= j < hi[lane] keep a, the others get b.
LS_INLINE Vec vec_keep_inside(Vec a, Vec b, int32_t j, const int32_t *lo, const int32_t *hi) {
  const __m512i i = _mm512_set1_epi32(j);
  const __mmask16 m =
      _mm512_cmpge_epi32_mask(i, _mm512_loadu_si512(lo)) & _mm512_cmplt_epi32_mask(i, _mm512_loadu_si512(hi));
  return {_mm512_mask_blend_ps(m, b.v, a.v)};
}
// Lanes where a is -infinity get b.
LS_INLINE Vec vec_replace_minus_infinity(Vec a, Vec b) {
  const __mmask16 m = _mm512_cmp_ps_mask(a.v, _mm512_set1_ps(-__builtin_inff()), _CMP_EQ_OQ);
  return {_mm512_mask_blend_ps(m, a.v, b.v)};
}
LS_INLINE Vec vec_load_bf16(const bf16 *p) {
  return {_mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p))), 16))};
}
// Rounds to nearest, ties to even; NaN stays NaN.
LS_INLINE void vec_store_bf16(bf16 *p, Vec a) {
  const __m512i x = _mm512_castps_si512(a.v);
  const __m512i lsb = _mm512_and_si512(_mm512_srli_epi32(x, 16), _mm512_set1_epi32(1));
  __m512i r = _mm512_add_epi32(x, _mm512_add_epi32(lsb, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  r = _mm512_mask_or_epi32(r, nan, x, _mm512_set1_epi32(0x400000));
  _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(r, 16)));
}

// The registers hold kRows x kPanel accumulators, the panel's two vectors and one broadcast.
inline constexpr int kRows = 14;

#else

struct Vec {
  static constexpr int kWidth = 8;
  __m256 v;
};

LS_INLINE __m256i first_lanes(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
LS_INLINE Vec vec_zero() { return {_mm256_setzero_ps()}; }
LS_INLINE Vec vec_set(float x) { return {_mm256_set1_ps(x)}; }
LS_INLINE Vec vec_load(const float *p) { return {_mm256_loadu_ps(p)}; }
LS_INLINE void vec_store(float *p, Vec a) { _mm256_storeu_ps(p, a.v); }
LS_INLINE Vec vec_load(const float *p, int n) { return {_mm256_maskload_ps(p, first_lanes(n))}; }
LS_INLINE void vec_store(float *p, Vec a, int n) { _mm256_maskstore_ps(p, first_lanes(n), a.v); }
LS_INLINE Vec vec_fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
LS_INLINE Vec vec_fnma(Vec a, Vec b, Vec c) { return {_mm256_fnmadd_ps(a.v, b.v, c.v)}; }
LS_INLINE Vec vec_add(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
LS_INLINE Vec vec_sub(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
LS_INLINE Vec vec_mul(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
LS_INLINE Vec vec_max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
LS_INLINE Vec vec_scale2(Vec x, Vec n) {
  // Two exact factors near 2^(n/2): the product rounds once, also where it is subnormal, as AVX-512's scalef does.
  const __m256i i = _mm256_cvtps_epi32(n.v);
  const __m256i half = _mm256_srai_epi32(i, 1);
  const __m256i rest = _mm256_sub_epi32(i, half);
  const __m256i bias = _mm256_set1_epi32(127);
  const __m256 f0 = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
  const __m256 f1 = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23));
  return {_mm256_mul_ps(_mm256_mul_ps(x.v, f0), f1)};
}
LS_INLINE Vec vec_round(Vec a) { return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
LS_INLINE Vec vec_keep_range(Vec a, Vec b, int32_t first, int32_t lo, int32_t hi) {
  const __m256i i = _mm256_add_epi32(_mm256_set1_epi32(first), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  const __m256i below = _mm256_cmpgt_epi32(_mm256_set1_epi32(lo), i);
  const __m256i inside = _mm256_andnot_si256(below, _mm256_cmpgt_epi32(_mm256_set1_epi32(hi), i));
  return {_mm256_blendv_ps(b.v, a.v, _mm256_castsi256_ps(inside))};
}
LS_INLINE Vec vec_keep_inside(Vec a, Vec b, int32_t j, const int32_t *lo, const int32_t *hi) {
  const __m256i i = _mm256_set1_epi32(j);
  const __m256i below = _mm256_cmpgt_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(lo)), i);
  const __m256i above = _mm256_cmpgt_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(hi)), i);
  return {_mm256_blendv_ps(b.v, a.v, _mm256_castsi256_ps(_mm256_andnot_si256(below, above)))};
}
LS_INLINE Vec vec_replace_minus_infinity(Vec a, Vec b) {
  return {_mm256_blendv_ps(a.v, b.v, _mm256_cmp_ps(a.v, _mm256_set1_ps(-__builtin_inff()), _CMP_EQ_OQ))};
}
LS_INLINE Vec vec_load_bf16(const bf16 *p) {
  return {_mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p))), 16))};
}
LS_INLINE void vec_store_bf16(bf16 *p, Vec a) {
  const __m256i x = _mm256_castps_si256(a.v);
  const __m256i lsb = _mm256_and_si256(_mm256_srli_epi32(x, 16), _mm256_set1_epi32(1));
  __m256i r = _mm256_add_epi32(x, _mm256_add_epi32(lsb, _mm256_set1_epi32(0x7fff)));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q));
  r = _mm256_blendv_epi8(r, _mm256_or_si256(x, _mm256_set1_epi32(0x400000)), nan);
  r = _mm256_srli_epi32(r, 16);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(r, r), 0x88);
  _mm_storeu_si128(reinterpret_cast<__m128i *>(p), _mm256_castsi256_si128(packed));
}

inline constexpr int kRows = 6;

#endif

// Columns of a register tile, and of a packed panel.
inline constexpr int kPanel = 2 * Vec::kWidth;

// 2^x for x <= 128, within 1 ulp; 0 below the subnormal numbers, -infinity included; NaN stays NaN.
LS_INLINE Vec vec_exp2(Vec x) {
  // max(constant, x) returns x where x is NaN.
  x = vec_max(vec_set(-151.0f), x);
  const Vec n = vec_round(x);
  const Vec r = vec_sub(x, n);  // exact, in [-1/2, 1/2]
  // Our minimax fit of 2^r on [-1/2, 1/2] with the constant term held at 1: relative error 3e-9.
  Vec p = vec_set(1.53293106e-4f);
  p = vec_fma(p, r, vec_set(1.33909704e-3f));
  p = vec_fma(p, r, vec_set(9.61849932e-3f));
  p = vec_fma(p, r, vec_set(5.55035956e-2f));
  p = vec_fma(p, r, vec_set(2.40226477e-1f));
  p = vec_fma(p, r, vec_set(6.93147182e-1f));
  p = vec_fma(p, r, vec_set(1.0f));
  return vec_scale2(p, n);
}

#if defined(__AVX512F__)
// out[k * stride + i] = rows[i][k]: a square of vectors, transposed.
LS_INLINE void transpose_store(const Vec (&rows)[16], float *out, int64_t stride) {
  __m512 t[16], u[16];
  LS_UNROLL
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(rows[i].v, rows[i + 1].v);
    t[i + 1] = _mm512_unpackhi_ps(rows[i].v, rows[i + 1].v);
  }
  LS_UNROLL
  for (int i = 0; i < 16; i += 4) {
    const __m512d a = _mm512_castps_pd(t[i]), b = _mm512_castps_pd(t[i + 1]);
    const __m512d c = _mm512_castps_pd(t[i + 2]), d = _mm512_castps_pd(t[i + 3]);
    u[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
    u[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
    u[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
    u[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
  }
  // u[4 g + j] holds, in its 128-bit quarter q, rows 4g..4g+3 of column 4q + j.
  LS_UNROLL
  for (int j = 0; j < 4; ++j) {
    const __m512 lo01 = _mm512_shuffle_f32x4(u[j], u[4 + j], 0x44), hi01 = _mm512_shuffle_f32x4(u[j], u[4 + j], 0xee);
    const __m512 lo23 = _mm512_shuffle_f32x4(u[8 + j], u[12 + j], 0x44);
    const __m512 hi23 = _mm512_shuffle_f32x4(u[8 + j], u[12 + j], 0xee);
    _mm512_storeu_ps(out + (0 + j) * stride, _mm512_shuffle_f32x4(lo01, lo23, 0x88));
    _mm512_storeu_ps(out + (4 + j) * stride, _mm512_shuffle_f32x4(lo01, lo23, 0xdd));
    _mm512_storeu_ps(out + (8 + j) * stride, _mm512_shuffle_f32x4(hi01, hi23, 0x88));
    _mm512_storeu_ps(out + (12 + j) * stride, _mm512_shuffle_f32x4(hi01, hi23, 0xdd));
  }
}
#else
LS_INLINE void transpose_store(const Vec (&rows)[8], float *out, int64_t stride) {
  __m256 t[8], u[8];
  LS_UNROLL
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(rows[i].v, rows[i + 1].v);
    t[i + 1] = _mm256_unpackhi_ps(rows[i].v, rows[i + 1].v);
  }
  LS_UNROLL
  for (int i = 0; i < 8; i += 4) {
    u[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    u[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
    u[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    u[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
  LS_UNROLL
  for (int j = 0; j < 4; ++j) {
    _mm256_storeu_ps(out + j * stride, _mm256_permute2f128_ps(u[j], u[4 + j], 0x20));
    _mm256_storeu_ps(out + (4 + j) * stride, _mm256_permute2f128_ps(u[j], u[4 + j], 0x31));
  }
}
#endif

// acc[r][j] = init + sum over t < k of a[r * kARow + t * kAStep] * b[t * kBStep + j * width ..]: the register tile.
// finish(r, j, value) takes the results. Strides are constants so that every load has an immediate offset.
template <int kR, int kV, int kARow, int kAStep, int kBStep, class Init, class Finish>
LS_INLINE void register_tile(int64_t k, const float *a, const float *b, Init init, Finish finish) {
  Vec acc[kR][kV];
  LS_UNROLL
  for (int r = 0; r < kR; ++r) {
    LS_UNROLL
    for (int j = 0; j < kV; ++j) acc[r][j] = init(r, j);
  }
  for (int64_t t = 0; t < k; ++t) {
    Vec bv[kV];
    LS_UNROLL
    for (int j = 0; j < kV; ++j) bv[j] = vec_load(b + j * Vec::kWidth);
    LS_UNROLL
    for (int r = 0; r < kR; ++r) {
      const Vec av = vec_set(a[r * kARow]);
      LS_UNROLL
      for (int j = 0; j < kV; ++j) acc[r][j] = vec_fma(av, bv[j], acc[r][j]);
    }
    a += kAStep;
    b += kBStep;
  }
  LS_UNROLL
  for (int r = 0; r < kR; ++r) {
    LS_UNROLL
    for (int j = 0; j < kV; ++j) finish(r, j, acc[r][j]);
  }
}

}  // namespace longseq::cpu::LS_ISA

#endif  // LONGSEQ_CPU_MICROKERNEL_H
