// Walks tensors of equal sizes and any strides in contiguous runs of one arithmetic type, over all threads.
//
// An elementwise op sees plain arrays of float (or double, or int64): runs of that type are handed over in place,
// anything else (bfloat16, strided, broadcast) is converted through a small tile that stays in the first cache.
#ifndef LONGSEQ_CPU_ELEMENTWISE_H
#define LONGSEQ_CPU_ELEMENTWISE_H

#include "kernels.h"
#include "simd.h"

namespace longseq::cpu::LS_ISA {

// ---- sixteen lanes at a time, with a shorter last step ----

struct Full {};
struct Part {
  int64_t n;
};
template <typename T>
LS_INLINE f32x16 load(const T *p, Full) {
  return load(p);
}
template <typename T>
LS_INLINE f32x16 load(const T *p, Part part) {
  return load(p, part.n);
}
template <typename T>
LS_INLINE void store(T *p, f32x16 x, Full) {
  store(p, x);
}
template <typename T>
LS_INLINE void store(T *p, f32x16 x, Part part) {
  store(p, x, part.n);
}

// Calls f(i, Full) for each whole vector of 0..n-1 and f(i, Part) for the rest.
template <typename F>
LS_INLINE void lanes(int64_t n, const F &f) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) f(i, Full{});
  if (i < n) f(i, Part{n - i});
}

// ---- conversions of runs ----

// Calls f with a typed null pointer that stands for the dtype.
template <typename F>
LS_INLINE void with_dtype(int32_t dtype, const F &f) {
  switch (dtype) {
    case LS_F32:
      return f(static_cast<float *>(nullptr));
    case LS_BF16:
      return f(static_cast<bf16 *>(nullptr));
    case LS_F64:
      return f(static_cast<double *>(nullptr));
    case LS_I32:
      return f(static_cast<int32_t *>(nullptr));
    case LS_I64:
      return f(static_cast<int64_t *>(nullptr));
    default:
      return f(static_cast<uint8_t *>(nullptr));
  }
}

template <typename T>
struct PointeeOf;
template <typename T>
struct PointeeOf<T *> {
  using type = T;
};
template <typename T>
using Pointee = typename PointeeOf<T>::type;

template <typename T>
inline constexpr int32_t kDtypeOf = LS_U8;
template <>
inline constexpr int32_t kDtypeOf<float> = LS_F32;
template <>
inline constexpr int32_t kDtypeOf<bf16> = LS_BF16;
template <>
inline constexpr int32_t kDtypeOf<double> = LS_F64;
template <>
inline constexpr int32_t kDtypeOf<int32_t> = LS_I32;
template <>
inline constexpr int32_t kDtypeOf<int64_t> = LS_I64;

template <typename T>
inline constexpr bool kIsFloating = kDtypeOf<T> == LS_F32 || kDtypeOf<T> == LS_F64 || kDtypeOf<T> == LS_BF16;

// One value as another type; floating to integer truncates, with NaN as 0 and the ends of the range kept.
template <typename To, typename From>
LS_INLINE To convert(From value) {
  if constexpr (kDtypeOf<From> == LS_BF16) {
    return convert<To>(to_float(value));
  } else if constexpr (kDtypeOf<To> == LS_BF16) {
    return to_bf16(static_cast<float>(value));
  } else if constexpr (kIsFloating<From> && !kIsFloating<To>) {
    constexpr int bits = static_cast<int>(sizeof(To)) * 8;
    const double wide = static_cast<double>(value);
    if (!(wide == wide)) return To(0);
    if constexpr (kDtypeOf<To> == LS_U8) {
      return wide <= 0 ? To(0) : wide >= 255 ? To(255) : static_cast<To>(wide);
    } else {
      constexpr double end = bits == 64 ? 0x1p63 : 0x1p31;
      constexpr To top = bits == 64 ? static_cast<To>(INT64_MAX) : static_cast<To>(INT32_MAX);
      return wide >= end ? top : wide < -end ? static_cast<To>(-top - 1) : static_cast<To>(wide);
    }
  } else {
    return static_cast<To>(value);
  }
}

// to[i] = from[i * stride]
template <typename C>
inline void read_run(C *to, const void *from, int32_t dtype, int64_t stride, int64_t n) {
  if constexpr (kDtypeOf<C> == LS_F32) {
    if (dtype == LS_BF16 && stride == 1) {
      const bf16 *p = static_cast<const bf16 *>(from);
      lanes(n, [&](int64_t i, auto w) { store(to + i, load(p + i, w), w); });
      return;
    }
  }
  with_dtype(dtype, [&](auto *type) {
    using T = Pointee<decltype(type)>;
    const T *p = static_cast<const T *>(from);
    if (stride == 0) {
      const C value = convert<C>(*p);
      for (int64_t i = 0; i < n; ++i) to[i] = value;
    } else {
      for (int64_t i = 0; i < n; ++i) to[i] = convert<C>(p[i * stride]);
    }
  });
}

