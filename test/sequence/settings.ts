// Every memory setting against the plain run: the table of values, and what one setting must give.
import { binding } from "../../lib/binding.js";
import { type CausalLM, Device, initModel, type MemoryOptions, nn, optim, type Parameter } from "../../lib/index.js";
import { scope, untracked } from "../../lib/tensor/scope.js";
import { Tensor } from "../../lib/tensor/tensor.js";
import type { RowOf, Rule } from "./covering.js";
import {
  adapterOf,
  asFactors,
  type FamilyName,
  familyFields,
  familyNames,
  gradientTolerance,
  isNoise,
  randomAdapters,
} from "./families.js";

export interface Sizes {
  layers: number;
  hidden: number;
  vocabulary: number;
  /** Tokens of the micro-batches of a step; the longest comes first. */
  lengths: readonly number[];
}

export const usual: Sizes = { layers: 4, hidden: 24, vocabulary: 61, lengths: [23, 16, 5] };
/** So little work that every row there is can be run. */
export const tiny: Sizes = { layers: 3, hidden: 8, vocabulary: 11, lengths: [5, 2, 1] };

/** A new value of a setting is one more entry here. */
export const factors = {
  tileMlp: ["off", "uneven", "one row", "more than rows"],
  tileLoss: ["off", "uneven", "one row", "more than rows"],
  headChunks: [1, 2, 4],
  checkpointEvery: [0, 1, 2, 3],
  keepAttention: [false, true],
  offload: ["none", "host", "disk"],
  /** Two layers' inputs may stay. */
  deviceBytes: ["none", "some"],
  prefetch: [true, false],
  /** Where the states live. */
  optimizer: ["none", "host"],
  params: ["none", "host"],
  gradients: ["none", "host"],
  accumulation: [1, 3],
  tied: [false, true],
  packed: [false, true],
  family: familyNames,
} as const;

export type Setting = RowOf<typeof factors>;

/**
 * What has no meaning: waiting somewhere without checkpoints, and how it is done for what stays on the device anyway.
 * And what is refused: parameters on the host without checkpoints.
 */
export const admissible: Rule<typeof factors> = ({
  checkpointEvery,
  keepAttention,
  offload,
  deviceBytes,
  prefetch,
  params,
  family,
}) =>
  // What is packed is unpacked layer by layer.
  !(checkpointEvery === 0 && family !== undefined && adapterOf(family)?.baseFormat) &&
  !(checkpointEvery === 0 && (keepAttention === true || (offload !== undefined && offload !== "none"))) &&
  !(checkpointEvery === 0 && params === "host") &&
  !((checkpointEvery === 0 || offload === "none") && (deviceBytes === "some" || prefetch === false));

export const plainSetting: Omit<Setting, "accumulation" | "tied" | "packed" | "family"> = {
  tileMlp: "off",
  tileLoss: "off",
  headChunks: 1,
  checkpointEvery: 0,
  keepAttention: false,
  offload: "none",
  deviceBytes: "none",
  prefetch: true,
  optimizer: "none",
  params: "none",
  gradients: "none",
};

/** A setting in one line: what differs from the plain run. */
export const describe = (setting: Setting): string =>
  Object.entries(setting)
    .filter(([key, value]) => value !== (plainSetting as Record<string, unknown>)[key])
    .map(([key, value]) => `${key} ${value}`)
    .join(", ");

const fieldsOf = ({ layers, hidden, vocabulary }: Sizes, family: FamilyName, tied: boolean) =>
  familyFields(family, {
    layers,
    hidden,
    vocabulary,
    heads: 4,
    kvHeads: 2,
    // All heads together are wider than the model.
    headDim: hidden / 4 + 2,
    intermediate: hidden + 16,
    tied,
    window: 0,
  });

const steps = 5;
const parameterTolerance = 1e-5;

/** What a run of some steps gave. */
export interface Outcome {
  losses: number[];
  norms: number[];
  /** Of the first step. */
  grads: Map<string, Float32Array>;
  /** After the last step. */
  params: Map<string, Float32Array>;
  /** Live bytes of each tier, before the first step and after each. */
  live: Record<Tier, number[]>;
  /** Reserved at most while the steps ran. */
  peak: Record<Tier, number>;
}

const tiers = ["device", "host", "disk"] as const;
type Tier = (typeof tiers)[number];

/** Another batch in every step, from the same few numbers in every run. */
function microBatch({ lengths, vocabulary }: Sizes, step: number, micro: number, packed: boolean) {
  const T = lengths[micro] as number;
  const inputIds = Int32Array.from(
    { length: T },
    (_, i) => (Math.imul(i + 31 * step + 7 * micro + 1, 0x9e3779b1) >>> 8) % vocabulary,
  );
  const labels = inputIds.map((id, i) => (i % 5 === 3 ? -100 : id));
  // A document of one token has no target.
  const ends = packed ? [0, Math.floor(T / 3), Math.floor(T / 3) + 1, T] : [0, T];
  return { inputIds, labels, cuSeqlens: BigInt64Array.from(ends, BigInt) };
}

