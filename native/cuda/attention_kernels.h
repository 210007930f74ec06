// FlashAttention (arXiv 2205.14135, 2307.08691) in bfloat16 on tensor cores, forward and backward, for one head size;
// attention_d*.cu instantiate it. docs/cuda_attention.md has the tables: registers, shared memory, what limits what.
//
// With c the pairs attended: the forward does 4 N D c FLOPs on tensor cores, the backward 14 N D c (dk and dv in one
// kernel, dq in another, each making the scores again, so that no sum depends on timing; the op counts 8). Workspace:
// delta, 4 bytes a query and head.
#ifndef LONGSEQ_CUDA_ATTENTION_KERNELS_H
#define LONGSEQ_CUDA_ATTENTION_KERNELS_H

#include "attention_tile.h"

namespace longseq::cuda {

inline constexpr float kLog2E = 1.4426950408889634f;

// Shared memory of the kernels below; elements are of bfloat16, bytes those of a launch.
template <int kD, int kM, int kWarps, int kColumns>
struct ForwardTile {
  static constexpr int kRows = kM * 16 * kWarps;
  // q and two stages of k and v; at the end o as floats.
  static constexpr int kElements = (2 * kRows > kRows + 4 * kColumns ? 2 * kRows : kRows + 4 * kColumns) * kStride<kD>;
  static constexpr int kBytes = kElements * 2 + kRows * static_cast<int>(sizeof(Interval));
};
template <int kD, int kM, int kWarps, int kColumns>
struct KeysTile {
  static constexpr int kRows = kM * 8 * kWarps;
  // Weights of one tile, in floats.
  static constexpr int kWeights = kRows * kColumns;
  // k and v, at the end dk and then dv as floats; three stages of q and dout; two tiles of weights; three of lse and
  // delta.
  static constexpr int kBytes = (2 * kRows + 6 * kColumns) * kStride<kD> * 2 + 2 * kWeights * 4 + 6 * kColumns * 4 +
                                kRows * static_cast<int>(sizeof(Interval));
};
template <int kD, int kM, int kWarps, int kColumns>
struct QueriesTile {
  static constexpr int kRows = kM * 8 * kWarps;
  // q and dout, at the end dq as floats; two stages of k and v; lse and delta.
  static constexpr int kBytes =
      (2 * kRows + 4 * kColumns) * kStride<kD> * 2 + 2 * kRows * 4 + kRows * static_cast<int>(sizeof(Interval));
};

// LS_UNSUPPORTED where a block of this GPU may not have as much shared memory as the tiles take: 163 KiB on compute
// capability 8.0 and 227 on 9.0 are enough for all, 99 on 8.6 and 8.9 are not.
template <typename Kernel>
ls_status tiles_fit(const ls_exec *exec, [[maybe_unused]] Kernel *kernel, int bytes, int head_size) {
  stream_of(exec);  // makes the device current
  if (LS_PREPARE_SHARED(kernel, bytes) != cudaErrorInvalidValue) return LS_OK;
  cudaGetLastError();
  return fail(exec, LS_UNSUPPORTED,
              "attention: the CUDA kernels for head sizes up to %d in bfloat16 "
              "take %d KiB of shared memory a block, more "
              "than this GPU has; use float32, or cuDNN (attention: cudnn)",
              head_size, (bytes + 1023) / 1024);
}

// The lane's places in a fragment: value e of tile n stands in row lane / 4 + e / 2 * 8, column 8 n + lane % 4 * 2 + e
// % 2.

// o and lse of 16 kM kWarps queries of one head, kColumns keys at a time, each warp 16 kM of the queries. K and V come
// one tile ahead into two stages; one barrier a tile. Grid: tiles of queries, the longest first, x N.
//
// Bytes: q and o once; of k and v what the queries attend, once a block, mostly from the second-level cache: 8 kColumns
// D bytes for 8 kWarps 16 kM kColumns D FLOPs. Shared memory: (16 kM kWarps + 4 kColumns) (D + 8) 2 bytes, the first
// for q, the others two stages of k and v; o passes through all of it as floats.
template <int kD, int kM, int kWarps, int kColumns, bool kCapped>
__global__ void __launch_bounds__(kWarps * 32, 1) attention_forward_kernel(const AttentionParams p) {
  using Tile = ForwardTile<kD, kM, kWarps, kColumns>;
  constexpr int kRows = Tile::kRows, kThreads = kWarps * 32, kN = kColumns / 8;
  constexpr int kStage = 2 * kColumns * kStride<kD>;
  // Small heads leave room for q's fragments in registers.
  constexpr bool kKeep = kM * kD <= 128;
  LS_DYNAMIC_SHARED(bf16, shared);
  bf16 *q = shared, *stages = q + kRows * kStride<kD>;
  const int lane = static_cast<int>(threadIdx.x) % 32, own = static_cast<int>(threadIdx.x) / 32 * kM * 16;
  const int64_t row0 = (gridDim.x - 1 - static_cast<int64_t>(blockIdx.x)) * kRows;
  const int64_t head = blockIdx.y, key_head = head / p.group;
  // The sign goes into q below. A factor of nothing keeps what is masked masked.
  const float scale = fmaxf(fabsf(p.scale), 1e-30f) * kLog2E;

  const RowBounds bounds = row_bounds<kRows, kThreads>(p, false, row0, p.queries, shared + Tile::kElements);
  const int begin = bounds.begin / kColumns * kColumns, end = bounds.end;
  const auto load_columns = [&](int stage, int at) {
    bf16 *k = stages + stage * kStage;
    load_tile<kColumns, kD, kThreads>(k, p.k, key_head, at, p.keys, p.d, p.vectors);
    load_tile<kColumns, kD, kThreads>(k + kColumns * kStride<kD>, p.v, key_head, at, p.keys, p.d, p.vectors);
  };
  load_tile<kRows, kD, kThreads>(q, p.q, head, row0, p.queries, p.d, p.vectors);
  if (begin < end) load_columns(0, begin);
  cp_async_commit();
  if (p.scale < 0) {
    cp_async_wait<0>();
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < kRows * kStride<kD>; i += kThreads) q[i].bits ^= 0x8000;
  }

