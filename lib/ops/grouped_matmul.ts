// grouped_matmul: products of groups of rows, each with a matrix of its own.
import { binding } from "../binding.js";
import type { Tensor } from "../tensor/tensor.js";

/**
 * Group e is rows offsets[e] .. offsets[e + 1] - 1 of M. c [M, N]: the rows of group e of c are those of a [M, K] times
 * b[e], b [E, K, N]. c [E, K, N]: c[e] is the columns of group e of a [K, M] times its rows of b [M, N], 0 where it is
 * empty. accumulate: += . Any strides; float32 sums. No graph.
 */
export function groupedMatmulInto(a: Tensor, b: Tensor, c: Tensor, offsets: Tensor, accumulate = false): void {
  binding.ops.groupedMatmul(a.native(), b.native(), c.native(), offsets.native(), accumulate);
}
