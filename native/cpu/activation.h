// The elementwise functions of ls_unary_kind and their derivatives, on sixteen lanes.
#ifndef LONGSEQ_CPU_ACTIVATION_H
#define LONGSEQ_CPU_ACTIVATION_H

#include "longseq/backend.h"
#include "simd.h"

namespace longseq::cpu::LS_ISA {

// sqrt(2 / pi) of the tanh form of GELU (Hendrycks and Gimpel, arXiv 1606.08415).
inline constexpr float kGeluScale = 0.7978845608f;
inline constexpr float kGeluCube = 0.044715f;

template <int kKind>
LS_INLINE f32x16 activate(f32x16 x) {
  const f32x16 one = set1(1.0f), half = set1(0.5f);
  if constexpr (kKind == LS_UNARY_SILU) {
    return x / (one + exp(neg(x)));
  } else if constexpr (kKind == LS_UNARY_GELU) {
    return half * x * (one + erf(x * set1(0.7071067812f)));
  } else if constexpr (kKind == LS_UNARY_GELU_TANH) {
    const f32x16 u = set1(kGeluScale) * fma(set1(kGeluCube) * x * x, x, x);
    return half * x * (one + tanh(u));
  } else if constexpr (kKind == LS_UNARY_RELU) {
    return max(zero(), x);  // NaN stays: it is the second operand
  } else if constexpr (kKind == LS_UNARY_SIGMOID) {
    return sigmoid(x);
  } else if constexpr (kKind == LS_UNARY_TANH) {
    return tanh(x);
  } else if constexpr (kKind == LS_UNARY_EXP) {
    return exp(x);
  } else if constexpr (kKind == LS_UNARY_LOG) {
    return log(x);
  } else if constexpr (kKind == LS_UNARY_SQRT) {
    return sqrt(x);
  } else if constexpr (kKind == LS_UNARY_NEG) {
    return neg(x);
  } else if constexpr (kKind == LS_UNARY_ABS) {
    return abs(x);
  } else if constexpr (kKind == LS_UNARY_SQUARE) {
    return x * x;
  } else {
    static_assert(kKind == LS_UNARY_RSQRT);
    return one / sqrt(x);
  }
}

// d activate / dx at x.
template <int kKind>
LS_INLINE f32x16 activate_gradient(f32x16 x) {
  const f32x16 one = set1(1.0f), half = set1(0.5f);
  if constexpr (kKind == LS_UNARY_SILU) {
    const f32x16 s = sigmoid(x);
    return s * fma(x, one - s, one);
  } else if constexpr (kKind == LS_UNARY_GELU) {
    const f32x16 density = set1(0.3989422804f) * exp(set1(-0.5f) * x * x);
    return fma(x, density, half * (one + erf(x * set1(0.7071067812f))));
  } else if constexpr (kKind == LS_UNARY_GELU_TANH) {
    const f32x16 s = x * x;
    const f32x16 slope = set1(kGeluScale) * fma(set1(3 * kGeluCube), s, one);
    // With e = exp(-2 |u|): tanh |u| = (1 - e) / (1 + e), and 1 - tanh^2 = 4 e / (1 + e)^2 without cancellation.
    const f32x16 u = set1(kGeluScale) * fma(set1(kGeluCube) * s, x, x);
    const f32x16 e = exp(set1(-2.0f) * abs(u));
    const f32x16 inverse = one / (one + e);
    const f32x16 t = with_sign_of((one - e) * inverse, u);
    // Where e is 0 the slope, which may have overflowed, no longer counts.
    const f32x16 bend = set1(4.0f) * e * inverse * inverse;
    const f32x16 curve = select(eq(bend, zero()), zero(), half * x * bend * slope);
    return fma(half, t, half) + curve;
  } else if constexpr (kKind == LS_UNARY_RELU) {
    return select(le(x, zero()), zero(), one);
  } else if constexpr (kKind == LS_UNARY_SIGMOID) {
    const f32x16 s = sigmoid(x);
    return s * (one - s);
  } else if constexpr (kKind == LS_UNARY_TANH) {
    const f32x16 t = tanh(x);
    return fnma(t, t, one);
  } else if constexpr (kKind == LS_UNARY_EXP) {
    return exp(x);
  } else if constexpr (kKind == LS_UNARY_LOG) {
    return one / x;
  } else if constexpr (kKind == LS_UNARY_SQRT) {
    return half / sqrt(x);
  } else if constexpr (kKind == LS_UNARY_NEG) {
    return set1(-1.0f);
  } else if constexpr (kKind == LS_UNARY_ABS) {
    return select(eq(x, zero()), zero(), with_sign_of(one, x));
  } else if constexpr (kKind == LS_UNARY_SQUARE) {
    return x + x;
  } else {
    static_assert(kKind == LS_UNARY_RSQRT);
    const f32x16 r = one / sqrt(x);
    return set1(-0.5f) * r / x;
  }
}

template <int kKind>
struct Kind {
  static constexpr int value = kKind;
};

// Calls f(Kind<k>{}) for an activation that gates (silu, the GELUs, relu).
template <typename F>
inline void with_gate_kind(int64_t kind, const F &f) {
  switch (kind) {
    case LS_UNARY_SILU:
      return f(Kind<LS_UNARY_SILU>{});
    case LS_UNARY_GELU:
      return f(Kind<LS_UNARY_GELU>{});
    case LS_UNARY_GELU_TANH:
      return f(Kind<LS_UNARY_GELU_TANH>{});
    default:
      return f(Kind<LS_UNARY_RELU>{});
  }
}

// Calls f(Kind<k>{}) for any kind.
template <typename F>
inline void with_unary_kind(int64_t kind, const F &f) {
  switch (kind) {
    case LS_UNARY_SIGMOID:
      return f(Kind<LS_UNARY_SIGMOID>{});
    case LS_UNARY_TANH:
      return f(Kind<LS_UNARY_TANH>{});
    case LS_UNARY_EXP:
      return f(Kind<LS_UNARY_EXP>{});
    case LS_UNARY_LOG:
      return f(Kind<LS_UNARY_LOG>{});
    case LS_UNARY_SQRT:
      return f(Kind<LS_UNARY_SQRT>{});
    case LS_UNARY_NEG:
      return f(Kind<LS_UNARY_NEG>{});
    case LS_UNARY_ABS:
      return f(Kind<LS_UNARY_ABS>{});
    case LS_UNARY_SQUARE:
      return f(Kind<LS_UNARY_SQUARE>{});
    case LS_UNARY_RSQRT:
      return f(Kind<LS_UNARY_RSQRT>{});
    default:
      return with_gate_kind(kind, f);
  }
}

}  // namespace longseq::cpu::LS_ISA

#endif  // LONGSEQ_CPU_ACTIVATION_H