  float top[kM][2], sum[kM][2];
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      top[m][h] = -INFINITY;
      sum[m][h] = 0;
    }
  uint32_t kept[kKeep ? kD / 16 : 1][kM][4];
  float o[kM][kD / 8][4] = {};
  int stage = 0;
#pragma unroll 1
  for (int at = begin; at < end; at += kColumns, stage ^= 1) {
    // This tile is there, and all warps are done with the one before it, whose stage is filled next.
    cp_async_wait<0>();
    __syncthreads();
    if (at + kColumns < end) load_columns(stage ^ 1, at + kColumns);
    cp_async_commit();
    if constexpr (kKeep)
      if (at == begin) load_fragments<kM, kD>(kept, q + own * kStride<kD>);
    const Reach reach = bounds.reach(own, kM * 16, at, at + kColumns);
    if (reach == Reach::none) continue;
    const bf16 *k = stages + stage * kStage, *v = k + kColumns * kStride<kD>;
    // A product added to -INFINITY stays there: masked places need no register of their own afterwards.
    float s[kM][kN][4] = {};
    if (reach == Reach::part) {
#pragma unroll
      for (int m = 0; m < kM; ++m)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          // Relative to the lane's first column.
          const Interval mine = bounds.rows[own + m * 16 + lane / 4 + h * 8];
          const int lo = mine.lo - at - lane % 4 * 2, hi = mine.hi - at - lane % 4 * 2;
#pragma unroll
          for (int n = 0; n < kN; ++n)
#pragma unroll
            for (int e = 0; e < 2; ++e)
              if (n * 8 + e < lo || n * 8 + e >= hi) s[m][n][2 * h + e] = -INFINITY;
        }
    }
    if constexpr (kKeep) {
      multiply_fragments<kM, kN, kD>(s, kept, k);
    } else {
      multiply_rows<kM, kN, kD>(s, q + own * kStride<kD>, k);
    }
    if constexpr (kCapped) {
      // q has the scale's sign, so that these products have that of the scores.
      const float cap = fabsf(p.cap);
#pragma unroll
      for (int m = 0; m < kM; ++m)
#pragma unroll
        for (int n = 0; n < kN; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e) s[m][n][e] = capped(s[m][n][e], cap);
    }
    float most[kM][2];
    bool grown = false;
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float &x = most[m][h];
        x = top[m][h];
