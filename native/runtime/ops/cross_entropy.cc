// Arguments, checks and cost of cross_entropy.
#include "runtime/op.h"

namespace longseq {

namespace {

void check_cross_entropy(const void *pointer) {
  const auto &a = *static_cast<const ls_cross_entropy_args *>(pointer);
  const Check c("cross_entropy");
  c.ndim("logits", a.logits, 2);
  c.floating("logits", a.logits);
  c.contiguous_last("logits", a.logits);
  c.ndim("labels", a.labels, 1);
  c.dtype("labels", a.labels, LS_I32);
  c.size("labels", a.labels, 0, a.logits.sizes[0], "rows of logits");
  c.scalar("loss", a.loss, LS_F64);
  if (a.dlogits.present) {
    c.same_shape("dlogits", a.dlogits, "logits", a.logits);
    c.floating("dlogits", a.dlogits);
    c.contiguous_last("dlogits", a.dlogits);
  }
  if (a.lse.present) {
    c.ndim("lse", a.lse, 1);
    c.dtype("lse", a.lse, LS_F32);
    c.size("lse", a.lse, 0, a.logits.sizes[0], "rows of logits");
  }
  if (a.losses.present) {
    c.ndim("losses", a.losses, 1);
    c.dtype("losses", a.losses, LS_F64);
    c.size("losses", a.losses, 0, a.logits.sizes[0], "rows of logits");
    c.contiguous("losses", a.losses);
  }
}

Cost cost_cross_entropy(const void *pointer) {
  const auto &a = *static_cast<const ls_cross_entropy_args *>(pointer);
  return {0, tensor_bytes(a.logits) + tensor_bytes(a.labels) + tensor_bytes(a.dlogits)};
}

int64_t workspace_cross_entropy(const void *pointer, const Profile &) {
  const auto &a = *static_cast<const ls_cross_entropy_args *>(pointer);
  // Row losses, summed in row order afterwards; where they are asked for they have their place.
  return a.losses.present ? 0 : a.logits.sizes[0] * 8;
}

const RegisterOp register_cross_entropy({
    "cross_entropy",
    sizeof(ls_cross_entropy_args),
    {LS_FIELD(ls_cross_entropy_args, input, logits), LS_FIELD(ls_cross_entropy_args, input, labels),
     LS_FIELD(ls_cross_entropy_args, inout, loss), LS_FIELD(ls_cross_entropy_args, optional_inout, dlogits),
     LS_FIELD(ls_cross_entropy_args, optional_inout, lse), LS_FIELD(ls_cross_entropy_args, optional_inout, losses),
     LS_FIELD(ls_cross_entropy_args, number, scale)},
    check_cross_entropy,
    cost_cross_entropy,
    workspace_cross_entropy,
    nullptr,
    call_entry<ls_cross_entropy_args, &ls_backend::cross_entropy>,
});

}  // namespace

}  // namespace longseq
