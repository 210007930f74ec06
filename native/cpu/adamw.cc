// AdamW (Loshchilov and Hutter, arXiv 1711.05101) as torch.optim.AdamW computes it, with optional float32 master
// weights.
#include "elementwise.h"
#include "kernels.h"

namespace longseq::cpu::LS_ISA {

namespace {

// base^exponent by squaring, so that the bits do not depend on the C library.
double power(double base, int64_t exponent) {
  double result = 1;
  for (; exponent > 0; exponent >>= 1) {
    if (exponent & 1) result *= base;
    base *= base;
  }
  return result;
}

struct Constants {
  f32x16 factor, one_minus_beta1, beta2, one_minus_beta2, keep, step_size, inverse_root_correction, eps;
};

template <typename P, typename G, bool kMaster>
void update(const ls_exec *exec, const ls_adamw_args *args, const Constants &k) {
  P *const param = static_cast<P *>(args->param.data);
  const G *const grad = static_cast<const G *>(args->grad.data);
  float *const moment1 = static_cast<float *>(args->m.data), *const moment2 = static_cast<float *>(args->v.data);
  float *const master = static_cast<float *>(args->master.data);
  parallel_for(exec, element_count(args->param), 16384, [&](int64_t begin, int64_t end) {
    lanes(end - begin, [&](int64_t offset, auto w) {
      const int64_t i = begin + offset;
      const f32x16 g = load(grad + i, w) * k.factor;
      f32x16 m = load(moment1 + i, w), v = load(moment2 + i, w), p;
      if constexpr (kMaster) {
        p = load(master + i, w);
      } else {
        p = load(param + i, w);
      }
      m = fma(g - m, k.one_minus_beta1, m);
      v = fma(g * k.one_minus_beta2, g, v * k.beta2);
      const f32x16 root = fma(sqrt(v), k.inverse_root_correction, k.eps);
      p = fnma(k.step_size, m / root, p * k.keep);
      store(moment1 + i, m, w);
      store(moment2 + i, v, w);
      if constexpr (kMaster) store(master + i, p, w);
      store(param + i, p, w);
    });
  });
}

template <typename P, typename G>
void by_master(const ls_exec *exec, const ls_adamw_args *args, const Constants &k) {
  if (args->master.present) {
    update<P, G, true>(exec, args, k);
  } else {
    update<P, G, false>(exec, args, k);
  }
}

}  // namespace

ls_status adamw_advance(const ls_exec *, const ls_adamw_advance_args *args) {
  *static_cast<int64_t *>(args->step.data) +=
      args->finite.present ? *static_cast<const int64_t *>(args->finite.data) : 1;
  return LS_OK;
}

ls_status adamw(const ls_exec *exec, const ls_adamw_args *args) {
  if (args->finite.present && *static_cast<const int64_t *>(args->finite.data) == 0) return LS_OK;
  const int64_t step = *static_cast<const int64_t *>(args->step.data);
  if (step < 1)
    return fail(exec, LS_INVALID_ARGUMENT, "adamw: step is %lld, expected at least 1 (adamw_advance comes first)",
                static_cast<long long>(step));
  const double correction1 = 1 - power(args->beta1, step), correction2 = 1 - power(args->beta2, step);
  const auto value = [](double x) { return set1(static_cast<float>(x)); };
  const Constants k = {value(args->factor.present ? *static_cast<const double *>(args->factor.data) : 1.0),
                       value(1 - args->beta1),
                       value(args->beta2),
                       value(1 - args->beta2),
                       value(1 - args->learning_rate * args->weight_decay),
                       value(args->learning_rate / correction1),
                       value(1 / __builtin_sqrt(correction2)),
                       value(args->eps)};
  const bool grad_bf16 = args->grad.dtype == LS_BF16;
  if (args->param.dtype == LS_BF16) {
    grad_bf16 ? by_master<bf16, bf16>(exec, args, k) : by_master<bf16, float>(exec, args, k);
  } else {
    grad_bf16 ? by_master<float, bf16>(exec, args, k) : by_master<float, float>(exec, args, k);
  }
  return LS_OK;
}

}  // namespace longseq::cpu::LS_ISA