#pragma unroll
        for (int n = 0; n < kN; ++n) x = fmaxf(x, fmaxf(s[m][n][2 * h], s[m][n][2 * h + 1]));
        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
        grown |= x > top[m][h];
      }
    // Far into a long row the greatest score hardly ever grows: what would be a product with 1 is left out.
    if (__any_sync(0xffffffffu, grown)) {
#pragma unroll
      for (int m = 0; m < kM; ++m)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          // A row that has met no key yet keeps its zeros.
          const float shrink = most[m][h] == -INFINITY ? 1.0f : exp2_fast((top[m][h] - most[m][h]) * scale);
          top[m][h] = most[m][h];
          sum[m][h] *= shrink;
#pragma unroll
          for (int n = 0; n < kD / 8; ++n) {
            o[m][n][2 * h] *= shrink;
            o[m][n][2 * h + 1] *= shrink;
          }
        }
    }
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float base = top[m][h] == -INFINITY ? 0.0f : top[m][h] * scale;
#pragma unroll
        for (int n = 0; n < kN; ++n)
#pragma unroll
          for (int e = 2 * h; e < 2 * h + 2; ++e) {
            s[m][n][e] = exp2_fast(__fmaf_rn(s[m][n][e], scale, -base));
            sum[m][h] += s[m][n][e];
          }
      }
    multiply_columns<kM, kD / 8, kN, kD>(o, s, v);
  }
  // A block without a key has copies of q under way still.
  cp_async_wait<0>();
  __syncthreads();
  float *staged = reinterpret_cast<float *>(shared);
#pragma unroll
  for (int m = 0; m < kM; ++m) {
    float inverse[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float total = sum[m][h];
      total += __shfl_xor_sync(0xffffffffu, total, 1);
      total += __shfl_xor_sync(0xffffffffu, total, 2);
      inverse[h] = total > 0 ? 1.0f / total : 0.0f;
      const int64_t row = row0 + own + m * 16 + lane / 4 + h * 8;
      if (row < p.queries && lane % 4 == 0)
        p.lse[head * p.queries + row] = total > 0 ? top[m][h] * (scale / kLog2E) + logf(total) : -INFINITY;
    }
    stage_rows<kD / 8, kD>(staged, own + m * 16, o[m], inverse);
  }
  flush_rows<kRows, kD, kThreads>(p.o, head, row0, p.queries, p.d, staged, false);
}

// Weights exp(scale s - lse), zero where not attended. `lse` is that of the tile's first column (kOfKeys: rows are
// keys) or of the warp's first row; `rows` are the warp's.
template <bool kOfKeys, int kM, int kN>
LS_DEVICE void weigh(float (&s)[kM][kN][4], float scale, const float *lse, Reach reach, const Interval *rows, int at) {
  const int lane = static_cast<int>(threadIdx.x) % 32, row = lane / 4, column = lane % 4 * 2;
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int n = 0; n < kN; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float less = -kLog2E * lse[kOfKeys ? n * 8 + column + e % 2 : m * 16 + row + e / 2 * 8];
        s[m][n][e] = exp2_fast(__fmaf_rn(s[m][n][e], scale, less));
      }
  if (reach == Reach::whole) return;
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const Interval mine = rows[m * 16 + row + h * 8];
      const int lo = mine.lo - at - column, hi = mine.hi - at - column;
#pragma unroll
      for (int n = 0; n < kN; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e)
          if (n * 8 + e < lo || n * 8 + e >= hi) s[m][n][2 * h + e] = 0;
    }
}

