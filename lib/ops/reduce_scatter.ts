// reduce_scatter: every rank gets the sum, over all ranks, of its own part. Its backward is an all_gather.
import { type Context, Function, type Grad } from "../autograd/function.js";
import { binding } from "../binding.js";
import type { Communicator } from "../parallel/communicator.js";
import { Tensor } from "../tensor/tensor.js";
import { queues } from "../tensor/tiers.js";
import { allGatherInto } from "./all_gather.js";
import { reductions } from "./all_reduce.js";

/**
 * y = the sum over ranks of their x[this rank], in float32 and in the order of the ranks, rounded once; x [P, ...],
 * y [...] contiguous. On the comm queue. No graph.
 */
export function reduceScatterInto(x: Tensor, y: Tensor, group: Communicator): void {
  binding.ops.reduceScatter(x.native(), y.native(), group.number, reductions.sum, queues.comm);
}

class ReduceScatter extends Function<[Tensor, Communicator], Tensor> {
  readonly name = "reduce_scatter";
  forward(ctx: Context, x: Tensor, group: Communicator): Tensor {
    ctx.values = { group };
    const y = Tensor.empty(x.shape.slice(1), { device: x.device, dtype: x.dtype });
    reduceScatterInto(x, y, group);
    return y;
  }
  backward(ctx: Context, dy: Tensor): Grad[] {
    const group = ctx.values.group as Communicator;
    const dx = Tensor.empty([group.size, ...dy.shape], { device: dy.device, dtype: dy.dtype });
    allGatherInto(dy, dx, group);
    return [dx];
  }
}
const reduceScatterFunction = new ReduceScatter();

/** x [P, ...] -> y [...], the sum over ranks of their x[this rank]. */
export const reduceScatter = (x: Tensor, group: Communicator): Tensor => reduceScatterFunction.apply(x, group);
