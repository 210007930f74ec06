// Prints attention graphs as JSON and asks cuDNN, with no GPU, for their plans; reads one case a line from stdin.
//
//   plans LIBCUDNN DEVICE.json   a line of JSON for each case: {"ok", "engine", "planBytes", ...}
//   plans problems               a line of JSON for each problem: {"refused"} or how it is run, and the graph
//   plans                        the values of cudnn_api.h, one "name value" a line
//
// A case: direction documents rows_q rows_k total_q total_k heads kv_heads head_size packed causal shift bottom_right
// window pad; direction is forward or backward, pad elements lie unused behind each row of every tensor.
// A problem, as the op has it: direction capability rows_q rows_k heads kv_heads head_size causal window q_offset
// k_offset scale pad dq_f32 dkv_f32 accumulate delta entries cu_seqlens...; entries 0: one document.
#include <chrono>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <sstream>

#include "cuda/cudnn_attention_graph.h"

using namespace longseq::cuda::cudnn;

namespace {

struct Case {
  std::string direction;
  Geometry geometry;
  AttentionGraph graph() const { return direction == "forward" ? forward_graph(geometry) : backward_graph(geometry); }
};

Case read_case(const std::string &line) {
  std::istringstream in(line);
  Case c;
  auto &[direction, g] = c;
  int64_t pad = 0;
  in >> direction >> g.documents >> g.rows_q >> g.rows_k >> g.total_q >> g.total_k >> g.heads >> g.kv_heads >>
      g.head_size >> g.packed >> g.causal >> g.shift >> g.bottom_right >> g.window >> pad;
  if (!in) {
    std::cerr << "no case: " << line << "\n";
    std::exit(2);
  }
  const longseq::RowStrides of_q = {g.heads * g.head_size + pad, g.head_size},
                            of_k = {g.kv_heads * g.head_size + pad, g.head_size};
  g.q = g.o = g.dout = g.dq = of_q;
  g.k = g.v = g.dk = g.dv = of_k;
  return c;
}

std::string quoted(const std::string &text) {
  std::string json = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') json += '\\';
    if (c >= ' ') json += c;
  }
  return json + "\"";
}

// The graph with where its tensors go.
std::string describe(const AttentionGraph &a) {
  std::ostringstream json;
  json << "\"q\":" << a.q << ",\"k\":" << a.k << ",\"v\":" << a.v << ",\"o\":" << a.o << ",\"lse\":" << a.lse
       << ",\"scale\":" << a.scale << ",\"dout\":" << a.dout << ",\"dq\":" << a.dq << ",\"dk\":" << a.dk
       << ",\"dv\":" << a.dv << ",\"lengthsQ\":" << a.lengths_q << ",\"lengthsK\":" << a.lengths_k << ",\"offsets\":[";
  for (size_t i = 0; i < a.offsets.size(); ++i)
    json << (i ? "," : "") << "{\"uid\":" << a.offsets[i].uid
         << ",\"ofKeys\":" << (a.offsets[i].of_keys ? "true" : "false") << ",\"stride\":" << a.offsets[i].stride << "}";
  json << "],\"graph\":" << to_json(a.graph);
  return json.str();
}

std::string list(const std::vector<int64_t> &values) {
  std::string json = "[";
  for (size_t i = 0; i < values.size(); ++i) json += (i ? "," : "") + std::to_string(values[i]);
  return json + "]";
}

std::string describe(const longseq::CudnnAttention &c, bool backward, int32_t capability) {
  if (!c.refused.empty()) return "{\"refused\":" + quoted(c.refused) + "}";
  const Geometry &g = c.geometry;
  const AttentionGraph graph = backward ? backward_graph(g) : forward_graph(g);
  const longseq::CudnnWorkspace w = cudnn_workspace(c, backward, capability);
  std::ostringstream json;
  json << "{\"documents\":" << g.documents << ",\"packed\":" << (g.packed ? "true" : "false")
       << ",\"totalK\":" << g.total_k << ",\"firstKey\":" << c.first_key << ",\"beginQ\":" << list(c.begin_q)
       << ",\"rowsQ\":" << list(c.rows_q) << ",\"beginK\":" << list(c.begin_k) << ",\"rowsK\":" << list(c.rows_k)
       << ",\"coversKeys\":" << (c.covers_keys ? "true" : "false") << ",\"stageDq\":" << (c.stage_dq ? "true" : "false")
       << ",\"stageDkv\":" << (c.stage_dkv ? "true" : "false") << ",\"workspaceBytes\":" << w.total
       << ",\"offsetCount\":" << (g.packed ? longseq::cudnn_attention::offset_count(g, backward) : 0) << ","
       << describe(graph) << "}";
  return json.str();
}

