// Linear: y = x W^T + b, and what an adapter adds.

import { add, linear } from "../ops/index.js";
import { Parameter, type Tensor } from "../tensor/tensor.js";
import type { Adapter, StepDropout } from "./adapter.js";
import { Module, type ModuleOptions } from "./module.js";

/** Values are undefined until they are loaded or initialised. */
export class Linear extends Module {
  /** [O, I] */
  readonly weight: Parameter;
  /** [O] or null */
  readonly bias: Parameter | null;
  /** Given to a model that is to be trained by adapters. */
  adapter: Adapter | null = null;

  constructor(inFeatures: number, outFeatures: number, options: ModuleOptions & { bias?: boolean } = {}) {
    super();
    const { bias = false, ...where } = options;
    this.weight = Parameter.empty([outFeatures, inFeatures], where);
    this.bias = bias ? Parameter.empty([outFeatures], where) : null;
  }

  /** x [T, I] -> [T, O] */
  forward(x: Tensor, dropout: StepDropout | null = null): Tensor {
    const y = linear(x, this.weight, this.bias);
    return this.adapter === null ? y : add(y, this.adapter.forward(x, dropout));
  }
}
