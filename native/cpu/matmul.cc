// Matrix product of the CPU backend: packed panels, a register tile of fused multiply-adds, split over C by rows.
//
// Order of the sums: each element of c adds blocks of kDepth products, each block one ascending chain of fused
// multiply-adds (a product of at most kThinRows rows or columns may keep 16 sums instead), so the bits depend on the
// shape alone: not on threads, tiles or the instruction set.
#include "gemm.h"
#include "kernels.h"
#include "microkernel.h"
#include "scratch.h"

namespace longseq::cpu::LS_ISA {

namespace {

// Products added in one chain before they reach c.
constexpr int64_t kDepth = 512;
// Distance of two rows of a packed a whose rows run along k: an odd number of cache lines, so that the rows of a
// register tile fall into different sets of the L1 cache.
constexpr int kRowStride = kDepth + 16;
// Panels of rows that one piece of work packs at a time; they stay in the L2 cache.
constexpr int64_t kPieceRows = Vec::kWidth == 16 ? 16 * kRows : 40 * kRows;
constexpr int64_t kPanelsA = kPieceRows / kRows;
// The widest block of columns, and packed b shared by all threads: with one row of bias, half of a thread's scratch.
constexpr int64_t kBlockColumns = 2016;
constexpr int64_t kSharedFloats = kScratchLimit / 2 / 4 - kBlockColumns;
// Columns of the float32 tile behind a c that cannot take partial sums itself.
constexpr int64_t kTileColumns = 1024;
// The private tile of products too deep for a shared b: rows and columns.
constexpr int64_t kPrivateTile = 640;

// The most rows of the products that stream b as it lies instead of packing it, and the most columns of a piece.
constexpr int64_t kThinRows = 4;
constexpr int64_t kThinColumns = 4 * 16;

constexpr int64_t kPackedA = kPanelsA * kRows * kRowStride;
static_assert(kDepth * kBlockColumns <= kSharedFloats);
static_assert((kPackedA + kDepth * kPrivateTile + (kPrivateTile + kRows) * kPrivateTile) * 4 <= kScratchLimit / 2);

// Runs f(begin, end) over 0..items-1 in pieces of `grain`, on the pool or, where exec is NULL, here.
template <class F>
void split_over(const ls_exec *exec, int64_t items, int64_t grain, const F &f) {
  if (items <= 0) return;
  if (exec == nullptr || items <= grain) {
    for (int64_t i = 0; i < items; i += grain) f(i, min_of(i + grain, items));
    return;
  }
  parallel_for(exec, items, grain, f);
}

// ---- packing ----

// n consecutive elements to float32.
LS_INLINE void copy_row(const char *source, bool half, int64_t n, float *out) {
  constexpr int w = Vec::kWidth;
  int64_t i = 0;
  if (half) {
    const bf16 *s = reinterpret_cast<const bf16 *>(source);
    for (; i + w <= n; i += w) vec_store(out + i, vec_load_bf16(s + i));
    for (; i < n; ++i) out[i] = to_float(s[i]);
  } else {
    const float *s = reinterpret_cast<const float *>(source);
    for (; i + w <= n; i += w) vec_store(out + i, vec_load(s + i));
    for (; i < n; ++i) out[i] = s[i];
  }
}

// A packed block of a: along_k: [row][kRowStride], rows as they are; else panels [k][kRows].
struct PackedA {
  const float *data;
  bool along_k;
  int64_t depth;
  const float *panel(int64_t p) const { return data + p * (along_k ? int64_t{kRows} * kRowStride : kRows * depth); }
};

PackedA pack_a(const Matrix &a, int64_t i0, int64_t rows, int64_t k0, int64_t depth, float *out) {
  if (a.row == 1 && a.column != 1) {
    const int64_t full = rows / kRows, rest = rows % kRows;
    for (int64_t k = 0; k < depth; ++k) {
      float *o = out + k * kRows;
      if (a.half) {
        const bf16 *s = reinterpret_cast<const bf16 *>(a.at(i0, k0 + k));
        for (int64_t p = 0; p < full; ++p, o += kRows * depth, s += kRows) {
          for (int r = 0; r < kRows; ++r) o[r] = to_float(s[r]);
        }
        for (int64_t r = 0; r < rest; ++r) o[r] = to_float(s[r]);
      } else {
        const float *s = reinterpret_cast<const float *>(a.at(i0, k0 + k));
        for (int64_t p = 0; p < full; ++p, o += kRows * depth, s += kRows) memcpy(o, s, kRows * sizeof(float));
        for (int64_t r = 0; r < rest; ++r) o[r] = s[r];
      }
    }
    return {out, false, depth};
  }
  for (int64_t r = 0; r < rows; ++r) {
    float *o = out + r * kRowStride;
    if (a.column == 1) {
      copy_row(a.at(i0 + r, k0), a.half, depth, o);
    } else {
      for (int64_t k = 0; k < depth; ++k) o[k] = a.load(i0 + r, k0 + k);
    }
  }
  return {out, true, depth};
}

// One panel [depth][kPanel] of `columns` columns of b, zeros behind them.
void pack_b_panel(const Matrix &b, int64_t k0, int64_t depth, int64_t j0, int64_t columns, float *out) {
  constexpr int w = Vec::kWidth;
  if (b.row == 1 && b.column != 1) {
    for (int64_t half = 0; half < kPanel; half += w) {
      const int64_t count = max_of(0, min_of(w, columns - half));
      int64_t k = 0;
      if (count == w) {
        for (; k + w <= depth; k += w) {
          Vec rows[w];
          LS_UNROLL
          for (int i = 0; i < w; ++i) {
            const char *p = b.at(k0 + k, j0 + half + i);
            rows[i] = b.half ? vec_load_bf16(reinterpret_cast<const bf16 *>(p))
                             : vec_load(reinterpret_cast<const float *>(p));
          }
          transpose_store(rows, out + k * kPanel + half, kPanel);
        }
      }
      for (; k < depth; ++k) {
        float *o = out + k * kPanel + half;
        for (int64_t i = 0; i < count; ++i) o[i] = b.load(k0 + k, j0 + half + i);
        for (int64_t i = count; i < w; ++i) o[i] = 0.0f;
      }
    }
    return;
  }
  for (int64_t k = 0; k < depth; ++k) {
    float *o = out + k * kPanel;
    if (b.column == 1 && columns == kPanel) {
      copy_row(b.at(k0 + k, j0), b.half, kPanel, o);
    } else {
      for (int64_t i = 0; i < columns; ++i) o[i] = b.load(k0 + k, j0 + i);
      for (int64_t i = columns; i < kPanel; ++i) o[i] = 0.0f;
    }
  }
}

// Packs depth x columns of b: for each block of kDepth along k, panels [block depth][kPanel] side by side.
// Block kb starts at out + kb * kDepth * padded columns.
void pack_b(const ls_exec *exec, const Matrix &b, int64_t k0, int64_t depth, int64_t j0, int64_t columns, float *out) {
  const int64_t panels = ceil_div(columns, kPanel);
  // Rows along n are read best many panels at a time, a few rows of b each; columns along k one panel at a time.
  const int64_t group = 256 / kPanel, slice = 64;
  const int64_t groups = ceil_div(panels, group), blocks = ceil_div(depth, kDepth), slices = kDepth / slice;
  split_over(exec, groups * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t kb = item / groups, first = item % groups * group, last = min_of(first + group, panels);
      const int64_t block_depth = min_of(kDepth, depth - kb * kDepth);
      float *block = out + kb * kDepth * panels * kPanel;
      for (int64_t s = 0; s < slices; ++s) {
        const int64_t from = s * slice, count = min_of(slice, block_depth - from);
        if (count <= 0) break;
        for (int64_t p = first; p < last; ++p) {
          pack_b_panel(b, k0 + kb * kDepth + from, count, j0 + p * kPanel, min_of(kPanel, columns - p * kPanel),
                       block + p * block_depth * kPanel + from * kPanel);
        }
      }
    }
  });
}

