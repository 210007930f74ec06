// rms_norm: root-mean-square normalisation (arXiv 1910.07467). Saves its input only; the statistics are recomputed.
import { alone, type Context, Function, type Grad } from "../autograd/function.js";
import { binding } from "../binding.js";
import { Tensor } from "../tensor/tensor.js";

class RmsNorm extends Function<[Tensor, Tensor, number], Tensor> {
  readonly name = "rms_norm";
  forward(ctx: Context, x: Tensor, weight: Tensor, eps: number): Tensor {
    const y = Tensor.empty(x.shape, { device: x.device, dtype: x.dtype });
    binding.ops.rmsNorm(x.native(), weight.native(), y.native(), eps);
    ctx.save(x, weight);
    ctx.values.eps = eps;
    return y;
  }
  backward(ctx: Context, dy: Tensor): Grad[] {
    const [x, weight] = [ctx.saved(0), ctx.saved(1)];
    const over = alone(dy) && dy.dtype === x.dtype;
    const dx = over ? dy : Tensor.empty(x.shape, { device: x.device, dtype: x.dtype });
    const run = (dweight: Tensor | null): void =>
      binding.ops.rmsNormBackward(
        x.native(),
        weight.native(),
        dy.native(),
        dx.native(),
        dweight?.native() ?? null,
        ctx.values.eps as number,
        false,
      );
    const dweight = ctx.weightGrad(1, (out, accumulate) => {
      if (!accumulate) out.fill(0);
      run(out);
    });
    if (!ctx.needsGrad[1]) run(null);
    return [dx, dweight];
  }
}
const rmsNormFunction = new RmsNorm();

/** y = x / sqrt(mean(x^2) + eps) * weight over the last dim.  x [..., H], weight [H] -> [..., H]. */
export const rmsNorm = (x: Tensor, weight: Tensor, eps = 1e-6): Tensor => rmsNormFunction.apply(x, weight, eps);
