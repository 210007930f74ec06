// The output projection and the loss, fused by row tiles: a tile of logits is made, its loss and gradient are taken,
// and it is gone.
import { type Context, Function, type Grad } from "../autograd/function.js";
import { binding } from "../binding.js";
import { ArgumentError } from "../errors.js";
import { axpbyInto } from "../ops/axpby.js";
import { narrow } from "../ops/copy.js";
import {
  addBack,
  addLowRank,
  emptyLow,
  type LowRank,
  type LowRankKind,
  lowRankGradients,
  lowRankOf,
  withRows,
} from "../ops/low_rank.js";
import { matmulInto, matmulTransposed } from "../ops/matmul.js";
import { unaryCode } from "../ops/unary.js";
import { Tensor } from "../tensor/tensor.js";
import { eachTile } from "./each_tile.js";

export interface LossOptions {
  /** Valid targets over the whole step: the loss is the sum of token losses divided by it. 0 gives 0, never NaN. */
  denominator: number;
  /** Rows of logits at a time; 0: all. */
  rows: number;
  /** Logits are capped first: softcap * tanh(logits / softcap). Absent or null: they are not. */
  softcap?: number | null;
  /** Its gradient may overwrite hidden, which then nobody may read. */
  consumeHidden?: boolean;
  /** Of the weight; its rows are those of hidden. */
  adapter?: LowRank | null;
}

type HeadOptions = Omit<LossOptions, "adapter"> & { readonly adapter: LowRankKind | null };
type HeadArguments = [Tensor, Tensor, Tensor, HeadOptions, Tensor | null, Tensor | null, Tensor | null];
/** Arguments whose gradients are made in the forward: the weight, A and B of its adapter. */
const TRAINED = [1, 4, 5] as const;

class LinearCrossEntropy extends Function<HeadArguments, Tensor> {
  readonly name = "linear_cross_entropy";
  forward(ctx: Context, ...[hidden, weight, targets, options, a, b, rows]: HeadArguments): Tensor {
    const adapter = lowRankOf(options.adapter, a, b, rows);
    const total = hidden.shape[0] as number;
    const V = weight.shape[0] as number;
    const device = hidden.device;
    const factor = options.denominator > 0 ? 1 / options.denominator : 0;
    const loss = Tensor.full([], 0, { device, dtype: "float64" });
    const over = options.consumeHidden === true && hidden.isContiguous;
    const dhidden = !ctx.needsGrad[0]
      ? null
      : over
        ? hidden.alias()
        : Tensor.empty(hidden.shape, { device, dtype: hidden.dtype });
    // The upstream gradient is known only in backward, which is the next thing to run: the weight's share waits apart.
    const shares = [weight, a, b].map((trained, i) =>
      trained && ctx.needsGrad[TRAINED[i] as number]
        ? Tensor.empty(trained.shape, { device, dtype: "float32", category: "grads" })
        : null,
    );
    const [dweight = null, da = null, db = null] = shares;
    if (total === 0) for (const share of shares) share?.fill(0);
    eachTile(device, total, options.rows, ({ start, length }) => {
      const x = narrow(hidden, 0, start, length);
      const { logits, capped } = logitsOf(x, weight, { ...options, adapter }, start);
      // Tensor cores take both factors as bfloat16: a float32 gradient would be split into several of them for each
      // product.
      const dlogits =
        ctx.recording && device.isGpu && weight.dtype === "bfloat16"
          ? Tensor.empty([length, V], { device, dtype: "bfloat16", category: "logits" })
          : capped;
      binding.ops.crossEntropy(
        capped.native(),
        narrow(targets, 0, start, length).native(),
        loss.native(),
        ctx.recording ? dlogits.native() : null,
        null,
        null,
        factor,
      );
      if (ctx.recording && capped !== logits)
        binding.ops.unaryBackward(logits.native(), dlogits.native(), dlogits.native(), unaryCode("tanh"));
      // First: the gradient of the hidden states may take their place.
      if (dweight) matmulTransposed(dlogits, true, x, false, dweight, start > 0);
      const dlow = adapter && ctx.recording ? emptyLow(x, adapter) : null;
      const shareOf = (share: Tensor | null) =>
        share && { add: (write: (out: Tensor, accumulate: boolean) => void) => write(share, start > 0) };
      if (adapter && dlow)
        withRows(adapter, start, length, (part) =>
          lowRankGradients(part, x, dlogits, { a: shareOf(da), b: shareOf(db) }, dlow),
        );
      if (!dhidden) return;
      const into = narrow(dhidden, 0, start, length);
      matmulInto(dlogits, weight, into);
      if (adapter && dlow) withRows(adapter, start, length, (part) => addBack(dlow, part, into));
    });
    axpbyInto(loss, loss, { alpha: factor });
    ctx.save(dhidden, ...shares);
    ctx.values = { hidden: dhidden !== null };
    dhidden?.dispose();
    for (const share of shares) share?.dispose();
    return loss;
  }
  backward(ctx: Context, dloss: Tensor): Grad[] {
    let at = ctx.values.hidden ? 1 : 0;
    let dhidden: Tensor | null = null;
    if (ctx.needsGrad[0]) {
      const stored = ctx.saved(0);
      dhidden = ctx.lastUse(0)
        ? stored.alias()
        : Tensor.empty(stored.shape, { device: stored.device, dtype: stored.dtype });
      axpbyInto(stored, dhidden, { factor: dloss });
    }
    const [dweight, da, db] = TRAINED.map((index) =>
      ctx.weightGrad(index, (out, accumulate) =>
        axpbyInto(ctx.saved(at++), out, { factor: dloss, beta: accumulate ? 1 : 0 }),
      ),
    );
    return [dhidden, dweight, null, null, da, db];
  }
}
/** The logits [rows, V] of a tile of hidden states [rows, H], from token `start` on, and what is left of them capped. */
function logitsOf(
  x: Tensor,
  weight: Tensor,
  { softcap, adapter }: Pick<LossOptions, "softcap" | "adapter">,
  start: number,
): { logits: Tensor; capped: Tensor } {
  const [rows, V] = [x.shape[0] as number, weight.shape[0] as number];
  const logits = Tensor.empty([rows, V], { device: x.device, dtype: "float32", category: "logits" });
  matmulTransposed(x, false, weight, true, logits);
  if (adapter) withRows(adapter, start, rows, (part) => addLowRank(x, part, logits));
  return { logits, capped: softcap ? cap(logits, softcap) : logits };
}

