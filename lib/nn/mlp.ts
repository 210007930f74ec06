// The feed-forward half of a layer: x + down(act(gate(n)) * up(n)) with n = norm(x) (arXiv 2002.05202), or, without a
// gate, x + down(act(up(n))).

import { type Context, Function, type Grad, owned } from "../autograd/function.js";
import { binding } from "../binding.js";
import { axpbyInto } from "../ops/axpby.js";
import { copyInto } from "../ops/copy.js";
import {
  addBack,
  addLowRank,
  emptyLow,
  type LowRank,
  type LowRankKind,
  lowRankGradients,
  lowRankOf,
} from "../ops/low_rank.js";
import { addRowSums, matmulInto, matmulTransposed } from "../ops/matmul.js";
import { type NormKind, normBackwardInto, normInto } from "../ops/norm.js";
import { type Activation, unaryCode } from "../ops/unary.js";
import { scope } from "../tensor/scope.js";
import { produce, Tensor } from "../tensor/tensor.js";
import type { StepDropout } from "./adapter.js";
import { Linear } from "./linear.js";
import { Module, type ModuleOptions } from "./module.js";
import type { Norm } from "./norm.js";
import type { Routing } from "./routing.js";

export interface MlpSizes {
  /** H */
  readonly hiddenSize: number;
  /** F */
  readonly intermediateSize: number;
  readonly activation?: Activation;
  /** Whether a second product decides how much of the first goes on. Default true. */
  readonly gated?: boolean;
  readonly mlpBias?: boolean;
}

/** How the feed-forward half of a layer is called. */
export interface FeedForwardCall {
  /** Whether x is added to what is made of it. Default true. */
  readonly residual?: boolean;
  /** The number of x's first row among those of its layer, where it is a tile of them. Default 0. */
  readonly first?: number;
  /** Where routers count. */
  readonly routing?: Routing | null;
  /** What adapters drop; its rows are x's. */
  readonly dropout?: StepDropout | null;
}

/** What surrounds a half of a layer. */
export interface HalfNorms {
  /** Before the first products; null: they read x itself. */
  readonly before: Norm | null;
  /** Behind the last product, before it is added to x. */
  readonly behind: Norm | null;
}

interface FeedForwardOptions {
  readonly activation: Activation;
  readonly norm: NormKind | null;
  readonly outNorm: NormKind | null;
  /** Whether x is added to what is made of it. */
  readonly residual: boolean;
  readonly adapters: Readonly<Record<Projection, LowRankKind | null>>;
}

const projections = ["gate", "up", "down"] as const;
type Projection = (typeof projections)[number];

const names = [
  "norm",
  "normBias",
  "gate",
  "up",
  "down",
  "gateBias",
  "upBias",
  "downBias",
  "outNorm",
  "outNormBias",
  "gateA",
  "gateB",
  "upA",
  "upB",
  "downA",
  "downB",
  "rows",
] as const;
type Name = (typeof names)[number];
/** norms [H], gate, up [F, H], down [H, F], biases; adapters, and the numbers of x's rows for what they drop. */
type Weights = Readonly<Record<Name, Tensor | null>> & { readonly up: Tensor; readonly down: Tensor };
/** Arguments before the first weight: the options and x. */
const FIRST = 2;

const weightsOf = (list: readonly (Tensor | null)[]): Weights =>
  Object.fromEntries(names.map((name, i) => [name, list[i] ?? null])) as unknown as Weights;

const adapterOf = ({ adapters }: FeedForwardOptions, w: Weights, of: Projection): LowRank | null =>
  lowRankOf(adapters[of], w[`${of}A`], w[`${of}B`], w.rows);

/** Saves x, gate(n) and up(n); n and what goes into the down projection are cheap to make again. */
class FeedForward extends Function<[FeedForwardOptions, Tensor, ...(Tensor | null)[]], Tensor> {
  readonly name = "feed_forward";

