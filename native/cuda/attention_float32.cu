// Attention in float32: plain fused multiply-adds, right to float32's last digits; tensor cores would round to TF32.
//
// FLOPs as attention_kernels.h counts them. Bytes: rows once, columns once a block of rows, as floats. Shared memory:
// rows and columns of a tile as floats, at most 99 KiB. A row of queries (or keys) belongs to four neighbouring lanes:
// each makes every fourth score and holds a quarter of the result.
#include "attention_tile.h"

namespace longseq::cuda {

namespace {

// Tiles of a head size: those of 256 leave each GPU's 99 KiB of shared memory a block enough, as do those of 128.
template <int kD>
struct Tile {
  static constexpr int kRows = kD <= 128 ? 64 : 32, kThreads = 4 * kRows, kColumns = kD <= 128 ? 32 : 16;
  // Scores of a row that one lane makes.
  static constexpr int kOwn = kColumns / 4;
};

// Rows [D] in shared memory: 4 floats of padding keep rows in different banks.
template <int kD>
constexpr int kFloats = kD + 4;

template <int kCount, int kD>
LS_DEVICE void load_rows(float *shared, const HeadTensor &from, int64_t head, int64_t first, int64_t total, int d) {
  const float *source = static_cast<const float *>(from.data) + head * from.head + first * from.row;
  const int there = static_cast<int>(min(total - first, static_cast<int64_t>(kCount)));
  for (int at = static_cast<int>(threadIdx.x); at < kCount * kD; at += Tile<kD>::kThreads) {
    const int row = at / kD, column = at % kD;
    shared[row * kFloats<kD> + column] = row < there && column < d ? source[row * from.row + column] : 0.0f;
  }
}

template <int kD>
LS_DEVICE float dot(const float *a, const float *b) {
  float sum = 0;
#pragma unroll 4
  for (int i = 0; i < kD; i += 4) {
    const Vector<float> x = load_vector(a + i), y = load_vector(b + i);
#pragma unroll
    for (int e = 0; e < 4; ++e) sum = __fmaf_rn(x.at[e], y.at[e], sum);
  }
  return sum;
}

// acc, the lane's quarter of a row of the result, += sum over the tile's columns j of weight_j * b[j]. The weight of
// column j lies with lane j % 4 of the four, as its number j / 4.
template <int kD>
LS_DEVICE void add_rows(float (&acc)[kD / 4], const float (&weights)[Tile<kD>::kOwn], const float *b) {
  const int quarter = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int j = 0; j < Tile<kD>::kColumns; ++j) {
    const float weight = __shfl_sync(0xffffffffu, weights[j / 4], j % 4, 4);
    const float *row = b + j * kFloats<kD> + quarter * 4;
#pragma unroll
    for (int i = 0; i < kD / 16; ++i) {
      const Vector<float> v = load_vector(row + i * 16);
#pragma unroll
      for (int e = 0; e < 4; ++e) acc[i * 4 + e] = __fmaf_rn(weight, v.at[e], acc[i * 4 + e]);
    }
  }
}

template <int kD>
LS_DEVICE void put_row(const HeadTensor &to, int64_t head, int64_t row, int d, const float (&acc)[kD / 4], float factor,
                       bool accumulate) {
  const int quarter = static_cast<int>(threadIdx.x) % 4;
  const int64_t base = head * to.head + row * to.row;
#pragma unroll
  for (int i = 0; i < kD / 4; ++i) {
    const int column = i / 4 * 16 + quarter * 4 + i % 4;
    if (column >= d) continue;
    const float value = acc[i] * factor;
    if (to.dtype == LS_BF16) {
      bf16 *p = static_cast<bf16 *>(to.data) + base + column;
      *p = from_float<bf16>(accumulate ? to_float(*p) + value : value);
    } else {
      float *p = static_cast<float *>(to.data) + base + column;
      *p = accumulate ? *p + value : value;
    }
  }
}

LS_DEVICE float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
LS_DEVICE float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

template <int kD>
__global__ void __launch_bounds__(Tile<kD>::kThreads, 1) forward_kernel(const AttentionParams p) {
  constexpr int kRows = Tile<kD>::kRows, kColumns = Tile<kD>::kColumns, kOwn = Tile<kD>::kOwn;
  LS_DYNAMIC_SHARED(float, shared);
  float *q = shared, *k = q + kRows * kFloats<kD>, *v = k + kColumns * kFloats<kD>;
  const int own = static_cast<int>(threadIdx.x) / 4, quarter = static_cast<int>(threadIdx.x) % 4;
  const int64_t row0 = (gridDim.x - 1 - static_cast<int64_t>(blockIdx.x)) * kRows, row = row0 + own;
  const int64_t head = blockIdx.y, key_head = head / p.group;
  const int begin = attended(p, false, row0).lo / kColumns * kColumns;
  const int end = attended(p, false, min(row0 + kRows, p.queries) - 1).hi;
  const Interval mine = attended(p, false, min(row, p.queries - 1));
  load_rows<kRows, kD>(q, p.q, head, row0, p.queries, p.d);
  float acc[kD / 4] = {}, top = -INFINITY, sum = 0;
  for (int at = begin; at < end; at += kColumns) {
    __syncthreads();
    load_rows<kColumns, kD>(k, p.k, key_head, at, p.keys, p.d);
    load_rows<kColumns, kD>(v, p.v, key_head, at, p.keys, p.d);
    __syncthreads();
    float s[kOwn], most = top;
#pragma unroll
    for (int j = 0; j < kOwn; ++j) {
      const int column = at + quarter + 4 * j;
      const float score = dot<kD>(q + own * kFloats<kD>, k + (quarter + 4 * j) * kFloats<kD>);
      const float held = p.cap == 0 ? score : capped(score, p.cap);
      s[j] = mine.lo <= column && column < mine.hi ? held * p.scale : -INFINITY;
      most = fmaxf(most, s[j]);
    }
    most = quad_max(most);
    const float base = most == -INFINITY ? 0.0f : most, shrink = expf(top - base);
    top = most;
    sum *= shrink;
#pragma unroll
    for (int i = 0; i < kD / 4; ++i) acc[i] *= shrink;
#pragma unroll
    for (int j = 0; j < kOwn; ++j) {
      s[j] = expf(s[j] - base);
      sum += s[j];
    }
    add_rows<kD>(acc, s, v);
  }
  sum = quad_sum(sum);
  if (row >= p.queries) return;
  put_row<kD>(p.o, head, row, p.d, acc, sum > 0 ? 1.0f / sum : 0.0f, false);
  if (quarter == 0) p.lse[head * p.queries + row] = sum > 0 ? top + logf(sum) : -INFINITY;
}

// Rows are keys (dk and dv, over the heads of the group) or queries (dq).
template <int kD, bool kOfKeys>
__global__ void __launch_bounds__(Tile<kD>::kThreads, 1) backward_kernel(const AttentionParams p) {
  constexpr int kRows = Tile<kD>::kRows, kColumns = Tile<kD>::kColumns, kOwn = Tile<kD>::kOwn;
  LS_DYNAMIC_SHARED(float, shared);
  float *r1 = shared, *r2 = r1 + kRows * kFloats<kD>, *c1 = r2 + kRows * kFloats<kD>, *c2 = c1 + kColumns * kFloats<kD>;
  const int own = static_cast<int>(threadIdx.x) / 4, quarter = static_cast<int>(threadIdx.x) % 4;
  const int64_t rows = kOfKeys ? p.keys : p.queries, columns = kOfKeys ? p.queries : p.keys;
  const int64_t row0 =
      (kOfKeys ? static_cast<int64_t>(blockIdx.x) : gridDim.x - 1 - static_cast<int64_t>(blockIdx.x)) * kRows;
  const int64_t row = row0 + own;
  const int begin = attended(p, kOfKeys, row0).lo / kColumns * kColumns;
  const int end = attended(p, kOfKeys, min(row0 + kRows, rows) - 1).hi;
  const Interval mine = attended(p, kOfKeys, min(row, rows - 1));
  load_rows<kRows, kD>(r1, kOfKeys ? p.k : p.q, blockIdx.y, row0, rows, p.d);
  load_rows<kRows, kD>(r2, kOfKeys ? p.v : p.dout, blockIdx.y, row0, rows, p.d);
  const int heads = kOfKeys ? p.group : 1, first_head = kOfKeys ? blockIdx.y * p.group : blockIdx.y / p.group;
  const int64_t row_place = blockIdx.y * p.queries + min(row, rows - 1);
  const float row_lse = kOfKeys ? 0.0f : p.lse[row_place], row_delta = kOfKeys ? 0.0f : p.delta[row_place];
  float acc1[kD / 4] = {}, acc2[kOfKeys ? kD / 4 : 1] = {};
  for (int head = first_head; head < first_head + heads; ++head)
    for (int at = begin; at < end; at += kColumns) {
      __syncthreads();
      load_rows<kColumns, kD>(c1, kOfKeys ? p.q : p.k, head, at, columns, p.d);
      load_rows<kColumns, kD>(c2, kOfKeys ? p.dout : p.v, head, at, columns, p.d);
      __syncthreads();
      float s[kOwn], ds[kOwn];
#pragma unroll
      for (int j = 0; j < kOwn; ++j) {
        const int column = at + quarter + 4 * j;
        const float *x1 = c1 + (quarter + 4 * j) * kFloats<kD>, *x2 = c2 + (quarter + 4 * j) * kFloats<kD>;
        s[j] = 0;
        ds[j] = 0;
        if (column < mine.lo || column >= mine.hi) continue;
        const float lse = kOfKeys ? p.lse[head * p.queries + column] : row_lse;
        const float delta = kOfKeys ? p.delta[head * p.queries + column] : row_delta;
        const float product = dot<kD>(r1 + own * kFloats<kD>, x1);
        const float held = p.cap == 0 ? product : capped(product, p.cap), share = p.cap == 0 ? 0 : held / p.cap;
        s[j] = expf(held * p.scale - lse);
        ds[j] = s[j] * (dot<kD>(r2 + own * kFloats<kD>, x2) - delta) * (1 - share * share);
      }
      add_rows<kD>(acc1, ds, c1);
      if constexpr (kOfKeys) add_rows<kD>(acc2, s, c2);
    }
  if (row >= rows) return;
  if constexpr (kOfKeys) {
    put_row<kD>(p.dk, blockIdx.y, row, p.d, acc1, p.scale, p.accumulate_dkv);
    put_row<kD>(p.dv, blockIdx.y, row, p.d, acc2, 1.0f, p.accumulate_dkv);
  } else {
    put_row<kD>(p.dq, blockIdx.y, row, p.d, acc1, p.scale, p.accumulate_dq);
  }
}

template <int kD>
ls_status launch_forward(const ls_exec *exec, const AttentionParams &p) {
  constexpr int kRows = Tile<kD>::kRows, kBytes = (kRows + 2 * Tile<kD>::kColumns) * kFloats<kD> * 4;
  const dim3 grid(static_cast<unsigned>(ceil_div(p.queries, kRows)), static_cast<unsigned>(p.heads));
  return LS_LAUNCH((forward_kernel<kD>), grid, dim3(Tile<kD>::kThreads), kBytes, exec, p);
}

template <int kD>
ls_status launch_backward(const ls_exec *exec, const AttentionParams &p) {
  constexpr int kRows = Tile<kD>::kRows, kBytes = 2 * (kRows + Tile<kD>::kColumns) * kFloats<kD> * 4;
  static_assert(kBytes <= 99 << 10);
  const dim3 of_keys(static_cast<unsigned>(ceil_div(p.keys, kRows)), static_cast<unsigned>(p.heads / p.group));
  const dim3 of_queries(static_cast<unsigned>(ceil_div(p.queries, kRows)), static_cast<unsigned>(p.heads));
  // Where the columns are none, zeros are written all the same.
  if (p.keys > 0) LS_TRY((LS_LAUNCH((backward_kernel<kD, true>), of_keys, dim3(Tile<kD>::kThreads), kBytes, exec, p)));
  if (p.queries == 0) return LS_OK;
  return LS_LAUNCH((backward_kernel<kD, false>), of_queries, dim3(Tile<kD>::kThreads), kBytes, exec, p);
}

}  // namespace

ls_status attention_float32(const ls_exec *exec, const AttentionParams &p) {
  if (p.d <= 64) return launch_forward<64>(exec, p);
  if (p.d <= 128) return launch_forward<128>(exec, p);
  return launch_forward<256>(exec, p);
}

ls_status attention_backward_float32(const ls_exec *exec, const AttentionParams &p) {
  if (p.d <= 64) return launch_backward<64>(exec, p);
  if (p.d <= 128) return launch_backward<128>(exec, p);
  return launch_backward<256>(exec, p);
}

}  // namespace longseq::cuda
