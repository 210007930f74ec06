// Arguments, checks, cost and workspace of attention and its backward.
#include <algorithm>

#include "runtime/op.h"
#include "runtime/ops/cudnn_attention.h"

namespace longseq {

namespace {

// Pairs of a query and a key that attend, by the rule in backend.h; closed form a row, summed by document.
template <class Args>
double pairs(const Args &a) {
  const int64_t queries = a.q.sizes[0], keys = a.k.sizes[0];
  const int64_t q_end = a.q_offset + queries, k_end = a.k_offset + keys;
  const int64_t whole[2] = {std::min(a.q_offset, a.k_offset), std::max(q_end, k_end)};
  const int64_t *bounds = a.cu_seqlens_host ? a.cu_seqlens_host : whole;
  const int64_t documents = a.cu_seqlens_host ? a.documents : 1;
  double total = 0;
  for (int64_t d = 0; d < documents; ++d) {
    const int64_t qb = std::max(a.q_offset, bounds[d]), qe = std::min(q_end, bounds[d + 1]);
    const int64_t kb = std::max(a.k_offset, bounds[d]), ke = std::min(k_end, bounds[d + 1]);
    if (qb >= qe || kb >= ke) continue;
    // Keys of query i: [max(kb, i - w + 1), min(ke, causal ? i + 1 : i + w)). Piecewise linear: sum upper - lower.
    auto sum_clamped = [&](int64_t shift, int64_t low, int64_t high) {
      // sum over i in qb..qe-1 of clamp(i + shift, low, high)
      const int64_t a1 = std::clamp(low - shift, qb, qe);   // i < a1: low
      const int64_t a2 = std::clamp(high - shift, a1, qe);  // a1 <= i < a2: i + shift
      const double middle = static_cast<double>(a2 - a1);
      return static_cast<double>(a1 - qb) * static_cast<double>(low) +
             middle * (static_cast<double>(a1 + shift) + static_cast<double>(a2 - 1 + shift)) / 2 +
             static_cast<double>(qe - a2) * static_cast<double>(high);
    };
    const int64_t far = int64_t{1} << 60;
    const int64_t window = a.window > 0 ? a.window : far;
    const double upper = sum_clamped(a.causal ? 1 : window, kb, ke);
    const double lower = sum_clamped(1 - window, kb, ke);
    total += std::max(0.0, upper - lower);
  }
  return total;
}

// Bytes for cuDNN, where the device may run it.
template <class Args>
int64_t cudnn_bytes(const Args &a, bool backward, const Profile &profile) {
  if (!profile.cuda || profile.attention == AttentionEngine::native || a.softcap != 0) return 0;
  return cudnn_attention_bytes(a, backward, profile.capability);
}

template <class Args>
void prepare_attention_args(void *pointer, const Storage *cu_seqlens) {
  auto &a = *static_cast<Args *>(pointer);
  a.cu_seqlens_host = nullptr;
  a.documents = 1;
  if (!a.cu_seqlens.present) return;
  if (!cu_seqlens || !cu_seqlens->host_values)
    throw Error(LS_INVALID_ARGUMENT,
                "attention: cu_seqlens must be made from host numbers (tensor([...], int64)), not by an op");
  const auto &values = *cu_seqlens->host_values;
  if (static_cast<int64_t>(values.size()) != a.cu_seqlens.sizes[0])
    throw Error(LS_INVALID_ARGUMENT, "attention: cu_seqlens must be a whole tensor, not a view of a part");
  for (size_t i = 1; i < values.size(); ++i)
    if (values[i] < values[i - 1])
      throw Error(LS_INVALID_ARGUMENT, format("attention: cu_seqlens[%zu] is %lld, below the entry before it", i,
                                              static_cast<long long>(values[i])));
  a.cu_seqlens_host = values.data();
  a.documents = static_cast<int64_t>(values.size()) - 1;
}

// What forward and backward ask of the tensors that both have.
template <class Args>
void check_problem(const Check &c, const Args &a) {
  c.ndim("q", a.q, 3);
  c.ndim("k", a.k, 3);
  c.same_shape("v", a.v, "k", a.k);
  c.same_shape("o", a.o, "q", a.q);
  c.size("k", a.k, 2, a.q.sizes[2], "head size of q");
  c.that(a.q.sizes[2] >= 1 && a.q.sizes[2] <= 256,
         "head size " + std::to_string(a.q.sizes[2]) + " is not between 1 and 256");
  c.that(a.k.sizes[1] > 0 && a.q.sizes[1] % a.k.sizes[1] == 0, std::to_string(a.q.sizes[1]) +
                                                                   " query heads are no multiple of " +
                                                                   std::to_string(a.k.sizes[1]) + " key/value heads");
  c.ndim("lse", a.lse, 2);
  c.dtype("lse", a.lse, LS_F32);
  c.contiguous("lse", a.lse);
  c.size("lse", a.lse, 0, a.q.sizes[1], "heads of q");
  c.size("lse", a.lse, 1, a.q.sizes[0], "rows of q");
  c.that(a.window >= 0, "window is " + std::to_string(a.window) + ", expected 0 (none) or more");
  c.that(a.softcap >= 0 && a.softcap < 1e30,
         "softcap is " + std::to_string(a.softcap) + ", expected 0 (none) or a finite number above it");
  if (a.cu_seqlens.present) {
    c.ndim("cu_seqlens", a.cu_seqlens, 1);
    c.dtype("cu_seqlens", a.cu_seqlens, LS_I64);
    c.that(a.cu_seqlens.sizes[0] >= 2, "cu_seqlens has fewer than two entries");
  }
  c.floating("q", a.q);
  c.contiguous_last("q", a.q);
  c.floating("k", a.k);
  c.contiguous_last("k", a.k);
  c.floating("v", a.v);
  c.contiguous_last("v", a.v);
  c.floating("o", a.o);
  c.contiguous_last("o", a.o);
}

void check_attention(const void *pointer) {
  check_problem(Check("attention"), *static_cast<const ls_attention_args *>(pointer));
}

Cost cost_attention(const void *pointer) {
  const auto &a = *static_cast<const ls_attention_args *>(pointer);
  return {4.0 * static_cast<double>(a.q.sizes[1] * a.q.sizes[2]) * pairs(a),
          tensor_bytes(a.q) + tensor_bytes(a.k) + tensor_bytes(a.v) + tensor_bytes(a.o)};
}

int64_t workspace_attention(const void *pointer, const Profile &profile) {
  const auto &a = *static_cast<const ls_attention_args *>(pointer);
  return cudnn_bytes(a, false, profile);
}

void prepare_attention(void *args, Storage *const *storages) {
  prepare_attention_args<ls_attention_args>(args, storages[5]);
}

const RegisterOp register_attention({
    "attention",
    sizeof(ls_attention_args),
    {LS_FIELD(ls_attention_args, input, q), LS_FIELD(ls_attention_args, input, k),
     LS_FIELD(ls_attention_args, input, v), LS_FIELD(ls_attention_args, output, o),
     LS_FIELD(ls_attention_args, output, lse), LS_FIELD(ls_attention_args, optional_input, cu_seqlens),
     LS_FIELD(ls_attention_args, number, scale), LS_FIELD(ls_attention_args, integer, causal),
     LS_FIELD(ls_attention_args, integer, window), LS_FIELD(ls_attention_args, integer, q_offset),
     LS_FIELD(ls_attention_args, integer, k_offset), LS_FIELD(ls_attention_args, optional_number, softcap)},
    check_attention,
    cost_attention,
    workspace_attention,
    prepare_attention,
    call_entry<ls_attention_args, &ls_backend::attention>,
});

void check_attention_backward(const void *pointer) {
  const auto &a = *static_cast<const ls_attention_backward_args *>(pointer);
  const Check c("attention_backward");
  check_problem(c, a);
  c.floating("dout", a.dout);
  c.contiguous_last("dout", a.dout);
  c.floating("dq", a.dq);
  c.contiguous_last("dq", a.dq);
  c.floating("dk", a.dk);
  c.contiguous_last("dk", a.dk);
  c.floating("dv", a.dv);
  c.contiguous_last("dv", a.dv);
  c.same_shape("dout", a.dout, "q", a.q);
  c.same_shape("dq", a.dq, "q", a.q);
  c.same_shape("dk", a.dk, "k", a.k);
  c.same_shape("dv", a.dv, "k", a.k);
  if (a.delta.present) {
    c.same_shape("delta", a.delta, "lse", a.lse);
    c.dtype("delta", a.delta, LS_F32);
    c.contiguous("delta", a.delta);
  }
}

Cost cost_attention_backward(const void *pointer) {
  const auto &a = *static_cast<const ls_attention_backward_args *>(pointer);
  return {
      8.0 * static_cast<double>(a.q.sizes[1] * a.q.sizes[2]) * pairs(a),
      2 * tensor_bytes(a.q) + 2 * tensor_bytes(a.k) + 2 * tensor_bytes(a.v) + tensor_bytes(a.o) + tensor_bytes(a.dout)};
}

// Of the cuda backend: what cuDNN's plan and what our own kernels (delta where it is not given) want, whichever is
// more. Of the cpu backend: a ticket for each head and block of 128 queries, delta where it is not given, and dq in
// float32 where it is stored in bfloat16; each part on cache lines of its own.
int64_t workspace_attention_backward(const void *pointer, const Profile &profile) {
  const auto &a = *static_cast<const ls_attention_backward_args *>(pointer);
  const int64_t rows = a.q.sizes[0], heads = a.q.sizes[1];
  if (profile.cuda) return std::max(a.delta.present ? 0 : 4 * heads * rows, cudnn_bytes(a, true, profile));
  const auto lines = [](int64_t bytes) { return (bytes + 63) / 64 * 64; };
  return 64 + lines(4 * heads * ((rows + 127) / 128)) + (a.delta.present ? 0 : lines(4 * heads * rows)) +
         (a.dq.dtype == LS_BF16 ? lines(4 * elements(a.dq)) : 0);
}

void prepare_attention_backward(void *args, Storage *const *storages) {
  prepare_attention_args<ls_attention_backward_args>(args, storages[10]);
}

const RegisterOp register_attention_backward({
    "attention_backward",
    sizeof(ls_attention_backward_args),
    {LS_FIELD(ls_attention_backward_args, input, q),
     LS_FIELD(ls_attention_backward_args, input, k),
     LS_FIELD(ls_attention_backward_args, input, v),
     LS_FIELD(ls_attention_backward_args, input, o),
     LS_FIELD(ls_attention_backward_args, input, lse),
     LS_FIELD(ls_attention_backward_args, input, dout),
     LS_FIELD(ls_attention_backward_args, optional_input, delta),
     LS_FIELD(ls_attention_backward_args, inout, dq),
     LS_FIELD(ls_attention_backward_args, inout, dk),
     LS_FIELD(ls_attention_backward_args, inout, dv),
     LS_FIELD(ls_attention_backward_args, optional_input, cu_seqlens),
     LS_FIELD(ls_attention_backward_args, number, scale),
     LS_FIELD(ls_attention_backward_args, integer, causal),
     LS_FIELD(ls_attention_backward_args, integer, window),
     LS_FIELD(ls_attention_backward_args, integer, q_offset),
     LS_FIELD(ls_attention_backward_args, integer, k_offset),
     LS_FIELD(ls_attention_backward_args, integer, accumulate_dq),
     LS_FIELD(ls_attention_backward_args, integer, accumulate_dkv),
     LS_FIELD(ls_attention_backward_args, integer, deterministic),
     LS_FIELD(ls_attention_backward_args, optional_number, softcap)},
    check_attention_backward,
    cost_attention_backward,
    workspace_attention_backward,
    prepare_attention_backward,
    call_entry<ls_attention_backward_args, &ls_backend::attention_backward>,
});

}  // namespace

}  // namespace longseq
