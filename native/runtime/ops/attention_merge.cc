// Arguments, checks and cost of attention_merge.
#include "runtime/op.h"

namespace longseq {

namespace {

void check_attention_merge(const void *pointer) {
  const auto &a = *static_cast<const ls_attention_merge_args *>(pointer);
  const Check c("attention_merge");
  c.ndim("o", a.o, 3);
  c.floating("o", a.o);
  c.same_shape("part", a.part, "o", a.o);
  c.floating("part", a.part);
  for (const auto &[name, lse] : {std::pair{"lse", &a.lse}, {"part_lse", &a.part_lse}}) {
    c.ndim(name, *lse, 2);
    c.dtype(name, *lse, LS_F32);
    c.size(name, *lse, 0, a.o.sizes[1], "heads of o");
    c.size(name, *lse, 1, a.o.sizes[0], "rows of o");
  }
}

Cost cost_attention_merge(const void *pointer) {
  const auto &a = *static_cast<const ls_attention_merge_args *>(pointer);
  return {0, 2 * tensor_bytes(a.o) + tensor_bytes(a.part)};
}

const RegisterOp register_attention_merge({
    "attention_merge",
    sizeof(ls_attention_merge_args),
    {LS_FIELD(ls_attention_merge_args, inout, o), LS_FIELD(ls_attention_merge_args, inout, lse),
     LS_FIELD(ls_attention_merge_args, input, part), LS_FIELD(ls_attention_merge_args, input, part_lse)},
    check_attention_merge,
    cost_attention_merge,
    nullptr,
    nullptr,
    call_entry<ls_attention_merge_args, &ls_backend::attention_merge>,
});

}  // namespace

}  // namespace longseq
