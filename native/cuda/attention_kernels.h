// FlashAttention (arXiv 2205.14135, 2307.08691) in bfloat16 on tensor cores, forward and backward, for one head size;
// attention_d*.cu instantiate it.
//
// FLOPs of tensor cores, c = pairs attended: forward 4 N D c; backward 14 N D c (dk and dv in one kernel, dq in
// another, each making the scores again, so that no sum depends on timing; the op counts 8). Bytes of device memory: q,
// k, v, o once for each tile of rows that reads them, mostly from the second-level cache. Workspace: delta, 4 bytes a
// query and head.
#ifndef LONGSEQ_CUDA_ATTENTION_KERNELS_H
#define LONGSEQ_CUDA_ATTENTION_KERNELS_H

#include "attention_tile.h"

namespace longseq::cuda {

inline constexpr float kLog2E = 1.4426950408889634f;

// The lane's places in a fragment: value e of tile n stands in row lane / 4 + e / 2 * 8, column 8 n + lane % 4 * 2 + e
// % 2.

// o and lse of kM * 16 * kWarps queries of one head, kColumns keys at a time. Grid: tiles of queries, the longest
// first, x N.
template <int kD, int kM, int kWarps, int kColumns>
__global__ void __launch_bounds__(kWarps * 32, 1) attention_forward_kernel(const AttentionParams p) {
  constexpr int kRows = kM * 16 * kWarps, kThreads = kWarps * 32;
  LS_DYNAMIC_SHARED(bf16, shared);
  bf16 *q = shared, *k = q + kRows * kStride<kD>, *v = k + kColumns * kStride<kD>;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t row0 = (gridDim.x - 1 - static_cast<int64_t>(blockIdx.x)) * kRows;
  const int64_t head = blockIdx.y, key_head = head / p.group;
  // The sign goes into q below. A factor of nothing keeps what is masked masked.
  const float scale = fmaxf(fabsf(p.scale), 1e-30f) * kLog2E;

  constexpr int kShared = 2 * kRows > kRows + 2 * kColumns ? 2 * kRows : kRows + 2 * kColumns;
  const RowBounds bounds = row_bounds<kRows, kThreads>(p, false, row0, p.queries, shared + kShared * kStride<kD>);
  const int begin = bounds.first.lo / kColumns * kColumns, end = bounds.last.hi;
  load_tile<kRows, kD, kThreads>(q, p.q, head, row0, p.queries, p.d, p.vectors);
  if (begin < end) load_tile<kColumns, kD, kThreads>(k, p.k, key_head, begin, p.keys, p.d, p.vectors);
  cp_async_commit();

  float top[kM][2], sum[kM][2];
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      top[m][h] = -INFINITY;
      sum[m][h] = 0;
    }
  if (p.scale < 0) {
    cp_async_wait<0>();
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < kRows * kStride<kD>; i += kThreads) q[i].bits ^= 0x8000;
  }
  float o[kM][kD / 8][4] = {};
  for (int at = begin; at < end; at += kColumns) {
    cp_async_wait<0>();
    __syncthreads();
    load_tile<kColumns, kD, kThreads>(v, p.v, key_head, at, p.keys, p.d, p.vectors);
    cp_async_commit();
    // A product added to -INFINITY stays there: masked places need no register of their own afterwards.
    float s[kM][kColumns / 8][4] = {};
    if (!bounds.whole(at, at + kColumns)) {
#pragma unroll
      for (int m = 0; m < kM; ++m)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          // Relative to the lane's first column.
          const Interval own = bounds.rows[(warp * kM + m) * 16 + lane / 4 + h * 8];
          const int lo = own.lo - at - lane % 4 * 2, hi = own.hi - at - lane % 4 * 2;
#pragma unroll
          for (int n = 0; n < kColumns / 8; ++n)
#pragma unroll
            for (int e = 0; e < 2; ++e)
              if (n * 8 + e < lo || n * 8 + e >= hi) s[m][n][2 * h + e] = -INFINITY;
        }
    }
    multiply_rows<kM, kColumns / 8, kD>(s, q + warp * kM * 16 * kStride<kD>, k);
    // v is there, and all warps are done with k.
    cp_async_wait<0>();
    __syncthreads();
    if (at + kColumns < end) load_tile<kColumns, kD, kThreads>(k, p.k, key_head, at + kColumns, p.keys, p.d, p.vectors);
    cp_async_commit();
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float most = top[m][h];
#pragma unroll
        for (int n = 0; n < kColumns / 8; ++n) most = fmaxf(most, fmaxf(s[m][n][2 * h], s[m][n][2 * h + 1]));
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
        // A row that has met no key yet keeps its zeros.
        const float base = most == -INFINITY ? 0.0f : most * scale;
        const float shrink = exp2_fast(top[m][h] * scale - base);
        top[m][h] = most;
        sum[m][h] *= shrink;
