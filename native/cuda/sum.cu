// Sums over any dims in float64, in an order that depends on shape and layout alone. Bytes: x once; FLOPs: one float64
// addition an element.
#include "elementwise.h"
#include "entries.h"
#include "reduce.h"

namespace longseq::cuda {

namespace {

constexpr int kThreads = 256, kColumns = 32, kColumnRows = kThreads / kColumns;

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

  LS_DEVICE void offsets(int64_t index, int64_t &x_offset, int64_t &y_offset) const {
    x_offset = 0;
    y_offset = 0;
#pragma unroll
    for (int d = LS_MAX_DIMS - 1; d >= 0; --d) {
      if (d >= ndim) continue;
      const int64_t next = d == 0 ? 0 : index / sizes[d], rest = index - next * sizes[d];
      x_offset += rest * x_strides[d];
      y_offset += rest * y_strides[d];
      index = next;
    }
  }
  LS_HOST_DEVICE int64_t inner() const { return sizes[ndim - 1]; }
  LS_HOST_DEVICE int64_t inner_stride() const { return x_strides[ndim - 1]; }
};

// What becomes of a sum: the result, or a partial of it.
struct Output {
  char *data;
  int32_t dtype;
  double alpha;
  bool accumulate;
  double *partial;  // [pieces, outputs], NULL where there is one piece
  int64_t outputs;

  LS_DEVICE void finish(int64_t offset, double sum) const {
    const double value = alpha * sum;
    with_storage<double>(dtype, [&](auto *type) {
      using T = Pointee<decltype(type)>;
      T *const to = reinterpret_cast<T *>(data) + offset;
      *to = convert<T>(accumulate ? convert<double>(*to) + value : value);
    });
  }
  LS_DEVICE void put(int64_t piece, int64_t output, int64_t offset, double sum) const {
    if (partial == nullptr) {
      finish(offset, sum);
    } else {
      partial[piece * outputs + output] = sum;
    }
  }
};

LS_DEVICE int64_t piece_begin(int64_t terms, int64_t pieces, int64_t piece) {
  return terms / pieces * piece + min(piece, terms % pieces);
}

// A block has one piece of the terms of one result; a thread takes eight neighbours of the inner dim at a time.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    sum_rows_kernel(const T *x, Dims kept, Dims reduced, bool vector, int64_t pieces, Output output) {
  const int64_t inner_groups = ceil_div(reduced.inner(), kGroup);
  const int64_t runs = reduced.inner() == 0 ? 0 : reduced.count / reduced.inner();
  const int64_t groups = runs * inner_groups, items = kept.count * pieces;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int64_t result = item / pieces, piece = item - result * pieces;
    int64_t x_offset, y_offset;
    kept.offsets(result, x_offset, y_offset);
    const int64_t end = piece_begin(groups, pieces, piece + 1);
    double sum = 0;
    for (int64_t group = piece_begin(groups, pieces, piece) + threadIdx.x; group < end; group += kThreads) {
      const int64_t run = reduced.ndim == 1 ? 0 : group / inner_groups, first = (group - run * inner_groups) * kGroup;
      int64_t offset, unused;
      reduced.offsets(run * reduced.inner() + first, offset, unused);
      const int n = static_cast<int>(reduced.inner() - first < kGroup ? reduced.inner() - first : kGroup);
      double values[kGroup];
      load_typed(values, x + x_offset + offset, reduced.inner_stride(), vector, n);
      sum += ((values[0] + values[1]) + (values[2] + values[3])) + ((values[4] + values[5]) + (values[6] + values[7]));
    }
    sum = block_reduce<kThreads>(sum, Add{});
    if (threadIdx.x == 0) output.put(piece, result, y_offset, sum);
  }
}

