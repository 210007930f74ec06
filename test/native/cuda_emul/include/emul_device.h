// What device code of our kernels uses of CUDA: qualifiers, indices, vector types, barriers, warps, atomics,
// intrinsics.
#ifndef LONGSEQ_CUDA_EMUL_DEVICE_H
#define LONGSEQ_CUDA_EMUL_DEVICE_H

#include <math.h>
#include <string.h>

#include <algorithm>
#include <bit>
#include <type_traits>

#include "emul_model.h"

#undef __global__
#undef __device__
#undef __host__
#undef __constant__
#undef __forceinline__
#undef __align__
#undef __launch_bounds__
#undef __shared__
#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)
// A block stays on its OS thread, so what is local to that thread is what the block shares.
#define __shared__ static thread_local

#define threadIdx (::emul::lane->thread_idx)
#define blockIdx (::emul::block_idx)
#define blockDim (::emul::block_dim)
#define gridDim (::emul::grid_dim)
inline constexpr int warpSize = 32;

// ---- vector types ----

#ifdef LS_CUDA_HOST
#define EMUL_STRUCT(align, name, ...)
#else
#define EMUL_STRUCT(align, name, ...) \
  struct alignas(align) name {        \
    __VA_ARGS__;                      \
  };
#endif
#define EMUL_VECTOR2(name, T, align) \
  EMUL_STRUCT(align, name, T x; T y) \
  inline name make_##name(T x, T y) { return {x, y}; }
#define EMUL_VECTOR4(name, T, align)           \
  EMUL_STRUCT(align, name, T x; T y; T z; T w) \
  inline name make_##name(T x, T y, T z, T w) { return {x, y, z, w}; }
EMUL_VECTOR2(float2, float, 8)
EMUL_VECTOR2(double2, double, 16)
EMUL_VECTOR2(int2, int, 8)
EMUL_VECTOR2(uint2, unsigned, 8)
EMUL_VECTOR2(longlong2, long long, 16)
EMUL_VECTOR2(ulonglong2, unsigned long long, 16)
EMUL_VECTOR4(float4, float, 16)
EMUL_VECTOR4(int4, int, 16)
EMUL_VECTOR4(uint4, unsigned, 16)
#undef EMUL_VECTOR2
#undef EMUL_VECTOR4
#undef EMUL_STRUCT

// ---- barriers and fences ----

inline void __syncthreads() { emul::barrier(0); }
inline int __syncthreads_count(int predicate) { return emul::barrier(predicate).count; }
inline int __syncthreads_or(int predicate) { return emul::barrier(predicate).any; }
inline int __syncthreads_and(int predicate) { return emul::barrier(predicate).all; }
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() {}
inline void __threadfence_system() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

// ---- warps ----

namespace emul {

struct Shuffle {
  uint64_t in, out;
  int source, width;
};

// An invalid source lane gives the thread its own value back, as the documentation says.
inline void complete_shuffle(void *const *operands, unsigned mask) {
  for (int i = 0; i < kWarp; ++i) {
    if (!(mask >> i & 1)) continue;
    auto *mine = static_cast<Shuffle *>(operands[i]);
    const int source = mine->source;
    if (source < 0) {
      mine->out = mine->in;
    } else if (!(mask >> source & 1)) {
      die("a shuffle reads lane %d, which its mask %08x leaves out", source, mask);
    } else {
      mine->out = static_cast<Shuffle *>(operands[source])->in;
    }
  }
}

template <typename T>
T shuffle(unsigned mask, T value, int source) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  Shuffle one{0, 0, source, kWarp};
  memcpy(&one.in, &value, sizeof(T));
  collective(mask, &one, complete_shuffle);
  memcpy(&value, &one.out, sizeof(T));
  return value;
}

