// One layer of a decoder: attention and gated MLP, each behind a norm, each added to what came in.

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
  /** Rows (tokens) of a tile of norms, projections and MLP; the MLP's are recomputed in the backward. 0: all at once. */
  readonly tileMlp: number;
  /** Chunks of query heads, a divisor of their number; with more than one q, k and v are recomputed. */
  readonly headChunks: number;
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
    const { inputLayernorm, postAttentionLayernorm, selfAttn, mlp } = this;
    return scope(() => {
      const attended = selfAttn.forward(x, inputLayernorm, layout, {
        chunks: options.headChunks,
        rows: options.tileMlp,
      });
      return tiled((rows) => mlp.forward(rows, postAttentionLayernorm), attended, {
        rows: options.tileMlp,
        parameters: this.#mlpParameters,
      });
    });
  }
}