// ---- the register tile ----

// c[r, :] = alpha * sum + base[r, :]; base_stride 0 gives every row the same base.
// alpha comes by address, to be loaded after the loop: within, the sums need every vector register.
using Kernel = void (*)(int64_t depth, const float *a, const float *b, const float *alpha, const float *base,
                        int64_t base_stride, float *c, int64_t c_stride);

template <int kR, int kV, bool kAlongK>
void kernel(int64_t depth, const float *a, const float *b, const float *alpha, const float *base, int64_t base_stride,
            float *c, int64_t c_stride) {
  constexpr int w = Vec::kWidth;
  LS_UNROLL
  for (int r = 0; r < kR; ++r) {
    // c is next needed thousands of cycles from now.
    __builtin_prefetch(c + r * c_stride, 1);
    __builtin_prefetch(c + r * c_stride + kV * w - 1, 1);
  }
  register_tile<kR, kV, kAlongK ? kRowStride : 1, kAlongK ? 1 : kRows, kPanel>(
      depth, a, b, [](int, int) LS_LAMBDA_INLINE { return vec_zero(); },
      [&](int r, int j, Vec sum) LS_LAMBDA_INLINE {
        vec_store(c + r * c_stride + j * w, vec_fma(vec_set(*alpha), sum, vec_load(base + r * base_stride + j * w)));
      });
}

