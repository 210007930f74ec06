// Turns graphs into cuDNN's descriptors, has plans made of them and runs these.
#include "cudnn_graph.h"

#include <cmath>
#include <cstdio>
#include <cstring>

namespace longseq::cuda::cudnn {
namespace {

std::string last_error(const Library *library, Status status) {
  char reason[2048] = "";
  library->get_last_error_string(reason, sizeof reason);
  std::string text = library->get_error_string(status);
  if (reason[0]) text += std::string(" (") + reason + ")";
  for (char &c : text)
    if (c == '\n') c = ' ';
  return text;
}

const char *name_of(Op op) {
  switch (op) {
    case Op::pointwise:
      return "pointwise";
    case Op::matmul:
      return "matmul";
    case Op::reduce_add:
      return "reduce_add";
    case Op::reshape:
      return "reshape";
    case Op::band_mask:
      return "band_mask";
    case Op::sdpa_forward:
      return "sdpa_forward";
  }
  return "";
}

const char *name_of(Port port) {
  static const char *const names[] = {
      "x",    "b",       "t",     "y",   "m",     "n",     "k",    "left_bound", "shift_right_bound",
      "rows", "columns", "query", "key", "value", "stats", "scale"};
  return names[static_cast<int>(port)];
}

const char *name_of(DataType type) {
  switch (type) {
    case DataType::f32:
      return "f32";
    case DataType::i32:
      return "i32";
    case DataType::bf16:
      return "bf16";
    case DataType::i64:
      return "i64";
    case DataType::boolean:
      return "boolean";
  }
  return "";
}

const char *name_of_mode(int32_t mode) {
  switch (mode) {
    case POINTWISE_ADD:
      return "add";
    case POINTWISE_MUL:
      return "mul";
    case POINTWISE_SUB:
      return "sub";
    case POINTWISE_EXP:
      return "exp";
    case POINTWISE_IDENTITY:
      return "identity";
    case POINTWISE_CMP_GT:
      return "gt";
    case POINTWISE_CMP_GE:
      return "ge";
    case POINTWISE_CMP_LT:
      return "lt";
    case POINTWISE_LOGICAL_AND:
      return "and";
    case POINTWISE_GEN_INDEX:
      return "index";
    case POINTWISE_BINARY_SELECT:
      return "select";
  }
  return "";
}

std::string list(const Dims &dims) {
  char text[128];
  std::snprintf(text, sizeof text, "[%lld,%lld,%lld,%lld]", static_cast<long long>(dims[0]),
                static_cast<long long>(dims[1]), static_cast<long long>(dims[2]), static_cast<long long>(dims[3]));
  return text;
}

std::string number(double value) {
  if (std::isinf(value)) return value < 0 ? "\"-inf\"" : "\"inf\"";
  char text[64];
  std::snprintf(text, sizeof text, "%.17g", value);
  return text;
}

std::string to_json(const Node &node) {
  std::string json = std::string("{\"op\":\"") + name_of(node.op) + "\",\"name\":\"" + node.name + "\"";
  if (node.op == Op::pointwise || node.op == Op::band_mask)
    json += std::string(",\"mode\":\"") + name_of_mode(node.mode) + "\"";
  if (node.axis >= 0) json += ",\"axis\":" + std::to_string(node.axis);
  json += ",\"ports\":{";
  for (size_t i = 0; i < node.ports.size(); ++i)
    json +=
        std::string(i ? "," : "") + "\"" + name_of(node.ports[i].first) + "\":" + std::to_string(node.ports[i].second);
  json += "}";
  if (!node.inner.empty()) {
    json +=
        ",\"innerX\":" + std::to_string(node.inner_x) + ",\"innerY\":" + std::to_string(node.inner_y) + ",\"inner\":[";
    for (size_t i = 0; i < node.inner.size(); ++i) json += (i ? "," : "") + to_json(node.inner[i]);
    json += "]";
  }
  return json + "}";
}

}  // namespace

Tensor &Graph::add(Tensor tensor) {
  tensor.uid = static_cast<Uid>(tensors.size()) + 1;
  tensors.push_back(std::move(tensor));
  return tensors.back();
}

void Graph::place(Uid uid, int64_t bytes) {
  Tensor &t = tensor(uid);
  t.workspace_offset = workspace_bytes;
  t.workspace_bytes = bytes;
  workspace_bytes += (bytes + 255) / 256 * 256;
}

std::string to_json(const Graph &graph) {
  std::string json = "{\"workspaceBytes\":" + std::to_string(graph.workspace_bytes) + ",\"tensors\":[";
  for (size_t i = 0; i < graph.tensors.size(); ++i) {
    const Tensor &t = graph.tensors[i];
    json += std::string(i ? "," : "") + "{\"uid\":" + std::to_string(t.uid) + ",\"name\":\"" + t.name +
            "\",\"type\":\"" + name_of(t.type) + "\",\"sizes\":" + list(t.sizes) + ",\"strides\":" + list(t.strides) +
            ",\"virtual\":" + (t.is_virtual ? "true" : "false");
    if (t.by_value) json += ",\"value\":" + number(t.value);
    if (t.ragged)
      json +=
          ",\"ragged\":" + std::to_string(t.ragged) + ",\"raggedMultiplier\":" + std::to_string(t.ragged_multiplier);
    if (t.workspace_bytes) json += ",\"workspaceBytes\":" + std::to_string(t.workspace_bytes);
    json += "}";
  }
  json += "],\"nodes\":[";
  for (size_t i = 0; i < graph.nodes.size(); ++i) json += (i ? "," : "") + to_json(graph.nodes[i]);
  return json + "]}";
}

// ---- devices ----

std::unique_ptr<Device> Device::of_handle(const Library *library, Handle handle) {
  return std::unique_ptr<Device>(new Device(library, handle));
}

std::unique_ptr<Device> Device::described(const Library *library, const std::string &json, std::string *error) {
  std::unique_ptr<Device> device(new Device(library, nullptr));
  Status status = library->create_descriptor(BACKEND_DEVICEPROP_DESCRIPTOR, &device->properties);
  if (status == STATUS_SUCCESS)
    status = library->set_attribute(device->properties, ATTR_DEVICEPROP_JSON_REPRESENTATION, TYPE_CHAR,
                                    static_cast<int64_t>(json.size()), json.data());
  if (status == STATUS_SUCCESS) status = library->finalize(device->properties);
  if (status == STATUS_SUCCESS) return device;
  *error = "cuDNN refuses the device's description: " + last_error(library, status);
  return nullptr;
}

Device::~Device() {
  if (properties) library->destroy_descriptor(properties);
}

// ---- plans ----

// Makes the descriptors of a plan; every failure throws its one line, which make() hands on.
class PlanBuilder {
 public:
  PlanBuilder(const Device &device, Plan *plan) : device_(device), library_(device.library), plan_(plan) {}

