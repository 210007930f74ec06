// Sums over any dims in float64, in an order that depends on the shape and layout alone.
#include "elementwise.h"
#include "kernels.h"

namespace longseq::cpu::LS_ISA {

namespace {

constexpr int64_t kSplitOutputs = 16384;  // with more results than this, each is summed in one piece
constexpr int64_t kSplitTerms = 4096;     // fewest terms of a piece
constexpr int64_t kSplits = 64;
constexpr int64_t kColumns = 256;  // neighbouring results that are summed together

// Some dims of x as one index: sizes, strides of x and of y, descending strides of x, neighbours merged.
struct Dims {
  int32_t ndim = 0;
  int64_t count = 1;
  int64_t sizes[LS_MAX_DIMS] = {};
  int64_t x_strides[LS_MAX_DIMS] = {};
  int64_t y_strides[LS_MAX_DIMS] = {};

  Dims(const ls_tensor &x, const ls_tensor &y, bool reduced) {
    int32_t order[LS_MAX_DIMS], n = 0;
    for (int32_t d = 0; d < x.ndim; ++d) {
      const bool is_reduced = y.sizes[d] == 1 && x.sizes[d] != 1;
      if (is_reduced != reduced || x.sizes[d] == 1) continue;
      int32_t at = n++;
      for (; at > 0 && x.strides[order[at - 1]] < x.strides[d]; --at) order[at] = order[at - 1];
      order[at] = d;
    }
    for (int32_t j = 0; j < n; ++j) {
      const int32_t d = order[j];
      const int64_t size = x.sizes[d], stride = x.strides[d], y_stride = reduced ? 0 : y.strides[d];
      count *= size;
      if (ndim > 0 && x_strides[ndim - 1] == stride * size && y_strides[ndim - 1] == y_stride * size) {
        sizes[ndim - 1] *= size;
      } else {
        sizes[ndim++] = size;
      }
      x_strides[ndim - 1] = stride;
      y_strides[ndim - 1] = y_stride;
    }
    if (ndim == 0) {
      sizes[0] = 1;
      x_strides[0] = 1;
      y_strides[0] = 1;
      ndim = 1;
    }
  }

