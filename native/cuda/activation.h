// The elementwise functions of ls_unary_kind and their derivatives.
#ifndef LONGSEQ_CUDA_ACTIVATION_H
#define LONGSEQ_CUDA_ACTIVATION_H

#include "common.h"

namespace longseq::cuda {

// sqrt(2 / pi) of the tanh form of GELU (Hendrycks and Gimpel, arXiv 1606.08415).
inline constexpr float kGeluScale = 0.7978845608f;
inline constexpr float kGeluCube = 0.044715f;

LS_DEVICE float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// kind: ls_unary_kind. Uniform over a launch, so the switch costs no divergence.
LS_DEVICE float activate(int kind, float x) {
  switch (kind) {
    case LS_UNARY_SILU:
      return x / (1.0f + expf(-x));
    case LS_UNARY_GELU:
      return 0.5f * x * (1.0f + erff(x * 0.7071067812f));
    case LS_UNARY_GELU_TANH:
      return 0.5f * x * (1.0f + tanhf(kGeluScale * fmaf(kGeluCube * x * x, x, x)));
    case LS_UNARY_RELU:
      return x <= 0.0f ? 0.0f : x;  // NaN stays
    case LS_UNARY_SIGMOID:
      return sigmoid(x);
    case LS_UNARY_TANH:
      return tanhf(x);
    case LS_UNARY_EXP:
      return expf(x);
    case LS_UNARY_LOG:
      return logf(x);
    case LS_UNARY_SQRT:
      return sqrtf(x);
    case LS_UNARY_NEG:
      return -x;
    case LS_UNARY_ABS:
      return fabsf(x);
    case LS_UNARY_SQUARE:
      return x * x;
    default:
      return 1.0f / sqrtf(x);
  }
}

// d activate / dx at x.
LS_DEVICE float activate_gradient(int kind, float x) {
  switch (kind) {
    case LS_UNARY_SILU: {
      const float s = sigmoid(x);
      return s * fmaf(x, 1.0f - s, 1.0f);
    }
    case LS_UNARY_GELU: {
      const float density = 0.3989422804f * expf(-0.5f * x * x);
      return fmaf(x, density, 0.5f * (1.0f + erff(x * 0.7071067812f)));
    }
    case LS_UNARY_GELU_TANH: {
      // With e = exp(-2 |u|): tanh |u| = (1 - e) / (1 + e), and 1 - tanh^2 = 4 e / (1 + e)^2 without cancellation.
      const float s = x * x;
      const float slope = kGeluScale * fmaf(3 * kGeluCube, s, 1.0f);
      const float u = kGeluScale * fmaf(kGeluCube * s, x, x);
      const float e = expf(-2.0f * fabsf(u)), inverse = 1.0f / (1.0f + e);
      const float t = copysignf((1.0f - e) * inverse, u);
      const float bend = 4.0f * e * inverse * inverse;
      // Where e is 0 the slope, which may have overflowed, no longer counts.
      const float curve = bend == 0.0f ? 0.0f : 0.5f * x * bend * slope;
      return fmaf(0.5f, t, 0.5f) + curve;
    }
    case LS_UNARY_RELU:
      return x <= 0.0f ? 0.0f : 1.0f;
    case LS_UNARY_SIGMOID: {
      const float s = sigmoid(x);
      return s * (1.0f - s);
    }
    case LS_UNARY_TANH: {
      const float t = tanhf(x);
      return fmaf(-t, t, 1.0f);
    }
    case LS_UNARY_EXP:
      return expf(x);
    case LS_UNARY_LOG:
      return 1.0f / x;
    case LS_UNARY_SQRT:
      return 0.5f / sqrtf(x);
    case LS_UNARY_NEG:
      return -1.0f;
    case LS_UNARY_ABS:
      return x == 0.0f ? 0.0f : copysignf(1.0f, x);
    case LS_UNARY_SQUARE:
      return x + x;
    default: {
      const float r = 1.0f / sqrtf(x);
      return -0.5f * r / x;
    }
  }
}

}  // namespace longseq::cuda

#endif  // LONGSEQ_CUDA_ACTIVATION_H
