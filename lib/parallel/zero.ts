// ZeRO (arXiv 1910.02054): parameters that are used together are laid end to end, and each rank keeps an equal share of
// them, of their gradients and of what the optimizer holds for them. Level 1 shares the optimizer's states, 2 the
// gradients too, 3 the parameters too: they are gathered for the layer that uses them.
import { binding } from "../binding.js";
import { allGatherInto } from "../ops/all_gather.js";
import { copyInto } from "../ops/copy.js";
import { reduceScatterInto } from "../ops/reduce_scatter.js";
import type { DecayRange } from "../optim/adamw.js";
import { scope, untracked } from "../tensor/scope.js";
import { Parameter, type ParameterTier, Tensor } from "../tensor/tensor.js";
import { clearGradients, queues } from "../tensor/tiers.js";
import type { Communicator } from "./communicator.js";

export type ZeroLevel = 0 | 1 | 2 | 3;

/** How the states of a model are spread over ranks. */
export interface ZeroOptions {
  /** The ranks that hold different tokens: they add up gradients, and share the states. */
  readonly group: Communicator;
  /** 0: every rank holds all. */
  readonly level: ZeroLevel;
}

/** A stretch of a named tensor: its elements `begin` .. `begin + count - 1`, row-major, lie at `offset` of a leaf. */
export interface Segment {
  readonly name: string;
  readonly shape: readonly number[];
  readonly begin: number;
  readonly count: number;
  readonly offset: number;
}

/** What this rank holds and updates: a parameter of the model, or a share of several. */
export interface Owned {
  readonly leaf: Parameter;
  readonly segments: readonly Segment[];
}

/** A parameter of one rank, as what that rank holds. */
export const ownedWhole = (name: string, { storage: leaf }: Parameter): Owned => ({
  leaf,
  segments: [{ name, shape: leaf.shape, begin: 0, count: leaf.size, offset: 0 }],
});

/** What of a leaf decays: matrices do. Stretches side by side that agree are one. */
export function decayRanges({ segments }: Owned): DecayRange[] {
  const ranges: DecayRange[] = [];
  for (const { shape, offset, count } of segments) {
    const decays = shape.length >= 2;
    const last = ranges.at(-1);
    // Between two stretches there is at most the gap that aligns the second.
    if (last !== undefined && last.decays === decays) last.count = offset + count - last.begin;
    else ranges.push({ begin: offset, count, decays });
  }
  return ranges;
}

/** Parameters begin at multiples of so many elements, and so do shares: as wide as any kernel wants its rows. */
const ALIGNMENT = 64;

const aligned = (elements: number): number => Math.ceil(elements / ALIGNMENT) * ALIGNMENT;

interface Member {
  readonly name: string;
  readonly parameter: Parameter;
  /** Where it begins in the whole. */
  readonly begin: number;
}

/** Parameters of one dtype that are used together, end to end: P shares of L elements. */
export class FlatParameters implements Owned {
  /** [L]; its gradient is that of the share. */
  readonly leaf: Parameter;
  readonly segments: readonly Segment[];
  readonly #members: readonly Member[];
  /** Stretches of the whole that belong to no parameter. */
  readonly #gaps: readonly (readonly [begin: number, end: number])[];
  readonly #group: Communicator;
  /** L */
  readonly #length: number;
  /** [P, L], where every rank keeps all of them; the leaf is its row. */
  readonly #whole: Tensor | null;
  /** What of it the parameters are lent. */
  readonly #lent: ReadonlyMap<Parameter, Tensor>;

