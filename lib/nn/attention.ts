// The attention half of a layer: projections of a flat run of tokens, rotary positions, softmax attention within
// documents, the way back, added to what came in.

import type { Communicator } from "../parallel/communicator.js";
import { attentionChunks } from "../sequence/attention_chunks.js";
import type { RingLayout } from "../sequence/ring.js";
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
  /** Ranks that exchange tokens for heads before attention, which then has T tokens; null: this one has all heads. */
  readonly group: Communicator | null;
  /** Ranks between which keys and values go round, and who needs whose; null: attention has all tokens. */
  readonly ring: RingLayout | null;
  /** [T] int64 */
  readonly positions: Tensor;
  /** [D/2] float32 */
  readonly inverseFrequencies: Tensor;
  /** Of cos and sin. */
  readonly attentionFactor: number;
  /** [documents + 1] int64; null: all tokens are one document. */
  readonly cuSeqlens: Tensor | null;
}

/** How it is cut up. */
export interface AttentionOptions {
  /** Chunks of query heads, a divisor of N. */
  readonly chunks: number;
  /** Rows (tokens) of a tile of the norm and the projections; 0: all at once. */
  readonly rows: number;
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

  /** x [T, H] and the norm before the projections -> x + attention(norm(x)) [T, H] */
  forward(x: Tensor, norm: RmsNorm, layout: TokenLayout, options: AttentionOptions): Tensor {
    const { numHeads: heads, numKeyValueHeads: kvHeads, headDim, window = 0 } = this.#sizes;
    const { qProj: q, kProj: k, vProj: v, oProj: o, qNorm, kNorm } = this;
    return attentionChunks(
      x,
      {
        norm: norm.weight,
        q: q.weight,
        k: k.weight,
        v: v.weight,
        o: o.weight,
        qBias: q.bias,
        kBias: k.bias,
        vBias: v.bias,
        oBias: o.bias,
        qNorm: qNorm?.weight ?? null,
        kNorm: kNorm?.weight ?? null,
      },
      { ...layout, ...options, heads, kvHeads, headDim, window, eps: norm.eps, headEps: qNorm?.eps ?? 0 },
    );
  }
}
