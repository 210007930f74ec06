// How evenly a model's routers spread tokens over experts: counted in the forward, and the load-balancing loss of it
// (arXiv 2101.03961, equations 4 to 6, over all layers together as transformers forms it).

import { type Context, Function, type Grad } from "../autograd/function.js";
import { binding } from "../binding.js";
import { ArgumentError } from "../errors.js";
import { allReduceInto } from "../ops/all_reduce.js";
import type { RouteBalance, RouteLoad } from "../ops/route.js";
import type { Communicator } from "../parallel/communicator.js";
import type { Device } from "../tensor/device.js";
import { scope, untracked } from "../tensor/scope.js";
import { Tensor } from "../tensor/tensor.js";

export interface RoutingSizes {
  /** Layers that have experts. */
  readonly layers: number;
  /** E */
  readonly experts: number;
  /** k */
  readonly active: number;
  /** Factor of the load-balancing loss; 0: there is none, and tokens are counted alone. */
  readonly coefficient: number;
}

/**
 * The routing of one loss: of a batch, or of all micro-batches and ranks of a step. Forwards are counted once;
 * `complete` closes the count, before the first backward where there is a load-balancing loss.
 */
export class Routing {
  readonly sizes: RoutingSizes;
  /** [L, 2, E] float64: tokens that chose each expert, and sums of its probs. */
  readonly load: Tensor;
  /** [1, E] float64: tokens over all layers. */
  readonly #share: Tensor;
  /** [] float64: a prob's gradient is this times its expert's share. */
  readonly #factor: Tensor;
  /** [] float64: E / rows^2, rows those of all layers. */
  readonly #scale: Tensor;
  #recording = false;
  #counted = 0;

  constructor(sizes: RoutingSizes, device: Device) {
    const { layers, experts } = sizes;
    this.sizes = sizes;
    const zeros = (shape: number[]): Tensor => untracked(() => Tensor.full(shape, 0, { device, dtype: "float64" }));
    this.load = zeros([layers, 2, experts]);
    this.#share = zeros([1, experts]);
    this.#factor = zeros([]);
    this.#scale = zeros([]);
  }

  /** Nothing is counted yet. */
  clear(): void {
    this.load.fill(0);
  }

