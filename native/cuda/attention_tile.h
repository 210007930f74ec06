// What attention's kernels share: their arguments, which keys a query attends, tiles in shared memory and their
// products.
//
// Rows and columns: in the forward and in dq's kernel rows are queries and columns keys; in the kernel of dk and dv
// rows are keys and columns queries. Either way each row attends one interval of columns, and both ends grow with the
// row.
#ifndef LONGSEQ_CUDA_ATTENTION_TILE_H
#define LONGSEQ_CUDA_ATTENTION_TILE_H

#include "launch.h"
#include "tensor_core.h"

namespace longseq::cuda {

// [T, heads, D] with D contiguous; strides in elements.
struct HeadTensor {
  void *data;
  int64_t row, head;
  int32_t dtype;
};

struct AttentionParams {
  HeadTensor q, k, v, o, dout, dq, dk, dv;
  float *lse, *delta;         // [N, Tq]
  const int64_t *cu_seqlens;  // [documents + 1]; null: one document
  int64_t documents;
  int64_t queries, keys;       // Tq, Tk
  int64_t q_offset, k_offset;  // positions of the first query and the first key
  int64_t window;              // 0: none
  int32_t heads, group, d;     // N, N / K, D
  bool causal, vectors;        // vectors: 16-byte copies are possible
  bool accumulate_dq, accumulate_dkv;
  float scale;
  // Products q.k become cap * tanh(q.k / cap): the cap of scores over their scale; 0: they stay.
  float cap;
};

// Half-open interval of columns; the entries refuse 2^31 of them and more.
struct Interval {
  int lo, hi;
};

// The columns that row `row` attends. rows are keys if of_keys, else queries.
LS_DEVICE Interval attended(const AttentionParams &p, bool of_keys, int64_t row) {
  const int64_t position = (of_keys ? p.k_offset : p.q_offset) + row;
  const int64_t first = of_keys ? p.q_offset : p.k_offset;
  const int64_t count = of_keys ? p.queries : p.keys;
  int64_t lo = first, hi = first + count;
  if (p.cu_seqlens != nullptr) {
    if (p.documents <= 0 || position < p.cu_seqlens[0]) return {0, 0};
    if (position >= p.cu_seqlens[p.documents]) return {static_cast<int>(count), static_cast<int>(count)};
    // The last document that starts at or before the position; empty ones before it are passed over.
    int64_t at = 0, behind = p.documents;
    while (behind - at > 1) {
      const int64_t middle = at + (behind - at) / 2;
      if (p.cu_seqlens[middle] <= position) {
        at = middle;
      } else {
        behind = middle;
      }
    }
    lo = max(lo, p.cu_seqlens[at]);
    hi = min(hi, p.cu_seqlens[at + 1]);
  }
  if (p.window > 0) {
    lo = max(lo, position - p.window + 1);
    hi = min(hi, position + p.window);
  }
  if (p.causal) {
    if (of_keys) {
      lo = max(lo, position);
    } else {
      hi = min(hi, position + 1);
    }
  }
  const int64_t end = first + count;
  lo = min(max(lo, first), end) - first;
  hi = min(max(hi, first), end) - first;
  return {static_cast<int>(lo), static_cast<int>(hi)};
}

// How much of a tile of columns some rows attend.
enum class Reach { none, part, whole };

// What the rows of a block attend.
struct RowBounds {
  int begin, end;        // columns that any row attends lie in between
  const Interval *rows;  // in shared memory
  // Rows row .. row + count - 1 of the block and columns at .. end - 1; both ends of intervals grow with the row.
  LS_DEVICE Reach reach(int row, int count, int at, int to) const {
    const Interval first = rows[row], last = rows[row + count - 1];
    if (last.hi <= at || to <= first.lo) return Reach::none;
    return last.lo <= at && to <= first.hi ? Reach::whole : Reach::part;
  }
};
// With a barrier.
template <int kRows, int kThreads>
LS_DEVICE RowBounds row_bounds(const AttentionParams &p, bool of_keys, int64_t row0, int64_t total, void *shared) {
  Interval *rows = static_cast<Interval *>(shared);
  for (int i = static_cast<int>(threadIdx.x); i < kRows; i += kThreads)
    rows[i] = attended(p, of_keys, min(row0 + i, total - 1));
  __syncthreads();
  return {rows[0].lo, rows[kRows - 1].hi, rows};
}

// Distance of two rows [D] in shared memory, in elements: an odd number of 16-byte pieces, so that the eight rows of an
// ldmatrix lie in different banks.
template <int kD>
inline constexpr int kStride = kD + 8;
static_assert(kStride<64> / 8 % 2 == 1 && kStride<96> / 8 % 2 == 1 && kStride<128> / 8 % 2 == 1 &&
              kStride<256> / 8 % 2 == 1);

// Starts copying rows first .. first + kRows - 1 of a head; rows beyond `total` and columns beyond d become zeros. The
// first row exists. A thread keeps to one piece of 16 bytes of every kStep-th row, so that a copy costs few
// instructions.
template <int kRows, int kD, int kThreads>
LS_DEVICE void load_tile(bf16 *shared, const HeadTensor &from, int64_t head, int64_t first, int64_t total, int d,
                         bool vectors) {
  constexpr int kPieces = kD / 8, kStep = kThreads / kPieces, kCopies = (kRows + kStep - 1) / kStep;
  const int own = static_cast<int>(threadIdx.x) / kPieces, column = static_cast<int>(threadIdx.x) % kPieces * 8;
  if (kThreads % kPieces != 0 && own >= kStep) return;
  const bf16 *source = static_cast<const bf16 *>(from.data) + head * from.head + first * from.row;
  // Rows of the tile that have something in this column.
  const int there = column < d ? static_cast<int>(min(total - first, static_cast<int64_t>(kRows))) : 0;
  bf16 *to = shared + own * kStride<kD> + column;
#pragma unroll 2
  for (int i = 0; i < kCopies; ++i, to += kStep * kStride<kD>) {
    const int row = own + i * kStep;
    if (kRows % kStep != 0 && row >= kRows) break;
    const bool inside = row < there;
    const bf16 *piece = inside ? source + row * from.row + column : source;
    if (vectors) {
      cp_async_16(to, piece, inside);
    } else {
      for (int e = 0; e < 8; ++e) to[e] = inside && column + e < d ? piece[e] : bf16{0};
    }
  }
}

// The fragments of rows [16 kM, kD] at `a`, for all products with them.
template <int kM, int kD>
LS_DEVICE void load_fragments(uint32_t (&fragments)[kD / 16][kM][4], const bf16 *a) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const bf16 *a_row = a + lane % 16 * kStride<kD> + lane / 16 * 8;
#pragma unroll
  for (int k = 0; k < kD / 16; ++k)
#pragma unroll
    for (int m = 0; m < kM; ++m) ldmatrix_x4(fragments[k][m], a_row + m * 16 * kStride<kD> + k * 16);
}

