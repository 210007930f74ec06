// Sixteen float32 (or eight float64) lanes with one meaning on AVX2 and AVX-512, and the vector functions built on
// them.
//
// Every operation is either exact, one IEEE rounding, or spelled out here in a fixed order (explicit fma, fixed
// reduction trees), so both instruction sets give the same bits. Included only by files that are compiled once per
// instruction set: everything lives in that set's namespace and nothing comes from the C++ library, whose inline
// functions would otherwise be shared between object files built with different flags.
#ifndef LONGSEQ_CPU_SIMD_H
#define LONGSEQ_CPU_SIMD_H

// g++ 12 takes the undefined operand inside its own AVX-512 intrinsics for a mistake of the caller.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#ifndef LS_ISA
#error "compile with -DLS_ISA=avx2 or -DLS_ISA=avx512"
#endif

#define LS_INLINE inline __attribute__((always_inline))

namespace longseq::cpu::LS_ISA {

// Storage of one bfloat16.
struct bf16 {
  uint16_t bits;
};

// ---- scalars ----

LS_INLINE float bits_to_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

LS_INLINE uint32_t float_to_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return bits;
}

// Exact.
LS_INLINE float to_float(float value) { return value; }
LS_INLINE float to_float(bf16 value) { return bits_to_float(static_cast<uint32_t>(value.bits) << 16); }

// Rounds to nearest even; a NaN stays a (quiet) NaN.
LS_INLINE bf16 to_bf16(float value) {
  const uint32_t bits = float_to_bits(value);
  if (value != value) return bf16{static_cast<uint16_t>((bits >> 16) | 0x40)};
  return bf16{static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

LS_INLINE void store_scalar(float *p, float value) { *p = value; }
LS_INLINE void store_scalar(bf16 *p, float value) { *p = to_bf16(value); }

LS_INLINE int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
LS_INLINE int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }
LS_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// ---- f32x16, mask16, i32x16, f64x8 ----

#if defined(__AVX512F__)

struct f32x16 {
  __m512 v;
};
struct i32x16 {
  __m512i v;
};
struct mask16 {
  __mmask16 m;
};
struct f64x8 {
  __m512d v;
};
struct i64x8 {
  __m512i v;
};

LS_INLINE __mmask16 tail_bits(int64_t n) { return static_cast<__mmask16>((1u << n) - 1); }

LS_INLINE f32x16 set1(float x) { return {_mm512_set1_ps(x)}; }
LS_INLINE f32x16 zero() { return {_mm512_setzero_ps()}; }
LS_INLINE f32x16 load(const float *p) { return {_mm512_loadu_ps(p)}; }
LS_INLINE f32x16 load(const float *p, int64_t n) { return {_mm512_maskz_loadu_ps(tail_bits(n), p)}; }
LS_INLINE void store(float *p, f32x16 a) { _mm512_storeu_ps(p, a.v); }
LS_INLINE void store(float *p, f32x16 a, int64_t n) { _mm512_mask_storeu_ps(p, tail_bits(n), a.v); }
// Past the caches; p must be 64-byte aligned. Follow a run of these by stream_fence().
LS_INLINE void stream(float *p, f32x16 a) { _mm512_stream_ps(p, a.v); }

LS_INLINE f32x16 operator+(f32x16 a, f32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
LS_INLINE f32x16 operator-(f32x16 a, f32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
LS_INLINE f32x16 operator*(f32x16 a, f32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
LS_INLINE f32x16 operator/(f32x16 a, f32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
LS_INLINE f32x16 fma(f32x16 a, f32x16 b, f32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }    // a * b + c
LS_INLINE f32x16 fms(f32x16 a, f32x16 b, f32x16 c) { return {_mm512_fmsub_ps(a.v, b.v, c.v)}; }    // a * b - c
LS_INLINE f32x16 fnma(f32x16 a, f32x16 b, f32x16 c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }  // c - a * b
// The second operand where either is NaN.
LS_INLINE f32x16 max(f32x16 a, f32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
LS_INLINE f32x16 min(f32x16 a, f32x16 b) { return {_mm512_min_ps(a.v, b.v)}; }
LS_INLINE f32x16 sqrt(f32x16 a) { return {_mm512_sqrt_ps(a.v)}; }
LS_INLINE f32x16 round_even(f32x16 a) { return {_mm512_roundscale_ps(a.v, 8)}; }

LS_INLINE mask16 lt(f32x16 a, f32x16 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
LS_INLINE mask16 le(f32x16 a, f32x16 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ)}; }
LS_INLINE mask16 eq(f32x16 a, f32x16 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ)}; }
LS_INLINE mask16 is_nan(f32x16 a) { return {_mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q)}; }
// Lanes 0..n-1, n in 0..16.
LS_INLINE mask16 first_n(int64_t n) { return {tail_bits(n)}; }
LS_INLINE mask16 operator&(mask16 a, mask16 b) { return {static_cast<__mmask16>(a.m & b.m)}; }
LS_INLINE mask16 operator|(mask16 a, mask16 b) { return {static_cast<__mmask16>(a.m | b.m)}; }
LS_INLINE uint32_t mask_bits(mask16 m) { return m.m; }
LS_INLINE bool any(mask16 m) { return m.m != 0; }
// a where the mask is set, else b.
LS_INLINE f32x16 select(mask16 m, f32x16 a, f32x16 b) { return {_mm512_mask_blend_ps(m.m, b.v, a.v)}; }

LS_INLINE i32x16 set1_i32(int32_t x) { return {_mm512_set1_epi32(x)}; }
LS_INLINE i32x16 load_i32(const int32_t *p) { return {_mm512_loadu_si512(p)}; }
LS_INLINE void store_i32(int32_t *p, i32x16 a) { _mm512_storeu_si512(p, a.v); }
LS_INLINE i32x16 as_int(f32x16 a) { return {_mm512_castps_si512(a.v)}; }
LS_INLINE f32x16 as_float(i32x16 a) { return {_mm512_castsi512_ps(a.v)}; }
LS_INLINE i32x16 to_int(f32x16 a) { return {_mm512_cvtps_epi32(a.v)}; }  // to nearest even
LS_INLINE f32x16 to_float(i32x16 a) { return {_mm512_cvtepi32_ps(a.v)}; }
LS_INLINE i32x16 operator+(i32x16 a, i32x16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
LS_INLINE i32x16 operator-(i32x16 a, i32x16 b) { return {_mm512_sub_epi32(a.v, b.v)}; }
LS_INLINE i32x16 operator&(i32x16 a, i32x16 b) { return {_mm512_and_si512(a.v, b.v)}; }
LS_INLINE i32x16 operator|(i32x16 a, i32x16 b) { return {_mm512_or_si512(a.v, b.v)}; }
LS_INLINE i32x16 operator^(i32x16 a, i32x16 b) { return {_mm512_xor_si512(a.v, b.v)}; }
template <int kBits>
LS_INLINE i32x16 shift_left(i32x16 a) {
  return {_mm512_slli_epi32(a.v, kBits)};
}
template <int kBits>
LS_INLINE i32x16 shift_right(i32x16 a) {  // logical
  return {_mm512_srli_epi32(a.v, kBits)};
}
template <int kBits>
LS_INLINE i32x16 shift_right_signed(i32x16 a) {
  return {_mm512_srai_epi32(a.v, kBits)};
}
LS_INLINE mask16 eq(i32x16 a, i32x16 b) { return {_mm512_cmpeq_epi32_mask(a.v, b.v)}; }

// Bytes, sign-extended; stores keep the low byte of each lane.
LS_INLINE i32x16 load_i8(const uint8_t *p) {
  return {_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)))};
}
LS_INLINE void store_i8(uint8_t *p, i32x16 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i *>(p), _mm512_cvtepi32_epi8(a.v));
}