/** softcap * tanh(logits / softcap) [T, V], logits becoming what tanh is taken of. */
function cap(logits: Tensor, softcap: number): Tensor {
  axpbyInto(logits, logits, { alpha: 1 / softcap });
  const capped = Tensor.empty(logits.shape, { device: logits.device, dtype: logits.dtype, category: "logits" });
  binding.ops.unary(logits.native(), capped.native(), unaryCode("tanh"));
  axpbyInto(capped, capped, { alpha: softcap });
  return capped;
}

const linearCrossEntropyFunction = new LinearCrossEntropy();

/** hidden [T, H], weight [V, H], targets [T]. Throws ArgumentError. */
function checkShapes(name: string, hidden: Tensor, weight: Tensor, targets: Tensor): void {
  if (
    hidden.ndim !== 2 ||
    weight.ndim !== 2 ||
    hidden.shape[1] !== weight.shape[1] ||
    targets.shape[0] !== hidden.shape[0]
  )
    throw new ArgumentError(
      `${name}: hidden [${hidden.shape}], weight [${weight.shape}], targets [${targets.shape}]; expected [T, H], [V, H], [T]`,
    );
}

/** Sum over t of -log softmax(hidden[t] . weight^T)[targets[t]], targets of -100 left out, divided by the denominator.
 * hidden [T, H], weight [V, H], targets [T] int32, already shifted -> [] float64. float32 logits. */
export function linearCrossEntropy(hidden: Tensor, weight: Tensor, targets: Tensor, options: LossOptions): Tensor {
  checkShapes("linearCrossEntropy", hidden, weight, targets);
  if (!(options.denominator >= 0) || !Number.isFinite(options.denominator))
    throw new ArgumentError(
      `linearCrossEntropy: denominator is ${options.denominator}, expected the number of valid targets`,
    );
  const { adapter = null, ...others } = options;
  const { a = null, b = null, rows = null, ...kind } = adapter ?? { scale: 0, dropout: null };
  const how = { ...others, adapter: adapter && kind };
  return linearCrossEntropyFunction.apply(hidden, weight, targets, how, a, b, rows);
}

/** -log softmax(hidden[t] . weight^T)[targets[t]] of each token, 0 where the target is -100; without a backward.
 * hidden [T, H], weight [V, H], targets [T] int32, already shifted -> [T] float64. float32 logits. */
export function linearTokenLosses(
  hidden: Tensor,
  weight: Tensor,
  targets: Tensor,
  options: Pick<LossOptions, "rows" | "softcap" | "adapter">,
): Tensor {
  checkShapes("linearTokenLosses", hidden, weight, targets);
  const { device } = hidden;
  const total = hidden.shape[0] as number;
  const losses = Tensor.empty([total], { device, dtype: "float64" });
  using sum = Tensor.full([], 0, { device, dtype: "float64" });
  eachTile(device, total, options.rows, ({ start, length }) => {
    const { capped } = logitsOf(narrow(hidden, 0, start, length), weight, options, start);
    binding.ops.crossEntropy(
      capped.native(),
      narrow(targets, 0, start, length).native(),
      sum.native(),
      null,
      null,
      narrow(losses, 0, start, length).native(),
      1,
    );
  });
  return losses;
}