// Starts copying lse and delta of queries first .. first + kCount - 1 of a head to shared memory, one behind the other;
// zeros beyond the last query. The first one exists.
template <int kCount, int kThreads>
LS_DEVICE void load_statistics(float *shared, const AttentionParams &p, int64_t head, int64_t first) {
  for (int i = static_cast<int>(threadIdx.x); i < 2 * kCount; i += kThreads) {
    const int64_t row = first + i % kCount;
    const float *from = (i < kCount ? p.lse : p.delta) + head * p.queries;
    cp_async_4(shared + i, row < p.queries ? from + row : from, row < p.queries);
  }
}

// dk and dv of 8 kM kWarps keys of one head of theirs, summed over the query heads that share it, kColumns queries at a
// time. Two warps share 16 kM keys: one makes the weights and dv, the other, a tile behind, takes the weights and makes
// dk; so each has one accumulator, and both are busy with different things. Queries come a tile ahead into the third
// stage; one barrier a tile. Grid: tiles of keys, the longest first, x K.
//
// Bytes: k, v, dk and dv once; q, dout, lse and delta of what attends, once a block: 4 kColumns (D + 2) bytes for 64 kM
// kWarps kColumns D FLOPs. Shared memory: KeysTile below.
template <int kD, int kM, int kWarps, int kColumns, bool kCapped>
__global__ void __launch_bounds__(kWarps * 32, 1) attention_backward_keys_kernel(const AttentionParams p) {
  using Tile = KeysTile<kD, kM, kWarps, kColumns>;
  constexpr int kRows = Tile::kRows, kThreads = kWarps * 32, kN = kColumns / 8, kPairs = kWarps / 2;
  constexpr int kStage = 2 * kColumns * kStride<kD>;
  LS_DYNAMIC_SHARED(bf16, shared);
  bf16 *k = shared, *v = k + kRows * kStride<kD>, *stages = v + kRows * kStride<kD>;
  float *weights = reinterpret_cast<float *>(stages + 3 * kStage), *statistics = weights + 2 * Tile::kWeights;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int pair = warp % kPairs, own = pair * kM * 16;
  // The later half of the warps makes dk.
  const bool behind = warp >= kPairs;
  const int64_t row0 = static_cast<int64_t>(blockIdx.x) * kRows;
  const float scale = p.scale * kLog2E;

  const RowBounds bounds = row_bounds<kRows, kThreads>(p, true, row0, p.keys, statistics + 3 * 2 * kColumns);
  const int begin = bounds.begin / kColumns * kColumns, end = bounds.end;
  const int first_head = static_cast<int>(blockIdx.y) * p.group;
  // Tiles of one query head after the other.
  const auto load_columns = [&](int stage, int head, int at) {
    bf16 *q = stages + stage * kStage;
    load_tile<kColumns, kD, kThreads>(q, p.q, head, at, p.queries, p.d, p.vectors);
    load_tile<kColumns, kD, kThreads>(q + kColumns * kStride<kD>, p.dout, head, at, p.queries, p.d, p.vectors);
    load_statistics<kColumns, kThreads>(statistics + stage * 2 * kColumns, p, head, at);
  };

  load_tile<kRows, kD, kThreads>(k, p.k, blockIdx.y, row0, p.keys, p.d, p.vectors);
  load_tile<kRows, kD, kThreads>(v, p.v, blockIdx.y, row0, p.keys, p.d, p.vectors);
  if (begin < end) load_columns(0, first_head, begin);
  cp_async_commit();

  const bf16 *rows = (behind ? v : k) + own * kStride<kD>;
  float acc[kM][kD / 8][4] = {};
  // The tile that the first warp of a pair is at, and the one before it, where the second is.
  int stage = 0, at = begin, stage_before = 0, at_before = begin, head = begin < end ? 0 : p.group, turn = 0;
  bool more = head < p.group, before = false;
#pragma unroll 1
  while (more || before) {
    cp_async_wait<0>();
    __syncthreads();
    // In the third stage is the tile that was `before` in the last round.
    const int next_stage = stage == 2 ? 0 : stage + 1;
    int next_at = at + kColumns;
    if (next_at >= end) {
      next_at = begin;
      ++head;
    }
    const bool next = more && head < p.group;
    if (next) load_columns(next_stage, first_head + head, next_at);
    cp_async_commit();
    const int mine = behind ? at_before : at, place = behind ? stage_before : stage;
    const Reach reach = (behind ? before : more) ? bounds.reach(own, kM * 16, mine, mine + kColumns) : Reach::none;
    if (reach != Reach::none) {
      const bf16 *q = stages + place * kStage, *dout = q + kColumns * kStride<kD>;
      const float *lse = statistics + place * 2 * kColumns, *delta = lse + kColumns;
      float s[kM][kN][4] = {};
      multiply_rows<kM, kN, kD>(s, rows, behind ? dout : q);
      // Lanes hold the same places of the weights and of their gradients.
      Vector<float> *shelf = reinterpret_cast<Vector<float> *>(weights + (behind ? turn ^ 1 : turn) * Tile::kWeights) +
                             pair * kM * kN * 32 + lane;
      if (behind) {
#pragma unroll
        for (int n = 0; n < kN; ++n) {
          const float less[2] = {delta[n * 8 + lane % 4 * 2], delta[n * 8 + lane % 4 * 2 + 1]};
#pragma unroll
          for (int m = 0; m < kM; ++m) {
            const Vector<float> weight = shelf[(m * kN + n) * 32];
#pragma unroll
            for (int e = 0; e < 4; ++e) s[m][n][e] = weight.at[e] * (s[m][n][e] - less[e % 2]);
          }
        }
      } else {
        if constexpr (kCapped) {
          // tanh waits on the shelf until the weights, whose slopes hang on it, are made.
#pragma unroll
          for (int m = 0; m < kM; ++m)
#pragma unroll
            for (int n = 0; n < kN; ++n) {
              Vector<float> share;
#pragma unroll
              for (int e = 0; e < 4; ++e) {
                share.at[e] = tanhf(s[m][n][e] / p.cap);
                s[m][n][e] = p.cap * share.at[e];
              }
              shelf[(m * kN + n) * 32] = share;
            }
        }
        weigh<true, kM, kN>(s, scale, lse, reach, bounds.rows + own, mine);
#pragma unroll
        for (int m = 0; m < kM; ++m)
#pragma unroll
          for (int n = 0; n < kN; ++n) {
            Vector<float> weight = {s[m][n][0], s[m][n][1], s[m][n][2], s[m][n][3]};
            if constexpr (kCapped) {
              const Vector<float> share = shelf[(m * kN + n) * 32];
#pragma unroll
              for (int e = 0; e < 4; ++e) weight.at[e] *= 1 - share.at[e] * share.at[e];
            }
            shelf[(m * kN + n) * 32] = weight;
          }
      }
      multiply_columns<kM, kD / 8, kN, kD>(acc, s, behind ? q : dout);
    }
    before = more;
    stage_before = stage;
    at_before = at;
    more = next;
    stage = next_stage;
    at = next_at;
    turn ^= 1;
  }
  cp_async_wait<0>();
  __syncthreads();
  float *staged = reinterpret_cast<float *>(shared);
  const float factor = behind ? p.scale : 1.0f;
#pragma unroll 1
  for (int half = 0; half < 2; ++half) {
    if (behind == (half == 0))
#pragma unroll
      for (int m = 0; m < kM; ++m) stage_rows<kD / 8, kD>(staged, own + m * 16, acc[m], {factor, factor});
    flush_rows<kRows, kD, kThreads>(half == 0 ? p.dk : p.dv, blockIdx.y, row0, p.keys, p.d, staged, p.accumulate_dkv);
  }
}