// The kernels of every height up to kRows, for a panel of one or two vectors.
struct Kernels {
  Kernel by_rows[2][2][kRows];  // [along k][vectors - 1][rows - 1]
};

template <int kR>
constexpr void fill_kernels(Kernels &all) {
  all.by_rows[0][0][kR - 1] = &kernel<kR, 1, false>;
  all.by_rows[0][1][kR - 1] = &kernel<kR, 2, false>;
  all.by_rows[1][0][kR - 1] = &kernel<kR, 1, true>;
  all.by_rows[1][1][kR - 1] = &kernel<kR, 2, true>;
  if constexpr (kR > 1) fill_kernels<kR - 1>(all);
}

constexpr Kernels make_kernels() {
  Kernels all{};
  fill_kernels<kRows>(all);
  return all;
}

constexpr Kernels kKernels = make_kernels();

alignas(64) const float kZeros[kPanel] = {};
const float kOne = 1.0f;

// Adds one block of depth products to rows x columns of c (column stride 1).
// base: NULL for 0, else [columns] with base_stride 0, or c itself.
void multiply_block(const PackedA &a, int64_t rows, const float *b, int64_t columns, int64_t depth, float alpha,
                    const float *base, int64_t base_stride, float *c, int64_t c_stride) {
  alignas(64) float edge[kRows * kPanel];
  for (int64_t j = 0; j < columns; j += kPanel) {
    const float *panel = b + j * depth;
    const int64_t width = min_of(kPanel, columns - j);
    const bool whole = width == kPanel || width == Vec::kWidth;
    for (int64_t i = 0; i < rows; i += kRows) {
      const int64_t height = min_of(kRows, rows - i);
      const Kernel run = kKernels.by_rows[a.along_k][width > Vec::kWidth][height - 1];
      float *out = c + i * c_stride + j;
      const float *from = base == nullptr ? kZeros : base + i * base_stride + j;
      if (whole) {
        run(depth, a.panel(i / kRows), panel, &alpha, from, base_stride, out, c_stride);
      } else {
        run(depth, a.panel(i / kRows), panel, &kOne, kZeros, 0, edge, kPanel);
        for (int64_t r = 0; r < height; ++r) {
          for (int64_t x = 0; x < width; ++x) {
            out[r * c_stride + x] = __builtin_fmaf(alpha, edge[r * kPanel + x], from[r * base_stride + x]);
          }
        }
      }
    }
  }
}