LS_INLINE f32x16 load(const bf16 *p) {
  return {_mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p))), 16))};
}
LS_INLINE f32x16 load(const bf16 *p, int64_t n) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(tail_bits(n), p)), 16))};
}
// The sixteen roundings to bfloat16 (nearest even, NaN kept), packed.
LS_INLINE __m256i pack_bf16(f32x16 a) {
  const __m512i u = _mm512_castps_si512(a.v);
  const __m512i high = _mm512_srli_epi32(u, 16);
  const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd), 16);
  const __m512i quiet = _mm512_or_si512(high, _mm512_set1_epi32(0x40));
  return _mm512_cvtepi32_epi16(_mm512_mask_blend_epi32(is_nan(a).m, rounded, quiet));
}
LS_INLINE void store(bf16 *p, f32x16 a) { _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), pack_bf16(a)); }
LS_INLINE void store(bf16 *p, f32x16 a, int64_t n) { _mm256_mask_storeu_epi16(p, tail_bits(n), pack_bf16(a)); }
// p must be 32-byte aligned.
LS_INLINE void stream(bf16 *p, f32x16 a) { _mm256_stream_si256(reinterpret_cast<__m256i *>(p), pack_bf16(a)); }

// The tree is 16 -> 8 -> 4 -> 2 -> 1, upper half onto lower half.
LS_INLINE float reduce_add(f32x16 a) {
  const __m256 s8 = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
  const __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
  return _mm_cvtss_f32(_mm_add_ss(s2, _mm_movehdup_ps(s2)));
}
LS_INLINE float reduce_max(f32x16 a) {
  const __m256 s8 = _mm256_max_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 s4 = _mm_max_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
  const __m128 s2 = _mm_max_ps(s4, _mm_movehl_ps(s4, s4));
  return _mm_cvtss_f32(_mm_max_ss(s2, _mm_movehdup_ps(s2)));
}

