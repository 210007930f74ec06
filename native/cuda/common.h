// What the CUDA op files share: element types and 16-byte vectors, dtype dispatch, the stream of an ls_exec, errors.
#ifndef LONGSEQ_CUDA_COMMON_H
#define LONGSEQ_CUDA_COMMON_H

#ifdef LS_CUDA_EMUL
#include "emul_runtime.h"  // the part of the CUDA runtime's names that the .cu files use, on the CPU
#else
#include <cuda_runtime.h>
#endif

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "longseq/backend.h"

#define LS_HOST_DEVICE __host__ __device__ __forceinline__
#define LS_DEVICE __device__ __forceinline__

namespace longseq::cuda {

// ---- element types ----

// bfloat16 as stored. Arithmetic is float32.
struct bf16 {
  uint16_t bits;
};

LS_HOST_DEVICE float as_float(uint32_t bits) {
#ifdef __CUDA_ARCH__
  return __uint_as_float(bits);
#else
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
#endif
}

LS_HOST_DEVICE uint32_t as_bits(float value) {
#ifdef __CUDA_ARCH__
  return __float_as_uint(value);
#else
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
#endif
}

LS_HOST_DEVICE float to_float(float x) { return x; }
LS_HOST_DEVICE float to_float(bf16 x) { return as_float(static_cast<uint32_t>(x.bits) << 16); }

// Rounds to nearest, ties to even; NaN stays NaN.
template <typename T>
LS_HOST_DEVICE T from_float(float x);
template <>
LS_HOST_DEVICE float from_float<float>(float x) {
  return x;
}
template <>
LS_HOST_DEVICE bf16 from_float<bf16>(float x) {
#ifdef __CUDA_ARCH__
  bf16 result;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(x));
  return result;
#else
  const uint32_t bits = as_bits(x);
  if (x != x) return {static_cast<uint16_t>(0x7fff)};
  return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
#endif
}

// Two floats rounded to bfloat16, `low` in the low half.
LS_DEVICE uint32_t bf16_pair(float low, float high) {
#ifdef __CUDA_ARCH__
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#else
  return from_float<bf16>(low).bits | static_cast<uint32_t>(from_float<bf16>(high).bits) << 16;
#endif
}

// ---- 16-byte vectors ----

// N neighbours of T; N * sizeof(T) is 4, 8 or 16, so that loads and stores of one are single instructions.
template <typename T, int N>
struct alignas(N * sizeof(T)) Pack {
  static constexpr int kSize = N;
  T at[N];
};

// As many as 16 bytes hold.
template <typename T>
using Vector = Pack<T, 16 / static_cast<int>(sizeof(T))>;

// p is aligned to the whole pack.
template <int N, typename T>
LS_DEVICE Pack<T, N> load_pack(const T *p) {
  return *reinterpret_cast<const Pack<T, N> *>(p);
}
template <int N, typename T>
LS_DEVICE void store_pack(T *p, const Pack<T, N> &v) {
  *reinterpret_cast<Pack<T, N> *>(p) = v;
}
template <typename T>
LS_DEVICE Vector<T> load_vector(const T *p) {
  return load_pack<Vector<T>::kSize>(p);
}
template <typename T>
LS_DEVICE void store_vector(T *p, const Vector<T> &v) {
  store_pack<Vector<T>::kSize>(p, v);
}

// Value i of what lies in memory as words: one each of float32, two of bfloat16. Held as words, a bfloat16 takes half a
// register; as a type of its own it would take one.
template <typename T, int N>
LS_DEVICE float value_of(const uint32_t (&words)[N], int i) {
  if constexpr (sizeof(T) == 4) return as_float(words[i]);
  const uint32_t pair = words[i / 2 % N];
  return as_float(i % 2 == 0 ? pair << 16 : pair & 0xffff0000u);
}

// 16 bytes that are not wanted again: the second cache lets go of them first.
#if defined(__CUDACC__) || defined(LS_CUDA_EMUL)  // no name of the host's compiler
LS_DEVICE Pack<uint32_t, 4> load_passing(const void *p) {
  const uint4 words = __ldcs(static_cast<const uint4 *>(p));
  return {{words.x, words.y, words.z, words.w}};
}
#endif

// Brings the line of p into the second cache.
LS_DEVICE void prefetch([[maybe_unused]] const void *p) {
#ifdef __CUDA_ARCH__
  asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
#endif
}

// ---- tensors ----

LS_HOST_DEVICE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline int64_t element_count(const ls_tensor &x) {
  int64_t count = 1;
  for (int32_t d = 0; d < x.ndim; ++d) count *= x.sizes[d];
  return count;
}

inline int64_t element_bytes(int32_t dtype) {
  switch (dtype) {
    case LS_F64:
    case LS_I64:
      return 8;
    case LS_F32:
    case LS_I32:
      return 4;
    case LS_BF16:
      return 2;
    default:
      return 1;
  }
}

// True where the elements lie row-major without holes (dims of size 1 may have any stride).
inline bool is_contiguous(const ls_tensor &x) {
  int64_t expected = 1;
  for (int32_t d = x.ndim - 1; d >= 0; --d) {
    if (x.sizes[d] == 0) return true;
    if (x.sizes[d] != 1 && x.strides[d] != expected) return false;
    expected *= x.sizes[d];
  }
  return true;
}

inline bool is_aligned(const void *p, int64_t bytes = 16) {
  return reinterpret_cast<uintptr_t>(p) % static_cast<uintptr_t>(bytes) == 0;
}

// ---- dtype dispatch ----

template <typename T>
struct Type {
  using type = T;
};

// Calls body(Type<float>{}) or body(Type<bf16>{}): in it, `using T = typename decltype(tag)::type`. The runtime has
// checked that the dtype is one of the two.
template <typename Body>
inline ls_status dispatch_float(int32_t dtype, const Body &body) {
  return dtype == LS_BF16 ? body(Type<bf16>{}) : body(Type<float>{});
}

// ---- what an entry gets ----

// The stream of the queue that runs the entry; makes its device the thread's current one. (native/cuda/queue.cc)
cudaStream_t stream_of(const ls_exec *exec);

// Streaming multiprocessors of the device, for grids that stride. (native/cuda/queue.cc)
int multiprocessors(const ls_exec *exec);

// Bytes of shared memory that one block may have. (native/cuda/queue.cc)
int64_t most_shared(const ls_exec *exec);

// LS_OK, or LS_DEVICE_FAILURE with "what: CUDA's name and text" in exec->error. A failure that the device does not get
// over marks it lost. (native/cuda/queue.cc)
ls_status launch_status(const ls_exec *exec, cudaError_t error, const char *what);

// Writes one line into exec->error and gives the status back.
__attribute__((format(printf, 3, 4))) inline ls_status fail(const ls_exec *exec, ls_status status, const char *format,
                                                            ...) {
  if (exec->error != nullptr && exec->error_size > 0) {
    va_list values;
    va_start(values, format);
    vsnprintf(exec->error, exec->error_size, format, values);
    va_end(values);
  }
  return status;
}

// Returns from the entry where `call`, a cudaError_t, is no cudaSuccess.
#define LS_TRY_CUDA(exec, call, what)                                                       \
  do {                                                                                      \
    const ls_status ls_try_status = ::longseq::cuda::launch_status((exec), (call), (what)); \
    if (ls_try_status != LS_OK) return ls_try_status;                                       \
  } while (0)

}  // namespace longseq::cuda

#endif  // LONGSEQ_CUDA_COMMON_H
