// Block-scaled 8-bit storage of float tensors (int8 and float8 e4m3), and the way back; see ls_quantize_args. Bytes:
// each value once, a byte a value and two a block of 64 on the packed side; FLOPs: some ten a value. A warp takes a
// block, a lane two neighbours of it; the bits are the CPU's.
#include "elementwise.h"
#include "entries.h"
#include "reduce.h"

namespace longseq::cuda {

namespace {

constexpr int kBlock = LS_BLOCK_VALUES, kThreads = 256, kWarps = kThreads / 32;
static_assert(kBlock == 64);

struct Max {
  LS_DEVICE float operator()(float a, float b) const { return fmaxf(a, b); }
};

// |v| <= 448 to the bits of e4m3, to nearest even. Below 2^-6 a code is a multiple of 2^-9, above the three highest
// bits of the mantissa are kept; a carry into the exponent is what rounding means there.
LS_DEVICE uint8_t to_e4m3(float v) {
  const float a = fabsf(v);
  const uint32_t bits = as_bits(a), odd = bits >> 20 & 1;
  const uint32_t code =
      a < 0x1p-6f ? static_cast<uint32_t>(rintf(a * 512.0f)) : ((bits + 0x7ffff + odd) >> 20) - ((127 - 7) << 3);
  return static_cast<uint8_t>(code | (as_bits(v) >> 24 & 0x80));
}

// Exponent and mantissa in a float32's place are the value times 2^-120, subnormals included.
LS_DEVICE float from_e4m3(uint8_t code) {
  const float magnitude = as_float(static_cast<uint32_t>(code & 0x7f) << 20) * 0x1p120f;
  return code & 0x80 ? -magnitude : magnitude;
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    quantize_kernel(Rows xs, uint8_t *packed, int64_t rows, int64_t width, int format) {
  const int64_t blocks = ceil_div(width, kBlock), row_bytes = width + 2 * blocks, items = rows * blocks;
  const int lane = static_cast<int>(threadIdx.x % 32);
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32; item < items;
       item += static_cast<int64_t>(gridDim.x) * kWarps) {
    const int64_t row = item / blocks, b = item - row * blocks, i = b * kBlock + 2 * lane;
    const T *const x = reinterpret_cast<const T *>(xs.at(row));
    uint8_t *const codes = packed + row * row_bytes;
    const float v[2] = {i < width ? to_float(x[i]) : 0.0f, i + 1 < width ? to_float(x[i + 1]) : 0.0f};
    // The maximum passes NaNs over: they are looked for apart.
    const float largest = warp_reduce(fmaxf(fabsf(v[0]), fabsf(v[1])), Max{});
    const bool broken = __any_sync(kAllLanes, v[0] != v[0] || v[1] != v[1]) || largest == INFINITY;
    const float exact = largest / (format == LS_BLOCK_INT8 ? 127.0f : 448.0f);
    const uint16_t scale =
        broken ? 0x7fc0 : static_cast<uint16_t>((static_cast<uint64_t>(as_bits(exact)) + 0xffff) >> 16);
    const float by = to_float(bf16{scale});
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      if (i + j >= width) continue;
      const float value = broken || scale == 0 ? 0.0f : v[j] / by;
      codes[i + j] =
          format == LS_BLOCK_INT8 ? static_cast<uint8_t>(static_cast<int32_t>(rintf(value))) : to_e4m3(value);
    }
    if (lane == 0) {
      codes[width + 2 * b] = static_cast<uint8_t>(scale);
      codes[width + 2 * b + 1] = static_cast<uint8_t>(scale >> 8);
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    dequantize_kernel(const uint8_t *packed, Rows ys, int64_t rows, int64_t width, int format) {
  const int64_t blocks = ceil_div(width, kBlock), row_bytes = width + 2 * blocks, items = rows * blocks;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const float most = as_float(kDtypeOf<T> == LS_BF16 ? 0x7f7f0000u : 0x7f7fffffu);
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32; item < items;
       item += static_cast<int64_t>(gridDim.x) * kWarps) {
    const int64_t row = item / blocks, b = item - row * blocks, i = b * kBlock + 2 * lane;
    T *const y = reinterpret_cast<T *>(ys.at(row));
    const uint8_t *const codes = packed + row * row_bytes;
    const uint8_t *const scale = codes + width + 2 * b;
    const float by = to_float(bf16{static_cast<uint16_t>(scale[0] | scale[1] << 8)});
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      if (i + j >= width) continue;
      const uint8_t code = codes[i + j];
      const float v = (format == LS_BLOCK_INT8 ? static_cast<float>(static_cast<int8_t>(code)) : from_e4m3(code)) * by;
      // A scale that was rounded up may lead past the largest value; NaN stays.
      y[i + j] = from_float<T>(v > most ? most : v < -most ? -most : v);
    }
  }
}

}  // namespace

ls_status quantize(const ls_exec *exec, const ls_quantize_args *args) {
  const ls_tensor &x = args->x;
  const int64_t width = x.sizes[x.ndim - 1], rows = width == 0 ? 0 : row_count(x);
  if (rows == 0) return LS_OK;
  return dispatch_float(x.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return LS_LAUNCH(quantize_kernel<T>, blocks_for(rows * ceil_div(width, kBlock), kWarps), kThreads, 0, exec,
                     Rows(x, 1), static_cast<uint8_t *>(args->packed.data), rows, width,
                     static_cast<int>(args->format));
  });
}

ls_status dequantize(const ls_exec *exec, const ls_dequantize_args *args) {
  const ls_tensor &y = args->y;
  const int64_t width = y.sizes[y.ndim - 1], rows = width == 0 ? 0 : row_count(y);
  if (rows == 0) return LS_OK;
  return dispatch_float(y.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return LS_LAUNCH(dequantize_kernel<T>, blocks_for(rows * ceil_div(width, kBlock), kWarps), kThreads, 0, exec,
                     static_cast<const uint8_t *>(args->packed.data), Rows(y, 1), rows, width,
                     static_cast<int>(args->format));
  });
}

}  // namespace longseq::cuda
