// The feed-forward half of a layer as a mixture of experts (arXiv 2101.03961, 2401.04088): each token goes to k of E
// gated MLPs, the most probable ones by a router, and their results are added up; a shared expert may serve all tokens.

import { type Context, Function, type Grad } from "../autograd/function.js";
import { binding } from "../binding.js";
import { add, broadcastView, mul } from "../ops/binary.js";
import { combineInto } from "../ops/combine.js";
import { groupedMatmulInto } from "../ops/grouped_matmul.js";
import { matmulInto, matmulTransposed } from "../ops/matmul.js";
import { type RouteOptions, routeBackwardInto, routeInto } from "../ops/route.js";
import { rowDotInto } from "../ops/row_dot.js";
import { type Activation, unary, unaryCode } from "../ops/unary.js";
import { scope } from "../tensor/scope.js";
import { Parameter, produce, Tensor } from "../tensor/tensor.js";
import { Linear } from "./linear.js";
import { type FeedForwardCall, type HalfNorms, Mlp } from "./mlp.js";
import { Module, type ModuleOptions } from "./module.js";
import type { Routing } from "./routing.js";

export interface ExpertSizes {
  /** E */
  readonly count: number;
  /** k */
  readonly active: number;
  /** F of each. */
  readonly intermediateSize: number;
  /** Whether the weights of a token's experts are divided by their sum. */
  readonly normalize: boolean;
  /** F of an expert that serves all tokens, weighted by a sigmoid of its own; null: there is none. */
  readonly sharedIntermediateSize: number | null;
}

export interface RoutedOptions extends RouteOptions {
  readonly activation: Activation;
  /** Of which layer with experts, and the number of the first token. */
  readonly layer: number;
  readonly first: number;
  readonly routing: Routing | null;
}

/** Arguments: options, n [T, H], router [E, H], gate, up [E, F, H], down [E, H, F]. */
const [N, ROUTER, GATE, UP, DOWN] = [1, 2, 3, 4, 5];
/** What is saved that a backward may overwrite. */
const [PROBS, OF_GATE, OF_UP] = [1, 7, 8];

/** x[rows] [M, H]. */
function gathered(x: Tensor, rows: Tensor): Tensor {
  const y = Tensor.empty([rows.shape[0] as number, x.shape[1] as number], { device: x.device, dtype: x.dtype });
  binding.ops.embedding(rows.native(), x.native(), y.native());
  return y;
}

/** x[m] *= weights[m]. */
function scaleRows(x: Tensor, weights: Tensor): void {
  const column = weights.viewOf([weights.shape[0] as number, 1], [1, 1], 0);
  const spread = broadcastView(column, x.shape);
  binding.ops.binary(x.native(), spread.native(), x.native(), 2);
  spread.dispose();
  column.dispose();
}

