// cross_entropy: token losses of given logits (lib/sequence/loss.ts fuses it with the output projection).
import { type Context, Function, type Grad } from "../autograd/function.js";
import { binding } from "../binding.js";
import { Tensor } from "../tensor/tensor.js";
import { axpbyInto } from "./axpby.js";

class CrossEntropy extends Function<[Tensor, Tensor, number], Tensor> {
  readonly name = "cross_entropy";
  forward(ctx: Context, logits: Tensor, targets: Tensor, denominator: number): Tensor {
    const loss = Tensor.full([], 0, { device: logits.device, dtype: "float64" });
    const factor = denominator > 0 ? 1 / denominator : 0;
    const dlogits = ctx.needsGrad[0]
      ? Tensor.empty(logits.shape, { device: logits.device, dtype: logits.dtype })
      : null;
    binding.ops.crossEntropy(
      logits.native(),
      targets.native(),
      loss.native(),
      dlogits?.native() ?? null,
      null,
      null,
      factor,
    );
    axpbyInto(loss, loss, { alpha: factor });
    ctx.save(dlogits);
    dlogits?.dispose();
    return loss;
  }
  backward(ctx: Context, dloss: Tensor): Grad[] {
    const stored = ctx.saved(0);
    const dlogits = Tensor.empty(stored.shape, { device: stored.device, dtype: stored.dtype });
    axpbyInto(stored, dlogits, { factor: dloss });
    return [dlogits];
  }
}
const crossEntropyFunction = new CrossEntropy();

/** Sum of -log softmax(logits[t])[targets[t]] over targets other than -100, divided by `denominator`.
 * logits [T, V], targets [T] int32 (already shifted) -> [] float64. */
export const crossEntropy = (logits: Tensor, targets: Tensor, denominator: number): Tensor =>
  crossEntropyFunction.apply(logits, targets, denominator);
