// all_gather: every rank gets what each rank has. Its backward is a reduce_scatter, and the other way round.
import { type Context, Function, type Grad } from "../autograd/function.js";
import { binding } from "../binding.js";
import type { Communicator } from "../parallel/communicator.js";
import { Tensor } from "../tensor/tensor.js";
import { queues } from "../tensor/tiers.js";
import { reduceScatterInto } from "./reduce_scatter.js";

/** y[i] = x of rank i; x [...], y [P, ...] contiguous. x may be y[this rank]. On the comm queue. No graph. */
export function allGatherInto(x: Tensor, y: Tensor, group: Communicator): void {
  binding.ops.allGather(x.native(), y.native(), group.number, queues.comm);
}

class AllGather extends Function<[Tensor, Communicator], Tensor> {
  readonly name = "all_gather";
  forward(ctx: Context, x: Tensor, group: Communicator): Tensor {
    ctx.values = { group };
    const y = Tensor.empty([group.size, ...x.shape], { device: x.device, dtype: x.dtype });
    allGatherInto(x, y, group);
    return y;
  }
  backward(ctx: Context, dy: Tensor): Grad[] {
    const dx = Tensor.empty(dy.shape.slice(1), { device: dy.device, dtype: dy.dtype });
    reduceScatterInto(dy, dx, ctx.values.group as Communicator);
    return [dx];
  }
}
const allGatherFunction = new AllGather();

/** x [...] -> y [P, ...], y[i] = x of rank i. Its gradient is summed over ranks. */
export const allGather = (x: Tensor, group: Communicator): Tensor => allGatherFunction.apply(x, group);
