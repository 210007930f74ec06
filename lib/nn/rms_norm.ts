// RMSNorm over the last dim: y = x / sqrt(mean(x^2) + eps) * weight (arXiv 1910.07467).

import { rmsNorm } from "../ops/index.js";
import { Parameter, type Tensor } from "../tensor/tensor.js";
import { Module, type ModuleOptions } from "./module.js";

/** Values are undefined until they are loaded or initialised. */
export class RmsNorm extends Module {
  /** [H] */
  readonly weight: Parameter;
  readonly eps: number;

  constructor(size: number, options: ModuleOptions & { eps?: number } = {}) {
    super();
    const { eps = 1e-6, ...where } = options;
    this.weight = Parameter.empty([size], where);
    this.eps = eps;
  }

  /** x [T, H] -> [T, H] */
  forward(x: Tensor): Tensor {
    return rmsNorm(x, this.weight, this.eps);
  }
}