/** Saves n, the routes, gate(n) and up(n) of all rows; what goes into the down projections is cheap to make again. */
class Routed extends Function<[RoutedOptions, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor> {
  readonly name = "mixture_of_experts";

  forward(ctx: Context, options: RoutedOptions, n: Tensor, router: Tensor, gate: Tensor, up: Tensor, down: Tensor) {
    return scope(() => {
      const { device, dtype } = n;
      const [T = 0, H = 0] = n.shape;
      const F = up.shape[1] as number;
      const { routing, layer, first } = options;
      const logits = Tensor.empty([T, router.shape[0] as number], { device, dtype: "float32" });
      matmulTransposed(n, false, router, true, logits);
      const counted = routing?.countedOf(first, T) ?? 0;
      const load = routing?.loadOf(layer, counted) ?? { load: null, counted };
      const routes = routeInto(logits, options, load);
      const rows = gathered(n, routes.tokens);
      const M = rows.shape[0] as number;
      const project = (weight: Tensor): Tensor => {
        const out = Tensor.empty([M, F], { device, dtype });
        groupedMatmulInto(rows, weight.transpose(1, 2), out, routes.offsets);
        return out;
      };
      const g = project(gate);
      const u = project(up);
      rows.dispose();
      const { probs, experts, slots, tokens, weights, offsets } = routes;
      ctx.save(n, probs, experts, slots, tokens, weights, offsets, g, u, router, gate, up, down);
      ctx.values = { options, counted };
      const recording = ctx.recording;
      return produce([T, H], { device, dtype }, [g, u, down, slots, weights, offsets], (...given) =>
        scope(() => {
          const [ofGate, ofUp, by, where, counts, bounds] = given as [Tensor, Tensor, Tensor, Tensor, Tensor, Tensor];
          // Without a backward to come what was made is nobody's any more.
          const inner = recording ? Tensor.empty([M, F], { device, dtype }) : ofGate;
          binding.ops.swiglu(ofGate.native(), ofUp.native(), inner.native(), unaryCode(options.activation));
          const made = Tensor.empty([M, H], { device, dtype });
          groupedMatmulInto(inner, by.transpose(1, 2), made, bounds);
          const y = Tensor.empty([T, H], { device, dtype });
          combineInto(made, where, counts, y);
          return y;
        }),
      );
    });
  }

  backward(ctx: Context, dy: Tensor): Grad[] {
    return scope(() => this.#backward(ctx, dy));
  }

  #backward(ctx: Context, dy: Tensor): Grad[] {
    const { options, counted } = ctx.values as { options: RoutedOptions; counted: number };
    const [n, probs, experts, slots] = [ctx.saved(0), ctx.saved(PROBS), ctx.saved(2), ctx.saved(3)];
    const [tokens, weights, offsets] = [ctx.saved(4), ctx.saved(5), ctx.saved(6)];
    const [g, u] = [ctx.saved(OF_GATE), ctx.saved(OF_UP)];
    const [router, gate, up, down] = [ctx.saved(9), ctx.saved(10), ctx.saved(11), ctx.saved(12)];
    const gradOf = [ROUTER, GATE, UP, DOWN].map((index) => ctx.weight(index));
    const [ofRouter, ofGate, ofUp, ofDown] = gradOf;
    const { device, dtype } = n;
    const [M, F] = g.shape as [number, number];
    const like = { device, dtype };
    const kind = unaryCode(options.activation);

    // The results' gradient by rows; what weights them comes in behind the down projections.
    const drows = gathered(dy, tokens);
    const inner = Tensor.empty([M, F], like);
    binding.ops.swiglu(g.native(), u.native(), inner.native(), kind);
    const dinner = Tensor.empty([M, F], like);
    groupedMatmulInto(drows, down, dinner, offsets);
    const dweights = Tensor.empty([M], { device, dtype: "float32" });
    rowDotInto(dinner, inner, dweights);
    scaleRows(dinner, weights);
    if (ofDown) {
      scaleRows(inner, weights);
      ofDown.add((out, accumulate) => groupedMatmulInto(drows.transpose(0, 1), inner, out, offsets, accumulate));
    }
    inner.dispose();
    drows.dispose();
    const dg = ctx.lastUse(OF_GATE) ? g : Tensor.empty([M, F], like);
    const du = ctx.lastUse(OF_UP) ? u : Tensor.empty([M, F], like);
    binding.ops.swigluBackward(g.native(), u.native(), dinner.native(), dg.native(), du.native(), kind);
    dinner.dispose();
    if (ofGate || ofUp) {
      const rows = gathered(n, tokens);
      for (const [d, grad] of [
        [dg, ofGate],
        [du, ofUp],
      ] as const)
        grad?.add((out, accumulate) => groupedMatmulInto(d.transpose(0, 1), rows, out, offsets, accumulate));
      rows.dispose();
    }

    const dlogits = ctx.lastUse(PROBS) ? probs : Tensor.empty(probs.shape, { device, dtype: "float32" });
    const balance = options.routing?.balanceOf(counted) ?? null;
    routeBackwardInto({ probs, experts, slots }, dweights, balance, options.normalize, dlogits);
    ofRouter?.add((out, accumulate) => matmulTransposed(dlogits, true, n, false, out, accumulate));
    let dn: Tensor | null = null;
    if (ctx.needsGrad[N]) {
      const dnRows = Tensor.empty([M, n.shape[1] as number], like);
      groupedMatmulInto(dg, gate, dnRows, offsets);
      groupedMatmulInto(du, up, dnRows, offsets, true);
      dn = Tensor.empty(n.shape, like);
      combineInto(dnRows, slots, null, dn);
      dnRows.dispose();
      matmulInto(dlogits, router, dn, { accumulate: true });
    }
    return [null, dn, ...gradOf.map((grad) => grad?.result ?? null)];
  }
}
const routed = new Routed();

/** The matrices of all experts, each kind as one. */
export class Experts extends Module {
  /** [E, F, H] */
  readonly gateProj: Parameter;
  /** [E, F, H] */
  readonly upProj: Parameter;
  /** [E, H, F] */
  readonly downProj: Parameter;

  constructor(hiddenSize: number, { count, intermediateSize }: ExpertSizes, options: ModuleOptions) {
    super();
    this.gateProj = Parameter.empty([count, intermediateSize, hiddenSize], options);
    this.upProj = Parameter.empty([count, intermediateSize, hiddenSize], options);
    this.downProj = Parameter.empty([count, hiddenSize, intermediateSize], options);
  }

  /** n [T, H], router [E, H] -> [T, H]: for each token the sum of what its experts make of it, weighted. */
  forward(n: Tensor, router: Tensor, options: RoutedOptions): Tensor {
    return routed.apply(options, n, router, this.gateProj, this.upProj, this.downProj);
  }
}

/** In the place of an MLP: what stands before and behind it is the same. */
export class MixtureOfExperts extends Module {
  /** The router, [E, H]. */
  readonly gate: Linear;
  readonly experts: Experts;
  readonly sharedExpert: Mlp | null;
  /** [1, H] */
  readonly sharedExpertGate: Linear | null;
  readonly #options: Omit<RoutedOptions, "first" | "routing">;

  /** layer: its number among those with experts. */
  constructor(
    hiddenSize: number,
    experts: ExpertSizes & { readonly activation: Activation; readonly layer: number },
    options: ModuleOptions = {},
  ) {
    super();
    const { count, active, normalize, activation, layer, sharedIntermediateSize: shared } = experts;
    this.gate = new Linear(hiddenSize, count, { ...options, bias: false });
    this.experts = new Experts(hiddenSize, experts, options);
    this.sharedExpert = shared === null ? null : new Mlp({ hiddenSize, intermediateSize: shared, activation }, options);
    this.sharedExpertGate = shared === null ? null : new Linear(hiddenSize, 1, { ...options, bias: false });
    this.#options = { active, normalize, activation, layer };
  }

  /** x [T, H] -> [T, H], x added where `residual`. first: the number of x's first row among those of its layer. */
  forward(x: Tensor, { before, behind }: HalfNorms, call: FeedForwardCall = {}): Tensor {
    const { residual = true, first = 0, routing = null, dropout = null } = call;
    return scope(() => {
      const n = before === null ? x : before.forward(x);
      let y = this.experts.forward(n, this.gate.weight, { ...this.#options, first, routing });
      if (this.sharedExpert !== null && this.sharedExpertGate !== null) {
        const share = unary(this.sharedExpertGate.forward(n, dropout), "sigmoid");
        const shared = this.sharedExpert.forward(n, { before: null, behind: null }, { residual: false, dropout });
        y = add(y, mul(shared, share));
      }
      if (behind !== null) y = behind.forward(y);
      return residual ? add(x, y) : y;
    });
  }
}
