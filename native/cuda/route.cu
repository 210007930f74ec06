// Which experts each token goes to: softmax of its logits, the k largest, all rows sorted by expert; and the backward.
//
// Bytes: logits and probs once each way, the sort of the rows (sort.cu), 16 a row to put it in its place. A warp takes
// a token; its lanes take every 32nd expert. Sums of probs are float64, by blocks of 256 tokens and then in their
// order.
#include "elementwise.h"
#include "entries.h"
#include "reduce.h"
#include "sort.h"

namespace longseq::cuda {

namespace {

constexpr int kTokens = 256;  // of a block of sums of probs

struct Greater {
  template <typename T>
  LS_DEVICE T operator()(T a, T b) const {
    return a > b ? a : b;
  }
};

// Probs in an order with no ties: the larger one, of equal ones the lower expert. A NaN is below all numbers.
LS_DEVICE uint64_t rank_of(float prob, int64_t expert) {
  const uint64_t value = prob == prob ? static_cast<uint64_t>(as_bits(prob)) + 1 : 0;
  return value << 32 | (0xffffffffu - static_cast<uint32_t>(expert));
}

__global__ void __launch_bounds__(256)
    choose_kernel(const float *logits, int64_t logits_stride, float *probs, int64_t probs_stride, int32_t *experts,
                  int64_t tokens, int64_t count, int64_t k) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  for (int64_t t = static_cast<int64_t>(blockIdx.x) * 8 + threadIdx.x / 32; t < tokens;
       t += static_cast<int64_t>(gridDim.x) * 8) {
    const float *const in = logits + t * logits_stride;
    float *const out = probs + t * probs_stride;
    float top = -INFINITY;
    for (int64_t e = lane; e < count; e += 32) top = fmaxf(top, in[e]);
    top = warp_reduce(top, Greater{});
    double sum = 0;
    for (int64_t e = lane; e < count; e += 32) {
      const float value = expf(in[e] - top);
      out[e] = value;
      sum += static_cast<double>(value);
    }
    sum = warp_reduce(sum, Add{});
    for (int64_t e = lane; e < count; e += 32) out[e] = static_cast<float>(static_cast<double>(out[e]) / sum);
    uint64_t last = ~uint64_t{0};
    for (int64_t j = 0; j < k; ++j) {
      uint64_t best = 0;
      for (int64_t e = lane; e < count; e += 32) {
        const uint64_t rank = rank_of(out[e], e);
        if (rank < last && rank > best) best = rank;
      }
      last = warp_reduce(best, Greater{});
      if (lane == 0) experts[t * k + j] = static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(last));
    }
  }
}

// The sum of a token's chosen probs, in their order.
LS_DEVICE double chosen_sum(const float *probs, const int32_t *experts, int64_t k) {
  double sum = 0;
  for (int64_t j = 0; j < k; ++j) sum += static_cast<double>(probs[experts[j]]);
  return sum;
}

struct Places {
  int32_t *slots, *tokens;
  float *weights;
  int64_t *offsets;
};

// Row i of the sorted list to its place; where an expert begins, its offset.
__global__ void __launch_bounds__(256)
    place_kernel(const uint32_t *keys, const uint32_t *places, const float *probs, int64_t probs_stride,
                 const int32_t *experts, int64_t rows, int64_t count, int64_t k, bool normalize, Places to) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x; i < rows;
       i += static_cast<int64_t>(gridDim.x) * 256) {
    const int64_t row = places[i], t = row / k, expert = keys[i];
    to.slots[row] = static_cast<int32_t>(i);
    to.tokens[i] = static_cast<int32_t>(t);
    const float *const own = probs + t * probs_stride;
    const double sum = normalize ? chosen_sum(own, experts + t * k, k) : 1.0;
    to.weights[i] = static_cast<float>(static_cast<double>(own[expert]) / sum);
    for (int64_t e = i == 0 ? 0 : static_cast<int64_t>(keys[i - 1]) + 1; e <= expert; ++e) to.offsets[e] = i;
    if (i == rows - 1)
      for (int64_t e = expert + 1; e <= count; ++e) to.offsets[e] = rows;
  }
}

__global__ void no_rows_kernel(int64_t *offsets, int64_t count) {
  for (int64_t e = threadIdx.x; e <= count; e += 32) offsets[e] = 0;
}

// sums[block][e] of the probs of a block's tokens.
__global__ void __launch_bounds__(256)
    sum_probs_kernel(const float *probs, int64_t probs_stride, int64_t counted, int64_t count, double *sums) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kTokens;
  const int64_t end = first + kTokens < counted ? first + kTokens : counted;
  for (int64_t e = threadIdx.x; e < count; e += 256) {
    double sum = 0;
    for (int64_t t = first; t < end; ++t) sum += static_cast<double>(probs[t * probs_stride + e]);
    sums[blockIdx.x * count + e] = sum;
  }
}

// load [2, E] += the counted tokens of each expert, and the sums of its probs. Places of an expert's rows ascend.
__global__ void __launch_bounds__(256) load_kernel(const uint32_t *places, const int64_t *offsets, const double *sums,
                                                   int64_t blocks, int64_t count, int64_t counted_rows, double *load) {
  const int64_t e = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (e >= count) return;
  int64_t low = offsets[e], high = offsets[e + 1];
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (static_cast<int64_t>(places[middle]) < counted_rows)
      low = middle + 1;
    else
      high = middle;
  }
  load[e] += static_cast<double>(low - offsets[e]);
  double sum = 0;
  for (int64_t block = 0; block < blocks; ++block) sum += sums[block * count + e];
  load[count + e] += sum;
}

