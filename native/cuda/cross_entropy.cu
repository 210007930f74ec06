// Token losses of a tile of logits and their gradient: a block a row, one sweep with a running maximum for the sum of
// exponentials and, where the gradient is wanted, a second over a row that the caches still hold.
//
// Bytes of a logit of b bytes: b read, and b written for the gradient (its second read comes from the second cache
// where rows of all blocks at work fit there). FLOPs: some 5 an element a sweep.
#include "elementwise.h"
#include "entries.h"
#include "fault.h"
#include "reduce.h"

namespace longseq::cuda {

namespace {

constexpr int32_t kIgnored = -100;
constexpr int kThreads = 512;

struct Max {
  LS_DEVICE float operator()(float a, float b) const { return fmaxf(a, b); }
};

template <typename X, typename Y>
__global__ void __launch_bounds__(kThreads)
    cross_entropy_kernel(const X *logits, int64_t logits_stride, bool logits_vector, const int32_t *labels,
                         int64_t label_stride, double *losses, Y *dlogits, int64_t dlogits_stride, bool dlogits_vector,
                         float *lse, int64_t lse_stride, double scale, int64_t rows, int64_t width, Fault *fault) {
  const float lowest = -INFINITY;
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const int32_t label = labels[row * label_stride];
    const bool valid = label >= 0 && label < width;
    const X *const in = logits + row * logits_stride;
    Y *const out = dlogits == nullptr ? nullptr : dlogits + row * dlogits_stride;
    float values[kGroup];
    if (threadIdx.x == 0) {
      losses[row] = 0;
      if (!valid && label != kIgnored) note_fault(fault, kCrossEntropyFault, row, label, width);
    }
    double sum = 0;
    float highest = lowest, at_label = 0;
    if (valid || lse != nullptr) {
      // The label's logit is read before its place may be overwritten: barriers lie between.
      if (valid) at_label = to_float(in[label]);
      float part = 0, top = lowest;
      for (int64_t i = static_cast<int64_t>(threadIdx.x) * kGroup; i < width; i += kThreads * kGroup) {
        const int n = static_cast<int>(width - i < kGroup ? width - i : kGroup);
        load_typed(values, in + i, 1, logits_vector, n);
        float most = top;
#pragma unroll
        for (int j = 0; j < kGroup; ++j)
          if (j < n) most = fmaxf(most, values[j]);
        if (most > top) {
          part *= expf(top - most);
          top = most;
        }
#pragma unroll
        for (int j = 0; j < kGroup; ++j)
          // While all was -inf there is nothing to add but NaNs.
          if (j < n) part += top == lowest ? (values[j] == values[j] ? 0.0f : values[j]) : expf(values[j] - top);
      }
      highest = block_reduce<kThreads>(top, Max{});
      sum = block_reduce<kThreads>(static_cast<double>(top == lowest ? part : part * expf(top - highest)), Add{});
      if (highest == lowest) sum = NAN;
      if (threadIdx.x == 0) {
        const double log_sum = log(sum);
        if (lse != nullptr) lse[row * lse_stride] = static_cast<float>(static_cast<double>(highest) + log_sum);
        // (max - logit) first: both are of a size, and the sum's logarithm is small beside them.
        if (valid) losses[row] = (static_cast<double>(highest) - static_cast<double>(at_label)) + log_sum;
      }
    }
    if (out == nullptr) continue;
    const float factor = valid ? static_cast<float>(scale / sum) : 0.0f;
    for (int64_t i = static_cast<int64_t>(threadIdx.x) * kGroup; i < width; i += kThreads * kGroup) {
      const int n = static_cast<int>(width - i < kGroup ? width - i : kGroup);
      if (valid) {
        load_typed(values, in + i, 1, logits_vector, n);
#pragma unroll
        for (int j = 0; j < kGroup; ++j) {
          values[j] = expf(values[j] - highest) * factor;
          if (i + j == label)
            values[j] = static_cast<float>((static_cast<double>(expf(at_label - highest)) / sum - 1.0) * scale);
        }
      } else {
#pragma unroll
        for (int j = 0; j < kGroup; ++j) values[j] = 0;
      }
      store_typed(out + i, values, 1, dlogits_vector, n);
    }
  }
}

// *loss += the row losses, in an order that depends on their number alone. One block.
__global__ void __launch_bounds__(1024) loss_kernel(const double *losses, int64_t rows, double *loss) {
  double sum = 0;
  for (int64_t row = threadIdx.x; row < rows; row += 1024) sum += losses[row];
  sum = block_reduce<1024>(sum, Add{});
  if (threadIdx.x == 0) *loss += sum;
}

bool vectors(const ls_tensor &x) { return x.present && Rows(x, 1).aligned(); }

}  // namespace

// Workspace: the row losses, float64.
ls_status cross_entropy(const ls_exec *exec, const ls_cross_entropy_args *args) {
  const ls_tensor &logits = args->logits, &dlogits = args->dlogits;
  const int64_t rows = logits.sizes[0], width = logits.sizes[1];
  if (rows == 0) return LS_OK;
  double *const losses = static_cast<double *>(exec->workspace);
  Fault *const fault = fault_of(exec);
  LS_TRY(dispatch_float(logits.dtype, [&](auto x_tag) {
    using X = typename decltype(x_tag)::type;
    return dispatch_float(dlogits.present ? dlogits.dtype : logits.dtype, [&](auto y_tag) {
      using Y = typename decltype(y_tag)::type;
      return LS_LAUNCH((cross_entropy_kernel<X, Y>), blocks_for(rows, 1), kThreads, 0, exec,
                       static_cast<const X *>(logits.data), logits.strides[0], vectors(logits),
                       static_cast<const int32_t *>(args->labels.data), args->labels.strides[0], losses,
                       static_cast<Y *>(dlogits.present ? dlogits.data : nullptr), dlogits.strides[0], vectors(dlogits),
                       static_cast<float *>(args->lse.present ? args->lse.data : nullptr), args->lse.strides[0],
                       args->scale, rows, width, fault);
    });
  }));
  return LS_LAUNCH(loss_kernel, 1, 1024, 0, exec, losses, rows, static_cast<double *>(args->loss.data));
}

}  // namespace longseq::cuda