  forward(ctx: Context, options: FeedForwardOptions, x: Tensor, ...list: (Tensor | null)[]): Tensor {
    return scope(() => {
      const w = weightsOf(list);
      const like = { device: x.device, dtype: x.dtype };
      const normed = normedOf(options.norm, w, x);
      const project = (weight: Tensor, of: "gate" | "up"): Tensor => {
        const out = Tensor.empty([x.shape[0] as number, weight.shape[0] as number], like);
        matmulInto(normed, weight.transpose(0, 1), out, { bias: w[`${of}Bias`] });
        addLowRank(normed, adapterOf(options, w, of), out);
        return out;
      };
      const gate = w.gate && project(w.gate, "gate");
      const up = project(w.up, "up");
      if (normed !== x) normed.dispose();
      ctx.save(x, gate, up, ...list);
      ctx.values = { options, gated: gate !== null, present: list.map((weight) => weight !== null) };
      const recording = ctx.recording;
      const { down, downBias, outNorm, outNormBias, downA, downB, rows } = w;
      return produce(
        x.shape,
        like,
        [x, up, down, gate, downBias, outNorm, outNormBias, downA, downB, rows],
        (from, u, weight, g, bias, behind, behindBias, a, b, numbers) =>
          scope(() => {
            // Without a backward to come what was made is nobody's any more.
            const inner = recording ? Tensor.empty(up.shape, like) : ((g ?? u) as Tensor);
            activate(options.activation, g ?? null, u as Tensor, inner);
            const y = Tensor.empty(x.shape, like);
            const across = (weight as Tensor).transpose(0, 1);
            const low = lowRankOf(options.adapters.down, a, b, numbers);
            if (options.outNorm === null && options.residual) {
              copyInto(from as Tensor, y);
              matmulInto(inner, across, y, { bias: bias ?? null, accumulate: true });
              addLowRank(inner, low, y);
              return y;
            }
            matmulInto(inner, across, y, { bias: bias ?? null });
            addLowRank(inner, low, y);
            if (options.outNorm)
              normInto(options.outNorm, { weight: behind as Tensor, bias: behindBias ?? null }, y, y);
            if (options.residual) axpbyInto(from as Tensor, y, { beta: 1 });
            return y;
          }),
      );
    });
  }

  backward(ctx: Context, dy: Tensor): Grad[] {
    return scope(() => this.#backward(ctx, dy));
  }

  #backward(ctx: Context, dy: Tensor): Grad[] {
    const { options, gated, present } = ctx.values as {
      options: FeedForwardOptions;
      gated: boolean;
      present: boolean[];
    };
    let at = 0;
    const next = (): Tensor => ctx.saved(at++);
    const x = next();
    const gate = gated ? next() : null;
    const upIndex = at;
    const up = next();
    const w = weightsOf(present.map((there) => (there ? next() : null)));
    const like = { device: x.device, dtype: x.dtype };
    const gradOf = Object.fromEntries(names.map((name, i) => [name, ctx.weight(FIRST + i)])) as Record<
      Name,
      ReturnType<Context["weight"]>
    >;
    const results = (dx: Tensor | null): Grad[] => [null, dx, ...names.map((name) => gradOf[name]?.result ?? null)];

    const inner = Tensor.empty(up.shape, like);
    const ofDown = adapterOf(options, w, "down");
    if (gradOf.down || options.outNorm || ofDown) activate(options.activation, gate, up, inner);
    let dproduct = dy;
    if (options.outNorm) {
      // The product that the norm read is made again: to keep it would cost as much as x.
      const product = Tensor.empty(x.shape, like);
      matmulInto(inner, w.down.transpose(0, 1), product, { bias: w.downBias });
      addLowRank(inner, ofDown, product);
      dproduct = Tensor.empty(x.shape, like);
      normBackwardInto(
        options.outNorm,
        { weight: w.outNorm as Tensor, bias: null },
        { x: product, dy, dx: dproduct, accumulate: false },
        { weight: gradOf.outNorm, bias: gradOf.outNormBias },
      );
      product.dispose();
    }
    gradOf.down?.add((out, accumulate) => matmulTransposed(dproduct, true, inner, false, out, accumulate));
    gradOf.downBias?.add((out, accumulate) => addRowSums(dproduct, out, accumulate));
    /** Of an adapter: the gradient of x A^T, for x's. */
    const lowOf = (of: Projection, adapter: LowRank | null, from: Tensor, d: Tensor): Tensor | null => {
      if (adapter === null) return null;
      const dlow = emptyLow(from, adapter);
      lowRankGradients(adapter, from, d, { a: gradOf[`${of}A`], b: gradOf[`${of}B`] }, dlow);
      return dlow;
    };
    const dlow = lowOf("down", ofDown, inner, dproduct);
    const wanted = ctx.needsGrad[1] === true;
    const ahead = ["norm", "normBias", "gate", "up", "gateBias", "upBias", "gateA", "gateB", "upA", "upB"] as const;
    if (!wanted && !ahead.some((name) => gradOf[name])) return results(null);
    matmulInto(dproduct, w.down, inner);
    if (dlow) addBack(dlow, ofDown as LowRank, inner);
    if (dproduct !== dy) dproduct.dispose();
    const dup = ctx.lastUse(upIndex) ? up : Tensor.empty(up.shape, like);
    const dgate = gate && (ctx.lastUse(upIndex - 1) ? gate : Tensor.empty(gate.shape, like));
    const kind = unaryCode(options.activation);
    if (gate && dgate)
      binding.ops.swigluBackward(gate.native(), up.native(), inner.native(), dgate.native(), dup.native(), kind);
    else binding.ops.unaryBackward(up.native(), inner.native(), dup.native(), kind);
    inner.dispose();

    const partOf = (of: "gate" | "up", d: Tensor, weight: Tensor) => ({
      d,
      weight,
      grad: gradOf[of],
      bias: gradOf[`${of}Bias`],
      of,
      adapter: adapterOf(options, w, of),
    });
    const parts = [...(dgate ? [partOf("gate", dgate, w.gate as Tensor)] : []), partOf("up", dup, w.up)];
    const normed =
      options.norm === null
        ? x
        : parts.some(({ grad, adapter }) => grad || adapter)
          ? normedOf(options.norm, w, x)
          : Tensor.empty(x.shape, like);
    for (const { d, grad } of parts)
      grad?.add((out, accumulate) => matmulTransposed(d, true, normed, false, out, accumulate));
    for (const { d, bias } of parts) bias?.add((out, accumulate) => addRowSums(d, out, accumulate));
    const lows = parts.map(({ of, adapter, d }) => lowOf(of, adapter, normed, d));
    /** dn [T, H] = (or +=) what the products and their adapters read. */
    const addInputs = (dn: Tensor, added: boolean): void => {
      for (const [i, { d, weight, adapter }] of parts.entries()) {
        matmulInto(d, weight, dn, { accumulate: added || i > 0 });
        const low = lows[i];
        if (low) addBack(low, adapter as LowRank, dn);
      }
    };
    if (!wanted && !gradOf.norm && !gradOf.normBias) return results(null);
    const residual = options.residual ? owned(dy) : null;
    if (options.norm === null) {
      const dx = residual ?? Tensor.empty(x.shape, like);
      addInputs(dx, residual !== null);
      return results(dx);
    }
    // What was read last gives its room to its gradient.
    addInputs(normed, false);
    const dx = residual ?? normed;
    normBackwardInto(
      options.norm,
      { weight: w.norm as Tensor, bias: null },
      { x, dy: normed, dx, accumulate: residual !== null },
      { weight: gradOf.norm, bias: gradOf.normBias },
    );
    return results(wanted ? dx : null);
  }
}
const feedForward = new FeedForward();