  /** Runs a forward of which the first `counted` tokens count. record: it is its first; a recomputation is none. */
  run<T>(counted: number, record: boolean, fn: () => T): T {
    [this.#recording, this.#counted] = [record, counted];
    try {
      return fn();
    } finally {
      this.#recording = false;
    }
  }

  /** Of the present forward's tokens from number `first` on, how many count. */
  countedOf(first: number, rows: number): number {
    return Math.min(Math.max(this.#counted - first, 0), rows);
  }

  /** What a router adds to: layer number `layer` of those with experts. */
  loadOf(layer: number, counted: number): RouteLoad {
    if (!this.#recording) return { load: null, counted: 0 };
    const { experts } = this.sizes;
    return { load: this.load.viewOf([2, experts], [experts, 1], layer * 2 * experts), counted };
  }

  /** What a router's backward is to add for the load-balancing loss. */
  balanceOf(counted: number): RouteBalance | null {
    if (this.sizes.coefficient === 0) return null;
    return { share: this.#share.viewOf([this.sizes.experts], [1], 0), factor: this.#factor, counted };
  }

  /** All forwards were recorded: sums over ranks and layers. */
  complete(ranks: Communicator | null): void {
    if (ranks !== null) allReduceInto(this.load, ranks);
    const { experts, active } = this.sizes;
    scope(() => {
      const over = (row: number, to: Tensor): void => {
        const of = this.load.viewOf([this.sizes.layers, experts], [2 * experts, 1], row * experts);
        binding.ops.sum(of.native(), to.native(), 1, false);
      };
      over(0, this.#share);
      const { device } = this.load;
      const scalar = (): Tensor => Tensor.empty([1, 1], { device, dtype: "float64" });
      // Each row has k choices.
      const rows = scalar();
      binding.ops.sum(this.#share.native(), rows.native(), 1 / active, false);
      const scale = this.#scale.viewOf([1, 1], [1, 1], 0);
      scale.fill(experts);
      for (let i = 0; i < 2; i++) binding.ops.binary(scale.native(), rows.native(), scale.native(), DIV);
    });
  }

  /** loss + coefficient * (the load-balancing loss), once complete; its gradient reaches the routers' backwards. */
  addTo(loss: Tensor, { dispose = false } = {}): Tensor {
    if (this.sizes.coefficient === 0) throw new ArgumentError("routing: there is no load-balancing loss to add");
    return balanced.apply(loss, this, dispose);
  }

  /** [] float64: coefficient * E * sum over e of (share of tokens) * (mean prob). */
  value(): Tensor {
    return scope(() => {
      const { experts, layers, coefficient } = this.sizes;
      const { device } = this.load;
      const made = Tensor.empty([1, experts], { device, dtype: "float64" });
      const probs = this.load.viewOf([layers, experts], [2 * experts, 1], experts);
      binding.ops.sum(probs.native(), made.native(), 1, false);
      binding.ops.binary(made.native(), this.#share.native(), made.native(), MUL);
      const value = Tensor.empty([1, 1], { device, dtype: "float64" });
      binding.ops.sum(made.native(), value.native(), coefficient, false);
      const scale = this.#scale.viewOf([1, 1], [1, 1], 0);
      binding.ops.binary(value.native(), scale.native(), value.native(), MUL);
      return value.viewOf([], [], 0);
    });
  }

  /** The upstream gradient of the loss, for the backwards that follow. */
  setGradient(dloss: Tensor | null): void {
    const { coefficient } = this.sizes;
    binding.ops.axpby(this.#scale.native(), this.#factor.native(), dloss?.native() ?? null, coefficient, 0);
  }

  dispose(): void {
    for (const tensor of [this.load, this.#share, this.#factor, this.#scale]) tensor.dispose();
  }
}

/** In the order of ls_binary_kind. */
const [MUL, DIV] = [2, 3];

class Balanced extends Function<[Tensor, Routing, boolean], Tensor> {
  readonly name = "load_balancing";
  forward(ctx: Context, loss: Tensor, routing: Routing, dispose: boolean): Tensor {
    const total = Tensor.empty([], { device: loss.device, dtype: "float64" });
    const value = routing.value();
    binding.ops.binary(loss.native(), value.native(), total.native(), 0);
    ctx.values = { routing };
    if (dispose) ctx.own(routing, { walk: true });
    return total;
  }
  backward(ctx: Context, dloss: Tensor): Grad[] {
    (ctx.values.routing as Routing).setGradient(dloss);
    return [dloss];
  }
}
const balanced = new Balanced();

/** How evenly a step's tokens were spread over experts. */
export interface ExpertBalance {
  /** E * sum over e of (share of tokens) * (mean prob), k where all experts are alike. */
  readonly auxLoss: number;
  /** Of each expert of each layer. */
  readonly tokensPerExpert: { readonly max: number; readonly mean: number };
}

/** load: that of a complete Routing. */
export function expertBalance(load: Float64Array, { layers, experts, active }: RoutingSizes): ExpertBalance {
  const at = (layer: number, row: number, e: number): number => load[(layer * 2 + row) * experts + e] as number;
  let [sum, max, product] = [0, 0, 0];
  for (let e = 0; e < experts; e++) {
    let [tokens, probs] = [0, 0];
    for (let layer = 0; layer < layers; layer++) {
      tokens += at(layer, 0, e);
      probs += at(layer, 1, e);
      max = Math.max(max, at(layer, 0, e));
    }
    sum += tokens;
    product += tokens * probs;
  }
  return {
    auxLoss: (experts * product * active ** 2) / sum ** 2,
    tokensPerExpert: { max, mean: sum / (layers * experts) },
  };
}