  void build() {
    const Graph &graph = plan_->graph_;
    for (const Tensor &t : graph.tensors)
      if (!t.ragged) make_tensor(t);
    for (const Tensor &t : graph.tensors)
      if (t.ragged) make_tensor(t);
    const Descriptor operations = make_graph(graph.nodes);
    std::string reasons;
    for (const int32_t mode : {HEUR_MODE_A, HEUR_MODE_FALLBACK})
      if (finalize_plan(operations, mode, &reasons)) return;
    throw reasons.empty() ? std::string("cuDNN has no engine for it") : reasons;
  }

 private:
  void check(Status status, const std::string &what) {
    if (status != STATUS_SUCCESS) throw what + ": " + last_error(library_, status);
  }

  Descriptor create(int32_t type, const std::string &what) {
    Descriptor d = nullptr;
    check(library_->create_descriptor(type, &d), what);
    plan_->owned_.push_back(d);
    return d;
  }

  void set(Descriptor d, int32_t name, int32_t type, int64_t count, const void *values, const std::string &what) {
    check(library_->set_attribute(d, name, type, count, values), what + ", attribute " + std::to_string(name));
  }
  void set_descriptor(Descriptor d, int32_t name, Descriptor value, const std::string &what) {
    set(d, name, TYPE_BACKEND_DESCRIPTOR, 1, &value, what);
  }
  void set_type(Descriptor d, int32_t name, DataType type, const std::string &what) {
    const auto value = static_cast<int32_t>(type);
    set(d, name, TYPE_DATA_TYPE, 1, &value, what);
  }

