// Linear: y = x W^T + b.

import { linear } from "../ops/index.js";
import { Parameter, type Tensor } from "../tensor/tensor.js";
import { Module, type ModuleOptions } from "./module.js";

/** Values are undefined until they are loaded or initialised. */
export class Linear extends Module {
  /** [O, I] */
  readonly weight: Parameter;
  /** [O] or null */
  readonly bias: Parameter | null;

  constructor(inFeatures: number, outFeatures: number, options: ModuleOptions & { bias?: boolean } = {}) {
    super();
    const { bias = false, ...where } = options;
    this.weight = Parameter.empty([outFeatures, inFeatures], where);
    this.bias = bias ? Parameter.empty([outFeatures], where) : null;
  }

  /** x [T, I] -> [T, O] */
  forward(x: Tensor): Tensor {
    return linear(x, this.weight, this.bias);
  }
}
