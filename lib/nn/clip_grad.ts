// Clipping by the global gradient norm. Nothing is read: norm, factor and the finite flag stay on the device.
import { binding } from "../binding.js";
import { ArgumentError } from "../errors.js";
import { axpbyInto } from "../ops/axpby.js";
import { Tensor } from "../tensor/tensor.js";

export interface GradNorm {
  /** Global L2 norm before clipping, [] float64. */
  norm: Tensor;
  /** min(1, maxNorm / (norm + 1e-6)), [] float64. */
  factor: Tensor;
  /** 1 where norm (and loss) are finite, else 0; [] int64. */
  finite: Tensor;
}

/** The norm over all gradients and what clipping to maxNorm (0: none) would multiply them by. */
export function gradNorm(params: Iterable<Tensor>, maxNorm: number, options: { loss?: Tensor | null } = {}): GradNorm {
  if (!(maxNorm >= 0)) throw new ArgumentError(`maxNorm is ${maxNorm}, expected 0 (no clipping) or more`);
  if (typeof (params as Iterable<Tensor> | undefined)?.[Symbol.iterator] !== "function")
    throw new ArgumentError("expected the parameters as an array or another iterable");
  const grads = [...new Set(params)].flatMap((param) => (param.grad ? [param.grad] : []));
  const first = grads[0];
  if (!first) throw new ArgumentError("no parameter has a gradient; call backward() first");
  const scalar = (dtype: "float64" | "int64"): Tensor => Tensor.empty([], { device: first.device, dtype });
  const total = Tensor.full([], 0, { device: first.device, dtype: "float64" });
  for (const grad of grads) binding.ops.normSquared(grad.native(), total.native());
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
  for (const param of new Set(params)) if (param.grad) axpbyInto(param.grad, param.grad, { factor });
  factor.dispose();
  finite.dispose();
  return norm;
}
