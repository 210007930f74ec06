// Token losses of a tile of logits and their gradient: a block a row, one sweep with a running maximum for the sum of
// exponentials and, where the gradient is wanted, a second one.
//
// Bytes of a logit of b bytes: b read, and the gradient written. What the second sweep needs is held: 256 bytes a
// thread in registers, then what shared memory takes (352 KiB of a row on Hopper: all of a bfloat16 row of 128,256, 70%
// of a float32 one); the rest, read last by the first sweep, is what the second reads first, from the second cache:
// some 20 MB of all blocks at work. FLOPs: some 6 an element a sweep, one of them an exponential.
#include "elementwise.h"
#include "entries.h"
#include "fault.h"
#include "reduce.h"
#include "tensor_core.h"  // exp2_fast

namespace longseq::cuda {

namespace {

constexpr int32_t kIgnored = -100;
constexpr int kTurns = 16;  // vectors that a thread holds in registers
constexpr float kLog2E = 1.4426950408889634f;

struct Max {
  LS_DEVICE float operator()(float a, float b) const { return fmaxf(a, b); }
};

// exp(x), to 2 ulp and half an ulp of x: the error of small terms, where it is largest, does not count in a sum with 1.
LS_DEVICE float exponential(float x) { return exp2_fast(x * kLog2E); }

// The sum of exponentials of what a thread has seen, over its largest value.
struct Running {
  float top = -INFINITY, sum = 0;

