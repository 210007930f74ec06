// Walks tensors of equal sizes and any strides: a thread takes eight elements of the inner dim, in vectors of 16 bytes
// where all operands lie so, and hands them to a functor one element after the other.
//
// Where they do, all vectors of all operands are asked for before the first is used: a thread then has 16 bytes an
// operand on their way (32 of float32), which fills the memory's latency at a quarter of the threads that fit. Float32
// is taken in two runs of four, so that a warp reads and writes whole lines of 512 bytes.
#ifndef LONGSEQ_CUDA_ELEMENTWISE_H
#define LONGSEQ_CUDA_ELEMENTWISE_H

#include "common.h"
#include "launch.h"

namespace longseq::cuda {

// ---- conversions ----

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
LS_HOST_DEVICE To convert(From value) {
  if constexpr (kDtypeOf<From> == kDtypeOf<To>) {
    return value;
  } else if constexpr (kDtypeOf<From> == LS_BF16) {
    return convert<To>(to_float(value));
  } else if constexpr (kDtypeOf<To> == LS_BF16) {
    return from_float<bf16>(static_cast<float>(value));
  } else if constexpr (kIsFloating<From> && !kIsFloating<To>) {
    constexpr int bits = static_cast<int>(sizeof(To)) * 8;
    const double wide = static_cast<double>(value);
    if (!(wide == wide)) return To(0);
    if constexpr (kDtypeOf<To> == LS_U8) {
      return wide <= 0 ? To(0) : wide >= 255 ? To(255) : static_cast<To>(wide);
    } else {
      constexpr double end = bits == 64 ? 9223372036854775808.0 : 2147483648.0;
      constexpr To top = bits == 64 ? static_cast<To>(INT64_MAX) : static_cast<To>(INT32_MAX);
      return wide >= end ? top : wide < -end ? static_cast<To>(-top - 1) : static_cast<To>(wide);
    }
  } else {
    return static_cast<To>(value);
  }
}

// ---- the order of the dims ----

inline constexpr int kGroup = 8;  // elements that a thread takes

struct Operand {
  char *data;
  int64_t strides[LS_MAX_DIMS];  // of the outer dims, in elements
  int64_t inner_stride;
  int32_t dtype;
  bool vector;  // every group of eight is contiguous and aligned to 16 bytes
};

// Descending strides of the last tensor, neighbours merged, the innermost dim in groups of eight.
template <int K>
struct Plan {
  int64_t inner = 0, groups = 0, inner_groups = 0;  // groups over all dims; those of one inner run
  int64_t lined = 0;                                // warps all of whose groups lie below this have them in one run
  bool vectors = false;                             // of all operands
  int32_t ndim = 0;                                 // of the outer dims
  int64_t sizes[LS_MAX_DIMS] = {};
  Operand operands[K] = {};

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
    if (empty) return;
    int64_t strides[K][LS_MAX_DIMS];
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
    inner = n == 0 ? 1 : sizes[n - 1];
    ndim = n == 0 ? 0 : n - 1;
    inner_groups = ceil_div(inner, kGroup);
    groups = inner_groups;
    for (int32_t d = 0; d < ndim; ++d) groups *= sizes[d];
    for (int k = 0; k < K; ++k) {
      Operand &one = operands[k];
      one.data = static_cast<char *>(tensors[k]->data);
      one.dtype = tensors[k]->dtype;
      one.inner_stride = n == 0 ? 1 : strides[k][n - 1];
      const int64_t element = element_bytes(one.dtype);
      one.vector = one.inner_stride == 1 && element >= 2 && is_aligned(one.data);
      for (int32_t d = 0; d < ndim; ++d) {
        one.strides[d] = strides[k][d];
        if (strides[k][d] * element % 16 != 0) one.vector = false;
      }
      vectors = (k == 0 || vectors) && one.vector;
    }
    lined = ndim == 0 ? inner / kGroup : inner % (32 * kGroup) == 0 ? groups : 0;
  }
};

// ---- groups ----

