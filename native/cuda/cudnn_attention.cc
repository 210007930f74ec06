// Runs attention on cuDNN's plans: finds the library, keeps plans by geometry, hands tensors over, adds gradients.
#include "cudnn_attention.h"

#include <map>
#include <memory>
#include <mutex>

#include "cudnn_attention_graph.h"
#include "entries.h"
#include "launch.h"
#include "state.h"
#include "vendor.h"

namespace longseq::cuda {
namespace {

// A plan, or why there is none.
struct CachedPlan {
  cudnn::AttentionGraph ports;  // its graph is empty: the plan has it
  std::unique_ptr<cudnn::Plan> plan;
  std::string refused;
};

// Plans of one device. They live as long as the process.
struct Engine {
  const cudnn::Library *library = nullptr;
  cudnn::Handle handle = nullptr;
  std::unique_ptr<cudnn::Device> device;
  std::string error;  // why there is no cuDNN here
  std::map<std::pair<bool, cudnn::Geometry>, CachedPlan> plans;
  std::mutex mutex;  // a run fills the plan's scalars and the handle's stream
};

// More geometries than a training run has; a loop over ever new lengths starts anew here.
constexpr size_t kMostPlans = 256;

Engine &engine_of(const DeviceState *state) {
  static std::mutex mutex;
  // Never destroyed: at exit cuDNN, opened later, is the first to end.
  static auto &engines = *new std::map<int, std::unique_ptr<Engine>>;
  const std::lock_guard<std::mutex> lock(mutex);
  std::unique_ptr<Engine> &engine = engines[state->index];
  if (engine) return *engine;
  engine = std::make_unique<Engine>();
  // cuDNN compiles with it, and looks for it by name only: one that is open is found.
  open_vendor("libnvrtc.so.13", "nvidia-cuda-nvrtc", false);
  const VendorLibrary file = open_vendor("libcudnn.so.9", "nvidia-cudnn-cu13", false, cudnn::unfit);
  if (!file.handle) {
    engine->error = file.error;
    return *engine;
  }
  engine->library = cudnn::open_library(file.path, &engine->error);
  if (!engine->library) return *engine;
  make_current(state);
  if (const cudnn::Status status = engine->library->create(&engine->handle); status != cudnn::STATUS_SUCCESS) {
    engine->error = std::string("cudnnCreate: ") + engine->library->get_error_string(status);
    return *engine;
  }
  engine->device = cudnn::Device::of_handle(engine->library, engine->handle);
  return *engine;
}

const CachedPlan &plan_of(Engine *engine, const cudnn::Geometry &geometry, bool backward, cudaStream_t stream) {
  const std::pair<bool, cudnn::Geometry> key(backward, geometry);
  if (const auto found = engine->plans.find(key); found != engine->plans.end()) return found->second;
  if (engine->plans.size() >= kMostPlans) {
    // A plan owns its kernels: none may be on its way.
    cudaStreamSynchronize(stream);
    engine->plans.clear();
  }
  CachedPlan &made = engine->plans[key];
  made.ports = backward ? cudnn::backward_graph(geometry) : cudnn::forward_graph(geometry);
  made.plan = cudnn::Plan::make(*engine->device, std::move(made.ports.graph), &made.refused);
  return made;
}

// Lengths and offsets of packed documents, from host numbers: one copy, laid out as the workspace has them.
ls_status give_documents(const ls_exec *exec, const CudnnAttention &c, const CudnnWorkspace &w,
                         const cudnn::AttentionGraph &ports, std::vector<void *> *pointers) {
  if (!c.geometry.packed) return LS_OK;
  char *const workspace = static_cast<char *>(exec->workspace);
  const auto documents = static_cast<size_t>(c.geometry.documents);
  const size_t offset_bytes = 8 * (documents + 1);
  std::vector<char> notes(static_cast<size_t>(w.offsets - w.lengths_q) + ports.offsets.size() * offset_bytes);
  const auto give = [&](cudnn::Uid uid, int64_t at, const void *values, size_t bytes) {
    (*pointers)[static_cast<size_t>(uid - 1)] = workspace + at;
    memcpy(notes.data() + (at - w.lengths_q), values, bytes);
  };
  for (const bool of_keys : {false, true}) {
    const std::vector<int64_t> &rows = of_keys ? c.rows_k : c.rows_q;
    const std::vector<int32_t> lengths(rows.begin(), rows.end());
    give(of_keys ? ports.lengths_k : ports.lengths_q, of_keys ? w.lengths_k : w.lengths_q, lengths.data(),
         4 * documents);
  }
  int64_t at = w.offsets;
  for (const cudnn::Offsets &offsets : ports.offsets) {
    std::vector<int64_t> elements = offsets.of_keys ? c.begin_k : c.begin_q;
    elements.push_back(offsets.of_keys ? c.geometry.total_k : c.geometry.total_q);
    for (int64_t &element : elements) element *= offsets.stride;
    give(offsets.uid, at, elements.data(), offset_bytes);
    at += static_cast<int64_t>(offset_bytes);
  }
  return upload_note(exec, workspace + w.lengths_q, notes.data(), static_cast<int64_t>(notes.size()));
}

// Rows first .. first + count - 1 of a tensor of rows.
ls_tensor rows_of(const ls_tensor &t, int64_t first, int64_t count) {
  ls_tensor part = t;
  part.data = static_cast<char *>(t.data) + first * t.strides[0] * element_bytes(t.dtype);
  part.sizes[0] = count;
  return part;
}

// A staged gradient [rows, heads, D], contiguous.
ls_tensor staged(const ls_tensor &like, void *data, bool wide) {
  ls_tensor t = like;
  t.data = data;
  t.dtype = wide ? LS_F32 : LS_BF16;
  t.strides[2] = 1;
  t.strides[1] = t.sizes[2];
  t.strides[0] = t.sizes[1] * t.sizes[2];
  return t;
}

ls_status add(const ls_exec *exec, const ls_tensor &from, const ls_tensor &to, bool accumulate) {
  ls_axpby_args args{};
  args.x = from;
  args.y = to;
  args.alpha = 1;
  args.beta = accumulate ? 1 : 0;
  return axpby(exec, &args);
}

ls_status zero(const ls_exec *exec, const ls_tensor &t) {
  ls_fill_args args{};
  args.y = t;
  return fill(exec, &args);
}

int32_t capability_of(const ls_exec *exec) {
  const cudaDeviceProp &properties = device_of(exec)->properties;
  return properties.major * 10 + properties.minor;
}

// A call on its way: the case, the plan, and what each tensor of the graph points to.
struct Call {
  CudnnAttention attention;
  CudnnWorkspace workspace;
  Engine *engine = nullptr;
  const CachedPlan *cached = nullptr;
  std::vector<void *> pointers;
  std::unique_lock<std::mutex> lock;

