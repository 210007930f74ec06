// layer_norm: normalisation to mean 0 and variance 1 (arXiv 1607.06450). Saves its input only.
import { type Context, Function, type Grad } from "../autograd/function.js";
import { binding } from "../binding.js";
import { Tensor } from "../tensor/tensor.js";

class LayerNorm extends Function<[Tensor, Tensor, Tensor | null, number], Tensor> {
  readonly name = "layer_norm";
  forward(ctx: Context, x: Tensor, weight: Tensor, bias: Tensor | null, eps: number): Tensor {
    const y = Tensor.empty(x.shape, { device: x.device, dtype: x.dtype });
    binding.ops.layerNorm(x.native(), weight.native(), y.native(), bias?.native() ?? null, eps);
    ctx.save(x, weight);
    ctx.values.eps = eps;
    return y;
  }
  backward(ctx: Context, dy: Tensor): Grad[] {
    const [x, weight] = [ctx.saved(0), ctx.saved(1)];
    const dx = Tensor.empty(x.shape, { device: x.device, dtype: x.dtype });
    let sums: { weight?: Tensor; bias?: Tensor } = {};
    const prepare = (name: "weight" | "bias") => (out: Tensor, accumulate: boolean) => {
      if (!accumulate) out.fill(0);
      sums = { ...sums, [name]: out };
    };
    const dweight = ctx.weightGrad(1, prepare("weight"));
    const dbias = ctx.weightGrad(2, prepare("bias"));
    binding.ops.layerNormBackward(
      x.native(),
      weight.native(),
      dy.native(),
      dx.native(),
      sums.weight?.native() ?? null,
      sums.bias?.native() ?? null,
      ctx.values.eps as number,
      false,
    );
    return [dx, dweight, dbias];
  }
}
const layerNormFunction = new LayerNorm();

/** y = (x - mean) / sqrt(var + eps) * weight + bias over the last dim.  x [..., H], weight and bias [H]. */
export const layerNorm = (x: Tensor, weight: Tensor, bias: Tensor | null = null, eps = 1e-5): Tensor =>
  layerNormFunction.apply(x, weight, bias, eps);
