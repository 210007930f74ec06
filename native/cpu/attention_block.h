// What attention's forward and backward share: which keys a query attends, and rows brought into scratch.
#ifndef LONGSEQ_CPU_ATTENTION_BLOCK_H
#define LONGSEQ_CPU_ATTENTION_BLOCK_H

#include "kernels.h"
#include "microkernel.h"
#include "scratch.h"
#include "simd.h"

namespace longseq::cpu::LS_ISA {

// Largest head size.
inline constexpr int64_t kMaxHead = 256;
// Distance of two rows [D] in scratch: an odd number of cache lines, so that rows fall into different cache sets.
inline constexpr int kHeadStride = 272;
// Keys of a block, and queries of a backward block. Sums are cut there: the bits depend on these.
inline constexpr int64_t kKeyBlock = 128;
inline constexpr int64_t kQueryBlock = 128;

// The half-open range of key rows that a query row attends; empty where lo >= hi.
struct KeyRange {
  int64_t lo, hi;
};

// Both ends of keys(i) grow with i, so the ends of a block of queries come from its first and last row.
struct Mask {
  int64_t queries, keys_count, q_offset, k_offset, window;
  bool causal;
  const int64_t *cu_seqlens;  // NULL: one document
  int64_t documents;

  KeyRange keys(int64_t i) const {
    const int64_t position = q_offset + i, first = k_offset, end = k_offset + keys_count;
    int64_t lo = first, hi = end;
    if (cu_seqlens != nullptr) {
      if (documents <= 0 || position < cu_seqlens[0]) return {0, 0};
      if (position >= cu_seqlens[documents]) return {keys_count, keys_count};
      // The last document that starts at or before position; empty ones before it are passed over.
      int64_t at = 0, behind = documents;
      while (behind - at > 1) {
        const int64_t middle = at + (behind - at) / 2;
        if (cu_seqlens[middle] <= position) {
          at = middle;
        } else {
          behind = middle;
        }
      }
      lo = max_of(lo, cu_seqlens[at]);
      hi = min_of(hi, cu_seqlens[at + 1]);
    }
    if (window > 0) {
      lo = max_of(lo, position - window + 1);
      hi = min_of(hi, position + window);
    }
    if (causal) hi = min_of(hi, position + 1);
    return {min_of(max_of(lo, first), end) - first, min_of(max_of(hi, first), end) - first};
  }

  // Covers what the rows begin..end-1 attend.
  KeyRange keys(int64_t begin, int64_t end) const { return {keys(begin).lo, keys(end - 1).hi}; }
};

template <class Args>
LS_INLINE Mask mask_of(const Args *args) {
  Mask mask{};
  mask.queries = args->q.sizes[0];
  mask.keys_count = args->k.sizes[0];
  mask.q_offset = args->q_offset;
  mask.k_offset = args->k_offset;
  mask.window = args->window;
  mask.causal = args->causal != 0;
  if (args->cu_seqlens_host != nullptr) {
    mask.cu_seqlens = args->cu_seqlens_host;
    mask.documents = args->documents;
  } else if (args->cu_seqlens.present) {
    mask.cu_seqlens = static_cast<const int64_t *>(args->cu_seqlens.data);
    mask.documents = args->cu_seqlens.sizes[0] - 1;
  }
  return mask;
}

// One head of a tensor [T, heads, D]: row t starts at data + t * stride elements.
struct Head {
  char *data;
  int64_t stride;
  bool half;

