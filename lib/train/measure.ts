// What a step needs, from the step itself on the `meta` device: the real program with the real allocators, nothing
// computed. Peaks are those of a run on the CPU to the byte; of one on a GPU too, but for what its libraries take.

import { type ByCategory, binding, type MemoryStats, type OpCount } from "../binding.js";
import type { Config } from "../config/index.js";
import type { Batch, Dataset } from "../data/index.js";
import { CausalLM } from "../models/decoder.js";
import type { ModelConfig } from "../models/index.js";
import { Mesh, type SequenceGroup } from "../parallel/mesh.js";
import { partLength, type ShardedBatch } from "../sequence/shard.js";
import { Device, type DeviceOptions } from "../tensor/device.js";
import type { DType } from "../tensor/dtype.js";
import { whileListening } from "../tensor/layer.js";
import { untracked } from "../tensor/scope.js";
import type { Peaks } from "./limits.js";
import type { MemoryPlan } from "./memory_plan.js";
import type { Elapsed, Timing } from "./rates.js";
import { marginsOf, type Shorter, shorter } from "./shorter.js";
import { disposeRun, enqueueStep, evaluationLoss, makeOptimizer } from "./step.js";
import type { RanksOf } from "./world.js";

/** The sizes of one micro-batch. */
export interface BatchSize {
  tokens: number;
  documents: number;
}

/** What a run does, as far as memory is concerned. */
export interface Workload {
  /** The largest micro-batch. */
  micro: BatchSize;
  /** Sizes of the others, each number of tokens once, longest first. */
  others: readonly BatchSize[];
  /** The micro-batches of each step in order, of a short run whose sizes vary; else null. */
  steps: readonly (readonly BatchSize[])[] | null;
  /** Micro-batches a step. */
  accumulation: number;
  /** The largest batch of an evaluation; null: there is none. */
  evaluation: BatchSize | null;
}

/** Sequences that are looked at one by one; of more than these the longest are taken together. */
const MOST_SEQUENCES = 100_000;
/** Micro-batches of a run that is short enough to be walked as it is. */
const MOST_REHEARSED = 64;

const sizeOf = (dataset: Dataset, epoch: number, i: number): BatchSize => {
  const segments = dataset.plan(epoch).segments(i);
  return {
    tokens: segments.reduce((sum, { begin, end }) => sum + end - begin, 0),
    documents: segments.reduce((sum, segment) => sum + dataset.documentsIn(segment).length, 0),
  };
};

/** The first `sequences` of the dataset, epoch after epoch. */
function* inOrder(dataset: Dataset, sequences: number): Generator<BatchSize> {
  let left = sequences;
  for (let epoch = 0; left > 0; epoch++) {
    const count = Math.min(left, dataset.plan(epoch).sequences);
    for (let i = 0; i < count; i++) yield sizeOf(dataset, epoch, i);
    left -= count;
  }
}

/** Groups of `size`; the last may be smaller. */
function* grouped<T>(all: Iterable<T>, size: number): Generator<T[]> {
  let group: T[] = [];
  for (const one of all) {
    group.push(one);
    if (group.length < size) continue;
    yield group;
    group = [];
  }
  if (group.length > 0) yield group;
}

const together = (group: readonly BatchSize[]): BatchSize => ({
  tokens: group.reduce((total, { tokens }) => total + tokens, 0),
  documents: group.reduce((total, { documents }) => total + documents, 0),
});

/** Sizes of micro-batches: each number of tokens once, with the most documents that it has; longest first. */
function sizesOf(dataset: Dataset, sequences: number, size: number): BatchSize[] {
  const documentsOf = new Map<number, number>();
  const take = ({ tokens, documents }: BatchSize) =>
    documentsOf.set(tokens, Math.max(documentsOf.get(tokens) ?? 0, documents));
  if (sequences > MOST_SEQUENCES) {
    // No group has more than the largest of an epoch together; other epochs differ by how documents are packed.
    const all = Array.from({ length: dataset.plan(0).sequences }, (_, i) => sizeOf(dataset, 0, i));
    const groups = [
      ...grouped(
        all.sort((a, b) => b.tokens - a.tokens),
        size,
      ),
    ];
    for (const group of groups) take(together(group));
    const most = all.sort((a, b) => b.documents - a.documents).slice(0, size);
    take({ tokens: together(groups[0] ?? []).tokens, documents: together(most).documents });
  } else for (const group of grouped(inOrder(dataset, sequences), size)) take(together(group));
  return [...documentsOf].map(([tokens, documents]) => ({ tokens, documents })).sort((a, b) => b.tokens - a.tokens);
}