LS_INLINE f64x8 set1_f64(double x) { return {_mm512_set1_pd(x)}; }
LS_INLINE f64x8 zero_f64() { return {_mm512_setzero_pd()}; }
LS_INLINE f64x8 load_f64(const double *p) { return {_mm512_loadu_pd(p)}; }
LS_INLINE void store_f64(double *p, f64x8 a) { _mm512_storeu_pd(p, a.v); }
LS_INLINE f64x8 load_f64(const float *p) { return {_mm512_cvtps_pd(_mm256_loadu_ps(p))}; }  // eight floats, exact
LS_INLINE f64x8 low_f64(f32x16 a) { return {_mm512_cvtps_pd(_mm512_castps512_ps256(a.v))}; }
LS_INLINE f64x8 high_f64(f32x16 a) { return {_mm512_cvtps_pd(_mm512_extractf32x8_ps(a.v, 1))}; }
LS_INLINE f32x16 to_f32(f64x8 low, f64x8 high) {
  return {_mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(low.v)), _mm512_cvtpd_ps(high.v), 1)};
}
LS_INLINE void store_as_f32(float *p, f64x8 a) { _mm256_storeu_ps(p, _mm512_cvtpd_ps(a.v)); }
LS_INLINE f64x8 operator+(f64x8 a, f64x8 b) { return {_mm512_add_pd(a.v, b.v)}; }
LS_INLINE f64x8 operator-(f64x8 a, f64x8 b) { return {_mm512_sub_pd(a.v, b.v)}; }
LS_INLINE f64x8 operator*(f64x8 a, f64x8 b) { return {_mm512_mul_pd(a.v, b.v)}; }
LS_INLINE f64x8 operator/(f64x8 a, f64x8 b) { return {_mm512_div_pd(a.v, b.v)}; }
LS_INLINE f64x8 sqrt(f64x8 a) { return {_mm512_sqrt_pd(a.v)}; }
LS_INLINE f64x8 fma(f64x8 a, f64x8 b, f64x8 c) { return {_mm512_fmadd_pd(a.v, b.v, c.v)}; }
LS_INLINE f64x8 fnma(f64x8 a, f64x8 b, f64x8 c) { return {_mm512_fnmadd_pd(a.v, b.v, c.v)}; }
LS_INLINE i64x8 as_int(f64x8 a) { return {_mm512_castpd_si512(a.v)}; }
LS_INLINE f64x8 as_float(i64x8 a) { return {_mm512_castsi512_pd(a.v)}; }
LS_INLINE i64x8 set1_i64(int64_t x) { return {_mm512_set1_epi64(x)}; }
LS_INLINE i64x8 operator+(i64x8 a, i64x8 b) { return {_mm512_add_epi64(a.v, b.v)}; }
LS_INLINE i64x8 operator&(i64x8 a, i64x8 b) { return {_mm512_and_si512(a.v, b.v)}; }
LS_INLINE i64x8 operator^(i64x8 a, i64x8 b) { return {_mm512_xor_si512(a.v, b.v)}; }
template <int kBits>
LS_INLINE i64x8 shift_left(i64x8 a) {
  return {_mm512_slli_epi64(a.v, kBits)};
}
// a where all bits of m are ones, b where all are zeros; m's lanes are one or the other.
LS_INLINE f64x8 select(i64x8 m, f64x8 a, f64x8 b) {
  return {_mm512_mask_blend_pd(_mm512_movepi64_mask(m.v), b.v, a.v)};
}
LS_INLINE i64x8 eq(i64x8 a, i64x8 b) { return {_mm512_movm_epi64(_mm512_cmpeq_epi64_mask(a.v, b.v))}; }
// The tree is 8 -> 4 -> 2 -> 1, upper half onto lower half.
LS_INLINE double reduce_add(f64x8 a) {
  const __m256d s4 = _mm256_add_pd(_mm512_castpd512_pd256(a.v), _mm512_extractf64x4_pd(a.v, 1));
  const __m128d s2 = _mm_add_pd(_mm256_castpd256_pd128(s4), _mm256_extractf128_pd(s4, 1));
  return _mm_cvtsd_f64(_mm_add_sd(s2, _mm_unpackhi_pd(s2, s2)));
}

// p * 2^n for integral n in [-300, 300]: one rounding, also into the subnormals.
LS_INLINE f32x16 scale_by_power(f32x16 p, f32x16 n) { return {_mm512_scalef_ps(p.v, n.v)}; }

#else  // AVX2

struct f32x16 {
  __m256 a, b;
};
struct i32x16 {
  __m256i a, b;
};
struct mask16 {
  __m256 a, b;
};
struct f64x8 {
  __m256d a, b;
};
struct i64x8 {
  __m256i a, b;
};

