// Products of groups of rows, each with a matrix of its own. The groups' bounds are known on the device alone: the grid
// has as many blocks as any bounds could need, and each finds its tile by a scan of them.
//
// bfloat16 operands go to tensor cores (mma.m16n8k16): tiles of 128 x 128, 32 deep, two stages of asynchronous copies;
// a warp has 32 x 64 of them. All other dtypes are multiplied in float32, tiles of 64 x 64. FLOPs: two a row, column
// and depth; bytes: a once for 128 columns, b once for 128 rows.
#include "elementwise.h"
#include "entries.h"
#include "launch.h"
#include "reduce.h"
#include "tensor_core.h"

namespace longseq::cuda {

namespace {

template <typename T>
struct Side {
  T *data;
  int64_t group, row, column;  // strides in elements; group: of what each group has of its own
};

struct Shape {
  const int64_t *offsets;
  int64_t groups, rows;  // rows of all groups
  int64_t m, n, k;       // of a group's product; the one that its rows are is 0
  bool by_rows;          // the rows are those of c; else they are summed over
  bool accumulate;
};

// A block's tile of a group's product.
struct Tile {
  int64_t group;        // -1: there is none
  int64_t first, rows;  // of the group
  int64_t i, j;         // the tile's first row and column, i within the group's
};

LS_DEVICE int64_t bound_of(const Shape &s, int64_t e) {
  const int64_t offset = s.offsets[e];
  return offset < 0 ? 0 : offset > s.rows ? s.rows : offset;
}

// Rows of c that a group has.
LS_DEVICE int64_t height_of(const Shape &s, int64_t e) {
  if (!s.by_rows) return s.m;
  const int64_t rows = bound_of(s, e + 1) - bound_of(s, e);
  return rows < 0 ? 0 : rows;
}

// All threads of the block call it.
template <int kSize>
LS_DEVICE Tile find_tile(const Shape &s) {
  __shared__ int64_t found[2];
  const int64_t across = ceil_div(s.n, kSize);
  const int64_t wanted = blockIdx.x / across;
  if (threadIdx.x == 0) found[0] = -1;
  __syncthreads();
  if (threadIdx.x < 32) {
    const int lane = static_cast<int>(threadIdx.x);
    int64_t before = 0;
    for (int64_t first = 0; first < s.groups && before <= wanted; first += 32) {
      const int64_t e = first + lane;
      const int64_t own = e < s.groups ? ceil_div(height_of(s, e), kSize) : 0;
      int64_t sum = own;
#pragma unroll
      for (int distance = 1; distance < 32; distance *= 2) {
        const int64_t below = __shfl_up_sync(kAllLanes, sum, distance);
        if (lane >= distance) sum += below;
      }
      const int64_t begin = before + sum - own;
      if (wanted >= begin && wanted < begin + own) {
        found[0] = e;
        found[1] = wanted - begin;
      }
      before += __shfl_sync(kAllLanes, sum, 31);
    }
  }
  __syncthreads();
  Tile tile{found[0], 0, 0, 0, 0};
  if (tile.group < 0) return tile;
  tile.first = bound_of(s, tile.group);
  const int64_t rows = bound_of(s, tile.group + 1) - tile.first;
  tile.rows = rows < 0 ? 0 : rows;
  tile.i = found[1] * kSize;
  tile.j = blockIdx.x % across * kSize;
  return tile;
}

// The group's matrices, from the tile's first row and column on, and how much of them there is.
template <typename A, typename B, typename C>
struct Part {
  const A *a;
  const B *b;
  C *c;
  int64_t m, n, k;

