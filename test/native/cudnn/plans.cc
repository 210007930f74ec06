// Prints attention graphs as JSON and asks cuDNN, with no GPU, for their plans; reads one case a line from stdin.
//
//   plans LIBCUDNN DEVICE.json   a line of JSON for each case: {"ok", "engine", "planBytes", "graphBytes", "seconds"}
//   plans graph                  a line of JSON for each case: the graph
//   plans                        the values of cudnn_api.h, one "name value" a line
//
// A case: direction documents rows_q rows_k total_q total_k heads kv_heads head_size packed causal shift bottom_right
// window pad; direction is forward or backward, pad elements lie unused behind each row of every tensor.
#include <chrono>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <sstream>

#include "cuda/cudnn_attention_graph.h"

using namespace longseq::cuda::cudnn;

namespace {

AttentionGraph read_case(const std::string &line) {
  std::istringstream in(line);
  std::string direction;
  Geometry g;
  int64_t pad = 0;
  in >> direction >> g.documents >> g.rows_q >> g.rows_k >> g.total_q >> g.total_k >> g.heads >> g.kv_heads >>
      g.head_size >> g.packed >> g.causal >> g.shift >> g.bottom_right >> g.window >> pad;
  if (!in) {
    std::cerr << "no case: " << line << "\n";
    std::exit(2);
  }
  const RowStrides of_q = {g.heads * g.head_size + pad, g.head_size},
                   of_k = {g.kv_heads * g.head_size + pad, g.head_size};
  g.q = g.o = g.dout = g.dq = of_q;
  g.k = g.v = g.dk = g.dv = of_k;
  return direction == "forward" ? forward_graph(g) : backward_graph(g);
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
  json << "{\"q\":" << a.q << ",\"k\":" << a.k << ",\"v\":" << a.v << ",\"o\":" << a.o << ",\"lse\":" << a.lse
       << ",\"scale\":" << a.scale << ",\"dout\":" << a.dout << ",\"dq\":" << a.dq << ",\"dk\":" << a.dk
       << ",\"dv\":" << a.dv << ",\"lengthsQ\":" << a.lengths_q << ",\"lengthsK\":" << a.lengths_k << ",\"offsets\":[";
  for (size_t i = 0; i < a.offsets.size(); ++i)
    json << (i ? "," : "") << "{\"uid\":" << a.offsets[i].uid
         << ",\"ofKeys\":" << (a.offsets[i].of_keys ? "true" : "false") << ",\"stride\":" << a.offsets[i].stride << "}";
  json << "],\"graph\":" << to_json(a.graph) << "}";
  return json.str();
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
    while (std::getline(std::cin, line)) std::cout << describe(read_case(line)) << std::endl;
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
  while (std::getline(std::cin, line)) {
    const auto begin = std::chrono::steady_clock::now();
    AttentionGraph graph = read_case(line);
    error.clear();
    const auto plan = Plan::make(*device, std::move(graph.graph), &error);
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    if (plan) {
      std::cout << "{\"ok\":true,\"engine\":" << plan->engine() << ",\"planBytes\":" << plan->plan_bytes()
                << ",\"graphBytes\":" << plan->graph().workspace_bytes << ",\"nodes\":" << plan->graph().nodes.size();
    } else {
      std::cout << "{\"ok\":false,\"reason\":" << quoted(error);
    }
    std::cout << ",\"seconds\":" << seconds.count() << "}" << std::endl;
  }
  return 0;
}