LS_INLINE mask16 first_n(int64_t n) {
  const __m256i count = _mm256_set1_epi32(static_cast<int32_t>(n));
  return {_mm256_castsi256_ps(_mm256_cmpgt_epi32(count, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))),
          _mm256_castsi256_ps(_mm256_cmpgt_epi32(count, _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15)))};
}

LS_INLINE f32x16 set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
LS_INLINE f32x16 zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
LS_INLINE f32x16 load(const float *p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
LS_INLINE f32x16 load(const float *p, int64_t n) {
  const mask16 m = first_n(n);
  return {_mm256_maskload_ps(p, _mm256_castps_si256(m.a)), _mm256_maskload_ps(p + 8, _mm256_castps_si256(m.b))};
}
LS_INLINE void store(float *p, f32x16 x) {
  _mm256_storeu_ps(p, x.a);
  _mm256_storeu_ps(p + 8, x.b);
}
LS_INLINE void store(float *p, f32x16 x, int64_t n) {
  const mask16 m = first_n(n);
  _mm256_maskstore_ps(p, _mm256_castps_si256(m.a), x.a);
  _mm256_maskstore_ps(p + 8, _mm256_castps_si256(m.b), x.b);
}
LS_INLINE void stream(float *p, f32x16 x) {
  _mm256_stream_ps(p, x.a);
  _mm256_stream_ps(p + 8, x.b);
}

LS_INLINE f32x16 operator+(f32x16 x, f32x16 y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
LS_INLINE f32x16 operator-(f32x16 x, f32x16 y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
LS_INLINE f32x16 operator*(f32x16 x, f32x16 y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
LS_INLINE f32x16 operator/(f32x16 x, f32x16 y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
LS_INLINE f32x16 fma(f32x16 x, f32x16 y, f32x16 z) {
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
LS_INLINE f32x16 fms(f32x16 x, f32x16 y, f32x16 z) {
  return {_mm256_fmsub_ps(x.a, y.a, z.a), _mm256_fmsub_ps(x.b, y.b, z.b)};
}
LS_INLINE f32x16 fnma(f32x16 x, f32x16 y, f32x16 z) {
  return {_mm256_fnmadd_ps(x.a, y.a, z.a), _mm256_fnmadd_ps(x.b, y.b, z.b)};
}
LS_INLINE f32x16 max(f32x16 x, f32x16 y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
LS_INLINE f32x16 min(f32x16 x, f32x16 y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
LS_INLINE f32x16 sqrt(f32x16 x) { return {_mm256_sqrt_ps(x.a), _mm256_sqrt_ps(x.b)}; }
LS_INLINE f32x16 round_even(f32x16 x) { return {_mm256_round_ps(x.a, 8), _mm256_round_ps(x.b, 8)}; }

LS_INLINE mask16 lt(f32x16 x, f32x16 y) {
  return {_mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ)};
}
LS_INLINE mask16 le(f32x16 x, f32x16 y) {
  return {_mm256_cmp_ps(x.a, y.a, _CMP_LE_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_LE_OQ)};
}
LS_INLINE mask16 eq(f32x16 x, f32x16 y) {
  return {_mm256_cmp_ps(x.a, y.a, _CMP_EQ_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_EQ_OQ)};
}
LS_INLINE mask16 is_nan(f32x16 x) {
  return {_mm256_cmp_ps(x.a, x.a, _CMP_UNORD_Q), _mm256_cmp_ps(x.b, x.b, _CMP_UNORD_Q)};
}
LS_INLINE mask16 operator&(mask16 x, mask16 y) { return {_mm256_and_ps(x.a, y.a), _mm256_and_ps(x.b, y.b)}; }
LS_INLINE mask16 operator|(mask16 x, mask16 y) { return {_mm256_or_ps(x.a, y.a), _mm256_or_ps(x.b, y.b)}; }
LS_INLINE uint32_t mask_bits(mask16 m) {
  return static_cast<uint32_t>(_mm256_movemask_ps(m.a)) | static_cast<uint32_t>(_mm256_movemask_ps(m.b)) << 8;
}
LS_INLINE bool any(mask16 m) { return mask_bits(m) != 0; }
LS_INLINE f32x16 select(mask16 m, f32x16 x, f32x16 y) {
  return {_mm256_blendv_ps(y.a, x.a, m.a), _mm256_blendv_ps(y.b, x.b, m.b)};
}

LS_INLINE i32x16 set1_i32(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
LS_INLINE i32x16 load_i32(const int32_t *p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)),
          _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p + 8))};
}
LS_INLINE void store_i32(int32_t *p, i32x16 x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), x.a);
  _mm256_storeu_si256(reinterpret_cast<__m256i *>(p + 8), x.b);
}
LS_INLINE i32x16 as_int(f32x16 x) { return {_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)}; }
LS_INLINE f32x16 as_float(i32x16 x) { return {_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }
LS_INLINE i32x16 to_int(f32x16 x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
LS_INLINE f32x16 to_float(i32x16 x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
LS_INLINE i32x16 operator+(i32x16 x, i32x16 y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
LS_INLINE i32x16 operator-(i32x16 x, i32x16 y) { return {_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)}; }
LS_INLINE i32x16 operator&(i32x16 x, i32x16 y) { return {_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)}; }
LS_INLINE i32x16 operator|(i32x16 x, i32x16 y) { return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }
LS_INLINE i32x16 operator^(i32x16 x, i32x16 y) { return {_mm256_xor_si256(x.a, y.a), _mm256_xor_si256(x.b, y.b)}; }
template <int kBits>
LS_INLINE i32x16 shift_left(i32x16 x) {
  return {_mm256_slli_epi32(x.a, kBits), _mm256_slli_epi32(x.b, kBits)};
}
template <int kBits>
LS_INLINE i32x16 shift_right(i32x16 x) {
  return {_mm256_srli_epi32(x.a, kBits), _mm256_srli_epi32(x.b, kBits)};
}
template <int kBits>
LS_INLINE i32x16 shift_right_signed(i32x16 x) {
  return {_mm256_srai_epi32(x.a, kBits), _mm256_srai_epi32(x.b, kBits)};
}
LS_INLINE mask16 eq(i32x16 x, i32x16 y) {
  return {_mm256_castsi256_ps(_mm256_cmpeq_epi32(x.a, y.a)), _mm256_castsi256_ps(_mm256_cmpeq_epi32(x.b, y.b))};
}

LS_INLINE i32x16 load_i8(const uint8_t *p) {
  return {_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p))),
          _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p + 8)))};
}
LS_INLINE void store_i8(uint8_t *p, i32x16 x) {
  // The low byte of each lane to the front of its half.
  const __m256i pick = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 4, 8, 12, -1,
                                        -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
  const __m256i a = _mm256_shuffle_epi8(x.a, pick), b = _mm256_shuffle_epi8(x.b, pick);
  const __m128i low = _mm_unpacklo_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
  const __m128i high = _mm_unpacklo_epi32(_mm256_castsi256_si128(b), _mm256_extracti128_si256(b, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i *>(p), _mm_unpacklo_epi64(low, high));
}

LS_INLINE __m256 widen_bf16(__m128i x) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16)); }
LS_INLINE f32x16 load(const bf16 *p) {
  return {widen_bf16(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p))),
          widen_bf16(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p + 8)))};
}
LS_INLINE f32x16 load(const bf16 *p, int64_t n) {
  bf16 part[16] = {};
  memcpy(part, p, static_cast<size_t>(n) * sizeof(bf16));
  return load(part);
}
LS_INLINE __m256i round_to_bf16(__m256 x) {
  const __m256i u = _mm256_castps_si256(x);
  const __m256i high = _mm256_srli_epi32(u, 16);
  const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd), 16);
  const __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
  return _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
}
LS_INLINE __m256i pack_bf16(f32x16 x) {
  return _mm256_permute4x64_epi64(_mm256_packus_epi32(round_to_bf16(x.a), round_to_bf16(x.b)), 0xd8);
}
LS_INLINE void store(bf16 *p, f32x16 x) { _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), pack_bf16(x)); }
LS_INLINE void store(bf16 *p, f32x16 x, int64_t n) {
  bf16 part[16];
  store(part, x);
  memcpy(p, part, static_cast<size_t>(n) * sizeof(bf16));
}
LS_INLINE void stream(bf16 *p, f32x16 x) { _mm256_stream_si256(reinterpret_cast<__m256i *>(p), pack_bf16(x)); }

