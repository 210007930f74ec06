// The feed-forward half of a layer, x + down(act(gate(n)) * up(n)) with n = norm(x) (arXiv 2002.05202).

import { type Context, Function, type Grad, owned, type WeightGrad } from "../autograd/function.js";
import { binding } from "../binding.js";
import { copyInto } from "../ops/copy.js";
import { addRowSums, matmulInto, matmulTransposed } from "../ops/matmul.js";
import { unaryCode } from "../ops/unary.js";
import { scope } from "../tensor/scope.js";
import { produce, Tensor } from "../tensor/tensor.js";
import { Linear } from "./linear.js";
import { Module, type ModuleOptions } from "./module.js";
import type { RmsNorm } from "./rms_norm.js";

export interface MlpSizes {
  /** H */
  readonly hiddenSize: number;
  /** F */
  readonly intermediateSize: number;
  readonly activation?: "silu" | "gelu" | "gelu_tanh" | "relu";
  readonly mlpBias?: boolean;
}

interface FeedForwardOptions {
  readonly activation: NonNullable<MlpSizes["activation"]>;
  readonly eps: number;
}

/** Of x, norm [H], gate, up [F, H], down [H, F], biases. Saves x, gate(n) and up(n); n and what goes into the down
 * projection are cheap to make again. */
class FeedForward extends Function<
  [FeedForwardOptions, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | null, Tensor | null, Tensor | null],
  Tensor
> {
  readonly name = "feed_forward";

  forward(
    ctx: Context,
    options: FeedForwardOptions,
    x: Tensor,
    norm: Tensor,
    gateWeight: Tensor,
    upWeight: Tensor,
    downWeight: Tensor,
    gateBias: Tensor | null,
    upBias: Tensor | null,
    downBias: Tensor | null,
  ): Tensor {
    return scope(() => {
      const like = { device: x.device, dtype: x.dtype };
      const kind = unaryCode(options.activation);
      const normed = Tensor.empty(x.shape, like);
      binding.ops.rmsNorm(x.native(), norm.native(), normed.native(), options.eps);
      const project = (weight: Tensor, bias: Tensor | null): Tensor => {
        const out = Tensor.empty([x.shape[0] as number, weight.shape[0] as number], like);
        matmulInto(normed, weight.transpose(0, 1), out, { bias });
        return out;
      };
      const [gate, up] = [project(gateWeight, gateBias), project(upWeight, upBias)];
      normed.dispose();
      ctx.save(x, norm, gateWeight, upWeight, downWeight, gate, up);
      ctx.values = { ...options };
      const recording = ctx.recording;
      return produce(x.shape, like, [x, gate, up, downWeight, downBias], (from, g, u, weight, bias) =>
        scope(() => {
          // Without a backward to come gate is nobody's any more.
          const inner = recording ? Tensor.empty(gate.shape, like) : (g as Tensor);
          binding.ops.swiglu((g as Tensor).native(), (u as Tensor).native(), inner.native(), kind);
          const y = Tensor.empty(x.shape, like);
          copyInto(from as Tensor, y);
          matmulInto(inner, (weight as Tensor).transpose(0, 1), y, { bias: bias ?? null, accumulate: true });
          return y;
        }),
      );
    });
  }

  backward(ctx: Context, dy: Tensor): Grad[] {
    return scope(() => this.#backward(ctx, dy));
  }

  #backward(ctx: Context, dy: Tensor): Grad[] {
    const [x, norm, gateWeight, upWeight, downWeight, gate, up] = [0, 1, 2, 3, 4, 5, 6].map((i) => ctx.saved(i)) as [
      Tensor,
      Tensor,
      Tensor,
      Tensor,
      Tensor,
      Tensor,
      Tensor,
    ];
    const { activation, eps } = ctx.values as unknown as FeedForwardOptions;
    const kind = unaryCode(activation);
    const like = { device: x.device, dtype: x.dtype };
    const grads = [2, 3, 4, 5, 6, 7, 8].map((i) => ctx.weight(i));
    const [dnorm, dgateWeight, dupWeight, ddownWeight, dgateBias, dupBias, ddownBias] = grads as (WeightGrad | null)[];
    const results = (dx: Tensor | null): Grad[] => [null, dx, ...grads.map((grad) => grad?.result ?? null)];

    const inner = Tensor.empty(gate.shape, like);
    if (ddownWeight) {
      binding.ops.swiglu(gate.native(), up.native(), inner.native(), kind);
      ddownWeight.add((out, accumulate) => matmulTransposed(dy, true, inner, false, out, accumulate));
    }
    ddownBias?.add((out, accumulate) => addRowSums(dy, out, accumulate));
    const wanted = ctx.needsGrad[1] === true;
    if (!wanted && ![dnorm, dgateWeight, dupWeight, dgateBias, dupBias].some((grad) => grad)) return results(null);
    matmulInto(dy, downWeight, inner);
    const dgate = ctx.lastUse(5) ? gate : Tensor.empty(gate.shape, like);
    const dup = ctx.lastUse(6) ? up : Tensor.empty(up.shape, like);
    binding.ops.swigluBackward(gate.native(), up.native(), inner.native(), dgate.native(), dup.native(), kind);
    inner.dispose();

    const normed = Tensor.empty(x.shape, like);
    if (dgateWeight || dupWeight) binding.ops.rmsNorm(x.native(), norm.native(), normed.native(), eps);
    dgateWeight?.add((out, accumulate) => matmulTransposed(dgate, true, normed, false, out, accumulate));
    dupWeight?.add((out, accumulate) => matmulTransposed(dup, true, normed, false, out, accumulate));
    dgateBias?.add((out, accumulate) => addRowSums(dgate, out, accumulate));
    dupBias?.add((out, accumulate) => addRowSums(dup, out, accumulate));
    if (!wanted && !dnorm) return results(null);
    // What was read last gives its room to its gradient.
    matmulInto(dgate, gateWeight, normed);
    matmulInto(dup, upWeight, normed, { accumulate: true });
    const dx = owned(dy);
    const run = (dweight: Tensor | null): void =>
      binding.ops.rmsNormBackward(
        x.native(),
        norm.native(),
        normed.native(),
        dx.native(),
        dweight?.native() ?? null,
        eps,
        true,
      );
    if (!dnorm) run(null);
    dnorm?.add((out, accumulate) => {
      if (!accumulate) out.fill(0);
      run(out);
    });
    return results(wanted ? dx : null);
  }
}
const feedForward = new FeedForward();

export class GatedMlp extends Module {
  readonly gateProj: Linear;
  readonly upProj: Linear;
  readonly downProj: Linear;
  readonly #activation: NonNullable<MlpSizes["activation"]>;

  constructor(sizes: MlpSizes, options: ModuleOptions = {}) {
    super();
    const { hiddenSize: H, intermediateSize: F, mlpBias: bias = false } = sizes;
    this.gateProj = new Linear(H, F, { ...options, bias });
    this.upProj = new Linear(H, F, { ...options, bias });
    this.downProj = new Linear(F, H, { ...options, bias });
    this.#activation = sizes.activation ?? "silu";
  }

  /** x [T, H] and the norm before the projections -> x + mlp(norm(x)) [T, H] */
  forward(x: Tensor, norm: RmsNorm): Tensor {
    const { gateProj: gate, upProj: up, downProj: down } = this;
    return feedForward.apply(
      { activation: this.#activation, eps: norm.eps },
      x,
      norm.weight,
      gate.weight,
      up.weight,
      down.weight,
      gate.bias,
      up.bias,
      down.bias,
    );
  }
}
