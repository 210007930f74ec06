// Operation graphs for cuDNN as plain data, and plans made of them.
//
// A graph is first a list of tensors and nodes that anybody can read: the descriptors that cuDNN gets and what the
// tests' interpreter runs both come from that one list. Plans are finalised for a device or, where there is none, for a
// description of one (cuDNN's deviceless compilation).
#ifndef LONGSEQ_CUDA_CUDNN_GRAPH_H
#define LONGSEQ_CUDA_CUDNN_GRAPH_H

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cudnn_library.h"

namespace longseq::cuda::cudnn {

enum class DataType : int32_t {
  f32 = DATA_FLOAT,
  i32 = DATA_INT32,
  bf16 = DATA_BFLOAT16,
  i64 = DATA_INT64,
  boolean = DATA_BOOLEAN
};

using Dims = std::array<int64_t, 4>;

// Identifies a tensor within its graph; 0 is none.
using Uid = int64_t;

struct Tensor {
  Uid uid = 0;
  std::string name;
  DataType type = DataType::f32;
  Dims sizes{}, strides{};
  bool is_virtual = false;  // lives inside the fused kernel
  bool by_value = false;    // one number of the host, `value`
  int64_t alignment = 16;   // bytes that its address is a multiple of
  double value = 0;
  // Ragged: batch b starts at element ragged[b] * ragged_multiplier, not at b * strides[0]. cuDNN knows the multiplier
  // by itself (a full-head gradient shares the offsets of the gradient that it is reduced to).
  Uid ragged = 0;
  int64_t ragged_multiplier = 1;
  // A tensor that we keep in workspace: its bytes and where they begin.
  int64_t workspace_bytes = 0, workspace_offset = 0;
};

enum class Op { pointwise, matmul, reduce_add, reshape, band_mask, sdpa_forward };

// What a tensor is to a node.
enum class Port { x, b, t, y, m, n, k, left_bound, shift_right_bound, rows, columns, query, key, value, stats, scale };

struct Node {
  Op op;
  std::string name;
  int32_t mode = 0;  // of pointwise and band_mask: POINTWISE_*
  int64_t axis = -1;
  DataType compute = DataType::f32;
  std::vector<std::pair<Port, Uid>> ports;
  // Of sdpa_forward: what is done to the scores, from inner_x to inner_y; may be empty.
  std::vector<Node> inner;
  Uid inner_x = 0, inner_y = 0;

  Uid at(Port port) const {
    for (const auto &[p, uid] : ports)
      if (p == port) return uid;
    return 0;
  }
};

class Graph {
 public:
  Tensor &add(Tensor tensor);  // gives it the next uid
  const Tensor &tensor(Uid uid) const { return tensors[static_cast<size_t>(uid - 1)]; }
  Tensor &tensor(Uid uid) { return tensors[static_cast<size_t>(uid - 1)]; }
  // Puts a tensor into workspace, on 256 bytes.
  void place(Uid uid, int64_t bytes);

  std::vector<Tensor> tensors;
  std::vector<Node> nodes;
  int64_t workspace_bytes = 0;  // of placed tensors
};

// The whole graph as JSON, for tests and for people.
std::string to_json(const Graph &graph);

// What plans are made for.
class Device {
 public:
  // The GPU of a cuDNN handle.
  static std::unique_ptr<Device> of_handle(const Library *library, Handle handle);
  // A described GPU; nothing can run.
  static std::unique_ptr<Device> described(const Library *library, const std::string &json, std::string *error);
  ~Device();

  const Library *const library;
  const Handle handle;              // null: described
  Descriptor properties = nullptr;  // of a described one

 private:
  Device(const Library *l, Handle h) : library(l), handle(h) {}
};

// A finalised plan of a graph.
class Plan {
 public:
  // The first configuration of cuDNN's heuristics that finalises. Null where there is none: `error` then says what
  // cuDNN says.
  static std::unique_ptr<Plan> make(const Device &device, Graph graph, std::string *error);
  ~Plan();
  Plan(const Plan &) = delete;

  // Runs on the handle's stream. pointers[uid - 1]: device memory of each tensor that is neither virtual nor by value
  // nor placed; workspace: workspace_bytes() bytes on 256. False, with one line in `error`, where cuDNN refuses.
  // Without a handle everything is made ready and nothing runs.
  bool run(Handle handle, const std::vector<void *> &pointers, void *workspace, std::string *error) const;

  const Graph &graph() const { return graph_; }
  int64_t engine() const { return engine_; }
  int64_t plan_bytes() const { return plan_bytes_; }  // what cuDNN itself asks for
  int64_t workspace_bytes() const { return graph_.workspace_bytes + plan_bytes_; }
  // Overwrites a by-value tensor's number for runs to come.
  void set_value(Uid uid, double value);

 private:
  Plan(const Library *library, Graph graph) : library_(library), graph_(std::move(graph)) {}
  const Library *library_;
  Graph graph_;
  std::vector<Descriptor> owned_;
  Descriptor plan_ = nullptr;
  int64_t engine_ = -1, plan_bytes_ = 0;
  mutable std::vector<int64_t> scalars_;  // 8 bytes a tensor, holding a float or an int32
  friend class PlanBuilder;
};

}  // namespace longseq::cuda::cudnn

#endif  // LONGSEQ_CUDA_CUDNN_GRAPH_H
