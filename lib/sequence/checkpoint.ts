// Activation checkpoints (ALST): a layer keeps its input and, if asked, what attention made; its backward recomputes
// the rest, and of that only what is needed.
import { backward, type Context, Function, type Grad, noGrad, recompute } from "../autograd/function.js";
import { type AttentionKeeper, withAttentionKeeper } from "../ops/attention.js";
import { cast } from "../ops/copy.js";
import { scope, untracked } from "../tensor/scope.js";
import type { Tensor } from "../tensor/tensor.js";

export interface CheckpointOptions {
  /** Also keep attention's output and log-sum-exp: attention then runs forward once. */
  keepAttention: boolean;
  /** What `fn` trains. */
  parameters: Iterable<Tensor>;
  /** Other tensors that `fn` reads: it gets them behind x, in the backward under handles that live until then. */
  others?: readonly (Tensor | null)[];
}

/** What is recomputed. */
export type Segment = (x: Tensor, ...others: (Tensor | null)[]) => Tensor;

/** Attention results of one layer, in call order. */
class Keeper implements AttentionKeeper {
  #recording = true;
  readonly #kept: { o: Tensor; lse: Tensor }[] = [];
  #next = 0;

  record(o: Tensor, lse: Tensor): void {
    if (this.#recording) this.#kept.push(untracked(() => ({ o: o.alias(), lse: lse.alias() })));
  }

  replay(): { o: Tensor; lse: Tensor } | undefined {
    if (this.#recording) return undefined;
    const entry = this.#kept[this.#next++];
    return entry && { o: entry.o.alias(), lse: entry.lse.alias() };
  }

  rewind(): void {
    this.#recording = false;
    this.#next = 0;
  }

  /** For ctx.save: all tensors. */
  tensors(): Tensor[] {
    return this.#kept.flatMap(({ o, lse }) => [o, lse]);
  }

  dispose(): void {
    for (const tensor of this.tensors()) tensor.dispose();
    this.#kept.length = 0;
  }
}

class Checkpoint extends Function<[Segment, CheckpointOptions, Tensor, ...Tensor[]], Tensor> {
  readonly name = "checkpoint";
  forward(ctx: Context, fn: Segment, options: CheckpointOptions, x: Tensor): Tensor {
    const others = options.others ?? [];
    const keeper = options.keepAttention && ctx.recording ? new Keeper() : undefined;
    const y = withAttentionKeeper(keeper, () => scope(() => fn(x, ...others)));
    ctx.save(x, ...others);
    if (keeper) ctx.own(keeper);
    ctx.values = { fn, keeper, present: others.map((other) => other !== null) };
    return y;
  }

  backward(ctx: Context, dy: Tensor): Grad[] {
    const { fn, keeper, present } = ctx.values as { fn: Segment; keeper: Keeper | undefined; present: boolean[] };
    const x = ctx.saved(0);
    let next = 1;
    const others = present.map((there) => (there ? ctx.saved(next++) : null));
    keeper?.rewind();
    const dx = scope(() => {
      const leaf = x.alias();
      leaf.requiresGrad = ctx.needsGrad[2] ?? false;
      const y = withAttentionKeeper(keeper, () => recompute(() => fn(leaf, ...others)));
      backward(y, dy, { hooks: false });
      if (!leaf.grad) return null;
      const grad = leaf.grad;
      leaf.grad = null;
      if (grad.dtype === x.dtype) return grad;
      const rounded = noGrad(() => cast(grad, x.dtype));
      grad.dispose();
      return rounded;
    });
    return [null, null, dx];
  }
}
const checkpointFunction = new Checkpoint();

/** fn(x), of which only x (and attention's results, with keepAttention) is kept for the backward. */
export const checkpoint = (fn: Segment, x: Tensor, options: CheckpointOptions): Tensor =>
  checkpointFunction.apply(fn, options, x, ...options.parameters);