// Results beside each other in memory: a lane has one, the eight warps of a block take every eighth term.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    sum_columns_kernel(const T *x, Dims kept, Dims reduced, int64_t pieces, Output output) {
  __shared__ double parts[kColumnRows][kColumns + 1];
  const int64_t blocks = ceil_div(kept.inner(), kColumns), items = kept.count / kept.inner() * blocks * pieces;
  const int lane = static_cast<int>(threadIdx.x % kColumns), y = static_cast<int>(threadIdx.x / kColumns);
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int64_t line = item / (blocks * pieces), rest = item - line * (blocks * pieces);
    const int64_t piece = rest / blocks, at = (rest - piece * blocks) * kColumns + lane;
    const bool inside = at < kept.inner();
    const int64_t result = line * kept.inner() + (inside ? at : 0);
    int64_t x_offset, y_offset;
    kept.offsets(result, x_offset, y_offset);
    const int64_t end = piece_begin(reduced.count, pieces, piece + 1);
    double sum = 0;
    const int64_t begin = piece_begin(reduced.count, pieces, piece) + y;
    if (inside && reduced.ndim == 1) {
      const T *const column = x + x_offset;
      // Eight terms on their way at a time.
#pragma unroll 8
      for (int64_t term = begin; term < end; term += kColumnRows)
        sum += convert<double>(column[term * reduced.inner_stride()]);
    } else if (inside) {
      for (int64_t term = begin; term < end; term += kColumnRows) {
        int64_t offset, unused;
        reduced.offsets(term, offset, unused);
        sum += convert<double>(x[x_offset + offset]);
      }
    }
    __syncthreads();
    parts[y][lane] = sum;
    __syncthreads();
    if (y == 0 && inside) {
      for (int i = 1; i < kColumnRows; ++i) sum += parts[i][lane];
      output.put(piece, result, y_offset, sum);
    }
  }
}

// A warp adds up the pieces of one result.
__global__ void __launch_bounds__(kThreads) sum_pieces_kernel(Dims kept, int64_t pieces, Output output) {
  const int64_t result = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  if (result >= kept.count) return;
  double sum = 0;
#pragma unroll 8
  for (int64_t piece = threadIdx.x % 32; piece < pieces; piece += 32)
    sum += output.partial[piece * output.outputs + result];
  sum = warp_reduce(sum, Add{});
  if (threadIdx.x % 32 != 0) return;
  int64_t x_offset, y_offset;
  kept.offsets(result, x_offset, y_offset);
  output.finish(y_offset, sum);
}

template <typename T>
ls_status run(const ls_exec *exec, const ls_sum_args *args) {
  const ls_tensor &x = args->x, &y = args->y;
  const Dims kept(x, y, false), reduced(x, y, true);
  if (kept.count == 0) return LS_OK;
  const T *const data = static_cast<const T *>(x.data);
  int64_t pieces = 1;
  if (kept.count <= 16384) {
    // As native/runtime/ops/sum.cc sizes the workspace.
    const int64_t most = (int64_t{1} << 20) / kept.count, wanted = reduced.count / 4096;
    pieces = wanted < most ? wanted : most;
    pieces = pieces > 1024 ? 1024 : pieces < 1 ? 1 : pieces;
  }
  const Output output{static_cast<char *>(y.data),
                      y.dtype,
                      args->alpha,
                      args->accumulate != 0,
                      pieces > 1 ? static_cast<double *>(exec->workspace) : nullptr,
                      kept.count};
  if (kept.count > 1 && kept.inner_stride() == 1 && reduced.inner_stride() != 1) {
    const int64_t items = kept.count / kept.inner() * ceil_div(kept.inner(), kColumns) * pieces;
    LS_TRY(
        LS_LAUNCH(sum_columns_kernel<T>, blocks_for(items, 1), kThreads, 0, exec, data, kept, reduced, pieces, output));
  } else {
    bool vector = reduced.inner_stride() == 1 && is_aligned(data);
    const int64_t element = static_cast<int64_t>(sizeof(T));
    for (int32_t d = 0; d + 1 < reduced.ndim; ++d) vector = vector && reduced.x_strides[d] * element % 16 == 0;
    for (int32_t d = 0; d < kept.ndim && kept.count > 1; ++d) vector = vector && kept.x_strides[d] * element % 16 == 0;
    LS_TRY(LS_LAUNCH(sum_rows_kernel<T>, blocks_for(kept.count * pieces, 1), kThreads, 0, exec, data, kept, reduced,
                     vector, pieces, output));
  }
  if (pieces == 1) return LS_OK;
  return LS_LAUNCH(sum_pieces_kernel, blocks_for(kept.count, kThreads / 32), kThreads, 0, exec, kept, pieces, output);
}

}  // namespace

ls_status sum(const ls_exec *exec, const ls_sum_args *args) {
  switch (args->x.dtype) {
    case LS_BF16:
      return run<bf16>(exec, args);
    case LS_F64:
      return run<double>(exec, args);
    default:
      return run<float>(exec, args);
  }
}

}  // namespace longseq::cuda
