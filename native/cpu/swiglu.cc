// The gated activation y = act(gate) * up (Shazeer, arXiv 2002.05202) and its backward.
#include "activation.h"
#include "elementwise.h"
#include "kernels.h"

namespace longseq::cpu::LS_ISA {

ls_status swiglu(const ls_exec *exec, const ls_swiglu_args *args) {
  with_gate_kind(args->kind, [&](auto kind) {
    [[maybe_unused]] constexpr int k = decltype(kind)::value;  // g++ 12 overlooks uses in nested lambdas
    elementwise<float>(
        exec, {&args->gate, &args->up, &args->y}, {kReads, kReads, kWrites}, [](float *const *p, int64_t n) {
          lanes(n, [&](int64_t i, auto w) { store(p[2] + i, activate<k>(load(p[0] + i, w)) * load(p[1] + i, w), w); });
        });
  });
  return LS_OK;
}

// dup = dy * act(gate), dgate = dy * up * act'(gate). Both loads come before both stores: dgate may be gate, dup up.
ls_status swiglu_backward(const ls_exec *exec, const ls_swiglu_backward_args *args) {
  with_gate_kind(args->kind, [&](auto kind) {
    [[maybe_unused]] constexpr int k = decltype(kind)::value;  // g++ 12 overlooks uses in nested lambdas
    elementwise<float>(exec, {&args->gate, &args->up, &args->dy, &args->dup, &args->dgate},
                       {kReads, kReads, kReads, kWrites, kWrites}, [](float *const *p, int64_t n) {
                         lanes(n, [&](int64_t i, auto w) {
                           const f32x16 gate = load(p[0] + i, w), up = load(p[1] + i, w), dy = load(p[2] + i, w);
                           f32x16 value, slope;
                           if constexpr (k == LS_UNARY_SILU) {
                             // One exponential for both.
                             const f32x16 s = sigmoid(gate);
                             value = gate * s;
                             slope = s * fma(gate, set1(1.0f) - s, set1(1.0f));
                           } else {
                             value = activate<k>(gate);
                             slope = activate_gradient<k>(gate);
                           }
                           store(p[3] + i, dy * value, w);
                           store(p[4] + i, dy * up * slope, w);
                         });
                       });
  });
  return LS_OK;
}

}  // namespace longseq::cpu::LS_ISA