LS_INLINE float reduce_add(f32x16 x) {
  const __m256 s8 = _mm256_add_ps(x.a, x.b);
  const __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
  const __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
  return _mm_cvtss_f32(_mm_add_ss(s2, _mm_movehdup_ps(s2)));
}
LS_INLINE float reduce_max(f32x16 x) {
  const __m256 s8 = _mm256_max_ps(x.a, x.b);
  const __m128 s4 = _mm_max_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
  const __m128 s2 = _mm_max_ps(s4, _mm_movehl_ps(s4, s4));
  return _mm_cvtss_f32(_mm_max_ss(s2, _mm_movehdup_ps(s2)));
}

LS_INLINE f64x8 set1_f64(double x) { return {_mm256_set1_pd(x), _mm256_set1_pd(x)}; }
LS_INLINE f64x8 zero_f64() { return {_mm256_setzero_pd(), _mm256_setzero_pd()}; }
LS_INLINE f64x8 load_f64(const double *p) { return {_mm256_loadu_pd(p), _mm256_loadu_pd(p + 4)}; }
LS_INLINE void store_f64(double *p, f64x8 x) {
  _mm256_storeu_pd(p, x.a);
  _mm256_storeu_pd(p + 4, x.b);
}
LS_INLINE f64x8 load_f64(const float *p) {
  return {_mm256_cvtps_pd(_mm_loadu_ps(p)), _mm256_cvtps_pd(_mm_loadu_ps(p + 4))};
}
LS_INLINE f64x8 widen_f64(__m256 x) {
  return {_mm256_cvtps_pd(_mm256_castps256_ps128(x)), _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1))};
}
LS_INLINE f64x8 low_f64(f32x16 x) { return widen_f64(x.a); }
LS_INLINE f64x8 high_f64(f32x16 x) { return widen_f64(x.b); }
LS_INLINE __m256 narrow_f64(f64x8 x) { return _mm256_set_m128(_mm256_cvtpd_ps(x.b), _mm256_cvtpd_ps(x.a)); }
LS_INLINE f32x16 to_f32(f64x8 low, f64x8 high) { return {narrow_f64(low), narrow_f64(high)}; }
LS_INLINE void store_as_f32(float *p, f64x8 x) { _mm256_storeu_ps(p, narrow_f64(x)); }
LS_INLINE f64x8 operator+(f64x8 x, f64x8 y) { return {_mm256_add_pd(x.a, y.a), _mm256_add_pd(x.b, y.b)}; }
LS_INLINE f64x8 operator-(f64x8 x, f64x8 y) { return {_mm256_sub_pd(x.a, y.a), _mm256_sub_pd(x.b, y.b)}; }
LS_INLINE f64x8 operator*(f64x8 x, f64x8 y) { return {_mm256_mul_pd(x.a, y.a), _mm256_mul_pd(x.b, y.b)}; }
LS_INLINE f64x8 operator/(f64x8 x, f64x8 y) { return {_mm256_div_pd(x.a, y.a), _mm256_div_pd(x.b, y.b)}; }
LS_INLINE f64x8 sqrt(f64x8 x) { return {_mm256_sqrt_pd(x.a), _mm256_sqrt_pd(x.b)}; }
LS_INLINE f64x8 fma(f64x8 x, f64x8 y, f64x8 z) {
  return {_mm256_fmadd_pd(x.a, y.a, z.a), _mm256_fmadd_pd(x.b, y.b, z.b)};
}
LS_INLINE f64x8 fnma(f64x8 x, f64x8 y, f64x8 z) {
  return {_mm256_fnmadd_pd(x.a, y.a, z.a), _mm256_fnmadd_pd(x.b, y.b, z.b)};
}
LS_INLINE i64x8 as_int(f64x8 x) { return {_mm256_castpd_si256(x.a), _mm256_castpd_si256(x.b)}; }
LS_INLINE f64x8 as_float(i64x8 x) { return {_mm256_castsi256_pd(x.a), _mm256_castsi256_pd(x.b)}; }
LS_INLINE i64x8 set1_i64(int64_t x) { return {_mm256_set1_epi64x(x), _mm256_set1_epi64x(x)}; }
LS_INLINE i64x8 operator+(i64x8 x, i64x8 y) { return {_mm256_add_epi64(x.a, y.a), _mm256_add_epi64(x.b, y.b)}; }
LS_INLINE i64x8 operator&(i64x8 x, i64x8 y) { return {_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)}; }
LS_INLINE i64x8 operator^(i64x8 x, i64x8 y) { return {_mm256_xor_si256(x.a, y.a), _mm256_xor_si256(x.b, y.b)}; }
template <int kBits>
LS_INLINE i64x8 shift_left(i64x8 x) {
  return {_mm256_slli_epi64(x.a, kBits), _mm256_slli_epi64(x.b, kBits)};
}
LS_INLINE f64x8 select(i64x8 m, f64x8 x, f64x8 y) {
  return {_mm256_blendv_pd(y.a, x.a, _mm256_castsi256_pd(m.a)), _mm256_blendv_pd(y.b, x.b, _mm256_castsi256_pd(m.b))};
}
LS_INLINE i64x8 eq(i64x8 x, i64x8 y) { return {_mm256_cmpeq_epi64(x.a, y.a), _mm256_cmpeq_epi64(x.b, y.b)}; }
LS_INLINE double reduce_add(f64x8 x) {
  const __m256d s4 = _mm256_add_pd(x.a, x.b);
  const __m128d s2 = _mm_add_pd(_mm256_castpd256_pd128(s4), _mm256_extractf128_pd(s4, 1));
  return _mm_cvtsd_f64(_mm_add_sd(s2, _mm_unpackhi_pd(s2, s2)));
}