// dq of 8 kM kWarps queries of one head, kColumns keys at a time. Two warps share 16 kM queries, each with half of the
// keys of every tile; their sums meet at the end. K and V come one tile ahead into two stages; one barrier a tile.
// Grid: tiles of queries, the longest first, x N.
//
// Bytes: q, dout, lse, delta and dq once; of k and v what the queries attend, once a block: 4 kColumns D bytes for 48
// kM kWarps kColumns D FLOPs. Shared memory: QueriesTile below.
template <int kD, int kM, int kWarps, int kColumns, bool kCapped>
__global__ void __launch_bounds__(kWarps * 32, 1) attention_backward_queries_kernel(const AttentionParams p) {
  using Tile = QueriesTile<kD, kM, kWarps, kColumns>;
  constexpr int kRows = Tile::kRows, kThreads = kWarps * 32, kPairs = kWarps / 2, kHalf = kColumns / 2, kN = kHalf / 8;
  constexpr int kStage = 2 * kColumns * kStride<kD>;
  LS_DYNAMIC_SHARED(bf16, shared);
  bf16 *q = shared, *dout = q + kRows * kStride<kD>, *stages = dout + kRows * kStride<kD>;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int own = warp % kPairs * kM * 16, half = warp / kPairs;
  const int64_t row0 = (gridDim.x - 1 - static_cast<int64_t>(blockIdx.x)) * kRows;
  const int64_t head = blockIdx.y, key_head = head / p.group;
  const float scale = p.scale * kLog2E;

  float *statistics = reinterpret_cast<float *>(stages + 2 * kStage);
  const RowBounds bounds = row_bounds<kRows, kThreads>(p, false, row0, p.queries, statistics + 2 * kRows);
  const int begin = bounds.begin / kColumns * kColumns, end = bounds.end;
  const auto load_columns = [&](int stage, int at) {
    bf16 *k = stages + stage * kStage;
    load_tile<kColumns, kD, kThreads>(k, p.k, key_head, at, p.keys, p.d, p.vectors);
    load_tile<kColumns, kD, kThreads>(k + kColumns * kStride<kD>, p.v, key_head, at, p.keys, p.d, p.vectors);
  };
  load_tile<kRows, kD, kThreads>(q, p.q, head, row0, p.queries, p.d, p.vectors);
  load_tile<kRows, kD, kThreads>(dout, p.dout, head, row0, p.queries, p.d, p.vectors);
  load_statistics<kRows, kThreads>(statistics, p, head, row0);
  if (begin < end) load_columns(0, begin);
  cp_async_commit();

  float acc[kM][kD / 8][4] = {};
  int stage = 0;
#pragma unroll 1
  for (int at = begin; at < end; at += kColumns, stage ^= 1) {
    cp_async_wait<0>();
    __syncthreads();
    if (at + kColumns < end) load_columns(stage ^ 1, at + kColumns);
    cp_async_commit();
    const int mine = at + half * kHalf;
    const Reach reach = bounds.reach(own, kM * 16, mine, mine + kHalf);
    if (reach == Reach::none) continue;
    const bf16 *k = stages + stage * kStage + half * kHalf * kStride<kD>, *v = k + kColumns * kStride<kD>;
    float s[kM][kN][4] = {};
    multiply_rows<kM, kN, kD>(s, q + own * kStride<kD>, k);
    [[maybe_unused]] float slope[kCapped ? kM : 1][kCapped ? kN : 1][4];
    if constexpr (kCapped) {
#pragma unroll
      for (int m = 0; m < kM; ++m)
#pragma unroll
        for (int n = 0; n < kN; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const float share = tanhf(s[m][n][e] / p.cap);
            s[m][n][e] = p.cap * share;
            slope[m][n][e] = 1 - share * share;
          }
    }
    weigh<false, kM, kN>(s, scale, statistics + own, reach, bounds.rows + own, mine);
    if constexpr (kCapped) {
#pragma unroll
      for (int m = 0; m < kM; ++m)
#pragma unroll
        for (int n = 0; n < kN; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e) s[m][n][e] *= slope[m][n][e];
    }
    float ds[kM][kN][4] = {};
    multiply_rows<kM, kN, kD>(ds, dout + own * kStride<kD>, v);
    const float *delta = statistics + kRows + own + lane / 4;
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int n = 0; n < kN; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) ds[m][n][e] = s[m][n][e] * (ds[m][n][e] - delta[m * 16 + e / 2 * 8]);
    multiply_columns<kM, kD / 8, kN, kD>(acc, ds, k);
  }
  cp_async_wait<0>();
  __syncthreads();
  float *staged = reinterpret_cast<float *>(shared);
