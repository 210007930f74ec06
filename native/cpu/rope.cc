// Rotary position embedding (Su et al., arXiv 2104.09864) in the half-split form of Llama; the backward is `inverse`.
#include "elementwise.h"
#include "kernels.h"

namespace longseq::cpu::LS_ISA {

namespace {

constexpr int64_t kPairs = 256;  // pairs whose cos and sin are held at a time

// cos and sin of position * inv_freq for n <= kPairs frequencies. The product is exact below 2^29 and the reduction is
// float64, so the angle is right at any length; float32 would be off by half a radian at 15M.
LS_INLINE void make_angles(int64_t position, const float *inv_freq, int64_t n, double scaling, bool inverse,
                           float *cosines, float *sines) {
  const f64x8 at = set1_f64(static_cast<double>(position));
  const f64x8 cos_scale = set1_f64(scaling), sin_scale = set1_f64(inverse ? -scaling : scaling);
  for (int64_t i = 0; i < n; i += 8) {
    f64x8 s, c;
    sin_cos(at * load_f64(inv_freq + i), s, c);
    store_as_f32(cosines + i, c * cos_scale);
    store_as_f32(sines + i, s * sin_scale);
  }
}

template <typename X, typename Y>
void run(const ls_exec *exec, const ls_rope_args *args) {
  const ls_tensor &x = args->x, &y = args->y;
  const int64_t tokens = x.sizes[0], heads = x.sizes[1], size = x.sizes[2];
  const int64_t half = args->inv_freq.sizes[0];
  const X *const x_data = static_cast<const X *>(x.data);
  Y *const y_data = static_cast<Y *>(y.data);
  const int64_t *const positions = static_cast<const int64_t *>(args->positions.data);
  const float *const inv_freq = static_cast<const float *>(args->inv_freq.data);
  const bool in_place = x.data == y.data;
  parallel_for(exec, tokens, max_of(1, 32768 / max_of(1, heads * size)), [&](int64_t begin, int64_t end) {
    alignas(64) float frequencies[kPairs], cosines[kPairs], sines[kPairs];
    for (int64_t first = 0; first < half || first == 0; first += kPairs) {
      const int64_t n = min_of(kPairs, half - first);
      for (int64_t i = 0; i < kPairs; ++i) frequencies[i] = i < n ? inv_freq[first + i] : 0.0f;
      for (int64_t t = begin; t < end; ++t) {
        make_angles(positions[t * args->positions.strides[0]], frequencies, n, args->scaling, args->inverse != 0,
                    cosines, sines);
        for (int64_t h = 0; h < heads; ++h) {
          const X *xs = x_data + t * x.strides[0] + h * x.strides[1] + first;
          Y *ys = y_data + t * y.strides[0] + h * y.strides[1] + first;
          lanes(n, [&](int64_t i, auto w) {
            const f32x16 a = load(xs + i, w), b = load(xs + half + i, w);
            const f32x16 c = load(cosines + i), s = load(sines + i);
            store(ys + i, fnma(b, s, a * c), w);
            store(ys + half + i, fma(a, s, b * c), w);
          });
          if (first == 0 && !in_place)
            lanes(size - 2 * half, [&](int64_t i, auto w) { store(ys + 2 * half + i, load(xs + 2 * half + i, w), w); });
        }
      }
    }
  });
}

}  // namespace

ls_status rope(const ls_exec *exec, const ls_rope_args *args) {
  const bool x_bf16 = args->x.dtype == LS_BF16, y_bf16 = args->y.dtype == LS_BF16;
  if (x_bf16 && y_bf16) {
    run<bf16, bf16>(exec, args);
  } else if (x_bf16) {
    run<bf16, float>(exec, args);
  } else if (y_bf16) {
    run<float, bf16>(exec, args);
  } else {
    run<float, float>(exec, args);
  }
  return LS_OK;
}

}  // namespace longseq::cpu::LS_ISA
