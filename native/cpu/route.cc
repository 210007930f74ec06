// Which experts each token goes to: softmax of its logits, the k largest, and all rows sorted by expert; and the
// backward.
#include "elementwise.h"
#include "kernels.h"

namespace longseq::cpu::LS_ISA {

namespace {

// Experts whose gradients are made at a time.
constexpr int64_t kExperts = 64;

float *float_row(const ls_tensor &x, int64_t row) { return static_cast<float *>(x.data) + row * x.strides[0]; }

// probs = softmax(logits), the exponentials summed in float64.
void softmax_row(const float *logits, float *probs, int64_t n) {
  f32x16 top = set1(-__builtin_inff());
  for (int64_t i = 0; i < n; i += 16) {
    const int64_t m = min_of(16, n - i);
    top = max(top, select(first_n(m), load(logits + i, m), top));
  }
  const f32x16 shift = set1(reduce_max(top));
  lanes(n, [&](int64_t i, auto w) { store(probs + i, exp(load(logits + i, w) - shift), w); });
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(probs[i]);
  for (int64_t i = 0; i < n; ++i) probs[i] = static_cast<float>(static_cast<double>(probs[i]) / sum);
}

// The k largest of a row, equal ones in ascending order. A NaN is below all numbers.
void choose(const float *probs, int64_t n, int64_t k, int32_t *experts) {
  const auto value = [&](int64_t e) { return probs[e] == probs[e] ? probs[e] : -1.0f; };
  float last_value = __builtin_inff();
  int64_t last = -1;
  for (int64_t j = 0; j < k; ++j) {
    int64_t best = -1;
    float best_value = -2.0f;
    for (int64_t e = 0; e < n; ++e) {
      const float v = value(e);
      const bool behind = v < last_value || (v == last_value && e > last);
      if (behind && v > best_value) {
        best = e;
        best_value = v;
      }
    }
    experts[j] = static_cast<int32_t>(best);
    last = best;
    last_value = best_value;
  }
}

double chosen_sum(const float *probs, const int32_t *experts, int64_t k) {
  double sum = 0;
  for (int64_t j = 0; j < k; ++j) sum += static_cast<double>(probs[experts[j]]);
  return sum;
}

}  // namespace

ls_status route(const ls_exec *exec, const ls_route_args *args) {
  const int64_t tokens = args->probs.sizes[0], count = args->probs.sizes[1], k = args->experts.sizes[1];
  int32_t *const experts = static_cast<int32_t *>(args->experts.data);
  int32_t *const slots = static_cast<int32_t *>(args->slots.data);
  int32_t *const owners = static_cast<int32_t *>(args->tokens.data);
  float *const weights = static_cast<float *>(args->weights.data);
  int64_t *const offsets = static_cast<int64_t *>(args->offsets.data);
  const int64_t grain = max_of(1, 8192 / max_of(1, count));
  parallel_for(exec, tokens, grain, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      float *const probs = float_row(args->probs, t);
      softmax_row(float_row(args->logits, t), probs, count);
      choose(probs, count, k, experts + t * k);
    }
  });

  // offsets[e] serves as the next free row of expert e, and thereby becomes the first of e + 1.
  for (int64_t e = 0; e <= count; ++e) offsets[e] = 0;
  for (int64_t row = 0; row < tokens * k; ++row) ++offsets[experts[row]];
  for (int64_t e = 0, first = 0; e <= count; ++e) {
    const int64_t of_expert = offsets[e];
    offsets[e] = first;
    first += of_expert;
  }
  for (int64_t row = 0; row < tokens * k; ++row) {
    const int64_t slot = offsets[experts[row]]++;
    slots[row] = static_cast<int32_t>(slot);
    owners[slot] = static_cast<int32_t>(row / k);
  }
  for (int64_t e = count; e > 0; --e) offsets[e] = offsets[e - 1];
  offsets[0] = 0;

  parallel_for(exec, tokens, 4096, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float *const probs = float_row(args->probs, t);
      const double sum = args->normalize ? chosen_sum(probs, experts + t * k, k) : 1.0;
      for (int64_t j = 0; j < k; ++j)
        weights[slots[t * k + j]] = static_cast<float>(static_cast<double>(probs[experts[t * k + j]]) / sum);
    }
  });

  if (!args->load.present) return LS_OK;
  double *const load = static_cast<double *>(args->load.data);
  for (int64_t row = 0; row < args->counted * k; ++row) load[experts[row]] += 1;
  // Each thread owns a slice of experts and walks the tokens in order.
  parallel_for(exec, count, 16, [&](int64_t begin, int64_t end) {
    for (int64_t t = 0; t < args->counted; ++t) {
      const float *const probs = float_row(args->probs, t);
      for (int64_t e = begin; e < end; ++e) load[count + e] += static_cast<double>(probs[e]);
    }
  });
  return LS_OK;
}

ls_status route_backward(const ls_exec *exec, const ls_route_backward_args *args) {
  const int64_t tokens = args->probs.sizes[0], count = args->probs.sizes[1], k = args->experts.sizes[1];
  const int32_t *const experts = static_cast<const int32_t *>(args->experts.data);
  const int32_t *const slots = static_cast<const int32_t *>(args->slots.data);
  const float *const dweights = static_cast<const float *>(args->dweights.data);
  const double *const share = args->share.present ? static_cast<const double *>(args->share.data) : nullptr;
  const double factor = share ? *static_cast<const double *>(args->factor.data) : 0;
  parallel_for(exec, tokens, max_of(1, 8192 / max_of(1, count)), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float *const probs = float_row(args->probs, t);
      float *const out = float_row(args->dlogits, t);
      const int32_t *const own = experts + t * k;
      // Of a chosen prob p: w = p, or p / sum, whose gradient is (dw - sum of dw w) / sum.
      const double sum = args->normalize ? chosen_sum(probs, own, k) : 1.0;
      double mean = 0;
      if (args->normalize)
        for (int64_t j = 0; j < k; ++j)
          mean += static_cast<double>(dweights[slots[t * k + j]]) * (static_cast<double>(probs[own[j]]) / sum);
      const auto dchosen = [&](int64_t j) { return (static_cast<double>(dweights[slots[t * k + j]]) - mean) / sum; };
      const bool counts = share != nullptr && t < args->counted;
      double dot = 0;
      for (int64_t j = 0; j < k; ++j) dot += dchosen(j) * static_cast<double>(probs[own[j]]);
      if (counts)
        for (int64_t e = 0; e < count; ++e) dot += factor * share[e] * static_cast<double>(probs[e]);
      for (int64_t first = 0; first < count; first += kExperts) {
        const int64_t n = min_of(kExperts, count - first);
        double dprobs[kExperts];
        for (int64_t e = 0; e < n; ++e) dprobs[e] = counts ? factor * share[first + e] : 0.0;
        for (int64_t j = 0; j < k; ++j)
          if (own[j] >= first && own[j] < first + n) dprobs[own[j] - first] += dchosen(j);
        for (int64_t e = 0; e < n; ++e)
          out[first + e] = static_cast<float>(static_cast<double>(probs[first + e]) * (dprobs[e] - dot));
      }
    }
  });
  return LS_OK;
}

}  // namespace longseq::cpu::LS_ISA
