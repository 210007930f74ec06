// The sum of squares of a tensor in float64, in an order that depends on shape and layout alone. Bytes: x once; FLOPs:
// one float64 multiply-add an element.
#include "elementwise.h"
#include "entries.h"
#include "reduce.h"

namespace longseq::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostPieces = 1024;

template <typename T>
__global__ void __launch_bounds__(kThreads) squares_kernel(Plan<1> plan, double *partial) {
  const Operand &x = plan.operands[0];
  double sum = 0;
  for (int64_t group = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; group < plan.groups;
       group += static_cast<int64_t>(gridDim.x) * kThreads) {
    int64_t outer = plan.ndim == 0 ? 0 : group / plan.inner_groups;
    const int64_t first = (group - outer * plan.inner_groups) * kGroup;
    const int n = static_cast<int>(plan.inner - first < kGroup ? plan.inner - first : kGroup);
    int64_t offset = first * x.inner_stride;
#pragma unroll
    for (int d = LS_MAX_DIMS - 2; d >= 0; --d) {
      if (d >= plan.ndim) continue;
      const int64_t next = outer / plan.sizes[d];
      offset += (outer - next * plan.sizes[d]) * x.strides[d];
      outer = next;
    }
    float values[kGroup];
    load_typed(values, reinterpret_cast<const T *>(x.data) + offset, x.inner_stride, x.vector, n);
#pragma unroll
    for (int j = 0; j < kGroup; ++j) sum = fma(static_cast<double>(values[j]), static_cast<double>(values[j]), sum);
  }
  sum = block_reduce<kThreads>(sum, Add{});
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// *y += the partial sums. One block of as many threads as there may be pieces.
__global__ void __launch_bounds__(kMostPieces) total_kernel(const double *partial, int64_t pieces, double *y) {
  const double sum =
      block_reduce<kMostPieces>(static_cast<int64_t>(threadIdx.x) < pieces ? partial[threadIdx.x] : 0.0, Add{});
  if (threadIdx.x == 0) *y += sum;
}

}  // namespace

// Workspace: a float64 for each of at most 1024 pieces (native/runtime/ops/norm_squared.cc).
ls_status norm_squared(const ls_exec *exec, const ls_norm_squared_args *args) {
  const Plan<1> plan({&args->x});
  if (plan.groups == 0) return LS_OK;
  const int64_t wanted = element_count(args->x) / 8192 + 1, blocks = wanted > kMostPieces ? kMostPieces : wanted;
  double *const partial = static_cast<double *>(exec->workspace);
  LS_TRY(dispatch_float(args->x.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return LS_LAUNCH(squares_kernel<T>, static_cast<unsigned>(blocks), kThreads, 0, exec, plan, partial);
  }));
  return LS_LAUNCH(total_kernel, 1, kMostPieces, 0, exec, partial, blocks, static_cast<double *>(args->y.data));
}

}  // namespace longseq::cuda
