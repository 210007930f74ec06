// Counter-based random numbers: Philox4x32-10 (Salmon et al., SC 2011), the same on every backend and for every split.
//
// Element e = offset + index uses word e % 4 of the block with counter (e / 4, 0) (64 bits each) and key `seed`.
//   uniform: u = (word >> 8) * 2^-24;  y = float32(low + u * (high - low)) in float64, kept below `high`.
//   normal:  words 0, 1 give elements 0, 1 and words 2, 3 give elements 2, 3 of the block:
//            u = ((first >> 8) + 1) * 2^-24,  r = sqrt(-2 log u),  angle = (second >> 8) * 2^-24 turns;
//            r cos(angle), r sin(angle) (Box-Muller), y = fma(std, z, mean), all float32.
// The logarithm is simd.h's; cos and sin take q = round(4 * turns), f = 4 * turns - q (exact), and the polynomials
// below in f; another backend that repeats these fmas gives the same bits.
#include "elementwise.h"
#include "kernels.h"
#include "philox.h"

namespace longseq::cpu::LS_ISA {

namespace {

constexpr int64_t kGroup = 64;  // elements of sixteen blocks

// The four words of sixteen consecutive blocks.
LS_INLINE void philox(uint64_t first_block, uint64_t seed, i32x16 (&word)[4]) {
  int32_t low[16], high[16];
  for (int i = 0; i < 16; ++i) {
    const uint64_t block = first_block + static_cast<uint64_t>(i);
    low[i] = static_cast<int32_t>(block);
    high[i] = static_cast<int32_t>(block >> 32);
  }
  philox(load_i32(low), load_i32(high), set1_i32(0), set1_i32(0), seed, word);
}

// cos and sin of turns * 2 pi for turns in [0, 1); Taylor in f * pi / 2, |f| <= 1/2.
LS_INLINE void cos_sin_turns(f32x16 turns, f32x16 &cosine, f32x16 &sine) {
  const f32x16 quarters = turns * set1(4.0f);
  const f32x16 q = round_even(quarters);
  const f32x16 f = quarters - q;
  const f32x16 s = f * f;
  f32x16 a = set1(0x1.50783487ee782p-13f);  // (pi/2)^9 / 9!
  a = fma(a, s, set1(-0x1.32d2cce62bd86p-8f));
  a = fma(a, s, set1(0x1.466bc6775aae2p-4f));
  a = fma(a, s, set1(-0x1.4abbce625be53p-1f));
  const f32x16 sin_f = fma(a * s, f, f * set1(0x1.921fb54442d18p+0f));
  f32x16 b = set1(-0x1.a6d1f2a204a8cp-16f);  // -(pi/2)^10 / 10!
  b = fma(b, s, set1(0x1.e1f506891babbp-11f));
  b = fma(b, s, set1(-0x1.55d3c7e3cbffap-6f));
  b = fma(b, s, set1(0x1.03c1f081b5ac4p-2f));
  b = fma(b, s, set1(-0x1.3bd3cc9be45dep+0f));
  const f32x16 cos_f = fma(b, s, set1(1.0f));
  const i32x16 quadrant = to_int(q), one = set1_i32(1), two = set1_i32(2);
  const mask16 swap = eq(quadrant & one, one);
  sine = as_float(as_int(select(swap, cos_f, sin_f)) ^ shift_left<30>(quadrant & two));
  cosine = as_float(as_int(select(swap, sin_f, cos_f)) ^ shift_left<30>((quadrant + one) & two));
}

// (word >> 8) * 2^-24, exact.
LS_INLINE f32x16 fraction(i32x16 word) { return to_float(shift_right<8>(word)) * set1(0x1p-24f); }

// The largest value of the storage type below `high`.
float below(double high, int32_t dtype) {
  if (dtype == LS_BF16) {
    bf16 value = to_bf16(static_cast<float>(high));
    while (static_cast<double>(to_float(value)) >= high)
      value.bits = static_cast<uint16_t>((value.bits & 0x7fff) == 0 ? 0x8001
                                         : (value.bits & 0x8000)    ? value.bits + 1
                                                                    : value.bits - 1);
    return to_float(value);
  }
  float value = static_cast<float>(high);
  while (static_cast<double>(value) >= high) {
    const uint32_t bits = float_to_bits(value);
    value = bits_to_float((bits & 0x7fffffffu) == 0 ? 0x80000001u : (bits >> 31) ? bits + 1 : bits - 1);
  }
  return value;
}

}  // namespace

ls_status random(const ls_exec *exec, const ls_random_args *args) {
  const int64_t count = element_count(args->y);
  const int32_t dtype = args->y.dtype;
  const uint64_t seed = static_cast<uint64_t>(args->seed);
  // Index v = e - (offset rounded down to a block), so that blocks are never cut.
  const int64_t skip = args->offset & 3;
  const uint64_t first_block = static_cast<uint64_t>(args->offset >> 2);
  const bool normal = args->normal != 0;
  const double low = args->a, high = args->b;
  const bool empty_range = !(low < high);
  const f32x16 top = set1(normal || empty_range ? static_cast<float>(low) : below(high, dtype));
  const f32x16 mean = set1(static_cast<float>(args->a)), deviation = set1(static_cast<float>(args->b));
  parallel_for(exec, ceil_div(count + skip, kGroup), 256, [&](int64_t begin, int64_t end) {
    alignas(64) float words[4][16];
    alignas(64) float values[kGroup];
    for (int64_t group = begin; group < end; ++group) {
      i32x16 word[4];
      philox(first_block + static_cast<uint64_t>(group) * 16, seed, word);
      if (normal) {
        for (int j = 0; j < 4; j += 2) {
          const f32x16 u = to_float(shift_right<8>(word[j]) + set1_i32(1)) * set1(0x1p-24f);
          const f32x16 radius = sqrt(set1(-2.0f) * log(u));
          f32x16 cosine, sine;
          cos_sin_turns(fraction(word[j + 1]), cosine, sine);
          store(words[j], fma(deviation, radius * cosine, mean));
          store(words[j + 1], fma(deviation, radius * sine, mean));
        }
      } else {
        const f64x8 from = set1_f64(low), span = set1_f64(empty_range ? 0 : high - low);
        for (int j = 0; j < 4; ++j) {
          const f32x16 u = fraction(word[j]);
          f32x16 y = to_f32(fma(low_f64(u), span, from), fma(high_f64(u), span, from));
          // Rounding to the storage type must not reach `high`, which the interval leaves out.
          if (dtype == LS_BF16) {
            bf16 rounded[16];
            store(rounded, y);
            y = load(rounded);
          }
          store(words[j], empty_range ? y : min(y, top));
        }
      }
      for (int i = 0; i < 16; ++i)
        for (int j = 0; j < 4; ++j) values[4 * i + j] = words[j][i];
      const int64_t first = max_of(group * kGroup, skip), last = min_of((group + 1) * kGroup, count + skip);
      write_run(offset_by(args->y.data, first - skip, dtype), dtype, 1, values + (first - group * kGroup),
                last - first);
    }
  });
  return LS_OK;
}

}  // namespace longseq::cpu::LS_ISA