// Two factors of about equal size: the first product is exact, the second rounds once.
LS_INLINE f32x16 scale_by_power(f32x16 p, f32x16 n) {
  const i32x16 whole = to_int(n);
  const i32x16 first = shift_right_signed<1>(whole);
  const i32x16 second = whole - first;
  const i32x16 bias = set1_i32(127);
  return p * as_float(shift_left<23>(first + bias)) * as_float(shift_left<23>(second + bias));
}

#endif

// ---- what follows is written once on the operations above ----

LS_INLINE void stream_fence() { _mm_sfence(); }

LS_INLINE f32x16 abs(f32x16 x) { return as_float(as_int(x) & set1_i32(0x7fffffff)); }
LS_INLINE f32x16 neg(f32x16 x) { return as_float(as_int(x) ^ set1_i32(static_cast<int32_t>(0x80000000u))); }
// The magnitude of x (whose sign bit must be clear) with the sign of y.
LS_INLINE f32x16 with_sign_of(f32x16 x, f32x16 y) {
  return as_float(as_int(x) | (as_int(y) & set1_i32(static_cast<int32_t>(0x80000000u))));
}
LS_INLINE f32x16 &operator+=(f32x16 &x, f32x16 y) { return x = x + y; }
LS_INLINE f64x8 &operator+=(f64x8 &x, f64x8 y) { return x = x + y; }

