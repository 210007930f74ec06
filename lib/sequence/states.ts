// Parameters and gradients that are not on the device as a whole. Those in host memory, or spread over ranks
// (lib/parallel/zero), are lent to the layers that use them: brought one layer ahead and freed behind. A layer's
// gradients go when its backward is over: to host memory, or to the ranks that hold their shares. Frozen parameters that are
// packed in 8 bits are lent what they stand for. (Optimizer states: lib/optim/adamw.)
import { binding } from "../binding.js";
import { ArgumentError } from "../errors.js";
import { allReduceInto } from "../ops/all_reduce.js";
import { dequantize } from "../ops/quantize.js";
import { FlatParameters, type Owned, ownedWhole, type ZeroOptions } from "../parallel/zero.js";
import type { Device } from "../tensor/device.js";
import { byLayer } from "../tensor/layer.js";
import { untracked } from "../tensor/scope.js";
import { type Parameter, type ParameterTier, Tensor } from "../tensor/tensor.js";
import { gradientsOf, layerOfGradient, outboxOf, queues } from "../tensor/tiers.js";

/** Where the states of a run live; none: on the device. */
export interface StateOptions {
  /** Lent to the layers that use them. Backward then needs checkpoints of layers. */
  params?: "none" | "host";
  /** Added up in `hostGrad` of each parameter. */
  gradients?: "none" | "host";
  /** What is given to the optimizer as `offload`; a model does nothing with it. */
  optimizer?: "none" | "host";
}

/** Parameters that are used together, and no other beside them. */
export type Unit = readonly Parameter[];

/** Copies of a unit's parameters on the device. */
interface Lent {
  unit: Unit;
  copies: Map<Parameter, Tensor>;
  /** Of parameters that are packed, what ops read while it is lent. */
  unpacked: Map<Parameter, Tensor>;
  /** What it made readable, or found so. */
  used: Parameter[];
  /** What they are copies of, and the version of it. */
  sources: Map<Tensor, number>;
}

const layerOfFlat = ({ leaf }: FlatParameters): number => leaf.layer;

/** The states of one model, apart from the optimizer's. */
export class ModelStates {
  readonly #named: readonly (readonly [name: string, parameter: Parameter])[];
  readonly #zero: ZeroOptions | null;
  /** By the parameters that are in them; none where each rank holds its parameters for itself. */
  readonly #flats = new Map<Parameter, FlatParameters>();
  /** Parameters of a flat whose gradients are complete. */
  readonly #arrived = new Map<FlatParameters, Set<Parameter>>();
  readonly #hooks: (() => void)[] = [];
  /** Fetched for a use that is still to come; at most one unit. */
  #ahead: Lent | undefined;
  /** Lent until the backward is over, where nothing is checkpointed. */
  readonly #held: Lent[] = [];
  /** What exchanges of gradients read until they are over. */
  readonly #leaving: Tensor[] = [];
  readonly #inUse = new Set<Parameter>();
  /** Whether some parameters are packed. */
  readonly #packs: boolean;
  #options: Required<StateOptions> = { params: "none", gradients: "none", optimizer: "none" };

  /**
   * named: all parameters of the model, each once. zero: the ranks that hold different tokens. Spread over them, the
   * parameters are outlines, and those of a unit lie together. params: where they live, as in `configure`.
   */
  constructor(
    named: readonly (readonly [name: string, parameter: Parameter])[],
    { zero, units, params = "none" }: { zero: ZeroOptions | null; units: readonly Unit[]; params?: "none" | "host" },
  ) {
    this.#named = named;
    this.#packs = named.some(([, { packed }]) => packed !== null);
    this.#zero = zero;
    this.#options.params = params;
    if (zero === null || zero.level === 0) return;
    const whole = zero.level < 3 && params === "none";
    const nameOf = new Map(named.map(([name, { storage }]) => [storage, name]));
    // What is frozen has no gradient to exchange.
    const kindOf = ({ requiresGrad, dtype }: Parameter): string => `${requiresGrad} ${dtype}`;
    const storages = units.map((one) => one.map(({ storage }) => storage));
    for (const unit of byLayer(storages, ([first]) => first?.layer ?? -1))
      for (const kind of new Set(unit.map(kindOf))) {
        // Once each: modules may share a parameter.
        const own = [...new Set(unit)].filter((one) => kindOf(one) === kind && !this.#flats.has(one));
        if (own.length === 0) continue;
        const flat = new FlatParameters(
          own.map((parameter) => [nameOf.get(parameter) as string, parameter]),
          zero.group,
          { whole, tier: params === "host" ? "host" : "device" },
        );
        for (const parameter of own) this.#flats.set(parameter, flat);
      }
  }

  get #device(): Device {
    const [first] = this.#named;
    return (first as NonNullable<typeof first>)[1].device;
  }

