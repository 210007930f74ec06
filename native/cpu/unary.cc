// Elementwise functions of one tensor and their backward.
#include "activation.h"
#include "elementwise.h"
#include "kernels.h"

namespace longseq::cpu::LS_ISA {

ls_status unary(const ls_exec *exec, const ls_unary_args *args) {
  with_unary_kind(args->kind, [&](auto kind) {
    [[maybe_unused]] constexpr int k = decltype(kind)::value;  // g++ 12 overlooks uses in nested lambdas
    elementwise<float>(exec, {&args->x, &args->y}, {kReads, kWrites}, [](float *const *p, int64_t n) {
      lanes(n, [&](int64_t i, auto w) { store(p[1] + i, activate<k>(load(p[0] + i, w)), w); });
    });
  });
  return LS_OK;
}

ls_status unary_backward(const ls_exec *exec, const ls_unary_backward_args *args) {
  with_unary_kind(args->kind, [&](auto kind) {
    [[maybe_unused]] constexpr int k = decltype(kind)::value;  // g++ 12 overlooks uses in nested lambdas
    elementwise<float>(exec, {&args->x, &args->dy, &args->dx}, {kReads, kReads, kWrites},
                       [](float *const *p, int64_t n) {
                         lanes(n, [&](int64_t i, auto w) {
                           store(p[2] + i, load(p[1] + i, w) * activate_gradient<k>(load(p[0] + i, w)), w);
                         });
                       });
  });
  return LS_OK;
}

}  // namespace longseq::cpu::LS_ISA