// acc [16 kM, 8 kN] += a [16 kM, D] . b [8 kN, D]^T, a in fragments, b in shared memory.
template <int kM, int kN, int kD>
LS_DEVICE void multiply_fragments(float (&acc)[kM][kN][4], const uint32_t (&a)[kD / 16][kM][4], const bf16 *b) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const bf16 *b_row = b + (lane / 16 * 8 + lane % 8) * kStride<kD> + lane / 8 % 2 * 8;
#pragma unroll
  for (int k = 0; k < kD / 16; ++k)
#pragma unroll
    for (int n = 0; n < kN; n += 2) {
      uint32_t fb[4];
      ldmatrix_x4(fb, b_row + n * 8 * kStride<kD> + k * 16);
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        mma_bf16(acc[m][n], a[k][m], fb[0], fb[1]);
        mma_bf16(acc[m][n + 1], a[k][m], fb[2], fb[3]);
      }
    }
}

// The same with both in shared memory.
template <int kM, int kN, int kD>
LS_DEVICE void multiply_rows(float (&acc)[kM][kN][4], const bf16 *a, const bf16 *b) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const bf16 *a_row = a + lane % 16 * kStride<kD> + lane / 16 * 8;
  const bf16 *b_row = b + (lane / 16 * 8 + lane % 8) * kStride<kD> + lane / 8 % 2 * 8;
#pragma unroll
  for (int k = 0; k < kD; k += 16) {
    uint32_t fa[kM][4];
#pragma unroll
    for (int m = 0; m < kM; ++m) ldmatrix_x4(fa[m], a_row + m * 16 * kStride<kD> + k);
#pragma unroll
    for (int n = 0; n < kN; n += 2) {
      uint32_t fb[4];
      ldmatrix_x4(fb, b_row + n * 8 * kStride<kD> + k);
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        mma_bf16(acc[m][n], fa[m], fb[0], fb[1]);
        mma_bf16(acc[m][n + 1], fa[m], fb[2], fb[3]);
      }
    }
  }
}

// acc [16 kM, 8 kN] += bf16(s) [16 kM, 8 kK] . b [8 kK, 8 kN], s in fragments, b in shared memory with rows of kD.
template <int kM, int kN, int kK, int kD>
LS_DEVICE void multiply_columns(float (&acc)[kM][kN][4], const float (&s)[kM][kK][4], const bf16 *b) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const bf16 *b_row = b + lane % 16 * kStride<kD> + lane / 16 * 8;
#pragma unroll
  for (int k = 0; k < kK; k += 2) {
    uint32_t fa[kM][4];
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      fa[m][0] = pack_bf16(s[m][k][0], s[m][k][1]);
      fa[m][1] = pack_bf16(s[m][k][2], s[m][k][3]);
      fa[m][2] = pack_bf16(s[m][k + 1][0], s[m][k + 1][1]);
      fa[m][3] = pack_bf16(s[m][k + 1][2], s[m][k + 1][3]);
    }
