// Attention: projections of a flat run of tokens, rotary positions, softmax attention within documents, the way back.

import { attention, rope } from "../ops/index.js";
import { scope } from "../tensor/scope.js";
import type { Tensor } from "../tensor/tensor.js";
import { Linear } from "./linear.js";
import { Module, type ModuleOptions } from "./module.js";
import { RmsNorm } from "./rms_norm.js";

export interface AttentionSizes {
  /** H */
  readonly hiddenSize: number;
  /** N */
  readonly numHeads: number;
  /** K */
  readonly numKeyValueHeads: number;
  /** D */
  readonly headDim: number;
  readonly queryKeyValueBias?: boolean;
  readonly outputBias?: boolean;
  /** RMS norms over each head of q and k, with this eps. */
  readonly queryKeyNormEps?: number | null;
  /** Token i sees j iff 0 <= i - j < window; 0: all before it. */
  readonly window?: number;
}

/** What the layers of one forward pass share. */
export interface TokenLayout {
  /** [T] int64 */
  readonly positions: Tensor;
  /** [D/2] float32 */
  readonly inverseFrequencies: Tensor;
  /** Of cos and sin. */
  readonly attentionFactor: number;
  /** [documents + 1] int64; null: all tokens are one document. */
  readonly cuSeqlens: Tensor | null;
}

export class Attention extends Module {
  readonly qProj: Linear;
  readonly kProj: Linear;
  readonly vProj: Linear;
  readonly oProj: Linear;
  readonly qNorm: RmsNorm | null = null;
  readonly kNorm: RmsNorm | null = null;
  readonly #sizes: AttentionSizes;

  constructor(sizes: AttentionSizes, options: ModuleOptions = {}) {
    super();
    const { hiddenSize: H, numHeads: N, numKeyValueHeads: K, headDim: D, queryKeyNormEps: eps } = sizes;
    const bias = sizes.queryKeyValueBias ?? false;
    this.qProj = new Linear(H, N * D, { ...options, bias });
    this.kProj = new Linear(H, K * D, { ...options, bias });
    this.vProj = new Linear(H, K * D, { ...options, bias });
    this.oProj = new Linear(N * D, H, { ...options, bias: sizes.outputBias ?? false });
    if (eps !== undefined && eps !== null) {
      this.qNorm = new RmsNorm(D, { ...options, eps });
      this.kNorm = new RmsNorm(D, { ...options, eps });
    }
    this.#sizes = sizes;
  }

  /** x [T, H] -> [T, H] */
  forward(x: Tensor, layout: TokenLayout): Tensor {
    const { numHeads: N, numKeyValueHeads: K, headDim: D, window = 0 } = this.#sizes;
    return scope(() => {
      const q_TND = this.#rotate(this.#normalise(this.qProj.forward(x), this.qNorm, N), layout);
      const k_TKD = this.#rotate(this.#normalise(this.kProj.forward(x), this.kNorm, K), layout);
      const v_TKD = this.vProj.forward(x).view([-1, K, D]);
      const o_TND = attention(q_TND, k_TKD, v_TKD, { causal: true, window, cuSeqlens: layout.cuSeqlens });
      return this.oProj.forward(o_TND.view([-1, N * D]));
    });
  }

  /** [T, heads * D] -> [T, heads, D] */
  #normalise(x: Tensor, norm: RmsNorm | null, heads: number): Tensor {
    const D = this.#sizes.headDim;
    return (norm === null ? x : norm.forward(x.view([-1, D]))).view([-1, heads, D]);
  }

  #rotate(x: Tensor, layout: TokenLayout): Tensor {
    // In place: neither a projection nor a norm keeps its output for its backward.
    return rope(x, layout.positions, layout.inverseFrequencies, { scaling: layout.attentionFactor, inplace: true });
  }
}