struct Vote {
  int predicate;
  unsigned ballot;
};
inline void complete_vote(void *const *operands, unsigned mask) {
  unsigned ballot = 0;
  for (int i = 0; i < kWarp; ++i)
    if ((mask >> i & 1) && static_cast<Vote *>(operands[i])->predicate) ballot |= 1u << i;
  for (int i = 0; i < kWarp; ++i)
    if (mask >> i & 1) static_cast<Vote *>(operands[i])->ballot = ballot;
}
inline void complete_nothing(void *const *, unsigned) {}

inline int lane_id() { return lane->index % kWarp; }

}  // namespace emul

inline void __syncwarp(unsigned mask = 0xffffffffu) { emul::collective(mask, nullptr, emul::complete_nothing); }

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  return emul::shuffle(mask, value, emul::lane_id() / width * width + (source & (width - 1)));
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32) {
  const int at = emul::lane_id(), source = at ^ lane_mask;
  return emul::shuffle(mask, value, source / width > at / width ? -1 : source);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int at = emul::lane_id(), source = at - static_cast<int>(delta);
  return emul::shuffle(mask, value, source < at / width * width ? -1 : source);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int at = emul::lane_id(), source = at + static_cast<int>(delta);
  return emul::shuffle(mask, value, source >= (at / width + 1) * width ? -1 : source);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  emul::Vote one{predicate, 0};
  emul::collective(mask, &one, emul::complete_vote);
  return one.ballot;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }

// ---- atomics: blocks run on several OS threads ----

namespace emul {
template <typename T, typename F>
T atomic_update(T *address, F update) {
  using Bits = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
  static_assert(sizeof(T) == sizeof(Bits));
  Bits *const place = reinterpret_cast<Bits *>(address);
  Bits old = __atomic_load_n(place, __ATOMIC_SEQ_CST);
  for (;;) {
    const Bits wanted = std::bit_cast<Bits>(static_cast<T>(update(std::bit_cast<T>(old))));
    if (__atomic_compare_exchange_n(place, &old, wanted, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
      return std::bit_cast<T>(old);
  }
}
template <typename T>
using Same = std::type_identity_t<T>;
}  // namespace emul

template <typename T>
T atomicAdd(T *address, emul::Same<T> value) {
  return emul::atomic_update(address, [=](T old) { return old + value; });
}
template <typename T>
T atomicMin(T *address, emul::Same<T> value) {
  return emul::atomic_update(address, [=](T old) { return old < value ? old : value; });
}
template <typename T>
T atomicMax(T *address, emul::Same<T> value) {
  return emul::atomic_update(address, [=](T old) { return old > value ? old : value; });
}
template <typename T>
T atomicOr(T *address, emul::Same<T> value) {
  return emul::atomic_update(address, [=](T old) { return old | value; });
}
template <typename T>
T atomicExch(T *address, emul::Same<T> value) {
  return emul::atomic_update(address, [=](T) { return value; });
}
template <typename T>
T atomicCAS(T *address, emul::Same<T> compare, emul::Same<T> value) {
  return emul::atomic_update(address, [=](T old) { return old == compare ? value : old; });
}
template <typename T>
T atomicInc(T *address, emul::Same<T> limit) {
  return emul::atomic_update(address, [=](T old) { return old >= limit ? T(0) : T(old + 1); });
}

// ---- intrinsics ----

inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __exp2f(float x) { return exp2f(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline void sincospif(float x, float *sine, float *cosine) {
  const double angle = static_cast<double>(x) * 3.14159265358979323846;
  *sine = static_cast<float>(sin(angle));
  *cosine = static_cast<float>(cos(angle));
}
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(static_cast<uint64_t>(a) * b >> 32); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(unsigned x) { return static_cast<float>(x); }
inline float __double2float_rn(double x) { return static_cast<float>(x); }
template <typename T>
T __ldg(const T *p) {
  return *p;
}
template <typename T>
T __ldcs(const T *p) {
  return *p;
}
template <typename T>
void __stcs(T *p, T value) {
  *p = value;
}
using std::max;
using std::min;

#endif  // LONGSEQ_CUDA_EMUL_DEVICE_H