  void make_tensor(const Tensor &t) {
    const std::string what = "tensor " + t.name;
    const Descriptor d = create(BACKEND_TENSOR_DESCRIPTOR, what);
    set_type(d, ATTR_TENSOR_DATA_TYPE, t.type, what);
    set(d, ATTR_TENSOR_DIMENSIONS, TYPE_INT64, 4, t.sizes.data(), what);
    set(d, ATTR_TENSOR_STRIDES, TYPE_INT64, 4, t.strides.data(), what);
    set(d, ATTR_TENSOR_UNIQUE_ID, TYPE_INT64, 1, &t.uid, what);
    set(d, ATTR_TENSOR_BYTE_ALIGNMENT, TYPE_INT64, 1, &t.alignment, what);
    set(d, ATTR_TENSOR_IS_VIRTUAL, TYPE_BOOLEAN, 1, &t.is_virtual, what);
    set(d, ATTR_TENSOR_IS_BY_VALUE, TYPE_BOOLEAN, 1, &t.by_value, what);
    if (t.ragged) set_descriptor(d, ATTR_TENSOR_RAGGED_OFFSET_DESC, tensor(t.ragged), what);
    check(library_->finalize(d), what);
    if (tensors_.size() < plan_->graph_.tensors.size()) tensors_.resize(plan_->graph_.tensors.size());
    tensors_[static_cast<size_t>(t.uid - 1)] = d;
  }

  Descriptor tensor(Uid uid) const { return tensors_[static_cast<size_t>(uid - 1)]; }

  void set_port(Descriptor d, int32_t name, const Node &node, Port port) {
    if (const Uid uid = node.at(port)) set_descriptor(d, name, tensor(uid), node.name);
  }