// values[0..n-1] = elements of a group at p, as C.
template <typename C, typename T>
LS_DEVICE void load_typed(C (&values)[kGroup], const T *p, int64_t stride, bool vector, int n) {
  if (vector && n == kGroup) {
    constexpr int size = Vector<T>::kSize < kGroup ? Vector<T>::kSize : kGroup;
#pragma unroll
    for (int i = 0; i < kGroup; i += size) {
      const Pack<T, size> v = load_pack<size>(p + i);
#pragma unroll
      for (int j = 0; j < size; ++j) values[i + j] = convert<C>(v.at[j]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kGroup; ++i) values[i] = i < n ? convert<C>(p[i * stride]) : C(0);
  }
}
template <typename C, typename T>
LS_DEVICE void store_typed(T *p, const C (&values)[kGroup], int64_t stride, bool vector, int n) {
  if (vector && n == kGroup) {
    constexpr int size = Vector<T>::kSize < kGroup ? Vector<T>::kSize : kGroup;
#pragma unroll
    for (int i = 0; i < kGroup; i += size) {
      Pack<T, size> v;
#pragma unroll
      for (int j = 0; j < size; ++j) v.at[j] = convert<T>(values[i + j]);
      store_pack<size>(p + i, v);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kGroup; ++i)
      if (i < n) p[i * stride] = convert<T>(values[i]);
  }
}

// kRun neighbours, at most 16 bytes an access.
template <typename T, int kRun>
LS_DEVICE void load_run(float (&values)[kRun], const T *p) {
  constexpr int size = kRun * sizeof(T) <= 16 ? kRun : 16 / static_cast<int>(sizeof(T));
#pragma unroll
  for (int i = 0; i < kRun; i += size) {
    const Pack<T, size> v = load_pack<size>(p + i);
#pragma unroll
    for (int j = 0; j < size; ++j) values[i + j] = to_float(v.at[j]);
  }
}
template <typename T, int kRun>
LS_DEVICE void store_run(T *p, const float (&values)[kRun]) {
  if constexpr (sizeof(T) == 2) {
    Pack<uint32_t, kRun / 2> v;
#pragma unroll
    for (int i = 0; i < kRun / 2; ++i) v.at[i] = bf16_pair(values[2 * i], values[2 * i + 1]);
    store_pack<kRun / 2>(reinterpret_cast<uint32_t *>(p), v);
  } else {
#pragma unroll
    for (int i = 0; i < kRun; i += 4)
      store_pack<4>(p + i, Pack<float, 4>{{values[i], values[i + 1], values[i + 2], values[i + 3]}});
  }
}

// Calls f with a typed null pointer for a dtype that may stand where arithmetic is in C.
template <typename C, typename F>
LS_DEVICE void with_storage(int32_t dtype, const F &f) {
  if constexpr (kDtypeOf<C> == LS_F32) {
    dtype == LS_BF16 ? f(static_cast<bf16 *>(nullptr)) : f(static_cast<float *>(nullptr));
  } else {
    switch (dtype) {
      case LS_F64:
        return f(static_cast<double *>(nullptr));
      case LS_I64:
        return f(static_cast<int64_t *>(nullptr));
      case LS_F32:
        return f(static_cast<float *>(nullptr));
      case LS_BF16:
        return f(static_cast<bf16 *>(nullptr));
      case LS_I32:
        return f(static_cast<int32_t *>(nullptr));
      default:
        return f(static_cast<uint8_t *>(nullptr));
    }
  }
}

template <typename T>
struct PointeeOf;
template <typename T>
struct PointeeOf<T *> {
  using type = T;
};
template <typename P>
using Pointee = typename PointeeOf<P>::type;

// Eight values as they lie in memory: a word each of float32, half a one of bfloat16. They are two runs of four,
// `apart` elements from each other, or neighbours (kNeighbours).
struct Words {
  uint32_t at[kGroup];
};

template <bool kNeighbours, typename T>
LS_DEVICE void load_words(Words &words, const T *p, int64_t apart) {
  const uint32_t *const from = reinterpret_cast<const uint32_t *>(p);
  if constexpr (sizeof(T) == 2 && kNeighbours) {
    const Pack<uint32_t, 4> v = load_pack<4>(from);
#pragma unroll
    for (int i = 0; i < 4; ++i) words.at[i] = v.at[i];
  } else {
    constexpr int half = sizeof(T) == 2 ? 2 : 4;  // words of a run
    const Pack<uint32_t, half> low = load_pack<half>(from), high = load_pack<half>(from + apart * half / 4);
#pragma unroll
    for (int i = 0; i < half; ++i) {
      words.at[i] = low.at[i];
      words.at[half + i] = high.at[i];
    }
  }
}

template <bool kNeighbours, typename T>
LS_DEVICE void store_words(T *p, const float (&values)[kGroup], int64_t apart) {
  uint32_t *const to = reinterpret_cast<uint32_t *>(p);
  if constexpr (sizeof(T) == 2 && kNeighbours) {
    Pack<uint32_t, 4> v;
#pragma unroll
    for (int i = 0; i < 4; ++i) v.at[i] = bf16_pair(values[2 * i], values[2 * i + 1]);
    store_pack<4>(to, v);
  } else {
    constexpr int half = sizeof(T) == 2 ? 2 : 4;
    Pack<uint32_t, half> low, high;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      low.at[i] = sizeof(T) == 2 ? bf16_pair(values[2 * i % kGroup], values[(2 * i + 1) % kGroup]) : as_bits(values[i]);
      high.at[i] = sizeof(T) == 2 ? bf16_pair(values[(4 + 2 * i) % kGroup], values[(5 + 2 * i) % kGroup])
                                  : as_bits(values[4 + i]);
    }
    store_pack<half>(to, low);
    store_pack<half>(to + apart * half / 4, high);
  }
}