#pragma unroll
        for (int n = 0; n < kD / 8; ++n) {
          o[m][n][2 * h] *= shrink;
          o[m][n][2 * h + 1] *= shrink;
        }
#pragma unroll
        for (int n = 0; n < kColumns / 8; ++n)
#pragma unroll
          for (int e = 2 * h; e < 2 * h + 2; ++e) {
            s[m][n][e] = exp2_fast(s[m][n][e] * scale - base);
            sum[m][h] += s[m][n][e];
          }
      }
    multiply_columns<kM, kD / 8, kColumns / 8, kD>(o, s, v);
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
      const int64_t row = row0 + (warp * kM + m) * 16 + lane / 4 + h * 8;
      if (row < p.queries && lane % 4 == 0)
        p.lse[head * p.queries + row] = total > 0 ? top[m][h] * (scale / kLog2E) + logf(total) : -INFINITY;
    }
    stage_rows<kD / 8, kD>(staged, (warp * kM + m) * 16, 0, o[m], inverse);
  }
  flush_rows<kRows, kD, kThreads>(p.o, head, row0, p.queries, p.d, staged, false);
}

// kOfKeys: dk and dv of a tile of keys, summed over the query heads that share them; else dq of a tile of queries. Each
// warp has 16 rows; kSplit warps share them, each with its part of the columns of the results. Grid: tiles x heads.
template <int kD, bool kOfKeys, int kWarps, int kSplit, int kStages>
__global__ void __launch_bounds__(kWarps * 32, 1) attention_backward_kernel(const AttentionParams p) {
  constexpr int kColumns = 64;
  constexpr int kRows = kWarps / kSplit * 16, kThreads = kWarps * 32, kN = kD / 8 / kSplit;
  constexpr int kStage = 2 * kColumns * kStride<kD>;
  LS_DYNAMIC_SHARED(bf16, shared);
  // Rows of (k, v) or (q, dout), and columns of the other two.
  bf16 *r1 = shared, *r2 = r1 + kRows * kStride<kD>, *stages = r2 + kRows * kStride<kD>;
  float *statistics = reinterpret_cast<float *>(stages + kStages * kStage);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t rows = kOfKeys ? p.keys : p.queries, columns = kOfKeys ? p.queries : p.keys;
  // The longest first: under a causal mask the first keys and the last queries.
  const int64_t row0 =
      (kOfKeys ? static_cast<int64_t>(blockIdx.x) : gridDim.x - 1 - static_cast<int64_t>(blockIdx.x)) * kRows;
  const float scale = p.scale * kLog2E;
  const int part = warp % kSplit, own = warp / kSplit * 16;

  const RowBounds bounds = row_bounds<kRows, kThreads>(p, kOfKeys, row0, rows, statistics + kStages * 2 * kColumns);
  const int begin = bounds.first.lo / kColumns * kColumns, end = bounds.last.hi;
  // Tiles of columns of one head after the other: those of the group where rows are keys.
  const int heads = kOfKeys ? p.group : 1, first_head = kOfKeys ? blockIdx.y * p.group : blockIdx.y / p.group;
  const auto load_columns = [&](int stage, int head, int at) {
    bf16 *c1 = stages + stage * kStage, *c2 = c1 + kColumns * kStride<kD>;
    load_tile<kColumns, kD, kThreads>(c1, kOfKeys ? p.q : p.k, head, at, columns, p.d, p.vectors);
    load_tile<kColumns, kD, kThreads>(c2, kOfKeys ? p.dout : p.v, head, at, columns, p.d, p.vectors);
    if (kOfKeys) {
      float *to = statistics + stage * 2 * kColumns;
      for (int i = static_cast<int>(threadIdx.x); i < 2 * kColumns; i += kThreads) {
        const int64_t row = at + i % kColumns;
        to[i] = row < columns ? (i < kColumns ? p.lse : p.delta)[head * p.queries + row] : 0.0f;
      }
    }
  };

  load_tile<kRows, kD, kThreads>(r1, kOfKeys ? p.k : p.q, blockIdx.y, row0, rows, p.d, p.vectors);
  load_tile<kRows, kD, kThreads>(r2, kOfKeys ? p.v : p.dout, blockIdx.y, row0, rows, p.d, p.vectors);
  if (begin < end) load_columns(0, first_head, begin);
  cp_async_commit();

  float row_lse[2] = {}, row_delta[2] = {};
  if (!kOfKeys) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int64_t row = blockIdx.y * p.queries + min(row0 + own + lane / 4 + h * 8, rows - 1);
      row_lse[h] = p.lse[row];
      row_delta[h] = p.delta[row];
    }
  }
  float acc1[1][kN][4] = {}, acc2[1][kOfKeys ? kN : 1][4] = {};
  int stage = 0, head = 0, at = begin;
  while (begin < end && head < heads) {
    const int next_at = at + kColumns < end ? at + kColumns : begin, next_head = head + (next_at == begin);
    const int next_stage = kStages - 1 - stage;
    cp_async_wait<0>();
    __syncthreads();
    if (kStages > 1 && next_head < heads) load_columns(next_stage, first_head + next_head, next_at);
    cp_async_commit();
    const bf16 *c1 = stages + stage * kStage, *c2 = c1 + kColumns * kStride<kD>;
    const float *c_lse = statistics + stage * 2 * kColumns, *c_delta = c_lse + kColumns;
    const bool whole = bounds.whole(at, at + kColumns);
    float s[1][kColumns / 8][4] = {};
    multiply_rows<1, kColumns / 8, kD>(s, r1 + own * kStride<kD>, c1);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const Interval mine = whole ? Interval{0, 0} : bounds.rows[own + lane / 4 + h * 8];
#pragma unroll
      for (int n = 0; n < kColumns / 8; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int i = n * 8 + lane % 4 * 2 + e;
          const float lse = kOfKeys ? c_lse[i] : row_lse[h];
          const bool seen = whole || (mine.lo <= at + i && at + i < mine.hi);
          s[0][n][2 * h + e] = seen ? exp2_fast(s[0][n][2 * h + e] * scale - lse * kLog2E) : 0.0f;
        }
    }
    if (kOfKeys) multiply_columns<1, kOfKeys ? kN : 1, kColumns / 8, kD>(acc2, s, c2 + part * kN * 8);
    float ds[1][kColumns / 8][4] = {};
    multiply_rows<1, kColumns / 8, kD>(ds, r2 + own * kStride<kD>, c2);
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int i = n * 8 + lane % 4 * 2 + e % 2;
        const float delta = kOfKeys ? c_delta[i] : row_delta[e / 2];
        ds[0][n][e] = s[0][n][e] * (ds[0][n][e] - delta);
      }
    multiply_columns<1, kN, kColumns / 8, kD>(acc1, ds, c1 + part * kN * 8);
    if (kStages == 1) {
      __syncthreads();
      if (next_head < heads) load_columns(0, first_head + next_head, next_at);
    }
    stage = next_stage;
    head = next_head;
    at = next_at;
  }
  cp_async_wait<0>();
  __syncthreads();
  float *staged = reinterpret_cast<float *>(shared);
  stage_rows<kN, kD>(staged, own, part * kN * 8, acc1[0], {p.scale, p.scale});
  flush_rows<kRows, kD, kThreads>(kOfKeys ? p.dk : p.dq, blockIdx.y, row0, rows, p.d, staged,
                                  kOfKeys ? p.accumulate_dkv : p.accumulate_dq);
  if constexpr (kOfKeys) {
    stage_rows<kN, kD>(staged, own, part * kN * 8, acc2[0], {1.0f, 1.0f});
    flush_rows<kRows, kD, kThreads>(p.dv, blockIdx.y, row0, rows, p.d, staged, p.accumulate_dkv);
  }
}

