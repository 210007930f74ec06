// dropout: zeros in the place of some elements of a matrix, the others scaled so that the mean stays. Which ones go is a
// function of seed, stream, the number of the row and the column alone: the same in a recomputation, in any tile and on
// any rank.
import { binding } from "../binding.js";
import type { Tensor } from "../tensor/tensor.js";

/** Which elements are dropped. */
export interface Dropout {
  /** The part that goes, from 0 to below 1. */
  readonly rate: number;
  /** Key of the random numbers, a whole number from 0: of a step. */
  readonly seed: number;
  /** Tells places apart that share a seed, a whole number from 0 to 2^32 - 1. */
  readonly stream: number;
}

/**
 * y = (or, with accumulate, +=) what is left of x.  x, y [T, columns], rows [T] int64: the numbers of the rows. first: the
 * number of the first column. y may be x. No graph.
 */
export function dropoutInto(
  { rate, seed, stream }: Dropout,
  x: Tensor,
  rows: Tensor,
  y: Tensor,
  { first = 0, accumulate = false }: { first?: number; accumulate?: boolean } = {},
): void {
  binding.ops.dropout(x.native(), rows.native(), y.native(), rate, seed, stream, first, accumulate);
}
