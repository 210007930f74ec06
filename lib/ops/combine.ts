// combine: the rows of a token's experts, weighted and added up in the order of its choices.
import { binding } from "../binding.js";
import type { Tensor } from "../tensor/tensor.js";

/**
 * y[t] = sum over j of weights[slots[t, j]] x[slots[t, j]] [+ y[t]].  x [M, H], slots [T, k] int32, weights [M] float32
 * or null (1), y [T, H]. float32 sums. No graph.
 */
export function combineInto(x: Tensor, slots: Tensor, weights: Tensor | null, y: Tensor, accumulate = false): void {
  binding.ops.combine(x.native(), slots.native(), weights?.native() ?? null, y.native(), accumulate);
}