// ---- loops ----

struct Split {
  int64_t pieces, rows;     // of the rows
  int64_t strips, columns;  // of a block's columns
};

// Splits a block into pieces of whole panels, at least four a thread where there is as much. No bit depends on it.
Split split_block(const ls_exec *exec, int64_t m, int64_t n) {
  const int64_t threads = exec == nullptr ? 1 : max_of(1, exec->threads);
  const int64_t wanted = threads == 1 ? 1 : 4 * threads;
  const int64_t panels = ceil_div(m, kRows);
  int64_t pieces = ceil_div(panels, kPanelsA);
  pieces = min_of(panels, ceil_div(pieces, wanted) * wanted);
  // A piece below four panels would spend its time on packing a and walking b.
  pieces = max_of(ceil_div(panels, kPanelsA), min_of(pieces, ceil_div(panels, 4)));
  const int64_t rows = ceil_div(panels, pieces) * kRows;
  const int64_t column_panels = ceil_div(n, kPanel);
  const int64_t strips = max_of(1, min_of(ceil_div(wanted, pieces), column_panels / 4));
  const int64_t columns = ceil_div(column_panels, strips) * kPanel;
  return {ceil_div(m, rows), rows, ceil_div(n, columns), columns};
}

// Fills bias[0..columns-1] as float32.
void load_bias(const Matrix &bias, int64_t j0, int64_t columns, float *out) {
  for (int64_t j = 0; j < columns; ++j) out[j] = bias.load(0, j0 + j);
}

// c is float32 with unit column stride: partial sums go straight into it.
bool multiply_direct(const ls_exec *exec, const Problem &p) {
  float *shared = static_cast<float *>(thread_scratch().shared.take((kSharedFloats + kBlockColumns) * 4));
  if (shared == nullptr) return false;
  float *bias = shared + kSharedFloats;
  bool failed = false;
  const int64_t blocks_n = ceil_div(p.n, kBlockColumns);
  const int64_t block_n = ceil_div(ceil_div(p.n, blocks_n), kPanel) * kPanel;
  const int64_t block_k = max_of(1, kSharedFloats / block_n / kDepth) * kDepth;
  for (int64_t j0 = 0; j0 < p.n; j0 += block_n) {
    const int64_t columns = min_of(block_n, p.n - j0);
    const int64_t padded = ceil_div(columns, kPanel) * kPanel;
    if (p.bias != nullptr) load_bias(*p.bias, j0, columns, bias);
    const Split split = split_block(exec, p.m, columns);
    for (int64_t k0 = 0; k0 == 0 || k0 < p.k; k0 += block_k) {
      const int64_t depth = min_of(block_k, p.k - k0);
      pack_b(exec, p.b, k0, depth, j0, columns, shared);
      split_over(exec, split.pieces * split.strips, 1, [&](int64_t begin, int64_t end) {
        float *local = static_cast<float *>(thread_scratch().local.take(kPackedA * 4));
        if (local == nullptr) {
          __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
          return;
        }
        for (int64_t item = begin; item < end; ++item) {
          const int64_t i0 = item / split.strips * split.rows, rows = min_of(split.rows, p.m - i0);
          const int64_t s0 = item % split.strips * split.columns, strip = min_of(split.columns, columns - s0);
          float *c = reinterpret_cast<float *>(p.c.at(i0, j0 + s0));
          const bool add_bias = k0 == 0 && p.bias != nullptr;
          if (add_bias && p.accumulate) {
            for (int64_t r = 0; r < rows; ++r) {
              for (int64_t x = 0; x < strip; ++x) c[r * p.c.row + x] += bias[s0 + x];
            }
          }
          for (int64_t kk = 0; kk == 0 || kk < depth; kk += kDepth) {
            const int64_t block = min_of(kDepth, depth - kk);
            const PackedA a = pack_a(p.a, i0, rows, k0 + kk, block, local);
            const bool add = p.accumulate || k0 + kk > 0;
            const float *base = add ? c : add_bias ? bias + s0 : nullptr;
            multiply_block(a, rows, shared + kk * padded + s0 * block, strip, block, p.alpha, base, add ? p.c.row : 0,
                           c, p.c.row);
          }
        }
      });
    }
  }
  return !failed;
}

