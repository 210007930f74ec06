// The norm of rows as data: a layer says once which one it has, and forward and backward follow from it.
import { alone, type Context, Function, type Grad, type WeightGrad } from "../autograd/function.js";
import { binding } from "../binding.js";
import { Tensor } from "../tensor/tensor.js";
import { axpbyInto } from "./axpby.js";

/** Which norm over the last dim: the ops rms_norm and layer_norm. */
export interface NormKind {
  readonly op: "rms_norm" | "layer_norm";
  readonly eps: number;
  /** What is stored is the factor less 1 (Gemma): x / rms(x) * (1 + weight). */
  readonly plusOne: boolean;
}

/** [H] each; the bias is layer_norm's alone. */
export interface NormWeights {
  readonly weight: Tensor;
  readonly bias: Tensor | null;
}

/** What rows are multiplied by; a new tensor, to be disposed, where that is not what is stored. */
function factorOf({ weight }: NormWeights, { plusOne }: NormKind): Tensor {
  if (!plusOne) return weight;
  const factor = Tensor.full(weight.shape, 1, { device: weight.device, dtype: "float32" });
  axpbyInto(weight, factor, { beta: 1 });
  return factor;
}

/** y = norm(x) over the last dim; x, y [..., H]; y may be x. No graph. */
export function normInto(kind: NormKind, weights: NormWeights, x: Tensor, y: Tensor): void {
  const factor = factorOf(weights, kind);
  if (kind.op === "rms_norm") binding.ops.rmsNorm(x.native(), factor.native(), y.native(), kind.eps);
  else binding.ops.layerNorm(x.native(), factor.native(), y.native(), weights.bias?.native() ?? null, kind.eps);
  if (factor !== weights.weight) factor.dispose();
}

/** dx = (or, with accumulate, +=) the gradient of x from that of norm(x); dx may be dy. Adds the weights' to theirs. */
export function normBackwardInto(
  kind: NormKind,
  weights: NormWeights,
  { x, dy, dx, accumulate }: { x: Tensor; dy: Tensor; dx: Tensor; accumulate: boolean },
  grads: { weight: WeightGrad | null; bias: WeightGrad | null },
): void {
  const sums: { weight?: Tensor; bias?: Tensor } = {};
  for (const name of ["weight", "bias"] as const)
    grads[name]?.add((out, filled) => {
      // Both are added to by one call of the op.
      if (!filled) out.fill(0);
      sums[name] = out;
    });
  const factor = factorOf(weights, kind);
  const read = [x.native(), factor.native(), dy.native(), dx.native()] as const;
  const [dweight, dbias] = [sums.weight?.native() ?? null, sums.bias?.native() ?? null];
  if (kind.op === "rms_norm") binding.ops.rmsNormBackward(...read, dweight, kind.eps, accumulate);
  else binding.ops.layerNormBackward(...read, dweight, dbias, kind.eps, accumulate);
  if (factor !== weights.weight) factor.dispose();
}

class Norm extends Function<[NormKind, Tensor, Tensor, Tensor | null], Tensor> {
  readonly name = "norm";
  forward(ctx: Context, kind: NormKind, x: Tensor, weight: Tensor, bias: Tensor | null): Tensor {
    const y = Tensor.empty(x.shape, { device: x.device, dtype: x.dtype });
    normInto(kind, { weight, bias }, x, y);
    ctx.save(x, weight);
    ctx.values = { kind };
    return y;
  }
  backward(ctx: Context, dy: Tensor): Grad[] {
    const [x, weight] = [ctx.saved(0), ctx.saved(1)];
    const over = alone(dy) && dy.dtype === x.dtype;
    const dx = over ? dy : Tensor.empty(x.shape, { device: x.device, dtype: x.dtype });
    const grads = { weight: ctx.weight(2), bias: ctx.weight(3) };
    normBackwardInto(ctx.values.kind as NormKind, { weight, bias: null }, { x, dy, dx, accumulate: false }, grads);
    return [null, dx, grads.weight?.result, grads.bias?.result];
  }
}
const normFunction = new Norm();

/** norm(x) over the last dim, of the kind given.  x [..., H], weight and bias [H] -> [..., H]. Saves its input only. */
export const norm = (kind: NormKind, x: Tensor, { weight, bias }: NormWeights): Tensor =>
  normFunction.apply(kind, x, weight, bias);
