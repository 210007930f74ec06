// The low-rank adapter of a linear module (LoRA, arXiv 2106.09685): scale * drop(x) A^T B^T beside x W^T.

import { type LowRank, lowRank, lowRankOf } from "../ops/low_rank.js";
import { Parameter, type Tensor } from "../tensor/tensor.js";
import { Module, type ModuleOptions } from "./module.js";

export interface AdapterSizes {
  readonly inFeatures: number;
  readonly outFeatures: number;
  /** r */
  readonly rank: number;
  readonly scale: number;
  /** The part of its inputs that is dropped in training. */
  readonly dropout: number;
  /** Tells its dropout from that of other adapters; equal for those that share A. */
  readonly stream: number;
}

/** The dropout of a step: a key, and the number of each token in it. */
export interface StepDropout {
  readonly seed: number;
  /** [T] int64, of the rows that a layer gets. */
  readonly rows: Tensor;
}

/** That of some of the rows, a view that belongs to the caller's scope. */
export const stepDropoutOf = ({ seed, rows }: StepDropout, first: number, count: number): StepDropout => ({
  seed,
  rows: rows.viewOf([count], rows.strides, first * (rows.strides[0] as number)),
});

export class Adapter extends Module {
  /** [r, I] */
  readonly loraA: Parameter;
  /** [O, r] */
  readonly loraB: Parameter;
  readonly #sizes: AdapterSizes;

  /** A of another adapter, where several share it: modules that are one in a checkpoint. */
  constructor(sizes: AdapterSizes, options: ModuleOptions, shared: Parameter | null = null) {
    super();
    const { inFeatures, outFeatures, rank } = sizes;
    this.loraA = shared ?? Parameter.empty([rank, inFeatures], options);
    this.loraB = Parameter.empty([outFeatures, rank], options);
    this.#sizes = sizes;
  }

  /** How it is applied; step: null where nothing is dropped. */
  kind(step: StepDropout | null): Pick<LowRank, "scale" | "dropout"> {
    const { scale, dropout: rate, stream } = this.#sizes;
    return { scale, dropout: step === null || rate === 0 ? null : { rate, seed: step.seed, stream } };
  }

  /** As the halves of a layer take it. */
  lowRank(step: StepDropout | null): LowRank {
    return lowRankOf(this.kind(step), this.loraA, this.loraB, step?.rows ?? null) as LowRank;
  }

  /** x [T, I] -> [T, O], to be added to the product. */
  forward(x: Tensor, step: StepDropout | null = null): Tensor {
    return lowRank(x, this.lowRank(step));
  }
}
