// layer_norm: normalisation to mean 0 and variance 1 (arXiv 1607.06450). Saves its input only.
import type { Tensor } from "../tensor/tensor.js";
import { norm } from "./norm.js";

/** y = (x - mean) / sqrt(var + eps) * weight + bias over the last dim.  x [..., H], weight and bias [H]. */
export const layerNorm = (x: Tensor, weight: Tensor, bias: Tensor | null = null, eps = 1e-5): Tensor =>
  norm({ op: "layer_norm", eps, plusOne: false }, x, { weight, bias });