// Writes a finished float32 tile into any c: c = alpha * tile + bias + c.
void finish_tile(const Problem &p, const float *tile, int64_t tile_stride, int64_t i0, int64_t rows, int64_t j0,
                 int64_t columns) {
  constexpr int w = Vec::kWidth;
  const bool fast = p.c.half && p.c.column == 1 && p.bias == nullptr;
  const Vec scale = vec_set(p.alpha);
  for (int64_t r = 0; r < rows; ++r) {
    const float *t = tile + r * tile_stride;
    int64_t x = 0;
    if (fast) {
      bf16 *c = reinterpret_cast<bf16 *>(p.c.at(i0 + r, j0));
      for (; x + w <= columns; x += w) {
        const Vec base = p.accumulate ? vec_load_bf16(c + x) : vec_zero();
        vec_store_bf16(c + x, vec_fma(scale, vec_load(t + x), base));
      }
    }
    for (; x < columns; ++x) {
      float base = p.accumulate ? p.c.load(i0 + r, j0 + x) : 0.0f;
      if (p.bias != nullptr) base += p.bias->load(0, j0 + x);
      p.c.store(i0 + r, j0 + x, __builtin_fmaf(p.alpha, t[x], base));
    }
  }
}

// c holds bfloat16 or lies across: a float32 tile takes the partial sums, and c is rounded once.
bool multiply_tiled(const ls_exec *exec, const Problem &p) {
  bool failed = false;
  const int64_t fitting = kSharedFloats / max_of(1, ceil_div(p.k, kDepth) * kDepth) / kPanel * kPanel;
  if (fitting >= min_of(p.n, 256)) {
    // All of b's depth fits for this many columns: pack it once for everybody.
    float *shared = static_cast<float *>(thread_scratch().shared.take(kSharedFloats * 4));
    if (shared == nullptr) return false;
    const int64_t blocks_n = ceil_div(p.n, min_of(fitting, kTileColumns));
    const int64_t block_n = ceil_div(ceil_div(p.n, blocks_n), kPanel) * kPanel;
    for (int64_t j0 = 0; j0 < p.n; j0 += block_n) {
      const int64_t columns = min_of(block_n, p.n - j0);
      const int64_t padded = ceil_div(columns, kPanel) * kPanel;
      const Split split = split_block(exec, p.m, columns);
      pack_b(exec, p.b, 0, p.k, j0, columns, shared);
      split_over(exec, split.pieces * split.strips, 1, [&](int64_t begin, int64_t end) {
        float *local = static_cast<float *>(thread_scratch().local.take((kPackedA + kPieceRows * kTileColumns) * 4));
        if (local == nullptr) {
          __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
          return;
        }
        float *tile = local + kPackedA;
        for (int64_t item = begin; item < end; ++item) {
          const int64_t i0 = item / split.strips * split.rows, rows = min_of(split.rows, p.m - i0);
          const int64_t s0 = item % split.strips * split.columns, strip = min_of(split.columns, columns - s0);
          for (int64_t kk = 0; kk == 0 || kk < p.k; kk += kDepth) {
            const int64_t block = min_of(kDepth, p.k - kk);
            const PackedA a = pack_a(p.a, i0, rows, kk, block, local);
            multiply_block(a, rows, shared + kk * padded + s0 * block, strip, block, 1.0f, kk > 0 ? tile : nullptr,
                           kk > 0 ? kTileColumns : 0, tile, kTileColumns);
          }
          finish_tile(p, tile, kTileColumns, i0, rows, j0 + s0, strip);
        }
      });
    }
    return !failed;
  }
  // Too deep to keep: every piece packs its own b, block by block, for a tile of c large enough to pay for it.
  const int64_t threads = exec == nullptr ? 1 : max_of(1, exec->threads);
  int64_t side_m = min_of(kPrivateTile, ceil_div(p.m, kRows) * kRows), side_n = kPrivateTile;
  while (side_n > 128 && ceil_div(p.m, side_m) * ceil_div(p.n, side_n) < 2 * threads) {
    if (side_m > side_n) {
      side_m = ceil_div(side_m / 2, kRows) * kRows;
    } else {
      side_n = side_n / 2;
    }
  }
  const int64_t tiles_n = ceil_div(p.n, side_n);
  split_over(exec, ceil_div(p.m, side_m) * tiles_n, 1, [&](int64_t begin, int64_t end) {
    constexpr int64_t tile_rows = kPrivateTile + kRows;
    float *local = static_cast<float *>(
        thread_scratch().local.take((kPackedA + kDepth * kPrivateTile + tile_rows * kPrivateTile) * 4));
    if (local == nullptr) {
      __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
      return;
    }
    float *packed_b = local + kPackedA;
    float *tile = packed_b + kDepth * kPrivateTile;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t i0 = item / tiles_n * side_m, rows = min_of(side_m, p.m - i0);
      const int64_t j0 = item % tiles_n * side_n, columns = min_of(side_n, p.n - j0);
      for (int64_t kk = 0; kk < p.k; kk += kDepth) {
        const int64_t block = min_of(kDepth, p.k - kk);
        pack_b(nullptr, p.b, kk, block, j0, columns, packed_b);
        for (int64_t r = 0; r < rows; r += kPieceRows) {
          const int64_t part = min_of(kPieceRows, rows - r);
          const PackedA a = pack_a(p.a, i0 + r, part, kk, block, local);
          float *t = tile + r * kPrivateTile;
          multiply_block(a, part, packed_b, columns, block, 1.0f, kk > 0 ? t : nullptr, kk > 0 ? kPrivateTile : 0, t,
                         kPrivateTile);
        }
      }
      finish_tile(p, tile, kPrivateTile, i0, rows, j0, columns);
    }
  });
  return !failed;
}

