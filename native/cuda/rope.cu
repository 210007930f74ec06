// Rotary position embedding (Su et al., arXiv 2104.09864) in the half-split form of Llama; the backward is `inverse`.
// Bytes: x once, y once; FLOPs: 6 a pair, and some 50 in float64 a token and frequency, shared by all heads.
#include "elementwise.h"
#include "entries.h"

namespace longseq::cuda {

namespace {

constexpr int kPairs = 256;  // pairs whose cos and sin are held at a time
constexpr int kThreads = 256;

// cos and sin of position * inv_freq. The product is exact below 2^29 and is reduced by 2 pi in two parts, in float64
// (the first step is exact), so the angle is right to 2e-7 at any length; float32 would be off by half a radian at 15M.
LS_DEVICE void angle(int64_t position, float inv_freq, float &cosine, float &sine) {
  const double whole = static_cast<double>(position) * static_cast<double>(inv_freq);
  const double turns = rint(whole * 0.15915494309189533577);
  const double rest = fma(-turns, 0x1.1a62633145c07p-52, fma(-turns, 0x1.921fb54442d18p+2, whole));
  sincospif(static_cast<float>(rest * 0.31830988618379067154), &sine, &cosine);
}

// A block takes one token after the other: its threads make the cos and sin of the token's pairs, then turn those of
// all heads, eight neighbouring pairs at a time.
template <typename X, typename Y>
__global__ void __launch_bounds__(kThreads)
    rope_kernel(const X *x, int64_t x_token, int64_t x_head, bool x_vector, Y *y, int64_t y_token, int64_t y_head,
                bool y_vector, const int64_t *positions, const float *inv_freq, int64_t tokens, int64_t heads,
                int64_t size, int64_t half, float scaling, bool inverse, bool in_place) {
  __shared__ float cosines[kPairs], sines[kPairs];
  const int64_t rest = size - 2 * half;
  for (int64_t t = blockIdx.x; t < tokens; t += gridDim.x) {
    const X *const from = x + t * x_token;
    Y *const to = y + t * y_token;
    for (int64_t first = 0; first < half; first += kPairs) {
      const int pairs = static_cast<int>(half - first < kPairs ? half - first : kPairs);
      __syncthreads();
      if (static_cast<int>(threadIdx.x) < pairs) {
        float c, s;
        angle(positions[t], inv_freq[first + threadIdx.x], c, s);
        cosines[threadIdx.x] = c * scaling;
        sines[threadIdx.x] = s * (inverse ? -scaling : scaling);
      }
      __syncthreads();
      // heads * size is that of one token: 32 bits hold it.
      const unsigned groups = static_cast<unsigned>((pairs + kGroup - 1) / kGroup);
      for (unsigned item = threadIdx.x; item < static_cast<unsigned>(heads) * groups; item += kThreads) {
        const unsigned head = item / groups;
        const int i = static_cast<int>(item - head * groups) * kGroup;
        const int n = pairs - i < kGroup ? pairs - i : kGroup;
        const X *const xs = from + head * x_head + first + i;
        Y *const ys = to + head * y_head + first + i;
        float a[kGroup], b[kGroup];
        load_typed(a, xs, 1, x_vector, n);
        load_typed(b, xs + half, 1, x_vector, n);
#pragma unroll
        for (int j = 0; j < kGroup; ++j) {
          const float c = j < n ? cosines[i + j] : 0.0f, s = j < n ? sines[i + j] : 0.0f;
          const float low = fmaf(-b[j], s, a[j] * c), high = fmaf(a[j], s, b[j] * c);
          a[j] = low;
          b[j] = high;
        }
        store_typed(ys, a, 1, y_vector, n);
        store_typed(ys + half, b, 1, y_vector, n);
      }
    }
    if (rest == 0 || in_place) continue;
    for (unsigned item = threadIdx.x; item < static_cast<unsigned>(heads * rest); item += kThreads) {
      const unsigned head = item / static_cast<unsigned>(rest);
      const int64_t i = 2 * half + item - head * rest;
      to[head * y_head + i] = convert<Y>(from[head * x_head + i]);
    }
  }
}

// Groups of eight pairs, in both halves, begin at multiples of 16 bytes.
bool vectors(const ls_tensor &x, int64_t half) {
  const int64_t element = element_bytes(x.dtype);
  return is_aligned(x.data) && (x.strides[0] * element % 16 == 0 || x.sizes[0] == 1) &&
         (x.strides[1] * element % 16 == 0 || x.sizes[1] == 1) && half * element % 16 == 0;
}

}  // namespace

ls_status rope(const ls_exec *exec, const ls_rope_args *args) {
  const ls_tensor &x = args->x, &y = args->y;
  if (element_count(x) == 0) return LS_OK;
  const int64_t half = args->inv_freq.sizes[0];
  return dispatch_float(x.dtype, [&](auto x_tag) {
    using X = typename decltype(x_tag)::type;
    return dispatch_float(y.dtype, [&](auto y_tag) {
      using Y = typename decltype(y_tag)::type;
      return LS_LAUNCH((rope_kernel<X, Y>), blocks_for(x.sizes[0], 1), kThreads, 0, exec,
                       static_cast<const X *>(x.data), x.strides[0], x.strides[1], vectors(x, half),
                       static_cast<Y *>(y.data), y.strides[0], y.strides[1], vectors(y, half),
                       static_cast<const int64_t *>(args->positions.data),
                       static_cast<const float *>(args->inv_freq.data), x.sizes[0], x.sizes[1], x.sizes[2], half,
                       static_cast<float>(args->scaling), args->inverse != 0, x.data == y.data);
    });
  });
}

}  // namespace longseq::cuda
