// Some training steps of a world of ranks, all of them devices of this one process, against the same steps of one rank.
import { parseConfigObject } from "../../lib/config/index.js";
import type { Batch } from "../../lib/data/batch.js";
import { nothing } from "../../lib/data/loader.js";
import { type CausalLM, Device, initModel } from "../../lib/index.js";
import type { AdamW } from "../../lib/optim/adamw.js";
import type { Communicator } from "../../lib/parallel/communicator.js";
import { Mesh } from "../../lib/parallel/mesh.js";
import type { Owned, ZeroLevel } from "../../lib/parallel/zero.js";
import type { MemoryPlan } from "../../lib/train/memory_plan.js";
import { enqueueStep, makeOptimizer } from "../../lib/train/step.js";
import { full } from "../full.js";
import type { RowOf, Rule } from "../sequence/covering.js";
import {
  adapterOf,
  asFactors,
  type FamilyName,
  familyFields,
  familyNames,
  gradientTolerance,
  isNoise,
  randomAdapters,
} from "../sequence/families.js";
import { errorOf, relativeDifference } from "../sequence/settings.js";
import { connect } from "./connect.js";

/** data x ring x ulysses; a new value of a setting is one more entry here. */
export const factors = {
  world: ["1x1x2", "1x1x8", "2x1x1", "2x1x2", "1x2x1", "1x2x2", "1x4x2", "2x3x1"],
  zero: [0, 1, 2, 3],
  heads: ["8/8", "8/2", "8/1", "8/4 in a window"],
  tiles: [false, true],
  headChunks: [1, 2],
  checkpointEvery: [0, 1, 2],
  keepAttention: [false, true],
  offload: ["none", "host"],
  optimizer: ["none", "host"],
  params: ["none", "host"],
  gradients: ["none", "host"],
  microBatches: [1, 3],
  tied: [false, true],
  packed: [false, true],
  family: familyNames.filter((name) => full || !name.endsWith(" by adapters") || name.startsWith("llama")),
} as const;

export type Row = RowOf<typeof factors>;

export const admissible: Rule<typeof factors> = ({ checkpointEvery, keepAttention, offload, params, family }) =>
  // What is packed is unpacked layer by layer.
  !(checkpointEvery === 0 && family !== undefined && adapterOf(family)?.baseFormat) &&
  !(checkpointEvery === 0 && (keepAttention === true || offload === "host" || params === "host"));

export const describe = (row: Row): string =>
  Object.entries(row)
    .map(([key, value]) => `${key} ${value}`)
    .join(", ");

const STEPS = 5;
const HIDDEN = 16;
const VOCABULARY = 29;
const LENGTHS = [23, 16, 5];

function fieldsOf({ heads, tied, family }: Pick<Row, "heads" | "tied" | "family">) {
  const [N, K] = (heads.split(" ")[0] as string).split("/").map(Number) as [number, number];
  return familyFields(family, {
    layers: 3,
    hidden: HIDDEN,
    heads: N,
    kvHeads: K,
    headDim: 6,
    intermediate: 20,
    vocabulary: VOCABULARY,
    tied,
    window: heads.includes("window") ? 6 : 0,
  });
}

/** Another batch in every step; the same for every world. */
function batchOf(step: number, micro: number, packed: boolean): Batch {
  const tokens = LENGTHS[micro] as number;
  const inputIds = Int32Array.from(
    { length: tokens },
    (_, i) => (Math.imul(i + 31 * step + 7 * micro + 1, 0x9e3779b1) >>> 8) % VOCABULARY,
  );
  // A document of one token has no target; the last micro-batch of the second step has no label at all.
  const ends = packed ? [0, Math.floor(tokens / 3), Math.floor(tokens / 3) + 1, tokens] : [0, tokens];
  const targets = new Int32Array(tokens).fill(-100);
  const positions = new BigInt64Array(tokens);
  for (let d = 0; d + 1 < ends.length; d++)
    for (let i = ends[d] as number; i < (ends[d + 1] as number); i++) {
      positions[i] = BigInt(i - (ends[d] as number));
      if (i + 1 < (ends[d + 1] as number) && i % 5 !== 3 && !(step === 1 && micro === 2))
        targets[i] = inputIds[i + 1] as number;
    }
  return {
    inputIds,
    targets,
    positions,
    cuSeqlens: BigInt64Array.from(ends, BigInt),
    tokens,
    validTokens: targets.filter((target) => target !== -100).length,
    sequences: 1,
  };
}

const { train } = parseConfigObject({
  model: { init: {} },
  data: { train: ["none"], sequenceLength: 64 },
  train: { steps: STEPS, learningRate: 3e-4, weightDecay: 0.1, clipGradNorm: 1 },
  output: { dir: "none" },
});

interface Outcome {
  losses: number[];
  norms: number[];
  /** First moments after the first step, which are its gradients but for a factor. */
  moments: Map<string, Float32Array>;
  params: Map<string, Float32Array>;
  /** Of rank 0: most bytes of each tier that were reserved in the steps, and what they were for. */
  peaks: Peaks;
}