#pragma unroll
  for (int m = 0; m < kM; ++m)
    if (half == 0) stage_rows<kD / 8, kD>(staged, own + m * 16, acc[m], {p.scale, p.scale});
  __syncthreads();
#pragma unroll
  for (int m = 0; m < kM; ++m)
    if (half == 1) stage_rows<kD / 8, kD, true>(staged, own + m * 16, acc[m], {p.scale, p.scale});
  flush_rows<kRows, kD, kThreads>(p.dq, head, row0, p.queries, p.d, staged, p.accumulate_dq);
}

template <int kD, bool kCapped>
ls_status launch_forward(const ls_exec *exec, const AttentionParams &p) {
  // 32 rows a warp halve what each row reads of k and v in shared memory; at 256 the accumulators of 16 fill the
  // registers.
  constexpr int kM = kD <= 128 ? 2 : 1, kWarps = 8, kColumns = kD <= 128 ? 64 : 32;
  using Tile = ForwardTile<kD, kM, kWarps, kColumns>;
  const dim3 grid(static_cast<unsigned>(ceil_div(p.queries, Tile::kRows)), static_cast<unsigned>(p.heads));
  LS_TRY(tiles_fit(exec, attention_forward_kernel<kD, kM, kWarps, kColumns, kCapped>, Tile::kBytes, kD));
  return LS_LAUNCH((attention_forward_kernel<kD, kM, kWarps, kColumns, kCapped>), grid, dim3(kWarps * 32), Tile::kBytes,
                   exec, p);
}