/** A batch that no other exceeds, in tokens or in documents. */
const largestOf = (sizes: readonly BatchSize[]): BatchSize => ({
  tokens: sizes[0]?.tokens ?? 0,
  documents: sizes.reduce((most, { documents }) => Math.max(most, documents), 0),
});

/** The workload of a run over these data. */
export function workloadOf(config: Config, data: Dataset, evaluation: Dataset | undefined, steps: number): Workload {
  const { batchSize, microBatchSize } = config.train;
  const groups = config.parallel.data;
  const sequences = steps * batchSize;
  const [longest, ...others] = sizesOf(data, sequences, microBatchSize);
  // Of several groups of ranks each walks other sequences.
  const short = groups === 1 && others.length > 0 && sequences / microBatchSize <= MOST_REHEARSED;
  const walk = [...grouped(short ? inOrder(data, sequences) : [], batchSize)];
  return {
    micro: largestOf(longest ? [longest, ...others] : []),
    others,
    steps: short ? walk.map((step) => [...grouped(step, microBatchSize)].map(together)) : null,
    accumulation: batchSize / microBatchSize / groups,
    evaluation: evaluation ? largestOf(sizesOf(evaluation, evaluation.plan(0).sequences, microBatchSize)) : null,
  };
}

/** The workload of full sequences of `tokens`, each one document. */
export function fullWorkload(config: Config, tokens = config.data.sequenceLength): Workload {
  const { batchSize, microBatchSize } = config.train;
  const micro = { tokens: tokens * microBatchSize, documents: microBatchSize };
  return {
    micro,
    others: [],
    steps: null,
    accumulation: batchSize / microBatchSize / config.parallel.data,
    evaluation: config.data.eval.length > 0 ? micro : null,
  };
}

/** Tokens that the attention of a rank may have in a plan: what is made of their positions has to fit one array. */
export const MOST_ATTENDED = 2 ** 28;

/** Zeros that all batches are made of: of millions of tokens each would take longer to fill than its step on `meta`. */
let zeros = new BigInt64Array(1 << 16);

/** This rank's part of a batch of these sizes; ids and labels are all 0. */
function batchOf({ tokens, documents }: BatchSize, group: SequenceGroup | null): Batch | ShardedBatch {
  const length = group === null ? tokens : partLength(tokens, group);
  const padding = length * (group?.size ?? 1) - tokens;
  const attended = length * (group?.ulysses?.size ?? 1);
  if (zeros.length < Math.max(length, attended)) zeros = new BigInt64Array(Math.max(length, attended));
  // Padding is counted as tokens of the last document: the rank that has it does less than the others, who are waited for.
  const cuSeqlens = BigInt64Array.from({ length: documents + padding + 1 }, (_, i) =>
    BigInt(i < documents ? Math.min(i, tokens) : tokens + padding),
  );
  return {
    inputIds: new Int32Array(zeros.buffer, 0, length),
    targets: new Int32Array(zeros.buffer, 0, length),
    positions: new BigInt64Array(zeros.buffer, 0, attended),
    cuSeqlens,
    tokens: length,
    validTokens: length,
    sequences: 1,
    ...(group !== null && { group }),
  };
}

/** Chunks of small blocks that a step of an unmeasured size may take beyond the measured ones. */
const SPARE_CHUNKS = 2;
/** Their size in native/runtime/allocator.cc, where a page is not larger. */
const CHUNK_BYTES = 2 ** 20;

/** What was measured of one setting. */
export interface Measurement {
  /** Bytes reserved at the highest. */
  peaks: Peaks & { disk: number };
  /** What limits surely leave enough with: more where sizes vary and not all of them were walked. */
  needs: Peaks;
  /** Bytes by category when that was. */
  categories: { device: ByCategory; host: ByCategory; disk: ByCategory };
  /** Of one step. */
  ops: Record<string, OpCount>;
  /** The same; zeros where it is not known how long ops take. */
  elapsed: Elapsed;
  /** Most bytes of checkpoints that stayed on the device as they are. */
  resident: number;
  /** Layers of the model that was walked. */
  layers: number;
}

