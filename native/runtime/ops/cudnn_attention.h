// Which attention problems cuDNN takes, as what geometry, and how many bytes of workspace they want: what the runtime,
// which reserves the bytes, and the CUDA backend, which runs the plans, have to agree on.
//
// The byte counts are what cuDNN 9.24's plans ask for, measured without a GPU for the described H200 and A100;
// test/cuda/cudnn_plans.test.ts holds them against the library wherever it is installed.
#ifndef LONGSEQ_RUNTIME_OPS_CUDNN_ATTENTION_H
#define LONGSEQ_RUNTIME_OPS_CUDNN_ATTENTION_H

#include <algorithm>
#include <compare>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "longseq/backend.h"

namespace longseq {

// Elements from one row, and from one head, to the next; the last dim is contiguous.
struct RowStrides {
  int64_t row = 0, head = 0;
  auto operator<=>(const RowStrides &) const = default;
};

// All of an attention that a plan depends on. q [total_q, N, D], k, v [total_k, K, D], bfloat16; lse [N, total_q].
struct AttentionGeometry {
  int64_t documents = 1;           // batch of the graph
  int64_t rows_q = 0, rows_k = 0;  // of the longest document
  int64_t total_q = 0, total_k = 0;
  int64_t heads = 0, kv_heads = 0, head_size = 0;
  bool packed = false;  // documents lie one behind the other; their lengths and starts are tensors
  bool causal = false;
  // Query row i and key row j stand at the same place where i + shift and j are equal. Of packed documents only
  // whether the last rows of both meet (else the first) is used.
  int64_t shift = 0;
  bool bottom_right = false;
  int64_t window = 0;  // 0: none
  RowStrides q, k, v, o, dout, dq, dk, dv;
  bool dq_f32 = false, dkv_f32 = false;  // gradients as float32 instead of bfloat16
  auto operator<=>(const AttentionGeometry &) const = default;

