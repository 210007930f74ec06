// Clipping by the global gradient norm. Nothing is read: norm, factor and the finite flag stay on the device. Gradients
// that live on the host are summed and scaled there.
import { binding } from "../binding.js";
import { ArgumentError } from "../errors.js";
import { allReduceInto } from "../ops/all_reduce.js";
import { axpbyInto } from "../ops/axpby.js";
import type { Communicator } from "../parallel/communicator.js";
import { byLayer } from "../tensor/layer.js";
import { Tensor } from "../tensor/tensor.js";
import { gradientsOf, layerOfGradient, scalarIn } from "../tensor/tiers.js";

export interface GradNorm {
  /** Global L2 norm before clipping, [] float64. */
  norm: Tensor;
  /** min(1, maxNorm / (norm + 1e-6)), [] float64. */
  factor: Tensor;
  /** 1 where norm (and loss) are finite, else 0; [] int64. */
  finite: Tensor;
}

export interface GradNormOptions {
  /** That is to be finite too. */
  loss?: Tensor | null;
  /** Ranks that each hold a share of the gradients, none of them twice. */
  group?: Communicator | null;
}

/** The norm over all gradients and what clipping to maxNorm (0: none) would multiply them by. */
export function gradNorm(params: Iterable<Tensor>, maxNorm: number, options: GradNormOptions = {}): GradNorm {
  if (!(maxNorm >= 0)) throw new ArgumentError(`maxNorm is ${maxNorm}, expected 0 (no clipping) or more`);
  if (typeof (params as Iterable<Tensor> | undefined)?.[Symbol.iterator] !== "function")
    throw new ArgumentError("expected the parameters as an array or another iterable");
  const grads = gradientsOf(params);
  const first = grads[0];
  if (!first) throw new ArgumentError("no parameter has a gradient; call backward() first");
  const { device } = first.leaf;
  const scalar = (dtype: "float64" | "int64"): Tensor => Tensor.empty([], { device, dtype });
  const total = Tensor.full([], 0, { device, dtype: "float64" });
  // Each tier sums its own; almost always there is one.
  for (const tier of new Set(grads.map((placed) => placed.tier))) {
    const sum = tier === "device" ? total : Tensor.full([], 0, { device, dtype: "float64", tier });
    for (const placed of byLayer(grads, layerOfGradient))
      if (placed.tier === tier) binding.ops.normSquared(placed.grad.native(), sum.native());
    if (sum === total) continue;
    const back = scalar("float64");
    binding.ops.copy(sum.native(), back.native());
    binding.ops.axpby(back.native(), total.native(), null, 1, 1);
    sum.dispose();
    back.dispose();
  }
  if (options.group) allReduceInto(total, options.group);
  const result = { norm: scalar("float64"), factor: scalar("float64"), finite: scalar("int64") };
  binding.ops.clipFactor(
    total.native(),
    result.norm.native(),
    result.factor.native(),
    result.finite.native(),
    options.loss?.native() ?? null,
    maxNorm,
  );
  total.dispose();
  return result;
}

/** Scales all gradients in place so that their global norm is at most maxNorm; returns the norm before, [] float64. */
export function clipGradNorm(params: readonly Tensor[] | Set<Tensor>, maxNorm: number): Tensor {
  const { norm, factor, finite } = gradNorm(params, maxNorm);
  finite.dispose();
  const grads = gradientsOf(params);
  for (const tier of new Set(grads.map((placed) => placed.tier))) {
    const own = scalarIn(tier, factor);
    for (const placed of grads) if (placed.tier === tier) axpbyInto(placed.grad, placed.grad, { factor: own });
    if (own !== factor) own.dispose();
  }
  factor.dispose();
  return norm;
}