  char *row(int64_t t) const { return data + t * stride * (half ? 2 : 4); }
};

LS_INLINE Head head_of(const ls_tensor &x, int64_t head) {
  const bool half = x.dtype == LS_BF16;
  return {static_cast<char *>(x.data) + head * x.strides[1] * (half ? 2 : 4), x.strides[0], half};
}

// out[0..n-1] = row as float32, zeros up to whole vectors.
LS_INLINE void load_row(const Head &x, int64_t t, int64_t n, float *out) {
  constexpr int w = Vec::kWidth;
  int64_t i = 0;
  if (x.half) {
    const bf16 *s = reinterpret_cast<const bf16 *>(x.row(t));
    for (; i + w <= n; i += w) vec_store(out + i, vec_load_bf16(s + i));
    if (i < n) {
      vec_store(out + i, vec_zero());
      for (; i < n; ++i) out[i] = to_float(s[i]);
    }
  } else {
    const float *s = reinterpret_cast<const float *>(x.row(t));
    for (; i + w <= n; i += w) vec_store(out + i, vec_load(s + i));
    if (i < n) vec_store(out + i, vec_load(s + i, static_cast<int>(n - i)));
  }
}

// row = scale * in, or += that.
LS_INLINE void store_row(const Head &x, int64_t t, int64_t n, const float *in, float scale, bool accumulate) {
  constexpr int w = Vec::kWidth;
  const Vec factor = vec_set(scale);
  int64_t i = 0;
  if (x.half) {
    bf16 *o = reinterpret_cast<bf16 *>(x.row(t));
    for (; i + w <= n; i += w) {
      vec_store_bf16(o + i, vec_fma(factor, vec_load(in + i), accumulate ? vec_load_bf16(o + i) : vec_zero()));
    }
    for (; i < n; ++i) o[i] = to_bf16(__builtin_fmaf(scale, in[i], accumulate ? to_float(o[i]) : 0.0f));
  } else {
    float *o = reinterpret_cast<float *>(x.row(t));
    for (; i + w <= n; i += w) {
      vec_store(o + i, vec_fma(factor, vec_load(in + i), accumulate ? vec_load(o + i) : vec_zero()));
    }
    for (; i < n; ++i) o[i] = __builtin_fmaf(scale, in[i], accumulate ? o[i] : 0.0f);
  }
}

// Rows t0..t0+rows-1 of a head to float32, kHeadStride apart.
LS_INLINE void load_rows(const Head &x, int64_t t0, int64_t rows, int64_t n, float *out) {
  for (int64_t r = 0; r < rows; ++r) load_row(x, t0 + r, n, out + r * kHeadStride);
}

// A panel out[d * kPanel + lane] = scale * rows[lane * kHeadStride + d]; lanes from `rows` on are zero.
LS_INLINE void transpose_panel(const float *rows, int64_t count, int64_t n, float scale, float *out) {
  constexpr int w = Vec::kWidth;
  const Vec factor = vec_set(scale);
  for (int64_t half = 0; half < kPanel; half += w) {
    for (int64_t d = 0; d < n; d += w) {
      Vec square[w];
      LS_UNROLL
      for (int i = 0; i < w; ++i) {
        square[i] = half + i < count ? vec_mul(factor, vec_load(rows + (half + i) * kHeadStride + d)) : vec_zero();
      }
      // The rows are padded to whole vectors, and so is the panel's memory.
      transpose_store(square, out + d * kPanel + half, kPanel);
    }
  }
}

// scores[i] = cap * tanh(scores[i] / cap) for n of them, whole panels.
LS_INLINE void cap_scores(float *scores, int64_t n, float cap) {
  const f32x16 limit = set1(cap), inverse = set1(1.0f / cap);
  for (int64_t i = 0; i < n; i += 16) store(scores + i, limit * tanh(load(scores + i) * inverse));
}

// Cuts n rows into the fewest register tiles and makes them as equal as possible: f(first row, rows).
template <class F>
LS_INLINE void for_row_tiles(int64_t n, F &&f) {
  int64_t left = ceil_div(n, kRows);
  for (int64_t i = 0; i < n; --left) {
    const int64_t rows = ceil_div(n - i, left);
    f(i, rows);
    i += rows;
  }
}

}  // namespace longseq::cpu::LS_ISA

#endif  // LONGSEQ_CPU_ATTENTION_BLOCK_H
