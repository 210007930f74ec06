// Arguments, checks and cost of clip_factor.
#include "runtime/op.h"

namespace longseq {

namespace {

void check_clip_factor(const void *pointer) {
  const auto &a = *static_cast<const ls_clip_factor_args *>(pointer);
  const Check c("clip_factor");
  c.scalar("total", a.total, LS_F64);
  c.scalar("norm", a.norm, LS_F64);
  c.scalar("factor", a.factor, LS_F64);
  c.scalar("finite", a.finite, LS_I64);
  if (a.loss.present) c.scalar("loss", a.loss, LS_F64);
}

Cost cost_clip_factor(const void *pointer) {
  const auto &a = *static_cast<const ls_clip_factor_args *>(pointer);
  return {0, tensor_bytes(a.total)};
}

const RegisterOp register_clip_factor({
    "clip_factor",
    sizeof(ls_clip_factor_args),
    {LS_FIELD(ls_clip_factor_args, input, total), LS_FIELD(ls_clip_factor_args, output, norm),
     LS_FIELD(ls_clip_factor_args, output, factor), LS_FIELD(ls_clip_factor_args, output, finite),
     LS_FIELD(ls_clip_factor_args, optional_input, loss), LS_FIELD(ls_clip_factor_args, number, max_norm)},
    check_clip_factor,
    cost_clip_factor,
    nullptr,
    nullptr,
    call_entry<ls_clip_factor_args, &ls_backend::clip_factor>,
});

}  // namespace

}  // namespace longseq
