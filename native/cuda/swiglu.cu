// The gated activation y = act(gate) * up (Shazeer, arXiv 2002.05202) and its backward. Bytes of an element of b bytes:
// 3 b forward, 5 b backward; FLOPs: some ten and twenty.
#include "activation.h"
#include "elementwise.h"
#include "entries.h"

namespace longseq::cuda {

namespace {

// kSilu: SwiGLU alone, with one exponential; the others go by kind.
template <bool kSilu>
struct Forward {
  static constexpr unsigned kReads = 0b011, kWrites = 0b100;
  int kind;
  LS_DEVICE void operator()(float (&v)[3]) const { v[2] = activate(kSilu ? LS_UNARY_SILU : kind, v[0]) * v[1]; }
};

// dup = dy * act(gate), dgate = dy * up * act'(gate). All is read before anything is written: dgate may be gate, dup
// up.
template <bool kSilu>
struct Backward {
  static constexpr unsigned kReads = 0b00111, kWrites = 0b11000;
  int kind;
  LS_DEVICE void operator()(float (&v)[5]) const {
    const float gate = v[0], up = v[1], dy = v[2];
    float value, slope;
    if constexpr (kSilu) {
      const float s = sigmoid(gate);
      value = gate * s;
      slope = s * fmaf(gate, 1.0f - s, 1.0f);
    } else {
      value = activate(kind, gate);
      slope = activate_gradient(kind, gate);
    }
    v[3] = dy * value;
    v[4] = dy * up * slope;
  }
};

}  // namespace

ls_status swiglu(const ls_exec *exec, const ls_swiglu_args *args) {
  const ls_tensor *const operands[] = {&args->gate, &args->up, &args->y};
  const int kind = static_cast<int>(args->kind);
  return kind == LS_UNARY_SILU ? elementwise<float>(exec, operands, Forward<true>{kind})
                               : elementwise<float>(exec, operands, Forward<false>{kind});
}

ls_status swiglu_backward(const ls_exec *exec, const ls_swiglu_backward_args *args) {
  const ls_tensor *const operands[] = {&args->gate, &args->up, &args->dy, &args->dup, &args->dgate};
  const int kind = static_cast<int>(args->kind);
  return kind == LS_UNARY_SILU ? elementwise<float>(exec, operands, Backward<true>{kind})
                               : elementwise<float>(exec, operands, Backward<false>{kind});
}

}  // namespace longseq::cuda
