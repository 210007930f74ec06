// all_to_all: every rank gives each its part. Its own inverse, and so its own backward.
import { type Context, Function, type Grad } from "../autograd/function.js";
import { binding } from "../binding.js";
import type { Communicator } from "../parallel/communicator.js";
import { Tensor } from "../tensor/tensor.js";
import { queues } from "../tensor/tiers.js";

/** y[i] = what rank i has in x[this rank]; x, y [P, ...] contiguous. On the comm queue. No graph. */
export function allToAllInto(x: Tensor, y: Tensor, group: Communicator): void {
  binding.ops.allToAll(x.native(), y.native(), group.number, queues.comm);
}

const exchanged = (x: Tensor, group: Communicator): Tensor => {
  const y = Tensor.empty(x.shape, { device: x.device, dtype: x.dtype });
  allToAllInto(x, y, group);
  return y;
};

class AllToAll extends Function<[Tensor, Communicator], Tensor> {
  readonly name = "all_to_all";
  forward(ctx: Context, x: Tensor, group: Communicator): Tensor {
    ctx.values = { group };
    return exchanged(x, group);
  }
  backward(ctx: Context, dy: Tensor): Grad[] {
    return [exchanged(dy, ctx.values.group as Communicator)];
  }
}
const allToAllFunction = new AllToAll();

/** x [P, ...] -> y [P, ...], y[i] = x[this rank] of rank i. */
export const allToAll = (x: Tensor, group: Communicator): Tensor => allToAllFunction.apply(x, group);
