// rope: rotary position embedding (arXiv 2104.09864) by explicit positions. Its backward is the opposite rotation.
import { type Context, Function, type Grad } from "../autograd/function.js";
import { binding } from "../binding.js";
import { Tensor } from "../tensor/tensor.js";

export interface RopeOptions {
  /** Factor on cos and sin (YaRN's attention factor). Default 1. */
  scaling?: number;
  /** Rotates x where it lies: for an x that nothing else needs. */
  inplace?: boolean;
}

class Rope extends Function<[Tensor, Tensor, Tensor, RopeOptions], Tensor> {
  readonly name = "rope";
  forward(ctx: Context, x: Tensor, positions: Tensor, invFreq: Tensor, options: RopeOptions): Tensor {
    const y = options.inplace ? x.alias() : Tensor.empty(x.shape, { device: x.device, dtype: x.dtype });
    const scaling = options.scaling ?? 1;
    binding.ops.rope(x.native(), positions.native(), invFreq.native(), y.native(), scaling, false);
    ctx.save(positions, invFreq);
    ctx.values.scaling = scaling;
    return y;
  }
  backward(ctx: Context, dy: Tensor): Grad[] {
    const alone = binding.references(dy.native()) === 1;
    const dx = alone ? dy : Tensor.empty(dy.shape, { device: dy.device, dtype: dy.dtype });
    binding.ops.rope(
      dy.native(),
      ctx.saved(0).native(),
      ctx.saved(1).native(),
      dx.native(),
      ctx.values.scaling as number,
      true,
    );
    return [dx];
  }
}
const ropeFunction = new Rope();

/** Rotates pairs (i, i + R/2) of each head by positions[t] * invFreq[i].  x [T, N, D], positions [T] int64,
 * invFreq [R/2] float32, R <= D -> [T, N, D]. Angles are float64. */
export const rope = (x: Tensor, positions: Tensor, invFreq: Tensor, options: RopeOptions = {}): Tensor =>
  ropeFunction.apply(x, positions, invFreq, options);
