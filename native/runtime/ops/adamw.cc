// Arguments, checks and cost of adamw and adamw_advance.
#include "runtime/op.h"

namespace longseq {

namespace {

void check_adamw_advance(const void *pointer) {
  const auto &a = *static_cast<const ls_adamw_advance_args *>(pointer);
  const Check c("adamw_advance");
  c.scalar("step", a.step, LS_I64);
  if (a.finite.present) c.scalar("finite", a.finite, LS_I64);
}

Cost cost_adamw_advance(const void *pointer) {
  const auto &a = *static_cast<const ls_adamw_advance_args *>(pointer);
  return {0, tensor_bytes(a.step)};
}

const RegisterOp register_adamw_advance({
    "adamw_advance",
    sizeof(ls_adamw_advance_args),
    {LS_FIELD(ls_adamw_advance_args, inout, step), LS_FIELD(ls_adamw_advance_args, optional_input, finite)},
    check_adamw_advance,
    cost_adamw_advance,
    nullptr,
    nullptr,
    call_entry<ls_adamw_advance_args, &ls_backend::adamw_advance>,
});

}  // namespace

namespace {

void check_adamw(const void *pointer) {
  const auto &a = *static_cast<const ls_adamw_args *>(pointer);
  const Check c("adamw");
  c.floating("param", a.param);
  c.contiguous("param", a.param);
  c.same_shape("grad", a.grad, "param", a.param);
  c.floating("grad", a.grad);
  c.contiguous("grad", a.grad);
  c.same_shape("m", a.m, "param", a.param);
  c.dtype("m", a.m, LS_F32);
  c.same_shape("v", a.v, "param", a.param);
  c.dtype("v", a.v, LS_F32);
  c.contiguous("m", a.m);
  c.contiguous("v", a.v);
  c.scalar("step", a.step, LS_I64);
  if (a.master.present) {
    c.same_shape("master", a.master, "param", a.param);
    c.dtype("master", a.master, LS_F32);
    c.contiguous("master", a.master);
  }
  if (a.factor.present) c.scalar("factor", a.factor, LS_F64);
  if (a.finite.present) c.scalar("finite", a.finite, LS_I64);
  c.that(a.beta1 >= 0 && a.beta1 < 1 && a.beta2 >= 0 && a.beta2 < 1,
         format("betas are %g and %g, expected 0 <= beta < 1", a.beta1, a.beta2));
  c.that(a.eps >= 0, format("eps is %g, expected eps >= 0", a.eps));
}

Cost cost_adamw(const void *pointer) {
  const auto &a = *static_cast<const ls_adamw_args *>(pointer);
  // Where there is a master the parameter is only written.
  return {0, (a.master.present ? 1 : 2) * tensor_bytes(a.param) +
                 2 * (tensor_bytes(a.m) + tensor_bytes(a.v) + tensor_bytes(a.master)) + tensor_bytes(a.grad)};
}

const RegisterOp register_adamw({
    "adamw",
    sizeof(ls_adamw_args),
    {LS_FIELD(ls_adamw_args, inout, param), LS_FIELD(ls_adamw_args, input, grad), LS_FIELD(ls_adamw_args, inout, m),
     LS_FIELD(ls_adamw_args, inout, v), LS_FIELD(ls_adamw_args, input, step),
     LS_FIELD(ls_adamw_args, optional_inout, master), LS_FIELD(ls_adamw_args, optional_input, factor),
     LS_FIELD(ls_adamw_args, optional_input, finite), LS_FIELD(ls_adamw_args, number, learning_rate),
     LS_FIELD(ls_adamw_args, number, beta1), LS_FIELD(ls_adamw_args, number, beta2),
     LS_FIELD(ls_adamw_args, number, eps), LS_FIELD(ls_adamw_args, number, weight_decay)},
    check_adamw,
    cost_adamw,
    nullptr,
    nullptr,
    call_entry<ls_adamw_args, &ls_backend::adamw>,
});

}  // namespace

}  // namespace longseq
