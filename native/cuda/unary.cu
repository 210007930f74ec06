// Elementwise functions of one tensor and their backward. Bytes: every operand once; FLOPs: some tens an element.
#include "activation.h"
#include "elementwise.h"
#include "entries.h"

namespace longseq::cuda {

namespace {

struct Forward {
  static constexpr unsigned kReads = 0b01, kWrites = 0b10;
  int kind;
  LS_DEVICE void operator()(float (&v)[2]) const { v[1] = activate(kind, v[0]); }
};

struct Backward {
  static constexpr unsigned kReads = 0b011, kWrites = 0b100;
  int kind;
  LS_DEVICE void operator()(float (&v)[3]) const { v[2] = v[1] * activate_gradient(kind, v[0]); }
};

}  // namespace

ls_status unary(const ls_exec *exec, const ls_unary_args *args) {
  return elementwise<float>(exec, {&args->x, &args->y}, Forward{static_cast<int>(args->kind)});
}

ls_status unary_backward(const ls_exec *exec, const ls_unary_backward_args *args) {
  return elementwise<float>(exec, {&args->x, &args->dy, &args->dx}, Backward{static_cast<int>(args->kind)});
}

}  // namespace longseq::cuda
