// Reductions over a warp or a block, in an order that is always the same.
#ifndef LONGSEQ_CUDA_REDUCE_H
#define LONGSEQ_CUDA_REDUCE_H

#include "common.h"

namespace longseq::cuda {

inline constexpr unsigned kAllLanes = 0xffffffffu;

struct Add {
  template <typename T>
  LS_DEVICE T operator()(T a, T b) const {
    return a + b;
  }
};

// Every lane gets the result.
template <typename T, typename F>
LS_DEVICE T warp_reduce(T value, const F &f) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) value = f(value, __shfl_xor_sync(kAllLanes, value, distance));
  return value;
}

// Over a block of kThreads threads (a multiple of 32, at most 1024); every thread gets the result. May be called again
// at once: the barrier at its start keeps the calls apart. f must be commutative: lanes combine in pairs either way.
template <int kThreads, typename T, typename F>
LS_DEVICE T block_reduce(T value, const F &f) {
  constexpr int warps = kThreads / 32;
  if constexpr (warps == 1) {
    return warp_reduce(value, f);
  } else {
    __shared__ T parts[warps];
    value = warp_reduce(value, f);
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
    __syncthreads();
    T result = parts[0];
#pragma unroll
    for (int i = 1; i < warps; ++i) result = f(result, parts[i]);
    return result;
  }
}

// The sums of kCount values at once over a block of kThreads threads; every thread gets them. As block_reduce
// otherwise.
template <int kThreads, int kCount>
LS_DEVICE void block_sums(float (&values)[kCount]) {
  constexpr int warps = kThreads / 32;
#pragma unroll
  for (int i = 0; i < kCount; ++i) values[i] = warp_reduce(values[i], Add{});
  if constexpr (warps > 1) {
    __shared__ float parts[kCount][warps];
    __syncthreads();
    if (threadIdx.x % 32 == 0)
#pragma unroll
      for (int i = 0; i < kCount; ++i) parts[i][threadIdx.x / 32] = values[i];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      values[i] = parts[i][0];
#pragma unroll
      for (int w = 1; w < warps; ++w) values[i] += parts[i][w];
    }
  }
}

}  // namespace longseq::cuda

#endif  // LONGSEQ_CUDA_REDUCE_H