  get options(): Required<StateOptions> {
    return this.#options;
  }

  /** Whether what this rank holds and updates is a share. */
  get spread(): boolean {
    return this.#flats.size > 0;
  }

  /** Whether parameters are not on this device as a whole. */
  get #away(): boolean {
    return this.#options.params === "host" || this.#zero?.level === 3;
  }

  /** Why a backward needs checkpoints; null: it does not. Else what is lent would stay until it is over. */
  get needsCheckpoints(): string | null {
    if (this.#options.params === "host") return "states.params is host";
    return this.#packs ? "the base is stored in 8 bits" : null;
  }

  /** Whether ops find parameters, or some of them, only within `use`. */
  get lends(): boolean {
    return this.#away || this.#packs;
  }

  /** Whether a layer's gradients leave the device as it is before the step's last backward is over. */
  get #reducesEarly(): boolean {
    return this.#zero !== null && (this.#zero.level >= 2 || this.#options.gradients === "host");
  }

  /** What this rank holds of the model, and updates. */
  get owned(): Owned[] {
    const flats = new Set<FlatParameters>();
    return this.#named.flatMap(([name, parameter]) => {
      const flat = this.#flats.get(parameter.storage);
      if (flat === undefined) return [ownedWhole(name, parameter)];
      const first = !flats.has(flat);
      flats.add(flat);
      return first ? [flat] : [];
    });
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
    if (this.#flats.size > 0 && wanted.params !== this.#options.params)
      throw new ArgumentError(
        `configureMemory: states.params is ${wanted.params}, but the model was opened with ${this.#options.params}; ` +
          "what is spread over ranks stays where it is",
      );
    const tier: ParameterTier = wanted.params === "host" ? "host" : "device";
    if (this.#flats.size === 0) for (const [, { storage }] of this.#named) storage.moveTo(tier);
    for (const remove of this.#hooks.splice(0)) remove();
    this.#options = wanted;
    if (this.#flats.size > 0) {
      if (this.#reducesEarly)
        for (const [parameter, flat] of this.#flats)
          this.#hooks.push(parameter.registerHook(() => this.#arrive(parameter, flat)));
    } else if (wanted.gradients === "host")
      for (const [, parameter] of this.#named) this.#hooks.push(parameter.registerHook((leaf) => this.#send(leaf)));
  }

  /**
   * Runs `fn`, which reads the parameters of `unit`; those of `next` are brought to the device beside it. `unit` is
   * complete: `fn` reads no other parameter. hold: they stay until `finishBackward`.
   */
  use<T>(unit: Unit, next: Unit | undefined, fn: () => T, { hold = false } = {}): T {
    // Inside a use of the same parameters they are there.
    if (!this.lends || unit.every((parameter) => this.#inUse.has(parameter))) return fn();
    const lent = this.#fetch(unit);
    try {
      // What is packed on the device waits for its use.
      if (this.#away && next !== undefined && next !== unit && !next.some((parameter) => this.#inUse.has(parameter)))
        this.#ahead = this.#fetch(next);
      this.#lend(lent);
      return this.guard(fn);
    } finally {
      if (hold) this.#held.push(lent);
      else this.#takeBack(lent);
    }
  }

  #lend({ unit, copies, unpacked, used }: Lent): void {
    const use = (parameter: Parameter): boolean => {
      if (this.#inUse.has(parameter)) return false;
      this.#inUse.add(parameter);
      used.push(parameter);
      return true;
    };
    for (const [storage, copy] of copies) {
      storage.lend(copy);
      use(storage);
    }
    for (const parameter of unit) {
      const { packed, shape, dtype, device } = parameter;
      if ((parameter === parameter.storage && copies.has(parameter)) || !use(parameter) || packed === null) continue;
      const copy = untracked(() =>
        dequantize(packed.values, packed.format, shape, dtype, { device, category: "params" }),
      );
      unpacked.set(parameter, copy);
      parameter.lend(copy);
    }
  }

  #takeBack(lent: Lent): void {
    for (const parameter of [...lent.copies.keys(), ...lent.unpacked.keys()]) parameter.lend(null);
    for (const parameter of lent.used.splice(0)) this.#inUse.delete(parameter);
    free(lent);
  }

  /**
   * Runs the backward of a layer, whose parameters (`unit`) nothing else uses, as `use` does; then its gradients go out
   * and the bytes of those that went out before go back.
   */
  useBackward<T extends Tensor | null>(unit: Unit, next: Unit | undefined, fn: () => T): T {
    const result = this.use(unit, next, fn);
    const first = unit[0];
    if (!first) return result;
    try {
      if (this.#flats.size > 0) {
        if (this.#reducesEarly) this.#reduce(new Set(unit.map((parameter) => this.#flats.get(parameter))));
      } else if (this.#options.gradients === "host") {
        outboxOf(first.device).flush();
        for (const parameter of unit) this.#send(parameter);
      }
    } catch (error) {
      result?.dispose();
      throw error;
    }
    return result;
  }

  /** A parameter's gradient is complete; when all of a flat are, they are summed over the ranks. */
  #arrive(parameter: Parameter, flat: FlatParameters): void {
    const arrived = this.#arrived.get(flat) ?? new Set();
    this.#arrived.set(flat, arrived.add(parameter));
    if (arrived.size < flat.parameters.length) return;
    arrived.clear();
    this.#reduce(new Set([flat]));
  }

  /** Sums gradients over the ranks; what the exchange before read is given back: compute waits for its end, here. */
  #reduce(flats: ReadonlySet<FlatParameters | undefined>): void {
    for (const flat of flats) {
      if (!flat?.hasGradient) continue;
      this.#settle();
      this.#leaving.push(...flat.reduce());
      if (this.#options.gradients === "host") this.#send(flat.leaf);
    }
  }

  #settle(): void {
    for (const tensor of this.#leaving.splice(0)) tensor.dispose();
    if (this.#options.gradients === "host") outboxOf(this.#device).flush();
  }

  /** The backward of a micro-batch is over. */
  finishBackward(): void {
    this.giveBack();
    this.#settle();
  }

  /** The last backward of a step is over: the gradients are those of all ranks afterwards, in `owned`. */
  finishGradients(): void {
    const zero = this.#zero;
    if (zero === null) return;
    if (zero.level === 0)
      for (const { grad } of byLayer(gradientsOf(this.#named.map(([, parameter]) => parameter)), layerOfGradient))
        allReduceInto(grad, zero.group);
    else {
      for (const flat of byLayer(new Set(this.#flats.values()), layerOfFlat)) this.#reduce(new Set([flat]));
      this.#settle();
    }
  }

  /** What this rank holds was updated: where every rank keeps all values, they get the others'. */
  finishUpdate(): void {
    for (const flat of byLayer(new Set(this.#flats.values()), layerOfFlat)) flat.refresh();
    // Whoever stops after this update finds all of it.
    if (this.spread && !this.#away) binding.waitQueue(this.#device.native, queues.compute, queues.comm);
  }

  /**
   * Makes a parameter readable, with those of its unit, until another is asked for, or `giveBack`: a unit is there at a
   * time. All ranks call it in the same order.
   */
  gather(parameter: Parameter): Parameter {
    const flat = this.#flats.get(parameter);
    if (flat === undefined || parameter.readable) return parameter;
    this.giveBack();
    const lent = this.#fetch(flat.parameters);
    this.#lend(lent);
    this.#held.push(lent);
    return parameter;
  }

  giveBack(): void {
    for (const lent of byLayer(this.#held.splice(0), ({ unit }) => unit[0]?.layer ?? -1)) this.#takeBack(lent);
  }

  /** A unit's copies, fetched ahead or from now on. What was fetched for another use is given back. */
  #fetch(unit: Unit): Lent {
    const ahead = this.#ahead;
    this.#ahead = undefined;
    if (ahead !== undefined) {
      const fresh = [...ahead.sources].every(([source, version]) => binding.version(source.native()) === version);
      if (ahead.unit === unit && fresh) return ahead;
      free(ahead);
    }
    const lent: Lent = { unit, copies: new Map(), unpacked: new Map(), used: [], sources: new Map() };
    const from = (source: Tensor) => lent.sources.set(source, binding.version(source.native()));
    try {
      for (const parameter of unit) {
        const { storage } = parameter;
        if (this.#inUse.has(parameter) || lent.copies.has(storage)) continue;
        const flat = this.#flats.get(storage);
        if (flat !== undefined) {
          if (flat.isWhole) continue;
          from(flat.leaf);
          const whole = flat.gather();
          for (const [member, view] of flat.views(whole)) lent.copies.set(member, view);
          whole.dispose();
          continue;
        }
        // Packed or not, it lies on the device.
        if (storage.tier === "device") continue;
        const { shape, dtype, device } = storage;
        const copy = untracked(() => Tensor.empty(shape, { dtype, device, category: "params" }));
        lent.copies.set(storage, copy);
        from(storage);
        binding.ops.copy(storage.native(), copy.native(), queues.copyIn);
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

  /** Frees what was fetched and never used, and this rank's shares. */
  dispose(): void {
    this.#drop();
    this.finishBackward();
    for (const flat of new Set(this.#flats.values())) flat.dispose();
  }
}

function free(lent: Lent): void {
  for (const copy of [...lent.copies.values(), ...lent.unpacked.values()]) copy.dispose();
}