ls_tensor rows_tensor(int64_t rows, int64_t heads, int64_t head_size, int64_t pad, int32_t dtype) {
  ls_tensor t{};
  t.ndim = 3;
  t.sizes[0] = rows;
  t.sizes[1] = heads;
  t.sizes[2] = head_size;
  t.strides[0] = heads * head_size + pad;
  t.strides[1] = head_size;
  t.strides[2] = 1;
  t.dtype = dtype;
  t.present = 1;
  return t;
}

std::string answer(const std::string &line) {
  std::istringstream in(line);
  std::string direction;
  int32_t capability = 0;
  int64_t rows_q, rows_k, heads, kv_heads, head_size, causal, window, q_offset, k_offset, pad, accumulate, entries;
  bool dq_f32, dkv_f32, delta;
  double scale;
  in >> direction >> capability >> rows_q >> rows_k >> heads >> kv_heads >> head_size >> causal >> window >> q_offset >>
      k_offset >> scale >> pad >> dq_f32 >> dkv_f32 >> accumulate >> delta >> entries;
  std::vector<int64_t> cu_seqlens(static_cast<size_t>(entries));
  for (int64_t &value : cu_seqlens) in >> value;
  if (!in) {
    std::cerr << "no problem: " << line << "\n";
    std::exit(2);
  }
  const auto fill = [&](auto &a) {
    a.q = a.o = rows_tensor(rows_q, heads, head_size, pad, LS_BF16);
    a.k = a.v = rows_tensor(rows_k, kv_heads, head_size, pad, LS_BF16);
    a.scale = scale;
    a.causal = causal;
    a.window = window;
    a.q_offset = q_offset;
    a.k_offset = k_offset;
    a.cu_seqlens_host = entries ? cu_seqlens.data() : nullptr;
    a.documents = entries ? entries - 1 : 1;
  };
  if (direction == "forward") {
    ls_attention_args a{};
    fill(a);
    return describe(longseq::cudnn_case(a, capability), false, capability);
  }
  ls_attention_backward_args a{};
  fill(a);
  a.dout = a.q;
  a.dq = rows_tensor(rows_q, heads, head_size, pad, dq_f32 ? LS_F32 : LS_BF16);
  a.dk = a.dv = rows_tensor(rows_k, kv_heads, head_size, pad, dkv_f32 ? LS_F32 : LS_BF16);
  a.accumulate_dq = a.accumulate_dkv = accumulate;
  a.delta.present = delta;
  return describe(longseq::cudnn_case(a, capability), true, capability);
}

}  // namespace

int main(int argc, char **argv) {
  if (argc == 1) {
#define LS_PRINT(name, value) std::cout << #name << " " << value << "\n";
    LS_CUDNN_VALUES(LS_PRINT)
    return 0;
  }
  std::string line, error;
  if (argc == 2) {
    while (std::getline(std::cin, line)) std::cout << answer(line) << std::endl;
    return 0;
  }
  const Library *library = open_library(argv[1], &error);
  std::ifstream file(argv[2]);
  const std::string properties((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  const auto device = library ? Device::described(library, properties, &error) : nullptr;
  if (!device) {
    std::cerr << error << "\n";
    return 1;
  }
  const size_t version = properties.find("\"deviceVer\":");
  const int capability = version == std::string::npos ? 0 : std::atoi(properties.c_str() + version + 12) / 10;
  while (std::getline(std::cin, line)) {
    const auto begin = std::chrono::steady_clock::now();
    const Case c = read_case(line);
    const bool backward = c.direction == "backward";
    AttentionGraph graph = c.graph();
    error.clear();
    const auto plan = Plan::make(*device, std::move(graph.graph), &error);
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    // What the backend points to before a run; the addresses are never used.
    if (plan) {
      static std::vector<char> memory(1 << 16);
      void *somewhere = memory.data();
      std::vector<void *> pointers(plan->graph().tensors.size(), nullptr);
      std::vector<Uid> given = {graph.q,  graph.k,  graph.v,  graph.o,         graph.lse,      graph.dout,
                                graph.dq, graph.dk, graph.dv, graph.lengths_q, graph.lengths_k};
      for (const Offsets &offsets : graph.offsets) given.push_back(offsets.uid);
      for (const Uid uid : given)
        if (uid) pointers[static_cast<size_t>(uid - 1)] = somewhere;
      plan->run(nullptr, pointers, somewhere, &error);
    }
    if (plan && error.empty()) {
      std::cout << "{\"ok\":true,\"engine\":" << plan->engine() << ",\"planBytes\":" << plan->plan_bytes()
                << ",\"graphBytes\":" << plan->graph().workspace_bytes << ",\"nodes\":" << plan->graph().nodes.size();
    } else {
      std::cout << "{\"ok\":false,\"reason\":" << quoted(error);
    }
    std::cout << ",\"version\":" << library->version << ",\"reservedBytes\":"
              << (backward ? longseq::cudnn_attention::graph_bytes(c.geometry) : 0) +
                     longseq::cudnn_attention::plan_bytes(c.geometry, backward, capability)
              << ",\"seconds\":" << seconds.count() << "}" << std::endl;
  }
  return 0;
}