  LS_INLINE void offsets(int64_t index, int64_t &x_offset, int64_t &y_offset) const {
    x_offset = 0;
    y_offset = 0;
    for (int32_t d = ndim - 1; d >= 0; --d) {
      const int64_t next = index / sizes[d], rest = index - next * sizes[d];
      x_offset += rest * x_strides[d];
      y_offset += rest * y_strides[d];
      index = next;
    }
  }
  int64_t inner() const { return sizes[ndim - 1]; }
  int64_t inner_stride() const { return x_strides[ndim - 1]; }
};

// Calls f(offset, n) for the runs along the inner dim that make up indices begin..end-1.
template <typename F>
LS_INLINE void runs(const Dims &dims, int64_t begin, int64_t end, const F &f) {
  while (begin < end) {
    int64_t offset, unused;
    dims.offsets(begin, offset, unused);
    const int64_t n = min_of(dims.inner() - begin % dims.inner(), end - begin);
    f(offset, n);
    begin += n;
  }
}

LS_INLINE void load_pair(const float *p, f64x8 &low, f64x8 &high) {
  const f32x16 v = load(p);
  low = low_f64(v);
  high = high_f64(v);
}
LS_INLINE void load_pair(const bf16 *p, f64x8 &low, f64x8 &high) {
  const f32x16 v = load(p);
  low = low_f64(v);
  high = high_f64(v);
}
LS_INLINE void load_pair(const double *p, f64x8 &low, f64x8 &high) {
  low = load_f64(p);
  high = load_f64(p + 8);
}

struct Sums {
  f64x8 part[4] = {zero_f64(), zero_f64(), zero_f64(), zero_f64()};
  double rest = 0;
  double total() const { return reduce_add((part[0] + part[1]) + (part[2] + part[3])) + rest; }
};

template <typename T>
LS_INLINE void add_run(const T *x, int64_t stride, int64_t n, Sums &sums) {
  int64_t i = 0;
  if (stride == 1) {
    f64x8 low, high;
    for (; i + 32 <= n; i += 32) {
      load_pair(x + i, low, high);
      sums.part[0] += low;
      sums.part[1] += high;
      load_pair(x + i + 16, low, high);
      sums.part[2] += low;
      sums.part[3] += high;
    }
  }
  for (; i < n; ++i) sums.rest += convert<double>(x[i * stride]);
}

template <typename T>
void run(const ls_exec *exec, const ls_sum_args *args) {
  const ls_tensor &x = args->x, &y = args->y;
  const T *const data = static_cast<const T *>(x.data);
  const Dims kept(x, y, false), reduced(x, y, true);
  const int64_t outputs = kept.count, terms = reduced.count;
  const int64_t pieces = outputs <= kSplitOutputs ? max_of(1, min_of(kSplits, terms / kSplitTerms)) : 1;
  double *const partial = static_cast<double *>(exec->workspace);
  const auto finish = [&](int64_t y_offset, double sum) {
    with_dtype(y.dtype, [&](auto *type) {
      using Y = Pointee<decltype(type)>;
      Y *to = static_cast<Y *>(y.data) + y_offset;
      const double value = args->alpha * sum;
      *to = convert<Y>(args->accumulate ? convert<double>(*to) + value : value);
    });
  };
  // One piece's sum of one result: the result itself, or a partial of it.
  const auto put = [&](int64_t piece, int64_t output, int64_t y_offset, double sum) {
    if (pieces == 1) {
      finish(y_offset, sum);
    } else {
      partial[piece * outputs + output] = sum;
    }
  };
  const bool by_columns = kept.count > 1 && kept.inner_stride() == 1 && reduced.inner_stride() != 1;
  if (by_columns) {
    const int64_t inner = kept.inner(), blocks = ceil_div(inner, kColumns), lines = outputs / inner;
    const int64_t items = lines * blocks * pieces;
    const int64_t grain = max_of(1, 65536 / max_of(1, terms / pieces * min_of(inner, kColumns)));
    parallel_for(exec, items, grain, [&](int64_t begin, int64_t end) {
      alignas(64) double sums[kColumns];
      for (int64_t item = begin; item < end; ++item) {
        // Blocks change fastest, so that a thread reads whole rows where it can.
        const int64_t block = item % blocks, piece = item / blocks % pieces, line = item / blocks / pieces;
        const int64_t first = block * kColumns, n = min_of(kColumns, inner - first);
        int64_t x_offset, y_offset;
        kept.offsets(line * inner + first, x_offset, y_offset);
        for (int64_t i = 0; i < n; ++i) sums[i] = 0;
        runs(reduced, terms * piece / pieces, terms * (piece + 1) / pieces, [&](int64_t offset, int64_t length) {
          for (int64_t r = 0; r < length; ++r) {
            const T *row = data + x_offset + offset + r * reduced.inner_stride();
            int64_t i = 0;
            for (; i + 16 <= n; i += 16) {
              f64x8 low, high;
              load_pair(row + i, low, high);
              store_f64(sums + i, load_f64(sums + i) + low);
              store_f64(sums + i + 8, load_f64(sums + i + 8) + high);
            }
            for (; i < n; ++i) sums[i] += convert<double>(row[i]);
          }
        });
        const int64_t y_step = kept.y_strides[kept.ndim - 1];
        for (int64_t i = 0; i < n; ++i) put(piece, line * inner + first + i, y_offset + i * y_step, sums[i]);
      }
    });
  } else {
    const int64_t grain = max_of(1, 65536 / max_of(1, terms / pieces));
    parallel_for(exec, outputs * pieces, grain, [&](int64_t begin, int64_t end) {
      for (int64_t item = begin; item < end; ++item) {
        const int64_t output = item / pieces, piece = item % pieces;
        int64_t x_offset, y_offset;
        kept.offsets(output, x_offset, y_offset);
        Sums sums;
        runs(reduced, terms * piece / pieces, terms * (piece + 1) / pieces, [&](int64_t offset, int64_t length) {
          add_run(data + x_offset + offset, reduced.inner_stride(), length, sums);
        });
        put(piece, output, y_offset, sums.total());
      }
    });
  }
  if (pieces == 1) return;
  for (int64_t output = 0; output < outputs; ++output) {
    double sum = 0;
    for (int64_t piece = 0; piece < pieces; ++piece) sum += partial[piece * outputs + output];
    int64_t x_offset, y_offset;
    kept.offsets(output, x_offset, y_offset);
    finish(y_offset, sum);
  }
}

}  // namespace

// Workspace: with O results of R terms each, O <= 16384 ? max(1, min(64, R / 4096)) * O float64 : none.
ls_status sum(const ls_exec *exec, const ls_sum_args *args) {
  switch (args->x.dtype) {
    case LS_BF16:
      run<bf16>(exec, args);
      break;
    case LS_F64:
      run<double>(exec, args);
      break;
    default:
      run<float>(exec, args);
  }
  return LS_OK;
}

}  // namespace longseq::cpu::LS_ISA
