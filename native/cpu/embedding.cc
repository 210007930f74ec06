// Rows of a table by token id, and the backward that adds gradients into those rows in a fixed order.
#include "elementwise.h"
#include "kernels.h"

namespace longseq::cpu::LS_ISA {

namespace {

// Lowers *slot to value if that is smaller; whichever thread comes first, the smallest stays.
void keep_smallest(int64_t *slot, int64_t value) {
  int64_t now = __atomic_load_n(slot, __ATOMIC_RELAXED);
  while (value < now && !__atomic_compare_exchange_n(slot, &now, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
}

ls_status bad_id(const ls_exec *exec, const char *op, int64_t index, int32_t id, int64_t vocabulary) {
  return fail(exec, LS_INVALID_ARGUMENT,
              "%s: id %d at index %lld is outside the table's %lld rows; check the tokenizer and the data", op, id,
              static_cast<long long>(index), static_cast<long long>(vocabulary));
}

}  // namespace

ls_status embedding(const ls_exec *exec, const ls_embedding_args *args) {
  const ls_tensor &table = args->table, &y = args->y;
  const int64_t tokens = args->ids.sizes[0], vocabulary = table.sizes[0], width = table.sizes[1];
  const int32_t *const ids = static_cast<const int32_t *>(args->ids.data);
  const int64_t id_stride = args->ids.strides[0];
  const bool same = table.dtype == y.dtype;
  int64_t bad = INT64_MAX;
  parallel_for(exec, tokens, max_of(1, 32768 / max_of(1, width)), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const int32_t id = ids[t * id_stride];
      if (id < 0 || id >= vocabulary) {
        keep_smallest(&bad, t);
        continue;
      }
      const char *from = offset_by(table.data, id * table.strides[0], table.dtype);
      char *to = offset_by(y.data, t * y.strides[0], y.dtype);
      if (same) {
        memcpy(to, from, static_cast<size_t>(width * element_bytes(y.dtype)));
      } else if (y.dtype == LS_F32) {
        read_run(reinterpret_cast<float *>(to), from, table.dtype, 1, width);
      } else {
        write_run(to, y.dtype, 1, reinterpret_cast<const float *>(from), width);
      }
    }
  });
  if (bad != INT64_MAX) return bad_id(exec, "embedding", bad, ids[bad * id_stride], vocabulary);
  return LS_OK;
}

// Each thread owns a slice of columns and walks all tokens in ascending order: every element of the table gets its
// terms in that order however the columns are cut, so the cut may follow the number of threads.
ls_status embedding_backward(const ls_exec *exec, const ls_embedding_backward_args *args) {
  const ls_tensor &dy = args->dy, &dtable = args->dtable;
  const int64_t tokens = args->ids.sizes[0], vocabulary = dtable.sizes[0], width = dtable.sizes[1];
  const int32_t *const ids = static_cast<const int32_t *>(args->ids.data);
  const int64_t id_stride = args->ids.strides[0];
  // Before anything is changed.
  for (int64_t t = 0; t < tokens; ++t) {
    const int32_t id = ids[t * id_stride];
    if (id < 0 || id >= vocabulary) return bad_id(exec, "embedding_backward", t, id, vocabulary);
  }
  if (tokens == 0 || width == 0) return LS_OK;
  const int64_t slice = max_of(64, ceil_div(ceil_div(width, max_of(1, exec->threads)), 16) * 16);
  parallel_for(exec, width, slice, [&](int64_t begin, int64_t end) {
    const int64_t n = end - begin;
    const auto add_rows = [&](auto *type) {
      using T = Pointee<decltype(type)>;
      for (int64_t t = 0; t < tokens; ++t) {
        const T *from = static_cast<const T *>(dy.data) + t * dy.strides[0] + begin;
        float *to = static_cast<float *>(dtable.data) + ids[t * id_stride] * dtable.strides[0] + begin;
        lanes(n, [&](int64_t i, auto w) { store(to + i, load(to + i, w) + load(from + i, w), w); });
      }
    };
    if (dy.dtype == LS_BF16) {
      add_rows(static_cast<bf16 *>(nullptr));
    } else {
      add_rows(static_cast<float *>(nullptr));
    }
  });
  return LS_OK;
}

}  // namespace longseq::cpu::LS_ISA
