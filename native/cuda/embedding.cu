// Rows of a table by token id, and the backward that adds gradients into those rows in ascending order of tokens.
//
// Bytes forward: 4 of an id, a row read and written. Backward: the sort of the ids (sort.cu), each row of dy once, each
// touched row of the table read and written once; FLOPs: one addition an element of dy.
#include "elementwise.h"
#include "entries.h"
#include "fault.h"
#include "reduce.h"
#include "sort.h"

namespace longseq::cuda {

namespace {

// A warp takes eight columns a lane of one token.
template <typename X, typename Y>
__global__ void __launch_bounds__(256)
    embedding_kernel(const int32_t *ids, const X *table, int64_t table_stride, bool table_vector, Y *y,
                     int64_t y_stride, bool y_vector, int64_t tokens, int64_t width, int64_t vocabulary, Fault *fault) {
  const int64_t groups = ceil_div(width, kGroup), items = tokens * groups;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x; item < items;
       item += static_cast<int64_t>(gridDim.x) * 256) {
    const int64_t t = item / groups, i = (item - t * groups) * kGroup;
    const int n = static_cast<int>(width - i < kGroup ? width - i : kGroup);
    const int32_t id = ids[t];
    if (id < 0 || id >= vocabulary) {
      if (i == 0) note_fault(fault, kEmbeddingFault, t, id, vocabulary);
      continue;
    }
    float values[kGroup];
    load_typed(values, table + id * table_stride + i, 1, table_vector, n);
    store_typed(y + t * y_stride + i, values, 1, y_vector, n);
  }
}

__global__ void __launch_bounds__(256)
    check_ids_kernel(const int32_t *ids, int64_t tokens, int64_t vocabulary, Fault *fault) {
  const int64_t t = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (t < tokens && (ids[t] < 0 || ids[t] >= vocabulary))
    note_fault(fault, kEmbeddingBackwardFault, t, ids[t], vocabulary);
}

// A warp takes a place in the sorted list and 256 columns. Where an id begins, it walks the id's tokens to the end and
// adds their gradients, in order: the lanes look up 32 places at once, and 128 bytes a lane are on their way at a
// time.
// Elsewhere it has nothing to do.
template <typename T>
__global__ void __launch_bounds__(256, 3)
    embedding_backward_kernel(const uint32_t *ids, const uint32_t *places, const T *dy, int64_t dy_stride,
                              bool dy_vector, float *dtable, int64_t table_stride, bool table_vector, int64_t tokens,
                              int64_t width, int64_t vocabulary) {
  constexpr int kAhead = sizeof(T) == 2 ? 8 : 4;
  const int64_t chunks = ceil_div(width, 32 * kGroup), items = tokens * chunks;
  const int lane = static_cast<int>(threadIdx.x % 32);
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * 8 + threadIdx.x / 32; item < items;
       item += static_cast<int64_t>(gridDim.x) * 8) {
    const int64_t at = item / chunks, i = (item - at * chunks) * (32 * kGroup) + lane * kGroup;
    const uint32_t id = ids[at];
    if ((at > 0 && ids[at - 1] == id) || id >= vocabulary) continue;
    // Lanes beyond the width come along: the warp talks to itself. Where rows are whole vectors they have none.
    const int n = static_cast<int>(width - i >= kGroup ? kGroup : width > i ? width - i : 0);
    const bool whole = dy_vector && width % kGroup == 0;
    float *const to = dtable + static_cast<int64_t>(id) * table_stride + i;
    float sum[kGroup];
    load_typed(sum, to, 1, table_vector, n);
    for (int64_t first = at, count = 32; count == 32; first += 32) {
      const bool same = first + lane < tokens && ids[first + lane] == id;
      const uint32_t place = same ? places[first + lane] : 0;
      count = __popc(__ballot_sync(kAllLanes, same));  // the list is sorted: those lanes come first
      for (int begin = 0; whole && begin < count; begin += kAhead) {
        Words words[kAhead];
#pragma unroll
        for (int k = 0; k < kAhead; ++k) {
          const int64_t row = __shfl_sync(kAllLanes, place, begin + k);
          if (n > 0 && begin + k < count) load_words<true>(words[k], dy + row * dy_stride + i, 4);
        }
#pragma unroll
        for (int k = 0; k < kAhead; ++k)
          if (n > 0 && begin + k < count)
#pragma unroll
            for (int j = 0; j < kGroup; ++j) sum[j] += value_of<T>(words[k].at, j);
      }
      for (int k = 0; !whole && k < count; ++k) {
        const T *const row = dy + static_cast<int64_t>(__shfl_sync(kAllLanes, place, k)) * dy_stride + i;
#pragma unroll
        for (int j = 0; j < kGroup; ++j)
          if (j < n) sum[j] += to_float(row[j]);
      }
    }
    store_typed(to, sum, 1, table_vector, n);
  }
}

bool vectors(const ls_tensor &x) { return Rows(x, 1).aligned(); }

}  // namespace

ls_status embedding(const ls_exec *exec, const ls_embedding_args *args) {
  const ls_tensor &table = args->table, &y = args->y;
  const int64_t tokens = args->ids.sizes[0], width = table.sizes[1];
  if (tokens == 0 || width == 0) return LS_OK;
  Fault *const fault = fault_of(exec);
  return dispatch_float(table.dtype, [&](auto x_tag) {
    using X = typename decltype(x_tag)::type;
    return dispatch_float(y.dtype, [&](auto y_tag) {
      using Y = typename decltype(y_tag)::type;
      return LS_LAUNCH((embedding_kernel<X, Y>), blocks_for(tokens * ceil_div(width, kGroup), 256), 256, 0, exec,
                       static_cast<const int32_t *>(args->ids.data), static_cast<const X *>(table.data),
                       table.strides[0], vectors(table), static_cast<Y *>(y.data), y.strides[0], vectors(y), tokens,
                       width, table.sizes[0], fault);
    });
  });
}

ls_status embedding_backward(const ls_exec *exec, const ls_embedding_backward_args *args) {
  const ls_tensor &dy = args->dy, &dtable = args->dtable;
  const int64_t tokens = args->ids.sizes[0], vocabulary = dtable.sizes[0], width = dtable.sizes[1];
  if (tokens == 0 || width == 0) return LS_OK;
  if (tokens > 0xffffffffLL)
    return fail(exec, LS_UNSUPPORTED, "embedding_backward: %lld tokens at once, at most 2^32 - 1 are sorted",
                static_cast<long long>(tokens));
  const int32_t *const ids = static_cast<const int32_t *>(args->ids.data);
  LS_TRY(LS_LAUNCH(check_ids_kernel, blocks_for(tokens, 256), 256, 0, exec, ids, tokens, vocabulary, fault_of(exec)));
  const uint32_t *sorted = nullptr, *places = nullptr;
  LS_TRY(sort_ids(exec, ids, tokens, vocabulary, exec->workspace, &sorted, &places));
  return dispatch_float(dy.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return LS_LAUNCH(embedding_backward_kernel<T>, blocks_for(tokens * ceil_div(width, 32 * kGroup), 8), 256, 0, exec,
                     sorted, places, static_cast<const T *>(dy.data), dy.strides[0], vectors(dy),
                     static_cast<float *>(dtable.data), dtable.strides[0], vectors(dtable), tokens, width, vocabulary);
  });
}

}  // namespace longseq::cuda
