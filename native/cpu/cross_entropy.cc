// Token losses of a tile of logits and their gradient in the same sweep over each row.
#include "elementwise.h"
#include "kernels.h"

namespace longseq::cpu::LS_ISA {

namespace {

constexpr int32_t kIgnored = -100;

// Natural logarithm of a positive finite float64, right to about 1 ulp: 2 atanh(s) with s = (m - 1) / (m + 1), |s| <
// 0.172. Ours, so that the bits do not depend on the C library of the machine.
double log_of(double x) {
  if (!(x > 0) || x > 1.7e308) return x == 0 ? -__builtin_inf() : x > 0 ? __builtin_inf() : __builtin_nan("");
  int64_t exponent = 0;
  if (x < 0x1p-1022) {
    x *= 0x1p54;
    exponent = -54;
  }
  uint64_t bits;
  memcpy(&bits, &x, 8);
  const uint64_t offset = bits - 0x3fe6a09e667f3bcdull;  // sqrt(1/2)
  exponent += static_cast<int64_t>(offset) >> 52;
  bits = (offset & 0xfffffffffffffull) + 0x3fe6a09e667f3bcdull;
  double m;
  memcpy(&m, &bits, 8);
  const double s = (m - 1.0) / (m + 1.0), z = s * s;
  double p = 1.0 / 25;
  for (int k = 23; k >= 3; k -= 2) p = __builtin_fma(p, z, 1.0 / k);
  const double e = static_cast<double>(exponent);
  return __builtin_fma(e, 0x1.62e42fefa3800p-1, 2 * s + __builtin_fma(2 * s * z, p, e * 0x1.ef35793c76730p-45));
}

LS_INLINE void max_piece(const float *x, int64_t n, f32x16 (&top)[4]) {
  int64_t i = 0;
  for (; i + 64 <= n; i += 64)
    for (int j = 0; j < 4; ++j) top[j] = max(top[j], load(x + i + 16 * j));
  for (; i < n; i += 16) {
    const int64_t m = min_of(16, n - i);
    top[0] = max(top[0], select(first_n(m), load(x + i, m), top[0]));
  }
}

// The vector exponential of one value.
LS_INLINE double exp_of(float x) {
  float value[16];
  store(value, exp(set1(x)));
  return static_cast<double>(value[0]);
}

}  // namespace

ls_status cross_entropy(const ls_exec *exec, const ls_cross_entropy_args *args) {
  const ls_tensor &logits = args->logits, &dlogits = args->dlogits, &labels = args->labels;
  const int64_t rows = logits.sizes[0], width = logits.sizes[1];
  const int32_t *const label_data = static_cast<const int32_t *>(labels.data);
  const bool gradient = dlogits.present != 0;
  float *const lse_data = args->lse.present ? static_cast<float *>(args->lse.data) : nullptr;
  double *const losses = static_cast<double *>(args->losses.present ? args->losses.data : exec->workspace);
  const double scale = args->scale;
  int64_t bad = INT64_MAX;

  parallel_for(exec, rows, max_of(1, 32768 / max_of(1, width)), [&](int64_t begin, int64_t end) {
    alignas(64) float buffer[kTile], out_buffer[kTile];
    for (int64_t row = begin; row < end; ++row) {
      const int32_t label = label_data[row * labels.strides[0]];
      const bool valid = label >= 0 && label < width;
      losses[row] = 0;
      if (!valid && label != kIgnored) {
        int64_t now = __atomic_load_n(&bad, __ATOMIC_RELAXED);
        while (row < now && !__atomic_compare_exchange_n(&bad, &now, row, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
        }
      }
      void *const out = gradient ? offset_by(dlogits.data, row * dlogits.strides[0], dlogits.dtype) : nullptr;
      if (!valid && lse_data == nullptr) {
        if (gradient) memset(out, 0, static_cast<size_t>(width * element_bytes(dlogits.dtype)));
        continue;
      }
      const void *const in = offset_by(logits.data, row * logits.strides[0], logits.dtype);
      const float lowest = -__builtin_inff();
      f32x16 top[4] = {set1(lowest), set1(lowest), set1(lowest), set1(lowest)};
      for (int64_t i = 0; i < width; i += kTile) {
        const int64_t n = min_of(kTile, width - i);
        max_piece(row_piece(in, logits.dtype, i, n, buffer), n, top);
      }
      const float highest = reduce_max(max(max(top[0], top[1]), max(top[2], top[3])));
      const f32x16 shift = set1(highest);
      // The label's logit is read before its place may be overwritten.
      const float at_label = !valid                    ? 0.0f
                             : logits.dtype == LS_BF16 ? to_float(static_cast<const bf16 *>(in)[label])
                                                       : static_cast<const float *>(in)[label];
      // exp(logit - max), summed by pieces in float64; kept in dlogits where that is float32.
      const bool keep = gradient && valid && dlogits.dtype == LS_F32;
      double sum = 0;
      for (int64_t i = 0; i < width; i += kTile) {
        const int64_t n = min_of(kTile, width - i);
        const float *xs = row_piece(in, logits.dtype, i, n, buffer);
        float *es = keep ? static_cast<float *>(out) + i : out_buffer;
        f32x16 part = zero();
        int64_t c = 0;
        for (; c + 16 <= n; c += 16) {
          const f32x16 e = exp(load(xs + c) - shift);
          store(es + c, e);
          part = part + e;
        }
        if (c < n) {
          const f32x16 e = exp(load(xs + c, n - c) - shift);
          store(es + c, e, n - c);
          part = part + select(first_n(n - c), e, zero());
        }
        sum += static_cast<double>(reduce_add(part));
      }
      const double log_sum = log_of(sum);
      if (lse_data != nullptr)
        lse_data[row * args->lse.strides[0]] = static_cast<float>(static_cast<double>(highest) + log_sum);
      if (!valid) {
        if (gradient) memset(out, 0, static_cast<size_t>(width * element_bytes(dlogits.dtype)));
        continue;
      }
      // (max - logit) first: both are of a size, and the sum's logarithm is small beside them.
      losses[row] = (static_cast<double>(highest) - static_cast<double>(at_label)) + log_sum;
      if (!gradient) continue;
      const float factor = static_cast<float>(scale / sum);
      const f32x16 factors = set1(factor);
      if (keep) {
        float *es = static_cast<float *>(out);
        lanes(width, [&](int64_t c, auto w) { store(es + c, load(es + c, w) * factors, w); });
      } else {
        for (int64_t i = 0; i < width; i += kTile) {
          const int64_t n = min_of(kTile, width - i);
          const float *xs = row_piece(in, logits.dtype, i, n, buffer);
          lanes(n, [&](int64_t c, auto w) { store(out_buffer + c, exp(load(xs + c, w) - shift) * factors, w); });
          finish_piece(out, dlogits.dtype, i, n, out_buffer);
        }
      }
      const float value = static_cast<float>((exp_of(at_label - highest) / sum - 1.0) * scale);
      if (dlogits.dtype == LS_BF16) {
        static_cast<bf16 *>(out)[label] = to_bf16(value);
      } else {
        static_cast<float *>(out)[label] = value;
      }
    }
  });
  if (bad != INT64_MAX)
    return fail(exec, LS_INVALID_ARGUMENT,
                "cross_entropy: label %d of row %lld is neither below the %lld classes nor -100 (ignored)",
                label_data[bad * labels.strides[0]], static_cast<long long>(bad), static_cast<long long>(width));
  double loss = 0;
  for (int64_t row = 0; row < rows; ++row) loss += losses[row];
  *static_cast<double *>(args->loss.data) += loss;
  return LS_OK;
}

}  // namespace longseq::cpu::LS_ISA
