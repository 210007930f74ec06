// One layer of a decoder: attention and gated MLP, each behind a norm, each added to what came in.

import { add } from "../ops/index.js";
import { tiled } from "../sequence/tiled.js";
import { scope } from "../tensor/scope.js";
import type { Parameter, Tensor } from "../tensor/tensor.js";
import { Attention, type AttentionSizes, type TokenLayout } from "./attention.js";
import { GatedMlp, type MlpSizes } from "./gated_mlp.js";
import { Module, type ModuleOptions } from "./module.js";
import { RmsNorm } from "./rms_norm.js";

export interface DecoderLayerSizes extends AttentionSizes, MlpSizes {
  readonly rmsNormEps: number;
}

export interface DecoderLayerOptions {
  /** Rows (tokens) of a tile of the norm and MLP, recomputed in the backward; 0: all at once, nothing recomputed. */
  readonly tileMlp: number;
}

export class DecoderLayer extends Module {
  readonly selfAttn: Attention;
  readonly mlp: GatedMlp;
  readonly inputLayernorm: RmsNorm;
  readonly postAttentionLayernorm: RmsNorm;
  readonly #mlpParameters: readonly Parameter[];

  constructor(sizes: DecoderLayerSizes, options: ModuleOptions = {}) {
    super();
    const eps = sizes.rmsNormEps;
    this.selfAttn = new Attention(sizes, options);
    this.mlp = new GatedMlp(sizes, options);
    this.inputLayernorm = new RmsNorm(sizes.hiddenSize, { ...options, eps });
    this.postAttentionLayernorm = new RmsNorm(sizes.hiddenSize, { ...options, eps });
    this.#mlpParameters = [...this.postAttentionLayernorm.parameters(), ...this.mlp.parameters()];
  }

  /** x [T, H] -> [T, H] */
  forward(x: Tensor, layout: TokenLayout, options: DecoderLayerOptions): Tensor {
    return scope(() => {
      const attended = scope(() => add(x, this.selfAttn.forward(this.inputLayernorm.forward(x), layout)));
      if (options.tileMlp === 0) return this.#feedForward(attended);
      return tiled((rows) => this.#feedForward(rows), attended, {
        rows: options.tileMlp,
        parameters: this.#mlpParameters,
      });
    });
  }

  #feedForward(x: Tensor): Tensor {
    return scope(() => add(x, this.mlp.forward(this.postAttentionLayernorm.forward(x))));
  }
}