// ---- few rows ----

LS_INLINE f32x16 load_16(const Matrix &x, const char *p) {
  return x.half ? load(reinterpret_cast<const bf16 *>(p)) : load(reinterpret_cast<const float *>(p));
}

void finish_element(const Problem &p, int64_t i, int64_t j, float sum) {
  float base = p.accumulate ? p.c.load(i, j) : 0.0f;
  if (p.bias != nullptr) base += p.bias->load(0, j);
  p.c.store(i, j, __builtin_fmaf(p.alpha, sum, base));
}

// Columns j0..j1-1 of b run along k: inner products of 16 partial sums each, added as a tree.
template <int kM>
void thin_dots(const Problem &p, const float *a, int64_t a_stride, int64_t j0, int64_t j1) {
  const int64_t whole = p.k / 16 * 16, bytes = p.b.element_bytes();
  for (int64_t j = j0; j < j1; ++j) {
    const char *b = p.b.at(0, j);
    f32x16 sum[kM];
    LS_UNROLL
    for (int r = 0; r < kM; ++r) sum[r] = zero();
    for (int64_t k = 0; k < whole; k += 16) {
      const f32x16 x = load_16(p.b, b + k * bytes);
      LS_UNROLL
      for (int r = 0; r < kM; ++r) sum[r] = fma(load(a + r * a_stride + k), x, sum[r]);
    }
    if (whole < p.k) {
      alignas(64) float rest[16] = {};
      for (int64_t k = whole; k < p.k; ++k) rest[k - whole] = p.b.load(k, j);
      // a is padded with zeros.
      for (int r = 0; r < kM; ++r) sum[r] = fma(load(a + r * a_stride + whole), load(rest), sum[r]);
    }
    for (int r = 0; r < kM; ++r) finish_element(p, r, j, reduce_add(sum[r]));
  }
}