// Stands for operands of several storage types.
struct Mixed {};

// Calls f with a typed null pointer for the storage of an operand.
template <typename C, typename T, typename F>
LS_DEVICE void with_operand(const Operand &one, const F &f) {
  if constexpr (kDtypeOf<T> != LS_U8) {
    f(static_cast<T *>(nullptr));
  } else {
    with_storage<C>(one.dtype, f);
  }
}

// F::kReads and F::kWrites are sums of 1 << k over the operands that it reads or writes.
template <typename C, typename T, int K, typename F>
__global__ void __launch_bounds__(256) elementwise_kernel(Plan<K> plan, F f) {
  constexpr bool neighbours = kDtypeOf<T> == LS_BF16 || kDtypeOf<C> != LS_F32;
  for (int64_t group = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x; group < plan.groups;
       group += static_cast<int64_t>(gridDim.x) * 256) {
    int64_t outer = plan.ndim == 0 ? 0 : group / plan.inner_groups;
    int64_t first = (group - outer * plan.inner_groups) * kGroup, apart = 4;
    const int n = static_cast<int>(plan.inner - first < kGroup ? plan.inner - first : kGroup);
    if (!neighbours && plan.vectors && (group | 31) < plan.lined) {
      // The warp's eight times 32 elements as two lines of 128: each access of a warp is 16 bytes a lane, side by side.
      first -= 4 * static_cast<int64_t>(threadIdx.x % 32);
      apart = 128;
    }
    int64_t offset[K];
#pragma unroll
    for (int k = 0; k < K; ++k) offset[k] = first * plan.operands[k].inner_stride;
#pragma unroll
    for (int d = LS_MAX_DIMS - 2; d >= 0; --d) {
      if (d >= plan.ndim) continue;
      const int64_t next = outer / plan.sizes[d], rest = outer - next * plan.sizes[d];
#pragma unroll
      for (int k = 0; k < K; ++k) offset[k] += rest * plan.operands[k].strides[d];
      outer = next;
    }
    if constexpr (kDtypeOf<C> == LS_F32) {
      if (plan.vectors && n == kGroup) {
        Words words[K];
        float values[K][kGroup];
#pragma unroll
        for (int k = 0; k < K; ++k) {
          if (!(F::kReads >> k & 1)) continue;
          with_operand<C, T>(plan.operands[k], [&](auto *type) {
            using U = Pointee<decltype(type)>;
            load_words<neighbours>(words[k], reinterpret_cast<const U *>(plan.operands[k].data) + offset[k], apart);
          });
        }
#pragma unroll
        for (int k = 0; k < K; ++k) {
          if (!(F::kReads >> k & 1)) continue;
          with_operand<C, T>(plan.operands[k], [&](auto *type) {
            using U = Pointee<decltype(type)>;
#pragma unroll
            for (int i = 0; i < kGroup; ++i) values[k][i] = value_of<U>(words[k].at, i);
          });
        }
#pragma unroll
        for (int i = 0; i < kGroup; ++i) {
          float element[K];
#pragma unroll
          for (int k = 0; k < K; ++k) element[k] = F::kReads >> k & 1 ? values[k][i] : 0.0f;
          f(element);
#pragma unroll
          for (int k = 0; k < K; ++k) values[k][i] = element[k];
        }
#pragma unroll
        for (int k = 0; k < K; ++k) {
          if (!(F::kWrites >> k & 1)) continue;
          with_operand<C, T>(plan.operands[k], [&](auto *type) {
            using U = Pointee<decltype(type)>;
            store_words<neighbours>(reinterpret_cast<U *>(plan.operands[k].data) + offset[k], values[k], apart);
          });
        }
        continue;
      }
    }
    C values[K][kGroup];
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const Operand &one = plan.operands[k];
      if (!(F::kReads >> k & 1)) continue;
      with_operand<C, T>(one, [&](auto *type) {
        using U = Pointee<decltype(type)>;
        load_typed(values[k], reinterpret_cast<const U *>(one.data) + offset[k], one.inner_stride, one.vector, n);
      });
    }
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      C element[K];
#pragma unroll
      for (int k = 0; k < K; ++k) element[k] = F::kReads >> k & 1 ? values[k][i] : C(0);
      f(element);
#pragma unroll
      for (int k = 0; k < K; ++k) values[k][i] = element[k];
    }
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const Operand &one = plan.operands[k];
      if (!(F::kWrites >> k & 1)) continue;
      with_operand<C, T>(one, [&](auto *type) {
        using U = Pointee<decltype(type)>;
        store_typed(reinterpret_cast<U *>(one.data) + offset[k], values[k], one.inner_stride, one.vector, n);
      });
    }
  }
}

