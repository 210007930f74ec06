// The elementwise functions of ls_unary_kind and their derivatives in float64, as references.

/** erfc(x) to about 1e-15 relative: the series of erf below 2.5, Lentz's continued fraction above. */
function erfc(x: number): number {
  if (x < 0) return 2 - erfc(-x);
  if (x < 2.5) {
    let term = x;
    let sum = x;
    for (let k = 1; k < 80; k++) {
      term *= (-x * x) / k;
      sum += term / (2 * k + 1);
    }
    return 1 - (2 / Math.sqrt(Math.PI)) * sum;
  }
  let fraction = 0;
  for (let k = 120; k >= 1; k--) fraction = k / 2 / (x + fraction);
  return Math.exp(-x * x) / Math.sqrt(Math.PI) / (x + fraction);
}

const sigmoid = (x: number) => (x >= 0 ? 1 / (1 + Math.exp(-x)) : Math.exp(x) / (1 + Math.exp(x)));
const normal = (x: number) => erfc(-x / Math.SQRT2) / 2;
const inner = (x: number) => Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3);
const innerSlope = (x: number) => Math.sqrt(2 / Math.PI) * (1 + 3 * 0.044715 * x * x);
// tanh form: (1 + tanh u) / 2 = sigmoid(2 u), without cancellation.
const half = (x: number) => sigmoid(2 * inner(x));

export interface Activation {
  name: string;
  f: (x: number) => number;
  slope: (x: number) => number;
  /** Defined for positive numbers only. */
  positive?: boolean;
}

/** In the order of ls_unary_kind; the first four can gate. */
export const activations: readonly Activation[] = [
  { name: "silu", f: (x) => x * sigmoid(x), slope: (x) => sigmoid(x) * (1 + x * sigmoid(-x)) },
  {
    name: "gelu",
    f: (x) => x * normal(x),
    slope: (x) => normal(x) + (x * Math.exp((-x * x) / 2)) / Math.sqrt(2 * Math.PI),
  },
  {
    name: "gelu_tanh",
    f: (x) => x * half(x),
    slope: (x) => half(x) + x * 2 * half(x) * half(-x) * innerSlope(x),
  },
  { name: "relu", f: (x) => Math.max(0, x), slope: (x) => (x > 0 ? 1 : 0) },
  { name: "sigmoid", f: sigmoid, slope: (x) => sigmoid(x) * sigmoid(-x) },
  { name: "tanh", f: Math.tanh, slope: (x) => 1 / Math.cosh(x) ** 2 },
  { name: "exp", f: Math.exp, slope: Math.exp },
  { name: "log", f: Math.log, slope: (x) => 1 / x, positive: true },
  { name: "sqrt", f: Math.sqrt, slope: (x) => 0.5 / Math.sqrt(x), positive: true },
  { name: "neg", f: (x) => -x, slope: () => -1 },
  { name: "abs", f: Math.abs, slope: Math.sign },
  { name: "square", f: (x) => x * x, slope: (x) => 2 * x },
  { name: "rsqrt", f: (x) => 1 / Math.sqrt(x), slope: (x) => -0.5 / (x * Math.sqrt(x)), positive: true },
];