interface Peaks {
  device: number;
  /** Most that was in use. */
  live: number;
  host: number;
  categories: object;
}

const peaksOf = ({ device }: Pick<Rank, "device">): Peaks => {
  const [own, host] = [device.memory(), device.memory("host")];
  return { device: own.peak, live: own.peakLive, host: host.peak, categories: own.categoryAtPeak };
};

interface Rank {
  device: Device;
  mesh: Mesh;
  model: CausalLM;
  owned: readonly Owned[];
  optimizer: AdamW;
  /** Bytes before the first step. */
  live: number;
}

/** A rank with all that it has before its first step. */
function openRank(row: Row, device: Device, mesh: Mesh): Rank {
  const { optimizer: where, params, gradients } = row;
  const plan: MemoryPlan = {
    tileMlp: row.tiles ? 3 : 0,
    tileLoss: row.tiles ? 2 : 0,
    checkpointEvery: row.checkpointEvery,
    keepAttention: row.keepAttention,
    offload: row.offload,
    deviceBytes: 0,
    format: "native",
    directory: null,
    prefetch: true,
    headChunks: row.headChunks,
    states: { optimizer: where, params, gradients },
  };
  device.trim();
  const zero = mesh.world === null ? null : { group: mesh.world, level: row.zero as ZeroLevel };
  const adapter = adapterOf(row.family);
  const model = initModel(fieldsOf(row), { device, dtype: "float32", seed: 1, memory: plan, zero, adapter });
  randomAdapters(model);
  model.states.finishUpdate();
  const owned = model.trained;
  const optimizer = makeOptimizer(owned, train, plan);
  optimizer.prepare();
  device.resetPeaks();
  return { device, mesh, model, owned, optimizer, live: device.memory().live };
}

function enqueue(row: Row, { mesh, model, owned, optimizer }: Rank, step: number): ReturnType<typeof enqueueStep> {
  let firstToken = 0;
  const micro = Array.from({ length: row.microBatches }, (_, i) => {
    const batch = { ...batchOf(step, i, row.packed), firstToken };
    firstToken += batch.tokens;
    return batch;
  });
  const validTokens = micro.reduce((sum, batch) => sum + batch.validTokens, 0);
  const { data } = mesh.sizes;
  const rounds = Math.ceil(micro.length / data);
  const own = Array.from({ length: rounds }, (_, i) => micro[i * data + mesh.dataIndex] ?? nothing());
  const { clipGradNorm, learningRate } = train;
  return enqueueStep({
    model,
    optimizer,
    owned,
    mesh,
    micro: own,
    validTokens,
    clipGradNorm,
    learningRate,
    dropoutSeed: step,
  });
}

function close({ model, optimizer }: Rank): void {
  optimizer.zeroGrad();
  optimizer.dispose();
  model.dispose();
}

/** What rank 0 of such a world takes, by the same steps on `meta`. */
function planned(row: Row): Peaks {
  const [data, ring, ulysses] = row.world.split("x").map(Number) as [number, number, number];
  const mesh = Mesh.ofMeta({ data, ring, ulysses });
  const rank = openRank(row, new Device("meta"), mesh);
  for (let step = 0; step < STEPS; step++) {
    const { loss, norm, finite } = enqueue(row, rank, step);
    for (const scalar of [loss, norm, finite]) scalar.dispose();
  }
  const peaks = peaksOf(rank);
  close(rank);
  mesh.close();
  mesh.world?.close();
  return peaks;
}

/** The meshes of all ranks of a world. */
async function meshesOf(world: string): Promise<Mesh[]> {
  const [data, ring, ulysses] = world.split("x").map(Number) as [number, number, number];
  const sizes = { data, ring, ulysses };
  const worlds = await connect(data * ring * ulysses, []);
  // Each group is opened once, by whoever asks first.
  const groups = new Map<string, Promise<Communicator[]>>();
  return Promise.all(
    worlds.map((own, rank) =>
      Mesh.open(sizes, own, async (members) => {
        const key = members.join();
        const group = groups.get(key) ?? connect(members.length, []);
        groups.set(key, group);
        return (await group)[members.indexOf(rank)] as Communicator;
      }),
    ),
  );
}

/** Runs rows and holds them against one rank. */
export class Worlds {
  readonly #meshes = new Map<string, Mesh[]>();
  readonly #devices: Device[] = [];
  readonly #alone = new Map<string, Outcome>();

