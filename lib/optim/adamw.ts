// AdamW (arXiv 1711.05101), as torch.optim.AdamW computes it; moments and master weights in float32.
import { binding } from "../binding.js";
import { ArgumentError } from "../errors.js";
import { scope, untracked } from "../tensor/scope.js";
import { Tensor } from "../tensor/tensor.js";

export interface AdamWOptions {
  learningRate?: number;
  betas?: readonly [number, number];
  eps?: number;
  weightDecay?: number;
  /** Decay touches tensors of two or more dimensions only. Default false, as in torch. */
  decayOnlyMatrices?: boolean;
}

export interface StepOptions {
  /** Scalar on the device that every gradient is multiplied by (clipping). */
  factor?: Tensor | null;
  /** int64 scalar on the device: where it is 0, nothing changes and the step is not counted. */
  finite?: Tensor | null;
}

interface State {
  param: Tensor;
  m: Tensor;
  v: Tensor;
  master: Tensor | null;
}

/** At most this many updates wait in the queue before step() blocks. */
const mostQueued = 2;

export class AdamW {
  learningRate: number;
  readonly betas: readonly [number, number];
  readonly eps: number;
  readonly weightDecay: number;
  readonly #decayOnlyMatrices: boolean;
  readonly #params: Tensor[];
  #states: State[] | undefined;
  #step: Tensor | undefined;

  /** Frozen parameters have no state. Errors: ArgumentError. */
  constructor(params: Iterable<Tensor>, options: AdamWOptions = {}) {
    this.learningRate = options.learningRate ?? 1e-3;
    this.betas = options.betas ?? [0.9, 0.999];
    this.eps = options.eps ?? 1e-8;
    this.weightDecay = options.weightDecay ?? 0;
    this.#decayOnlyMatrices = options.decayOnlyMatrices ?? false;
    this.#params = [...new Set(params)].filter((param) => param.requiresGrad);
    if (this.#params.length === 0) throw new ArgumentError("AdamW: no parameter requires gradients");
    const check = (name: string, value: number, low: number, high: number): void => {
      if (typeof value !== "number" || !(value >= low && value < high))
        throw new ArgumentError(
          `AdamW: ${name} is ${typeof value === "string" ? JSON.stringify(value) : String(value)}, expected ${low} <= ${name} < ${high}`,
        );
    };
    check("learningRate", this.learningRate, 0, Number.POSITIVE_INFINITY);
    check("beta1", this.betas[0], 0, 1);
    check("beta2", this.betas[1], 0, 1);
    check("eps", this.eps, 0, Number.POSITIVE_INFINITY);
    check("weightDecay", this.weightDecay, 0, Number.POSITIVE_INFINITY);
  }

  /** Made at the first step, or before a checkpoint is loaded. */
  #ensure(): { states: State[]; step: Tensor } {
    if (!this.#states || !this.#step) {
      untracked(() => {
        const first = this.#params[0] as Tensor;
        this.#step = Tensor.full([], 0, { device: first.device, dtype: "int64", category: "optimizer" });
        this.#states = this.#params.map((param) => {
          const zero = (): Tensor =>
            Tensor.full(param.shape, 0, { device: param.device, dtype: "float32", category: "optimizer" });
          let master: Tensor | null = null;
          if (param.dtype === "bfloat16") {
            master = Tensor.empty(param.shape, { device: param.device, dtype: "float32", category: "optimizer" });
            binding.ops.copy(param.native(), master.native());
          }
          return { param, m: zero(), v: zero(), master };
        });
      });
    }
    return { states: this.#states as State[], step: this.#step as Tensor };
  }

  /** One update of every parameter that has a gradient. Enqueues only; blocks while more than two updates wait. */
  step(options: StepOptions = {}): void {
    const { states, step } = this.#ensure();
    const device = step.device.native;
    binding.beginUpdate(device);
    try {
      binding.ops.adamwAdvance(step.native(), options.finite?.native() ?? null);
      for (const { param, m, v, master } of states) {
        const { grad } = param;
        if (!grad) continue;
        const decay = this.#decayOnlyMatrices && param.ndim < 2 ? 0 : this.weightDecay;
        binding.ops.adamw(
          param.native(),
          grad.native(),
          m.native(),
          v.native(),
          step.native(),
          master?.native() ?? null,
          options.factor?.native() ?? null,
          options.finite?.native() ?? null,
          this.learningRate,
          this.betas[0],
          this.betas[1],
          this.eps,
          decay,
        );
      }
    } finally {
      binding.endUpdate(device);
    }
    binding.limitSteps(device, mostQueued);
  }

  /** Frees the gradients. */
  zeroGrad(): void {
    scope(() => {
      for (const param of this.#params) {
        param.grad?.dispose();
        param.grad = null;
      }
    });
  }

  /** Step count and moments by name, for checkpoints; `names` gives each parameter's. Makes them where they are not yet. */
  namedState(names: Map<Tensor, string>): [string, Tensor][] {
    const { states, step } = this.#ensure();
    const result: [string, Tensor][] = [["step", step]];
    for (const { param, m, v, master } of states) {
      const name = names.get(param);
      if (name === undefined) throw new ArgumentError("AdamW: a parameter has no name to store its state under");
      result.push([`m.${name}`, m], [`v.${name}`, v]);
      if (master) result.push([`master.${name}`, master]);
    }
    return result;
  }
}
