// Arguments, checks and cost of route (which experts each token goes to) and its backward.
#include "runtime/op.h"

namespace longseq {

namespace {

// Shapes that route and its backward share: T, E of probs, [T, k] of experts and slots.
void check_choices(const Check &c, const ls_tensor &probs, const ls_tensor &experts, const ls_tensor &slots,
                   int64_t counted) {
  c.ndim("probs", probs, 2);
  c.dtype("probs", probs, LS_F32);
  c.contiguous_last("probs", probs);
  c.ndim("experts", experts, 2);
  c.dtype("experts", experts, LS_I32);
  c.contiguous("experts", experts);
  c.size("experts", experts, 0, probs.sizes[0], "tokens of probs");
  c.that(experts.sizes[1] >= 1 && experts.sizes[1] <= probs.sizes[1],
         format("experts has shape %s, expected 1 to %lld of each token, the experts of probs",
                shape_text(experts.sizes, experts.ndim).c_str(), static_cast<long long>(probs.sizes[1])));
  c.same_shape("slots", slots, "experts", experts);
  c.dtype("slots", slots, LS_I32);
  c.contiguous("slots", slots);
  c.that(elements(slots) <= INT32_MAX, format("%lld rows of tokens and experts, at most 2^31 - 1 are sorted",
                                              static_cast<long long>(elements(slots))));
  c.that(counted >= 0 && counted <= probs.sizes[0],
         format("counted is %lld, expected 0 to %lld, the tokens of probs", static_cast<long long>(counted),
                static_cast<long long>(probs.sizes[0])));
}

void check_route(const void *pointer) {
  const auto &a = *static_cast<const ls_route_args *>(pointer);
  const Check c("route");
  c.ndim("logits", a.logits, 2);
  c.dtype("logits", a.logits, LS_F32);
  c.contiguous_last("logits", a.logits);
  c.same_shape("probs", a.probs, "logits", a.logits);
  check_choices(c, a.probs, a.experts, a.slots, a.counted);
  const int64_t rows = elements(a.slots), experts = a.probs.sizes[1];
  for (const auto &[name, tensor, dtype] :
       {std::tuple{"tokens", &a.tokens, LS_I32}, std::tuple{"weights", &a.weights, LS_F32}}) {
    c.ndim(name, *tensor, 1);
    c.dtype(name, *tensor, dtype);
    c.contiguous(name, *tensor);
    c.size(name, *tensor, 0, rows, "choices of all tokens");
  }
  c.ndim("offsets", a.offsets, 1);
  c.dtype("offsets", a.offsets, LS_I64);
  c.contiguous("offsets", a.offsets);
  c.size("offsets", a.offsets, 0, experts + 1, "experts and the end");
  if (!a.load.present) return;
  c.ndim("load", a.load, 2);
  c.dtype("load", a.load, LS_F64);
  c.contiguous("load", a.load);
  c.size("load", a.load, 0, 2, "tokens, and sums of probs");
  c.size("load", a.load, 1, experts, "experts");
}

Cost cost_route(const void *pointer) {
  const auto &a = *static_cast<const ls_route_args *>(pointer);
  return {0, 2 * tensor_bytes(a.logits) + 4 * tensor_bytes(a.slots)};
}

// On a GPU the rows are sorted by expert as embedding_backward sorts tokens: two lists of ids and of places, and a
// count for each of 256 digits and 2048 rows; sums of probs by blocks of 256 tokens.
int64_t workspace_route(const void *pointer, const Profile &profile) {
  if (!profile.cuda) return 0;
  const auto &a = *static_cast<const ls_route_args *>(pointer);
  const int64_t rows = elements(a.slots), tokens = a.probs.sizes[0];
  const int64_t sums = a.load.present ? (tokens + 255) / 256 * a.probs.sizes[1] * 8 : 0;
  return sums + rows * 16 + (rows + 2047) / 2048 * 256 * 4;
}

const RegisterOp register_route({
    "route",
    sizeof(ls_route_args),
    {LS_FIELD(ls_route_args, input, logits), LS_FIELD(ls_route_args, output, probs),
     LS_FIELD(ls_route_args, output, experts), LS_FIELD(ls_route_args, output, slots),
     LS_FIELD(ls_route_args, output, tokens), LS_FIELD(ls_route_args, output, weights),
     LS_FIELD(ls_route_args, output, offsets), LS_FIELD(ls_route_args, optional_inout, load),
     LS_FIELD(ls_route_args, integer, normalize), LS_FIELD(ls_route_args, integer, counted)},
    check_route,
    cost_route,
    workspace_route,
    nullptr,
    call_entry<ls_route_args, &ls_backend::route>,
});

}  // namespace

namespace {

void check_route_backward(const void *pointer) {
  const auto &a = *static_cast<const ls_route_backward_args *>(pointer);
  const Check c("route_backward");
  check_choices(c, a.probs, a.experts, a.slots, a.counted);
  c.ndim("dweights", a.dweights, 1);
  c.dtype("dweights", a.dweights, LS_F32);
  c.contiguous("dweights", a.dweights);
  c.size("dweights", a.dweights, 0, elements(a.slots), "choices of all tokens");
  c.that(a.share.present == a.factor.present, "share and factor come together, or neither");
  if (a.share.present) {
    c.ndim("share", a.share, 1);
    c.dtype("share", a.share, LS_F64);
    c.contiguous("share", a.share);
    c.size("share", a.share, 0, a.probs.sizes[1], "experts");
    c.scalar("factor", a.factor, LS_F64);
  }
  c.same_shape("dlogits", a.dlogits, "probs", a.probs);
  c.dtype("dlogits", a.dlogits, LS_F32);
  c.contiguous_last("dlogits", a.dlogits);
}

Cost cost_route_backward(const void *pointer) {
  const auto &a = *static_cast<const ls_route_backward_args *>(pointer);
  return {0, 2 * tensor_bytes(a.probs) + 2 * tensor_bytes(a.slots) + tensor_bytes(a.dweights)};
}

const RegisterOp register_route_backward({
    "route_backward",
    sizeof(ls_route_backward_args),
    {LS_FIELD(ls_route_backward_args, input, probs), LS_FIELD(ls_route_backward_args, input, experts),
     LS_FIELD(ls_route_backward_args, input, slots), LS_FIELD(ls_route_backward_args, input, dweights),
     LS_FIELD(ls_route_backward_args, optional_input, share), LS_FIELD(ls_route_backward_args, optional_input, factor),
     LS_FIELD(ls_route_backward_args, output, dlogits), LS_FIELD(ls_route_backward_args, integer, normalize),
     LS_FIELD(ls_route_backward_args, integer, counted)},
    check_route_backward,
    cost_route_backward,
    nullptr,
    nullptr,
    call_entry<ls_route_backward_args, &ls_backend::route_backward>,
});

}  // namespace

}  // namespace longseq