// to[i * stride] = from[i]
template <typename C>
inline void write_run(void *to, int32_t dtype, int64_t stride, const C *from, int64_t n) {
  if constexpr (kDtypeOf<C> == LS_F32) {
    if (dtype == LS_BF16 && stride == 1) {
      bf16 *p = static_cast<bf16 *>(to);
      lanes(n, [&](int64_t i, auto w) { store(p + i, load(from + i, w), w); });
      return;
    }
  }
  with_dtype(dtype, [&](auto *type) {
    using T = Pointee<decltype(type)>;
    T *p = static_cast<T *>(to);
    for (int64_t i = 0; i < n; ++i) p[i * stride] = convert<T>(from[i]);
  });
}

LS_INLINE char *offset_by(void *base, int64_t elements, int32_t dtype) {
  return static_cast<char *>(base) + elements * element_bytes(dtype);
}

// Columns of a row that are worked on at a time where a row is converted to float32.
inline constexpr int64_t kTile = 512;

// The float32 values of a contiguous piece of a row: in place, or converted into buffer.
LS_INLINE const float *row_piece(const void *row, int32_t dtype, int64_t i, int64_t n, float *buffer) {
  if (dtype == LS_F32) return static_cast<const float *>(row) + i;
  read_run(buffer, static_cast<const bf16 *>(row) + i, dtype, 1, n);
  return buffer;
}
// Where to write the float32 values of such a piece; finish_piece stores them where that is the buffer.
LS_INLINE float *out_piece(void *row, int32_t dtype, int64_t i, float *buffer) {
  return dtype == LS_F32 ? static_cast<float *>(row) + i : buffer;
}
LS_INLINE void finish_piece(void *row, int32_t dtype, int64_t i, int64_t n, const float *buffer) {
  if (dtype != LS_F32) write_run(static_cast<bf16 *>(row) + i, dtype, 1, buffer, n);
}

// ---- rows: the leading dims of a tensor as one index ----

struct Rows {
  char *base;
  int64_t element;
  int32_t ndim;
  int64_t sizes[LS_MAX_DIMS], strides[LS_MAX_DIMS];  // strides in bytes

  // Over all dims but the last `keep`.
  Rows(const ls_tensor &x, int32_t keep) : base(static_cast<char *>(x.data)), element(element_bytes(x.dtype)), ndim(0) {
    for (int32_t d = 0; d < x.ndim - keep; ++d) {
      if (x.sizes[d] == 1) continue;
      const int64_t stride = x.strides[d] * element;
      if (ndim > 0 && strides[ndim - 1] == stride * x.sizes[d]) {
        sizes[ndim - 1] *= x.sizes[d];
        strides[ndim - 1] = stride;
      } else {
        sizes[ndim] = x.sizes[d];
        strides[ndim++] = stride;
      }
    }
  }

  LS_INLINE void *at(int64_t row) const {
    if (ndim == 0) return base;
    if (ndim == 1) return base + row * strides[0];
    int64_t offset = 0;
    for (int32_t d = ndim - 1; d > 0; --d) {
      const int64_t next = row / sizes[d];
      offset += (row - next * sizes[d]) * strides[d];
      row = next;
    }
    return base + offset + row * strides[0];
  }
};

inline int64_t row_count(const ls_tensor &x) {
  int64_t count = 1;
  for (int32_t d = 0; d + 1 < x.ndim; ++d) count *= x.sizes[d];
  return count;
}

// ---- elementwise walks ----

// A common order of the dims of K tensors with equal sizes: descending strides of the last of them, neighbours merged.
template <int K>
struct Plan {
  int64_t inner = 0, outer = 0;  // outer * inner elements
  int64_t inner_strides[K] = {};
  int32_t ndim = 0;  // of the outer dims
  int64_t sizes[LS_MAX_DIMS] = {};
  int64_t strides[K][LS_MAX_DIMS] = {};
  char *base[K];
  int32_t dtype[K];

