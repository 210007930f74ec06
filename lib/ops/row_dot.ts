// row_dot: the inner products of two matrices' rows.
import { binding } from "../binding.js";
import type { Tensor } from "../tensor/tensor.js";

/** y[m] = a[m] . b[m].  a, b [M, F], y [M] float32. No graph. */
export function rowDotInto(a: Tensor, b: Tensor, y: Tensor): void {
  binding.ops.rowDot(a.native(), b.native(), y.native());
}