inline constexpr int64_t kMostBlocks = 0x7fffffff;
// Blocks of a one-dimensional grid for so many items; kernels stride where that is cut.
inline unsigned blocks_for(int64_t items, int64_t per_block) {
  const int64_t blocks = ceil_div(items, per_block);
  return static_cast<unsigned>(blocks < kMostBlocks ? blocks : kMostBlocks);
}

// Runs f(element) with K values of C over all elements.
template <typename C, int K, typename F>
inline ls_status elementwise(const ls_exec *exec, const ls_tensor *const (&tensors)[K], const F &f) {
  const Plan<K> plan(tensors);
  if (plan.groups == 0) return LS_OK;
  const unsigned blocks = blocks_for(plan.groups, 256);
  bool same = true;
  for (int k = 1; k < K; ++k) same = same && tensors[k]->dtype == tensors[0]->dtype;
  if constexpr (kDtypeOf<C> == LS_F32) {
    if (same && tensors[0]->dtype == LS_F32)
      return LS_LAUNCH((elementwise_kernel<C, float, K, F>), blocks, 256, 0, exec, plan, f);
    if (same && tensors[0]->dtype == LS_BF16)
      return LS_LAUNCH((elementwise_kernel<C, bf16, K, F>), blocks, 256, 0, exec, plan, f);
  } else {
    if (same && tensors[0]->dtype == kDtypeOf<C>)
      return LS_LAUNCH((elementwise_kernel<C, C, K, F>), blocks, 256, 0, exec, plan, f);
  }
  return LS_LAUNCH((elementwise_kernel<C, Mixed, K, F>), blocks, 256, 0, exec, plan, f);
}

// ---- rows: the leading dims of a tensor as one index ----

struct Rows {
  char *base;
  int32_t ndim = 0;
  int64_t sizes[LS_MAX_DIMS] = {}, strides[LS_MAX_DIMS] = {};  // strides in bytes

  // Over all dims but the last `keep`.
  Rows(const ls_tensor &x, int32_t keep) : base(static_cast<char *>(x.data)) {
    const int64_t element = element_bytes(x.dtype);
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

  // Every row begins at a multiple of 16 bytes.
  bool aligned() const {
    bool all = is_aligned(base);
    for (int32_t d = 0; d < ndim; ++d) all = all && strides[d] % 16 == 0;
    return all;
  }

  LS_DEVICE char *at(int64_t row) const {
    int64_t offset = 0;
#pragma unroll
    for (int d = LS_MAX_DIMS - 1; d > 0; --d) {
      if (d >= ndim) continue;
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

}  // namespace longseq::cuda

#endif  // LONGSEQ_CUDA_ELEMENTWISE_H
