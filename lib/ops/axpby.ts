// axpby: y = alpha * factor * x + beta * y; scaling by a number is its differentiable form.
import { type Context, Function, type Grad } from "../autograd/function.js";
import { binding } from "../binding.js";
import { Tensor } from "../tensor/tensor.js";

export interface AxpbyOptions {
  alpha?: number;
  /** 0 never reads y. */
  beta?: number;
  /** A scalar on the device, float32 or float64. */
  factor?: Tensor | null;
}

/** y = alpha * factor * x + beta * y, in place on y. No graph. */
export function axpbyInto(x: Tensor, y: Tensor, options: AxpbyOptions = {}): void {
  binding.ops.axpby(x.native(), y.native(), options.factor?.native() ?? null, options.alpha ?? 1, options.beta ?? 0);
}

class Scale extends Function<[Tensor, number], Tensor> {
  readonly name = "axpby";
  forward(ctx: Context, x: Tensor, alpha: number): Tensor {
    const y = Tensor.empty(x.shape, { device: x.device, dtype: x.dtype });
    axpbyInto(x, y, { alpha });
    ctx.values.alpha = alpha;
    return y;
  }
  backward(ctx: Context, dy: Tensor): Grad[] {
    const dx = Tensor.empty(dy.shape, { device: dy.device, dtype: dy.dtype });
    axpbyInto(dy, dx, { alpha: ctx.values.alpha as number });
    return [dx];
  }
}
const scaleFunction = new Scale();

/** alpha * x. */
export const scale = (x: Tensor, alpha: number): Tensor => scaleFunction.apply(x, alpha);