template <int kD, bool kCapped>
ls_status launch_backward(const ls_exec *exec, const AttentionParams &p) {
  constexpr int kM = kD <= 128 ? 2 : 1, kWarps = 8;
  constexpr int kQueries = kD <= 128 ? 32 : 16, kKeys = kD <= 128 ? 64 : 32;
  using Keys = KeysTile<kD, kM, kWarps, kQueries>;
  using Queries = QueriesTile<kD, kM, kWarps, kKeys>;
  LS_TRY(tiles_fit(exec, attention_backward_keys_kernel<kD, kM, kWarps, kQueries, kCapped>, Keys::kBytes, kD));
  LS_TRY(tiles_fit(exec, attention_backward_queries_kernel<kD, kM, kWarps, kKeys, kCapped>, Queries::kBytes, kD));
  // Where the columns are none, zeros are written all the same.
  if (p.keys > 0) {
    const dim3 grid(static_cast<unsigned>(ceil_div(p.keys, Keys::kRows)), static_cast<unsigned>(p.heads / p.group));
    LS_TRY((LS_LAUNCH((attention_backward_keys_kernel<kD, kM, kWarps, kQueries, kCapped>), grid, dim3(kWarps * 32),
                      Keys::kBytes, exec, p)));
  }
  if (p.queries == 0) return LS_OK;
  const dim3 grid(static_cast<unsigned>(ceil_div(p.queries, Queries::kRows)), static_cast<unsigned>(p.heads));
  return LS_LAUNCH((attention_backward_queries_kernel<kD, kM, kWarps, kKeys, kCapped>), grid, dim3(kWarps * 32),
                   Queries::kBytes, exec, p);
}

}  // namespace longseq::cuda

#define LS_DEFINE_ATTENTION(size)                                                       \
  namespace longseq::cuda {                                                             \
  ls_status attention_d##size(const ls_exec *exec, const AttentionParams &p) {          \
    return launch_forward<size, false>(exec, p);                                        \
  }                                                                                     \
  ls_status attention_backward_d##size(const ls_exec *exec, const AttentionParams &p) { \
    return launch_backward<size, false>(exec, p);                                       \
  }                                                                                     \
  }

#define LS_DEFINE_CAPPED_ATTENTION(size)                                                       \
  namespace longseq::cuda {                                                                    \
  ls_status attention_capped_d##size(const ls_exec *exec, const AttentionParams &p) {          \
    return launch_forward<size, true>(exec, p);                                                \
  }                                                                                            \
  ls_status attention_capped_backward_d##size(const ls_exec *exec, const AttentionParams &p) { \
    return launch_backward<size, true>(exec, p);                                               \
  }                                                                                            \
  }

#endif  // LONGSEQ_CUDA_ATTENTION_KERNELS_H
