// Rotary position embedding (Su et al., arXiv 2104.09864) in the half-split form of Llama; the backward is `inverse`.
// Bytes: x once, y once, 8 of a position; FLOPs: 6 a pair, and some 50 in float64 a token and frequency, shared by all
// heads. A block takes as many tokens as have 256 angles together, and asks for the first values before it makes those.
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

// What a kernel has to know of x and y.
template <typename X, typename Y>
struct Operands {
  const X *x;
  int64_t x_token, x_head;
  Y *y;
  int64_t y_token, y_head;
  const int64_t *positions;
  const float *inv_freq;
  int64_t tokens;
  int heads, half;
  int64_t rest;  // values of a head that are copied as they are; 0 where x is y
  float scaling, sine_scaling;
};

// The values of a token that no angle turns.
template <typename X, typename Y>
LS_DEVICE void copy_rest(const Operands<X, Y> &o, int64_t t) {
  // heads * rest is that of one token: 32 bits hold it.
  const unsigned rest = static_cast<unsigned>(o.rest);
  for (unsigned item = threadIdx.x; item < static_cast<unsigned>(o.heads) * rest; item += kThreads) {
    const unsigned head = item / rest;
    const int64_t i = 2 * o.half + static_cast<int64_t>(item - head * rest);
    o.y[t * o.y_token + head * o.y_head + i] = convert<Y>(o.x[t * o.x_token + head * o.x_head + i]);
  }
}

// Whole vectors of at most 256 pairs: a block has tokens first .. first + turn - 1; a thread turns runs of as many
// pairs as 16 bytes hold, kAhead of them at a time.
template <typename X, typename Y>
__global__ void __launch_bounds__(kThreads) rope_vectors_kernel(Operands<X, Y> o, int turn) {
  constexpr int kRun = sizeof(X) == 2 && sizeof(Y) == 2 ? 8 : 4, kAhead = 2;
  constexpr int kWords = kRun * static_cast<int>(sizeof(X)) / 4;
  __shared__ __align__(16) float cosines[kPairs];
  __shared__ __align__(16) float sines[kPairs];
  const unsigned runs = static_cast<unsigned>(o.half / kRun), of_token = static_cast<unsigned>(o.heads) * runs;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * turn; first < o.tokens;
       first += static_cast<int64_t>(gridDim.x) * turn) {
    const int tokens = static_cast<int>(o.tokens - first < turn ? o.tokens - first : turn);
    const unsigned items = static_cast<unsigned>(tokens) * of_token;
    Pack<uint32_t, kWords> low[kAhead], high[kAhead];
    const auto place = [&](unsigned item, int &token, int64_t &head, int &i) {
      token = static_cast<int>(item / of_token);
      const unsigned in_token = item - static_cast<unsigned>(token) * of_token;
      head = in_token / runs;
      i = static_cast<int>(in_token % runs) * kRun;
    };
    const auto load = [&](unsigned begin) {
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        const unsigned item = begin + static_cast<unsigned>(k * kThreads);
        if (item >= items) continue;
        int token, i;
        int64_t head;
        place(item, token, head, i);
        const X *const from = o.x + (first + token) * o.x_token + head * o.x_head + i;
        low[k] = load_pack<kWords>(reinterpret_cast<const uint32_t *>(from));
        high[k] = load_pack<kWords>(reinterpret_cast<const uint32_t *>(from + o.half));
      }
    };
    load(threadIdx.x);
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < tokens * o.half) {
      const int token = static_cast<int>(threadIdx.x) / o.half, pair = static_cast<int>(threadIdx.x) % o.half;
      float c, s;
      angle(o.positions[first + token], o.inv_freq[pair], c, s);
      cosines[threadIdx.x] = c * o.scaling;
      sines[threadIdx.x] = s * o.sine_scaling;
    }
    __syncthreads();
    for (unsigned begin = threadIdx.x; begin < items; begin += kAhead * kThreads) {
      if (begin != threadIdx.x) load(begin);
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        const unsigned item = begin + static_cast<unsigned>(k * kThreads);
        if (item >= items) continue;
        int token, i;
        int64_t head;
        place(item, token, head, i);
        float a[kRun], b[kRun], cosine[kRun], sine[kRun];
        load_run(cosine, cosines + token * o.half + i);
        load_run(sine, sines + token * o.half + i);
#pragma unroll
        for (int j = 0; j < kRun; ++j) {
          const float x = value_of<X>(low[k].at, j), y = value_of<X>(high[k].at, j);
          a[j] = fmaf(-y, sine[j], x * cosine[j]);
          b[j] = fmaf(x, sine[j], y * cosine[j]);
        }
        Y *const to = o.y + (first + token) * o.y_token + head * o.y_head + i;
        store_run(to, a);
        store_run(to + o.half, b);
      }
    }
    for (int token = 0; o.rest != 0 && token < tokens; ++token) copy_rest(o, first + token);
  }
}

