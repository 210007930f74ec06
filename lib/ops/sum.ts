// sum: over one dim or all, blocked in float64 in an order that the shape alone decides.
import { type Context, Function, type Grad } from "../autograd/function.js";
import { binding } from "../binding.js";
import { ArgumentError } from "../errors.js";
import { contiguousStrides, Tensor } from "../tensor/tensor.js";

/** Sums a gradient down to the shape it was broadcast from. Consumes `grad`. */
export function sumTo(grad: Tensor, shape: readonly number[]): Tensor {
  const lead = grad.ndim - shape.length;
  if (lead === 0 && shape.every((size, i) => size === grad.shape[i])) return grad;
  const y = Tensor.empty(shape, { device: grad.device, dtype: grad.dtype });
  const padded = [...new Array<number>(lead).fill(1), ...shape];
  const view = y.viewOf(padded, contiguousStrides(padded), 0);
  binding.ops.sum(grad.native(), view.native(), 1, false);
  view.dispose();
  grad.dispose();
  return y;
}

class Sum extends Function<[Tensor, number | undefined, boolean], Tensor> {
  readonly name = "sum";
  forward(ctx: Context, x: Tensor, dim: number | undefined, keepDim: boolean): Tensor {
    const at = dim === undefined ? undefined : dim < 0 ? dim + x.ndim : dim;
    if (at !== undefined && !(Number.isInteger(at) && at >= 0 && at < x.ndim))
      throw new ArgumentError(`sum: dim is ${dim} for a tensor of shape [${x.shape}]`);
    const kept = x.shape.map((size, i) => (at === undefined || i === at ? 1 : size));
    const shape = keepDim ? kept : at === undefined ? [] : kept.filter((_, i) => i !== at);
    const y = Tensor.empty(shape, { device: x.device, dtype: x.dtype });
    const view = y.viewOf(kept, contiguousStrides(kept), 0);
    binding.ops.sum(x.native(), view.native(), 1, false);
    view.dispose();
    ctx.values = { kept, shape: x.shape };
    return y;
  }
  backward(ctx: Context, dy: Tensor): Grad[] {
    const { kept, shape } = ctx.values as { kept: number[]; shape: number[] };
    const dx = Tensor.empty(shape, { device: dy.device, dtype: dy.dtype });
    const plain = dy.isContiguous ? dy : dy.clone();
    const strides = contiguousStrides(kept).map((stride, i) => (kept[i] === 1 ? 0 : stride));
    const view = plain.viewOf(shape, strides, 0);
    binding.ops.copy(view.native(), dx.native());
    view.dispose();
    if (plain !== dy) plain.dispose();
    return [dx];
  }
}
const sumFunction = new Sum();

/** The sum of all elements ([]) or along `dim`. */
export const sum = (x: Tensor, dim?: number, keepDim = false): Tensor => sumFunction.apply(x, dim, keepDim);
