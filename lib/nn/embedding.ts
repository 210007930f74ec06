// Embedding: a row of the table for each token.

import { type Context, Function, type Grad, noGrad } from "../autograd/function.js";
import { embedding, mul } from "../ops/index.js";
import { Parameter, type Tensor } from "../tensor/tensor.js";
import { Module, type ModuleOptions } from "./module.js";

/** x as it is; its gradient times `mask` [T, 1]. */
class MaskGradient extends Function<[Tensor, Tensor], Tensor> {
  readonly name = "mask_gradient";
  forward(ctx: Context, x: Tensor, mask: Tensor): Tensor {
    ctx.save(mask);
    return x.alias();
  }
  backward(ctx: Context, dy: Tensor): Grad[] {
    return [noGrad(() => mul(dy, ctx.saved(0)))];
  }
}
const maskGradient = new MaskGradient();

/** Values are undefined until they are loaded or initialised. */
export class Embedding extends Module {
  /** [V, H] */
  readonly weight: Parameter;

  constructor(rows: number, size: number, options: ModuleOptions = {}) {
    super();
    this.weight = Parameter.empty([rows, size], options);
  }

  /**
   * ids [T] int32, each from 0 to V - 1 (checked by the caller, on the host) -> [T, H].
   * gradientMask [T, 1], optional: what each token's gradient is multiplied by, 0 for padding tokens.
   */
  forward(ids: Tensor, gradientMask: Tensor | null = null): Tensor {
    const rows = embedding(ids, this.weight);
    if (gradientMask === null) return rows;
    const masked = maskGradient.apply(rows, gradientMask);
    rows.dispose();
    return masked;
  }
}
