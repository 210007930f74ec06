// Activation checkpoints (ALST): a layer keeps its input and, if asked, what attention made; its backward recomputes
// the rest, and of that only what is needed.
import { backward, type Context, Function, type Grad, noGrad, recompute } from "../autograd/function.js";
import { type AttentionKeeper, withAttentionKeeper } from "../ops/attention.js";
import { cast } from "../ops/copy.js";
import { scope, untracked } from "../tensor/scope.js";
import { produce, type Tensor } from "../tensor/tensor.js";
import { CheckpointStore, type Entry } from "./offload.js";

export interface CheckpointOptions {
  /** Also keep attention's output and log-sum-exp: attention then runs forward once. */
  keepAttention: boolean;
  /** What `fn` trains. */
  parameters: Iterable<Tensor>;
  /** Other tensors that `fn` reads: it gets them behind x, in the backward under handles that live until then. */
  others?: readonly (Tensor | null)[];
  /** Where what is kept waits; default: on the device. */
  store?: CheckpointStore | undefined;
}

/** What is recomputed: [T, ...] -> the same shape. */
export type Segment = (x: Tensor, ...others: (Tensor | null)[]) => Tensor;

/** Attention results of one segment, in call order. */
class Recorder implements AttentionKeeper {
  #kept: Tensor[] = [];

  record(o: Tensor, lse: Tensor): void {
    this.#kept.push(...untracked(() => [o.alias(), lse.alias()]));
  }

  /** The handles are the taker's from now on. */
  handOver(): Tensor[] {
    const kept = this.#kept;
    this.#kept = [];
    return kept;
  }

  replay(): undefined {
    return undefined;
  }
}

class Player implements AttentionKeeper {
  readonly #kept: readonly Tensor[];
  #next = 0;

  constructor(kept: readonly Tensor[]) {
    this.#kept = kept;
  }

  record(): void {}

  replay(): { o: Tensor; lse: Tensor } | undefined {
    const [o, lse] = this.#kept.slice(this.#next, this.#next + 2);
    this.#next += 2;
    return o && lse && { o: o.alias(), lse: lse.alias() };
  }
}

class Checkpoint extends Function<[Segment, CheckpointOptions, Tensor, ...Tensor[]], Tensor> {
  readonly name = "checkpoint";
  forward(ctx: Context, fn: Segment, options: CheckpointOptions, x: Tensor): Tensor {
    const others = options.others ?? [];
    const recorder = options.keepAttention && ctx.recording ? new Recorder() : undefined;
    // Inside the recomputation of an outer segment the last one's result is never read, and so never made.
    let entry: Entry | undefined;
    const made = { device: x.device, dtype: x.dtype };
    // Inside the recomputation of an outer segment the last one's result is never read, and so never made.
    const y = produce(x.shape, made, [x, ...others], (input, ...given) => {
      const result = noGrad(() => withAttentionKeeper(recorder, () => scope(() => fn(input as Tensor, ...given))));
      // Made late: the entry is there already, unless the backward has come and gone.
      entry?.add(recorder?.handOver() ?? []);
      return result;
    });
    ctx.save(...others);
    if (ctx.recording) {
      entry = (options.store ?? new CheckpointStore()).put([x]);
      entry.add(recorder?.handOver() ?? []);
      ctx.own(entry);
    }
    ctx.values = { fn, entry, present: others.map((other) => other !== null) };
    return y;
  }

  backward(ctx: Context, dy: Tensor): Grad[] {
    const { fn, entry, present } = ctx.values as { fn: Segment; entry: Entry; present: boolean[] };
    const [x, ...kept] = entry.fetch() as [Tensor, ...Tensor[]];
    let next = 0;
    const others = present.map((there) => (there ? ctx.saved(next++) : null));
    const dx = scope(() => {
      const leaf = x.alias();
      leaf.requiresGrad = ctx.needsGrad[2] ?? false;
      const y = withAttentionKeeper(new Player(kept), () => recompute(() => fn(leaf, ...others)));
      backward(y, dy, { hooks: false });
      const grad = leaf.grad;
      leaf.grad = null;
      if (!grad || grad.dtype === x.dtype) return grad;
      const rounded = noGrad(() => cast(grad, x.dtype));
      grad.dispose();
      return rounded;
    });
    return [null, null, dx];
  }
}
const checkpointFunction = new Checkpoint();

/** fn(x), of which only x (and attention's results, with keepAttention) is kept for the backward. fn keeps the shape. */
export const checkpoint = (fn: Segment, x: Tensor, options: CheckpointOptions): Tensor =>
  checkpointFunction.apply(fn, options, x, ...options.parameters);