  LS_DEVICE Part(const Shape &s, const Tile &t, const Side<const A> &as, const Side<const B> &bs, const Side<C> &cs) {
    const int64_t first = t.first + (s.by_rows ? t.i : 0);
    if (s.by_rows) {
      a = as.data + first * as.row;
      b = bs.data + t.group * bs.group + t.j * bs.column;
      c = cs.data + first * cs.row + t.j * cs.column;
      m = t.rows - t.i;
      k = s.k;
    } else {
      a = as.data + t.i * as.row + first * as.column;
      b = bs.data + first * bs.row + t.j * bs.column;
      c = cs.data + t.group * cs.group + t.i * cs.row + t.j * cs.column;
      m = s.m - t.i;
      k = t.rows;
    }
    n = s.n - t.j;
  }
};

// ---- bfloat16 ----

constexpr int kTile = 128, kDeep = 32, kThreads = 256;
constexpr int kAlong = kDeep + 8, kAcross = kTile + 8;  // elements between rows in shared memory
constexpr int kStage = kTile * kAlong;                  // the larger of the two layouts

// kTile x kDeep of a matrix as it lies: along the depth (rows of kDeep), or across it (kDeep rows of kTile). outer and
// inner: strides; rows and columns: how much there is, in that order.
template <bool kIsAlong>
LS_DEVICE void load_stage(bf16 *stage, const bf16 *from, int64_t outer, int64_t inner, int64_t rows, int64_t columns) {
  constexpr int kRows = kIsAlong ? kTile : kDeep, kColumns = kIsAlong ? kDeep : kTile;
  constexpr int kChunks = kColumns / 8, kStride = kIsAlong ? kAlong : kAcross;
  const bool vector = inner == 1 && outer % 8 == 0 && reinterpret_cast<uintptr_t>(from) % 16 == 0;
#pragma unroll
  for (int chunk = static_cast<int>(threadIdx.x); chunk < kRows * kChunks; chunk += kThreads) {
    const int r = chunk / kChunks, c = chunk % kChunks * 8;
    bf16 *const to = stage + r * kStride + c;
    const int64_t left = r < rows ? columns - c : 0;
    const bf16 *const source = from + r * outer + c * inner;
    if (vector && (left >= 8 || left <= 0)) {
      cp_async_16(to, left > 0 ? source : from, left > 0);
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) to[i] = i < left ? source[i * inner] : from_float<bf16>(0.0f);
    }
  }
}

template <bool kAlongA, bool kAlongB, typename C>
__global__ void __launch_bounds__(kThreads)
    grouped_bf16_kernel(Side<const bf16> as, Side<const bf16> bs, Side<C> cs, Shape s) {
  __shared__ __align__(16) bf16 stages[2][2][kStage];
  const Tile tile = find_tile<kTile>(s);
  if (tile.group < 0) return;
  const Part<bf16, bf16, C> part(s, tile, as, bs, cs);
  if (part.k == 0 && s.accumulate) return;
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const int row = warp % 4 * 32, column = warp / 4 * 64;
  float acc[2][8][4] = {};
  const auto load = [&](int64_t depth, int stage) {
    const int64_t left = part.k - depth;
    const bf16 *const a = part.a + depth * as.column, *const b = part.b + depth * bs.row;
    if constexpr (kAlongA)
      load_stage<true>(stages[stage][0], a, as.row, as.column, part.m, left);
    else
      load_stage<false>(stages[stage][0], a, as.column, as.row, left, part.m);
    if constexpr (kAlongB)
      load_stage<true>(stages[stage][1], b, bs.column, bs.row, part.n, left);
    else
      load_stage<false>(stages[stage][1], b, bs.row, bs.column, left, part.n);
    cp_async_commit();
  };
  if (part.k > 0) load(0, 0);
  int stage = 0;
  for (int64_t depth = 0; depth < part.k; depth += kDeep, stage ^= 1) {
    if (depth + kDeep < part.k) {
      load(depth + kDeep, stage ^ 1);
      cp_async_wait<1>();
    } else {
      cp_async_wait<0>();
    }
    __syncthreads();
    const bf16 *const a = stages[stage][0], *const b = stages[stage][1];
#pragma unroll
    for (int k = 0; k < kDeep; k += 16) {
      uint32_t fa[2][4];
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        const int i = row + m * 16;
        if constexpr (kAlongA)
          ldmatrix_x4(fa[m], a + (i + lane % 16) * kAlong + k + lane / 16 * 8);
        else
          ldmatrix_x4_transposed(fa[m], a + (k + lane / 16 * 8 + lane % 8) * kAcross + i + lane / 8 % 2 * 8);
      }
#pragma unroll
      for (int n = 0; n < 8; n += 2) {
        const int j = column + n * 8;
        uint32_t fb[4];
        if constexpr (kAlongB)
          ldmatrix_x4(fb, b + (j + lane / 16 * 8 + lane % 8) * kAlong + k + lane / 8 % 2 * 8);
        else
          ldmatrix_x4_transposed(fb, b + (k + lane % 16) * kAcross + j + lane / 16 * 8);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          mma_bf16(acc[m][n], fa[m], fb[0], fb[1]);
          mma_bf16(acc[m][n + 1], fa[m], fb[2], fb[3]);
        }
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int n = 0; n < 8; ++n)
#pragma unroll
      for (int v = 0; v < 4; ++v) {
        const int i = row + m * 16 + lane / 4 + v / 2 * 8, j = column + n * 8 + lane % 4 * 2 + v % 2;
        if (i >= part.m || j >= part.n) continue;
        C *const to = part.c + i * cs.row + j * cs.column;
        *to = from_float<C>(s.accumulate ? to_float(*to) + acc[m][n][v] : acc[m][n][v]);
      }
}

// ---- float32, and operands of two dtypes ----

constexpr int kSmall = 64, kShallow = 16;

template <typename A, typename B, typename C>
__global__ void __launch_bounds__(kThreads) grouped_kernel(Side<const A> as, Side<const B> bs, Side<C> cs, Shape s) {
  __shared__ float left[kShallow][kSmall + 1], right[kShallow][kSmall + 1];
  const Tile tile = find_tile<kSmall>(s);
  if (tile.group < 0) return;
  const Part<A, B, C> part(s, tile, as, bs, cs);
  if (part.k == 0 && s.accumulate) return;
  const int x = static_cast<int>(threadIdx.x % 16), y = static_cast<int>(threadIdx.x / 16);
  float acc[4][4] = {};
  // Threads of a warp go along the side whose stride is the smaller.
  const bool along_a = as.column <= as.row, along_b = bs.row <= bs.column;
  for (int64_t depth = 0; depth < part.k; depth += kShallow) {
    for (int at = static_cast<int>(threadIdx.x); at < kSmall * kShallow; at += kThreads) {
      const int ka = along_a ? at % kShallow : at / kSmall, i = along_a ? at / kShallow : at % kSmall;
      left[ka][i] = i < part.m && depth + ka < part.k ? to_float(part.a[i * as.row + (depth + ka) * as.column]) : 0.0f;
      const int kb = along_b ? at % kShallow : at / kSmall, j = along_b ? at / kShallow : at % kSmall;
      right[kb][j] = j < part.n && depth + kb < part.k ? to_float(part.b[(depth + kb) * bs.row + j * bs.column]) : 0.0f;
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kShallow; ++k)
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) acc[i][j] = __fmaf_rn(left[k][y + 16 * i], right[k][x + 16 * j], acc[i][j]);
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int64_t row = y + 16 * i, column = x + 16 * j;
      if (row >= part.m || column >= part.n) continue;
      C *const to = part.c + row * cs.row + column * cs.column;
      *to = from_float<C>(s.accumulate ? to_float(*to) + acc[i][j] : acc[i][j]);
    }
}

