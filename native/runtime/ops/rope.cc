// Arguments, checks and cost of rope; its backward is rope with inverse set.
#include "runtime/op.h"

namespace longseq {

namespace {

void check_rope(const void *pointer) {
  const auto &a = *static_cast<const ls_rope_args *>(pointer);
  const Check c("rope");
  c.ndim("x", a.x, 3);
  c.floating("x", a.x);
  c.same_shape("y", a.y, "x", a.x);
  c.floating("y", a.y);
  c.ndim("positions", a.positions, 1);
  c.dtype("positions", a.positions, LS_I64);
  c.size("positions", a.positions, 0, a.x.sizes[0], "tokens of x");
  c.ndim("inv_freq", a.inv_freq, 1);
  c.dtype("inv_freq", a.inv_freq, LS_F32);
  c.contiguous("inv_freq", a.inv_freq);
  c.contiguous("positions", a.positions);
  c.contiguous_last("x", a.x);
  c.contiguous_last("y", a.y);
  c.that(2 * a.inv_freq.sizes[0] <= a.x.sizes[2], "inv_freq has " + std::to_string(a.inv_freq.sizes[0]) +
                                                      " frequencies, more than half the head size " +
                                                      std::to_string(a.x.sizes[2]));
}

Cost cost_rope(const void *pointer) {
  const auto &a = *static_cast<const ls_rope_args *>(pointer);
  return {0, tensor_bytes(a.x) + tensor_bytes(a.y)};
}

const RegisterOp register_rope({
    "rope",
    sizeof(ls_rope_args),
    {LS_FIELD(ls_rope_args, input, x), LS_FIELD(ls_rope_args, input, positions),
     LS_FIELD(ls_rope_args, input, inv_freq), LS_FIELD(ls_rope_args, output, y),
     LS_FIELD(ls_rope_args, number, scaling), LS_FIELD(ls_rope_args, integer, inverse)},
    check_rope,
    cost_rope,
    nullptr,
    nullptr,
    call_entry<ls_rope_args, &ls_backend::rope>,
});

}  // namespace

}  // namespace longseq
