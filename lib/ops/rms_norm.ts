// rms_norm: root-mean-square normalisation (arXiv 1910.07467). Saves its input only; the statistics are recomputed.
import type { Tensor } from "../tensor/tensor.js";
import { norm } from "./norm.js";

/** y = x / sqrt(mean(x^2) + eps) * weight over the last dim.  x [..., H], weight [H] -> [..., H]. */
export const rmsNorm = (x: Tensor, weight: Tensor, eps = 1e-6): Tensor =>
  norm({ op: "rms_norm", eps, plusOne: false }, x, { weight, bias: null });
