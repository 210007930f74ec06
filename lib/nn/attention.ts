// The attention half of a layer: projections of a flat run of tokens, rotary positions, softmax attention within
// documents, the way back, added to what came in.

import type { Communicator } from "../parallel/communicator.js";
import { attentionChunks } from "../sequence/attention_chunks.js";
import type { LayerCache } from "../sequence/key_value_cache.js";
import type { RingLayout } from "../sequence/ring.js";
import type { Tensor } from "../tensor/tensor.js";
import type { StepDropout } from "./adapter.js";
import { Linear } from "./linear.js";
import type { HalfNorms } from "./mlp.js";
import { Module, type ModuleOptions } from "./module.js";
import { Norm, type NormSizes } from "./norm.js";

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
  /** Norms of q and k: over each head, or over all heads of a token together. */
  readonly queryKeyNorm?: (NormSizes & { readonly acrossHeads: boolean }) | null;
  /** Token i sees j iff 0 <= i - j < window; 0: all before it. */
  readonly window?: number;
  /** Factor on q.k. Default 1 / sqrt(D). */
  readonly attentionScale?: number;
  /** Scores become softcap * tanh(score / softcap); null: they stay. */
  readonly attentionSoftcap?: number | null;
  /** Which of the layout's sets of frequencies turns q and k; null: none. Default 0. */
  readonly rope?: number | null;
}

/** Frequencies of rotary positions, as the rope op takes them. */
export interface Frequencies {
  /** [dims that turn / 2] float32: the first dims of each head. */
  readonly inverse: Tensor;
  /** Of cos and sin. */
  readonly attentionFactor: number;
}

/** What the layers of one forward pass share. */
export interface TokenLayout {
  /** Ranks that exchange tokens for heads before attention, which then has T tokens; null: this one has all heads. */
  readonly group: Communicator | null;
  /** Ranks between which keys and values go round, and who needs whose; null: attention has all tokens. */
  readonly ring: RingLayout | null;
  /** [T] int64 */
  readonly positions: Tensor;
  /** Sets of frequencies, of which each layer names one. */
  readonly frequencies: readonly Frequencies[];
  /** [documents + 1] int64; null: all tokens are one document. */
  readonly cuSeqlens: Tensor | null;
  /** What adapters drop, the rows being those of this rank's tokens; null: nothing. */
  readonly dropout: StepDropout | null;
}

/** How it is cut up. */
export interface AttentionOptions {
  /** Chunks of query heads, a divisor of N. */
  readonly chunks: number;
  /** Rows (tokens) of a tile of the norm and the projections; 0: all at once. */
  readonly rows: number;
  /** Keys and values of tokens before these, to which theirs are added. Default: there are none. */
  readonly cache?: LayerCache | null;
}

export class Attention extends Module {
  readonly qProj: Linear;
  readonly kProj: Linear;
  readonly vProj: Linear;
  readonly oProj: Linear;
  readonly qNorm: Norm | null = null;
  readonly kNorm: Norm | null = null;
  readonly #sizes: AttentionSizes;

  constructor(sizes: AttentionSizes, options: ModuleOptions = {}) {
    super();
    const { hiddenSize: H, numHeads: N, numKeyValueHeads: K, headDim: D, queryKeyNorm = null } = sizes;
    const bias = sizes.queryKeyValueBias ?? false;
    this.qProj = new Linear(H, N * D, { ...options, bias });
    this.kProj = new Linear(H, K * D, { ...options, bias });
    this.vProj = new Linear(H, K * D, { ...options, bias });
    this.oProj = new Linear(N * D, H, { ...options, bias: sizes.outputBias ?? false });
    if (queryKeyNorm !== null) {
      const { acrossHeads } = queryKeyNorm;
      this.qNorm = new Norm(acrossHeads ? N * D : D, queryKeyNorm, options);
      this.kNorm = new Norm(acrossHeads ? K * D : D, queryKeyNorm, options);
    }
    this.#sizes = sizes;
  }

  /** x [T, H] -> x + attention(norm(x)) [T, H], with the norms that surround it. */
  forward(x: Tensor, norms: HalfNorms, layout: TokenLayout, options: AttentionOptions): Tensor {
    const { numHeads: heads, numKeyValueHeads: kvHeads, headDim, window = 0, rope = 0 } = this.#sizes;
    const { queryKeyNorm = null, attentionScale: scale = 1 / Math.sqrt(headDim), attentionSoftcap } = this.#sizes;
    const { qProj: q, kProj: k, vProj: v, oProj: o, qNorm, kNorm } = this;
    const { group, ring, positions, cuSeqlens, dropout } = layout;
    const { before, behind } = norms;
    const turning = rope === null ? undefined : layout.frequencies[rope];
    return attentionChunks(
      x,
      {
        norm: before?.weight ?? null,
        normBias: before?.bias ?? null,
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
        outNorm: behind?.weight ?? null,
        qA: q.adapter?.loraA ?? null,
        qB: q.adapter?.loraB ?? null,
        kA: k.adapter?.loraA ?? null,
        kB: k.adapter?.loraB ?? null,
        vA: v.adapter?.loraA ?? null,
        vB: v.adapter?.loraB ?? null,
        oA: o.adapter?.loraA ?? null,
        oB: o.adapter?.loraB ?? null,
        rows: dropout?.rows ?? null,
      },
      {
        group,
        ring,
        positions,
        cuSeqlens,
        inverseFrequencies: turning?.inverse ?? null,
        attentionFactor: turning?.attentionFactor ?? 1,
        ...options,
        heads,
        kvHeads,
        headDim,
        window,
        scale,
        softcap: attentionSoftcap ?? 0,
        norm: before?.kind ?? null,
        headNorm: queryKeyNorm,
        outNorm: behind?.kind ?? null,
        adapters: {
          q: q.adapter?.kind(dropout) ?? null,
          k: k.adapter?.kind(dropout) ?? null,
          v: v.adapter?.kind(dropout) ?? null,
          o: o.adapter?.kind(dropout) ?? null,
        },
      },
    );
  }
}
