// One layer of a decoder: attention and MLP, each with its norms, each added to what came in, or to what the layer got.

import { add } from "../ops/binary.js";
import type { LayerCache } from "../sequence/key_value_cache.js";
import { tiled } from "../sequence/tiled.js";
import { scope } from "../tensor/scope.js";
import type { Parameter, Tensor } from "../tensor/tensor.js";
import { stepDropoutOf } from "./adapter.js";
import { Attention, type AttentionSizes, type TokenLayout } from "./attention.js";
import { type ExpertSizes, MixtureOfExperts } from "./mixture_of_experts.js";
import { type HalfNorms, Mlp, type MlpSizes } from "./mlp.js";
import { Module, type ModuleOptions } from "./module.js";
import { Norm, type NormSizes } from "./norm.js";
import type { Routing } from "./routing.js";

export interface DecoderLayerSizes extends AttentionSizes, MlpSizes {
  readonly norm: NormSizes;
  /** Where each half has a norm: before its first products, behind its last one, or both. Default before. */
  readonly normPlaces?: "before" | "behind" | "both";
  /** Whether attention and MLP both read what the layer got (GPT-NeoX), instead of the MLP what attention left. */
  readonly parallelResidual?: boolean;
  /** In the place of the MLP; the number of the layer among those that have experts. Default: an MLP. */
  readonly experts?: (ExpertSizes & { readonly layer: number }) | null;
}

export interface DecoderLayerOptions {
  /** Rows (tokens) of a tile of norms, projections and MLP; the MLP's are recomputed in the backward. 0: all at once. */
  readonly tileMlp: number;
  /** Chunks of query heads, a divisor of their number; with more than one q, k and v are recomputed. */
  readonly headChunks: number;
  /** Where routers count. Default: nowhere. */
  readonly routing?: Routing | null;
  /** Keys and values of tokens before these. Default: there are none. */
  readonly cache?: LayerCache | null;
}

export class DecoderLayer extends Module {
  readonly selfAttn: Attention;
  readonly mlp: Mlp | MixtureOfExperts;
  /** Before attention. */
  readonly inputLayernorm: Norm | null;
  /** Before the MLP. */
  readonly postAttentionLayernorm: Norm | null;
  /** Behind attention's and the MLP's last product. */
  readonly attentionOutputNorm: Norm | null;
  readonly mlpOutputNorm: Norm | null;
  readonly #parallel: boolean;

  constructor(sizes: DecoderLayerSizes, options: ModuleOptions = {}) {
    super();
    const { normPlaces = "before" } = sizes;
    const normAt = (...places: string[]) =>
      places.includes(normPlaces) ? new Norm(sizes.hiddenSize, sizes.norm, options) : null;
    this.selfAttn = new Attention(sizes, options);
    const { experts = null, activation = "silu" } = sizes;
    this.mlp =
      experts === null
        ? new Mlp(sizes, options)
        : new MixtureOfExperts(sizes.hiddenSize, { ...experts, activation }, options);
    this.inputLayernorm = normAt("before", "both");
    this.postAttentionLayernorm = normAt("before", "both");
    this.attentionOutputNorm = normAt("behind", "both");
    this.mlpOutputNorm = normAt("behind", "both");
    this.#parallel = sizes.parallelResidual ?? false;
  }

  get #mlpParameters(): Parameter[] {
    const own = [this.postAttentionLayernorm, this.mlp, this.mlpOutputNorm];
    return own.flatMap((module) => module?.parameters() ?? []);
  }

  /** x [T, H] -> [T, H] */
  forward(x: Tensor, layout: TokenLayout, options: DecoderLayerOptions): Tensor {
    const { selfAttn, mlp } = this;
    const ofAttention: HalfNorms = { before: this.inputLayernorm, behind: this.attentionOutputNorm };
    const ofMlp: HalfNorms = { before: this.postAttentionLayernorm, behind: this.mlpOutputNorm };
    const { dropout } = layout;
    const others = dropout === null ? [] : [dropout.rows];
    const inTiles = { rows: options.tileMlp, parameters: this.#mlpParameters, others };
    const { routing = null } = options;
    const run = (tile: Tensor, first: number, rows?: Tensor) =>
      mlp.forward(tile, ofMlp, {
        residual: !this.#parallel,
        first,
        routing,
        dropout: dropout && stepDropoutOf({ ...dropout, rows: rows as Tensor }, first, tile.shape[0] as number),
      });
    return scope(() => {
      const attended = selfAttn.forward(x, ofAttention, layout, {
        chunks: options.headChunks,
        rows: options.tileMlp,
        cache: options.cache ?? null,
      });
      if (!this.#parallel) return tiled(run, attended, inTiles);
      return add(attended, tiled(run, x, inTiles));
    });
  }
}
