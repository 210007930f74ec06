// y = alpha * factor * x + beta * y: residual adds, scaling and gradient accumulation.
#include "elementwise.h"
#include "kernels.h"

namespace longseq::cpu::LS_ISA {

namespace {

// The scale of x, with the optional device scalar.
double scale_of(const ls_axpby_args *args) {
  if (!args->factor.present) return args->alpha;
  const double factor = args->factor.dtype == LS_F64
                            ? *static_cast<const double *>(args->factor.data)
                            : static_cast<double>(*static_cast<const float *>(args->factor.data));
  return args->alpha * factor;
}

}  // namespace

ls_status axpby(const ls_exec *exec, const ls_axpby_args *args) {
  const double scale = scale_of(args), beta = args->beta;
  const ls_tensor *const operands[] = {&args->x, &args->y};
  // With beta 0 whatever stands in y, NaN included, does not count.
  const int use[] = {kReads, beta == 0 ? kWrites : kReads | kWrites};
  if (args->y.dtype == LS_F64) {
    elementwise<double>(exec, operands, use, [=](double *const *p, int64_t n) {
      if (beta == 0) {
        for (int64_t i = 0; i < n; ++i) p[1][i] = scale * p[0][i];
      } else {
        for (int64_t i = 0; i < n; ++i) p[1][i] = scale * p[0][i] + beta * p[1][i];
      }
    });
    return LS_OK;
  }
  const f32x16 a = set1(static_cast<float>(scale)), b = set1(static_cast<float>(beta));
  if (beta == 0) {
    elementwise<float>(exec, operands, use, [=](float *const *p, int64_t n) {
      lanes(n, [&](int64_t i, auto w) { store(p[1] + i, a * load(p[0] + i, w), w); });
    });
  } else {
    elementwise<float>(exec, operands, use, [=](float *const *p, int64_t n) {
      lanes(n, [&](int64_t i, auto w) { store(p[1] + i, fma(a, load(p[0] + i, w), b * load(p[1] + i, w)), w); });
    });
  }
  return LS_OK;
}

}  // namespace longseq::cpu::LS_ISA