#pragma unroll
    for (int n = 0; n < kN; n += 2) {
      uint32_t fb[4];
      ldmatrix_x4_transposed(fb, b_row + k * 8 * kStride<kD> + n * 8);
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        mma_bf16(acc[m][n], fa[m], fb[0], fb[1]);
        mma_bf16(acc[m][n + 1], fa[m], fb[2], fb[3]);
      }
    }
  }
}

// Puts a warp's fragments, times `factor` of each half (or adds them to what is there), into rows [kD] of floats in
// shared memory.
template <int kN, int kD, bool kAdd = false>
LS_DEVICE void stage_rows(float *shared, int row, const float (&acc)[kN][4], const float (&factor)[2]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float *to = shared + (row + lane / 4) * kStride<kD> + lane % 4 * 2;
#pragma unroll
  for (int n = 0; n < kN; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      float &place = to[e / 2 * 8 * kStride<kD> + n * 8 + e % 2];
      place = kAdd ? place + acc[n][e] * factor[e / 2] : acc[n][e] * factor[e / 2];
    }
}

// Writes (or adds) eight values to an output that is aligned to 16 bytes there.
template <typename T>
LS_DEVICE void put_piece(T *to, const float *values, bool accumulate) {
  constexpr int kSize = Vector<T>::kSize;
#pragma unroll
  for (int i = 0; i < 8; i += kSize) {
    Vector<T> piece{};
    if (accumulate) piece = load_vector(to + i);
#pragma unroll
    for (int e = 0; e < kSize; ++e)
      piece.at[e] = from_float<T>(accumulate ? to_float(piece.at[e]) + values[i + e] : values[i + e]);
    store_vector(to + i, piece);
  }
}

// Writes (or adds) the staged rows row0 .. row0 + kRows - 1 to a head of an output, between two barriers.
template <int kRows, int kD, int kThreads, typename T>
LS_DEVICE void flush_rows_as(const HeadTensor &to, int64_t head, int64_t row0, int64_t total, int d,
                             const float *shared, bool accumulate) {
  T *data = static_cast<T *>(to.data) + head * to.head + row0 * to.row;
  const bool vectors = (reinterpret_cast<uintptr_t>(data) | static_cast<uintptr_t>(to.row) * sizeof(T)) % 16 == 0;
  const int there = static_cast<int>(min(total - row0, static_cast<int64_t>(kRows)));
#pragma unroll 1
  for (int at = static_cast<int>(threadIdx.x); at < there * (kD / 8); at += kThreads) {
    const int row = at / (kD / 8), column = at % (kD / 8) * 8;
    const float *values = shared + row * kStride<kD> + column;
    T *place = data + row * to.row + column;
    if (vectors && column + 8 <= d) {
      put_piece(place, values, accumulate);
    } else {
      for (int e = 0; e < 8 && column + e < d; ++e)
        place[e] = from_float<T>(accumulate ? to_float(place[e]) + values[e] : values[e]);
    }
  }
}
template <int kRows, int kD, int kThreads>
LS_DEVICE void flush_rows(const HeadTensor &to, int64_t head, int64_t row0, int64_t total, int d, const float *shared,
                          bool accumulate) {
  __syncthreads();
  if (to.dtype == LS_BF16) {
    flush_rows_as<kRows, kD, kThreads, bf16>(to, head, row0, total, d, shared, accumulate);
  } else {
    flush_rows_as<kRows, kD, kThreads, float>(to, head, row0, total, d, shared, accumulate);
  }
  __syncthreads();
}

// float32 through plain arithmetic (native/cuda/attention_float32.cu).
ls_status attention_float32(const ls_exec *exec, const AttentionParams &p);
ls_status attention_backward_float32(const ls_exec *exec, const AttentionParams &p);

// p.cap * tanh(product / p.cap); of the products that are masked already, themselves.
LS_DEVICE float capped(float product, float cap) { return product == -INFINITY ? product : cap * tanhf(product / cap); }

// bfloat16 through tensor cores, one file a head size (native/cuda/attention_d*.cu), for D up to that size.
#define LS_ATTENTION_SIZES(X) X(64) X(96) X(128) X(256)
#define LS_DECLARE(size)                                                      \
  ls_status attention_d##size(const ls_exec *exec, const AttentionParams &p); \
  ls_status attention_backward_d##size(const ls_exec *exec, const AttentionParams &p);
LS_ATTENTION_SIZES(LS_DECLARE)
#undef LS_DECLARE

// The same with capped products, for fewer sizes: models that have them have heads of 128 and 256.
#define LS_CAPPED_ATTENTION_SIZES(X) X(128) X(256)
#define LS_DECLARE(size)                                                             \
  ls_status attention_capped_d##size(const ls_exec *exec, const AttentionParams &p); \
  ls_status attention_capped_backward_d##size(const ls_exec *exec, const AttentionParams &p);
LS_CAPPED_ATTENTION_SIZES(LS_DECLARE)
#undef LS_DECLARE

}  // namespace longseq::cuda

#endif  // LONGSEQ_CUDA_ATTENTION_TILE_H