/** The model and the numbers of a run that its memory depends on. */
export interface Subject {
  model: ModelConfig;
  dtype: DType;
  train: Config["train"];
  /** The ranks and what they share; absent: one that has all. */
  ranks?: RanksOf;
  /** The device that `meta` stands for; absent: the CPU. */
  on?: Pick<DeviceOptions, "profile" | "attention" | "deterministic"> | undefined;
  /** How long ops take; absent: nobody asks. */
  timing?: Timing | undefined;
}

const metas = new Map<string, Device>();

function metaDevice(on: Subject["on"] = {}): Device {
  const key = JSON.stringify(on);
  const found = metas.get(key) ?? new Device("meta", on);
  metas.set(key, found);
  return found;
}

/**
 * Sizes that may take more than the largest does: those that are one tile, whose intermediates are kept instead of made
 * again; and the shortest, whose blocks are small enough to share chunks, which are given back only as a whole.
 */
function unlike(plan: MemoryPlan, work: Workload): BatchSize[] {
  const { others } = work;
  const found = [plan.tileMlp, plan.tileLoss].map((rows) => others.find(({ tokens }) => tokens <= rows));
  return [...new Set([...found, others.at(-1)])].filter((size) => size !== undefined);
}

/** A run on `meta`. */
interface MetaRun {
  device: Device;
  model: CausalLM;
  mesh: Mesh;
  batch: (size: BatchSize) => Batch;
  step: (micro: Iterable<Batch>, validTokens: number) => void;
  /** What was asked of the allocators so far; null: not known of the longer model. */
  accounts: () => Accounts | null;
}

/** What a run came to. */
type Accounts = Pick<Measurement, "peaks" | "categories" | "ops" | "elapsed">;

/**
 * Opens the model on `meta` with everything that a run has, and closes it behind `use`. short: the model to be opened,
 * which stands for the subject's.
 */
function onMeta<T>(subject: Subject, plan: MemoryPlan, short: Shorter | null, use: (run: MetaRun) => T): T {
  const device = metaDevice(subject.on);
  const { native } = device;
  const { ranks } = subject;
  const mesh = ranks === undefined ? Mesh.alone : Mesh.ofMeta(ranks, subject.timing?.perNode);
  const zero = ranks === undefined || mesh.world === null ? null : { group: mesh.world, level: ranks.zero };
  const accounts = (): Accounts | null => {
    const { at, period, copies } = short ?? { at: 0, period: 1, copies: 0 };
    const found = binding.logAccounts(native, at, period, copies);
    return found && { ...peaksOf(found.memory), ops: found.ops, elapsed: found.elapsed };
  };
  const walk = (): T => {
    const tier = plan.states.params === "host" ? "host" : "device";
    const config = short?.model ?? subject.model;
    const model = untracked(() => new CausalLM(config, { device, dtype: subject.dtype, tier, zero }));
    model.configureMemory({ ...plan, directory: null });
    const owned = model.trained;
    const optimizer = makeOptimizer(owned, subject.train, plan);
    try {
      optimizer.prepare();
      const step = (micro: Iterable<Batch>, validTokens: number) => {
        const { clipGradNorm, learningRate } = subject.train;
        const made = enqueueStep({ model, optimizer, owned, mesh, micro, validTokens, clipGradNorm, learningRate });
        for (const scalar of [made.loss, made.norm, made.finite]) scalar.dispose();
      };
      return use({ device, model, mesh, batch: (size) => batchOf(size, mesh.sequence), step, accounts });
    } finally {
      disposeRun(model, optimizer);
    }
  };
  binding.startLog(native, subject.timing?.durations ?? {}, subject.timing?.overlap ?? 1);
  try {
    return whileListening((layer) => binding.logLayer(native, layer), walk);
  } finally {
    binding.stopLog(native);
    mesh.close();
    mesh.world?.close();
  }
}