// exp(x), within 1 ulp; 0 below the subnormals, inf above the largest float, NaN for NaN.
// x = n ln2 + r with |r| <= ln2/2, exp(r) = 1 + r + r^2 q(r), q a minimax polynomial of degree 4 (relative 3e-9).
LS_INLINE f32x16 exp(f32x16 x) {
  x = max(set1(-110.0f), min(set1(90.0f), x));  // NaN stays: it is the second operand
  const f32x16 n = round_even(x * set1(0x1.715476p+0f));
  f32x16 r = fnma(n, set1(0x1.62e43p-1f), x);
  r = fnma(n, set1(-0x1.05c61p-29f), r);
  f32x16 q = set1(0x1.6a2252p-10f);
  q = fma(q, r, set1(0x1.123b04p-7f));
  q = fma(q, r, set1(0x1.5558f8p-5f));
  q = fma(q, r, set1(0x1.55549p-3f));
  q = fma(q, r, set1(0x1.fffffcp-2f));
  const f32x16 p = fma(q, r * r, r) + set1(1.0f);
  return scale_by_power(p, n);
}

// Natural logarithm, within 2 ulp; -inf at 0, NaN below, inf at inf, NaN for NaN; subnormals are right.
// x = 2^e (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)), log(1 + f) = f - f^2/2 + f^3 P(f), P minimax of degree 8.
LS_INLINE f32x16 log(f32x16 x) {
  const mask16 tiny = lt(x, set1(0x1p-126f));
  const f32x16 scaled = select(tiny, x * set1(0x1p24f), x);
  const i32x16 bits = as_int(scaled) - set1_i32(0x3f3504f3);  // sqrt(1/2)
  const i32x16 exponent = shift_right_signed<23>(bits);
  const f32x16 mantissa = as_float((bits & set1_i32(0x7fffff)) + set1_i32(0x3f3504f3));
  const f32x16 e = to_float(exponent) - select(tiny, set1(24.0f), zero());
  const f32x16 f = mantissa - set1(1.0f);
  f32x16 p = set1(0x1.1456cep-4f);
  p = fma(p, f, set1(-0x1.de65fp-4f));
  p = fma(p, f, set1(0x1.e70736p-4f));
  p = fma(p, f, set1(-0x1.fc1d4cp-4f));
  p = fma(p, f, set1(0x1.2335aep-3f));
  p = fma(p, f, set1(-0x1.555c5cp-3f));
  p = fma(p, f, set1(0x1.99a4cap-3f));
  p = fma(p, f, set1(-0x1.000006p-2f));
  p = fma(p, f, set1(0x1.555548p-2f));
  const f32x16 f2 = f * f;
  // e ln2 in two parts: the high one has 9 trailing zero bits, so e times it is exact.
  f32x16 low = fma(e, set1(0x1.7f7d1cp-20f), f2 * (f * p));
  low = fnma(set1(0.5f), f2, low);
  f32x16 result = fma(e, set1(0x1.62e4p-1f), f + low);
  const f32x16 infinity = set1(__builtin_inff());
  result = select(eq(x, infinity), infinity, result);
  result = select(eq(x, zero()), neg(infinity), result);
  return select(lt(x, zero()) | is_nan(x), set1(__builtin_nanf("")), result);
}

// 1 / (1 + exp(-x)).
LS_INLINE f32x16 sigmoid(f32x16 x) { return set1(1.0f) / (set1(1.0f) + exp(neg(x))); }