template <int kD>
ls_status launch_forward(const ls_exec *exec, const AttentionParams &p) {
  // 32 rows a warp halve what each row reads of k and v; at 256 the accumulators of 16 fill the registers.
  constexpr int kM = kD <= 128 ? 2 : 1, kWarps = kD <= 128 ? 4 : 8, kRows = kM * 16 * kWarps;
  // 32 keys at 128 are what the registers hold.
  constexpr int kColumns = kD == 128 ? 32 : 64;
  // The results are staged as floats over what q, k and v had.
  constexpr int kBytes =
      (2 * kRows > kRows + 2 * kColumns ? 2 * kRows : kRows + 2 * kColumns) * kStride<kD> * 2 + kRows * 8;
  const dim3 grid(static_cast<unsigned>(ceil_div(p.queries, kRows)), static_cast<unsigned>(p.heads));
  return LS_LAUNCH((attention_forward_kernel<kD, kM, kWarps, kColumns>), grid, dim3(kWarps * 32), kBytes, exec, p);
}

template <int kD, bool kOfKeys>
ls_status launch_backward_half(const ls_exec *exec, const AttentionParams &p) {
  constexpr int kColumns = 64, kWarps = 8, kSplit = kD <= 128 ? 1 : 2, kStages = kD <= 128 ? 2 : 1,
                kRows = kWarps / kSplit * 16;
  constexpr int kBytes =
      (2 * kRows + kStages * 2 * kColumns) * kStride<kD> * 2 + kStages * 2 * kColumns * 4 + kRows * 8;
  // Where the columns are none, zeros are written all the same.
  if ((kOfKeys ? p.keys : p.queries) == 0) return LS_OK;
  const dim3 grid(static_cast<unsigned>(ceil_div(kOfKeys ? p.keys : p.queries, kRows)),
                  static_cast<unsigned>(kOfKeys ? p.heads / p.group : p.heads));
  return LS_LAUNCH((attention_backward_kernel<kD, kOfKeys, kWarps, kSplit, kStages>), grid, dim3(kWarps * 32), kBytes,
                   exec, p);
}

template <int kD>
ls_status launch_backward(const ls_exec *exec, const AttentionParams &p) {
  LS_TRY((launch_backward_half<kD, true>(exec, p)));
  return launch_backward_half<kD, false>(exec, p);
}

}  // namespace longseq::cuda

#define LS_DEFINE_ATTENTION(size)                                                                                      \
  namespace longseq::cuda {                                                                                            \
  ls_status attention_d##size(const ls_exec *exec, const AttentionParams &p) { return launch_forward<size>(exec, p); } \
  ls_status attention_backward_d##size(const ls_exec *exec, const AttentionParams &p) {                                \
    return launch_backward<size>(exec, p);                                                                             \
  }                                                                                                                    \
  }

#endif  // LONGSEQ_CUDA_ATTENTION_KERNELS_H