// Any layout and size: a block takes one token after the other, a thread one pair.
template <typename X, typename Y>
__global__ void __launch_bounds__(kThreads) rope_kernel(Operands<X, Y> o) {
  __shared__ float cosines[kPairs], sines[kPairs];
  for (int64_t t = blockIdx.x; t < o.tokens; t += gridDim.x) {
    for (int first = 0; first < o.half; first += kPairs) {
      const unsigned pairs = static_cast<unsigned>(o.half - first < kPairs ? o.half - first : kPairs);
      __syncthreads();
      if (threadIdx.x < pairs) {
        float c, s;
        angle(o.positions[t], o.inv_freq[first + static_cast<int>(threadIdx.x)], c, s);
        cosines[threadIdx.x] = c * o.scaling;
        sines[threadIdx.x] = s * o.sine_scaling;
      }
      __syncthreads();
      // heads * pairs is that of one token: 32 bits hold it.
      for (unsigned item = threadIdx.x; item < static_cast<unsigned>(o.heads) * pairs; item += kThreads) {
        const unsigned head = item / pairs, i = item - head * pairs;
        const X *const from = o.x + t * o.x_token + head * o.x_head + first + i;
        Y *const to = o.y + t * o.y_token + head * o.y_head + first + i;
        const float a = to_float(from[0]), b = to_float(from[o.half]), c = cosines[i], s = sines[i];
        to[0] = from_float<Y>(fmaf(-b, s, a * c));
        to[o.half] = from_float<Y>(fmaf(a, s, b * c));
      }
    }
    if (o.rest != 0) copy_rest(o, t);
  }
}

// Runs of eight pairs, in both halves, begin at multiples of 16 bytes.
bool vectors(const ls_tensor &x) {
  const int64_t element = element_bytes(x.dtype);
  return is_aligned(x.data) && (x.strides[0] * element % 16 == 0 || x.sizes[0] == 1) &&
         (x.strides[1] * element % 16 == 0 || x.sizes[1] == 1);
}

}  // namespace

ls_status rope(const ls_exec *exec, const ls_rope_args *args) {
  const ls_tensor &x = args->x, &y = args->y;
  if (element_count(x) == 0) return LS_OK;
  const int64_t half = args->inv_freq.sizes[0], tokens = x.sizes[0];
  const float scaling = static_cast<float>(args->scaling);
  return dispatch_float(x.dtype, [&](auto x_tag) {
    using X = typename decltype(x_tag)::type;
    return dispatch_float(y.dtype, [&](auto y_tag) {
      using Y = typename decltype(y_tag)::type;
      const Operands<X, Y> operands{static_cast<const X *>(x.data),
                                    x.strides[0],
                                    x.strides[1],
                                    static_cast<Y *>(y.data),
                                    y.strides[0],
                                    y.strides[1],
                                    static_cast<const int64_t *>(args->positions.data),
                                    static_cast<const float *>(args->inv_freq.data),
                                    tokens,
                                    static_cast<int>(x.sizes[1]),
                                    static_cast<int>(half),
                                    x.data == y.data ? 0 : x.sizes[2] - 2 * half,
                                    scaling,
                                    args->inverse != 0 ? -scaling : scaling};
      if (half > 0 && half % kGroup == 0 && half <= kPairs && vectors(x) && vectors(y)) {
        const int64_t turn = kPairs / half;
        return LS_LAUNCH((rope_vectors_kernel<X, Y>), blocks_for(tokens, turn), kThreads, 0, exec, operands,
                         static_cast<int>(turn));
      }
      return LS_LAUNCH((rope_kernel<X, Y>), blocks_for(tokens, 1), kThreads, 0, exec, operands);
    });
  });
}

}  // namespace longseq::cuda