struct Chosen {
  const float *probs;
  const int32_t *experts, *slots;
  const float *dweights;
  int64_t k;
  double sum, mean;

  // The gradient of a chosen prob p: of p, or of p / sum.
  LS_DEVICE double gradient(int64_t j) const { return (static_cast<double>(dweights[slots[j]]) - mean) / sum; }
};

__global__ void __launch_bounds__(256)
    route_backward_kernel(const float *probs, int64_t probs_stride, const int32_t *experts, const int32_t *slots,
                          const float *dweights, const double *share, const double *factor, float *dlogits,
                          int64_t dlogits_stride, int64_t tokens, int64_t count, int64_t k, int64_t counted,
                          bool normalize) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  for (int64_t t = static_cast<int64_t>(blockIdx.x) * 8 + threadIdx.x / 32; t < tokens;
       t += static_cast<int64_t>(gridDim.x) * 8) {
    Chosen own{probs + t * probs_stride, experts + t * k, slots + t * k, dweights, k, 1, 0};
    if (normalize) {
      own.sum = chosen_sum(own.probs, own.experts, k);
      double mean = 0;
      for (int64_t j = 0; j < k; ++j)
        mean +=
            static_cast<double>(dweights[own.slots[j]]) * (static_cast<double>(own.probs[own.experts[j]]) / own.sum);
      own.mean = mean;
    }
    double dot = 0;
    for (int64_t j = 0; j < k; ++j) dot += own.gradient(j) * static_cast<double>(own.probs[own.experts[j]]);
    const bool counts = share != nullptr && t < counted;
    if (counts) {
      double part = 0;
      for (int64_t e = lane; e < count; e += 32) part += *factor * share[e] * static_cast<double>(own.probs[e]);
      dot += warp_reduce(part, Add{});
    }
    // The results may take the place of the probs, which other lanes have read by now.
    __syncwarp();
    for (int64_t e = lane; e < count; e += 32) {
      double dprob = counts ? *factor * share[e] : 0.0;
      for (int64_t j = 0; j < k; ++j)
        if (own.experts[j] == e) dprob += own.gradient(j);
      dlogits[t * dlogits_stride + e] = static_cast<float>(static_cast<double>(own.probs[e]) * (dprob - dot));
    }
  }
}

}  // namespace

ls_status route(const ls_exec *exec, const ls_route_args *args) {
  const int64_t tokens = args->probs.sizes[0], count = args->probs.sizes[1], k = args->experts.sizes[1];
  const int64_t rows = tokens * k;
  const Places to{static_cast<int32_t *>(args->slots.data), static_cast<int32_t *>(args->tokens.data),
                  static_cast<float *>(args->weights.data), static_cast<int64_t *>(args->offsets.data)};
  if (rows == 0) return LS_LAUNCH(no_rows_kernel, 1, 32, 0, exec, to.offsets, count);
  int32_t *const experts = static_cast<int32_t *>(args->experts.data);
  float *const probs = static_cast<float *>(args->probs.data);
  const int64_t stride = args->probs.strides[0];
  LS_TRY(LS_LAUNCH(choose_kernel, blocks_for(tokens, 8), 256, 0, exec, static_cast<const float *>(args->logits.data),
                   args->logits.strides[0], probs, stride, experts, tokens, count, k));
  const bool loads = args->load.present;
  const int64_t blocks = ceil_div(tokens, kTokens);
  double *const sums = static_cast<double *>(exec->workspace);
  void *const sorting = static_cast<char *>(exec->workspace) + (loads ? blocks * count * 8 : 0);
  const uint32_t *keys = nullptr, *places = nullptr;
  LS_TRY(sort_ids(exec, experts, rows, count, sorting, &keys, &places));
  LS_TRY(LS_LAUNCH(place_kernel, blocks_for(rows, 256), 256, 0, exec, keys, places, probs, stride, experts, rows, count,
                   k, args->normalize != 0, to));
  if (!loads) return LS_OK;
  const int64_t summed = ceil_div(args->counted, kTokens);
  if (summed > 0)
    LS_TRY(LS_LAUNCH(sum_probs_kernel, static_cast<unsigned>(summed), 256, 0, exec, probs, stride, args->counted, count,
                     sums));
  return LS_LAUNCH(load_kernel, blocks_for(count, 256), 256, 0, exec, places, to.offsets, sums, summed, count,
                   args->counted * k, static_cast<double *>(args->load.data));
}

ls_status route_backward(const ls_exec *exec, const ls_route_backward_args *args) {
  const int64_t tokens = args->probs.sizes[0], count = args->probs.sizes[1], k = args->experts.sizes[1];
  if (tokens == 0) return LS_OK;
  const bool balanced = args->share.present;
  return LS_LAUNCH(
      route_backward_kernel, blocks_for(tokens, 8), 256, 0, exec, static_cast<const float *>(args->probs.data),
      args->probs.strides[0], static_cast<const int32_t *>(args->experts.data),
      static_cast<const int32_t *>(args->slots.data), static_cast<const float *>(args->dweights.data),
      balanced ? static_cast<const double *>(args->share.data) : nullptr,
      balanced ? static_cast<const double *>(args->factor.data) : nullptr, static_cast<float *>(args->dlogits.data),
      args->dlogits.strides[0], tokens, count, k, args->counted, args->normalize != 0);
}

}  // namespace longseq::cuda
