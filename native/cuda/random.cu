// Counter-based random numbers: Philox4x32-10 (Salmon et al., SC 2011), bit for bit those of native/cpu/random.cc,
// which says how words become numbers. Bytes: y once; FLOPs: some 100 integer operations a block of four.
#include "elementwise.h"
#include "entries.h"
#include "philox.h"

namespace longseq::cuda {

namespace {

// The block of a number.
LS_DEVICE PhiloxWords philox(uint64_t block, uint64_t seed) {
  return cuda::philox(static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32), 0, 0, seed);
}

// Every rounding below is written out (__fmul_rn and its like): nothing may be contracted.

// The logarithm of native/cpu/simd.h for x in (0, 1].
LS_DEVICE float log_of(float x) {
  const uint32_t bits = as_bits(x) - 0x3f3504f3u;  // sqrt(1/2)
  const float e = static_cast<float>(static_cast<int32_t>(bits) >> 23);
  const float f = __fadd_rn(as_float((bits & 0x7fffffu) + 0x3f3504f3u), -1.0f);
  float p = 0x1.1456cep-4f;
  p = __fmaf_rn(p, f, -0x1.de65fp-4f);
  p = __fmaf_rn(p, f, 0x1.e70736p-4f);
  p = __fmaf_rn(p, f, -0x1.fc1d4cp-4f);
  p = __fmaf_rn(p, f, 0x1.2335aep-3f);
  p = __fmaf_rn(p, f, -0x1.555c5cp-3f);
  p = __fmaf_rn(p, f, 0x1.99a4cap-3f);
  p = __fmaf_rn(p, f, -0x1.000006p-2f);
  p = __fmaf_rn(p, f, 0x1.555548p-2f);
  const float f2 = __fmul_rn(f, f);
  float low = __fmaf_rn(e, 0x1.7f7d1cp-20f, __fmul_rn(f2, __fmul_rn(f, p)));
  low = __fmaf_rn(-0.5f, f2, low);
  return __fmaf_rn(e, 0x1.62e4p-1f, __fadd_rn(f, low));
}

// cos and sin of turns * 2 pi for turns in [0, 1).
LS_DEVICE void cos_sin_turns(float turns, float &cosine, float &sine) {
  const float quarters = __fmul_rn(turns, 4.0f);
  const float q = rintf(quarters);
  const float f = __fadd_rn(quarters, -q);
  const float s = __fmul_rn(f, f);
  float a = static_cast<float>(0x1.50783487ee782p-13);
  a = __fmaf_rn(a, s, static_cast<float>(-0x1.32d2cce62bd86p-8));
  a = __fmaf_rn(a, s, static_cast<float>(0x1.466bc6775aae2p-4));
  a = __fmaf_rn(a, s, static_cast<float>(-0x1.4abbce625be53p-1));
  const float sin_f = __fmaf_rn(__fmul_rn(a, s), f, __fmul_rn(f, static_cast<float>(0x1.921fb54442d18p+0)));
  float b = static_cast<float>(-0x1.a6d1f2a204a8cp-16);
  b = __fmaf_rn(b, s, static_cast<float>(0x1.e1f506891babbp-11));
  b = __fmaf_rn(b, s, static_cast<float>(-0x1.55d3c7e3cbffap-6));
  b = __fmaf_rn(b, s, static_cast<float>(0x1.03c1f081b5ac4p-2));
  b = __fmaf_rn(b, s, static_cast<float>(-0x1.3bd3cc9be45dep+0));
  const float cos_f = __fmaf_rn(b, s, 1.0f);
  const uint32_t quadrant = static_cast<uint32_t>(static_cast<int32_t>(q));
  const bool swap = quadrant & 1;
  sine = as_float(as_bits(swap ? cos_f : sin_f) ^ ((quadrant & 2u) << 30));
  cosine = as_float(as_bits(swap ? sin_f : cos_f) ^ (((quadrant + 1) & 2u) << 30));
}

// (word >> 8) * 2^-24, exact.
LS_DEVICE float fraction(uint32_t word) { return __fmul_rn(static_cast<float>(word >> 8), 0x1p-24f); }

struct Distribution {
  bool normal, empty_range;
  double low, span;
  float top, mean, deviation;
};

// A thread makes two blocks of four.
template <typename T>
__global__ void __launch_bounds__(256)
    random_kernel(T *y, int64_t count, uint64_t first_block, uint64_t seed, Distribution d, bool vector) {
  for (int64_t i = (static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x) * kGroup; i < count;
       i += static_cast<int64_t>(gridDim.x) * 256 * kGroup) {
    const int n = static_cast<int>(count - i < kGroup ? count - i : kGroup);
    float values[kGroup];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const PhiloxWords words = philox(first_block + static_cast<uint64_t>(i / 4 + half), seed);
      float *const to = values + 4 * half;
      if (d.normal) {
#pragma unroll
        for (int j = 0; j < 4; j += 2) {
          const float u = __fmul_rn(static_cast<float>((words.at[j] >> 8) + 1), 0x1p-24f);
          const float radius = __fsqrt_rn(__fmul_rn(-2.0f, log_of(u)));
          float cosine, sine;
          cos_sin_turns(fraction(words.at[j + 1]), cosine, sine);
          to[j] = __fmaf_rn(d.deviation, __fmul_rn(radius, cosine), d.mean);
          to[j + 1] = __fmaf_rn(d.deviation, __fmul_rn(radius, sine), d.mean);
        }
      } else {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float value = static_cast<float>(__fma_rn(static_cast<double>(fraction(words.at[j])), d.span, d.low));
          // Rounding to the storage type must not reach the upper end, which the interval leaves out.
          const float rounded = to_float(from_float<T>(value));
          to[j] = d.empty_range ? rounded : fminf(rounded, d.top);
        }
      }
    }
    store_typed(y + i, values, 1, vector, n);
  }
}

// The largest value of the storage type below `high`.
float below(double high, int32_t dtype) {
  const auto step_down = [](uint32_t bits, uint32_t sign) {
    return (bits & (sign - 1)) == 0 ? sign | 1 : (bits & sign) != 0 ? bits + 1 : bits - 1;
  };
  if (dtype == LS_BF16) {
    bf16 value = from_float<bf16>(static_cast<float>(high));
    while (static_cast<double>(to_float(value)) >= high)
      value.bits = static_cast<uint16_t>(step_down(value.bits, 0x8000u));
    return to_float(value);
  }
  float value = static_cast<float>(high);
  while (static_cast<double>(value) >= high) value = as_float(step_down(as_bits(value), 0x80000000u));
  return value;
}

}  // namespace

ls_status random(const ls_exec *exec, const ls_random_args *args) {
  const int64_t count = element_count(args->y);
  if (count == 0) return LS_OK;
  const bool normal = args->normal != 0, empty_range = !(args->a < args->b);
  const Distribution d{normal,
                       empty_range,
                       args->a,
                       empty_range ? 0.0 : args->b - args->a,
                       normal || empty_range ? static_cast<float>(args->a) : below(args->b, args->y.dtype),
                       static_cast<float>(args->a),
                       static_cast<float>(args->b)};
  return dispatch_float(args->y.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return LS_LAUNCH(random_kernel<T>, blocks_for(count, 256 * kGroup), 256, 0, exec, static_cast<T *>(args->y.data),
                     count, static_cast<uint64_t>(args->offset) / 4, static_cast<uint64_t>(args->seed), d,
                     is_aligned(args->y.data));
  });
}

}  // namespace longseq::cuda
