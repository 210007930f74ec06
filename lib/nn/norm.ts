// A norm over the last dim: RMSNorm (arXiv 1910.07467) or LayerNorm (arXiv 1607.06450).

import { type NormKind, norm } from "../ops/norm.js";
import { Parameter, type Tensor } from "../tensor/tensor.js";
import { Module, type ModuleOptions } from "./module.js";

/** What a family's norms are. */
export interface NormSizes extends NormKind {
  /** Of layer_norm. */
  readonly bias: boolean;
}

/** Values are undefined until they are loaded or initialised. */
export class Norm extends Module {
  /** [H] */
  readonly weight: Parameter;
  /** [H] or null */
  readonly bias: Parameter | null;
  readonly #kind: NormKind;

  constructor(size: number, kind: NormSizes, options: ModuleOptions = {}) {
    super();
    this.weight = Parameter.empty([size], options);
    this.bias = kind.bias ? Parameter.empty([size], options) : null;
    this.#kind = kind;
  }

  /** For ops that work with what a module holds. */
  get kind(): NormKind {
    return this.#kind;
  }

  /** x [T, H] -> [T, H] */
  forward(x: Tensor): Tensor {
    return norm(this.#kind, x, this);
  }
}

/** x / sqrt(mean(x^2) + eps) * weight. */
export class RmsNorm extends Norm {
  constructor(size: number, options: ModuleOptions & { eps?: number } = {}) {
    const { eps = 1e-6, ...where } = options;
    super(size, { op: "rms_norm", eps, plusOne: false, bias: false }, where);
  }
}