/** norm(x), or x itself where there is none. */
function normedOf(kind: NormKind | null, { norm, normBias }: Weights, x: Tensor): Tensor {
  if (kind === null) return x;
  const normed = Tensor.empty(x.shape, { device: x.device, dtype: x.dtype });
  normInto(kind, { weight: norm as Tensor, bias: normBias }, x, normed);
  return normed;
}

/** inner = act(gate) * up, or act(up); inner may be one of them. */
function activate(activation: Activation, gate: Tensor | null, up: Tensor, inner: Tensor): void {
  const kind = unaryCode(activation);
  if (gate) binding.ops.swiglu(gate.native(), up.native(), inner.native(), kind);
  else binding.ops.unary(up.native(), inner.native(), kind);
}

export class Mlp extends Module {
  /** null: not gated. */
  readonly gateProj: Linear | null;
  readonly upProj: Linear;
  readonly downProj: Linear;
  readonly #activation: Activation;

  constructor(sizes: MlpSizes, options: ModuleOptions = {}) {
    super();
    const { hiddenSize: H, intermediateSize: F, mlpBias: bias = false, gated = true } = sizes;
    this.gateProj = gated ? new Linear(H, F, { ...options, bias }) : null;
    this.upProj = new Linear(H, F, { ...options, bias });
    this.downProj = new Linear(F, H, { ...options, bias });
    this.#activation = sizes.activation ?? "silu";
  }

  /** x [T, H] -> [T, H], x added where `residual`. */
  forward(x: Tensor, { before, behind }: HalfNorms, call: FeedForwardCall = {}): Tensor {
    const { residual = true, dropout = null } = call;
    const { gateProj: gate, upProj: up, downProj: down } = this;
    const modules = { gate, up, down };
    const weights: Weights = {
      norm: before?.weight ?? null,
      normBias: before?.bias ?? null,
      gate: gate?.weight ?? null,
      up: up.weight,
      down: down.weight,
      gateBias: gate?.bias ?? null,
      upBias: up.bias,
      downBias: down.bias,
      outNorm: behind?.weight ?? null,
      outNormBias: behind?.bias ?? null,
      gateA: gate?.adapter?.loraA ?? null,
      gateB: gate?.adapter?.loraB ?? null,
      upA: up.adapter?.loraA ?? null,
      upB: up.adapter?.loraB ?? null,
      downA: down.adapter?.loraA ?? null,
      downB: down.adapter?.loraB ?? null,
      rows: dropout?.rows ?? null,
    };
    const adapters = Object.fromEntries(
      projections.map((of) => [of, modules[of]?.adapter?.kind(dropout) ?? null]),
    ) as FeedForwardOptions["adapters"];
    return feedForward.apply(
      { activation: this.#activation, norm: before?.kind ?? null, outNorm: behind?.kind ?? null, residual, adapters },
      x,
      ...names.map((name) => weights[name]),
    );
  }
}