template <typename T>
Side<T> side(const ls_tensor &x) {
  const int32_t n = x.ndim;
  return {static_cast<T *>(x.data), n == 3 ? x.strides[0] : 0, x.strides[n - 2], x.strides[n - 1]};
}

// Blocks for any bounds: each group may leave one tile unfinished.
unsigned blocks_of(const Shape &s, int64_t size) {
  const int64_t down = s.by_rows ? s.rows / size + s.groups : s.groups * ceil_div(s.m, size);
  return static_cast<unsigned>(down * ceil_div(s.n, size));
}

template <bool kAlongA, bool kAlongB, typename C>
ls_status launch_bf16(const ls_exec *exec, const ls_grouped_matmul_args *args, const Shape &s) {
  return LS_LAUNCH((grouped_bf16_kernel<kAlongA, kAlongB, C>), blocks_of(s, kTile), kThreads, 0, exec,
                   side<const bf16>(args->a), side<const bf16>(args->b), side<C>(args->c), s);
}

}  // namespace

ls_status grouped_matmul(const ls_exec *exec, const ls_grouped_matmul_args *args) {
  const ls_tensor &a = args->a, &b = args->b, &c = args->c;
  const bool by_rows = c.ndim == 2;
  Shape s{static_cast<const int64_t *>(args->offsets.data),
          args->offsets.sizes[0] - 1,
          by_rows ? a.sizes[0] : a.sizes[1],
          by_rows ? 0 : a.sizes[0],
          c.sizes[c.ndim - 1],
          by_rows ? a.sizes[1] : 0,
          by_rows,
          args->accumulate != 0};
  if (element_count(c) == 0) return LS_OK;
  if (a.dtype == LS_BF16 && b.dtype == LS_BF16) {
    const bool along_a = a.strides[1] <= a.strides[0];
    const bool along_b = b.strides[b.ndim - 2] <= b.strides[b.ndim - 1];
    return dispatch_float(c.dtype, [&](auto tag) {
      using C = typename decltype(tag)::type;
      if (along_a)
        return along_b ? launch_bf16<true, true, C>(exec, args, s) : launch_bf16<true, false, C>(exec, args, s);
      return along_b ? launch_bf16<false, true, C>(exec, args, s) : launch_bf16<false, false, C>(exec, args, s);
    });
  }
  return dispatch_float(a.dtype, [&](auto a_tag) {
    using A = typename decltype(a_tag)::type;
    return dispatch_float(b.dtype, [&](auto b_tag) {
      using B = typename decltype(b_tag)::type;
      return dispatch_float(c.dtype, [&](auto c_tag) {
        using C = typename decltype(c_tag)::type;
        return LS_LAUNCH((grouped_kernel<A, B, C>), blocks_of(s, kSmall), kThreads, 0, exec, side<const A>(a),
                         side<const B>(b), side<C>(c), s);
      });
    });
  });
}

}  // namespace longseq::cuda
