// all_reduce: every rank gets the sum, or the maximum, over all ranks.
import { binding } from "../binding.js";
import type { Communicator } from "../parallel/communicator.js";
import type { Tensor } from "../tensor/tensor.js";
import { queues } from "../tensor/tiers.js";

/** In the order of ls_reduce_kind. */
export const reductions = { sum: 0, max: 1 } as const;

/** x = its sum (or maximum) over ranks, in place, in float32 and in the order of the ranks. Contiguous. No graph. */
export function allReduceInto(x: Tensor, group: Communicator, kind: keyof typeof reductions = "sum"): void {
  binding.ops.allReduce(x.native(), group.number, reductions[kind], queues.comm);
}