  template <int kCount>
  LS_DEVICE void take(const float (&values)[kCount]) {
    float most = top;
#pragma unroll
    for (int i = 0; i < kCount; ++i) most = fmaxf(most, values[i]);
    if (most > top) {
      sum *= exponential(top - most);
      top = most;
    }
    // While all was -inf there is nothing to add but NaNs.
    const float base = top == -INFINITY ? 0.0f : top;
#pragma unroll
    for (int i = 0; i < kCount; ++i) sum += exponential(values[i] - base);
  }
};

// 16 bytes of logits as words.
using Held = Pack<uint32_t, 4>;

template <typename X>
LS_DEVICE Held nothing() {
  const uint32_t lowest = sizeof(X) == 4 ? 0xff800000u : 0xff80ff80u;  // -inf
  return {{lowest, lowest, lowest, lowest}};
}

// A row's vectors in turns of kThreads: the first kTurns stay in registers, the next shared_turns in shared memory,
// where each thread reads only what it wrote; the rest of the row is walked in groups of eight.
template <int kThreads, typename X, typename Y>
__global__ void __launch_bounds__(kThreads, 512 / kThreads)
    cross_entropy_kernel(const X *logits, int64_t logits_stride, bool logits_vector, const int32_t *labels,
                         int64_t label_stride, double *losses, Y *dlogits, int64_t dlogits_stride, bool dlogits_vector,
                         float *lse, int64_t lse_stride, double scale, int64_t rows, int64_t width, int shared_turns,
                         Fault *fault) {
  constexpr int kSize = Vector<X>::kSize;
  constexpr int kBatch = 16 / kSize;  // vectors that share one look at the maximum
  LS_DYNAMIC_SHARED(Held, shared);
  const int thread = static_cast<int>(threadIdx.x);
  // Vectors that are held, and where the rest begins.
  const int64_t most = static_cast<int64_t>(kTurns + shared_turns) * kThreads;
  const int64_t vectors = !logits_vector ? 0 : width / kSize < most ? width / kSize : most, rest = vectors * kSize;
  // A row's label is asked for with the row before: what follows hangs on it.
  int32_t next_label = labels[static_cast<int64_t>(blockIdx.x) * label_stride];
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const int32_t label = next_label;
    if (row + gridDim.x < rows) next_label = labels[(row + gridDim.x) * label_stride];
    const bool valid = label >= 0 && label < width;
    const X *const in = logits + row * logits_stride;
    Y *const out = dlogits == nullptr ? nullptr : dlogits + row * dlogits_stride;
    if (thread == 0) {
      losses[row] = 0;
      if (!valid && label != kIgnored) note_fault(fault, kCrossEntropyFault, row, label, width);
    }
    const auto clear = [&] {
      const float zeros[kGroup] = {};
      for (int64_t i = static_cast<int64_t>(thread) * kGroup; out != nullptr && i < width; i += kThreads * kGroup)
        store_typed(out + i, zeros, 1, dlogits_vector, static_cast<int>(width - i < kGroup ? width - i : kGroup));
    };
    if (!valid && lse == nullptr) {
      clear();
      continue;
    }
    // The label's logit is read before its place may be overwritten: barriers lie between.
    const float at_label = valid ? to_float(in[label]) : 0.0f;
    Held held[kTurns];
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const int64_t v = turn * kThreads + thread;
      held[turn] = v < vectors ? load_passing(in + v * kSize) : nothing<X>();
    }
    Running running;
#pragma unroll
    for (int turn = 0; turn < kTurns; turn += kBatch) {
      float values[kBatch * kSize];
#pragma unroll
      for (int i = 0; i < kBatch * kSize; ++i) values[i] = value_of<X>(held[turn + i / kSize].at, i % kSize);
      running.take(values);
    }
    for (int turn = 0; turn < shared_turns; turn += kBatch) {
      Held batch[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        const int64_t v = (kTurns + turn + b) * kThreads + thread;
        batch[b] = turn + b < shared_turns && v < vectors ? load_passing(in + v * kSize) : nothing<X>();
      }
      float values[kBatch * kSize];
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        if (turn + b < shared_turns) shared[(turn + b) * kThreads + thread] = batch[b];
#pragma unroll
        for (int i = 0; i < kSize; ++i) values[b * kSize + i] = value_of<X>(batch[b].at, i);
      }
      running.take(values);
    }
    for (int64_t i = rest + static_cast<int64_t>(thread) * kGroup; i < width; i += kThreads * kGroup) {
      const int n = static_cast<int>(width - i < kGroup ? width - i : kGroup);
      float values[kGroup];
      load_typed(values, in + i, 1, logits_vector, n);
#pragma unroll
      for (int j = 0; j < kGroup; ++j)
        if (j >= n) values[j] = -INFINITY;
      running.take(values);
    }
    const float highest = block_reduce<kThreads>(running.top, Max{});
    const float share = running.top == -INFINITY ? 1.0f : exponential(running.top - highest);
    double sum = block_reduce<kThreads>(static_cast<double>(running.sum * share), Add{});
    if (highest == -INFINITY) sum = NAN;
    if (thread == 0) {
      const double log_sum = log(sum);
      if (lse != nullptr) lse[row * lse_stride] = static_cast<float>(static_cast<double>(highest) + log_sum);
      // (max - logit) first: both are of a size, and the sum's logarithm is small beside them.
      if (valid) losses[row] = (static_cast<double>(highest) - static_cast<double>(at_label)) + log_sum;
    }
    if (!valid) clear();
    if (out == nullptr || !valid) continue;
    const float factor = static_cast<float>(scale / sum);
    const auto gradient = [&](float x) { return exponential(x - highest) * factor; };
    for (int64_t i = rest + static_cast<int64_t>(thread) * kGroup; i < width; i += kThreads * kGroup) {
      const int n = static_cast<int>(width - i < kGroup ? width - i : kGroup);
      float values[kGroup];
      load_typed(values, in + i, 1, logits_vector, n);
#pragma unroll
      for (int j = 0; j < kGroup; ++j) values[j] = gradient(values[j]);
      store_typed(out + i, values, 1, dlogits_vector, n);
    }
    const auto put = [&](int64_t v, const Held &x) {
      Y *const to = out + v * kSize;
      if (!dlogits_vector) {
#pragma unroll
        for (int i = 0; i < kSize; ++i) to[i] = from_float<Y>(gradient(value_of<X>(x.at, i)));
        return;
      }
      if constexpr (sizeof(Y) == 2) {
        Pack<uint32_t, kSize / 2> result;
#pragma unroll
        for (int i = 0; i < kSize / 2; ++i)
          result.at[i] = bf16_pair(gradient(value_of<X>(x.at, 2 * i)), gradient(value_of<X>(x.at, 2 * i + 1)));
        store_pack<kSize / 2>(reinterpret_cast<uint32_t *>(to), result);
      } else {
#pragma unroll
        for (int i = 0; i < kSize; i += 4) {
          Pack<float, 4> result;
#pragma unroll
          for (int j = 0; j < 4; ++j) result.at[j] = gradient(value_of<X>(x.at, i + j));
          store_pack<4>(to + i, result);
        }
      }
    };
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const int64_t v = turn * kThreads + thread;
      if (v < vectors) put(v, held[turn]);
    }
    for (int turn = 0; turn < shared_turns; ++turn) {
      const int64_t v = (kTurns + turn) * kThreads + thread;
      if (v < vectors) put(v, shared[turn * kThreads + thread]);
    }
    // The label's own gradient is exact where softmax is nearly 1: by the thread that wrote its place before.
    const int64_t place = label < rest ? label / kSize : (label - rest) / kGroup;
    if (thread == static_cast<int>(place % kThreads))
      out[label] =
          from_float<Y>(static_cast<float>((static_cast<double>(exponential(at_label - highest)) / sum - 1.0) * scale));
  }
}