  void point(cudnn::Uid uid, void *data) { pointers[static_cast<size_t>(uid - 1)] = data; }

  // The reason why cuDNN cannot take the call, or "".
  template <class Args>
  std::string prepare(const ls_exec *exec, const Args &args, bool backward,
                      std::initializer_list<const ls_tensor *> tensors) {
    const int32_t capability = capability_of(exec);
    attention = cudnn_case(args, capability);
    if (!attention.refused.empty()) return attention.refused;
    for (const ls_tensor *t : tensors)
      if (!is_aligned(t->data)) return "a tensor does not lie on 16 bytes";
    workspace = cudnn_workspace(attention, backward, capability);
    if (exec->workspace_bytes < workspace.total || !is_aligned(exec->workspace, 256))
      return "it wants " + std::to_string(workspace.total) + " bytes of workspace, " +
             std::to_string(exec->workspace_bytes) + " are reserved";
    engine = &engine_of(device_of(exec));
    if (!engine->device) return engine->error;
    lock = std::unique_lock<std::mutex>(engine->mutex);
    cudaStream_t const stream = stream_of(exec);
    cached = &plan_of(engine, attention.geometry, backward, stream);
    if (!cached->plan) return cached->refused;
    if (cached->plan->workspace_bytes() > workspace.plan)
      return "its plan wants " + std::to_string(cached->plan->workspace_bytes()) + " bytes of workspace, " +
             std::to_string(workspace.plan) + " are reserved";
    if (engine->library->set_stream(engine->handle, stream) != cudnn::STATUS_SUCCESS) return "cuDNN refuses the stream";
    pointers.assign(cached->plan->graph().tensors.size(), nullptr);
    return "";
  }

  // Points the graph to what forward and backward both read.
  template <class Args>
  ls_status give_inputs(const ls_exec *exec, const Args &args) {
    const cudnn::AttentionGraph &ports = cached->ports;
    const int64_t first = attention.first_key, keys = attention.geometry.total_k;
    point(ports.q, args.q.data);
    point(ports.k, rows_of(args.k, first, keys).data);
    point(ports.v, rows_of(args.v, first, keys).data);
    point(ports.o, args.o.data);
    point(ports.lse, args.lse.data);
    cached->plan->set_value(ports.scale, args.scale);
    return give_documents(exec, attention, workspace, ports, &pointers);
  }

