// The gated feed-forward layer: down(act(gate(x)) * up(x)) (arXiv 2002.05202).

import { swiglu } from "../ops/index.js";
import { scope } from "../tensor/scope.js";
import type { Tensor } from "../tensor/tensor.js";
import { Linear } from "./linear.js";
import { Module, type ModuleOptions } from "./module.js";

export interface MlpSizes {
  /** H */
  readonly hiddenSize: number;
  /** F */
  readonly intermediateSize: number;
  readonly activation?: "silu" | "gelu" | "gelu_tanh" | "relu";
  readonly mlpBias?: boolean;
}

export class GatedMlp extends Module {
  readonly gateProj: Linear;
  readonly upProj: Linear;
  readonly downProj: Linear;
  readonly #activation: NonNullable<MlpSizes["activation"]>;

  constructor(sizes: MlpSizes, options: ModuleOptions = {}) {
    super();
    const { hiddenSize: H, intermediateSize: F, mlpBias: bias = false } = sizes;
    this.gateProj = new Linear(H, F, { ...options, bias });
    this.upProj = new Linear(H, F, { ...options, bias });
    this.downProj = new Linear(F, H, { ...options, bias });
    this.#activation = sizes.activation ?? "silu";
  }

  /** x [T, H] -> [T, H] */
  forward(x: Tensor): Tensor {
    return scope(() =>
      this.downProj.forward(swiglu(this.gateProj.forward(x), this.upProj.forward(x), this.#activation)),
    );
  }
}