  async #meshesOf(world: string): Promise<Mesh[]> {
    const found = this.#meshes.get(world) ?? (await meshesOf(world));
    this.#meshes.set(world, found);
    return found;
  }

  /** What is not right with a row; empty: nothing. */
  async check(row: Row): Promise<string[]> {
    const { heads, tied, packed, microBatches, family } = row;
    const key = JSON.stringify({ heads, tied, packed, microBatches, family });
    let alone = this.#alone.get(key);
    if (alone === undefined) {
      const plain = {
        ...row,
        zero: 0,
        tiles: false,
        headChunks: 1,
        checkpointEvery: adapterOf(family)?.baseFormat ? 1 : 0,
        keepAttention: false,
        offload: "none",
        optimizer: "none",
        params: "none",
        gradients: "none",
      } as const;
      alone = await this.#run(plain, [Mesh.alone]);
      this.#alone.set(key, alone);
    }
    const several = await this.#run(row, await this.#meshesOf(row.world));
    const [real, meta] = [JSON.stringify(several.peaks), JSON.stringify(planned(row))];
    return [
      ...differences(several, alone, family),
      ...(real === meta ? [] : [`peaks of rank 0: ${real}, planned ${meta}`]),
    ];
  }

  async #run(row: Row, meshes: readonly Mesh[]): Promise<Outcome> {
    while (this.#devices.length < meshes.length) this.#devices.push(new Device("cpu", { threads: 1 }));
    const ranks = meshes.map((mesh, rank) => openRank(row, this.#devices[rank] as Device, mesh));
    const outcome: Outcome = {
      losses: [],
      norms: [],
      moments: new Map(),
      params: new Map(),
      peaks: { device: 0, live: 0, host: 0, categories: {} },
    };
    const all = ranks.map(({ model }) => shapesOf(model));
    try {
      const reads: Promise<unknown>[] = [];
      for (let step = 0; step < STEPS; step++) {
        for (const [rank, one] of ranks.entries()) {
          const made = enqueue(row, one, step);
          reads.push(
            made.loss.item().then((loss) => note(outcome.losses, step, loss, `loss, rank ${rank}`)),
            made.norm.item().then((norm) => note(outcome.norms, step, norm, `gradient norm, rank ${rank}`)),
          );
          for (const scalar of [made.loss, made.norm, made.finite]) scalar.keep();
          if (step > 0) continue;
          for (const part of one.owned)
            reads.push(collect(outcome.moments, part, one.optimizer.stateOf(part.leaf).m as Owned["leaf"], all[rank]));
        }
      }
      for (const [rank, { owned }] of ranks.entries())
        for (const one of owned) reads.push(collect(outcome.params, one, one.leaf, all[rank]));
      await Promise.all(reads);
      outcome.peaks = peaksOf(ranks[0] as Rank);
      for (const [rank, { device, live }] of ranks.entries())
        if (device.memory().live !== live)
          throw new Error(`rank ${rank}: ${device.memory().live} live bytes after the steps, ${live} before`);
    } finally {
      for (const one of ranks) close(one);
    }
    return outcome;
  }

  dispose(): void {
    for (const meshes of this.#meshes.values())
      for (const mesh of meshes) {
        mesh.close();
        mesh.world?.close();
      }
  }
}

/** All ranks tell the same number. */
function note(list: number[], step: number, value: number, what: string): void {
  if (list[step] !== undefined && list[step] !== value)
    throw new Error(`${what}, step ${step + 1}: ${value}, another rank has ${list[step]}`);
  list[step] = value;
}

const shapesOf = (model: CausalLM): Map<string, number> =>
  new Map([...model.namedParameters()].map(([name, { size }]) => [name, size]));

/** Puts what a rank holds into the whole tensors. */
async function collect(
  into: Map<string, Float32Array>,
  { segments }: Owned,
  tensor: Owned["leaf"],
  sizes: Map<string, number> | undefined,
): Promise<void> {
  const data = (await tensor.data()) as Float32Array;
  for (const { name, begin, count, offset } of segments) {
    const whole = into.get(name) ?? new Float32Array(sizes?.get(name) as number).fill(Number.NaN);
    into.set(name, whole);
    whole.set(data.subarray(offset, offset + count), begin);
  }
}

function differences(other: Outcome, plain: Outcome, family: FamilyName): string[] {
  const wrong: string[] = [];
  const expect = (good: boolean, message: string) => {
    if (!good) wrong.push(message);
  };
  for (let step = 0; step < STEPS; step++)
    for (const [what, a, b] of [
      ["loss", other.losses[step], plain.losses[step]],
      ["gradient norm", other.norms[step], plain.norms[step]],
    ] as const)
      expect(
        Math.abs((a as number) - (b as number)) <= 1e-5 * Math.abs(b as number),
        `${what} of step ${step + 1}: ${a}, alone ${b}`,
      );
  expect([...other.params.keys()].sort().join() === [...plain.params.keys()].sort().join(), "other parameters");
  for (const [name, values] of plain.moments) {
    if (isNoise(name)) continue;
    const error = errorOf(other.moments.get(name) ?? [], values);
    expect(error <= gradientTolerance(family), `gradient of ${name} is off by ${error}`);
  }
  for (const [name, values] of plain.params) {
    if (isNoise(name)) continue;
    const factors = (of: Float32Array) => asFactors(family, name, of);
    const difference = relativeDifference(factors(other.params.get(name) as Float32Array), factors(values));
    expect(difference <= 1e-5, `${name} differs by ${difference} after ${STEPS} steps`);
  }
  return wrong;
}