// Rows of b run along n: 64 columns at a time, k ascending, blocks of kDepth as in the packed product.
template <int kM>
void thin_rows(const Problem &p, const float *a, int64_t a_stride, int64_t j0, int64_t j1) {
  const int64_t step = p.b.row * p.b.element_bytes();
  for (int64_t j = j0; j < j1; j += 16) {
    const int64_t width = min_of(16, j1 - j);
    f32x16 total[kM];
    LS_UNROLL
    for (int r = 0; r < kM; ++r) total[r] = zero();
    for (int64_t k0 = 0; k0 < p.k; k0 += kDepth) {
      f32x16 sum[kM];
      LS_UNROLL
      for (int r = 0; r < kM; ++r) sum[r] = zero();
      const char *b = p.b.at(k0, j);
      for (int64_t k = k0, end = min_of(k0 + kDepth, p.k); k < end; ++k, b += step) {
        f32x16 x;
        if (width == 16) {
          x = load_16(p.b, b);
        } else {
          x = p.b.half ? load(reinterpret_cast<const bf16 *>(b), width)
                       : load(reinterpret_cast<const float *>(b), width);
        }
        LS_UNROLL
        for (int r = 0; r < kM; ++r) sum[r] = fma(set1(a[r * a_stride + k]), x, sum[r]);
      }
      LS_UNROLL
      for (int r = 0; r < kM; ++r) total[r] = total[r] + sum[r];
    }
    for (int r = 0; r < kM; ++r) {
      alignas(64) float out[16];
      store(out, total[r]);
      for (int64_t x = 0; x < width; ++x) finish_element(p, r, j + x, out[x]);
    }
  }
}

template <int kM>
void thin_columns(const Problem &p, const float *a, int64_t a_stride, int64_t j0, int64_t j1) {
  if (p.b.row == 1) {
    thin_dots<kM>(p, a, a_stride, j0, j1);
  } else {
    thin_rows<kM>(p, a, a_stride, j0, j1);
  }
}

// At most kThinRows rows: b is read once, where it lies.
bool multiply_thin(const ls_exec *exec, const Problem &p) {
  const int64_t stride = ceil_div(p.k, 16) * 16;
  float *a = static_cast<float *>(thread_scratch().shared.take(p.m * stride * 4));
  if (a == nullptr) return false;
  for (int64_t i = 0; i < p.m; ++i) {
    for (int64_t k = 0; k < p.k; ++k) a[i * stride + k] = p.a.load(i, k);
    for (int64_t k = p.k; k < stride; ++k) a[i * stride + k] = 0.0f;
  }
  const int64_t grain = max_of(1, min_of(ceil_div(p.n, kThinColumns), (int64_t{1} << 17) / (p.k * kThinColumns + 1)));
  split_over(exec, p.n, grain * kThinColumns, [&](int64_t begin, int64_t end) {
    switch (p.m) {
      case 1:
        return thin_columns<1>(p, a, stride, begin, end);
      case 2:
        return thin_columns<2>(p, a, stride, begin, end);
      case 3:
        return thin_columns<3>(p, a, stride, begin, end);
      default:
        return thin_columns<4>(p, a, stride, begin, end);
    }
  });
  return true;
}

Matrix transposed(const Matrix &x) { return {x.data, x.half, x.column, x.row}; }

bool is_thin(int64_t m, int64_t k, const Matrix &b) {
  return m <= kThinRows && k > 0 && m * (k + 15) <= kSharedFloats && (b.row == 1 || b.column == 1);
}

}  // namespace

