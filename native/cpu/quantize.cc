// Block-scaled 8-bit storage of float tensors (int8 and float8 e4m3), and the way back; see ls_quantize_args.
#include "elementwise.h"
#include "kernels.h"
#include "norm.h"

namespace longseq::cpu::LS_ISA {

namespace {

constexpr int64_t kBlock = LS_BLOCK_VALUES;
static_assert(kBlock % 16 == 0);

LS_INLINE float largest_code(int64_t format) { return format == LS_BLOCK_INT8 ? 127.0f : 448.0f; }

// Sixteen |codes| <= 448 to the bits of e4m3, to nearest even. Below 2^-6 a code is a multiple of 2^-9, above the three
// highest bits of the mantissa are kept; a carry into the exponent is what rounding means there.
LS_INLINE i32x16 to_e4m3(f32x16 v) {
  const f32x16 a = abs(v);
  const i32x16 bits = as_int(a);
  const i32x16 odd = shift_right<20>(bits) & set1_i32(1);
  const i32x16 normal = shift_right<20>(bits + set1_i32(0x7ffff) + odd) - set1_i32((127 - 7) << 3);
  const i32x16 subnormal = to_int(a * set1(512.0f));
  const i32x16 code = as_int(select(lt(a, set1(0x1p-6f)), as_float(subnormal), as_float(normal)));
  return code | (shift_right<24>(as_int(v)) & set1_i32(0x80));
}

// Exponent and mantissa in a float32's place are the value times 2^-120, subnormals included.
LS_INLINE f32x16 from_e4m3(i32x16 code) {
  const f32x16 magnitude = as_float(shift_left<20>(code & set1_i32(0x7f))) * set1(0x1p120f);
  return as_float(as_int(magnitude) | shift_left<24>(code & set1_i32(0x80)));
}

// A scale of whole bfloat16 bits that is at least `exact` (no sign, not NaN).
LS_INLINE uint16_t round_up_to_bf16(float exact) {
  return static_cast<uint16_t>((static_cast<uint64_t>(float_to_bits(exact)) + 0xffff) >> 16);
}

// One block of at most 64 values.
LS_INLINE uint16_t pack_block(const float *x, int64_t n, int64_t format, uint8_t *codes) {
  // max() gives its second operand where one is NaN, so NaNs are looked for apart.
  f32x16 top = zero();
  bool broken = false;
  for (int64_t i = 0; i < n; i += 16) {
    const f32x16 v = abs(n - i >= 16 ? load(x + i) : load(x + i, n - i));
    broken = broken || any(is_nan(v));
    top = max(v, top);
  }
  const float largest = reduce_max(top);
  broken = broken || largest == __builtin_inff();
  const uint16_t scale = broken ? uint16_t{0x7fc0} : round_up_to_bf16(largest / largest_code(format));
  const f32x16 by = set1(to_float(bf16{scale}));
  const bool nothing = broken || scale == 0;
  for (int64_t i = 0; i < n; i += 16) {
    i32x16 code = set1_i32(0);
    if (!nothing) {
      const f32x16 v = (n - i >= 16 ? load(x + i) : load(x + i, n - i)) / by;
      code = format == LS_BLOCK_INT8 ? to_int(v) : to_e4m3(v);
    }
    if (n - i >= 16) {
      store_i8(codes + i, code);
    } else {
      uint8_t part[16];
      store_i8(part, code);
      memcpy(codes + i, part, static_cast<size_t>(n - i));
    }
  }
  return scale;
}

LS_INLINE void unpack_block(const uint8_t *codes, uint16_t scale, int64_t n, int64_t format, f32x16 most, float *y) {
  const f32x16 by = set1(to_float(bf16{scale}));
  for (int64_t i = 0; i < n; i += 16) {
    uint8_t part[16] = {};
    const uint8_t *from = codes + i;
    if (n - i < 16) {
      memcpy(part, from, static_cast<size_t>(n - i));
      from = part;
    }
    const i32x16 code = load_i8(from);
    f32x16 v = (format == LS_BLOCK_INT8 ? to_float(code) : from_e4m3(code)) * by;
    // A scale that was rounded up may lead past the largest value; NaN, the second operand, stays.
    v = max(neg(most), min(most, v));
    if (n - i >= 16)
      store(y + i, v);
    else
      store(y + i, v, n - i);
  }
}

}  // namespace

ls_status quantize(const ls_exec *exec, const ls_quantize_args *args) {
  const ls_tensor &x = args->x;
  const int64_t width = x.sizes[x.ndim - 1], count = width == 0 ? 0 : row_count(x);
  const int64_t blocks = ceil_div(width, kBlock), row_bytes = width + 2 * blocks;
  const Rows rows(x, 1);
  uint8_t *const packed = static_cast<uint8_t *>(args->packed.data);
  const int64_t format = args->format;
  parallel_for(exec, count, row_grain(width), [&](int64_t begin, int64_t end) {
    alignas(64) float buffer[kBlock];
    for (int64_t row = begin; row < end; ++row) {
      const void *from = rows.at(row);
      uint8_t *const codes = packed + row * row_bytes;
      for (int64_t b = 0; b < blocks; ++b) {
        const int64_t i = b * kBlock, n = min_of(kBlock, width - i);
        const uint16_t scale = pack_block(row_piece(from, x.dtype, i, n, buffer), n, format, codes + i);
        memcpy(codes + width + 2 * b, &scale, 2);
      }
    }
  });
  return LS_OK;
}

ls_status dequantize(const ls_exec *exec, const ls_dequantize_args *args) {
  const ls_tensor &y = args->y;
  const int64_t width = y.sizes[y.ndim - 1], count = width == 0 ? 0 : row_count(y);
  const int64_t blocks = ceil_div(width, kBlock), row_bytes = width + 2 * blocks;
  const Rows rows(y, 1);
  const uint8_t *const packed = static_cast<const uint8_t *>(args->packed.data);
  const int64_t format = args->format;
  const f32x16 most = set1(bits_to_float(y.dtype == LS_BF16 ? 0x7f7f0000u : 0x7f7fffffu));
  parallel_for(exec, count, row_grain(width), [&](int64_t begin, int64_t end) {
    alignas(64) float buffer[kBlock];
    for (int64_t row = begin; row < end; ++row) {
      void *const to = rows.at(row);
      const uint8_t *const codes = packed + row * row_bytes;
      for (int64_t b = 0; b < blocks; ++b) {
        const int64_t i = b * kBlock, n = min_of(kBlock, width - i);
        uint16_t scale;
        memcpy(&scale, codes + width + 2 * b, 2);
        unpack_block(codes + i, scale, n, format, most, out_piece(to, y.dtype, i, buffer));
        finish_piece(to, y.dtype, i, n, buffer);
      }
    }
  });
  return LS_OK;
}

}  // namespace longseq::cpu::LS_ISA