  bool grouped() const { return heads != kv_heads; }
};

// A call of attention or its backward in cuDNN's terms.
struct CudnnAttention {
  std::string refused;  // why cuDNN does not take it; the rest is then not filled
  AttentionGeometry geometry;
  int64_t first_key = 0;  // rows of k, v, dk and dv before the first that anybody attends
  // Packed: of each document the first row of q, its rows, the first row of k (counted from first_key), its rows;
  // geometry.documents entries, those behind the last document are empty.
  std::vector<int64_t> begin_q, rows_q, begin_k, rows_k;
  bool covers_keys = true;  // each row of k belongs to a document that the plan sees
  // The gradient goes to workspace first: cuDNN cannot add to what is there, nor write what is asked for.
  bool stage_dq = false, stage_dkv = false;
};

// Where a call's parts lie in its workspace, in bytes from its beginning; each part on 256 bytes.
struct CudnnWorkspace {
  int64_t plan = 0;  // the plan's own bytes and the graph's, which come first
  int64_t lengths_q = 0, lengths_k = 0, offsets = 0;
  int64_t dq = 0, dk = 0, dv = 0;  // staged gradients, contiguous
  int64_t total = 0;
};

namespace cudnn_attention {

inline int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

inline int64_t power_of_two(int64_t value, int64_t least) {
  while (least < value) least *= 2;
  return least;
}

inline RowStrides strides(const ls_tensor &t) { return {t.strides[0], t.strides[1]}; }

// cuDNN moves 16 bytes at a time. "" where the strides allow it; addresses are looked at when the call runs.
inline std::string misfit(const char *name, const ls_tensor &t) {
  const int64_t values = t.dtype == LS_F32 ? 4 : 8;
  for (int dim = 0; dim < 2; ++dim)
    if (t.sizes[dim] > 1 && (t.strides[dim] <= 0 || t.strides[dim] % values != 0))
      return std::string("strides of ") + name + " are no multiples of 16 bytes";
  return "";
}

// Rows of q and k that share a document, and where they stand.
struct Segment {
  int64_t qb, qe, kb, ke;  // positions
};

// Fills geometry, rows and documents of what forward and backward share.
template <class Args>
void common(const Args &a, CudnnAttention *c) {
  AttentionGeometry &g = c->geometry;
  const auto refuse = [&](const std::string &why) {
    if (c->refused.empty()) c->refused = why;
  };
  g.heads = a.q.sizes[1];
  g.kv_heads = a.k.sizes[1];
  g.head_size = a.q.sizes[2];
  g.causal = a.causal != 0;
  g.window = a.window;
  g.q = strides(a.q);
  g.k = strides(a.k);
  g.v = strides(a.v);
  g.o = strides(a.o);
  if (a.q.dtype != LS_BF16 || a.k.dtype != LS_BF16 || a.v.dtype != LS_BF16 || a.o.dtype != LS_BF16)
    return refuse("q, k, v and o are not all bfloat16");
  if (g.head_size % 8 != 0 || g.head_size > 256) return refuse("the head size is no multiple of 8 up to 256");
  if (!(a.scale > 0)) return refuse("scale is not positive: masked scores would not be the least");
  for (const auto &[name, t] : {std::pair{"q", &a.q}, std::pair{"k", &a.k}, std::pair{"v", &a.v}, std::pair{"o", &a.o}})
    if (std::string why = misfit(name, *t); !why.empty()) return refuse(why);
  const int64_t q_end = a.q_offset + a.q.sizes[0], k_end = a.k_offset + a.k.sizes[0];
  if (a.q.sizes[0] == 0 || a.k.sizes[0] == 0) return refuse("there are no rows");
  if (a.q.sizes[0] == 1 && a.k.sizes[0] == 1) return refuse("there is one row");

  // Documents that have query rows, each with the keys that its rows can see.
  std::vector<Segment> segments;
  const int64_t whole[2] = {std::min(a.q_offset, a.k_offset), std::max(q_end, k_end)};
  const int64_t *bounds = a.cu_seqlens_host ? a.cu_seqlens_host : whole;
  const int64_t documents = a.cu_seqlens_host ? a.documents : 1;
  int64_t next = a.q_offset;
  for (int64_t d = 0; d < documents; ++d) {
    Segment s = {std::max(a.q_offset, bounds[d]), std::min(q_end, bounds[d + 1]), std::max(a.k_offset, bounds[d]),
                 std::min(k_end, bounds[d + 1])};
    if (s.qb >= s.qe) continue;
    if (s.qb != next) break;
    next = s.qe;
    if (g.causal) s.ke = std::min(s.ke, s.qe);
    // Every row needs a key: the first row's oldest, the last row's newest.
    if (s.kb >= s.ke || (g.causal && s.kb > s.qb) || (g.window && s.kb >= s.qb + g.window) ||
        (g.window && s.ke <= s.qe - g.window))
      return refuse("some query rows attend no key");
    segments.push_back(s);
  }
  if (next != q_end) return refuse("some query rows lie in no document");

  if (segments.size() == 1) {
    Segment s = segments[0];
    if (g.window) {
      s.kb = std::max(s.kb, s.qb - g.window + 1);
      if (!g.causal) s.ke = std::min(s.ke, s.qe + g.window - 1);
    }
    c->first_key = s.kb - a.k_offset;
    g.rows_q = g.total_q = s.qe - s.qb;
    g.rows_k = g.total_k = s.ke - s.kb;
    g.shift = s.qb - s.kb;
    // Without a mask only the counts matter.
    if (!g.causal && !g.window) g.shift = 0;
    c->covers_keys = g.rows_k == a.k.sizes[0];
    // The left bound is compared in float32.
    if (g.window && g.rows_q + g.rows_k + g.window > (int64_t{1} << 24))
      return refuse("positions of a window exceed 2^24");
    if (g.window && g.rows_q > g.rows_k) return refuse("a window over fewer keys than queries");
    if (g.causal && g.rows_q > g.rows_k) return refuse("a causal mask over fewer keys than queries");
    return;
  }

  g.packed = true;
  if (g.head_size % 16 != 0) return refuse("packed documents with a head size that is no multiple of 16");
  bool top_left = true, bottom_right = true;
  int64_t covered = 0;
  for (const Segment &s : segments) {
    c->begin_q.push_back(s.qb - a.q_offset);
    c->rows_q.push_back(s.qe - s.qb);
    c->begin_k.push_back(s.kb - a.k_offset);
    c->rows_k.push_back(s.ke - s.kb);
    g.rows_q = std::max(g.rows_q, s.qe - s.qb);
    g.rows_k = std::max(g.rows_k, s.ke - s.kb);
    covered += s.ke - s.kb;
    top_left = top_left && s.qb == s.kb;
    bottom_right = bottom_right && s.qe == s.ke;
  }
  if ((g.causal || g.window) && !top_left && !bottom_right)
    return refuse("packed documents whose queries and keys meet neither at their first nor at their last row");
  if (g.window && g.rows_q + g.rows_k + g.window > (int64_t{1} << 24))
    return refuse("positions of a window exceed 2^24");
  g.bottom_right = (g.causal || g.window) && !top_left;
  g.total_q = a.q.sizes[0];
  g.total_k = a.k.sizes[0];
  c->covers_keys = covered == g.total_k;
  // Plans are few if the number of documents and the longest of them are powers of two.
  g.documents = power_of_two(static_cast<int64_t>(segments.size()), 16);
  g.rows_q = power_of_two(g.rows_q, 128);
  g.rows_k = power_of_two(g.rows_k, 128);
  c->begin_q.resize(static_cast<size_t>(g.documents), g.total_q);
  c->begin_k.resize(static_cast<size_t>(g.documents), g.total_k);
  c->rows_q.resize(static_cast<size_t>(g.documents), 0);
  c->rows_k.resize(static_cast<size_t>(g.documents), 0);
}

// Bytes of the tensors that the backward's graph keeps in workspace: delta, dq in float32, and of packed documents the
// gradients of all query heads' keys and values.
inline int64_t graph_bytes(const AttentionGeometry &g) {
  int64_t bytes = round_up(4 * g.heads * g.total_q, 256);
  if (!g.packed) return bytes + round_up(4 * g.heads * g.rows_q * g.head_size, 256);
  bytes += round_up(4 * ((g.total_q - 1) * g.dq.row + (g.heads - 1) * g.dq.head + g.head_size), 256);
  if (g.grouped())
    for (const RowStrides &s : {g.dk, g.dv})
      bytes +=
          round_up(4 * ((g.total_k - 1) * s.row * (g.heads / g.kv_heads) + (g.heads - 1) * s.head + g.head_size), 256);
  return bytes;
}

// What cuDNN's plan asks for beside. capability: 80 for sm_80, 90 for sm_90.
inline int64_t plan_bytes(const AttentionGeometry &g, bool backward, int32_t capability) {
  const int64_t full = g.heads * g.total_k * g.head_size * 2;  // dk or dv of all query heads in bfloat16
  if (!backward) {
    if (capability < 90) return 0;
    return g.packed ? 256 * std::max<int64_t>(g.documents, 64) + 768 : 256;
  }
  if (capability < 90) return 128 + 4 * g.heads * round_up(g.rows_q, 8) * g.head_size + (g.grouped() ? 2 * full : 0);
  if (g.packed) return 448 * g.documents + 1152;
  return 256 + (g.grouped() ? 2 * full : 0);
}

// GPUs that Ampere's kernels serve, whose backward of packed documents in memory of their size is known to be wrong.
inline bool ampere_style(int32_t capability) { return capability < 90 || capability >= 120; }

// The tensors whose offsets a packed graph wants, one for each distinct side and stride.
inline int64_t offset_count(const AttentionGeometry &g, bool backward) {
  std::vector<std::pair<bool, int64_t>> distinct;
  const auto add = [&](bool of_keys, int64_t stride) {
    const std::pair<bool, int64_t> one(of_keys, stride);
    if (std::find(distinct.begin(), distinct.end(), one) == distinct.end()) distinct.push_back(one);
  };
  for (const int64_t stride : {int64_t{1}, g.q.row, g.o.row}) add(false, stride);
  for (const int64_t stride : {g.k.row, g.v.row}) add(true, stride);
  if (backward) {
    for (const int64_t stride : {g.dout.row, g.dq.row}) add(false, stride);
    for (const int64_t stride : {g.dk.row, g.dv.row}) add(true, stride);
  }
  return static_cast<int64_t>(distinct.size());
}

}  // namespace cudnn_attention

// What cuDNN makes of a forward.
inline CudnnAttention cudnn_case(const ls_attention_args &a, int32_t /*capability*/) {
  CudnnAttention c;
  cudnn_attention::common(a, &c);
  return c;
}

// What cuDNN makes of a backward.
inline CudnnAttention cudnn_case(const ls_attention_backward_args &a, int32_t capability) {
  CudnnAttention c;
  cudnn_attention::common(a, &c);
  AttentionGeometry &g = c.geometry;
  const auto refuse = [&](const std::string &why) {
    if (c.refused.empty()) c.refused = why;
  };
  if (a.dout.dtype != LS_BF16) refuse("dout is not bfloat16");
  if (a.deterministic) refuse("its deterministic backward takes memory quadratic in the length");
  if (a.delta.present) refuse("delta is given; its graph makes delta itself");
  if (a.dk.dtype != a.dv.dtype) refuse("dk and dv differ in dtype");
  if (cudnn_attention::ampere_style(capability) && g.packed) refuse("packed documents on this GPU");
  if (cudnn_attention::ampere_style(capability) && g.head_size > 128) refuse("a head size above 128 on this GPU");
  if (std::string why = cudnn_attention::misfit("dout", a.dout); !why.empty()) refuse(why);
  if (!c.refused.empty()) return c;
  g.dout = cudnn_attention::strides(a.dout);
  const RowStrides plain_q = {g.heads * g.head_size, g.head_size}, plain_k = {g.kv_heads * g.head_size, g.head_size};
  // Measured on an H200 with cuDNN 9.24: where tensors of its graph go beyond 2^31 elements, rows of dq behind that
  // come out wrong. Whether it miscounts what it reads or what it writes is not known, so neither may reach further.
  const int64_t most = int64_t{1} << 31;
  const auto reach = [&](int64_t rows, int64_t heads, const RowStrides &s) {
    return (rows - 1) * s.row + (heads - 1) * s.head + g.head_size;
  };
  const auto limit = [&](const char *name, int64_t rows, int64_t heads, const RowStrides &s) {
    if (reach(rows, heads, s) > most) refuse(std::string(name) + " spans more than 2^31 elements");
  };
  limit("dq", g.total_q, g.heads, plain_q);
  limit("q", g.total_q, g.heads, g.q);
  limit("o", g.total_q, g.heads, g.o);
  limit("dout", g.total_q, g.heads, g.dout);
  limit("dk", g.total_k, g.kv_heads, plain_k);
  limit("k", g.total_k, g.kv_heads, g.k);
  limit("v", g.total_k, g.kv_heads, g.v);
  if (!c.refused.empty()) return c;
  const auto far = [&](const ls_tensor &x, int64_t rows, int64_t heads) {
    return reach(rows, heads, cudnn_attention::strides(x)) > most;
  };
  c.stage_dq = a.accumulate_dq != 0 || !cudnn_attention::misfit("dq", a.dq).empty() || far(a.dq, g.total_q, g.heads);
  g.dq_f32 = a.dq.dtype == LS_F32;
  g.dq = c.stage_dq ? plain_q : cudnn_attention::strides(a.dq);
  // Float32 comes straight out of the product with as many key heads as query heads; else it is the sum of bfloat16.
  const bool wide = a.dk.dtype == LS_F32, straight = !g.grouped() && !g.packed;
  c.stage_dkv = a.accumulate_dkv != 0 || (wide && !straight) || !cudnn_attention::misfit("dk", a.dk).empty() ||
                !cudnn_attention::misfit("dv", a.dv).empty() || far(a.dk, g.total_k, g.kv_heads) ||
                far(a.dv, g.total_k, g.kv_heads);
  g.dkv_f32 = wide && straight;
  g.dk = c.stage_dkv ? plain_k : cudnn_attention::strides(a.dk);
  g.dv = c.stage_dkv ? plain_k : cudnn_attention::strides(a.dv);
  return c;
}

// Bytes of a call that is not refused.
inline CudnnWorkspace cudnn_workspace(const CudnnAttention &c, bool backward, int32_t capability) {
  using cudnn_attention::round_up;
  const AttentionGeometry &g = c.geometry;
  CudnnWorkspace w;
  w.plan = (backward ? cudnn_attention::graph_bytes(g) : 0) + cudnn_attention::plan_bytes(g, backward, capability);
  w.total = round_up(w.plan, 256);
  const auto take = [&](int64_t bytes) {
    const int64_t at = w.total;
    w.total += round_up(bytes, 256);
    return at;
  };
  if (g.packed) {
    w.lengths_q = take(4 * g.documents);
    w.lengths_k = take(4 * g.documents);
    w.offsets = take(8 * (g.documents + 1) * cudnn_attention::offset_count(g, backward));
  }
  if (c.stage_dq) w.dq = take((g.dq_f32 ? 4 : 2) * g.total_q * g.heads * g.head_size);
  if (c.stage_dkv) {
    w.dk = take((g.dkv_f32 ? 4 : 2) * g.total_k * g.kv_heads * g.head_size);
    w.dv = take((g.dkv_f32 ? 4 : 2) * g.total_k * g.kv_heads * g.head_size);
  }
  return w;
}

// Bytes to reserve for a call that may run on cuDNN; 0 where it will not.
template <class Args>
int64_t cudnn_attention_bytes(const Args &args, bool backward, int32_t capability) {
  const CudnnAttention c = cudnn_case(args, capability);
  return c.refused.empty() ? cudnn_workspace(c, backward, capability).total : 0;
}

}  // namespace longseq

#endif  // LONGSEQ_RUNTIME_OPS_CUDNN_ATTENTION_H