  /** whole: every rank keeps all values. tier: where the share lies otherwise. */
  constructor(
    named: readonly (readonly [name: string, parameter: Parameter])[],
    group: Communicator,
    { whole, tier }: { whole: boolean; tier: ParameterTier },
  ) {
    let end = 0;
    const gaps: [number, number][] = [];
    this.#members = named.map(([name, parameter]) => {
      const begin = aligned(end);
      if (begin > end) gaps.push([end, begin]);
      end = begin + parameter.size;
      return { name, parameter, begin };
    });
    this.#group = group;
    this.#length = aligned(Math.ceil(end / group.size));
    if (this.#length * group.size > end) gaps.push([end, this.#length * group.size]);
    this.#gaps = gaps;
    const { dtype, device, requiresGrad } = (named[0] as (typeof named)[0])[1];
    const empty = (shape: readonly number[], where: ParameterTier): Tensor =>
      untracked(() => Tensor.empty(shape, { dtype, device, category: "params", tier: where }).fill(0));
    this.#whole = whole ? empty([group.size, this.#length], "device") : null;
    this.leaf = untracked(
      () =>
        new Parameter(
          this.#whole === null ? empty([this.#length], tier) : this.#rowOf(this.#whole),
          requiresGrad,
          tier,
        ),
    );
    this.#lent = this.#whole === null ? new Map() : this.views(this.#whole);
    for (const [parameter, view] of this.#lent) parameter.lend(view);
    const [first, last] = [group.rank * this.#length, (group.rank + 1) * this.#length];
    this.segments = this.#members.flatMap(({ name, parameter: { shape, size }, begin }) => {
      const [from, to] = [Math.max(begin, first), Math.min(begin + size, last)];
      return from < to ? [{ name, shape, begin: from - begin, count: to - from, offset: from - first }] : [];
    });
  }

  /** Whether every rank keeps all values, which the parameters are lent for good. */
  get isWhole(): boolean {
    return this.#whole !== null;
  }

  get parameters(): Parameter[] {
    return this.#members.map(({ parameter }) => parameter);
  }

  /** Whether a backward left gradients that are still to be summed over the ranks. All ranks agree on that. */
  get hasGradient(): boolean {
    return this.#members.some(({ parameter }) => parameter.grad !== null);
  }

  /** This rank's row of [P, L]. */
  #rowOf(whole: Tensor): Tensor {
    return whole.viewOf([this.#length], [1], this.#group.rank * this.#length);
  }

  /** Each parameter in [P, L]. */
  views(whole: Tensor): Map<Parameter, Tensor> {
    return untracked(
      () =>
        new Map(
          this.#members.map(({ parameter, begin }) => [
            parameter,
            whole.viewOf(parameter.shape, parameter.strides, begin),
          ]),
        ),
    );
  }

  /** All values, [P, L], on their way. Errors: OutOfMemoryError. */
  gather(): Tensor {
    const { dtype, device, tier } = this.leaf;
    const whole = untracked(() =>
      Tensor.empty([this.#group.size, this.#length], { dtype, device, category: "params" }),
    );
    if (tier === "device") allGatherInto(this.leaf, whole, this.#group);
    else {
      const row = untracked(() => this.#rowOf(whole));
      binding.ops.copy(this.leaf.native(), row.native(), queues.copyIn);
      allGatherInto(row, whole, this.#group);
      row.dispose();
    }
    return whole;
  }

  /** After an update of the shares: every rank gets the others'. */
  refresh(): void {
    if (this.#whole !== null) allGatherInto(this.leaf, this.#whole, this.#group);
  }

  /**
   * Adds the gradients of all ranks up; the share's goes to the leaf's `grad`, or is added to it, and the parameters'
   * are gone. Returns what the exchange reads, for the caller to dispose of when it is over. Errors: OutOfMemoryError.
   */
  reduce(): Tensor[] {
    const { device } = this.leaf;
    const float32 = (shape: readonly number[], category: "comm" | "grads"): Tensor =>
      untracked(() => Tensor.empty(shape, { device, dtype: "float32", category }));
    const all = float32([this.#group.size, this.#length], "comm");
    scope(() => {
      for (const [begin, end] of this.#gaps) all.viewOf([end - begin], [1], begin).fill(0);
      for (const { parameter, begin } of this.#members) {
        const to = all.viewOf(parameter.shape, parameter.strides, begin);
        if (parameter.grad === null) to.fill(0);
        else copyInto(parameter.grad, to);
        parameter.grad?.dispose();
        parameter.grad = null;
      }
    });
    const share = float32([this.#length], "grads");
    reduceScatterInto(all, share, this.#group);
    if (this.leaf.grad === null) {
      this.leaf.grad = share;
      return [all];
    }
    binding.ops.axpby(share.native(), this.leaf.grad.native(), null, 1, 1, queues.comm);
    return [all, share];
  }

  dispose(): void {
    for (const [parameter, view] of this.#lent) {
      parameter.lend(null);
      view.dispose();
    }
    clearGradients([this.leaf]);
    this.leaf.dispose();
    this.#whole?.dispose();
  }
}