  Descriptor make_node(const Node &node) {
    const std::string &what = node.name;
    Descriptor d = nullptr;
    switch (node.op) {
      case Op::pointwise: {
        const Descriptor mode = create(BACKEND_POINTWISE_DESCRIPTOR, what);
        set(mode, ATTR_POINTWISE_MODE, TYPE_POINTWISE_MODE, 1, &node.mode, what);
        set_type(mode, ATTR_POINTWISE_MATH_PREC, node.compute, what);
        if (node.axis >= 0) set(mode, ATTR_POINTWISE_AXIS, TYPE_INT64, 1, &node.axis, what);
        check(library_->finalize(mode), what);
        d = create(BACKEND_OPERATION_POINTWISE_DESCRIPTOR, what);
        set_descriptor(d, ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, mode, what);
        set_port(d, ATTR_OPERATION_POINTWISE_XDESC, node, Port::x);
        set_port(d, ATTR_OPERATION_POINTWISE_BDESC, node, Port::b);
        set_port(d, ATTR_OPERATION_POINTWISE_TDESC, node, Port::t);
        set_port(d, ATTR_OPERATION_POINTWISE_YDESC, node, Port::y);
        break;
      }
      case Op::matmul: {
        const Descriptor mode = create(BACKEND_MATMUL_DESCRIPTOR, what);
        set_type(mode, ATTR_MATMUL_COMP_TYPE, node.compute, what);
        check(library_->finalize(mode), what);
        d = create(BACKEND_OPERATION_MATMUL_DESCRIPTOR, what);
        set_port(d, ATTR_OPERATION_MATMUL_ADESC, node, Port::x);
        set_port(d, ATTR_OPERATION_MATMUL_BDESC, node, Port::b);
        set_port(d, ATTR_OPERATION_MATMUL_CDESC, node, Port::y);
        set_descriptor(d, ATTR_OPERATION_MATMUL_DESC, mode, what);
        set_port(d, ATTR_OPERATION_MATMUL_GEMM_M_OVERRIDE_DESC, node, Port::m);
        set_port(d, ATTR_OPERATION_MATMUL_GEMM_N_OVERRIDE_DESC, node, Port::n);
        set_port(d, ATTR_OPERATION_MATMUL_GEMM_K_OVERRIDE_DESC, node, Port::k);
        break;
      }
      case Op::reduce_add: {
        const Descriptor mode = create(BACKEND_REDUCTION_DESCRIPTOR, what);
        const int32_t add = REDUCE_TENSOR_ADD;
        set(mode, ATTR_REDUCTION_OPERATOR, TYPE_REDUCTION_OPERATOR_TYPE, 1, &add, what);
        set_type(mode, ATTR_REDUCTION_COMP_TYPE, node.compute, what);
        check(library_->finalize(mode), what);
        d = create(BACKEND_OPERATION_REDUCTION_DESCRIPTOR, what);
        set_port(d, ATTR_OPERATION_REDUCTION_XDESC, node, Port::x);
        set_port(d, ATTR_OPERATION_REDUCTION_YDESC, node, Port::y);
        set_descriptor(d, ATTR_OPERATION_REDUCTION_DESC, mode, what);
        break;
      }
      case Op::reshape:
        d = create(BACKEND_OPERATION_RESHAPE_DESCRIPTOR, what);
        set_port(d, ATTR_OPERATION_RESHAPE_XDESC, node, Port::x);
        set_port(d, ATTR_OPERATION_RESHAPE_YDESC, node, Port::y);
        break;
      case Op::band_mask:
        d = create(BACKEND_OPERATION_DIAGONAL_BAND_MASK_DESCRIPTOR, what);
        set_port(d, ATTR_OPERATION_DIAGONAL_BAND_MASK_XDESC, node, Port::x);
        set_port(d, ATTR_OPERATION_DIAGONAL_BAND_MASK_BDESC, node, Port::b);
        set_port(d, ATTR_OPERATION_DIAGONAL_BAND_MASK_YDESC, node, Port::y);
        set_port(d, ATTR_OPERATION_DIAGONAL_BAND_MASK_SEQ_LEN_QDESC, node, Port::rows);
        set_port(d, ATTR_OPERATION_DIAGONAL_BAND_MASK_SEQ_LEN_KVDESC, node, Port::columns);
        set_port(d, ATTR_OPERATION_DIAGONAL_BAND_MASK_LEFT_BOUND_DESC, node, Port::left_bound);
        set_port(d, ATTR_OPERATION_DIAGONAL_BAND_MASK_SHIFT_RIGHT_BOUND_DESC, node, Port::shift_right_bound);
        set(d, ATTR_OPERATION_DIAGONAL_BAND_MASK_COMPARISON_MODE, TYPE_POINTWISE_MODE, 1, &node.mode, what);
        break;
      case Op::sdpa_forward:
        d = create(BACKEND_OPERATION_SDPA_FWD_DESCRIPTOR, what);
        set_port(d, ATTR_OPERATION_SDPA_FWD_QDESC, node, Port::query);
        set_port(d, ATTR_OPERATION_SDPA_FWD_KDESC, node, Port::key);
        set_port(d, ATTR_OPERATION_SDPA_FWD_VDESC, node, Port::value);
        set_port(d, ATTR_OPERATION_SDPA_FWD_ODESC, node, Port::y);
        set_port(d, ATTR_OPERATION_SDPA_FWD_STATSDESC, node, Port::stats);
        set_port(d, ATTR_OPERATION_SDPA_FWD_SCALEDESC, node, Port::scale);
        set_port(d, ATTR_OPERATION_SDPA_FWD_SEQ_LEN_QDESC, node, Port::rows);
        set_port(d, ATTR_OPERATION_SDPA_FWD_SEQ_LEN_KVDESC, node, Port::columns);
        if (!node.inner.empty()) {
          set_descriptor(d, ATTR_OPERATION_SDPA_FWD_SUBGRAPH, make_graph(node.inner), what);
          set(d, ATTR_OPERATION_SDPA_FWD_SUBGRAPH_INPUT_UID, TYPE_INT64, 1, &node.inner_x, what);
          set(d, ATTR_OPERATION_SDPA_FWD_SUBGRAPH_OUTPUT_UID, TYPE_INT64, 1, &node.inner_y, what);
        }
        break;
    }
    check(library_->finalize(d), what);
    return d;
  }

