// Runs every op once or more under AddressSanitizer and UndefinedBehaviorSanitizer: operands in blocks of exactly their
// size, outputs full of NaN, odd sizes. Prints what is wrong; exits 0 where nothing is.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include "runtime/op.h"
#include "runtime/registry.h"

extern "C" const ls_backend *ls_backend_open(int32_t api_version, char *error, size_t error_size);

// Op descriptions live as long as the process: they are no leaks.
extern "C" const char *__asan_default_options() { return "detect_leaks=0"; }

// What the runtime asks of the CPU backend is for tensors on the host: there are none here.
namespace longseq::cpu {
const ls_backend *backend() { return nullptr; }
}  // namespace longseq::cpu
// What devices ask of the registry of libraries: the table of this one has no engine to choose.
namespace longseq {
AttentionOption attention_option(const ls_backend *) { return nullptr; }
const ls_comm_table *comm_table_of(const ls_backend *) { return nullptr; }
}  // namespace longseq

namespace {

using namespace longseq;

const ls_backend *table = nullptr;
void *device = nullptr;
int failures = 0, runs = 0;
uint32_t state = 1;

float next() {
  state = state * 1664525u + 1013904223u;
  return static_cast<float>(state >> 8) / 8388608.0f - 1.0f;
}

uint16_t bf16_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// The blocks of one case.
std::vector<std::unique_ptr<void, void (*)(void *)>> blocks;

void put(const ls_tensor &t, int64_t i, float value) {
  switch (t.dtype) {
    case LS_F32:
      static_cast<float *>(t.data)[i] = value;
      break;
    case LS_BF16:
      static_cast<uint16_t *>(t.data)[i] = bf16_bits(value);
      break;
    case LS_F64:
      static_cast<double *>(t.data)[i] = value;
      break;
    case LS_I32:
      static_cast<int32_t *>(t.data)[i] = static_cast<int32_t>(value);
      break;
    case LS_I64:
      static_cast<int64_t *>(t.data)[i] = static_cast<int64_t>(value);
      break;
    default:
      static_cast<uint8_t *>(t.data)[i] = static_cast<uint8_t>(value);
  }
}

bool is_nan(const ls_tensor &t, int64_t i) {
  if (t.dtype == LS_F32) return std::isnan(static_cast<float *>(t.data)[i]);
  if (t.dtype == LS_F64) return std::isnan(static_cast<double *>(t.data)[i]);
  if (t.dtype == LS_BF16) return (static_cast<uint16_t *>(t.data)[i] & 0x7fff) > 0x7f80;
  return false;
}

ls_tensor make(int32_t dtype, std::initializer_list<int64_t> sizes) {
  ls_tensor t{};
  t.present = 1;
  t.dtype = dtype;
  for (int64_t size : sizes) t.sizes[t.ndim++] = size;
  int64_t count = 1;
  for (int32_t d = t.ndim - 1; d >= 0; --d) {
    t.strides[d] = count;
    count *= t.sizes[d];
  }
  t.data = std::malloc(static_cast<size_t>(count * dtype_bytes(dtype)));
  blocks.emplace_back(t.data, std::free);
  return t;
}
ls_tensor input(int32_t dtype, std::initializer_list<int64_t> sizes) {
  const ls_tensor t = make(dtype, sizes);
  for (int64_t i = 0; i < elements(t); ++i) put(t, i, next());
  return t;
}
ls_tensor output(int32_t dtype, std::initializer_list<int64_t> sizes) {
  const ls_tensor t = make(dtype, sizes);
  for (int64_t i = 0; i < elements(t); ++i) put(t, i, dtype == LS_I32 || dtype == LS_I64 ? 0 : NAN);
  return t;
}
ls_tensor full(int32_t dtype, std::initializer_list<int64_t> sizes, float value) {
  const ls_tensor t = make(dtype, sizes);
  for (int64_t i = 0; i < elements(t); ++i) put(t, i, value);
  return t;
}
ls_tensor numbers(int32_t dtype, int64_t count, int64_t below) {
  const ls_tensor t = make(dtype, {count});
  for (int64_t i = 0; i < count; ++i) put(t, i, static_cast<float>(i * 7 % below));
  return t;
}

// Runs an op of that name and looks for NaNs in `outputs`.
template <typename Args>
void run(const char *name, const Args &args, std::initializer_list<ls_tensor> outputs) {
  const OpDesc *op = find_op(name);
  char message[512] = "";
  ls_exec exec{};
  exec.device = device;
  exec.error = message;
  exec.error_size = sizeof message;
  op->check(&args);
  std::unique_ptr<void, void (*)(void *)> workspace(nullptr, std::free);
  if (op->workspace) exec.workspace_bytes = op->workspace(&args, Profile{true});
  if (exec.workspace_bytes > 0) {
    // As the allocator's blocks lie.
    void *memory = nullptr;
    if (posix_memalign(&memory, 256, static_cast<size_t>(exec.workspace_bytes)) != 0) std::abort();
    std::memset(memory, 0xff, static_cast<size_t>(exec.workspace_bytes));
    workspace.reset(memory);
    exec.workspace = memory;
  }
  ++runs;
  if (op->call(table, &exec, &args) != LS_OK) {
    std::printf("%s failed: %s\n", name, message);
    ++failures;
  }
  int at = 0;
  for (const ls_tensor &t : outputs) {
    for (int64_t i = 0; i < elements(t); ++i)
      if (is_nan(t, i)) {
        std::printf("%s: element %lld of output %d is NaN\n", name, static_cast<long long>(i), at);
        ++failures;
        break;
      }
    ++at;
  }
}

void cases(int32_t dtype, int64_t rows, int64_t width) {
  const ls_tensor x = input(dtype, {rows, width}), other = input(dtype, {rows, width}), w = input(dtype, {width});
  ls_tensor y = output(dtype, {rows, width}), dx = output(dtype, {rows, width});
  const ls_tensor none{};
  ls_tensor dw = full(LS_F32, {width}, 0), db = full(LS_F32, {width}, 0);
  run("rms_norm", ls_rms_norm_args{x, w, y, 1e-5}, {y});
  run("rms_norm_backward", ls_rms_norm_backward_args{x, w, other, dx, dw, 1e-5, 0}, {dx, dw});
  run("layer_norm", ls_layer_norm_args{x, w, y, w, 1e-5}, {y});
  run("layer_norm_backward", ls_layer_norm_backward_args{x, w, other, dx, dw, db, 1e-5, 1}, {dx, dw, db});
  y = output(dtype, {rows, width});
  dx = output(dtype, {rows, width});
  run("swiglu", ls_swiglu_args{x, other, y, LS_UNARY_SILU}, {y});
  ls_tensor dup = output(dtype, {rows, width});
  run("swiglu_backward", ls_swiglu_backward_args{x, other, y, dx, dup, LS_UNARY_GELU}, {dx, dup});
  {
    const int64_t heads = 2, size = width / heads;
    const ls_tensor o = input(dtype, {rows, heads, size}), part = input(dtype, {rows, heads, size});
    ls_tensor lse = full(LS_F32, {heads, rows}, 0.5);
    const ls_tensor part_lse = full(LS_F32, {heads, rows}, 1);
    run("attention_merge", ls_attention_merge_args{o, lse, part, part_lse}, {o, lse});
  }
  for (int kind = 0; kind < LS_UNARY_COUNT; ++kind) {
    const bool root = kind == LS_UNARY_LOG || kind == LS_UNARY_SQRT || kind == LS_UNARY_RSQRT;
    const ls_tensor from = root ? full(dtype, {rows, width}, 2) : x;
    run("unary", ls_unary_args{from, y, kind}, {y});
    run("unary_backward", ls_unary_backward_args{from, other, dx, kind}, {dx});
  }
  for (int kind = 0; kind < LS_BINARY_COUNT; ++kind)
    run("binary", ls_binary_args{x, kind == LS_BINARY_DIV ? full(dtype, {rows, width}, 3) : other, y, kind}, {y});
  run("axpby", ls_axpby_args{x, y, none, 2, 0.5}, {y});
  ls_tensor turned = output(dtype, {width, rows});
  std::swap(turned.sizes[0], turned.sizes[1]);
  std::swap(turned.strides[0], turned.strides[1]);
  run("copy", ls_copy_args{x, turned}, {});
  run("copy", ls_copy_args{x, output(LS_F64, {rows, width})}, {});
  run("fill", ls_fill_args{y, 3}, {y});
  run("sum", ls_sum_args{x, output(LS_F32, {1, width}), 1, 0}, {});
  run("sum", ls_sum_args{x, output(dtype, {rows, 1}), 1, 0}, {});
  run("sum", ls_sum_args{x, output(LS_F64, {1, 1}), 1, 0}, {});
  run("norm_squared", ls_norm_squared_args{x, full(LS_F64, {}, 0)}, {});
  run("argmax", ls_argmax_args{x, output(LS_I32, {rows})}, {});
  const ls_tensor table_ = input(dtype, {19, width}), ids = numbers(LS_I32, rows, 19);
  run("embedding", ls_embedding_args{ids, table_, y}, {y});
  run("embedding_backward", ls_embedding_backward_args{ids, x, full(LS_F32, {19, width}, 0)}, {});
  const ls_tensor labels = numbers(LS_I32, rows, width), loss = full(LS_F64, {}, 0);
  run("cross_entropy", ls_cross_entropy_args{x, labels, loss, dx, output(LS_F32, {rows}), output(LS_F64, {rows}), 1},
      {dx, loss});
  const ls_tensor step = full(LS_I64, {}, 3);
  run("adamw_advance", ls_adamw_advance_args{step, none}, {});
  const ls_tensor p = input(dtype, {rows, width}), m = full(LS_F32, {rows, width}, 0),
                  v = full(LS_F32, {rows, width}, 0), master = input(LS_F32, {rows, width});
  run("adamw", ls_adamw_args{p, x, m, v, step, master, none, none, 0.1, 0.9, 0.95, 1e-8, 0.1}, {p, m, v, master});
  const ls_tensor norm = output(LS_F64, {}), factor = output(LS_F64, {}), finite = output(LS_I64, {});
  run("clip_factor", ls_clip_factor_args{full(LS_F64, {}, 4), norm, factor, finite, none, 1}, {norm, factor});
  run("random", ls_random_args{y, 0, 1, 7, 8, 1}, {y});
  run("random", ls_random_args{y, 0, 1, -7, 4, 0}, {y});
  const ls_tensor row_numbers = numbers(LS_I64, rows, 1000);
  run("dropout", ls_dropout_args{x, row_numbers, y, 0.3, 7, 9, 5, 0}, {y});
  run("dropout", ls_dropout_args{x, row_numbers, y, 0.3, 7, 9, 0, 1}, {y});
  const ls_tensor packed = make(LS_U8, {rows, width + 2 * ((width + 63) / 64)});
  for (int format = 0; format < LS_BLOCK_FORMAT_COUNT; ++format) {
    run("quantize", ls_quantize_args{x, packed, format}, {});
    run("dequantize", ls_dequantize_args{packed, y, format}, {y});
  }
  const ls_tensor b = input(dtype, {width, 11}), c = output(dtype, {rows, 11});
  run("matmul", ls_matmul_args{x, b, c, input(dtype, {11}), 1, 0}, {c});
  blocks.clear();
}

// Rows that no register file takes.
void long_rows(int32_t dtype) {
  const int64_t rows = 3, width = dtype == LS_F32 ? 39'997 : 80'004;
  const ls_tensor x = input(dtype, {rows, width}), dx = output(LS_BF16, {rows, width}), loss = full(LS_F64, {}, 0);
  run("cross_entropy", ls_cross_entropy_args{x, numbers(LS_I32, rows, width), loss, dx, {}, {}, 1}, {dx, loss});
  run("cross_entropy", ls_cross_entropy_args{x, numbers(LS_I32, rows, width), loss, x, {}, {}, 1}, {x, loss});
  blocks.clear();
}

void heads(int32_t dtype, int64_t queries, int64_t keys, int64_t size, int64_t window) {
  const ls_tensor q = input(dtype, {queries, 4, size}), k = input(dtype, {keys, 2, size}),
                  v = input(dtype, {keys, 2, size});
  ls_tensor o = output(dtype, {queries, 4, size}), lse = output(LS_F32, {4, queries});
  ls_attention_args args{};
  args.q = q, args.k = k, args.v = v, args.o = o, args.lse = lse;
  args.scale = 0.2, args.causal = 1, args.window = window, args.q_offset = keys - queries, args.documents = 1;
  run("attention", args, {o, lse});
  ls_attention_backward_args back{};
  back.q = q, back.k = k, back.v = v, back.o = o, back.lse = lse;
  back.dout = input(dtype, {queries, 4, size});
  back.dq = output(dtype, {queries, 4, size});
  back.dk = output(dtype, {keys, 2, size});
  back.dv = output(dtype, {keys, 2, size});
  back.scale = 0.2, back.causal = 1, back.window = window, back.q_offset = keys - queries, back.documents = 1;
  back.deterministic = 1;
  run("attention_backward", back, {back.dq, back.dk, back.dv});
  const ls_tensor turned = output(dtype, {queries, 4, size});
  run("rope", ls_rope_args{q, numbers(LS_I64, queries, 1000), input(LS_F32, {size / 2}), turned, 1, 0}, {turned});
  blocks.clear();
}

// What a layer of experts runs: tokens to their experts, products of their rows, and the way back.
void mixture(int32_t dtype, int64_t tokens, int64_t experts, int64_t k, int64_t width) {
  const int64_t rows = tokens * k, inner = width + 9;
  const ls_tensor logits = input(LS_F32, {tokens, experts}), probs = output(LS_F32, {tokens, experts});
  const ls_tensor chosen = output(LS_I32, {tokens, k}), slots = output(LS_I32, {tokens, k});
  const ls_tensor owners = output(LS_I32, {rows}), weights = output(LS_F32, {rows});
  const ls_tensor offsets = output(LS_I64, {experts + 1}), load = full(LS_F64, {2, experts}, 0);
  run("route", ls_route_args{logits, probs, chosen, slots, owners, weights, offsets, load, 1, tokens - 1},
      {probs, weights, load});
  const ls_tensor x = input(dtype, {tokens, width}), gathered = output(dtype, {rows, width});
  run("embedding", ls_embedding_args{owners, x, gathered}, {gathered});
  ls_tensor up = input(dtype, {experts, inner, width});
  const ls_tensor made = output(dtype, {rows, inner});
  std::swap(up.sizes[1], up.sizes[2]);
  std::swap(up.strides[1], up.strides[2]);
  run("grouped_matmul", ls_grouped_matmul_args{gathered, up, made, offsets, 0}, {made});
  ls_tensor across = gathered;
  std::swap(across.sizes[0], across.sizes[1]);
  std::swap(across.strides[0], across.strides[1]);
  const ls_tensor dup = full(LS_F32, {experts, width, inner}, 0);
  run("grouped_matmul", ls_grouped_matmul_args{across, made, dup, offsets, 1}, {dup});
  const ls_tensor dots = output(LS_F32, {rows});
  run("row_dot", ls_row_dot_args{gathered, gathered, dots}, {dots});
  const ls_tensor y = output(dtype, {tokens, width});
  run("combine", ls_combine_args{gathered, slots, weights, y, 0}, {y});
  run("combine", ls_combine_args{gathered, slots, {}, y, 1}, {y});
  const ls_tensor share = full(LS_F64, {experts}, 0.5), factor = full(LS_F64, {}, 2);
  run("route_backward", ls_route_backward_args{probs, chosen, slots, dots, share, factor, probs, 1, tokens}, {probs});
  blocks.clear();
}

}  // namespace

int main() {
  char message[512] = "";
  table = ls_backend_open(LS_BACKEND_API_VERSION, message, sizeof message);
  ls_device_info info{};
  if (!table || table->device_open(0, 2, &device, &info, message, sizeof message) != LS_OK) {
    std::printf("the emulated backend cannot be opened: %s\n", message);
    return 1;
  }
  try {
    for (const int32_t dtype : {LS_F32, LS_BF16}) {
      for (const int64_t width : {1, 7, 8, 65, 1025}) cases(dtype, 13, width);
      cases(dtype, 300, 24);
      for (const int64_t width : {1288, 2056, 4608}) cases(dtype, 2, width);
      long_rows(dtype);
      for (const int64_t size : {16, 64, 80, 128, 256}) heads(dtype, 70, 90, size, 0);
      heads(dtype, 33, 33, 24, 9);
      mixture(dtype, 13, 5, 2, 7);
      mixture(dtype, 300, 3, 1, 72);
      mixture(dtype, 9, 65, 8, 33);
    }
  } catch (const Error &error) {
    std::printf("%s\n", error.what());
    ++failures;
  }
  table->device_close(device);
  std::printf("%d ops run under the sanitizers, %d wrong\n", runs, failures);
  return failures == 0 ? 0 : 1;
}