  explicit Plan(const ls_tensor *const (&tensors)[K]) {
    const ls_tensor &key = *tensors[K - 1];
    int32_t order[LS_MAX_DIMS];
    int32_t count = 0;
    bool empty = false;
    for (int32_t d = 0; d < key.ndim; ++d) {
      if (key.sizes[d] == 0) empty = true;
      if (key.sizes[d] == 1) continue;
      int32_t at = count++;
      for (; at > 0 && key.strides[order[at - 1]] < key.strides[d]; --at) order[at] = order[at - 1];
      order[at] = d;
    }
    for (int k = 0; k < K; ++k) {
      base[k] = static_cast<char *>(tensors[k]->data);
      dtype[k] = tensors[k]->dtype;
    }
    if (empty) return;
    int32_t n = 0;
    for (int32_t j = 0; j < count; ++j) {
      const int32_t d = order[j];
      bool merge = n > 0;
      for (int k = 0; merge && k < K; ++k) merge = strides[k][n - 1] == tensors[k]->strides[d] * key.sizes[d];
      if (merge) {
        sizes[n - 1] *= key.sizes[d];
      } else {
        sizes[n++] = key.sizes[d];
      }
      for (int k = 0; k < K; ++k) strides[k][n - 1] = tensors[k]->strides[d];
    }
    outer = 1;
    inner = 1;
    if (n == 0) {
      for (int k = 0; k < K; ++k) inner_strides[k] = 1;
      return;
    }
    inner = sizes[n - 1];
    for (int k = 0; k < K; ++k) inner_strides[k] = strides[k][n - 1];
    ndim = n - 1;
    for (int32_t d = 0; d < ndim; ++d) outer *= sizes[d];
  }

  // Offset in elements of operand k at an outer index.
  LS_INLINE int64_t offset(int k, int64_t index) const {
    int64_t offset = 0;
    for (int32_t d = ndim - 1; d >= 0; --d) {
      const int64_t next = index / sizes[d];
      offset += (index - next * sizes[d]) * strides[k][d];
      index = next;
    }
    return offset;
  }

  static constexpr int64_t kChunk = 16384;  // elements of an inner run that one piece of work takes
  int64_t chunks() const { return ceil_div(inner, kChunk); }
  int64_t items() const { return outer * chunks(); }
  int64_t grain() const { return max_of(1, 2 * kChunk / max_of(1, min_of(inner, kChunk))); }
};

inline constexpr int kReads = 1, kWrites = 2;

// Calls f(pointers, n) with K arrays of C for each piece of item `item` of the plan.
template <typename C, int K, typename F>
LS_INLINE void walk_item(const Plan<K> &plan, const int (&use)[K], bool direct, int64_t item, const F &f) {
  const int64_t chunks = plan.chunks();
  const int64_t index = item / chunks;
  const int64_t begin = (item - index * chunks) * Plan<K>::kChunk;
  const int64_t n = min_of(Plan<K>::kChunk, plan.inner - begin);
  char *p[K];
  for (int k = 0; k < K; ++k)
    p[k] = offset_by(plan.base[k], plan.offset(k, index) + begin * plan.inner_strides[k], plan.dtype[k]);
  if (direct) {
    C *typed[K];
    for (int k = 0; k < K; ++k) typed[k] = reinterpret_cast<C *>(p[k]);
    f(typed, n);
    return;
  }
  alignas(64) C tiles[K][kTile];
  for (int64_t i = 0; i < n; i += kTile) {
    const int64_t m = min_of(kTile, n - i);
    C *typed[K];
    char *at[K];
    for (int k = 0; k < K; ++k) {
      at[k] = offset_by(p[k], i * plan.inner_strides[k], plan.dtype[k]);
      const bool in_place = plan.dtype[k] == kDtypeOf<C> && plan.inner_strides[k] == 1;
      typed[k] = in_place ? reinterpret_cast<C *>(at[k]) : tiles[k];
      if (!in_place && (use[k] & kReads)) read_run(tiles[k], at[k], plan.dtype[k], plan.inner_strides[k], m);
    }
    f(typed, m);
    for (int k = 0; k < K; ++k)
      if ((use[k] & kWrites) && typed[k] == tiles[k])
        write_run(at[k], plan.dtype[k], plan.inner_strides[k], tiles[k], m);
  }
}

template <typename C, int K>
inline bool all_direct(const Plan<K> &plan) {
  for (int k = 0; k < K; ++k)
    if (plan.dtype[k] != kDtypeOf<C> || plan.inner_strides[k] != 1) return false;
  return true;
}

// Runs f(pointers, n) over all elements; use[k] says what f does with operand k.
template <typename C, int K, typename F>
inline void elementwise(const ls_exec *exec, const ls_tensor *const (&tensors)[K], const int (&use)[K], const F &f) {
  const Plan<K> plan(tensors);
  const bool direct = all_direct<C>(plan);
  parallel_for(exec, plan.items(), plan.grain(), [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) walk_item<C>(plan, use, direct, item, f);
  });
}

}  // namespace longseq::cpu::LS_ISA

#endif  // LONGSEQ_CPU_ELEMENTWISE_H