  Descriptor make_graph(const std::vector<Node> &nodes) {
    std::vector<Descriptor> operations;
    for (const Node &node : nodes) operations.push_back(make_node(node));
    const Descriptor d = create(BACKEND_OPERATIONGRAPH_DESCRIPTOR, "graph");
    set(d, ATTR_OPERATIONGRAPH_OPS, TYPE_BACKEND_DESCRIPTOR, static_cast<int64_t>(operations.size()), operations.data(),
        "graph");
    if (device_.handle) set(d, ATTR_OPERATIONGRAPH_HANDLE, TYPE_HANDLE, 1, &device_.handle, "graph");
    check(library_->finalize(d), "graph");
    return d;
  }

  // Takes the first configuration of one heuristic that finalises.
  bool finalize_plan(Descriptor operations, int32_t mode, std::string *reasons) {
    const auto note = [&](const std::string &what, Status status) {
      *reasons += (reasons->empty() ? "" : "; ") + what + ": " + last_error(library_, status);
    };
    const Descriptor heuristics = create(BACKEND_ENGINEHEUR_DESCRIPTOR, "heuristics");
    set_descriptor(heuristics, ATTR_ENGINEHEUR_OPERATION_GRAPH, operations, "heuristics");
    set(heuristics, ATTR_ENGINEHEUR_MODE, TYPE_HEUR_MODE, 1, &mode, "heuristics");
    if (!device_.handle) set_descriptor(heuristics, ATTR_ENGINEHEUR_DEVICEPROP, device_.properties, "heuristics");
    if (const Status status = library_->finalize(heuristics); status != STATUS_SUCCESS) {
      note("heuristics", status);
      return false;
    }
    constexpr int64_t kMost = 8;
    Descriptor configurations[kMost];
    for (Descriptor &c : configurations) c = create(BACKEND_ENGINECFG_DESCRIPTOR, "configuration");
    int64_t count = 0, one = 0;
    check(library_->get_attribute(heuristics, ATTR_ENGINEHEUR_RESULTS, TYPE_BACKEND_DESCRIPTOR, kMost, &count,
                                  configurations),
          "heuristics");
    for (int64_t i = 0; i < count && i < kMost; ++i) {
      const Descriptor plan = create(BACKEND_EXECUTION_PLAN_DESCRIPTOR, "plan");
      set_descriptor(plan, ATTR_EXECUTION_PLAN_ENGINE_CONFIG, configurations[i], "plan");
      if (device_.handle) {
        set(plan, ATTR_EXECUTION_PLAN_HANDLE, TYPE_HANDLE, 1, &device_.handle, "plan");
      } else {
        set_descriptor(plan, ATTR_EXECUTION_PLAN_DEVICEPROP, device_.properties, "plan");
      }
      if (const Status status = library_->finalize(plan); status != STATUS_SUCCESS) {
        note("plan " + std::to_string(i), status);
        continue;
      }
      check(library_->get_attribute(plan, ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, TYPE_INT64, 1, &one, &plan_->plan_bytes_),
            "plan");
      Descriptor engine = create(BACKEND_ENGINE_DESCRIPTOR, "engine");
      check(
          library_->get_attribute(configurations[i], ATTR_ENGINECFG_ENGINE, TYPE_BACKEND_DESCRIPTOR, 1, &one, &engine),
          "engine");
      check(library_->get_attribute(engine, ATTR_ENGINE_GLOBAL_INDEX, TYPE_INT64, 1, &one, &plan_->engine_), "engine");
      plan_->plan_ = plan;
      return true;
    }
    return false;
  }

