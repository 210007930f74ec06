// AdamW (Loshchilov and Hutter, arXiv 1711.05101) as torch.optim.AdamW computes it, with optional float32 master
// weights. Bytes of a parameter: 16 for the moments, 8 for a master, its gradient once, the parameter written, and read
// where there is no master. FLOPs: some 15.
//
// A thread has eight parameters in two runs of four, all of which it asks for at once: 128 bytes on their way with
// float32 gradients and masters. Blocks stay and stride, since what the step's constants take is 2 us of latency.
#include "elementwise.h"
#include "entries.h"
#include "fault.h"

namespace longseq::cuda {

namespace {

__global__ void advance_kernel(int64_t *step, const int64_t *finite) { *step += finite != nullptr ? *finite : 1; }

// base^exponent by squaring, as on the CPU.
LS_DEVICE double power(double base, int64_t exponent) {
  double result = 1;
  for (; exponent > 0; exponent >>= 1) {
    if (exponent & 1) result *= base;
    base *= base;
  }
  return result;
}

constexpr int kThreads = 256, kBlockRun = 4 * kThreads;  // elements of a block's first run

struct Settings {
  double learning_rate, beta1, beta2, eps, weight_decay;
};
struct Constants {
  float factor, one_minus_beta1, beta2, one_minus_beta2, keep, step_size, inverse_root_correction, eps;
};

template <typename P, typename G, bool kMaster>
__global__ void __launch_bounds__(kThreads)
    adamw_kernel(P *param, const G *grad, float *moment1, float *moment2, float *master, const int64_t *step,
                 const double *factor, const int64_t *finite, Settings settings, int64_t count, bool vector,
                 Fault *fault) {
  if (finite != nullptr && *finite == 0) return;
  __shared__ Constants k;
  if (threadIdx.x == 0) {
    if (*step < 1) note_fault(fault, kAdamwFault, 0, static_cast<int32_t>(*step), 0);
    const double correction1 = 1 - power(settings.beta1, *step), correction2 = 1 - power(settings.beta2, *step);
    k = {static_cast<float>(factor != nullptr ? *factor : 1.0),
         static_cast<float>(1 - settings.beta1),
         static_cast<float>(settings.beta2),
         static_cast<float>(1 - settings.beta2),
         static_cast<float>(1 - settings.learning_rate * settings.weight_decay),
         static_cast<float>(settings.learning_rate / correction1),
         static_cast<float>(1 / sqrt(correction2)),
         static_cast<float>(settings.eps)};
  }
  __syncthreads();
  if (*step < 1) return;
  const auto update = [&](float gradient, float &m, float &v, float &p) {
    gradient *= k.factor;
    m = fmaf(gradient - m, k.one_minus_beta1, m);
    v = fmaf(gradient * k.one_minus_beta2, gradient, v * k.beta2);
    const float root = fmaf(sqrtf(v), k.inverse_root_correction, k.eps);
    p = fmaf(-k.step_size, m / root, p * k.keep);
  };
  for (int64_t block = static_cast<int64_t>(blockIdx.x) * 2 * kBlockRun; block < count;
       block += static_cast<int64_t>(gridDim.x) * 2 * kBlockRun) {
    float p[kGroup], m[kGroup], v[kGroup];
    if (vector && block + 2 * kBlockRun <= count) {
      const int64_t i = block + 4 * static_cast<int64_t>(threadIdx.x);
      Words p_words, g_words, m_words, v_words;
      load_words<false>(g_words, grad + i, kBlockRun);
      load_words<false>(m_words, moment1 + i, kBlockRun);
      load_words<false>(v_words, moment2 + i, kBlockRun);
      if constexpr (kMaster) {
        load_words<false>(p_words, master + i, kBlockRun);
      } else {
        load_words<false>(p_words, param + i, kBlockRun);
      }
#pragma unroll
      for (int j = 0; j < kGroup; ++j) {
        m[j] = value_of<float>(m_words.at, j);
        v[j] = value_of<float>(v_words.at, j);
        p[j] = kMaster ? value_of<float>(p_words.at, j) : value_of<P>(p_words.at, j);
        update(value_of<G>(g_words.at, j), m[j], v[j], p[j]);
      }
      store_words<false>(moment1 + i, m, kBlockRun);
      store_words<false>(moment2 + i, v, kBlockRun);
      if constexpr (kMaster) store_words<false>(master + i, p, kBlockRun);
      store_words<false>(param + i, p, kBlockRun);
      continue;
    }
    const int64_t i = block + kGroup * static_cast<int64_t>(threadIdx.x);
    if (i >= count) continue;
    const int n = static_cast<int>(count - i < kGroup ? count - i : kGroup);
    float g[kGroup];
    load_typed(g, grad + i, 1, vector, n);
    load_typed(m, moment1 + i, 1, vector, n);
    load_typed(v, moment2 + i, 1, vector, n);
    if constexpr (kMaster) {
      load_typed(p, master + i, 1, vector, n);
    } else {
      load_typed(p, param + i, 1, vector, n);
    }
#pragma unroll
    for (int j = 0; j < kGroup; ++j) update(g[j], m[j], v[j], p[j]);
    store_typed(moment1 + i, m, 1, vector, n);
    store_typed(moment2 + i, v, 1, vector, n);
    if constexpr (kMaster) store_typed(master + i, p, 1, vector, n);
    store_typed(param + i, p, 1, vector, n);
  }
}

}  // namespace

ls_status adamw_advance(const ls_exec *exec, const ls_adamw_advance_args *args) {
  return LS_LAUNCH(advance_kernel, 1, 1, 0, exec, static_cast<int64_t *>(args->step.data),
                   static_cast<const int64_t *>(args->finite.present ? args->finite.data : nullptr));
}

ls_status adamw(const ls_exec *exec, const ls_adamw_args *args) {
  const int64_t count = element_count(args->param);
  if (count == 0) return LS_OK;
  const Settings settings{args->learning_rate, args->beta1, args->beta2, args->eps, args->weight_decay};
  float *const master = static_cast<float *>(args->master.present ? args->master.data : nullptr);
  const bool vector = is_aligned(args->param.data) && is_aligned(args->grad.data) && is_aligned(args->m.data) &&
                      is_aligned(args->v.data) && is_aligned(master);
  Fault *const fault = fault_of(exec);
  const int64_t pieces = ceil_div(count, 2 * kBlockRun), most = 8 * static_cast<int64_t>(multiprocessors(exec));
  const unsigned blocks = static_cast<unsigned>(pieces < most ? pieces : most);
  const auto launch = [&](auto kernel, auto *param, auto *grad) {
    return LS_LAUNCH(kernel, blocks, kThreads, 0, exec, param, grad, static_cast<float *>(args->m.data),
                     static_cast<float *>(args->v.data), master, static_cast<const int64_t *>(args->step.data),
                     static_cast<const double *>(args->factor.present ? args->factor.data : nullptr),
                     static_cast<const int64_t *>(args->finite.present ? args->finite.data : nullptr), settings, count,
                     vector, fault);
  };
  return dispatch_float(args->param.dtype, [&](auto p_tag) {
    using P = typename decltype(p_tag)::type;
    return dispatch_float(args->grad.dtype, [&](auto g_tag) {
      using G = typename decltype(g_tag)::type;
      P *const param = static_cast<P *>(args->param.data);
      const G *const grad = static_cast<const G *>(args->grad.data);
      return master != nullptr ? launch(adamw_kernel<P, G, true>, param, grad)
                               : launch(adamw_kernel<P, G, false>, param, grad);
    });
  });
}

}  // namespace longseq::cuda