// tanh(x), within 2 ulp: x + x^3 P(x^2) up to 0.625, then 1 - 2 / (exp(2|x|) + 1).
LS_INLINE f32x16 tanh(f32x16 x) {
  const f32x16 s = x * x;
  f32x16 p = set1(-0x1.75e1a8p-8f);
  p = fma(p, s, set1(0x1.522692p-6f));
  p = fma(p, s, set1(-0x1.b83c58p-5f));
  p = fma(p, s, set1(0x1.110726p-3f));
  p = fma(p, s, set1(-0x1.555532p-2f));
  const f32x16 near_zero = fma(p * s, x, x);
  const f32x16 a = abs(x);
  const f32x16 far = set1(1.0f) - set1(2.0f) / (exp(a + a) + set1(1.0f));
  return select(lt(a, set1(0.625f)), near_zero, with_sign_of(far, x));
}

// erf(x), within 2 ulp: x + x P(x^2) up to 1, then 1 - exp(-Q(|x| - 1)), Q minimax of -log(erfc).
LS_INLINE f32x16 erf(f32x16 x) {
  const f32x16 s = x * x;
  f32x16 p = set1(0x1.496a28p-14f);
  p = fma(p, s, set1(-0x1.a3f6fcp-11f));
  p = fma(p, s, set1(0x1.5405b2p-8f));
  p = fma(p, s, set1(-0x1.b7f90cp-6f));
  p = fma(p, s, set1(0x1.ce2cf8p-4f));
  p = fma(p, s, set1(-0x1.81273ep-2f));
  p = fma(p, s, set1(0x1.06eba8p-3f));
  const f32x16 near_zero = fma(p, x, x);
  const f32x16 a = abs(x);
  const f32x16 t = min(set1(3.2f), a - set1(1.0f));  // NaN stays
  f32x16 q = set1(0x1.6bd854p-16f);
  q = fma(q, t, set1(-0x1.2f97b4p-12f));
  q = fma(q, t, set1(0x1.07b66ep-9f));
  q = fma(q, t, set1(-0x1.4933c2p-7f));
  q = fma(q, t, set1(0x1.547cfp-5f));
  q = fma(q, t, set1(0x1.afabbcp-1f));
  q = fma(q, t, set1(0x1.51c9bp+1f));
  q = fma(q, t, set1(0x1.d97fcp+0f));
  const f32x16 far = set1(1.0f) - exp(neg(q));
  return select(lt(a, set1(1.0f)), near_zero, with_sign_of(far, x));
}

// sin and cos of float64 angles up to about 2^50: reduced by pi/2 in two parts with fma (the first step is exact),
// then Taylor polynomials on [-pi/4, pi/4]; the error before rounding is below 1e-13.
LS_INLINE void sin_cos(f64x8 angle, f64x8 &sine, f64x8 &cosine) {
  const f64x8 magic = set1_f64(0x1.8p52);  // adding it rounds to an integer and leaves that in the low bits
  const f64x8 shifted = fma(angle, set1_f64(0x1.45f306dc9c883p-1), magic);
  const f64x8 k = shifted - magic;
  f64x8 r = fnma(k, set1_f64(0x1.921fb54442d18p+0), angle);
  r = fnma(k, set1_f64(0x1.1a62633145c07p-54), r);
  const f64x8 s = r * r;
  f64x8 p = set1_f64(0x1.6124613a86d09p-33);  // 1/13!
  p = fma(p, s, set1_f64(-0x1.ae64567f544e4p-26));
  p = fma(p, s, set1_f64(0x1.71de3a556c734p-19));
  p = fma(p, s, set1_f64(-0x1.a01a01a01a01ap-13));
  p = fma(p, s, set1_f64(0x1.1111111111111p-7));
  p = fma(p, s, set1_f64(-0x1.5555555555555p-3));
  const f64x8 sin_r = fma(p * s, r, r);
  f64x8 q = set1_f64(-0x1.93974a8c07c9dp-37);  // -1/14!
  q = fma(q, s, set1_f64(0x1.1eed8eff8d898p-29));
  q = fma(q, s, set1_f64(-0x1.27e4fb7789f5cp-22));
  q = fma(q, s, set1_f64(0x1.a01a01a01a01ap-16));
  q = fma(q, s, set1_f64(-0x1.6c16c16c16c17p-10));
  q = fma(q, s, set1_f64(0x1.5555555555555p-5));
  q = fma(q, s, set1_f64(-0.5));
  const f64x8 cos_r = fma(q, s, set1_f64(1.0));
  const i64x8 quadrant = as_int(shifted);
  const i64x8 one = set1_i64(1);
  const i64x8 swap = eq(quadrant & one, one);
  const i64x8 sin_sign = shift_left<62>(quadrant & set1_i64(2));
  const i64x8 cos_sign = shift_left<62>((quadrant + one) & set1_i64(2));
  sine = as_float(as_int(select(swap, cos_r, sin_r)) ^ sin_sign);
  cosine = as_float(as_int(select(swap, sin_r, cos_r)) ^ cos_sign);
}

}  // namespace longseq::cpu::LS_ISA

#endif  // LONGSEQ_CPU_SIMD_H
