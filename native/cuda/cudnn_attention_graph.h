// Builds the operation graphs of softmax attention: the unified forward, and the backward composed of matrix products,
// the softmax made again from the log-sum-exp, and masks. Pure data; needs neither cuDNN nor a GPU.
#ifndef LONGSEQ_CUDA_CUDNN_ATTENTION_GRAPH_H
#define LONGSEQ_CUDA_CUDNN_ATTENTION_GRAPH_H

#include "cudnn_graph.h"
#include "runtime/ops/cudnn_attention.h"

namespace longseq::cuda::cudnn {

using Geometry = AttentionGeometry;

// Offsets that a packed graph reads: document d of the rows of q (or k) starts at element start[d] * stride; entry
// `documents` is the end. int64, [documents + 1].
struct Offsets {
  Uid uid;
  bool of_keys;
  int64_t stride;
};

// Where a graph takes and leaves its tensors; 0 where it has none.
struct AttentionGraph {
  Graph graph;
  Uid q = 0, k = 0, v = 0, o = 0, lse = 0, scale = 0;
  Uid dout = 0, dq = 0, dk = 0, dv = 0;
  Uid lengths_q = 0, lengths_k = 0;  // packed: rows of each document, int32 [documents]
  std::vector<Offsets> offsets;
};

// o = softmax(mask(scale q k^T)) v, lse = log sum exp. Equal to `attention` of backend.h.
AttentionGraph forward_graph(const Geometry &geometry);

// dq, dk, dv from lse and dout, as FlashAttention-2 (arXiv 2307.08691) has them:
// P = exp(mask(scale q k^T - lse)), delta = rowsum(dout o), dV = P^T dout, dS = scale P (dout V^T - delta),
// dQ = dS K, dK = dS^T Q; with more query heads than key heads dK and dV are sums over each group.
// dQ is summed in float32 in workspace; delta lies there too.
AttentionGraph backward_graph(const Geometry &geometry);

}  // namespace longseq::cuda::cudnn

#endif  // LONGSEQ_CUDA_CUDNN_ATTENTION_GRAPH_H