bool multiply(const ls_exec *exec, Problem p) {
  if (p.m <= 0 || p.n <= 0) return true;
  if (p.m * p.n * max_of(p.k, 1) < kSerialWork) exec = nullptr;
  if (is_thin(p.m, p.k, p.b)) return multiply_thin(exec, p);
  if (p.bias == nullptr && is_thin(p.n, p.k, transposed(p.a))) {
    return multiply_thin(
        exec, {transposed(p.b), transposed(p.a), transposed(p.c), nullptr, p.n, p.m, p.k, p.alpha, p.accumulate});
  }
  if (!p.c.half && p.c.column != 1 && p.c.row == 1 && p.bias == nullptr) {
    // The transposed product has unit column stride.
    p = {transposed(p.b), transposed(p.a), transposed(p.c), nullptr, p.n, p.m, p.k, p.alpha, p.accumulate};
  }
  if (!p.c.half && (p.c.column == 1 || p.n == 1)) return multiply_direct(exec, p);
  return multiply_tiled(exec, p);
}

ls_status matmul(const ls_exec *exec, const ls_matmul_args *args) {
  const ls_tensor &a = args->a, &b = args->b, &c = args->c;
  const int nd = c.ndim, batch_dims = nd - 2;
  Problem p;
  p.a = matrix_of(a);
  p.b = matrix_of(b);
  p.c = matrix_of(c);
  Matrix bias{};
  p.bias = nullptr;
  if (args->bias.present) {
    bias = {static_cast<char *>(args->bias.data), args->bias.dtype == LS_BF16, 0, args->bias.strides[0]};
    p.bias = &bias;
  }
  p.m = c.sizes[nd - 2];
  p.n = c.sizes[nd - 1];
  p.k = a.sizes[a.ndim - 1];
  p.alpha = static_cast<float>(args->alpha);
  p.accumulate = args->accumulate != 0;

  // Batch dims, outermost first; a missing one counts once.
  int64_t sizes[2] = {1, 1}, sa[2] = {0, 0}, sb[2] = {0, 0}, sc[2] = {0, 0};
  for (int d = 0; d < batch_dims; ++d) {
    const int at = 2 - batch_dims + d;
    sizes[at] = c.sizes[d];
    sa[at] = a.strides[d];
    sb[at] = b.strides[d];
    sc[at] = c.strides[d];
  }
  // A b that is the same for the whole batch makes the batch more rows of a.
  for (int at = 1; at >= 0; --at) {
    if (sizes[at] > 1 && sb[at] == 0 && sa[at] == p.m * p.a.row && sc[at] == p.m * p.c.row) {
      p.m *= sizes[at];
      sizes[at] = 1;
    } else if (sizes[at] > 1) {
      break;
    }
  }
  const int64_t batch = sizes[0] * sizes[1];
  if (batch == 0) return LS_OK;
  auto item = [&](int64_t i) {
    const int64_t i0 = i / sizes[1], i1 = i % sizes[1];
    Problem q = p;
    q.a.data += (i0 * sa[0] + i1 * sa[1]) * p.a.element_bytes();
    q.b.data += (i0 * sb[0] + i1 * sb[1]) * p.b.element_bytes();
    q.c.data += (i0 * sc[0] + i1 * sc[1]) * p.c.element_bytes();
    return q;
  };
  bool ok = true;
  const int64_t work = p.m * p.n * max_of(p.k, 1);
  if (batch > 1 && (batch >= 4 * exec->threads || work < kSerialWork) && work < (int64_t{1} << 28)) {
    // Many matrices: one a thread at a time.
    const int64_t grain = max_of(1, min_of(batch, kSerialWork / max_of(work, 1)));
    split_over(exec, batch, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        if (!multiply(nullptr, item(i))) __atomic_store_n(&ok, false, __ATOMIC_RELAXED);
      }
    });
  } else {
    for (int64_t i = 0; i < batch && ok; ++i) ok = multiply(exec, item(i));
  }
  return ok ? LS_OK : fail(exec, LS_OUT_OF_MEMORY, "matmul: the system gives no memory for a thread's packed panels");
}

}  // namespace longseq::cpu::LS_ISA