/** What the allocators have seen at most. */
function peaksOf([onDevice, onHost, onDisk]: readonly MemoryStats[]): Pick<Measurement, "peaks" | "categories"> {
  const of = (stats: MemoryStats | undefined) => stats as MemoryStats;
  return {
    peaks: { device: of(onDevice).peak, host: of(onHost).peak, disk: of(onDisk).peak },
    categories: {
      device: of(onDevice).categoryAtPeak,
      host: of(onHost).categoryAtPeak,
      disk: of(onDisk).categoryAtPeak,
    },
  };
}

let whole = false;

/** For tests: whether every layer is walked. */
export function walkAllLayers(all: boolean): void {
  whole = all;
}

/** Calls \`walk\` with the shortest model that stands for the subject's and is found to do so, at last with that itself. */
function withFewest<T>({ model }: Subject, plan: MemoryPlan, walk: (short: Shorter | null) => T | null): T {
  for (const margins of whole ? [] : marginsOf(plan)) {
    const short = shorter(model, plan, margins);
    const found = short && walk(short);
    if (found !== null) return found;
  }
  return walk(null) as T;
}

/** Takes two steps on `meta`, one of each size that is unlike the largest, and evaluates. */
export function measure(subject: Subject, plan: MemoryPlan, work: Workload): Measurement {
  return withFewest(subject, plan, (short) =>
    onMeta(subject, plan, short, ({ device, model, mesh, batch, step, accounts }) => {
      const { native } = device;
      const micro = batch(work.micro);
      // The third micro-batch finds what every later one finds, and so does the second step. Where a step goes through
      // its micro-batches twice, for the balance of experts, all are walked.
      const twice = (model.config.experts?.auxiliaryCoefficient ?? 0) > 0;
      const walked = twice ? work.accumulation : Math.min(work.accumulation, 3);
      const all = function* () {
        for (let i = 1; i <= walked; i++) {
          const from = binding.logPosition(native);
          yield micro;
          if (i === walked && walked < work.accumulation) binding.logRepeat(native, from, work.accumulation - walked);
        }
      };
      for (let i = 0; i < 2; i++) {
        device.resetOpCounts();
        step(all(), micro.validTokens * work.accumulation);
      }
      binding.logCounted(native);
      const resident = model.checkpointBytesOnDevice;
      // Shorter batches could fill device_bytes better, with what they save elsewhere not enough for it: no run lets
      // them.
      model.configureMemory({ deviceBytes: Math.min(plan.deviceBytes, resident) });
      // The second micro-batch of a step finds gradients.
      for (const size of unlike(plan, work)) step(Array(Math.min(work.accumulation, 2)).fill(batch(size)), size.tokens);
      if (work.evaluation) evaluationLoss(model, batch(work.evaluation), mesh.sequence).dispose();
      const found = accounts();
      if (found === null) return null;
      // Of sizes that were not tried each may leave the chunks that small blocks share filled otherwise.
      const spare = work.others.length > 0 ? SPARE_CHUNKS * Math.max(CHUNK_BYTES, device.info.pageBytes) : 0;
      const withSpare = (peak: number) => (peak > 0 ? peak + spare : 0);
      const needs = { device: withSpare(found.peaks.device), host: withSpare(found.peaks.host) };
      // Checkpoints are equally large: where all stay, those of more layers are as many times more.
      const walkedLayers = model.config.numLayers;
      const checkpoints = (layers: number) => Math.ceil(layers / Math.max(1, plan.checkpointEvery));

      return {
        ...found,
        needs,
        resident: (resident / checkpoints(walkedLayers)) * checkpoints(subject.model.numLayers),
        layers: walkedLayers,
      };
    }),
  );
}

/** Peaks of the steps as they will come, of a short run whose sizes vary; undefined for other runs. */
export function rehearse(
  subject: Subject,
  plan: MemoryPlan,
  { steps, evaluation }: Workload,
): Pick<Measurement, "peaks" | "categories" | "needs"> | undefined {
  if (steps === null) return undefined;
  return withFewest(subject, plan, (short) =>
    onMeta(subject, plan, short, ({ model, mesh, batch, step, accounts }) => {
      for (const micro of steps) step(micro.map(batch), together(micro).tokens);
      if (evaluation) evaluationLoss(model, batch(evaluation), mesh.sequence).dispose();
      const found = accounts();
      return found && { peaks: found.peaks, categories: found.categories, needs: found.peaks };
    }),
  );
}