  const Device &device_;
  const Library *library_;
  Plan *plan_;
  std::vector<Descriptor> tensors_;
};

std::unique_ptr<Plan> Plan::make(const Device &device, Graph graph, std::string *error) {
  std::unique_ptr<Plan> plan(new Plan(device.library, std::move(graph)));
  try {
    PlanBuilder(device, plan.get()).build();
  } catch (const std::string &reason) {
    *error = reason;
    return nullptr;
  }
  plan->scalars_.resize(plan->graph_.tensors.size());
  for (const Tensor &t : plan->graph_.tensors)
    if (t.by_value) plan->set_value(t.uid, t.value);
  return plan;
}

Plan::~Plan() {
  for (auto it = owned_.rbegin(); it != owned_.rend(); ++it) library_->destroy_descriptor(*it);
}

void Plan::set_value(Uid uid, double value) {
  Tensor &t = graph_.tensor(uid);
  t.value = value;
  int64_t &at = scalars_[static_cast<size_t>(uid - 1)];
  if (t.type == DataType::i32) {
    const auto narrow = static_cast<int32_t>(value);
    std::memcpy(&at, &narrow, sizeof narrow);
  } else {
    const auto narrow = static_cast<float>(value);
    std::memcpy(&at, &narrow, sizeof narrow);
  }
}

bool Plan::run(Handle handle, const std::vector<void *> &pointers, void *workspace, std::string *error) const {
  std::vector<Uid> uids;
  std::vector<void *> data;
  for (const Tensor &t : graph_.tensors) {
    if (t.is_virtual) continue;
    if (!t.by_value && !t.workspace_bytes && !pointers[static_cast<size_t>(t.uid - 1)]) {
      *error = "cuDNN: tensor " + t.name + " has no memory";
      return false;
    }
    uids.push_back(t.uid);
    data.push_back(t.by_value          ? static_cast<void *>(&scalars_[static_cast<size_t>(t.uid - 1)])
                   : t.workspace_bytes ? static_cast<char *>(workspace) + t.workspace_offset
                                       : pointers[static_cast<size_t>(t.uid - 1)]);
  }
  void *rest = plan_bytes_ ? static_cast<char *>(workspace) + graph_.workspace_bytes : nullptr;
  Descriptor pack = nullptr;
  Status status = library_->create_descriptor(BACKEND_VARIANT_PACK_DESCRIPTOR, &pack);
  const auto set = [&](int32_t name, int32_t type, int64_t count, const void *values) {
    if (status == STATUS_SUCCESS) status = library_->set_attribute(pack, name, type, count, values);
  };
  const auto count = static_cast<int64_t>(uids.size());
  set(ATTR_VARIANT_PACK_UNIQUE_IDS, TYPE_INT64, count, uids.data());
  set(ATTR_VARIANT_PACK_DATA_POINTERS, TYPE_VOID_PTR, count, data.data());
  set(ATTR_VARIANT_PACK_WORKSPACE, TYPE_VOID_PTR, 1, &rest);
  if (status == STATUS_SUCCESS) status = library_->finalize(pack);
  if (status == STATUS_SUCCESS && handle) status = library_->execute(handle, plan_, pack);
  if (status != STATUS_SUCCESS) *error = "cuDNN: " + last_error(library_, status);
  if (pack) library_->destroy_descriptor(pack);
  return status == STATUS_SUCCESS;
}

}  // namespace longseq::cuda::cudnn