// *loss += the row losses, in an order that depends on their number alone. One block.
__global__ void __launch_bounds__(1024) loss_kernel(const double *losses, int64_t rows, double *loss) {
  double sum = 0;
  for (int64_t row = threadIdx.x; row < rows; row += 1024) sum += losses[row];
  sum = block_reduce<1024>(sum, Add{});
  if (threadIdx.x == 0) *loss += sum;
}

bool vectors(const ls_tensor &x) { return x.present && Rows(x, 1).aligned(); }

}  // namespace

// Workspace: the row losses, float64, where they are not asked for.
ls_status cross_entropy(const ls_exec *exec, const ls_cross_entropy_args *args) {
  const ls_tensor &logits = args->logits, &dlogits = args->dlogits;
  const int64_t rows = logits.sizes[0], width = logits.sizes[1];
  if (rows == 0) return LS_OK;
  double *const losses = static_cast<double *>(args->losses.present ? args->losses.data : exec->workspace);
  Fault *const fault = fault_of(exec);
  LS_TRY(dispatch_float(logits.dtype, [&](auto x_tag) {
    using X = typename decltype(x_tag)::type;
    return dispatch_float(dlogits.present ? dlogits.dtype : logits.dtype, [&](auto y_tag) {
      using Y = typename decltype(y_tag)::type;
      const auto launch = [&](auto kernel, int threads, unsigned blocks, int64_t shared_turns) {
        return LS_LAUNCH(kernel, blocks, threads, static_cast<size_t>(shared_turns * threads * 16), exec,
                         static_cast<const X *>(logits.data), logits.strides[0], vectors(logits),
                         static_cast<const int32_t *>(args->labels.data), args->labels.strides[0], losses,
                         static_cast<Y *>(dlogits.present ? dlogits.data : nullptr), dlogits.strides[0],
                         vectors(dlogits), static_cast<float *>(args->lse.present ? args->lse.data : nullptr),
                         args->lse.strides[0], args->scale, rows, width, static_cast<int>(shared_turns), fault);
      };
      const int64_t row_vectors = width / Vector<X>::kSize;
      if (row_vectors <= 128 * kTurns) return launch(cross_entropy_kernel<128, X, Y>, 128, blocks_for(rows, 1), 0);
      if (row_vectors <= 256 * kTurns) return launch(cross_entropy_kernel<256, X, Y>, 256, blocks_for(rows, 1), 0);
      // One block has a multiprocessor to itself and goes on to its next row while the last one is still being written.
      const int64_t wanted = ceil_div(row_vectors, 512) - kTurns, most = (most_shared(exec) - 2048) / (512 * 16);
      const int64_t turns = !dlogits.present ? 0 : wanted < most ? wanted : most;
      const int64_t blocks = rows < multiprocessors(exec) ? rows : multiprocessors(exec);
      return launch(cross_entropy_kernel<512, X, Y>, 512, static_cast<unsigned>(blocks), turns);
    });
  }));
  return LS_LAUNCH(loss_kernel, 1, 1024, 0, exec, losses, rows, static_cast<double *>(args->loss.data));
}

}  // namespace longseq::cuda