function validTargets({ labels, cuSeqlens }: ReturnType<typeof microBatch>): number {
  const starts = new Set(Array.from(cuSeqlens, Number));
  return labels.reduce((sum, label, i) => sum + (label !== -100 && !starts.has(i) ? 1 : 0), 0);
}

interface Prepared {
  model: CausalLM;
  /** Each once, by its first name. */
  parameters: [string, Parameter][];
  initial: Tensor[];
}

/** max |a - b| over the rms of b. */
export function errorOf(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let worst = 0;
  let squares = 0;
  for (let i = 0; i < b.length; i++) {
    const value = b[i] as number;
    const difference = Math.abs((a[i] as number) - value);
    worst = Math.max(worst, difference);
    squares += value * value;
  }
  const rms = Math.sqrt(squares / b.length);
  return rms === 0 ? worst : worst / rms;
}

/** ||a - b|| / ||b|| */
export function relativeDifference(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let squares = 0;
  let norm = 0;
  for (let i = 0; i < b.length; i++) {
    squares += ((a[i] as number) - (b[i] as number)) ** 2;
    norm += (b[i] as number) ** 2;
  }
  return Math.sqrt(squares / norm);
}

/** Runs settings on one device and holds them against the plain run, which it does once for each kind of batch. */
export class Settings {
  readonly device: Device;
  readonly #sizes: Sizes;
  readonly #models = new Map<string, Prepared>();
  readonly #plain = new Map<string, Outcome>();

  constructor(sizes: Sizes = usual, threads = 2, device = "cpu") {
    this.device = new Device(device, { threads });
    this.#sizes = sizes;
  }

