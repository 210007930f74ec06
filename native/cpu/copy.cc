// Copies between any layouts and dtypes; a permuting copy is a copy of a permuted view.
#include "elementwise.h"
#include "kernels.h"

namespace longseq::cpu::LS_ISA {

namespace {

constexpr int64_t kSide = 64;  // of the square blocks of a transposing copy

// to[c * to_stride + r] = from[r * from_stride + c] for 8 x 8 values.
LS_INLINE void transpose8(const uint32_t *from, int64_t from_stride, uint32_t *to, int64_t to_stride) {
  __m256 r[8], s[8];
  for (int i = 0; i < 8; ++i) r[i] = _mm256_loadu_ps(reinterpret_cast<const float *>(from + i * from_stride));
  for (int i = 0; i < 8; i += 2) {
    s[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    s[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    r[i] = _mm256_shuffle_ps(s[i], s[i + 2], 0x44);
    r[i + 1] = _mm256_shuffle_ps(s[i], s[i + 2], 0xee);
    r[i + 2] = _mm256_shuffle_ps(s[i + 1], s[i + 3], 0x44);
    r[i + 3] = _mm256_shuffle_ps(s[i + 1], s[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(reinterpret_cast<float *>(to + i * to_stride), _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
    _mm256_storeu_ps(reinterpret_cast<float *>(to + (i + 4) * to_stride), _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
  }
}
LS_INLINE void transpose8(const uint16_t *from, int64_t from_stride, uint16_t *to, int64_t to_stride) {
  __m128i r[8], s[8];
  for (int i = 0; i < 8; ++i) r[i] = _mm_loadu_si128(reinterpret_cast<const __m128i *>(from + i * from_stride));
  for (int i = 0; i < 4; ++i) {
    s[2 * i] = _mm_unpacklo_epi16(r[2 * i], r[2 * i + 1]);
    s[2 * i + 1] = _mm_unpackhi_epi16(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    r[i] = _mm_unpacklo_epi32(s[i], s[i + 2]);
    r[i + 1] = _mm_unpackhi_epi32(s[i], s[i + 2]);
    r[i + 2] = _mm_unpacklo_epi32(s[i + 1], s[i + 3]);
    r[i + 3] = _mm_unpackhi_epi32(s[i + 1], s[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    _mm_storeu_si128(reinterpret_cast<__m128i *>(to + 2 * i * to_stride), _mm_unpacklo_epi64(r[i], r[i + 4]));
    _mm_storeu_si128(reinterpret_cast<__m128i *>(to + (2 * i + 1) * to_stride), _mm_unpackhi_epi64(r[i], r[i + 4]));
  }
}

// Lines of a power of two apart fall into the same few places of the first cache, so a block is turned in a small
// buffer and leaves it in whole runs.
template <typename U>
LS_INLINE void transpose_block(const U *from, int64_t from_stride, U *to, int64_t to_stride, int64_t rows,
                               int64_t columns) {
  constexpr int64_t pitch = kSide + 64 / static_cast<int64_t>(sizeof(U));
  alignas(64) U buffer[kSide * pitch];
  int64_t r = 0;
  if constexpr (sizeof(U) == 4 || sizeof(U) == 2) {
    for (; r + 8 <= rows; r += 8) {
      int64_t c = 0;
      for (; c + 8 <= columns; c += 8)
        transpose8(from + r * from_stride + c, from_stride, buffer + c * pitch + r, pitch);
      for (; c < columns; ++c)
        for (int64_t i = r; i < r + 8; ++i) buffer[c * pitch + i] = from[i * from_stride + c];
    }
  }
  for (; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c) buffer[c * pitch + r] = from[r * from_stride + c];
  for (int64_t c = 0; c < columns; ++c)
    memcpy(to + c * to_stride, buffer + c * pitch, static_cast<size_t>(rows) * sizeof(U));
}

// The outer dim in which the source is contiguous, where its inner dim is not but the destination's is; else -1.
int32_t transposed_dim(const Plan<2> &plan) {
  if (plan.inner_strides[0] == 1 || plan.inner_strides[1] != 1) return -1;
  for (int32_t d = 0; d < plan.ndim; ++d)
    if (plan.strides[0][d] == 1 && plan.sizes[d] >= 4 && plan.inner >= 4) return d;
  return -1;
}

// Square blocks over dim `across` (contiguous in the source) and the inner dim (contiguous in the destination).
template <typename U>
void copy_transposed(const ls_exec *exec, const Plan<2> &plan, int32_t across) {
  Plan<2> rest = plan;
  rest.sizes[across] = 1;
  const int64_t others = plan.outer / plan.sizes[across];
  const int64_t from_stride = plan.inner_strides[0], to_stride = plan.strides[1][across];
  const int64_t width = plan.sizes[across];
  const int64_t blocks_down = ceil_div(plan.inner, kSide), blocks_across = ceil_div(width, kSide);
  const int64_t blocks = blocks_down * blocks_across;
  parallel_for(exec, others * blocks, 4, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t other = item / blocks, block = item - other * blocks;
      const int64_t down = block / blocks_across * kSide, right = block % blocks_across * kSide;
      const U *from = reinterpret_cast<const U *>(plan.base[0]) + rest.offset(0, other) + down * from_stride + right;
      U *to = reinterpret_cast<U *>(plan.base[1]) + rest.offset(1, other) + right * to_stride + down;
      transpose_block(from, from_stride, to, to_stride, min_of(kSide, plan.inner - down), min_of(kSide, width - right));
    }
  });
}

template <typename U>
void copy_same(const ls_exec *exec, const Plan<2> &plan) {
  if (const int32_t across = transposed_dim(plan); across >= 0) return copy_transposed<U>(exec, plan, across);
  const int64_t from_stride = plan.inner_strides[0], to_stride = plan.inner_strides[1];
  const int64_t chunks = plan.chunks();
  parallel_for(exec, plan.items(), plan.grain(), [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t index = item / chunks, first = (item - index * chunks) * Plan<2>::kChunk;
      const int64_t n = min_of(Plan<2>::kChunk, plan.inner - first);
      const U *from = reinterpret_cast<const U *>(plan.base[0]) + plan.offset(0, index) + first * from_stride;
      U *to = reinterpret_cast<U *>(plan.base[1]) + plan.offset(1, index) + first * to_stride;
      if (from_stride == 1 && to_stride == 1) {
        memmove(to, from, static_cast<size_t>(n) * sizeof(U));
      } else {
        for (int64_t i = 0; i < n; ++i) to[i * to_stride] = from[i * from_stride];
      }
    }
  });
}

bool integral(int32_t dtype) { return dtype == LS_I32 || dtype == LS_I64 || dtype == LS_U8; }
bool single(int32_t dtype) { return dtype == LS_F32 || dtype == LS_BF16; }

}  // namespace

ls_status copy(const ls_exec *exec, const ls_copy_args *args) {
  const ls_tensor *const operands[] = {&args->src, &args->dst};
  const int use[] = {kReads, kWrites};
  const int32_t from = args->src.dtype, to = args->dst.dtype;
  if (from == to) {
    const Plan<2> plan(operands);
    switch (element_bytes(from)) {
      case 8:
        copy_same<uint64_t>(exec, plan);
        break;
      case 4:
        copy_same<uint32_t>(exec, plan);
        break;
      case 2:
        copy_same<uint16_t>(exec, plan);
        break;
      default:
        copy_same<uint8_t>(exec, plan);
    }
    return LS_OK;
  }
  // Through a type that holds both exactly.
  if (single(from) && single(to)) {
    elementwise<float>(exec, operands, use, [](float *const *p, int64_t n) {
      if (p[0] != p[1]) memmove(p[1], p[0], static_cast<size_t>(n) * sizeof(float));
    });
  } else if (integral(from) && integral(to)) {
    elementwise<int64_t>(exec, operands, use, [](int64_t *const *p, int64_t n) {
      if (p[0] != p[1]) memmove(p[1], p[0], static_cast<size_t>(n) * sizeof(int64_t));
    });
  } else {
    elementwise<double>(exec, operands, use, [](double *const *p, int64_t n) {
      if (p[0] != p[1]) memmove(p[1], p[0], static_cast<size_t>(n) * sizeof(double));
    });
  }
  return LS_OK;
}

}  // namespace longseq::cpu::LS_ISA