  ls_status run(const ls_exec *exec, const char *op) {
    std::string error;
    if (cached->plan->run(engine->handle, pointers, exec->workspace, &error)) return LS_OK;
    return library_failure(exec, LS_DEVICE_FAILURE, op, error.c_str());
  }
};

// Whether our own kernels run a call that cuDNN cannot take.
bool falls_back(const ls_exec *exec, const char *op, const std::string &reason, ls_status *status) {
  if (device_of(exec)->attention != AttentionEngine::cudnn) return true;
  *status = fail(exec, LS_UNSUPPORTED, "%s: cuDNN does not take it: %s; `attention: auto` or `native` does", op,
                 reason.c_str());
  return false;
}

ls_status run_forward(const ls_exec *exec, const ls_attention_args &args, Call *call) {
  LS_TRY(call->give_inputs(exec, args));
  return call->run(exec, "attention");
}

ls_status run_backward(const ls_exec *exec, const ls_attention_backward_args &args, Call *call) {
  LS_TRY(call->give_inputs(exec, args));
  const CudnnAttention &c = call->attention;
  const cudnn::AttentionGraph &ports = call->cached->ports;
  char *const workspace = static_cast<char *>(exec->workspace);
  const int64_t first = c.first_key, keys = c.geometry.total_k;
  const ls_tensor dk = rows_of(args.dk, first, keys), dv = rows_of(args.dv, first, keys);
  // Where the gradients go first.
  const ls_tensor to_q = c.stage_dq ? staged(args.dq, workspace + call->workspace.dq, c.geometry.dq_f32) : args.dq;
  const ls_tensor to_k = c.stage_dkv ? staged(dk, workspace + call->workspace.dk, c.geometry.dkv_f32) : dk;
  const ls_tensor to_v = c.stage_dkv ? staged(dv, workspace + call->workspace.dv, c.geometry.dkv_f32) : dv;
  // Keys that no query sees have gradients of zero, which the plan does not write.
  if (!c.covers_keys) {
    if (!args.accumulate_dkv) {
      LS_TRY(zero(exec, args.dk));
      LS_TRY(zero(exec, args.dv));
    }
    if (c.stage_dkv) {
      LS_TRY(zero(exec, to_k));
      LS_TRY(zero(exec, to_v));
    }
  }
  call->point(ports.dout, args.dout.data);
  call->point(ports.dq, to_q.data);
  call->point(ports.dk, to_k.data);
  call->point(ports.dv, to_v.data);
  LS_TRY(call->run(exec, "attention_backward"));
  if (c.stage_dq) LS_TRY(add(exec, to_q, args.dq, args.accumulate_dq != 0));
  if (c.stage_dkv) {
    LS_TRY(add(exec, to_k, dk, args.accumulate_dkv != 0));
    LS_TRY(add(exec, to_v, dv, args.accumulate_dkv != 0));
  }
  return LS_OK;
}

}  // namespace

bool cudnn_attention(const ls_exec *exec, const ls_attention_args *args, ls_status *status) {
  if (device_of(exec)->attention == AttentionEngine::native || args->softcap != 0) return false;
  Call call;
  if (const std::string reason = call.prepare(exec, *args, false, {&args->q, &args->k, &args->v, &args->o});
      !reason.empty())
    return !falls_back(exec, "attention", reason, status);
  *status = run_forward(exec, *args, &call);
  return true;
}

bool cudnn_attention_backward(const ls_exec *exec, const ls_attention_backward_args *args, ls_status *status) {
  if (device_of(exec)->attention == AttentionEngine::native || args->softcap != 0) return false;
  Call call;
  if (const std::string reason = call.prepare(
          exec, *args, true, {&args->q, &args->k, &args->v, &args->o, &args->dout, &args->dq, &args->dk, &args->dv});
      !reason.empty())
    return !falls_back(exec, "attention_backward", reason, status);
  *status = run_backward(exec, *args, &call);
  return true;
}

}  // namespace longseq::cuda

// Forcing cuDNN where there is none fails here, not in the middle of a step.
extern "C" __attribute__((visibility("default"))) ls_status ls_backend_attention(void *device, const char *engine,
                                                                                 char *error, size_t error_size) {
  using namespace longseq;
  auto *const state = static_cast<cuda::DeviceState *>(device);
  if (!parse_attention_engine(engine, &state->attention)) return LS_INVALID_ARGUMENT;
  if (state->attention != AttentionEngine::cudnn) return LS_OK;
  const cuda::Engine &cudnn = cuda::engine_of(state);
  if (cudnn.device) return LS_OK;
  snprintf(error, error_size, "attention: cudnn cannot be had: %s", cudnn.error.c_str());
  return LS_UNSUPPORTED;
}
