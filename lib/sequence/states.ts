// Parameters and gradients in host memory: parameters are lent to the layers that use them, copied one layer ahead and
// freed behind; a layer's gradients go out when its backward is over. (Optimizer states: lib/optim/adamw.)
import { binding } from "../binding.js";
import { ArgumentError } from "../errors.js";
import { untracked } from "../tensor/scope.js";
import { type Parameter, type ParameterTier, Tensor } from "../tensor/tensor.js";
import { outboxOf, queues } from "../tensor/tiers.js";

/** Where the states of a run live; none: on the device. */
export interface StateOptions {
  /** Lent to the layers that use them. Backward then needs checkpoints of layers. */
  params?: "none" | "host";
  /** Added up in `hostGrad` of each parameter. */
  gradients?: "none" | "host";
  /** What is given to the optimizer as `offload`; a model does nothing with it. */
  optimizer?: "none" | "host";
}

/** Copies of a unit's parameters on the device. */
interface Lent {
  unit: readonly Parameter[];
  copies: Map<Parameter, { copy: Tensor; version: number }>;
}

/** The states of one model, apart from the optimizer's. */
export class ModelStates {
  readonly #parameters: readonly Parameter[];
  readonly #hooks: (() => void)[] = [];
  /** Fetched for a use that is still to come; at most one unit. */
  #ahead: Lent | undefined;
  readonly #inUse = new Set<Parameter>();
  #options: Required<StateOptions> = { params: "none", gradients: "none", optimizer: "none" };

  /** parameters: all of the model. */
  constructor(parameters: Iterable<Parameter>) {
    this.#parameters = [...parameters];
  }

  get options(): Required<StateOptions> {
    return this.#options;
  }

  /** Moves parameters where they are to live. Gradients that there are stay where they are. */
  configure(options: StateOptions): void {
    const wanted = { ...this.#options };
    for (const key of ["params", "gradients", "optimizer"] as const) {
      const value = options[key] ?? wanted[key];
      if (value !== "none" && value !== "host")
        throw new ArgumentError(`configureMemory: states.${key} is ${JSON.stringify(value)}, expected none or host`);
      wanted[key] = value;
    }
    this.#drop();
    const tier: ParameterTier = wanted.params === "host" ? "host" : "device";
    for (const parameter of this.#parameters) parameter.moveTo(tier);
    for (const remove of this.#hooks.splice(0)) remove();
    if (wanted.gradients === "host")
      for (const parameter of this.#parameters) this.#hooks.push(parameter.registerHook((leaf) => this.#send(leaf)));
    this.#options = wanted;
  }

  /**
   * Runs `fn`, which reads the parameters of `unit`; those of `next` are copied to the device beside it. `unit` is
   * complete: `fn` reads no other parameter.
   */
  use<T>(unit: readonly Parameter[], next: readonly Parameter[] | undefined, fn: () => T): T {
    // Inside a use of the same parameters they are there.
    if (this.#options.params === "none" || unit.every((parameter) => this.#inUse.has(parameter))) return fn();
    const lent = this.#fetch(unit);
    try {
      if (next !== undefined && next !== unit && !next.some((parameter) => this.#inUse.has(parameter)))
        this.#ahead = this.#fetch(next);
      for (const [parameter, { copy }] of lent.copies) {
        parameter.lend(copy);
        this.#inUse.add(parameter);
      }
      return this.guard(fn);
    } finally {
      for (const parameter of lent.copies.keys()) {
        parameter.lend(null);
        this.#inUse.delete(parameter);
      }
      free(lent);
    }
  }

  /**
   * Runs the backward of a layer, whose parameters (`unit`) nothing else uses, as `use` does; then its gradients go out
   * and the bytes of those that went out before go back.
   */
  useBackward<T extends Tensor | null>(
    unit: readonly Parameter[],
    next: readonly Parameter[] | undefined,
    fn: () => T,
  ): T {
    const result = this.use(unit, next, fn);
    const first = unit[0];
    if (!first || this.#options.gradients === "none") return result;
    const outbox = outboxOf(first.device);
    outbox.flush();
    try {
      for (const parameter of unit) this.#send(parameter);
    } catch (error) {
      result?.dispose();
      throw error;
    }
    return result;
  }

  /** A unit's copies, fetched ahead or from now on. What was fetched for another use is given back. */
  #fetch(unit: readonly Parameter[]): Lent {
    const ahead = this.#ahead;
    this.#ahead = undefined;
    if (ahead !== undefined) {
      const fresh = [...ahead.copies].every(
        ([parameter, { version }]) => binding.version(parameter.native()) === version,
      );
      if (ahead.unit === unit && fresh) return ahead;
      free(ahead);
    }
    const lent: Lent = { unit, copies: new Map() };
    try {
      for (const parameter of unit) {
        if (this.#inUse.has(parameter)) continue;
        const { shape, dtype, device } = parameter;
        const copy = untracked(() => Tensor.empty(shape, { dtype, device, category: "params" }));
        lent.copies.set(parameter, { copy, version: binding.version(parameter.native()) });
        binding.ops.copy(parameter.native(), copy.native(), queues.copyIn);
      }
    } catch (error) {
      free(lent);
      throw error;
    }
    return lent;
  }

  /** A gradient goes out. */
  #send(leaf: Tensor): void {
    this.guard(() => outboxOf(leaf.device).send(leaf));
  }

  #drop(): void {
    if (this.#ahead !== undefined) free(this.#ahead);
    this.#ahead = undefined;
  }

  /** Runs `fn`; what was fetched ahead is given back if it fails, for what was to come next may never come. */
  guard<T>(fn: () => T): T {
    try {
      return fn();
    } catch (error) {
      this.#drop();
      throw error;
    }
  }

  /** Frees what was fetched and never used. */
  dispose(): void {
    this.#drop();
  }
}

function free(lent: Lent): void {
  for (const { copy } of lent.copies.values()) copy.dispose();
}