  /** What goes into configureMemory. */
  #memory(setting: Setting): MemoryOptions {
    const { lengths, hidden } = this.#sizes;
    const longest = lengths[0] as number;
    const rows = { off: 0, uneven: Math.ceil(longest / 3), "one row": 1, "more than rows": 2 * longest };
    return {
      tileMlp: rows[setting.tileMlp],
      tileLoss: rows[setting.tileLoss],
      checkpointEvery: setting.checkpointEvery,
      keepAttention: setting.keepAttention,
      offload: setting.offload,
      deviceBytes: setting.deviceBytes === "some" ? 2 * longest * hidden * 4 : 0,
      prefetch: setting.prefetch,
      headChunks: setting.headChunks,
      states: { params: setting.params, gradients: setting.gradients },
    };
  }

  #prepare({ tied, family }: Setting): Prepared {
    const key = `${family} ${tied}`;
    let found = this.#models.get(key);
    if (found === undefined) {
      const fields = fieldsOf(this.#sizes, family, tied);
      const adapter = adapterOf(family);
      const model = initModel(fields, { device: this.device, dtype: "float32", seed: 1, adapter });
      randomAdapters(model);
      const parameters = new Map<Parameter, string>();
      for (const [name, parameter] of model.namedParameters())
        if (parameter.requiresGrad && !parameters.has(parameter)) parameters.set(parameter, name);
      const list = [...parameters].map(([parameter, name]): [string, Parameter] => [name, parameter]);
      const initial = list.map(([, parameter]) => {
        const copy = Tensor.empty(parameter.shape, { device: this.device, dtype: "float32" });
        binding.ops.copy(parameter.native(), copy.native());
        return copy;
      });
      found = { model, parameters: list, initial };
      this.#models.set(key, found);
    }
    return found;
  }

  /** Some steps of AdamW from the same parameters. */
  async run(setting: Setting): Promise<Outcome> {
    const { device } = this;
    const { model, parameters, initial } = this.#prepare(setting);
    for (const [i, [, parameter]] of parameters.entries())
      binding.ops.copy((initial[i] as Tensor).native(), parameter.native());
    model.configureMemory(this.#memory(setting));
    const optimizer = new optim.AdamW(
      parameters.map(([, parameter]) => parameter),
      {
        learningRate: 3e-4,
        weightDecay: 0.1,
        // AdamW makes much of the rounding of gradients that are nearly 0.
        eps: 1e-6,
        decayOnlyMatrices: true,
        offload: setting.optimizer,
        // Of several pieces each, the last one shorter.
        pieceElements: 100,
      },
    );
    const states = optimizer.namedState(new Map(parameters.map(([name, parameter]) => [parameter, name])));
    device.resetPeaks();
    const outcome: Outcome = {
      losses: [],
      norms: [],
      grads: new Map(),
      params: new Map(),
      live: { device: [], host: [], disk: [] },
      peak: { device: 0, host: 0, disk: 0 },
    };
    const noteLive = () => {
      for (const tier of tiers) outcome.live[tier].push(device.memory(tier).live);
    };
    noteLive();
    try {
      await this.#train(setting, optimizer, outcome, noteLive);
    } finally {
      // Also after an error, so that the next setting starts afresh.
      optimizer.zeroGrad();
      for (const [, state] of states) state.dispose();
    }
    for (const tier of tiers) outcome.peak[tier] = device.memory(tier).peak;
    return outcome;
  }

  /** Enqueues all steps, then waits for what they gave. */
  async #train(setting: Setting, optimizer: optim.AdamW, outcome: Outcome, noteLive: () => void): Promise<void> {
    const { model, parameters } = this.#prepare(setting);
    const reads: Promise<unknown>[] = [];
    for (let step = 0; step < steps; step++) {
      const batches = Array.from({ length: setting.accumulation }, (_, i) =>
        microBatch(this.#sizes, step, i, setting.packed),
      );
      const denominator = batches.reduce((sum, batch) => sum + validTargets(batch), 0);
      scope(() => {
        const losses = batches.map((batch) => {
          const loss = model.loss(batch, { denominator, dropoutSeed: step });
          loss.backward();
          return loss;
        });
        const { norm, factor, finite } = nn.gradNorm(
          parameters.map(([, parameter]) => parameter),
          1,
        );
        reads.push(
          Promise.all(losses.map((loss) => loss.item())).then((values) => {
            outcome.losses[step] = values.reduce((a, b) => a + b, 0);
          }),
          norm.item().then((value) => {
            outcome.norms[step] = value;
          }),
        );
        if (step === 0)
          for (const [name, parameter] of parameters) {
            const grad = parameter.hostGrad ?? parameter.grad;
            if (grad === null) throw new Error(`${name} has no gradient`);
            reads.push(grad.data().then((data) => outcome.grads.set(name, (data as Float32Array).slice())));
          }
        optimizer.step({ factor, finite });
        optimizer.zeroGrad();
      });
      noteLive();
    }
    for (const [name, parameter] of parameters)
      reads.push(parameter.data().then((data) => outcome.params.set(name, (data as Float32Array).slice())));
    await Promise.all(reads);
  }

  /** The same step with nothing on. */
  async plain({ accumulation, tied, packed, family }: Setting): Promise<Outcome> {
    const plainest = adapterOf(family)?.baseFormat ? { ...plainSetting, checkpointEvery: 1 as const } : plainSetting;
    const setting = { ...plainest, accumulation, tied, packed, family };
    const key = JSON.stringify(setting);
    let found = this.#plain.get(key);
    if (found === undefined) {
      found = await this.run(setting);
      this.#plain.set(key, found);
    }
    return found;
  }

  /** What is not right with a setting; empty: nothing. */
  async check(setting: Setting): Promise<string[]> {
    const plain = await this.plain(setting);
    const other = await this.run(setting);
    const wrong: string[] = [];
    const expect = (good: boolean, message: string) => {
      if (!good) wrong.push(message);
    };
    for (let step = 0; step < steps; step++)
      for (const [what, a, b] of [
        ["loss", other.losses[step], plain.losses[step]],
        ["gradient norm", other.norms[step], plain.norms[step]],
      ] as [string, number, number][])
        expect(Math.abs(a - b) <= 1e-5 * Math.abs(b), `${what} of step ${step + 1} is ${a}, plain ${b}`);
    for (const [name, grad] of plain.grads) {
      if (isNoise(name)) continue;
      const error = errorOf(other.grads.get(name) ?? [], grad);
      expect(error <= gradientTolerance(setting.family), `gradient of ${name} is off by ${error}`);
    }
    for (const [name, values] of plain.params) {
      if (isNoise(name)) continue;
      const factors = (of: Float32Array) => asFactors(setting.family, name, of);
      const difference = relativeDifference(factors(other.params.get(name) as Float32Array), factors(values));
      expect(difference <= parameterTolerance, `${name} after ${steps} steps is off by ${difference}`);
    }
    for (const tier of tiers) {
      const live = other.live[tier];
      expect(new Set(live).size === 1, `live bytes of ${tier} over the steps: ${live.join(", ")}`);
    }
    const { offload } = setting;
    if (this.#goesOut(setting)) expect(other.peak[offload as Tier] > 0, `nothing was in ${offload} memory`);
    return wrong;
  }

  /** Whether checkpoints must leave the device. */
  #goesOut({ offload, checkpointEvery, deviceBytes }: Setting): boolean {
    return offload !== "none" && (deviceBytes === "none" || (checkpointEvery === 1 && this.#sizes.layers > 2));
  }

  /** Frees models; the device must hold nothing afterwards. */
  dispose(): void {
    untracked(() => {
      for (const { model, initial } of this.#models.values()) {
        model.dispose();
        for (const tensor of initial) tensor.dispose();
      }
    });
    this.#models.clear();
  }
}
