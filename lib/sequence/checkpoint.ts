// Activation checkpoints (ALST): a layer keeps its input and, if asked, what attention made; its backward recomputes
// the rest, and of that only what is needed.
import { type Context, Function, type Grad, noGrad, pullBack } from "../autograd/function.js";
import { type AttentionKeeper, withAttentionKeeper } from "../ops/attention.js";
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
  /** Runs the forward and the backward (what is recomputed included), with whatever must be at hand for them. */
  around?: (<T extends Tensor | null>(pass: "forward" | "backward", run: () => T) => T) | undefined;
}

/** What is recomputed: [T, ...] -> the same shape. */
export type Segment = (x: Tensor, ...others: (Tensor | null)[]) => Tensor;

/** Puts attention's results, as they are made, with what is kept: they go out beside the rest of the layer. */
class Recorder implements AttentionKeeper {
  readonly #entry: Entry;

  constructor(entry: Entry) {
    this.#entry = entry;
  }

  record(o: Tensor, lse: Tensor): void {
    // The log-sum-exp decides every probability: it is kept to the bit.
    this.#entry.add(
      untracked(() => [o.alias(), lse.alias()]),
      [false, true],
    );
  }

  replay(): undefined {
    return undefined;
  }
}

/** Hands recorded results out again, each call its own. */
class Player implements AttentionKeeper {
  readonly #kept: Tensor[];

  /** The handles are the player's from now on. */
  constructor(kept: Tensor[]) {
    this.#kept = kept;
  }

  record(): void {}

  replay(): { o: Tensor; lse: Tensor } | undefined {
    const [o, lse] = this.#kept.splice(0, 2);
    return o && lse && { o, lse };
  }

  dispose(): void {
    for (const tensor of this.#kept.splice(0)) tensor.dispose();
  }
}

class Checkpoint extends Function<[Segment, CheckpointOptions, Tensor, ...Tensor[]], Tensor> {
  readonly name = "checkpoint";
  forward(ctx: Context, fn: Segment, options: CheckpointOptions, x: Tensor): Tensor {
    const { others = [], around = (_, run) => run() } = options;
    let entry: Entry | undefined;
    let released = false;
    const release = (): void => {
      if (!released) entry?.dispose();
      released = true;
    };
    let recorder: Recorder | undefined;
    if (ctx.recording) {
      // Before fn runs: x goes out beside it.
      entry = (options.store ?? new CheckpointStore()).put([x]);
      ctx.own({ dispose: release });
      if (options.keepAttention) recorder = new Recorder(entry);
    }
    const made = { device: x.device, dtype: x.dtype };
    // Inside the recomputation of an outer segment the last one's result is never read, and so never made.
    const y = produce(x.shape, made, [x, ...others], (input, ...given) => {
      // Where it is still to be made, by a layer before this one, that is no part of this forward.
      input?.native();
      return around("forward", () =>
        noGrad(() => withAttentionKeeper(recorder, () => scope(() => fn(input as Tensor, ...given)))),
      );
    });
    ctx.save(...others);
    ctx.values = { fn, entry, release, around, present: others.map((other) => other !== null) };
    return y;
  }

  backward(ctx: Context, dy: Tensor): Grad[] {
    const { fn, entry, release, around, present } = ctx.values as {
      fn: Segment;
      entry: Entry;
      release: () => void;
      around: NonNullable<CheckpointOptions["around"]>;
      present: boolean[];
    };
    const [x, ...kept] = entry.fetch().map((tensor) => tensor.alias()) as [Tensor, ...Tensor[]];
    const player = new Player(kept);
    try {
      // Nobody comes for them again: what fn keeps of them for its own backward may be overwritten there.
      if (ctx.final) release();
      let next = 0;
      const others = present.map((there) => (there ? ctx.saved(next++) : null));
      // Made now where a layer before this one deferred it, which can fail.
      x.native();
      const again: Segment = (input) => withAttentionKeeper(player, () => fn(input, ...others));
      const back = (): Tensor | null => scope(() => pullBack(again, x, dy, ctx.needsGrad[2] ?? false));
      return [null, null, around("backward", back)];
    } finally {
      x.dispose();
      player.dispose();
    }
  }
}
const checkpointFunction = new Checkpoint();

/** fn(x), of which only x (and attention's results, with keepAttention) is kept for the backward. fn keeps the shape. */
export const checkpoint = (fn: Segment, x: Tensor, options: CheckpointOptions): Tensor =>
  checkpointFunction.apply(fn, options, x, ...options.parameters);
