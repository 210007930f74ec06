// y = alpha * factor * x + beta * y: residual adds, scaling and gradient accumulation. Bytes: x once, y written, and
// read where beta is not 0; FLOPs: 2 an element.
#include "elementwise.h"
#include "entries.h"

namespace longseq::cuda {

namespace {

// kBlend: beta is not 0. With beta 0 whatever stands in y, NaN included, does not count: it is not read.
template <typename C, bool kBlend>
struct Axpby {
  static constexpr unsigned kReads = kBlend ? 0b11 : 0b01, kWrites = 0b10;
  double alpha;
  C beta;
  const void *factor;  // a device scalar, NULL where absent
  bool factor_f64;

  LS_DEVICE void operator()(C (&v)[2]) const {
    double scale = alpha;
    if (factor != nullptr)
      scale *=
          factor_f64 ? *static_cast<const double *>(factor) : static_cast<double>(*static_cast<const float *>(factor));
    const C a = static_cast<C>(scale);
    v[1] = kBlend ? fma(a, v[0], beta * v[1]) : a * v[0];
  }
};

template <typename C>
ls_status run(const ls_exec *exec, const ls_axpby_args *args) {
  const auto apply = [&](auto f) {
    f.alpha = args->alpha;
    f.beta = static_cast<C>(args->beta);
    f.factor = args->factor.present ? args->factor.data : nullptr;
    f.factor_f64 = args->factor.dtype == LS_F64;
    return elementwise<C>(exec, {&args->x, &args->y}, f);
  };
  return args->beta == 0 ? apply(Axpby<C, false>{}) : apply(Axpby<C, true>{});
}

}  // namespace

ls_status axpby(const ls_exec *exec, const ls_axpby_args *args) {
  return args->y.dtype == LS_F64 ? run<double>(exec, args) : run<float>(exec, args);
}

}  // namespace longseq::cuda
